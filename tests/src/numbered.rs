//! Numbered blocks, as guests write them to tell what a disk has lost: each lies at its number modulo [`SLOTS`], and all eight-byte
//! words of it are its number.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, fs};

/// Bytes in a block.
pub const BLOCK: usize = 4096;
/// Blocks of an image; they are written in turns.
pub const SLOTS: u64 = 1024;

/// Where the numbers come from by which a run differs from another, and which the log has.
pub struct Random(u64);

impl Random {
    /// From the clock, or from `AMPOULE_TEST_SEED`.
    ///
    /// # Panics
    /// When that is no number.
    #[allow(
        clippy::print_stderr,
        reason = "a test that fails is run again with the same seed"
    )]
    pub fn seeded() -> Self {
        let seed = env::var("AMPOULE_TEST_SEED").ok().map_or_else(
            || {
                let now = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default();
                now.as_nanos() as u64
            },
            |seed| seed.parse().expect("AMPOULE_TEST_SEED is a number"),
        );
        eprintln!("AMPOULE_TEST_SEED={seed}");
        Self(seed | 1)
    }

    /// A number below `limit`, by xorshift.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// The words of each block of an image, those that are not like their neighbour.
///
/// # Panics
/// When the image cannot be read.
pub fn blocks(image: &Path) -> Vec<Vec<u64>> {
    let words = |block: &[u8]| {
        let mut words: Vec<u64> = block
            .chunks_exact(8)
            .map(|word| {
                word.iter()
                    .rev()
                    .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
            })
            .collect();
        words.dedup();
        words
    };
    let content = fs::read(image).expect("no image");
    content.chunks_exact(BLOCK).map(words).collect()
}

/// Which blocks that were reported, from `first` to `last`, are not there, with what is there. One that has been written again
/// since is, and may hold a part of the next.
///
/// # Panics
/// As [`blocks`].
pub fn lost(image: &Path, first: u64, last: u64) -> BTreeMap<u64, Vec<u64>> {
    let blocks = blocks(image);
    (first.max((last + 1).saturating_sub(SLOTS))..=last)
        .map(|number| (number, blocks[(number % SLOTS) as usize].clone()))
        .filter(|(number, words)| {
            let is_later = |word: &u64| word >= number && word % SLOTS == number % SLOTS;
            words.len() > 2 || !words.iter().all(is_later)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_old_or_torn_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        let mut content = vec![0; BLOCK * SLOTS as usize];
        let mut put = |slot: u64, from: usize, number: u64| {
            let start = slot as usize * BLOCK;
            for word in content[start + from..start + BLOCK].chunks_exact_mut(8) {
                word.copy_from_slice(&number.to_le_bytes());
            }
        };
        // Good, written again, and both in one; then old, torn, another's.
        put(0, 0, SLOTS);
        put(1, 0, 2 * SLOTS + 1);
        put(2, 0, 2 * SLOTS + 2);
        put(2, 512, SLOTS + 2);
        put(3, 0, 3);
        put(4, 0, SLOTS + 4);
        put(4, 512, 4);
        put(5, 0, SLOTS + 6);
        fs::write(&image, content).unwrap();
        let lost = lost(&image, SLOTS, SLOTS + 6);
        let numbers: Vec<u64> = lost.keys().map(|number| number - SLOTS).collect();
        assert_eq!(numbers, [3, 4, 5, 6]);
    }
}
