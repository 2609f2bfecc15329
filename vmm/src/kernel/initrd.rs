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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use linux_loader::bootparam::setup_header;

    use super::*;
    use crate::kernel::testing::{bytes_at, ram, ram_at};
    use crate::kernel::{BootPath, KernelEntryPoint};

    const MIB: u64 = 1 << 20;

    fn kernel(end: u64, address_max: Option<u32>) -> LoadedKernel {
        let header = address_max.map(|initrd_addr_max| {
            Box::new(setup_header {
                initrd_addr_max,
                ..Default::default()
            })
        });
        LoadedKernel {
            entry: KernelEntryPoint::Linux64 { entry: MIB },
            setup_header: header,
            end,
            path_taken: BootPath::InGuest,
        }
    }

    fn place_of(size: u64, ram: &GuestRam, kernel: &LoadedKernel) -> Result<u64, InitrdError> {
        find_place(size, ram, kernel).map(|address| address.raw_value())
    }

    #[test]
    fn it_lies_at_the_top_of_memory_on_a_page() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all(&[7; 5000]).unwrap();
        let ram = ram(8);
        let (address, size) = load(file.path(), &ram, &kernel(2 * MIB, None)).unwrap();
        assert_eq!((address.raw_value(), size), (8 * MIB - 8192, 5000));
        assert_eq!(
            bytes_at(&ram, address.raw_value(), 5001),
            [&[7; 5000][..], &[0]].concat()
        );
        let opened = file.reopen().unwrap();
        let again = load_from(opened, file.path(), &ram, &kernel(2 * MIB, None)).unwrap();
        assert_eq!(again, (address, size));
    }

    #[test]
    fn it_fills_the_room_beside_the_kernel_and_not_a_byte_more() {
        let ram = ram(8);
        let kernel = kernel(2 * MIB + 1, None);
        assert_eq!(
            place_of(6 * MIB - 4096, &ram, &kernel).unwrap(),
            2 * MIB + 4096
        );
        let err = place_of(6 * MIB - 4095, &ram, &kernel).unwrap_err();
        assert!(
            matches!(
                err,
                InitrdError::TooLarge {
                    memory: 0x80_0000,
                    ..
                }
            ),
            "{err}"
        );
        assert!(err.remedy().unwrap().contains("--memory"));
        for size in [8 * MIB, 1 << 40, u64::MAX] {
            assert!(place_of(size, &ram, &kernel).is_err());
        }
    }

    #[test]
    fn it_stays_below_the_kernels_limit() {
        // Sparse: nothing of it is touched.
        let ram = ram_at(&[(0, 3 << 30), (4 << 30, 1 << 30)]);
        let limited = kernel(64 * MIB, Some(0x37ff_ffff));
        assert_eq!(place_of(4096, &ram, &limited).unwrap(), 0x3800_0000 - 4096);
        let silent = kernel(64 * MIB, None);
        assert_eq!(place_of(4096, &ram, &silent).unwrap(), 0x8000_0000 - 4096);
        let zero = kernel(64 * MIB, Some(0));
        assert_eq!(place_of(4096, &ram, &zero).unwrap(), 0x8000_0000 - 4096);
        let open = kernel(64 * MIB, Some(u32::MAX));
        assert_eq!(place_of(4096, &ram, &open).unwrap(), (3 << 30) - 4096);
        let err = place_of(1 << 30, &ram, &limited).unwrap_err();
        assert!(
            matches!(
                err,
                InitrdError::BeyondProtocol {
                    address_max: 0x37ff_ffff,
                    ..
                }
            ),
            "{err}"
        );
        assert!(err.remedy().is_some());
    }

    #[test]
    fn what_is_no_file_or_empty_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let err = load(dir.path(), &ram(4), &kernel(MIB, None)).unwrap_err();
        assert!(err.to_string().starts_with("initrd \""), "{err}");
        assert!(
            matches!(
                err,
                KernelError::NotAFile {
                    kind: "directory",
                    ..
                }
            ),
            "{err}"
        );
        let empty = dir.path().join("empty");
        std::fs::write(&empty, b"").unwrap();
        let err = load(&empty, &ram(4), &kernel(MIB, None)).unwrap_err();
        assert!(
            matches!(
                err,
                KernelError::Empty {
                    role: FileRole::Initrd,
                    ..
                }
            ),
            "{err}"
        );
        let missing = load(&dir.path().join("no"), &ram(4), &kernel(MIB, None)).unwrap_err();
        assert!(
            matches!(
                missing,
                KernelError::Open {
                    role: FileRole::Initrd,
                    ..
                }
            ),
            "{missing}"
        );
    }

    #[test]
    fn a_file_that_shrinks_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("initrd");
        std::fs::write(&path, [1; 10000]).unwrap();
        let file = source::open(FileRole::Initrd, &path).unwrap();
        std::fs::write(&path, [1; 5000]).unwrap();
        let err = load_from_source(&file, &path, &ram(4), &kernel(MIB, None)).unwrap_err();
        assert!(
            matches!(
                err,
                KernelError::Initrd {
                    source: InitrdError::Copy(_),
                    ..
                }
            ),
            "{err}"
        );
    }
}
