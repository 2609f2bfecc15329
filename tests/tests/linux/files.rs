//! Files of a command in a VM: into its guest and out of it, without an image, and on disks of its own.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use crate::command::{as_users, cache, command, command_of};
use crate::driver::{Vm, finish, run};
use crate::user::user;

/// Name, mode, time and content of all that is in a folder, sorted.
fn tree(folder: &Path) -> Vec<(Vec<u8>, u32, i64, Vec<u8>)> {
    let mut all = Vec::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(path) = waiting.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let content = if metadata.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|it| it.unwrap().path()));
            Vec::new()
        } else if metadata.is_symlink() {
            fs::read_link(&path).unwrap().as_os_str().as_bytes().into()
        } else {
            fs::read(&path).unwrap()
        };
        let name = path.strip_prefix(folder).unwrap().as_os_str();
        all.push((
            name.as_bytes().into(),
            metadata.mode(),
            metadata.mtime(),
            content,
        ));
    }
    all.sort();
    all
}

/// Also into a root that is read-only, and with a status that is not 0.
pub(crate) fn a_tree_goes_in_and_comes_out_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let from = path("tree");
    fs::create_dir_all(from.join("deep/er")).unwrap();
    let odd = from.join(OsStr::from_bytes(b"odd \xff\n*-name"));
    fs::write(&odd, "odd").unwrap();
    mode(&odd, 0o600);
    let large: Vec<u8> = (0..20 << 20)
        .map(|at: u32| (at / 253) as u8 ^ at as u8)
        .collect();
    fs::write(from.join("deep/er/large"), large).unwrap();
    fs::hard_link(from.join("deep/er/large"), from.join("again")).unwrap();
    symlink("/no/such", from.join("link")).unwrap();
    mode(&from.join("deep"), 0o750);
    let program = path("program");
    fs::write(&program, "#!/bin/sh\nstat -c '%u:%g %h %a' $@\n").unwrap();
    mode(&program, 0o4755);
    user().inspect(|user| user.owns(folder.path()));
    mode(&program, 0o4755); // a change of the owner takes it away
    let copy = |host: &Path, guest: &str| format!("{}:{guest}", host.display());
    let out = |guest: &str, host: &str| format!("{guest}:{}", path(host).display());
    let (into, run) = (copy(&from, "/srv"), copy(&program, "/opt/new/run"));
    let (back, made) = (out("/srv/tree", "back"), out("/tmp/made", "made"));
    let missing = out("/tmp/none", "none");
    let mut options = vec![
        "--net",
        "none",
        "--read-only",
        "--copy",
        &into,
        "--copy",
        &run,
    ];
    for it in [&back, &missing, &made] {
        options.extend(["--copy-out", it]);
    }
    let script = "/opt/new/run /opt/new/run /srv/tree/again; mkdir -m 700 /tmp/made; echo x >/tmp/made/x; chmod 6711 /tmp/made/x
        touch /srv/y; exit 42";
    let end = finish(command(&options, &["sh", "-c", script])).expect_code(42);
    assert_eq!(end.text(), "0:0 1 4755\n0:0 2 644\n");
    let end = end
        .expect_error("Read-only file system")
        .expect_error("cannot copy out of the guest: /tmp/none: no such file or directory");
    assert_eq!(end.errors.lines().count(), 2, "{}", end.errors);
    assert!(tree(&path("back")) == tree(&from), "another tree came back");
    assert_eq!(fs::metadata(path("back/again")).unwrap().nlink(), 2);
    let modes: Vec<_> = tree(&path("made"))
        .into_iter()
        .map(|it| it.1 & 0o7777)
        .collect();
    assert_eq!(modes, [0o700, 0o711]);
}

/// `ampoule run` without an image.
fn without_image(options: &[&str], words: &[&str]) -> std::process::Command {
    let mut command = run(["--net", "none", "--memory", "128M"]);
    command.args(options).arg("--").args(words);
    as_users("6.1", command)
}

pub(crate) fn a_static_program_needs_no_image() {
    let folder = tempfile::tempdir().unwrap();
    user().inspect(|user| user.owns(folder.path()));
    let out = format!("/made:{}", folder.path().display());
    let options = [
        "--file",
        "/bin/busybox",
        "--file",
        "/etc/hostname:/a/b",
        "--copy-out",
        &out,
    ];
    let script = "/busybox test -s /a/b && /busybox ls / && echo made >/made && exit 5";
    let end = finish(without_image(&options, &["busybox", "sh", "-c", script])).expect_code(5);
    let end = end.expect_silence();
    let names: Vec<String> = end.text().lines().map(str::to_owned).collect();
    // The kernel's own initramfs has a /root.
    let expected = "a busybox dev etc proc root run sys tmp";
    assert_eq!(names.join(" "), expected);
    assert_eq!(fs::read(folder.path().join("made")).unwrap(), b"made\n");
    // One that has no loader there says so.
    let end = finish(without_image(&["--file", "/bin/true"], &["true"])).expect_code(127);
    end.expect_error("cannot run true")
        .expect_error("is dynamically linked");
}

pub(crate) fn what_is_written_is_on_a_disk_that_ends_with_the_run() {
    let cache = cache().join("ampoule");
    // More than there is memory.
    let options = ["--net", "none", "--memory", "128M", "--overlay", "size=1G"];
    let script = "dd if=/dev/zero of=/zeros bs=1M count=200 2>/dev/null && sync && stat -c %s /zeros && df -m / | tail -n 1";
    let end = finish(command(&options, &["sh", "-c", script])).expect_code(0);
    let end = end.expect_silence();
    let said = end.text();
    let mut words = said.split_whitespace();
    assert_eq!(words.next(), Some("209715200"));
    let size: u64 = words.nth(1).unwrap().parse().unwrap();
    assert!((800..1024).contains(&size), "{said}");
    // Others of the cache are small.
    let files = fs::read_dir(&cache).unwrap().map(|it| it.unwrap());
    let left = files.filter(|it| it.metadata().unwrap().len() >= 1 << 30);
    let left: Vec<_> = left.map(|it| it.path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

pub(crate) fn a_disk_that_is_kept_is_there_again_and_one_runs_with_it() {
    let folder = tempfile::tempdir().unwrap();
    user().inspect(|user| user.owns(folder.path()));
    let path = folder.path().join("kept.img");
    let overlay = format!("path={},size=256M", path.display());
    let options = ["--net", "none", "--overlay", &overlay, "-i"];
    let script =
        "test ! -e /made && echo ready && read line && echo $line >/made && rm /etc/os-release";
    let mut vm = Vm::piped(command(&options, &["sh", "-c", script]));
    vm.expect("ready\n");
    let second = finish(command(&options, &["true"])).expect_code(125);
    second.expect_error("kept.img").expect_error("lock");
    vm.send("kept\n");
    vm.end().expect_code(0).expect_silence();
    let script = "cat /made && test ! -e /etc/os-release";
    let end = finish(command(&options, &["sh", "-c", script])).expect_code(0);
    end.expect_silence().expect_output("kept\n");
    // It is no other image's.
    let other = folder.path().join("other");
    fs::create_dir_all(other.join("bin")).unwrap();
    finish(command_of(&other, &options[..4], &["/bin/x"]))
        .expect_code(125)
        .expect_error("belongs to another image");
    // Nothing is left beside it.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}
