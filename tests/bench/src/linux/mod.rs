//! What Linux guests show, where a KVM can run them: the same kernel of Debian's, with the same initramfs, disks, tap and sockets, under
//! every VMM.

mod boot;
mod disk;
mod net;
mod vsock;

use std::fs;
use std::path::{Path, PathBuf};

use ampoule_tests::guests;
use ampoule_tests::harness;
use ampoule_tests::initramfs::{Initramfs, module};
use anyhow::{Context, Result};

use crate::bench::{Bench, Measurement};
use crate::machine::Machine;

/// The name of this part.
const PART: &str = "linux";

/// The kernel of Debian's that all of them run.
const VERSION: &str = "6.1";

/// PID 1.
const INIT: &str = include_str!("../../../../resources/guests/linux/bench_init.sh");

/// What it loads, in this order: virtio by MMIO and by PCI, and its devices.
const MODULES: &[&str] = &[
    "virtio_ring",
    "virtio",
    "virtio_mmio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
];

/// All that is measured.
pub(crate) const ALL: &[Measurement] = &[
    ("boot", "boot of Debian's kernel", boot::measure),
    ("fio", "disks, by fio in the guest", disk::measure),
    ("iperf3", "network, by iperf3", net::measure),
    (
        "linux-vsock",
        "sockets between guest and host",
        vsock::measure,
    ),
];

/// A kernel's file: `vmlinuz`, the bzImage, or `vmlinux`, the ELF.
fn kernel(file: &str) -> PathBuf {
    harness::kernel(VERSION).join(file)
}

/// A Linux guest that does what `words` say.
fn machine(bench: &Bench, file: &str, words: &str) -> Result<Machine> {
    Ok(Machine {
        initrd: Some(initramfs(bench.memory())?),
        cmdline: words.into(),
        memory_mib: 512,
        rng: true,
        ..Machine::new(kernel(file))
    })
}

/// The initramfs in this folder, made once.
fn initramfs(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("initramfs.cpio");
    if path.exists() {
        return Ok(path);
    }
    let mut archive = Initramfs::new();
    archive.folder("bin")?;
    archive.folder("lib")?;
    let busybox = fs::read("/bin/busybox")
        .context("no /bin/busybox (Debian: apt-get install busybox-static)")?;
    archive.program("bin/busybox", &busybox)?;
    archive.program("bin/vsock_echo", &fs::read(guests::VSOCK_ECHO)?)?;
    archive.program("init", INIT.as_bytes())?;
    let modules = harness::kernel(VERSION).join("package/lib/modules");
    for name in MODULES {
        archive.program(&format!("lib/{name}.ko"), &module(&modules, name)?)?;
    }
    archive.program("lib/order", MODULES.join("\n").as_bytes())?;
    archive.write_to(&path)?;
    Ok(path)
}
