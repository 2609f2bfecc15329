//! Archives of images: whatever a stream holds, it is refused, or becomes an image of a bounded size.
//!
//! The first byte of an input says whether checksums are mended (an even one), so that what is changed in a header gets as far as
//! the header's reader; the rest is the archive.

#![no_main]

use std::fs::File;
use std::os::fd::FromRawFd;

use ampoule_store::{Limits, convert_archive};
use libfuzzer_sys::{Corpus, fuzz_target};

const BLOCK: usize = 512;
const MAX_IMAGE: u64 = 1 << 20;
const MAX_ENTRIES: u64 = 1000;

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((selector, archive)) = input.split_first() else {
        return Corpus::Reject;
    };
    let mut archive = archive.to_vec();
    if selector % 2 == 0 {
        archive.chunks_exact_mut(BLOCK).for_each(mend);
    }
    // SAFETY: the name is a string with its zero; the descriptor is new, and the file's alone.
    let image = unsafe {
        let fd = libc::memfd_create(c"image".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        File::from_raw_fd(fd)
    };
    let mut limits = Limits::default();
    limits.max_image_size = MAX_IMAGE;
    limits.max_entries = MAX_ENTRIES;
    match convert_archive(&archive[..], &image, limits) {
        Ok(size) => {
            assert!(size <= MAX_IMAGE, "{size} bytes");
            assert_eq!(image.metadata().unwrap().len(), size);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    Corpus::Keep
});

/// Gives a block that says it is a header its checksum.
fn mend(block: &mut [u8]) {
    if &block[257..262] != b"ustar" {
        return;
    }
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
