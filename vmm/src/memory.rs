//! Guest RAM: mapping it on the host, with the pages that the configuration asks for.
//!
//! RAM is mapped once, by the thread that builds the VM, and shared by reference from then on. It is written by the guest at
//! any time, so that host code reads and writes it only through vm-memory's volatile accesses.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use ampoule_arch::layout;

use crate::config::{HugePages, MemorySize, VmConfig};

/// A guest's RAM: one region below the MMIO hole, and one above it where the guest has that much.
pub type GuestRam = GuestMemoryMmap<()>;

/// The size of a transparent huge page, and the alignment at which KVM can map one.
const THP_SIZE: usize = 2 << 20;

/// Why there is no RAM for the guest.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host could not map it.
    #[error("cannot map {size} of guest memory")]
    Map {
        /// What was wanted.
        size: MemorySize,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The hugetlb pool is absent or too small.
    #[error("the host has {free} free huge pages of {page}, and {needed} are needed")]
    NoHugePages {
        /// Size of a page.
        page: MemorySize,
        /// Pages needed.
        needed: u64,
        /// Pages free; 0 where the host has no such pool.
        free: u64,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The file behind shared memory could not be made.
    #[error("cannot make the memory file")]
    Memfd(#[source] io::Error),
    /// A region does not fit the address space.
    #[error("{size:#x} bytes of guest memory do not fit at {start:#x}")]
    OutOfRange {
        /// Guest physical address.
        start: u64,
        /// Size in bytes.
        size: u64,
    },
    /// The regions do not fit together.
    #[error("guest memory regions do not fit together")]
    Regions(#[source] vm_memory::GuestRegionCollectionError),
}

impl MemoryError {
    /// What a person can do about it.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::NoHugePages { page, needed, .. } => {
                let kib = page.as_bytes() >> 10;
                Some(format!(
                    "reserve them as root: echo {needed} > \
                     /sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages; or leave --hugepages out"
                ))
            }
            Self::Map { .. } => Some("use a smaller --memory, or see ulimit -v".into()),
            Self::Memfd(_) | Self::OutOfRange { .. } | Self::Regions(_) => None,
        }
    }
}

/// Maps the RAM that `config` describes. It is zero, and costs the host nothing until it is touched (huge pages from a
/// pool are reserved at once, so that a guest cannot meet their end as a SIGBUS).
pub(crate) fn allocate(config: &VmConfig) -> Result<GuestRam, MemoryError> {
    let file = match config.needs_memfd() {
        true => Some(memory_file(config)?),
        false => None,
    };
    let mut offset = 0;
    let mut regions = Vec::new();
    for (start, size) in layout::ram_ranges(config.memory.as_bytes()) {
        let file_offset = match &file {
            Some(file) => {
                let file = file.try_clone().map_err(MemoryError::Memfd)?;
                Some(FileOffset::new(file, offset))
            }
            None => None,
        };
        let region = map(size, file_offset, config)?;
        advise(&region, start, config.hugepages);
        offset += size;
        let region = GuestRegionMmap::new(region, start).ok_or(MemoryError::OutOfRange {
            start: start.0,
            size,
        })?;
        regions.push(region);
    }
    GuestRam::from_regions(regions).map_err(MemoryError::Regions)
}

fn map(size: u64, file: Option<FileOffset>, config: &VmConfig) -> Result<MmapRegion, MemoryError> {
    let failed = |source: io::Error| map_error(source, size, config);
    let size = usize::try_from(size).map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
    let map_once = || {
        let builder =
            MmapRegionBuilder::new(size).with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
        let builder = match &file {
            Some(file) => builder
                .with_file_offset(file.clone())
                .with_mmap_flags(sharing(config) | reservation(config)),
            None => builder
                .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE),
        };
        builder.build().map_err(|err| match err {
            vm_memory::mmap::MmapRegionError::Mmap(source) => failed(source),
            other => failed(io::Error::other(other)),
        })
    };
    let region = map_once()?;
    if config.hugepages != HugePages::Transparent || size < THP_SIZE {
        return Ok(region);
    }
    // KVM maps a huge page only where guest and host address agree modulo its size. Kernels since 6.7 align large mappings
    // by themselves; on older ones, a filler of just the excess, mapped for a moment, pushes the next mapping (they are
    // placed top down) to the boundary. Another thread's mapping may come between: then it stays as it is, only slower.
    let excess = region.as_ptr().align_offset(THP_SIZE);
    if excess == 0 {
        return Ok(region);
    }
    drop(region);
    let filler = MmapRegionBuilder::<()>::new(THP_SIZE - excess)
        .with_mmap_prot(libc::PROT_NONE)
        .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE)
        .build();
    let region = map_once()?;
    drop(filler);
    Ok(region)
}

fn sharing(config: &VmConfig) -> libc::c_int {
    match config.shares_memory() {
        true => libc::MAP_SHARED,
        false => libc::MAP_PRIVATE,
    }
}

/// Without a reservation the end of the huge page pool would be met as a SIGBUS, in the middle of the guest's life.
fn reservation(config: &VmConfig) -> libc::c_int {
    match config.hugepages.pool_page_size() {
        Some(_) => 0,
        None => libc::MAP_NORESERVE,
    }
}

