//! Kernels made to measure, for tests.

use std::io::Write;

use lzma_rust2::{FilterType, LzmaOptions, LzmaWriter, XzOptions, XzWriter};
use vm_memory::{Bytes, GuestAddress};

use super::{Compression, GuestRam};

/// Where the ELFs made here are linked.
pub(super) const BASE: u64 = 0x10_0000;

/// RAM from 0 on.
pub(super) fn ram(mib: usize) -> GuestRam {
    ram_at(&[(0, mib << 20)])
}

/// RAM at each (address, size).
pub(super) fn ram_at(ranges: &[(u64, usize)]) -> GuestRam {
    let ranges: Vec<_> = ranges
        .iter()
        .map(|(at, size)| (GuestAddress(*at), *size))
        .collect();
    GuestRam::from_ranges(&ranges).unwrap()
}

/// The bytes of RAM from `address` on.
pub(super) fn bytes_at(ram: &GuestRam, address: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

/// One program header, and the bytes that it is about.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) kind: u32,
    pub(super) address: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) memory_size: u64,
    pub(super) align: u64,
}

/// A loadable segment.
pub(super) fn segment(address: u64, bytes: &[u8], memory_size: u64) -> Part {
    Part {
        kind: 1,
        address,
        bytes: bytes.to_vec(),
        memory_size,
        align: 1,
    }
}

/// A note segment.
pub(super) fn notes(bytes: Vec<u8>, align: u64) -> Part {
    Part {
        kind: 4,
        address: 0,
        memory_size: bytes.len() as u64,
        bytes,
        align,
    }
}

/// One note.
pub(super) fn note(name: &[u8], kind: u32, desc: &[u8], align: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [name.len() as u32, desc.len() as u32, kind] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(name);
    bytes.resize(bytes.len().next_multiple_of(align), 0);
    bytes.extend(desc);
    bytes.resize(bytes.len().next_multiple_of(align), 0);
    bytes
}

/// The note that names a PVH entry point.
pub(super) fn pvh_note(entry: u64) -> Part {
    notes(note(b"Xen\0", 18, &entry.to_le_bytes(), 4), 4)
}

/// Where a field of an ELF header is.
pub(super) mod field {
    pub(in super::super) const CLASS: usize = 4;
    pub(in super::super) const DATA: usize = 5;
    pub(in super::super) const TYPE: usize = 16;
    pub(in super::super) const MACHINE: usize = 18;
    pub(in super::super) const TABLE: usize = 32;
    pub(in super::super) const SECTIONS: usize = 40;
    pub(in super::super) const HEADER_SIZE: usize = 54;
    pub(in super::super) const COUNT: usize = 56;
    pub(in super::super) const SECTION_COUNT: usize = 60;
    /// The first program header's.
    pub(in super::super) const OFFSET: usize = 64 + 8;
    pub(in super::super) const ADDRESS: usize = 64 + 24;
    pub(in super::super) const FILE_SIZE: usize = 64 + 32;
    pub(in super::super) const MEMORY_SIZE: usize = 64 + 40;
}

/// An ELF kernel of `parts`, entered at `entry`. It has no section headers: its last byte is the last part's.
pub(super) fn elf(entry: u64, parts: &[Part]) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(64, 0);
    put(&mut bytes, field::TYPE, &2u16.to_le_bytes());
    put(&mut bytes, field::MACHINE, &62u16.to_le_bytes());
    put(&mut bytes, 24, &entry.to_le_bytes());
    put(&mut bytes, field::TABLE, &64u64.to_le_bytes());
    put(&mut bytes, field::HEADER_SIZE, &56u16.to_le_bytes());
    put(
        &mut bytes,
        field::COUNT,
        &(parts.len() as u16).to_le_bytes(),
    );
    let mut offset = 64 + 56 * parts.len() as u64;
    for part in parts {
        bytes.extend(part.kind.to_le_bytes());
        bytes.extend(7u32.to_le_bytes());
        for value in [
            offset,
            0,
            part.address,
            part.bytes.len() as u64,
            part.memory_size,
            part.align,
        ] {
            bytes.extend(value.to_le_bytes());
        }
        offset += part.bytes.len() as u64;
    }
    for part in parts {
        bytes.extend(&part.bytes);
    }
    bytes
}

/// A kernel with a PVH note, code that compresses, some that does not, and a bss.
pub(super) fn small_elf() -> Vec<u8> {
    elf(
        BASE + 8,
        &[pvh_note(BASE + 4), segment(BASE, &small_code(), 0x9000)],
    )
}

/// What [`small_elf`] has at [`BASE`]: calls, which the x86 filter of xz changes, and pages of zeroes.
pub(super) fn small_code() -> Vec<u8> {
    let mut code = Vec::new();
    for index in 0..200u32 {
        code.push(0xe8);
        code.extend((0x1000 + index.wrapping_mul(0x9e37_79b1) % 0x8000).to_le_bytes());
        code.extend(b"\x90\x90\xc3");
    }
    code.resize(0x4000, 0);
    code.extend(b"end");
    code
}

