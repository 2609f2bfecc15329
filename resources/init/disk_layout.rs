//! What is on a disk, and which of its file systems may be a root: partition tables and superblocks.
//!
//! Both halves are made of this file: the host says of an image what is wrong with it before a guest runs, and the guest's init finds
//! the root that it is to mount. It does no I/O, and takes nothing that it reads for true beyond its form: a fixed number of reads
//! of a fixed length, whatever the disk says of itself.
//!
//! GPT: UEFI specification 2.10, chapter 5. The type of a root partition: Discoverable Partitions Specification. MBR: as Linux's
//! `block/partitions/msdos.c` reads it, without logical partitions.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

/// Bytes of a sector, as all our disks have them.
const SECTOR: u64 = 512;

/// Entries of a GPT beyond these are not looked at.
const MAX_ENTRIES: u32 = 256;

/// Bytes of an entry.
const ENTRY: usize = 128;

/// 4f68bce3-e8cd-4db1-96e7-fbcaf984b709: a root for x86-64.
const ROOT: [u8; 16] = [
    0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09,
];

/// A disk's bytes from an offset on; whether they could be had.
pub type Read<'a> = &'a mut dyn FnMut(u64, &mut [u8]) -> bool;

/// What a disk or a partition holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Content {
    /// Zeroes, as far as anybody looked.
    Empty,
    /// A file system that a root may have, by its name for mount(2).
    FileSystem(&'static str),
    /// Something that is known, and no root.
    Other(&'static str),
    /// Nothing that is known.
    Unknown,
}

/// Something that may be mounted as a root.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Candidate {
    /// The partition's number; 0 is the whole disk.
    pub partition: u32,
    /// The file system's name for mount(2).
    pub file_system: &'static str,
}

/// What a disk holds.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Layout {
    /// Partitions by their numbers, or the whole disk as 0; what each holds.
    pub parts: Vec<(u32, Content)>,
    /// Which of them may be a root, the most likely first.
    pub candidates: Vec<Candidate>,
}

impl Layout {
    /// Looks at a disk of so many bytes.
    pub fn of(size: u64, read: Read<'_>) -> Self {
        let (is_partitioned, partitions) = match gpt(size, read) {
            Some(partitions) => (true, partitions),
            None => mbr(size, read).map_or((false, Vec::new()), |it| (true, it)),
        };
        let mut layout = Self::default();
        if !is_partitioned {
            layout.add(0, content(0, size, read));
            return layout;
        }
        for it in &partitions {
            layout.add(it.number, content(it.start, it.size, read));
        }
        let is_root = |number| {
            let mut of_number = partitions.iter().filter(|it| it.number == number);
            of_number.any(|it| it.is_root)
        };
        // It keeps the table's order otherwise.
        layout.candidates.sort_by_key(|it| !is_root(it.partition));
        layout
    }

    fn add(&mut self, partition: u32, content: Content) {
        self.parts.push((partition, content));
        if let Content::FileSystem(file_system) = content {
            self.candidates.push(Candidate {
                partition,
                file_system,
            });
        }
    }

    /// What is there, for a person: a clause.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        if self.parts.is_empty() {
            text.push_str("its partition table is empty");
        }
        for (number, content) in &self.parts {
            let subject = match number {
                0 => String::from("it"),
                number => alloc::format!("partition {number}"),
            };
            if !text.is_empty() {
                text.push_str(", ");
            }
            // Writing to a string does not fail.
            let _ = match content {
                Content::Empty => write!(text, "{subject} is empty"),
                Content::FileSystem(name) => write!(text, "{subject} has the file system {name}"),
                Content::Other(what) => write!(text, "{subject} is {what}"),
                Content::Unknown => write!(text, "{subject} has no file system that is known"),
            };
        }
        text
    }
}

struct Partition {
    number: u32,
    /// In bytes, as `size`.
    start: u64,
    size: u64,
    is_root: bool,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    number(bytes, at).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    number(bytes, at).map_or(0, u64::from_le_bytes)
}

/// The partitions of a GPT that is whole.
fn gpt(size: u64, read: Read<'_>) -> Option<Vec<Partition>> {
    let mut header = [0; SECTOR as usize];
    if !read(SECTOR, &mut header) || header[..8] != *b"EFI PART" {
        return None;
    }
    let length = u32_at(&header, 12) as usize;
    let sum = u32_at(&header, 16);
    header[16..20].fill(0);
    let is_whole = (92..=header.len()).contains(&length) && crc32(&header[..length]) == sum;
    let (table, count) = (u64_at(&header, 72), u32_at(&header, 80));
    if !is_whole || u32_at(&header, 84) as usize != ENTRY || count > MAX_ENTRIES {
        return None;
    }
    let mut entries = alloc::vec![0; count as usize * ENTRY];
    if !read(table.checked_mul(SECTOR)?, &mut entries) || crc32(&entries) != u32_at(&header, 88) {
        return None;
    }
    let partition = |(entry, number): (&[u8], u32)| {
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let start = first.checked_mul(SECTOR)?;
        let end = last.checked_add(1)?.checked_mul(SECTOR)?;
        let is_used = entry[..16] != [0; 16] && start < end && end <= size;
        is_used.then(|| Partition {
            number,
            start,
            size: end - start,
            is_root: entry[..16] == ROOT,
        })
    };
    let entries = entries.chunks_exact(ENTRY).zip(1..);
    Some(entries.filter_map(partition).collect())
}

