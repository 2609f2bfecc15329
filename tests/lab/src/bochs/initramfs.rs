//! The Intel lab host's initramfs: busybox, a handful of kernel modules, the init script; written
//! as a "newc" cpio archive.
//!
//! Format: Linux `Documentation/driver-api/early-userspace/buffer-format.rst`. Not compressed: the
//! emulator reads the CD faster than the emulated processor would decompress.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The modules the lab host loads, in the order they need each other. `kvm-intel` is what the host
/// is for; the disk holds the file tree (ATA behind libata and the SCSI layer); the overlay makes
/// it writable; `tun` is for network tests.
const MODULES: &[&str] = &[
    "irqbypass",
    "kvm",
    "kvm-intel",
    "scsi_common",
    "scsi_mod",
    "libata",
    "ata_piix",
    "sd_mod",
    "overlay",
    "tun",
];

/// What `kernel/module_signature.h` puts at the very end of a signed module.
const SIGNATURE_MAGIC: &[u8] = b"~Module signature appended~\n";

/// Size of `struct module_signature`, which lies before the magic and ends in the big-endian length
/// of the signature before it.
const SIGNATURE_HEADER: usize = 12;

/// Writes the initramfs to `output`: `busybox` and the modules found below `modules` (a
/// `lib/modules/VERSION` folder), the init script that loads them in order, and `agent_script`,
/// which it ends in.
///
/// # Errors
/// A file that cannot be read or written, or no `kvm-intel` module below `modules`.
pub(super) fn write(
    output: &Path,
    busybox: &Path,
    modules: &Path,
    agent_script: &str,
) -> Result<()> {
    let mut archive = Archive::default();
    for folder in [
        "bin", "dev", "etc", "lib", "lower", "proc", "root", "rw", "sys", "tree",
    ] {
        archive.folder(folder);
    }
    archive.file("bin/busybox", 0o755, &read(busybox)?);
    archive.file("init", 0o755, include_bytes!("init.sh"));
    archive.file("agent", 0o755, agent_script.as_bytes());

    let mut order = String::new();
    let found = module_files(modules)?;
    for name in MODULES {
        // A module that is missing is built into this kernel; what matters is checked in the host,
        // where /dev/kvm must appear.
        let Some(path) = found.iter().find(|path| module_name(path) == Some(*name)) else {
            if *name == "kvm-intel" {
                bail!("no kvm-intel module below {}", modules.display());
            }
            continue;
        };
        archive.file(
            &format!("lib/{name}.ko"),
            0o644,
            unsigned(&module_bytes(path)?),
        );
        order.push_str(name);
        order.push('\n');
    }
    archive.file("lib/order", 0o644, order.as_bytes());
    let write = || -> io::Result<()> { fs::File::create(output)?.write_all(&archive.finish()) };
    write().with_context(|| format!("cannot write {}", output.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Every module file below `folder`.
fn module_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.join("kernel")];
    while let Some(folder) = folders.pop() {
        for entry in
            fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?
        {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

/// `kvm-intel` for `…/kvm-intel.ko` and `…/kvm-intel.ko.xz`.
fn module_name(path: &Path) -> Option<&str> {
    let (name, suffix) = path.file_name()?.to_str()?.split_once('.')?;
    matches!(suffix, "ko" | "ko.xz").then_some(name)
}

fn module_bytes(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "ko") {
        return read(path);
    }
    let output = Command::new("xz")
        .arg("-dc")
        .arg(path)
        .output()
        .context("cannot run xz")?;
    if !output.status.success() {
        bail!("xz could not decompress {}", path.display());
    }
    Ok(output.stdout)
}

/// The module without its signature. Checking one costs the emulated processor seconds of
/// arithmetic, and nobody asks for it here: the kernel loads an unsigned module with a taint flag.
fn unsigned(module: &[u8]) -> &[u8] {
    let strip = || {
        let signed = module.strip_suffix(SIGNATURE_MAGIC)?;
        let length = u32::from_be_bytes(*signed.last_chunk()?);
        module.get(
            ..signed
                .len()
                .checked_sub(SIGNATURE_HEADER)?
                .checked_sub(length.try_into().ok()?)?,
        )
    };
    strip().unwrap_or(module)
}

/// A cpio archive in the making.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn folder(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    fn file(&mut self, name: &str, permissions: u32, content: &[u8]) {
        self.entry(name, 0o100_000 | permissions, content);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        // Inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name with its
        // NUL, no checksum.
        let fields = [
            self.entries as usize,
            mode as usize,
            0,
            0,
            1,
            0,
            content.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_cut_off_and_nothing_else() {
        let mut module = b"\x7fELF and the rest".to_vec();
        let plain = module.clone();
        assert_eq!(unsigned(&module), plain);

        module.extend([0xaa; 300]);
        module.extend([0; 8]);
        module.extend(300_u32.to_be_bytes());
        module.extend(SIGNATURE_MAGIC);
        assert_eq!(unsigned(&module), plain);
    }

    #[test]
    fn a_signature_longer_than_its_module_is_left_alone() {
        let mut module = vec![0; 20];
        module.extend(u32::MAX.to_be_bytes());
        module.extend(SIGNATURE_MAGIC);
        assert_eq!(unsigned(&module), module);
    }

    #[test]
    fn entries_are_aligned_and_the_archive_ends_in_the_trailer() {
        let mut archive = Archive::default();
        archive.file("init", 0o755, b"abcde");
        let bytes = archive.finish();
        // Header 110 + "init\0" is 115, padded to 116; then 5 bytes of content, padded to 124.
        assert_eq!(&bytes[..22], b"07070100000001000081ED");
        assert_eq!(&bytes[54..62], b"00000005", "size");
        assert_eq!(&bytes[94..102], b"00000005", "length of the name");
        assert_eq!(&bytes[110..124], b"init\0\0abcde\0\0\0");
        assert_eq!(&bytes[124..130], b"070701");
        assert!(bytes.windows(11).any(|window| window == b"TRAILER!!!\0"));
        assert_eq!(bytes.len() % 4, 0);
    }
}