fn map_error(source: io::Error, size: u64, config: &VmConfig) -> MemoryError {
    match config.hugepages.pool_page_size() {
        Some(page) => no_huge_pages(source, page, config),
        None => MemoryError::Map {
            size: MemorySize::bytes(size),
            source,
        },
    }
}

fn no_huge_pages(source: io::Error, page: u64, config: &VmConfig) -> MemoryError {
    let pool = format!(
        "/sys/kernel/mm/hugepages/hugepages-{}kB/free_hugepages",
        page >> 10
    );
    let free = std::fs::read_to_string(pool)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    MemoryError::NoHugePages {
        page: MemorySize::bytes(page),
        needed: config.memory.as_bytes().div_ceil(page),
        free: free.unwrap_or(0),
        source,
    }
}

/// The file that backs shared or huge-page memory, of the full size.
fn memory_file(config: &VmConfig) -> Result<File, MemoryError> {
    let page_flags = match config.hugepages {
        HugePages::Off | HugePages::Transparent => 0,
        HugePages::Huge2M => libc::MFD_HUGETLB | libc::MFD_HUGE_2MB,
        HugePages::Huge1G => libc::MFD_HUGETLB | libc::MFD_HUGE_1GB,
    };
    // SAFETY: the name is a NUL-terminated string with static lifetime; the call has no other memory operands.
    let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), libc::MFD_CLOEXEC | page_flags) };
    if fd < 0 {
        let source = io::Error::last_os_error();
        return Err(match config.hugepages.pool_page_size() {
            Some(page) => no_huge_pages(source, page, config),
            None => MemoryError::Memfd(source),
        });
    }
    // SAFETY: `fd` was just returned by a successful call and is owned by nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(config.memory.as_bytes())
        .map_err(|err| match err.raw_os_error() {
            Some(libc::ENOMEM | libc::ENOSPC) => map_error(err, config.memory.as_bytes(), config),
            _ => MemoryError::Memfd(err),
        })?;
    Ok(file)
}

/// Asks for transparent huge pages and gives the mapping its name in /proc/PID/maps. Advice: failing costs speed only.
fn advise(region: &MmapRegion, start: GuestAddress, pages: HugePages) {
    let base = region.as_ptr();
    if region.file_offset().is_none() {
        // SAFETY: the range is a mapping that `region` owns; naming it changes nothing in it. The name is static.
        unsafe {
            libc::prctl(
                libc::PR_SET_VMA,
                libc::PR_SET_VMA_ANON_NAME,
                base,
                region.size(),
                c"guest-ram".as_ptr(),
            )
        };
    }
    if pages != HugePages::Transparent {
        return;
    }
    // The first 2 MiB hold a few pages of tables, the stack of a boot protocol and little else: zeroing a huge page for
    // them would cost a tiny guest more than all of the rest of its start.
    let skip = if start == GuestAddress(0) {
        THP_SIZE
    } else {
        0
    };
    if let Some(size) = region
        .size()
        .checked_sub(skip)
        .filter(|size| *size >= THP_SIZE)
    {
        // SAFETY: `skip + size` is the region's size, so that the range lies in the mapping that `region` owns;
        // MADV_HUGEPAGE does not change its contents.
        let result = unsafe { libc::madvise(base.add(skip).cast(), size, libc::MADV_HUGEPAGE) };
        if result != 0 {
            log::debug!("no transparent huge pages: {}", io::Error::last_os_error());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MemoryBacking;
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    fn config(size: u64, pages: HugePages, backing: MemoryBacking) -> VmConfig {
        VmConfig {
            memory: MemorySize::bytes(size),
            hugepages: pages,
            memory_backing: backing,
            ..VmConfig::default()
        }
    }

    #[test]
    fn ram_lies_around_the_hole_and_is_zero() {
        for backing in [MemoryBacking::Private, MemoryBacking::Shared] {
            let ram = allocate(&config(5 << 30, HugePages::Transparent, backing)).unwrap();
            let total: u64 = ram.iter().map(GuestMemoryRegion::len).sum();
            assert_eq!(total, 5 << 30);
            assert_eq!(ram.num_regions(), 2);
            assert!(!ram.address_in_range(GuestAddress(layout::MMIO_HOLE_START)));
            let above = GuestAddress(layout::MMIO_HOLE_END);
            assert_eq!(ram.read_obj::<u64>(above).unwrap(), 0);
            ram.write_obj(7u64, above).unwrap();
            assert_eq!(ram.read_obj::<u64>(above).unwrap(), 7);
        }
    }

    #[test]
    fn transparent_huge_pages_have_their_alignment() {
        let ram = allocate(&config(
            64 << 20,
            HugePages::Transparent,
            MemoryBacking::Private,
        ))
        .unwrap();
        let base = ram.get_host_address(GuestAddress(0)).unwrap();
        assert_eq!(base.align_offset(THP_SIZE), 0);
    }

    #[test]
    fn a_pool_too_small_is_an_error_with_numbers_at_start() {
        // A petabyte of huge pages is in no pool.
        let config = config(1 << 45, HugePages::Huge2M, MemoryBacking::Private);
        let err = allocate(&config).unwrap_err();
        assert!(
            matches!(
                err,
                MemoryError::NoHugePages {
                    needed: 0x100_0000,
                    ..
                }
            ),
            "{err}"
        );
        assert!(err.remedy().unwrap().contains("nr_hugepages"));
    }
}