/// The primary partitions of an MBR, if there is one: the first sector of a file system may end as one does.
fn mbr(size: u64, read: Read<'_>) -> Option<Vec<Partition>> {
    let mut sector = [0; SECTOR as usize];
    if !read(0, &mut sector) || sector[510..] != [0x55, 0xaa] {
        return None;
    }
    let mut partitions = Vec::new();
    for (entry, number) in sector[446..510].chunks_exact(16).zip(1..) {
        let (status, kind) = (entry[0], entry[4]);
        if status & 0x7f != 0 {
            return None;
        }
        let start = u64::from(u32_at(entry, 8)) * SECTOR;
        let length = u64::from(u32_at(entry, 12)) * SECTOR;
        if kind == 0 || length == 0 {
            continue;
        }
        if start == 0 || start >= size {
            return None;
        }
        partitions.push(Partition {
            number,
            start,
            size: length.min(size - start),
            is_root: false,
        });
    }
    (!partitions.is_empty()).then_some(partitions)
}

/// Bytes of the beginning that are looked at, and what is looked for in them: where, what, whose it is. The first counts.
const START: usize = 4096;
const FIXED: [(usize, &[u8], Content); 24] = [
    (0, b"QFI\xfb", Content::Other("a qcow2 image")),
    (0, b"KDMV", Content::Other("a VMDK image")),
    (
        0,
        b"# Disk Descri",
        Content::Other("a VMDK image's description"),
    ),
    (0, b"vhdxfile", Content::Other("a VHDX image")),
    (0, b"conectix", Content::Other("a VHD image")),
    (64, b"\x7f\x10\xda\xbe", Content::Other("a VDI image")),
    (
        0,
        b"\xfd7zXZ\0",
        Content::Other("a file that xz has packed"),
    ),
    (
        0,
        b"\x1f\x8b\x08",
        Content::Other("a file that gzip has packed"),
    ),
    (
        0,
        b"\x28\xb5\x2f\xfd",
        Content::Other("a file that zstd has packed"),
    ),
    (0, b"BZh", Content::Other("a file that bzip2 has packed")),
    (0, b"PK\x03\x04", Content::Other("a zip archive")),
    (257, b"ustar", Content::Other("a tar archive")),
    (0, b"XFSB", Content::FileSystem("xfs")),
    (0, b"hsqs", Content::FileSystem("squashfs")),
    (1024, b"\xe2\xe1\xf5\xe0", Content::FileSystem("erofs")),
    (1024 + 56, b"\x53\xef", Content::FileSystem("ext4")),
    (
        1024,
        b"\x10\x20\xf5\xf2",
        Content::Other("an F2FS file system"),
    ),
    (0, b"LUKS\xba\xbe", Content::Other("encrypted (LUKS)")),
    (512, b"LABELONE", Content::Other("a volume of LVM")),
    (4086, b"SWAPSPACE2", Content::Other("swap space")),
    (3, b"NTFS    ", Content::Other("an NTFS file system")),
    (3, b"EXFAT   ", Content::Other("an exFAT file system")),
    (54, b"FAT", Content::Other("a FAT file system")),
    (82, b"FAT32", Content::Other("a FAT file system")),
];

/// The same further in: where, what, whose it is.
const LATER: [(u64, &[u8], Content); 2] = [
    ((64 << 10) + 64, b"_BHRfS_M", Content::FileSystem("btrfs")),
    (
        (32 << 10) + 1,
        b"CD001",
        Content::Other("a CD image (ISO 9660)"),
    ),
];

/// What is in so many bytes from there on.
fn content(start: u64, size: u64, read: Read<'_>) -> Content {
    let mut bytes = [0; START];
    let length = size.min(START as u64) as usize;
    if !read(start, &mut bytes[..length]) {
        return Content::Other("damaged: it cannot be read");
    }
    for (at, magic, content) in FIXED {
        if bytes[at..].starts_with(magic) {
            return content;
        }
    }
    let mut is_empty = bytes == [0; START];
    for (at, magic, content) in LATER {
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..magic.len()];
        let is_inside = at + magic.len() as u64 <= size;
        if let Some(at) = start.checked_add(at).filter(|_| is_inside)
            && read(at, bytes)
        {
            if bytes == magic {
                return content;
            }
            is_empty &= bytes.iter().all(|byte| *byte == 0);
        }
    }
    match is_empty {
        true => Content::Empty,
        false => Content::Unknown,
    }
}

/// The sum that a GPT has of itself.
fn crc32(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            let carry = sum & 1;
            sum = (sum >> 1) ^ (0xedb8_8320 * carry);
        }
    }
    !sum
}
