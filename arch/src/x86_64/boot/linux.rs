//! The Linux boot protocol's zero page, `struct boot_params`. Linux's
//! Documentation/arch/x86/boot.rst and zero-page.rst.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{ByteValued, GuestAddress};

use crate::layout::MemoryMapEntry;

/// Where the setup header starts, in a bzImage and in the zero page.
const HEADER_START: usize = 0x1f1;
/// Where the header's jump instruction is; the byte after the opcode says where the header ends.
const HEADER_JUMP: usize = 0x200;
const BOOT_FLAG: u16 = 0xaa55;
/// "HdrS"
const HEADER_MAGIC: u32 = 0x5372_6448;
/// The version of the protocol that an ELF kernel without a header is told.
const PROTOCOL_VERSION: u16 = 0x020f;
const LOADER_TYPE_UNDEFINED: u8 = 0xff;
const LOADED_HIGH: u8 = 1 << 0;
const CAN_USE_HEAP: u8 = 1 << 7;
/// The end of the real-mode heap, less 0x200 as the protocol wants; an entry in 64-bit mode does
/// not use it.
const HEAP_END: u16 = 0xe000 - 0x200;
/// The alignment that an ELF kernel without a header is told, `CONFIG_PHYSICAL_ALIGN` at its
/// largest.
const KERNEL_ALIGNMENT: u32 = 16 << 20;

/// What the zero page says.
#[derive(Clone, Copy, Debug)]
pub struct ZeroPageConfig<'a> {
    /// The setup header of a bzImage: its bytes from offset 0x1f1 on, at most to where the header
    /// says that it ends. `None` for an ELF.
    pub setup_header: Option<&'a [u8]>,
    /// Where the NUL-terminated command line is.
    pub cmdline: GuestAddress,
    /// The length of the command line in bytes, its NUL included. Only an ELF is told: a bzImage's
    /// header has the longest it can take in that field.
    pub cmdline_size: u32,
    /// The initrd's address and length in bytes.
    pub initrd: Option<(GuestAddress, u64)>,
    /// The memory map; what exceeds the 128 lines that the page has room for is left out.
    pub e820: &'a [MemoryMapEntry],
    /// Where ACPI begins.
    pub rsdp: GuestAddress,
}

/// The zero page, 4096 bytes; RSI must hold its address at the entry.
pub fn zero_page(config: &ZeroPageConfig<'_>) -> Vec<u8> {
    let mut hdr = header(config);
    hdr.type_of_loader = LOADER_TYPE_UNDEFINED;
    hdr.loadflags |= LOADED_HIGH | CAN_USE_HEAP;
    hdr.heap_end_ptr = HEAP_END;
    hdr.cmd_line_ptr = low(config.cmdline.0);
    let mut params = boot_params {
        acpi_rsdp_addr: config.rsdp.0,
        ext_cmd_line_ptr: high(config.cmdline.0),
        ..boot_params::default()
    };
    if let Some((address, size)) = config.initrd {
        hdr.ramdisk_image = low(address.0);
        hdr.ramdisk_size = low(size);
        params.ext_ramdisk_image = high(address.0);
        params.ext_ramdisk_size = high(size);
    }
    params.hdr = hdr;

    let mut table = params.e820_table;
    let mut count = 0;
    for (slot, entry) in table.iter_mut().zip(config.e820) {
        *slot = boot_e820_entry {
            addr: entry.addr,
            size: entry.size,
            r#type: entry.kind as u32,
        };
        count += 1;
    }
    params.e820_table = table;
    params.e820_entries = count;
    params.as_slice().to_vec()
}

/// The kernel's own header where it has one, cut where it says that it ends; else what the kernel
/// looks at.
fn header(config: &ZeroPageConfig<'_>) -> setup_header {
    let mut header = setup_header::default();
    match config.setup_header {
        Some(bytes) => {
            let end = bytes
                .get(HEADER_JUMP + 1 - HEADER_START)
                .map_or(usize::MAX, |jump| {
                    HEADER_JUMP + 2 + usize::from(*jump) - HEADER_START
                });
            let target = header.as_mut_slice();
            let length = bytes.len().min(end).min(target.len());
            target[..length].copy_from_slice(&bytes[..length]);
        }
        None => {
            header.boot_flag = BOOT_FLAG;
            header.header = HEADER_MAGIC;
            header.version = PROTOCOL_VERSION;
            header.kernel_alignment = KERNEL_ALIGNMENT;
            header.cmdline_size = config.cmdline_size;
        }
    }
    header
}

