//! ELF files: headers, segments, notes.

use std::error::Error;

use super::*;

/// What is wrong with `bytes` as an ELF kernel.
fn elf_error(bytes: &[u8]) -> ElfError {
    match load(bytes, KernelEntry::Auto, &ram(4)) {
        Err(err @ KernelError::Elf { .. }) => {
            assert!(err.to_string().contains("\"dir/kernel\""), "{err}");
            let KernelError::Elf { source, .. } = err else {
                unreachable!()
            };
            source
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_elf_is_placed_and_entered_by_pvh_or_linux64() {
    for (mode, entry) in [
        (KernelEntry::Auto, KernelEntryPoint::Pvh { entry: BASE + 4 }),
        (KernelEntry::Pvh, KernelEntryPoint::Pvh { entry: BASE + 4 }),
        (
            KernelEntry::Linux64,
            KernelEntryPoint::Linux64 { entry: BASE + 8 },
        ),
    ] {
        let ram = ram(4);
        let kernel = load(&small_elf(), mode, &ram).unwrap();
        assert_eq!(kernel.entry, entry);
        assert_eq!(kernel.end, BASE + 0x9000);
        assert_eq!(kernel.path_taken, BootPath::Elf { entry });
        assert!(kernel.setup_header.is_none());
        assert_small_elf_is_in(&ram);
    }
    let err = load(&small_elf(), KernelEntry::Bzimage, &ram(4)).unwrap_err();
    assert!(matches!(err, KernelError::NotABzimage { .. }), "{err}");
}

#[test]
fn every_truncation_of_an_elf_is_an_error() {
    let whole = small_elf();
    load(&whole, KernelEntry::Auto, &ram(4)).unwrap();
    let ram = ram(4);
    for size in 0..whole.len() {
        let result = load(&whole[..size], KernelEntry::Auto, &ram);
        assert!(result.is_err(), "loaded {size} of {} bytes", whole.len());
    }
}

#[test]
fn elf_headers_for_others_are_refused() {
    let good = small_elf();
    let err = elf_error(&with(good.clone(), field::MACHINE, &183u16.to_le_bytes()));
    assert!(matches!(err, ElfError::Machine { machine: 183 }));
    assert!(err.to_string().contains("arm64"), "{err}");
    let err = elf_error(&with(good.clone(), field::CLASS, &[1]));
    assert!(matches!(err, ElfError::Not64Bit), "{err}");
    let err = elf_error(&with(good.clone(), field::DATA, &[2]));
    assert!(matches!(err, ElfError::BigEndian), "{err}");
    for kind in [0u16, 1, 3, 4] {
        let err = elf_error(&with(good.clone(), field::TYPE, &kind.to_le_bytes()));
        assert!(matches!(err, ElfError::Type { .. }), "{err}");
    }
    let err = elf_error(&with(
        good.clone(),
        field::HEADER_SIZE,
        &32u16.to_le_bytes(),
    ));
    assert!(matches!(err, ElfError::HeaderSize { size: 32 }), "{err}");
    let err = elf_error(&with(good.clone(), field::COUNT, &0u16.to_le_bytes()));
    assert!(matches!(err, ElfError::NoSegments), "{err}");
    let err = elf_error(&with(good.clone(), field::COUNT, &u16::MAX.to_le_bytes()));
    assert!(
        matches!(err, ElfError::TooManyHeaders { count: u16::MAX }),
        "{err}"
    );
    let err = elf_error(&with(good.clone(), field::TABLE, &u64::MAX.to_le_bytes()));
    assert!(matches!(err, ElfError::Truncated { .. }), "{err}");
    // Section headers behind the end: the file was cut.
    let cut = with(good, field::SECTIONS, &0x10_0000u64.to_le_bytes());
    let err = elf_error(&with(cut, field::SECTION_COUNT, &3u16.to_le_bytes()));
    assert!(
        matches!(
            err,
            ElfError::Truncated {
                needed: 0x10_00c0,
                ..
            }
        ),
        "{err}"
    );
}

#[test]
fn segments_that_cannot_be_are_refused() {
    let good = elf(BASE, &[segment(BASE, b"code", 0x1000)]);
    load(&good, KernelEntry::Auto, &ram(4)).unwrap();
    let patch = |at: usize, value: u64| with(good.clone(), at, &value.to_le_bytes());

    let err = elf_error(&patch(field::MEMORY_SIZE, 3));
    assert!(matches!(
        err,
        ElfError::LargerThanMemory {
            index: 0,
            file_size: 4,
            memory_size: 3
        }
    ));
    let err = elf_error(&patch(field::MEMORY_SIZE, u64::MAX));
    assert!(matches!(err, ElfError::Overflow { index: 0 }), "{err}");
    let err = elf_error(&patch(field::ADDRESS, u64::MAX - 3));
    assert!(matches!(err, ElfError::Overflow { index: 0 }), "{err}");
    let err = elf_error(&patch(field::OFFSET, u64::MAX - 3));
    assert!(matches!(err, ElfError::Overflow { index: 0 }), "{err}");
    let huge = with(
        patch(field::MEMORY_SIZE, 1 << 63),
        field::FILE_SIZE,
        &(1u64 << 63).to_le_bytes(),
    );
    let err = elf_error(&huge);
    assert!(matches!(err, ElfError::BeyondMemory { .. }), "{err}");
    // The zero page, the command line, the page tables.
    for address in [0, 0x7000, 0x2_0000, 0xf_ffff] {
        let err = elf_error(&patch(field::ADDRESS, address));
        assert!(matches!(err, ElfError::TooLow { index: 0, .. }), "{err}");
    }
    let err = elf_error(&patch(field::ADDRESS, (4 << 20) - 0xfff));
    assert!(matches!(
        err,
        ElfError::BeyondMemory {
            end: 0x40_0001,
            memory: 0x40_0000
        }
    ));
    assert_eq!(
        err.to_string(),
        "the kernel needs memory up to 5 MiB, the guest has 4 MiB"
    );
    assert!(err.remedy().unwrap().contains("--memory"));
    // The last byte of RAM is good.
    load(
        &patch(field::ADDRESS, (4 << 20) - 0x1000),
        KernelEntry::Linux64,
        &ram(4),
    )
    .unwrap_err();
    let last = elf(
        (4 << 20) - 0x1000,
        &[segment((4 << 20) - 0x1000, b"code", 0x1000)],
    );
    load(&last, KernelEntry::Auto, &ram(4)).unwrap();
}

#[test]
fn a_segment_in_the_hole_or_across_its_edge_is_refused() {
    let ram = ram_at(&[(0, 4 << 20), (8 << 20, 4 << 20)]);
    for address in [(4 << 20) - 1, 5 << 20, (8 << 20) - 1] {
        let image = elf(address, &[segment(address, b"code", 4)]);
        let result = load(&image, KernelEntry::Auto, &ram);
        let Err(KernelError::Elf { source, .. }) = result else {
            panic!("{result:?}")
        };
        assert!(
            matches!(
                source,
                ElfError::NotMemory { .. } | ElfError::BeyondMemory { .. }
            ),
            "{source}"
        );
    }
    let image = elf(8 << 20, &[segment(8 << 20, b"code", 4)]);
    load(&image, KernelEntry::Auto, &ram).unwrap();
}

#[test]
fn overlapping_segments_are_refused_in_any_order() {
    let low = segment(BASE, b"low", 0x1001);
    let high = segment(BASE + 0x1000, b"high", 0x1000);
    for parts in [[low.clone(), high.clone()], [high.clone(), low.clone()]] {
        let err = elf_error(&elf(BASE, &parts));
        assert!(
            matches!(
                err,
                ElfError::Overlap {
                    address: 0x10_1000,
                    ..
                }
            ),
            "{err}"
        );
    }
    let touching = segment(BASE, b"low", 0x1000);
    load(&elf(BASE, &[high, touching]), KernelEntry::Auto, &ram(4)).unwrap();
}

#[test]
fn an_empty_segment_is_nowhere() {
    let parts = [segment(0, b"", 0), segment(BASE, b"code", 4)];
    let kernel = load(&elf(BASE, &parts), KernelEntry::Auto, &ram(4)).unwrap();
    assert_eq!(kernel.end, BASE + 4);
    let err = elf_error(&elf(0, &[segment(0, b"", 0)]));
    assert!(matches!(err, ElfError::NoSegments), "{err}");
}

#[test]
fn without_an_entry_there_is_an_error() {
    let code = segment(BASE, b"code", 0x1000);
    // Linked with virtual addresses only.
    let err = elf_error(&elf(0xffff_ffff_8100_0000, std::slice::from_ref(&code)));
    assert!(matches!(err, ElfError::NoEntry { .. }), "{err}");
    assert!(
        err.to_string()
            .starts_with("no PVH note, and the entry point 0xffffffff81000000")
    );
    assert!(err.remedy().unwrap().contains("CONFIG_PVH"));
    let outside = elf(BASE + 0x1000, std::slice::from_ref(&code));
    assert!(matches!(elf_error(&outside), ElfError::NoEntry { .. }));

    let plain = elf(BASE, std::slice::from_ref(&code));
    let Err(KernelError::Elf { source, .. }) = load(&plain, KernelEntry::Pvh, &ram(4)) else {
        panic!("loaded without a note");
    };
    assert!(matches!(source, ElfError::NoPvhNote), "{source}");

    for entry in [0, BASE - 1, BASE + 0x1000, 1 << 32, (1 << 32) | BASE] {
        let err = elf_error(&elf(BASE, &[code.clone(), pvh_note(entry)]));
        assert!(matches!(err, ElfError::PvhEntryOutside { .. }), "{err}");
    }
    // A good note and a bad entry point: only the latter is refused.
    let image = elf(7, &[code, pvh_note(BASE)]);
    load(&image, KernelEntry::Auto, &ram(4)).unwrap();
    let err = load(&image, KernelEntry::Linux64, &ram(4)).unwrap_err();
    let source = err.source().unwrap().to_string();
    assert_eq!(source, "the entry point 0x7 is in no segment");
}

#[test]
fn the_note_is_found_among_others_in_both_alignments() {
    let entry = BASE as u32 + 2;
    for align in [4, 8] {
        for desc in [
            entry.to_le_bytes().to_vec(),
            u64::from(entry).to_le_bytes().to_vec(),
        ] {
            let mut bytes = note(b"Linux\0", 257, b"abc", align);
            bytes.extend(note(b"Xen\0", 6, b"linux\0", align));
            bytes.extend(note(b"GNU\0", 18, b"not this", align));
            bytes.extend(note(b"Xen\0", 18, &desc, align));
            let parts = [segment(BASE, b"code", 4), notes(bytes, align as u64)];
            let kernel = load(&elf(BASE, &parts), KernelEntry::Pvh, &ram(4)).unwrap();
            assert_eq!(
                kernel.entry,
                KernelEntryPoint::Pvh {
                    entry: entry.into()
                }
            );
        }
    }
}

#[test]
fn damaged_notes_are_no_pvh_note() {
    let good = note(b"Xen\0", 18, &(BASE as u32).to_le_bytes(), 4);
    let mut cases: Vec<Vec<u8>> = (0..good.len()).map(|size| good[..size].to_vec()).collect();
    cases.push(with(good.clone(), 0, &u32::MAX.to_le_bytes()));
    cases.push(with(good.clone(), 4, &u32::MAX.to_le_bytes()));
    cases.push(with(good.clone(), 4, &2u32.to_le_bytes()));
    for bytes in cases {
        let image = elf(BASE, &[segment(BASE, b"code", 4), notes(bytes, 4)]);
        let kernel = load(&image, KernelEntry::Auto, &ram(4)).unwrap();
        assert_eq!(kernel.entry, KernelEntryPoint::Linux64 { entry: BASE });
    }
}
