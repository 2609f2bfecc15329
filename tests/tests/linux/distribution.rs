//! A whole distribution: from a disk, with its own init, and as an image that a user runs commands from.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ampoule_tests::harness::debian;
use tempfile::TempDir;

use crate::command::{command_of, kernel_of};
use crate::driver::{Vm, finish, run};
use crate::host::host;

const MIB: u64 = 1 << 20;

/// `ampoule run` on that kernel, with a cache of the test's own.
fn command(version: &str, folder: &TempDir, options: &[&str]) -> Command {
    let mut command = run(options);
    command.arg("--kernel").arg(kernel_of(version));
    command.env("XDG_CACHE_HOME", folder.path().join("cache"));
    command
}

pub(crate) fn debian_boots_from_a_disk_to_its_login() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("debian.ext4");
    let original = debian().join("debian.ext4");
    host(&format!(
        "cp --sparse=always {} {}",
        original.display(),
        disk.display()
    ));
    let mut command = command("6.1", &folder, &[]);
    command.arg("--disk").arg(&disk);
    let mut vm = Vm::piped(command);
    vm.expect("capsule login: ");
    vm.send("root\n");
    vm.expect(":~#");
    vm.send(
        "systemctl is-system-running --wait; systemctl --failed --no-legend --plain; echo do''ne\n",
    );
    let said = vm.read_until("done");
    assert!(said.contains("running\r"), "{said}");
    vm.send("touch /root/written && findmnt -no SOURCE,FSTYPE /; echo do''ne\n");
    let said = vm.read_until("done");
    assert!(said.contains("/dev/vda ext4"), "{said}");
    vm.send("systemctl poweroff\n");
    vm.end().expect_code(0).expect_silence();
}

/// A root that says how it was started, and ends.
fn root(folder: &Path, name: &str) -> PathBuf {
    let root = folder.join(name);
    for name in ["bin", "dev", "proc", "sys", "usr/sbin", "etc"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    // As distributions have it; links lead from the root.
    std::os::unix::fs::symlink("/usr/sbin", root.join("sbin")).unwrap();
    std::os::unix::fs::symlink("/usr/sbin/start", root.join("usr/sbin/init")).unwrap();
    let init = format!(
        "#!/bin/busybox sh\nset -- \"$@\" $(busybox grep ' / ' /proc/mounts)\necho \"{name} is up: $* pid $$\"\nbusybox poweroff -f\n"
    );
    let path = root.join("usr/sbin/start");
    fs::write(&path, init).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    root
}

fn ext4(root: &Path) -> PathBuf {
    let image = root.with_extension("ext4");
    host(&format!(
        "mkfs.ext4 -q -F -d {} {} 12M",
        root.display(),
        image.display()
    ));
    image
}

/// The root partition is found in a table, by the guest alone: nobody reads a qcow2 image's content for it.
pub(crate) fn a_root_partition_is_found_by_its_type() {
    let folder = tempfile::tempdir().unwrap();
    let (other, own) = (root(folder.path(), "other"), root(folder.path(), "own"));
    // Its init sees to the rest.
    fs::write(own.join("etc/fstab"), "# device\n/dev/vda3 / ext4 rw 0 1\n").unwrap();
    let disk = folder.path().join("disk.raw");
    let mut file = File::create(&disk).unwrap();
    file.set_len(32 * MIB).unwrap();
    for (at, image) in [(2, ext4(&other)), (16, ext4(&own))] {
        file.seek(SeekFrom::Start(at * MIB)).unwrap();
        file.write_all(&fs::read(image).unwrap()).unwrap();
    }
    drop(file);
    let table = "label: gpt\n\
                 start=1MiB, size=1MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n\
                 start=2MiB, size=12MiB, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4\n\
                 start=16MiB, size=12MiB, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n";
    let mut sfdisk = Command::new("/sbin/sfdisk")
        .args(["-q"])
        .arg(&disk)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    sfdisk
        .stdin
        .take()
        .unwrap()
        .write_all(table.as_bytes())
        .unwrap();
    assert!(sfdisk.wait().unwrap().success());
    let image = folder.path().join("disk.qcow2");
    host(&format!(
        "qemu-img convert -O qcow2 {} {}",
        disk.display(),
        image.display()
    ));
    let mut command = command("6.1", &folder, &["--append", "single"]);
    command
        .arg("--disk")
        .arg(format!("{},format=qcow2", image.display()));
    let end = finish(command).expect_code(0).expect_silence();
    let end = end.expect_output("own is up: single /dev/vda3 / ext4 ro,");
    end.expect_output("pid 1\r");
}

/// Whole disks, of file systems that are modules; the newer kernel; a guest that cannot come up has not ended well.
pub(crate) fn other_file_systems_are_roots_and_what_has_no_init_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let own = root(folder.path(), "own");
    let image = folder.path().join("own.erofs");
    host(&format!("mkfs.erofs {} {}", image.display(), own.display()));
    let mut erofs = command("6.12", &folder, &["--append", "quiet"]);
    erofs
        .arg("--disk")
        .arg(format!("path={},readonly", image.display()));
    let end = finish(erofs).expect_code(0).expect_silence();
    end.expect_output("own is up: /dev/vda / erofs ro,");
    fs::remove_file(own.join("usr/sbin/init")).unwrap();
    let mut none = command("6.1", &folder, &[]);
    none.arg("--disk").arg(ext4(&own));
    let end = finish(none).expect_code(134);
    end.expect_output(
        "nothing to boot from on the disk \"/dev/vda\": /dev/vda: its ext4 has no /sbin/init",
    );
}

/// As a user who is nobody in particular: an archive that umoci has packed.
pub(crate) fn commands_of_a_debian_image_need_no_root() {
    let archive = debian().join("debian-oci.tar");
    let script = "cat /etc/os-release; apt-get --version; id; sh -c 'exit 42'; echo status $?; \
                  sh -c 'kill -SEGV $$'; echo status $?; exit 43";
    let command = command_of(&archive, &["--net", "none"], &["sh", "-c", script]);
    let said = finish(command).expect_code(43).text();
    for part in [
        "ID=debian\n",
        "apt 2.",
        "uid=0(root) gid=0(root) groups=0(root)\n",
        "status 42\n",
        "status 139\n",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
}
