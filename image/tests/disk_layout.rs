//! What is found on disks, hostile ones among them.

use ampoule_image::disk_layout::{Candidate, Content, Layout};

const SECTOR: usize = 512;
const MIB: usize = 1 << 20;

/// Of a disk that is in memory.
fn layout(disk: &[u8]) -> Layout {
    let mut total = 0;
    let layout = Layout::of(disk.len() as u64, &mut |at, buffer| {
        total += buffer.len();
        let at = usize::try_from(at).unwrap();
        let piece = at
            .checked_add(buffer.len())
            .and_then(|end| disk.get(at..end));
        piece.is_some_and(|piece| {
            buffer.copy_from_slice(piece);
            true
        })
    });
    assert!(total < 2 * MIB, "{total} bytes were read");
    layout
}

fn candidate(partition: u32, file_system: &'static str) -> Candidate {
    Candidate {
        partition,
        file_system,
    }
}

fn put(disk: &mut [u8], at: usize, bytes: &[u8]) {
    disk[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The sum of zlib and of GPT, by the crate that the workspace has it from.
fn crc(bytes: &[u8]) -> [u8; 4] {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum().to_le_bytes()
}

const ROOT: [u8; 16] = [
    0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09,
];
const LINUX: [u8; 16] = [7; 16];

/// A GPT of 128 entries: types, and first and last sector.
fn gpt(disk: &mut [u8], partitions: &[([u8; 16], u64, u64)]) {
    let mut entries = vec![0; 128 * 128];
    for (entry, (kind, first, last)) in entries.chunks_mut(128).zip(partitions) {
        put(entry, 0, kind);
        put(entry, 32, &first.to_le_bytes());
        put(entry, 40, &last.to_le_bytes());
    }
    let mut header = vec![0; 92];
    put(&mut header, 0, b"EFI PART");
    put(&mut header, 12, &92u32.to_le_bytes());
    put(&mut header, 72, &2u64.to_le_bytes());
    put(&mut header, 80, &128u32.to_le_bytes());
    put(&mut header, 84, &128u32.to_le_bytes());
    put(&mut header, 88, &crc(&entries));
    let sum = crc(&header);
    put(&mut header, 16, &sum);
    put(disk, SECTOR, &header);
    put(disk, 2 * SECTOR, &entries);
}

/// Primary partitions: type, first sector, sectors.
fn mbr(disk: &mut [u8], partitions: &[(u8, u32, u32)]) {
    put(disk, 510, &[0x55, 0xaa]);
    for (at, (kind, first, count)) in (446..).step_by(16).zip(partitions) {
        disk[at + 4] = *kind;
        put(disk, at + 8, &first.to_le_bytes());
        put(disk, at + 12, &count.to_le_bytes());
    }
}

#[test]
fn whole_disks_are_known_by_their_superblocks() {
    for (at, magic, file_system) in [
        (1024 + 56, &b"\x53\xef"[..], "ext4"),
        (0, b"XFSB", "xfs"),
        (65536 + 64, b"_BHRfS_M", "btrfs"),
        (1024, b"\xe2\xe1\xf5\xe0", "erofs"),
        (0, b"hsqs", "squashfs"),
    ] {
        let mut disk = vec![0; MIB];
        put(&mut disk, at, magic);
        let layout = layout(&disk);
        assert_eq!(layout.candidates, [candidate(0, file_system)]);
        // A boot sector is none of a partition table's business.
        if at > 0 {
            put(&mut disk, 510, &[0x55, 0xaa]);
            assert_eq!(self::layout(&disk), layout);
        }
    }
}

#[test]
fn what_is_no_root_is_named() {
    let said = |at, bytes: &[u8]| {
        let mut disk = vec![0; MIB];
        put(&mut disk, at, bytes);
        let layout = layout(&disk);
        assert!(layout.candidates.is_empty());
        layout.describe()
    };
    assert_eq!(said(0, b""), "it is empty");
    assert_eq!(said(0, b"QFI\xfb"), "it is a qcow2 image");
    assert_eq!(said(32769, b"CD001"), "it is a CD image (ISO 9660)");
    assert_eq!(said(9, b"x"), "it has no file system that is known");
    assert_eq!(layout(&[]).describe(), "it is empty");
    let mut disk = vec![0; 4 * MIB];
    mbr(&mut disk, &[(0x83, 2048, 2048), (0x83, 4096, 2048)]);
    put(&mut disk, MIB, b"LUKS\xba\xbe");
    let described = layout(&disk).describe();
    assert_eq!(
        described,
        "partition 1 is encrypted (LUKS), partition 2 is empty"
    );
}

#[test]
fn the_partition_of_the_right_type_goes_before_the_others() {
    let mut disk = vec![0; 8 * MIB];
    // What the disk was before it had partitions.
    put(&mut disk, 65536 + 64, b"_BHRfS_M");
    mbr(&mut disk, &[(0xee, 1, u32::MAX)]);
    gpt(
        &mut disk,
        &[
            (LINUX, 2048, 4095),
            (LINUX, 4096, 6143),
            ([0; 16], 0, 0),
            (ROOT, 8192, 10239),
        ],
    );
    put(&mut disk, MIB, b"hsqs");
    put(&mut disk, 2 * MIB + 1080, b"\x53\xef");
    put(&mut disk, 4 * MIB, b"XFSB");
    let expected = [
        candidate(4, "xfs"),
        candidate(1, "squashfs"),
        candidate(2, "ext4"),
    ];
    assert_eq!(layout(&disk).candidates, expected);
}

#[test]
fn primary_partitions_of_an_mbr_keep_their_numbers() {
    let mut disk = vec![0; 4 * MIB];
    mbr(
        &mut disk,
        &[(0, 0, 0), (0x82, 2048, 100), (0x83, 4096, u32::MAX)],
    );
    put(&mut disk, 2 * MIB, b"XFSB");
    let layout = layout(&disk);
    assert_eq!(layout.candidates, [candidate(3, "xfs")]);
    assert_eq!(layout.parts[0], (2, Content::Empty));
}

#[test]
fn hostile_tables_are_none() {
    let mut disk = vec![0; 4 * MIB];
    let far = (ROOT, u64::MAX - 1, u64::MAX);
    let backwards = (ROOT, 4000, 3000);
    let outside = (ROOT, 2048, 1 << 40);
    gpt(&mut disk, &[far, backwards, outside, (ROOT, 0, u64::MAX)]);
    let whole = layout(&disk);
    assert_eq!(whole.parts, []);
    assert_eq!(whole.describe(), "its partition table is empty");
    // A table that is damaged is none, wherever the damage is.
    for at in [
        SECTOR + 40,
        SECTOR + 12,
        SECTOR + 80,
        SECTOR + 84,
        SECTOR + 72,
        SECTOR + 88,
        1030,
    ] {
        let mut damaged = disk.clone();
        damaged[at] ^= 1;
        assert_eq!(layout(&damaged).parts.len(), 1, "{at}");
    }
    // And entries without number, or far away, with a right sum.
    for (at, value) in [(80, u32::MAX), (84, 1), (76, u32::MAX), (12, 4096), (12, 0)] {
        let mut damaged = disk.clone();
        put(&mut damaged, SECTOR + at, &value.to_le_bytes());
        put(&mut damaged, SECTOR + 16, &[0; 4]);
        let sum = crc(&damaged[SECTOR..SECTOR + 92]);
        put(&mut damaged, SECTOR + 16, &sum);
        assert_eq!(layout(&damaged).parts.len(), 1, "{at}");
    }
    // Whatever the bytes, nothing but an answer comes of it.
    let mut state = 1u32;
    for _ in 0..500 {
        let mut damaged = disk[..65 << 10].to_vec();
        mbr(&mut damaged, &[(0x83, 1, 100)]);
        for _ in 0..8 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = (state >> 8) as usize % 2048;
            damaged[at] = state as u8;
        }
        layout(&damaged);
        layout(&damaged[..(state as usize >> 4) % damaged.len()]);
    }
}
