//! The page tables of the Linux 64-bit entry: the low 4 GiB, mapped to themselves. Intel SDM volume
//! 3, 4.5 "4-level paging".
//!
//! Pages of 2 MiB, because not every processor has larger ones. Six pages in all, one after the
//! other: the PML4, one page-directory-pointer table, and a page directory for each GiB.

use vm_memory::GuestAddress;

const PAGE_SIZE: usize = 0x1000;
const ENTRIES: u64 = 512;
const DIRECTORIES: u64 = 4;
const LARGE_PAGE: u64 = 2 << 20;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const PAGE_SIZE_BIT: u64 = 1 << 7;

/// The page tables that identity-map the first 4 GiB, to be written at `base`, which is also what
/// CR3 must hold.
///
/// `base` must be a multiple of 4096.
pub fn identity_map(base: GuestAddress) -> Vec<u8> {
    let table = |index: u64| base.0 + index * PAGE_SIZE as u64;
    let mut bytes = Vec::with_capacity((2 + DIRECTORIES as usize) * PAGE_SIZE);
    let mut push = |entry: u64| bytes.extend_from_slice(&entry.to_le_bytes());

    push(table(1) | PRESENT | WRITABLE);
    (1..ENTRIES).for_each(|_| push(0));
    (0..DIRECTORIES).for_each(|index| push(table(2 + index) | PRESENT | WRITABLE));
    (DIRECTORIES..ENTRIES).for_each(|_| push(0));
    (0..DIRECTORIES * ENTRIES)
        .for_each(|page| push((page * LARGE_PAGE) | PRESENT | WRITABLE | PAGE_SIZE_BIT));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: GuestAddress = GuestAddress(0x9000);

    /// Walks the tables as the processor does; `None` is a page fault.
    fn translate(tables: &[u8], address: u64) -> Option<u64> {
        let entry = |table: u64, index: u64| {
            let offset = (table - BASE.0 + index * 8) as usize;
            let entry = u64::from_le_bytes(tables[offset..offset + 8].try_into().unwrap());
            (entry & PRESENT != 0).then(|| {
                assert_ne!(entry & WRITABLE, 0);
                entry
            })
        };
        let frame = |entry: u64| entry & 0x000f_ffff_ffff_f000;
        let pml4e = entry(BASE.0, address >> 39 & 0x1ff)?;
        let pdpte = entry(frame(pml4e), address >> 30 & 0x1ff)?;
        assert_eq!(pdpte & PAGE_SIZE_BIT, 0);
        let pde = entry(frame(pdpte), address >> 21 & 0x1ff)?;
        assert_ne!(pde & PAGE_SIZE_BIT, 0);
        Some(frame(pde) + (address & (LARGE_PAGE - 1)))
    }

    #[test]
    fn low_4_gib_are_mapped_to_themselves() {
        let tables = identity_map(BASE);
        assert_eq!(tables.len(), 6 * PAGE_SIZE);
        for address in (0..4u64 << 30)
            .step_by(1 << 20)
            .chain([1, 0x9fff, 0xfee0_0020, 0xffff_ffff])
        {
            assert_eq!(translate(&tables, address), Some(address), "{address:#x}");
        }
    }

    #[test]
    fn the_rest_is_not_mapped() {
        let tables = identity_map(BASE);
        for address in [4u64 << 30, 512 << 30, 0xffff_ffff_8000_0000] {
            assert_eq!(translate(&tables, address), None, "{address:#x}");
        }
    }
}
