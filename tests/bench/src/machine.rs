//! The machine that all VMMs are asked for: what a guest needs, in terms that none of them owns.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

/// A virtual machine. What is not named here, it does not have, as far as the VMM allows.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    /// A bare guest of the bench's, which is an ELF file, a `vmlinux`, which is one, too, or a `vmlinuz`.
    pub kernel: PathBuf,
    /// Says at once that the guest is a Linux kernel, which wants more of the platform than a bare guest.
    pub initrd: Option<PathBuf>,
    pub cmdline: String,
    pub memory_mib: u32,
    pub cpus: u32,
    pub disks: Vec<Disk>,
    /// The name of a TAP interface, which exists.
    pub tap: Option<String>,
    /// A socket device, for the guest with the CID [`GUEST_CID`].
    pub vsock: bool,
    /// An entropy device. Cloud Hypervisor always has one.
    pub rng: bool,
}

/// The context ID of a guest with a socket device.
pub(crate) const GUEST_CID: u32 = 3;

/// A disk: a raw image.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    pub path: PathBuf,
    pub read_only: bool,
    /// Past the host's page cache.
    pub direct: bool,
    pub engine: Engine,
    /// Not all VMMs let one say it: Firecracker and alioth do not, and ignore it.
    pub serial: Option<String>,
}

/// What moves a disk's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    /// What the VMM does if nobody says anything, or what it does best.
    Usual,
    /// System calls that block.
    Sync,
    /// `io_uring`.
    IoUring,
}

impl Machine {
    /// A vCPU and 128 MiB of memory.
    pub(crate) fn new(kernel: impl Into<PathBuf>) -> Self {
        Self {
            kernel: kernel.into(),
            initrd: None,
            cmdline: String::new(),
            memory_mib: 128,
            cpus: 1,
            disks: Vec::new(),
            tap: None,
            vsock: false,
            rng: false,
        }
    }
}

impl Machine {
    /// Whether the kernel is an ELF file; else it is a bzImage.
    pub(crate) fn has_elf_kernel(&self) -> bool {
        let mut magic = [0; 4];
        let read = File::open(&self.kernel).and_then(|mut file| file.read_exact(&mut magic));
        read.is_ok() && magic == *b"\x7fELF"
    }
}

impl Disk {
    /// Writable, through the host's page cache.
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read_only: false,
            direct: false,
            engine: Engine::Usual,
            serial: None,
        }
    }
}
