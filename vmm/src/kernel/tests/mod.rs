//! The loader as a whole: what it accepts, and everything hostile that it refuses (HOSTILE 21, 22).

#[cfg(feature = "decompress")]
mod bzimage;
mod elf;

use std::error::Error;
use std::io::Write;
use std::path::Path;

use proptest::prelude::*;

use super::testing::*;
use super::*;

fn load(bytes: &[u8], mode: KernelEntry, ram: &GuestRam) -> Result<LoadedKernel, KernelError> {
    load_bytes(bytes, Path::new("dir/kernel"), mode, ram)
}

fn assert_small_elf_is_in(ram: &GuestRam) {
    let mut expected = small_code();
    expected.resize(0x9000, 0);
    assert!(bytes_at(ram, BASE, 0x9000) == expected);
}

#[test]
fn an_elf_file_is_read_as_its_bytes_are() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&small_elf()).unwrap();
    // Two regions with a seam in the middle of the segment: one read does not do.
    let ram = ram_at(&[(0, BASE as usize + 0x1000), (BASE + 0x1000, 1 << 20)]);
    let kernel = super::load(file.path(), KernelEntry::Auto, &ram).unwrap();
    assert_eq!(kernel.entry, KernelEntryPoint::Pvh { entry: BASE + 4 });
    assert_small_elf_is_in(&ram);
    load_from(
        file.reopen().unwrap(),
        file.path(),
        KernelEntry::Auto,
        &super::testing::ram(4),
    )
    .unwrap();
}

#[test]
fn what_is_not_a_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let err = super::load(dir.path(), KernelEntry::Auto, &ram(4)).unwrap_err();
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
    assert!(err.remedy().unwrap().contains("vmlinu"));

    // Opening it must not wait for a writer.
    let fifo = dir.path().join("fifo");
    let name = std::ffi::CString::new(fifo.to_str().unwrap()).unwrap();
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let err = super::load(&fifo, KernelEntry::Auto, &ram(4)).unwrap_err();
    assert!(
        matches!(err, KernelError::NotAFile { kind: "pipe", .. }),
        "{err}"
    );

    let err = super::load(Path::new("/dev/null"), KernelEntry::Auto, &ram(4)).unwrap_err();
    assert!(
        matches!(err, KernelError::NotAFile { kind: "device", .. }),
        "{err}"
    );

    let missing = dir.path().join("missing");
    let err = super::load(&missing, KernelEntry::Auto, &ram(4)).unwrap_err();
    assert!(err.to_string().contains("missing"), "{err}");
    assert!(err.source().is_some());

    let err = load(b"", KernelEntry::Auto, &ram(4)).unwrap_err();
    assert_eq!(err.to_string(), "kernel \"dir/kernel\" is empty");
}

#[test]
fn entry_modes_have_the_names_of_the_command_line() {
    for (mode, name) in [
        (KernelEntry::Auto, "\"auto\""),
        (KernelEntry::Pvh, "\"pvh\""),
        (KernelEntry::Linux64, "\"linux64\""),
        (KernelEntry::Bzimage, "\"bzimage\""),
    ] {
        assert_eq!(serde_json::to_string(&mode).unwrap(), name);
        assert_eq!(serde_json::from_str::<KernelEntry>(name).unwrap(), mode);
    }
}

/// An image with a few bytes changed, or cut.
fn mangled(images: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let patches = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (
        prop::sample::select(images),
        patches,
        any::<prop::sample::Index>(),
        any::<bool>(),
    )
        .prop_map(|(mut bytes, patches, cut, do_cut)| {
            for (index, value) in patches {
                // Most of them where the headers are.
                let at = match value & 1 {
                    0 => index.index(bytes.len()),
                    _ => index.index(bytes.len().min(0x280)),
                };
                bytes[at] = value;
            }
            if do_cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        })
}

#[cfg(not(feature = "decompress"))]
#[test]
fn without_decoders_every_bzimage_unpacks_itself() {
    for format in FORMATS {
        let image = bzimage(&pack(format, &small_elf()));
        let kernel = load(&image, KernelEntry::Auto, &ram(8)).unwrap();
        assert_eq!(kernel.path_taken, BootPath::InGuest, "{format}");
        let err = load(&image, KernelEntry::Pvh, &ram(8)).unwrap_err();
        assert!(err.remedy().unwrap().contains("--entry bzimage"), "{err}");
    }
}

proptest! {
    /// Whatever comes: an answer, no write outside of where a kernel may be, and an entry point in memory.
    #[test]
    fn no_image_does_harm(
        bytes in mangled(vec![
            small_elf(),
            bzimage(&pack(Compression::Lz4, &small_elf())),
            bzimage(&pack(Compression::Zstd, &small_elf())),
            bzimage(&pack(Compression::Xz, &small_elf())),
        ]),
        mode in prop::sample::select(vec![KernelEntry::Auto, KernelEntry::Linux64, KernelEntry::Bzimage]),
    ) {
        let ram = ram(6);
        let result = load(&bytes, mode, &ram);
        prop_assert!(bytes_at(&ram, 0, 1 << 20).iter().all(|byte| *byte == 0));
        match result {
            Ok(kernel) => {
                prop_assert!(kernel.end <= 6 << 20);
                prop_assert!((1 << 20..kernel.end).contains(&kernel.entry.address()));
            }
            Err(err) => prop_assert!(err.to_string().contains("dir/kernel")),
        }
    }
}