/// Overwrites the bytes at `offset`.
pub(super) fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

/// `bytes` with those at `offset` replaced.
pub(super) fn with(mut bytes: Vec<u8>, offset: usize, value: &[u8]) -> Vec<u8> {
    put(&mut bytes, offset, value);
    bytes
}

/// All formats that are unpacked on the host.
pub(super) const FORMATS: [Compression; 6] = [
    Compression::Gzip,
    Compression::Bzip2,
    Compression::Lzma,
    Compression::Xz,
    Compression::Lz4,
    Compression::Zstd,
];

/// Packs `bytes` as the kernel's build does, the unpacked size at the end where it puts it.
pub(super) fn pack(format: Compression, bytes: &[u8]) -> Vec<u8> {
    let mut packed = match format {
        Compression::Gzip => {
            let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            writer.write_all(bytes).unwrap();
            return writer.finish().unwrap();
        }
        Compression::Bzip2 => {
            let mut writer = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap()
        }
        Compression::Lzma => {
            // A stream's size is not known beforehand, so that it has an end mark.
            let mut writer =
                LzmaWriter::new_use_header(Vec::new(), &LzmaOptions::with_preset(1), None).unwrap();
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap()
        }
        Compression::Xz => {
            let mut options = XzOptions::with_preset(1);
            options.set_check_sum_type(lzma_rust2::CheckType::Crc32);
            options.prepend_pre_filter(FilterType::BcjX86, 0);
            let mut writer = XzWriter::new(Vec::new(), options).unwrap();
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap()
        }
        Compression::Lz4 => {
            let mut packed = 0x184c_2102u32.to_le_bytes().to_vec();
            for block in bytes.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                packed.extend((block.len() as u32).to_le_bytes());
                packed.extend(block);
            }
            packed
        }
        Compression::Zstd => {
            ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
        }
        Compression::Lzo => b"\x89LZO\0\r\n\x1a\n".to_vec(),
    };
    packed.extend((bytes.len() as u32).to_le_bytes());
    packed
}

/// Where a field of a bzImage's setup header is.
pub(super) mod setup {
    pub(in super::super) const SECTORS: usize = 0x1f1;
    pub(in super::super) const SYSSIZE: usize = 0x1f4;
    pub(in super::super) const BOOT_FLAG: usize = 0x1fe;
    pub(in super::super) const JUMP_LENGTH: usize = 0x201;
    pub(in super::super) const VERSION: usize = 0x206;
    pub(in super::super) const LOADFLAGS: usize = 0x211;
    pub(in super::super) const ALIGNMENT: usize = 0x230;
    pub(in super::super) const XLOADFLAGS: usize = 0x236;
    pub(in super::super) const PAYLOAD_OFFSET: usize = 0x248;
    pub(in super::super) const PAYLOAD_LENGTH: usize = 0x24c;
    pub(in super::super) const PREF_ADDRESS: usize = 0x258;
    pub(in super::super) const INIT_SIZE: usize = 0x260;
}

/// Where the protected-mode part of [`bzimage`] begins in the file, and in it the packed kernel.
pub(super) const CODE_OFFSET: usize = 1024;
const PAYLOAD_OFFSET: usize = 0x208;

/// A bzImage around a packed kernel, with one setup sector.
pub(super) fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; CODE_OFFSET];
    put(&mut bytes, setup::SECTORS, &[1]);
    put(&mut bytes, setup::BOOT_FLAG, &0xaa55u16.to_le_bytes());
    // The header ends behind `kernel_info_offset`.
    put(&mut bytes, setup::JUMP_LENGTH - 1, &[0xeb, 0x6a]);
    put(&mut bytes, 0x202, b"HdrS");
    put(&mut bytes, setup::VERSION, &0x20fu16.to_le_bytes());
    put(&mut bytes, setup::LOADFLAGS, &[1]);
    put(&mut bytes, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut bytes, setup::ALIGNMENT, &0x20_0000u32.to_le_bytes());
    put(&mut bytes, setup::XLOADFLAGS, &1u16.to_le_bytes());
    put(&mut bytes, 0x238, &2047u32.to_le_bytes());
    put(
        &mut bytes,
        setup::PAYLOAD_OFFSET,
        &(PAYLOAD_OFFSET as u32).to_le_bytes(),
    );
    put(
        &mut bytes,
        setup::PAYLOAD_LENGTH,
        &(payload.len() as u32).to_le_bytes(),
    );
    put(&mut bytes, setup::PREF_ADDRESS, &0x40_0000u64.to_le_bytes());
    put(&mut bytes, setup::INIT_SIZE, &0x10_0000u32.to_le_bytes());
    let mut code = vec![0xcc; PAYLOAD_OFFSET];
    code.extend(payload);
    code.resize(code.len().next_multiple_of(16), 0x5a);
    put(
        &mut bytes,
        setup::SYSSIZE,
        &(code.len() as u32 / 16).to_le_bytes(),
    );
    bytes.extend(code);
    bytes
}
