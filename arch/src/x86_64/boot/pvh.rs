//! The PVH boot protocol's `hvm_start_info`, version 1. The Xen document "x86/HVM direct boot ABI",
//! and Linux's include/xen/interface/hvm/start_info.h.

use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{ByteValued, GuestAddress};

use crate::layout::{self, MemoryMapEntry};

/// "xEn3" with the highest bit set.
const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;

/// The start info, to be written to guest memory as it says; EBX must hold
/// [`layout::PVH_START_INFO`] at the entry.
///
/// `cmdline` is where the NUL-terminated command line is, `initrd` the initrd's address and length
/// in bytes, `rsdp` where ACPI begins.
pub fn start_info(
    cmdline: GuestAddress,
    initrd: Option<(GuestAddress, u64)>,
    e820: &[MemoryMapEntry],
    rsdp: GuestAddress,
) -> Vec<(GuestAddress, Vec<u8>)> {
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        flags: 0,
        nr_modules: initrd.is_some().into(),
        modlist_paddr: if initrd.is_some() {
            layout::PVH_MODLIST.0
        } else {
            0
        },
        cmdline_paddr: cmdline.0,
        rsdp_paddr: rsdp.0,
        memmap_paddr: layout::PVH_MEMMAP.0,
        memmap_entries: e820.len() as u32,
        reserved: 0,
    };
    let (address, size) = initrd.map_or((0, 0), |(address, size)| (address.0, size));
    let module = hvm_modlist_entry {
        paddr: address,
        size,
        ..hvm_modlist_entry::default()
    };

    // The three neighbours share a page and are written as one.
    let mut bytes = info.as_slice().to_vec();
    bytes.resize(
        (layout::PVH_MODLIST.0 - layout::PVH_START_INFO.0) as usize,
        0,
    );
    bytes.extend_from_slice(module.as_slice());
    for entry in e820 {
        let entry = hvm_memmap_table_entry {
            addr: entry.addr,
            size: entry.size,
            type_: entry.kind as u32,
            reserved: 0,
        };
        bytes.extend_from_slice(entry.as_slice());
    }
    vec![(layout::PVH_START_INFO, bytes)]
}

const _: () = {
    assert!(layout::PVH_START_INFO.0 + size_of::<hvm_start_info>() as u64 <= layout::PVH_MODLIST.0);
    assert!(layout::PVH_MODLIST.0 + size_of::<hvm_modlist_entry>() as u64 == layout::PVH_MEMMAP.0);
};

#[cfg(test)]
mod tests {
    use super::*;

    const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
    const RSDP: GuestAddress = GuestAddress(0xe_0000);

    fn build(initrd: Option<(GuestAddress, u64)>) -> Vec<u8> {
        let mut blobs = start_info(CMDLINE, initrd, &layout::e820(5 << 30), RSDP);
        assert_eq!(blobs.len(), 1);
        assert_eq!(blobs[0].0, GuestAddress(0x6000));
        blobs.remove(0).1
    }

    fn u32_at(bytes: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    #[test]
    fn offsets_are_those_of_the_abi() {
        let bytes = build(Some((GuestAddress(0x1000_0000), 0x1234)));
        assert_eq!(u32_at(&bytes, 0), 0x336e_c578);
        assert_eq!(u32_at(&bytes, 4), 1);
        assert_eq!(u32_at(&bytes, 8), 0);
        assert_eq!(u32_at(&bytes, 12), 1);
        assert_eq!(u64_at(&bytes, 16), 0x6040);
        assert_eq!(u64_at(&bytes, 24), 0x2_0000);
        assert_eq!(u64_at(&bytes, 32), 0xe_0000);
        assert_eq!(u64_at(&bytes, 40), 0x6060);
        assert_eq!(u32_at(&bytes, 48), 4);
        assert_eq!(u32_at(&bytes, 52), 0);

        let module = &bytes[0x40..];
        assert_eq!(
            (u64_at(module, 0), u64_at(module, 8)),
            (0x1000_0000, 0x1234)
        );
        assert_eq!((u64_at(module, 16), u64_at(module, 24)), (0, 0));
    }

    #[test]
    fn the_memory_map_follows() {
        let bytes = build(None);
        assert_eq!(bytes.len(), 0x60 + 4 * 24);
        let lines: Vec<_> = bytes[0x60..]
            .chunks(24)
            .map(|line| {
                (
                    u64_at(line, 0),
                    u64_at(line, 8),
                    u32_at(line, 16),
                    u32_at(line, 20),
                )
            })
            .collect();
        assert_eq!(
            lines,
            [
                (0, 0x9_fc00, 1, 0),
                (0x9_fc00, 0x6_0400, 2, 0),
                (0x10_0000, 0xbff0_0000, 1, 0),
                (0x1_0000_0000, 0x8000_0000, 1, 0),
            ]
        );
    }

    #[test]
    fn without_an_initrd_there_is_no_module() {
        let bytes = build(None);
        assert_eq!((u32_at(&bytes, 12), u64_at(&bytes, 16)), (0, 0));
    }
}
