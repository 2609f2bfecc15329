//! bzImages: the setup header, and what is packed inside.

use std::error::Error;

use super::*;

/// What is wrong with `bytes` as a bzImage that unpacks itself in the guest.
fn bzimage_error(bytes: &[u8]) -> BzimageError {
    match load(bytes, KernelEntry::Bzimage, &ram(8)) {
        Err(err @ KernelError::Bzimage { .. }) => {
            assert!(err.to_string().contains("\"dir/kernel\""), "{err}");
            let KernelError::Bzimage { source, .. } = err else {
                unreachable!()
            };
            source
        }
        other => panic!("{other:?}"),
    }
}

fn payload_error(bytes: &[u8], mode: KernelEntry) -> DecompressError {
    match load(bytes, mode, &ram(8)) {
        Err(KernelError::Payload { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_truncation_of_a_bzimage_is_an_error() {
    for mode in [KernelEntry::Auto, KernelEntry::Bzimage] {
        let whole = bzimage(&pack(Compression::Gzip, &small_elf()));
        load(&whole, mode, &ram(8)).unwrap();
        let ram = ram(8);
        for size in 0..whole.len() {
            let result = load(&whole[..size], mode, &ram);
            assert!(
                result.is_err(),
                "{mode:?} loaded {size} of {} bytes",
                whole.len()
            );
        }
    }
}

#[test]
fn every_truncation_of_a_packed_kernel_is_an_error() {
    for format in FORMATS {
        let whole = pack(format, &small_elf());
        // Without the size behind it, nothing of the kernel is missing.
        let end = match format {
            Compression::Gzip => whole.len(),
            _ => whole.len() - 4,
        };
        let ram = ram(8);
        for size in 1..end {
            let result = load(&bzimage(&whole[..size]), KernelEntry::Pvh, &ram);
            assert!(
                result.is_err(),
                "{format} loaded {size} of {} bytes",
                whole.len()
            );
        }
    }
}

#[test]
fn a_bzimage_is_unpacked_on_the_host_in_every_format() {
    for format in FORMATS {
        let image = bzimage(&pack(format, &small_elf()));
        assert_eq!(
            Compression::detect(&pack(format, &small_elf())),
            Some(format)
        );
        for (mode, entry) in [
            (KernelEntry::Auto, KernelEntryPoint::Pvh { entry: BASE + 4 }),
            (KernelEntry::Pvh, KernelEntryPoint::Pvh { entry: BASE + 4 }),
            (
                KernelEntry::Linux64,
                KernelEntryPoint::Linux64 { entry: BASE + 8 },
            ),
        ] {
            let ram = ram(8);
            let kernel = load(&image, mode, &ram).unwrap_or_else(|err| panic!("{format}: {err:?}"));
            assert_eq!(kernel.entry, entry, "{format}");
            assert_eq!(kernel.end, BASE + 0x9000);
            assert_eq!(
                kernel.path_taken,
                BootPath::Unpacked {
                    compression: format,
                    entry
                }
            );
            let header = kernel.setup_header.unwrap();
            assert_eq!({ header.version }, 0x20f);
            assert_eq!({ header.cmdline_size }, 2047);
            assert_small_elf_is_in(&ram);
        }
    }
    let path = BootPath::Unpacked {
        compression: Compression::Zstd,
        entry: KernelEntryPoint::Pvh { entry: 0 },
    };
    assert_eq!(
        path.to_string(),
        "bzImage, zstd, decompressed on the host, entered by PVH"
    );
}

#[test]
fn a_packed_kernel_of_many_pieces_arrives_whole() {
    // Over one legacy LZ4 block (8 MiB), with a note between two segments and a byte at each end.
    let big: Vec<u8> = (0..9u32 << 20)
        .map(|i| if i % 5000 < 900 { (i / 7) as u8 } else { 0 })
        .collect();
    let high = BASE + (10 << 20);
    let parts = [
        segment(high, b"tail", 4),
        pvh_note(BASE + 1),
        segment(BASE, &big, big.len() as u64),
    ];
    let image = elf(BASE, &parts);
    for format in [Compression::Lz4, Compression::Zstd, Compression::Gzip] {
        let mut file = bzimage(&pack(format, &image));
        put(&mut file, setup::INIT_SIZE, &(16u32 << 20).to_le_bytes());
        let ram = ram(12);
        let kernel = load(&file, KernelEntry::Auto, &ram).unwrap();
        assert_eq!(kernel.entry, KernelEntryPoint::Pvh { entry: BASE + 1 });
        assert_eq!(kernel.end, high + 4);
        assert!(bytes_at(&ram, BASE, big.len()) == big, "{format}");
        assert_eq!(bytes_at(&ram, high, 4), b"tail");
    }
}

#[test]
fn a_bzimage_can_unpack_itself() {
    let image = bzimage(&pack(Compression::Gzip, &small_elf()));
    let ram = ram(8);
    let kernel = load(&image, KernelEntry::Bzimage, &ram).unwrap();
    assert_eq!(kernel.entry, KernelEntryPoint::Linux64 { entry: 0x40_0200 });
    assert_eq!(kernel.end, 0x50_0000);
    assert_eq!(kernel.path_taken, BootPath::InGuest);
    let code = &image[CODE_OFFSET..];
    assert!(bytes_at(&ram, 0x40_0000, code.len()) == code);
}

#[test]
fn what_the_host_cannot_unpack_unpacks_itself() {
    for payload in [
        pack(Compression::Lzo, b""),
        b"an unknown format".to_vec(),
        pack(Compression::Gzip, b"packed, but no kernel"),
        pack(Compression::Zstd, b"no"),
    ] {
        let image = bzimage(&payload);
        let ram = ram(8);
        let kernel = load(&image, KernelEntry::Auto, &ram).unwrap();
        assert_eq!(kernel.path_taken, BootPath::InGuest);
        // Nothing of the attempt is left behind.
        assert!(bytes_at(&ram, 0, 0x40_0000).iter().all(|byte| *byte == 0));
        let err = payload_error(&image, KernelEntry::Pvh);
        assert!(err.remedy().unwrap().contains("--entry bzimage"), "{err}");
    }
}

#[test]
fn a_damaged_packed_kernel_is_an_error_even_in_auto_mode() {
    for format in FORMATS {
        let mut packed = pack(format, &small_elf());
        let middle = packed.len() / 2;
        packed.truncate(middle);
        let image = bzimage(&packed);
        let result = load(&image, KernelEntry::Auto, &ram(8));
        assert!(
            matches!(
                result,
                Err(KernelError::Payload { .. } | KernelError::PackedElf { .. })
            ),
            "{format}: {result:?}"
        );
    }
}

#[test]
fn checksums_are_checked() {
    // gzip: CRC-32 of the content, 8 bytes before the end.
    let mut packed = pack(Compression::Gzip, &small_elf());
    let crc = packed.len() - 8;
    packed[crc] ^= 1;
    let err = payload_error(&bzimage(&packed), KernelEntry::Auto);
    assert!(
        matches!(
            err,
            DecompressError::Damaged {
                format: Compression::Gzip,
                ..
            }
        ),
        "{err}"
    );
    assert!(err.source().is_some());

    // zstd: the last thing before the size that the kernel's build appends.
    let mut packed = pack(Compression::Zstd, &small_elf());
    let checksum = packed.len() - 8;
    packed[checksum] ^= 1;
    let err = payload_error(&bzimage(&packed), KernelEntry::Auto);
    assert!(
        matches!(
            err,
            DecompressError::Damaged {
                format: Compression::Zstd,
                ..
            }
        ),
        "{err}"
    );

    let mut packed = pack(Compression::Bzip2, &small_elf());
    packed[12] ^= 1;
    let err = payload_error(&bzimage(&packed), KernelEntry::Auto);
    assert!(
        matches!(
            err,
            DecompressError::Damaged {
                format: Compression::Bzip2,
                ..
            }
        ),
        "{err}"
    );
}

#[test]
fn a_decompression_bomb_is_named() {
    for format in FORMATS {
        // init_size is 1 MiB.
        let mut bomb = small_elf();
        bomb.resize(8 << 20, 0);
        let err = payload_error(&bzimage(&pack(format, &bomb)), KernelEntry::Auto);
        assert!(
            matches!(
                err,
                DecompressError::TooLarge {
                    limit: 0x10_0000,
                    ..
                }
            ),
            "{format}: {err}"
        );
        assert!(err.to_string().contains("1048576"));
    }
}

#[test]
fn a_decoder_gets_no_more_memory_than_a_kernel_needs() {
    // A dictionary of 4 GiB.
    let lzma = with(
        pack(Compression::Lzma, &small_elf()),
        1,
        &[0, 0, 0xff, 0xff],
    );
    let err = payload_error(&bzimage(&lzma), KernelEntry::Auto);
    assert!(
        matches!(
            err,
            DecompressError::Damaged {
                format: Compression::Lzma,
                ..
            }
        ),
        "{err}"
    );
    // A frame with a window of 2 GiB: no content size, no dictionary, then exponent 21.
    let zstd = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00];
    let err = payload_error(&bzimage(&zstd), KernelEntry::Auto);
    assert!(
        matches!(
            err,
            DecompressError::Damaged {
                format: Compression::Zstd,
                ..
            }
        ),
        "{err}"
    );
    // A block that claims 4 GiB.
    let lz4 = [0x02, 0x21, 0x4c, 0x18, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
    let err = payload_error(&bzimage(&lz4), KernelEntry::Auto);
    assert!(
        matches!(
            err,
            DecompressError::Damaged {
                format: Compression::Lz4,
                ..
            }
        ),
        "{err}"
    );
}

#[test]
fn setup_headers_that_cannot_be_are_refused() {
    let good = bzimage(&pack(Compression::Gzip, &small_elf()));
    let patch = |at: usize, value: &[u8]| with(good.clone(), at, value);

    let err = bzimage_error(&patch(setup::BOOT_FLAG, &[0]));
    assert!(matches!(err, BzimageError::BadHeader), "{err}");
    let err = bzimage_error(&patch(setup::VERSION, &0x20bu16.to_le_bytes()));
    assert!(
        err.to_string()
            .starts_with("boot protocol 2.11: 2.12 or later"),
        "{err}"
    );
    let err = bzimage_error(&patch(setup::LOADFLAGS, &[0]));
    assert!(matches!(err, BzimageError::NotHigh), "{err}");
    let err = bzimage_error(&patch(setup::XLOADFLAGS, &[0]));
    assert!(matches!(err, BzimageError::Not64Bit), "{err}");
    // A header that ends before `xloadflags`: the field is not there, whatever the bytes.
    let err = bzimage_error(&patch(setup::JUMP_LENGTH, &[0x30]));
    assert!(matches!(err, BzimageError::Not64Bit), "{err}");
    let err = bzimage_error(&patch(setup::ALIGNMENT, &3u32.to_le_bytes()));
    assert!(
        matches!(err, BzimageError::Alignment { alignment: 3 }),
        "{err}"
    );
    for size in [0u32, 1, 0x20] {
        let err = bzimage_error(&patch(setup::SYSSIZE, &size.to_le_bytes()));
        assert!(matches!(err, BzimageError::NoCode), "{err}");
    }
    let err = bzimage_error(&patch(setup::SYSSIZE, &u32::MAX.to_le_bytes()));
    assert!(matches!(err, BzimageError::Truncated { .. }), "{err}");
    // 0 stands for 4.
    let err = bzimage_error(&patch(setup::SECTORS, &[0]));
    let needed = good.len() as u64 + 3 * 512;
    assert!(
        matches!(err, BzimageError::Truncated { needed: n, .. } if n == needed),
        "{err}"
    );
    for (at, value) in [
        (setup::PAYLOAD_OFFSET, u32::MAX),
        (setup::PAYLOAD_LENGTH, u32::MAX),
        (setup::PAYLOAD_LENGTH, 0),
        (
            setup::PAYLOAD_OFFSET,
            good.len() as u32 - CODE_OFFSET as u32,
        ),
    ] {
        let err = bzimage_error(&patch(at, &value.to_le_bytes()));
        assert!(matches!(err, BzimageError::PayloadOutside { .. }), "{err}");
    }
}

#[test]
fn a_bzimage_that_has_no_room_is_refused() {
    let good = bzimage(&pack(Compression::Gzip, &small_elf()));
    let err = bzimage_error(&with(
        good.clone(),
        setup::INIT_SIZE,
        &0x40_0001u32.to_le_bytes(),
    ));
    assert!(matches!(
        err,
        BzimageError::BeyondMemory {
            end: 0x80_0001,
            memory: 0x80_0000
        }
    ));
    assert!(err.remedy().unwrap().contains("--memory"));
    load(
        &with(good.clone(), setup::INIT_SIZE, &0x40_0000u32.to_le_bytes()),
        KernelEntry::Bzimage,
        &ram(8),
    )
    .unwrap();
    // Over the boot data, beside the alignment, around the end of the address space.
    for address in [0, 0x8_0000, 0x40_0001, u64::MAX, !0x1f_ffff, 1 << 62] {
        let image = with(
            good.clone(),
            setup::PREF_ADDRESS,
            &u64::to_le_bytes(address),
        );
        let err = bzimage_error(&image);
        assert!(
            matches!(err, BzimageError::BadAddress { .. }),
            "{address:#x}: {err}"
        );
    }
    // An `init_size` of nothing still needs the image itself.
    let high = with(
        good.clone(),
        setup::PREF_ADDRESS,
        &0x80_0000u64.to_le_bytes(),
    );
    let err = bzimage_error(&with(high, setup::INIT_SIZE, &0u32.to_le_bytes()));
    assert!(matches!(err, BzimageError::BeyondMemory { .. }), "{err}");
}

#[test]
fn a_packed_elf_is_checked_as_any_other() {
    for (image, expected) in [
        (elf(BASE, &[segment(0x7000, b"low", 3)]), "below 1 MiB"),
        (
            elf(BASE, &[segment(BASE, b"big", 64 << 20)]),
            "needs memory up to 65 MiB",
        ),
        (
            with(small_elf(), field::MACHINE, &40u16.to_le_bytes()),
            "for arm",
        ),
        (
            with(small_elf(), field::TABLE, &0x2_0000u64.to_le_bytes()),
            "too far from the start",
        ),
        (small_elf()[..100].to_vec(), "truncated"),
        (small_elf()[..5000].to_vec(), "truncated"),
    ] {
        let file = bzimage(&pack(Compression::Gzip, &image));
        let err = load(&file, KernelEntry::Auto, &ram(8)).unwrap_err();
        assert!(matches!(err, KernelError::PackedElf { .. }), "{err}");
        let source = err.source().unwrap().to_string();
        assert!(source.contains(expected), "{source}");
        assert!(err.remedy().is_some());
    }
}

/// Loads by the path, with a folder for unpacked kernels; what is in memory then, where the small ELF belongs.
fn load_kept(path: &Path, folder: &Path) -> (LoadedKernel, Vec<u8>) {
    let ram = ram(4);
    let kernel = load_cached(path, KernelEntry::Auto, &ram, folder).unwrap();
    (kernel, bytes_at(&ram, BASE, small_code().len()))
}

#[test]
fn a_bzimage_is_unpacked_once() {
    let dir = tempfile::tempdir().unwrap();
    let (path, folder) = (dir.path().join("vmlinuz"), dir.path().join("kernels"));
    std::fs::write(&path, bzimage(&pack(Compression::Zstd, &small_elf()))).unwrap();
    let (first, code) = load_kept(&path, &folder);
    assert!(code == small_code());
    let kept: Vec<_> = std::fs::read_dir(&folder).unwrap().collect();
    assert_eq!(kept.len(), 1);
    let kept = kept[0].as_ref().unwrap().path();
    assert!(std::fs::read(&kept).unwrap() == small_elf());
    // Another kernel in its place is what is loaded: the bzImage is not unpacked again.
    let mut other = small_code();
    other[100] ^= 1;
    let at = small_elf().len() - small_code().len();
    std::fs::write(&kept, with(small_elf(), at, &other)).unwrap();
    let (second, code) = load_kept(&path, &folder);
    assert!(code == other);
    assert_eq!(
        (second.entry, second.end, second.path_taken),
        (first.entry, first.end, first.path_taken)
    );
    assert!(second.setup_header.is_some());
    // One that is cut short is as good as none.
    std::fs::write(&kept, &small_elf()[..at]).unwrap();
    let (_, code) = load_kept(&path, &folder);
    assert!(code == small_code());
    assert!(std::fs::read(&kept).unwrap() == small_elf());
    // So is one of another bzImage, be it in the same place.
    let elf = with(small_elf(), at, &other);
    std::fs::write(&path, bzimage(&pack(Compression::Gzip, &elf))).unwrap();
    let (_, code) = load_kept(&path, &folder);
    assert!(code == other);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
    // A folder that cannot be is no error.
    let (_, code) = load_kept(&path, &path);
    assert!(code == other);
    // What is no kernel is not kept.
    let damaged = bzimage(&pack(Compression::Zstd, &small_elf())[..200]);
    std::fs::write(&path, damaged).unwrap();
    assert!(load_cached(&path, KernelEntry::Auto, &ram(4), &folder).is_err());
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
}