fn low(value: u64) -> u32 {
    value as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout;

    fn config<'a>(header: Option<&'a [u8]>, e820: &'a [MemoryMapEntry]) -> ZeroPageConfig<'a> {
        ZeroPageConfig {
            setup_header: header,
            cmdline: GuestAddress(0x2_0000),
            cmdline_size: 14,
            initrd: Some((GuestAddress(0x1_2345_6000), 0x1_0000_0010)),
            e820,
            rsdp: GuestAddress(0xe_0000),
        }
    }

    fn u16_at(bytes: &[u8], offset: usize) -> u16 {
        u16::from_le_bytes(bytes[offset..offset + 2].try_into().unwrap())
    }

    fn u32_at(bytes: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    #[test]
    fn an_elf_gets_a_header_with_offsets_of_the_protocol() {
        let e820 = layout::e820(5 << 30);
        let page = zero_page(&config(None, &e820));
        assert_eq!(page.len(), 4096);
        assert_eq!(u64_at(&page, 0x070), 0xe_0000);
        assert_eq!(u16_at(&page, 0x1fe), 0xaa55);
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!(u16_at(&page, 0x206), 0x20f);
        assert_eq!(page[0x210], 0xff);
        assert_eq!(page[0x211], 0x81);
        assert_eq!(u16_at(&page, 0x224), 0xde00);
        assert_eq!(u32_at(&page, 0x230), 0x100_0000);
        assert_eq!(page[0x1ef], 0, "the sentinel says that the page is clean");
    }

    #[test]
    fn addresses_are_split_at_32_bits() {
        let mut config = config(None, &[]);
        config.cmdline = GuestAddress(0x7_0002_0000);
        let page = zero_page(&config);
        assert_eq!(
            (u32_at(&page, 0x218), u32_at(&page, 0x21c)),
            (0x2345_6000, 0x10)
        );
        assert_eq!((u32_at(&page, 0x0c0), u32_at(&page, 0x0c4)), (1, 1));
        assert_eq!((u32_at(&page, 0x228), u32_at(&page, 0x238)), (0x2_0000, 14));
        assert_eq!(u32_at(&page, 0x0c8), 7);
    }

    #[test]
    fn without_an_initrd_its_fields_are_zero() {
        let page = zero_page(&ZeroPageConfig {
            initrd: None,
            ..config(None, &[])
        });
        for offset in [0x218, 0x21c, 0x0c0, 0x0c4] {
            assert_eq!(u32_at(&page, offset), 0, "{offset:#x}");
        }
    }

    #[test]
    fn the_memory_map_is_at_its_place() {
        let e820 = layout::e820(5 << 30);
        let page = zero_page(&config(None, &e820));
        assert_eq!(page[0x1e8], 4);
        let line = |index: usize| {
            let line = &page[0x2d0 + 20 * index..];
            (u64_at(line, 0), u64_at(line, 8), u32_at(line, 16))
        };
        assert_eq!(line(0), (0, 0x9_fc00, 1));
        assert_eq!(line(1), (0x9_fc00, 0x6_0400, 2));
        assert_eq!(line(3), (0x1_0000_0000, 0x8000_0000, 1));
        assert_eq!(line(4), (0, 0, 0));
    }

    #[test]
    fn a_memory_map_beyond_the_page_is_cut() {
        let e820 = vec![layout::e820(16 << 20)[0]; 300];
        let page = zero_page(&config(None, &e820));
        assert_eq!(page[0x1e8], 128);
        assert!(page[0xcd0..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_kernels_header_is_kept_up_to_its_end() {
        let mut image = vec![0x77; 0x400];
        image[0x201] = 0x6a;
        let page = zero_page(&config(Some(&image[0x1f1..]), &[]));
        assert_eq!(u16_at(&page, 0x206), 0x7777);
        assert_eq!(page[0x210], 0xff);
        assert_eq!(page[0x211], 0x77 | 0x81);
        assert_eq!(u64_at(&page, 0x258), 0x7777_7777_7777_7777);
        assert_eq!(u32_at(&page, 0x268), 0x7777_7777);
        assert!(page[0x26c..0x2d0].iter().all(|byte| *byte == 0));

        // An older protocol's shorter header ends at 0x230.
        image[0x201] = 0x2e;
        let page = zero_page(&config(Some(&image[0x1f1..]), &[]));
        assert_eq!(u32_at(&page, 0x22c), 0x7777_7777);
        assert_eq!(u32_at(&page, 0x230), 0);
    }

    #[test]
    fn a_header_cut_short_anywhere_is_no_panic() {
        let image = vec![0x77; 0x100];
        for length in 0..image.len() {
            assert_eq!(zero_page(&config(Some(&image[..length]), &[])).len(), 4096);
        }
    }
}
