//! The memory of a process without its guest's: proc_pid_smaps(5), split.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// What a VMM holds in memory, without its guest's RAM, in MB.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Memory {
    /// Proportional set size: shared pages count for the share of each.
    pub(crate) pss: f64,
    /// Pages that nobody else has, and that cannot be read from a file again.
    pub(crate) private_dirty: f64,
}

/// A mapping of a process.
#[derive(Debug, Default)]
struct Mapping {
    start: u64,
    end: u64,
    /// Of the file that is mapped.
    path: String,
    executable: bool,
    /// In KiB, by the names of the kernel's lines.
    sizes: BTreeMap<String, u64>,
}

impl Mapping {
    fn size(&self, name: &str) -> u64 {
        self.sizes.get(name).copied().unwrap_or(0)
    }
}

/// Splits guest RAM of this size from the rest.
///
/// Guest RAM is the mapping, or the mappings side by side, of just this size, parts of it having advice of their own; else, where
/// it lies side by side with others, any mapping that is as large at least.
pub(crate) fn without_guest(smaps: &str, guest_mib: u64) -> Result<Memory> {
    let mappings = parse(smaps)?;
    let size = guest_mib << 20;
    let ram = (0..mappings.len())
        .find_map(|first| side_by_side(&mappings[first..], size))
        .or_else(|| {
            let mut each = mappings.chunks(1);
            each.find(|mapping| mapping[0].end - mapping[0].start >= size)
        })
        .with_context(|| format!("no {guest_mib} MiB of guest RAM among its mappings"))?;
    let sum = |mappings: &[Mapping], name: &str| {
        mappings
            .iter()
            .map(|mapping| mapping.size(name))
            .sum::<u64>()
    };
    let rest = |name| (sum(&mappings, name) - sum(ram, name)) as f64 * 1024.0 / 1e6;
    Ok(Memory {
        pss: rest("Pss"),
        private_dirty: rest("Private_Dirty"),
    })
}

/// The files whose code the process runs: its own and its libraries.
pub(crate) fn programs(smaps: &str) -> Result<Vec<PathBuf>> {
    let mappings = parse(smaps)?;
    let mut files: Vec<PathBuf> = mappings
        .iter()
        .filter(|mapping| mapping.executable && mapping.path.starts_with('/'))
        .map(|mapping| PathBuf::from(&mapping.path))
        .collect();
    files.sort();
    files.dedup();
    Ok(files)
}

/// The first mappings, if they lie side by side and are of this size together.
fn side_by_side(mappings: &[Mapping], size: u64) -> Option<&[Mapping]> {
    let start = mappings.first()?.start;
    let mut end = start;
    for (index, mapping) in mappings.iter().enumerate() {
        if mapping.start != end || mapping.end - start > size {
            return None;
        }
        end = mapping.end;
        if end - start == size {
            return Some(&mappings[..=index]);
        }
    }
    None
}

fn parse(smaps: &str) -> Result<Vec<Mapping>> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if let Some(name) = first.strip_suffix(':') {
            let kib = words.next().and_then(|number| number.parse().ok());
            if let (Some(mapping), Some(kib)) = (mappings.last_mut(), kib) {
                mapping.sizes.insert(name.into(), kib);
            }
        } else if let Some((start, end)) = first.split_once('-') {
            let permissions = words.next().unwrap_or_default();
            mappings.push(Mapping {
                start: u64::from_str_radix(start, 16).context("no address")?,
                end: u64::from_str_radix(end, 16).context("no address")?,
                executable: permissions.contains('x'),
                // Behind offset, device and inode.
                path: words.nth(3).unwrap_or_default().into(),
                sizes: BTreeMap::new(),
            });
        }
    }
    Ok(mappings)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
00400000-00500000 r-xp 00000000 fe:00 12 /usr/bin/vmm
Pss:                 100 kB
Private_Dirty:         4 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0000200000 rw-p 00000000 00:00 0
Pss:                  50 kB
Private_Dirty:        50 kB
7f0000200000-7f0008000000 rw-p 00000000 00:00 0
Pss:                1000 kB
Private_Dirty:      1000 kB
7f0009000000-7f0009001000 rw-p 00000000 00:00 0 [heap]
Pss:                  20 kB
Private_Dirty:        16 kB
";

    #[test]
    fn guest_ram_in_pieces_is_left_out() {
        let memory = without_guest(SMAPS, 128).unwrap();
        assert_eq!(
            memory,
            Memory {
                pss: 0.12288,
                private_dirty: 0.02048
            }
        );
        // The larger piece alone is large enough for 100.
        let memory = without_guest(SMAPS, 100).unwrap();
        assert_eq!(memory.pss, 170.0 * 1024.0 / 1e6);
        assert!(without_guest(SMAPS, 256).is_err());
    }

    #[test]
    fn programs_are_what_is_executed() {
        assert_eq!(programs(SMAPS).unwrap(), [PathBuf::from("/usr/bin/vmm")]);
    }
}
