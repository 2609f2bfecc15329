//! `ampoule run IMAGE -- CMD`: a command in a VM of its own, as docker(1) would run it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use ampoule_tests::harness::{self, kernel};

use crate::driver::{End, Vm, ampoule, finish, run};
use crate::net_load::uplink;
use crate::resolver::{Resolver, gateway};
use crate::service;
use crate::user::{User, another, user};

/// The root file system of the tests' commands.
pub(crate) fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| harness::shared("place", fill).join("root"))
}

/// The cache of the tests' user.
pub(crate) fn cache() -> &'static Path {
    static CACHE: OnceLock<PathBuf> = OnceLock::new();
    CACHE.get_or_init(|| {
        harness::shared("cache", |folder| {
            user().inspect(|user| user.owns(folder));
        })
    })
}

fn fill(folder: &Path) {
    let root = folder.join("root");
    for name in ["bin", "etc", "tmp", "srv"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let applets = Command::new("/bin/busybox").arg("--list").output().unwrap();
    for name in String::from_utf8(applets.stdout).unwrap().lines() {
        let _ = symlink("busybox", root.join("bin").join(name));
    }
    let passwd = "root:x:0:0::/root:/bin/sh\nwww:x:33:33::/srv:/bin/sh\n";
    fs::write(root.join("etc/passwd"), passwd).unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nwww:x:33:\n").unwrap();
    fs::write(root.join("etc/os-release"), "ID=test\n").unwrap();
    fs::write(root.join("srv/not-a-program"), "text\n").unwrap();
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    for version in ["6.1", "6.12"] {
        // As a distribution has it: modules in ../lib/modules.
        let boot = folder.join(version).join("boot");
        fs::create_dir_all(&boot).unwrap();
        symlink(kernel(version).join("vmlinuz"), boot.join("vmlinuz")).unwrap();
        symlink(kernel(version).join("package/lib"), boot.join("../lib")).unwrap();
    }
}

/// A kernel with its modules beside it, as a distribution has them.
pub(crate) fn kernel_of(version: &str) -> PathBuf {
    root().with_file_name(version).join("boot/vmlinuz")
}

/// Has `ampoule run` be a user's without rights, who has this kernel of a distribution's, and a cache.
pub(crate) fn as_users(version: &str, mut command: Command) -> Command {
    command
        .env("AMPOULE_KERNEL", kernel_of(version))
        .env("XDG_CACHE_HOME", cache())
        .env("HOME", cache())
        .env_remove("XDG_RUNTIME_DIR")
        .current_dir("/");
    user().inspect(|user| user.runs(&mut command));
    command
}

/// `ampoule run` with these arguments before the image and with this command, on that kernel.
fn command_on(version: &str, options: &[&str], words: &[&str]) -> Command {
    let mut command = run(options);
    command.arg(root()).arg("--").args(words);
    as_users(version, command)
}

/// The same with another image, which may say itself what is to be run.
pub(crate) fn command_of(image: &Path, options: &[&str], words: &[&str]) -> Command {
    let mut command = run(options);
    command.arg(image);
    if !words.is_empty() {
        command.arg("--").args(words);
    }
    as_users("6.1", command)
}

pub(crate) fn command(options: &[&str], words: &[&str]) -> Command {
    command_on("6.1", options, words)
}

/// Runs a command of the guest's shell, without a network.
fn shell(script: &str) -> End {
    finish(command(&["--net", "none"], &["sh", "-c", script]))
}

pub(crate) fn a_command_prints_and_its_status_is_ours() {
    for version in ["6.1", "6.12"] {
        let options = ["--net", "none"];
        let end = finish(command_on(version, &options, &["cat", "/etc/os-release"]));
        end.expect_code(0).expect_silence().expect_output("ID=test");
    }
    shell("exit 42").expect_code(42).expect_silence();
    shell("kill -SEGV $$").expect_code(139);
    let end = finish(command(&["--net", "none"], &["/no/such"])).expect_code(127);
    assert!(end.errors.contains("/no/such"), "{}", end.errors);
    let end = finish(command(&["--net", "none"], &["/srv/not-a-program"])).expect_code(126);
    assert!(end.errors.contains("not-a-program"), "{}", end.errors);
}

pub(crate) fn streams_stay_apart_and_whole() {
    const LEN: usize = 100 << 20;
    let script = "cat; echo done >&2";
    let mut command = command(&["--net", "none", "-i"], &["sh", "-c", script]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let bytes: Vec<u8> = (0..LEN).map(|at| (at / 251) as u8 ^ at as u8).collect();
    let mut input = child.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = thread::spawn(move || input.write_all(&sent).unwrap());
    let mut output = Vec::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut output)
        .unwrap();
    writer.join().unwrap();
    let end = child.wait_with_output().unwrap();
    assert!(output == bytes, "{} bytes came back", output.len());
    assert_eq!(String::from_utf8_lossy(&end.stderr), "done\n");
    assert!(end.status.success());
}

pub(crate) fn a_command_has_the_user_folder_and_environment_that_it_should() {
    let options = [
        "--net",
        "none",
        "-u",
        "www",
        "-w",
        "/srv/new",
        "-e",
        "A=b c",
        "--hostname",
        "box",
    ];
    let script = "id -un; pwd; echo $A; hostname; mount | grep ' / '; echo x >/tmp/x && cat /tmp/x";
    let end = finish(command(&options, &["sh", "-c", script])).expect_code(0);
    let said = end.text();
    assert!(said.starts_with("www\n/srv/new\nb c\nbox\n"), "{said}");
    assert!(
        said.contains("overlay on / ") && said.ends_with("x\n"),
        "{said}"
    );
    // What one writes the next one does not find, and who may not write does not.
    shell("test ! -e /tmp/x && touch /etc/y").expect_code(0);
    shell("test ! -e /etc/y").expect_code(0);
    let read_only = ["--net", "none", "--read-only"];
    finish(command(&read_only, &["touch", "/etc/y"])).expect_code(1);
}

pub(crate) fn signals_are_the_commands() {
    let script = "trap 'echo got; exit 9' INT; echo ready; while :; do sleep 0.1; done";
    let mut vm = Vm::piped(command(&["--net", "none"], &["sh", "-c", script]));
    vm.expect("ready\n");
    vm.signal(libc::SIGINT);
    vm.expect("got\n");
    vm.end().expect_code(9);
    // One that takes no notice is not asked for ever.
    let script = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    let mut vm = Vm::piped(command(&["--net", "none"], &["sh", "-c", script]));
    vm.expect("ready\n");
    for _ in 0..3 {
        vm.signal(libc::SIGTERM);
        // Signals that wait are one.
        thread::sleep(Duration::from_millis(200));
    }
    vm.end().expect_code(137);
}

pub(crate) fn a_terminal_has_a_size_and_its_keys_are_the_commands() {
    let script = "stty size; trap 'stty size' WINCH; while :; do sleep 0.1; done";
    let mut vm = Vm::on_terminal(command(&["--net", "none", "-it"], &["sh", "-c", script]));
    vm.resize(101, 41);
    vm.expect("41 101\r\n");
    vm.resize(90, 30);
    vm.expect("30 90\r\n");
    vm.send("\x03");
    let (end, _) = vm.end_with_settings();
    end.expect_code(130);
}

pub(crate) fn a_crash_and_a_deadline_are_told_apart() {
    let end = shell("echo c >/proc/sysrq-trigger; sleep 60").expect_code(134);
    assert!(end.errors.contains("Kernel panic"), "{}", end.errors);
    let end = finish(command(
        &["--net", "none", "--timeout", "20s"],
        &["sleep", "1000"],
    ));
    end.expect_code(124).expect_error("time limit");
}

/// Another process waits for the same image; one that is killed leaves nothing in the way.
fn at_once_and_after_a_kill(count: usize) {
    let own = tempfile::tempdir().unwrap();
    user().inspect(|user| user.owns(own.path()));
    let start = || {
        let mut command = command(&["--net", "none", "--memory", "128M"], &["echo", "hello"]);
        command.env("XDG_CACHE_HOME", own.path());
        command
    };
    let mut killed = start().stdout(Stdio::null()).spawn().unwrap();
    killed.kill().unwrap();
    killed.wait().unwrap();
    let running: Vec<Vm> = (0..count).map(|_| Vm::piped(start())).collect();
    for vm in running {
        vm.end()
            .expect_code(0)
            .expect_silence()
            .expect_output("hello");
    }
    let files = |folder: &Path| fs::read_dir(folder).unwrap().count();
    let images = own.path().join("ampoule/images");
    let before = files(&images);
    finish(start()).expect_code(0);
    assert_eq!(files(&images), before, "an image was made again");
}

pub(crate) fn several_at_once_and_after_a_kill() {
    at_once_and_after_a_kill(4);
}

pub(crate) fn eight_at_once_and_after_a_kill() {
    at_once_and_after_a_kill(8);
}

/// A server in the guest is reached from here, and one that is here from the guest, by its name.
pub(crate) fn servers_on_both_sides_are_reached() {
    uplink();
    let here = TcpListener::bind("127.0.0.1:18090").unwrap();
    let serving = thread::spawn(move || {
        let (mut stream, _) = here.accept().unwrap();
        stream
            .write_all(b"HTTP/1.0 200 OK\r\n\r\nfrom the host\n")
            .unwrap();
    });
    // What listens on this host's loopback is the gateway's, for the guest.
    let resolver = Resolver::start(gateway());
    // It goes to the background when it listens.
    let script = "httpd -p 80 -h /etc && wget -q -O - http://files.test:18090/ && cat";
    let options = ["-i", "--publish", "18080:80"];
    let mut vm = Vm::piped(resolver.used_by(command(&options, &["sh", "-c", script])));
    vm.expect("from the host\n");
    serving.join().unwrap();
    let mut stream = TcpStream::connect("127.0.0.1:18080").unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream
        .write_all(b"GET /os-release HTTP/1.0\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("ID=test\n"), "{answer}");
    vm.signal(libc::SIGTERM);
    vm.end().expect_code(143);
}

/// What is there of a user who has nothing but what commands leave: processes, files, mounts and sockets.
fn left_behind(user: User, folders: &[&Path]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    for process in entries("/proc".as_ref()) {
        let is_process = process.file_name().as_bytes()[0].is_ascii_digit();
        let owner = process.metadata().map(|it| it.uid());
        if is_process && owner.is_ok_and(|owner| owner == user.number) {
            let name = fs::read_to_string(process.path().join("comm"));
            found.insert(format!("process {}", name.unwrap_or_default()));
        }
    }
    for folder in folders {
        for file in entries(folder) {
            if file.metadata().is_ok_and(|it| it.uid() == user.number) {
                found.insert(format!("file {}", file.path().display()));
            }
        }
    }
    for list in ["/proc/net/unix", "/proc/self/mountinfo"] {
        let list = fs::read_to_string(list).unwrap();
        let own = folders[0].to_str().unwrap();
        found.extend(
            list.lines()
                .filter(|it| it.contains(own))
                .map(str::to_owned),
        );
    }
    found
}

fn runs_that_leave_nothing(count: usize, name: &str) {
    let Some(user) = another(1) else {
        return harness::skip(name, "needs root, to be a user of its own");
    };
    uplink();
    let own = tempfile::tempdir().unwrap();
    user.owns(own.path());
    let run_one = |number: usize| {
        let options = ["--memory", "128M", "--publish", "18081:80"];
        let mut command = command(&options, &["sh", "-c", "echo x >/tmp/x; exit $((6 * 7))"]);
        user.runs(&mut command);
        command
            .env("XDG_CACHE_HOME", own.path())
            .env("TMPDIR", own.path())
            .env("XDG_RUNTIME_DIR", own.path());
        let end = finish(command);
        assert_eq!(end.status.code(), Some(42), "{number}: {}", end.describe());
    };
    let look = || {
        let cache = own.path().join("ampoule");
        let folders = ["", "images", "initramfs"].map(|name| cache.join(name));
        let mut folders: Vec<&Path> = folders.iter().map(|it| &**it).collect();
        folders.insert(0, own.path());
        folders.extend(["/tmp", "/run", "/dev/shm", "/var/tmp"].map(Path::new));
        left_behind(user, &folders)
    };
    // The first makes the image.
    run_one(0);
    let before = look();
    assert!(
        !before.iter().any(|it| it.starts_with("process")),
        "{before:?}"
    );
    for number in 1..=count {
        run_one(number);
        assert_eq!(look(), before, "after {number} runs");
    }
}

pub(crate) fn runs_leave_nothing_behind() {
    runs_that_leave_nothing(2, "command::runs_leave_nothing_behind");
}

pub(crate) fn a_hundred_runs_leave_nothing_behind() {
    runs_that_leave_nothing(100, "command::a_hundred_runs_leave_nothing_behind");
}

/// An image of a registry is pulled once; then nobody is asked, and the registry may be gone.
pub(crate) fn an_image_of_a_registry_is_run_again_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let layout = folder.path().join("layout");
    let config = ["--config.cmd", "cat", "--config.cmd", "/etc/os-release"];
    // umoci asks for extended attributes, which a folder shared with a lab host has not, and takes files for one that have one
    // number, be it on two file systems, as an overlay has them: it gets a tree of its own, in memory, where there is that.
    let memory = ["/dev/shm", "/tmp"].map(|place| tempfile::tempdir_in(place).ok());
    let memory = memory.into_iter().flatten().next().unwrap();
    let tree = memory.path().join("tree");
    for folder in ["bin", "etc"] {
        fs::create_dir_all(tree.join(folder)).unwrap();
    }
    for name in ["bin/busybox", "etc/os-release", "etc/passwd"] {
        fs::copy(root().join(name), tree.join(name)).unwrap();
    }
    for name in ["sh", "cat", "echo"] {
        symlink("busybox", tree.join("bin").join(name)).unwrap();
    }
    service::pack(&layout, "v1", &tree, &config);
    let registry = service::Registry::start("");
    registry.push(&format!("oci:{}:v1", layout.display()), "a/b:v1", &[]);
    let name = registry.name("a/b:v1");
    user().inspect(|user| user.owns(folder.path()));
    let start = |options: &[&str]| {
        let mut command = run(options);
        command.args(["--net", "none", &name]);
        let mut command = as_users("6.1", command);
        command.env("XDG_CACHE_HOME", folder.path());
        command
    };
    let end = finish(start(&[])).expect_code(0);
    end.expect_silence().expect_output("ID=test");
    drop(registry);
    let mut vm = Vm::piped({
        let mut command = start(&["-i"]);
        command.args(["--", "sh", "-c", "echo ready; cat"]);
        command
    });
    vm.expect("ready\n");
    // What a VM runs from is not removed under it.
    let image = |arguments: &[&str]| {
        let mut command = Command::new(ampoule());
        command.arg("image").args(arguments);
        let mut command = as_users("6.1", command);
        command.env("XDG_CACHE_HOME", folder.path());
        finish(command)
    };
    image(&["rm", &name])
        .expect_code(125)
        .expect_error("is being used");
    image(&["prune"])
        .expect_code(0)
        .expect_output("1 image is being used");
    vm.signal(libc::SIGTERM);
    vm.end().expect_code(143);
    let end = finish(start(&["--pull", "always"])).expect_code(125);
    end.expect_error("the registry cannot be reached");
    image(&["rm", &name])
        .expect_code(0)
        .expect_output("removed sha256:");
    let end = finish(start(&["--pull", "never"])).expect_code(125);
    end.expect_error("is not in the cache");
}
