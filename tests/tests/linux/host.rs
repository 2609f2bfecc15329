//! Disks of the host's that tests make: loop devices, device-mapper targets, file systems. Needs root. Each goes when it is dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs a program of the host's and takes its output.
#[track_caller]
pub(crate) fn host(line: &str) -> String {
    let (succeeded, said) = try_host(line);
    assert!(succeeded, "{line}: {said}");
    said
}

/// The same, whether it succeeds or not.
pub(crate) fn try_host(line: &str) -> (bool, String) {
    let mut words = line.split_whitespace();
    let program = words.next().expect("no program");
    let output = Command::new(program)
        .args(words)
        // Nobody answers to device mapper's events in a lab host.
        .env("DM_DISABLE_UDEV", "1")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|err| panic!("cannot run {program}: {err}"));
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

/// A sparse file.
pub(crate) fn sparse(path: &Path, len: u64) {
    File::create(path)
        .and_then(|file| file.set_len(len))
        .unwrap_or_else(|err| panic!("cannot create {}: {err}", path.display()));
}

/// A loop device over a file.
pub(crate) struct Loop(String);

impl Loop {
    /// One over a new sparse file.
    pub(crate) fn new(file: &Path, len: u64) -> Self {
        sparse(file, len);
        let device = host(&format!("losetup --find --show {}", file.display()));
        Self(device.trim().to_owned())
    }

    /// Its path.
    pub(crate) fn path(&self) -> &str {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Fails only where a test has failed before; what is mounted then must not hide why.
        let _ = try_host(&format!("losetup --detach {}", self.0));
    }
}

/// A device-mapper device.
pub(crate) struct Mapper {
    name: &'static str,
}

impl Mapper {
    /// One with this table.
    pub(crate) fn new(name: &'static str, table: &str) -> Self {
        let mapper = Self { name };
        mapper.dmsetup(&["create", name, "--table", table]);
        mapper
    }

    /// Its path.
    pub(crate) fn path(&self) -> String {
        format!("/dev/mapper/{}", self.name)
    }

    /// Replaces its table, without writing back what file systems on it still have.
    pub(crate) fn replace(&self, table: &str) {
        let name = self.name;
        self.dmsetup(&["suspend", "--nolockfs", "--noflush", name]);
        self.dmsetup(&["load", name, "--table", table]);
        self.dmsetup(&["resume", name]);
    }

    #[track_caller]
    fn dmsetup(&self, arguments: &[&str]) {
        let output = Command::new("/sbin/dmsetup")
            .args(arguments)
            .env("DM_DISABLE_UDEV", "1")
            .stdin(Stdio::null())
            .output()
            .expect("no dmsetup");
        assert!(output.status.success(), "dmsetup {arguments:?}: {output:?}");
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        let _ = try_host(&format!("dmsetup remove --force {}", self.name));
    }
}

/// A mounted file system.
pub(crate) struct Mount(PathBuf);

impl Mount {
    /// Mounts what is on a device.
    pub(crate) fn new(device: &str, at: PathBuf) -> Self {
        std::fs::create_dir_all(&at).expect("no place to mount");
        host(&format!("mount {device} {}", at.display()));
        Self(at)
    }

    /// A new ext4 on a device.
    pub(crate) fn ext4(device: &str, at: PathBuf) -> Self {
        host(&format!("mkfs.ext4 -q {device}"));
        Self::new(device, at)
    }

    /// A new tmpfs of that size.
    pub(crate) fn tmpfs(len: u64, at: PathBuf) -> Self {
        Self::new(&format!("-t tmpfs -o size={len} tmpfs"), at)
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = try_host(&format!("umount {}", self.0.display()));
    }
}
