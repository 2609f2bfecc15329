//! The consoles that the HTML report shows: as much of each as a person scrolls through, and of all together as a browser bears.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use crate::test::outcome::{Attempt, TestRun};

/// How much of the beginning, and of the end, of one console.
const PART: u64 = 200 << 10;

/// How much of the consoles of attempts that passed, and of those that did not.
const ALL: u64 = 32 << 20;

/// Consoles by scenario and attempt, both from 0.
#[derive(Debug, Default)]
pub(crate) struct Consoles {
    kept: BTreeMap<(usize, usize), Excerpt>,
    passed: u64,
    others: u64,
}

/// What is kept of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Excerpt {
    /// How long all of it is.
    pub(super) length: u64,
    /// The beginning, or all.
    pub(super) head: Vec<u8>,
    /// The end, where not all is in `head`.
    pub(super) tail: Vec<u8>,
}

impl Consoles {
    /// Keeps the console of an attempt, before its folder goes. Without a folder, or a console in it, there is nothing to keep;
    /// nor where the report holds as much as it may.
    pub(crate) fn keep(&mut self, scenario: usize, number: usize, attempt: &Attempt) {
        let Some(folder) = &attempt.folder else {
            return;
        };
        if self.kept.contains_key(&(scenario, number)) {
            return;
        }
        let used = match attempt.has_passed() {
            true => &mut self.passed,
            false => &mut self.others,
        };
        if *used >= ALL {
            return;
        }
        // One that cannot be read is not worth a word: what it would say is in the results.
        if let Ok(excerpt) = Excerpt::read(&folder.join("console.txt"), PART) {
            *used += (excerpt.head.len() + excerpt.tail.len()) as u64;
            self.kept.insert((scenario, number), excerpt);
        }
    }

    /// With those of attempts whose folders are still there: all of a run's, before those of passed ones are removed.
    pub(crate) fn with_kept_ones(mut self, run: &TestRun) -> Self {
        for (scenario, result) in run.scenarios.iter().enumerate() {
            for (number, attempt) in result.attempts.iter().enumerate() {
                self.keep(scenario, number, attempt);
            }
        }
        self
    }

    pub(super) fn of(&self, scenario: usize, number: usize) -> Option<&Excerpt> {
        self.kept.get(&(scenario, number))
    }

    #[cfg(test)]
    pub(super) fn insert(&mut self, scenario: usize, number: usize, text: &[u8]) {
        let excerpt = Excerpt {
            length: text.len() as u64,
            head: text.to_vec(),
            tail: Vec::new(),
        };
        self.kept.insert((scenario, number), excerpt);
    }
}

impl Excerpt {
    /// Reads at most `part` bytes of the file's beginning and end, whole characters.
    pub(super) fn read(path: &Path, part: u64) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut bytes = |from: u64, most: u64| {
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(from))?;
            file.by_ref().take(most).read_to_end(&mut bytes)?;
            io::Result::Ok(bytes)
        };
        if length <= part.saturating_mul(2) {
            let head = bytes(0, length)?;
            return Ok(Self {
                length: head.len() as u64,
                head,
                tail: Vec::new(),
            });
        }
        let mut head = bytes(0, part)?;
        let mut tail = bytes(length - part, part)?;
        // A character that is cut is left off, on either side; what is no text stays.
        let cut = (1..=3.min(head.len())).find(|back| head[head.len() - back] >= 0xc0);
        if let Some(back) = cut {
            let start = head.len() - back;
            if std::str::from_utf8(&head[start..]).is_err_and(|err| err.error_len().is_none()) {
                head.truncate(start);
            }
        }
        let over = tail.iter().take(3).take_while(|it| **it & 0xc0 == 0x80);
        let over = over.count();
        tail.drain(..over);
        Ok(Self { length, head, tail })
    }

    /// Where `tail` begins in the file.
    pub(super) fn tail_start(&self) -> u64 {
        self.length - self.tail.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::report::sample;

    #[test]
    fn a_long_console_is_cut_between_characters() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.txt");
        std::fs::write(&path, "ab€cdefgh€ij").unwrap();
        let excerpt = Excerpt::read(&path, 4).unwrap();
        assert_eq!(excerpt.head, b"ab");
        assert_eq!(excerpt.tail, b"ij");
        assert_eq!(excerpt.length, 16);
        assert_eq!(excerpt.tail_start(), 14);
        let all = Excerpt::read(&path, 8).unwrap();
        assert_eq!(all.head, "ab€cdefgh€ij".as_bytes());
        assert!(all.tail.is_empty());
        // What is no text is not thrown away.
        std::fs::write(&path, [0xff; 100]).unwrap();
        assert_eq!(Excerpt::read(&path, 4).unwrap().head, [0xff; 4]);
    }

    #[test]
    fn the_report_keeps_so_much_and_no_more_and_failures_have_their_own_room() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("console.txt"), vec![b'x'; 1 << 20]).unwrap();
        let run = sample::run();
        let mut passed = run.scenarios[0].attempts[0].clone();
        passed.folder = Some(folder.path().to_owned());
        let mut failed = passed.clone();
        failed.verdict = crate::test::outcome::Verdict::Failed;
        let mut consoles = Consoles::default();
        for number in 0..100 {
            consoles.keep(0, number, &passed);
        }
        assert_eq!(consoles.kept.len(), 82);
        consoles.keep(1, 0, &failed);
        assert!(consoles.of(1, 0).is_some());
    }
}
