//! The initial RAM disk: a file that the guest finds in its memory, as it is.
//!
//! It lies as high as the boot protocol allows, so that the kernel has the memory above itself in one piece. Specification:
//! "The Linux/x86 Boot Protocol", `ramdisk_image` and `initrd_addr_max`; of the PVH ABI, the first module.
//! Thread: the one that builds the VM.

use std::fs::File;
use std::path::Path;

use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::GuestRam;
use super::elf::ram_size;
use super::error::{FileRole, KernelError, mib, more_memory};
use super::source::{self, CopyError, ImageSource};
use super::{LOWEST_KERNEL, LoadedKernel};

/// The highest address that an initrd may reach where the kernel does not say: what Linux says since 2.6.
const DEFAULT_ADDRESS_MAX: u64 = 0x7fff_ffff;

/// Linux frees an initrd by pages.
const PAGE: u64 = 4096;

/// Why an initrd cannot be placed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitrdError {
    /// The file could not be read, or guest memory not be written.
    #[error("it did not reach guest memory")]
    Copy(#[from] CopyError),
    /// Guest memory has no room for it beside the kernel.
    #[error(
        "its {} MiB do not fit into the {} MiB of guest memory beside the kernel",
        mib(*size),
        mib(*memory)
    )]
    TooLarge {
        /// Its size in bytes.
        size: u64,
        /// Size of guest memory in bytes.
        memory: u64,
        /// Where the kernel ends.
        kernel_end: u64,
    },
    /// There would be room, but only where the kernel does not look.
    #[error(
        "its {} MiB do not fit below {:#x}, which is as far as the kernel accepts it",
        mib(*size),
        address_max
    )]
    BeyondProtocol {
        /// Its size in bytes.
        size: u64,
        /// The highest address that it may reach.
        address_max: u64,
    },
}

impl InitrdError {
    pub(super) fn remedy(&self) -> Option<String> {
        match self {
            Self::TooLarge {
                size, kernel_end, ..
            } => Some(more_memory(kernel_end.saturating_add(*size))),
            Self::BeyondProtocol { .. } => Some("use a smaller initrd, or a disk".into()),
            Self::Copy(_) => None,
        }
    }
}

/// Loads the initrd at `path` beside `kernel`; returns its guest physical address and its size in bytes.
///
/// # Errors
/// [`KernelError`]: it cannot be read, is empty, or finds no room.
pub fn load(
    path: &Path,
    ram: &GuestRam,
    kernel: &LoadedKernel,
) -> Result<(GuestAddress, u64), KernelError> {
    let file = source::open(FileRole::Initrd, path)?;
    load_from_source(&file, path, ram, kernel)
}

/// As [`load`], of an open file. `path` is only for messages.
///
/// # Errors
/// As [`load`].
pub fn load_from(
    file: File,
    path: &Path,
    ram: &GuestRam,
    kernel: &LoadedKernel,
) -> Result<(GuestAddress, u64), KernelError> {
    let file = source::regular(FileRole::Initrd, path, file)?;
    load_from_source(&file, path, ram, kernel)
}

fn load_from_source<S: ImageSource + ?Sized>(
    file: &S,
    path: &Path,
    ram: &GuestRam,
    kernel: &LoadedKernel,
) -> Result<(GuestAddress, u64), KernelError> {
    let size = file.len();
    if size == 0 {
        return Err(KernelError::Empty {
            role: FileRole::Initrd,
            path: path.into(),
        });
    }
    place(file, size, ram, kernel)
        .map(|address| (address, size))
        .map_err(|source| KernelError::Initrd {
            path: path.into(),
            source,
        })
}

fn place<S: ImageSource + ?Sized>(
    file: &S,
    size: u64,
    ram: &GuestRam,
    kernel: &LoadedKernel,
) -> Result<GuestAddress, InitrdError> {
    let address = find_place(size, ram, kernel)?;
    file.copy_to_guest(0, size, address.raw_value(), ram)?;
    Ok(address)
}

/// The highest place for `size` bytes, which are not zero, that the kernel accepts.
fn find_place(
    size: u64,
    ram: &GuestRam,
    kernel: &LoadedKernel,
) -> Result<GuestAddress, InitrdError> {
    let address_max = match kernel
        .setup_header
        .as_ref()
        .map(|header| header.initrd_addr_max)
    {
        None | Some(0) => DEFAULT_ADDRESS_MAX,
        Some(max) => max.into(),
    };
    let floor = LOWEST_KERNEL.max(kernel.end);
    let highest_below = |limit: u64| {
        ram.iter()
            .filter_map(|region| {
                let start = region.start_addr().raw_value();
                let end = start.saturating_add(region.len()).min(limit);
                let address = end.checked_sub(size)? / PAGE * PAGE;
                (address >= start.max(floor)).then_some(address)
            })
            .max()
    };
    match highest_below(address_max + 1) {
        Some(address) => Ok(GuestAddress(address)),
        None if highest_below(u64::MAX).is_some() => {
            Err(InitrdError::BeyondProtocol { size, address_max })
        }
        None => Err(InitrdError::TooLarge {
            size,
            memory: ram_size(ram),
            kernel_end: kernel.end,
        }),
    }
}
