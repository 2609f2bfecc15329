//! The Intel lab host's initramfs: busybox, a handful of kernel modules, the init script.
//!
//! Not compressed: the emulator reads the CD faster than the emulated processor would decompress.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::cpio::Archive;
use crate::modules;

/// `kvm-intel` is what the host is for; the disks with the file tree are ATA behind libata and the
/// SCSI layer; the overlay makes the tree writable; `tun` is for network tests.
const MODULES: &[&str] = &["kvm-intel", "ata_piix", "sd_mod", "overlay", "tun", "loop"];

/// What `kernel/module_signature.h` puts at the very end of a signed module.
const SIGNATURE_MAGIC: &[u8] = b"~Module signature appended~\n";

/// Size of `struct module_signature`, which lies before the magic and ends in the big-endian length
/// of the signature before it.
const SIGNATURE_HEADER: usize = 12;

/// Makes the initramfs: `busybox`, the modules found below `modules` (a `lib/modules/VERSION`
/// folder), the init script that loads them in order, and `agent_script`, which it ends in.
///
/// # Errors
/// A file that cannot be read, or no `kvm-intel` module below `modules`.
pub(super) fn make(busybox: &Path, modules: &Path, agent_script: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in [
        "bin", "dev", "etc", "lib", "lower", "proc", "root", "rw", "sys", "tree",
    ] {
        archive.folder(folder);
    }
    let shell = fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    archive.file("bin/busybox", true, &shell);
    archive.file("init", true, include_bytes!("init.sh"));
    archive.file("agent", true, agent_script.as_bytes());

    let mut order = String::new();
    for module in modules::find(modules, MODULES)? {
        let name = format!("lib/{}.ko", module.name);
        archive.file(&name, false, unsigned(&module.content));
        order.push_str(&module.name);
        order.push('\n');
    }
    if !order.lines().any(|name| name == "kvm_intel") {
        bail!("no kvm-intel module below {}", modules.display());
    }
    archive.file("lib/order", false, order.as_bytes());
    Ok(archive.finish())
}

/// The module without its signature. Checking one costs the emulated processor seconds of
/// arithmetic, and nobody asks for it here: the kernel loads an unsigned module with a taint flag.
fn unsigned(module: &[u8]) -> &[u8] {
    let strip = || {
        let signed = module.strip_suffix(SIGNATURE_MAGIC)?;
        let length = u32::from_be_bytes(*signed.last_chunk()?) as usize;
        let content = signed.len().checked_sub(SIGNATURE_HEADER)?;
        module.get(..content.checked_sub(length)?)
    };
    strip().unwrap_or(module)
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
    fn a_kernel_without_kvm_intel_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("kernel")).unwrap();
        fs::write(folder.path().join("busybox"), "").unwrap();
        let error = make(&folder.path().join("busybox"), folder.path(), "").unwrap_err();
        assert!(error.to_string().contains("kvm-intel"), "{error}");
    }
}
