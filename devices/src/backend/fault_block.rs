//! A disk that fails on purpose, around one that does not: requests are refused, kept waiting, or done in part.
//!
//! Runs on the I/O thread of the device, as every back end does.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use vm_memory::VolatileSlice;

use super::disk::{BlockBackend, Flushes, SECTOR};
use super::fault::{Fault, MAX_DELAY, Plan, When};

/// What a request to a disk does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockOp {
    /// It reads.
    Read,
    /// It writes, zeroes included.
    Write,
    /// It makes safe what was written.
    Flush,
    /// It says that content is not needed.
    Discard,
}

/// How a request that was done in part ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Torn {
    /// By an error, whose number this is (`errno`).
    Fails(i32),
    /// As if all of it were done: what a disk without power says, which is not to be believed.
    Succeeds,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockEffect {
    /// It fails by the error with this number (`errno`), and nothing of it is done.
    Fail(i32),
    /// It is made later, at most by [`MAX_DELAY`]. The device's I/O thread sleeps: all virtio devices of the VM stand still
    /// meanwhile, and a pause, a reset and the VM's end wait for it. Setting another plan ends the delay.
    Delay(Duration),
    /// Only its first bytes are read or written; of a discard or a write of zeroes the whole sectors in them, of a flush
    /// nothing.
    Tear {
        /// How many.
        bytes: u64,
        /// What is said of it.
        then: Torn,
    },
}

/// A fault of a disk. Of several that strike one request, the delays add up, and the first of the others counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockFault {
    /// What requests it is about; none for all.
    pub op: Option<BlockOp>,
    /// Only those that touch one of these sectors of 512 bytes, as no flush does; none for all.
    pub sectors: Option<Range<u64>>,
    /// Which of them it strikes.
    pub when: When,
    /// What becomes of those.
    pub effect: BlockEffect,
}

impl BlockFault {
    /// What happens to some requests of one kind.
    pub fn new(op: BlockOp, when: When, effect: BlockEffect) -> Self {
        Self {
            op: Some(op),
            sectors: None,
            when,
            effect,
        }
    }

    /// The same, only for requests that touch these sectors.
    pub fn sectors(self, sectors: Range<u64>) -> Self {
        Self {
            sectors: Some(sectors),
            ..self
        }
    }

    fn is_about(&self, op: BlockOp, offset: u64, len: u64) -> bool {
        let touches = |sectors: &Range<u64>| {
            let (first, end) = (offset / SECTOR, (offset + len).div_ceil(SECTOR));
            first < sectors.end && sectors.start < end
        };
        self.op.is_none_or(|it| it == op)
            && self
                .sectors
                .as_ref()
                .is_none_or(|sectors| len > 0 && touches(sectors))
    }
}

impl Fault for BlockFault {
    fn when(&self) -> When {
        self.when
    }
}

/// The faults of a disk, to be changed while it is in use. Cheap to clone; all clones are one plan, which any number of disks
/// may have.
#[derive(Debug, Clone, Default)]
pub struct BlockFaults {
    plan: Plan<BlockFault>,
}

impl BlockFaults {
    /// A plan of these faults.
    pub fn new(faults: impl IntoIterator<Item = BlockFault>) -> Self {
        let made = Self::default();
        made.set(faults);
        made
    }

    /// Replaces the plan. Counting begins anew, and a delay that is under way ends.
    pub fn set(&self, faults: impl IntoIterator<Item = BlockFault>) {
        self.plan.set(faults);
    }

    /// Has nothing fail any more; but a flush that has failed always will.
    pub fn clear(&self) {
        self.set([]);
    }

    /// How often faults have struck, of all plans so far.
    pub fn struck(&self) -> u64 {
        self.plan.struck()
    }
}

/// A disk with faults. Each call is one request of the guest's. It has no [`BlockBackend::file`], so that the I/O thread makes
/// its requests, one after the other.
pub struct FaultyBlock {
    inner: Arc<dyn BlockBackend>,
    faults: BlockFaults,
    flushes: Flushes,
}

impl FaultyBlock {
    /// The disk `inner` with these faults.
    pub fn new(inner: Arc<dyn BlockBackend>, faults: &BlockFaults) -> Self {
        Self {
            inner,
            faults: faults.clone(),
            flushes: Flushes::default(),
        }
    }

    /// Makes a request by `work`, which is given how many bytes of it to do; or does not.
    fn make(
        &self,
        op: BlockOp,
        (offset, len): (u64, u64),
        work: impl FnOnce(u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let plan = &self.faults.plan;
        if !plan.is_armed() {
            return work(len);
        }
        let (mut delay, mut effect) = (Duration::ZERO, None);
        let version = plan.count(
            |fault| fault.is_about(op, offset, len),
            |fault| match fault.effect {
                BlockEffect::Delay(more) => delay = delay.saturating_add(more),
                other => {
                    effect.get_or_insert(other);
                }
            },
        );
        if !delay.is_zero() {
            plan.delay(delay.min(MAX_DELAY), version);
        }
        match effect {
            Some(BlockEffect::Fail(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(BlockEffect::Tear { bytes, then }) => {
                let part = bytes.min(len);
                if part > 0 {
                    work(part)?;
                }
                match then {
                    Torn::Fails(errno) => Err(io::Error::from_raw_os_error(errno)),
                    Torn::Succeeds => Ok(()),
                }
            }
            Some(BlockEffect::Delay(_)) | None => work(len),
        }
    }
}

fn len_of(data: &[VolatileSlice<'_>]) -> u64 {
    data.iter().map(|piece| piece.len() as u64).sum()
}

/// The pieces of the first `len` bytes.
fn first<'a>(data: &[VolatileSlice<'a>], len: u64) -> Vec<VolatileSlice<'a>> {
    let mut left = usize::try_from(len).unwrap_or(usize::MAX);
    let parts = data.iter().filter_map(|piece| {
        let part = piece.subslice(0, piece.len().min(left)).ok()?;
        left -= part.len();
        (!part.is_empty()).then_some(part)
    });
    parts.collect()
}

/// Whole sectors in so many bytes.
fn whole(len: u64) -> u64 {
    len - len % SECTOR
}

impl BlockBackend for FaultyBlock {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn refresh_size(&self) -> io::Result<u64> {
        self.inner.refresh_size()
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }

    fn read_at(&self, data: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        let all = len_of(data);
        self.make(BlockOp::Read, (offset, all), |len| match len == all {
            true => self.inner.read_at(data, offset),
            false => self.inner.read_at(&first(data, len), offset),
        })
    }

    fn write_at(&self, data: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        let all = len_of(data);
        self.make(BlockOp::Write, (offset, all), |len| match len == all {
            true => self.inner.write_at(data, offset),
            false => self.inner.write_at(&first(data, len), offset),
        })
    }

    fn flush(&self) -> io::Result<()> {
        let result = self.make(BlockOp::Flush, (0, 0), |_| self.inner.flush());
        self.flushes.judge(result)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.make(BlockOp::Discard, (offset, len), |len| match whole(len) {
            0 => Ok(()),
            len => self.inner.discard(offset, len),
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.make(BlockOp::Write, (offset, len), |len| match whole(len) {
            0 => Ok(()),
            len => self.inner.write_zeroes(offset, len, unmap),
        })
    }

    fn joins_requests(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::thread;

    use super::*;
    use crate::backend::disk::{OpenDisk, RawDisk};

    const KIB: u64 = 1 << 10;

    fn disk(folder: &Path, faults: &BlockFaults) -> FaultyBlock {
        let raw = RawDisk::open(&OpenDisk {
            path: &folder.join("image"),
            read_only: false,
            create_size: Some(64 * KIB),
            direct: false,
            lock: true,
        });
        FaultyBlock::new(Arc::new(raw.unwrap()), faults)
    }

    fn write(disk: &FaultyBlock, byte: u8, offset: u64, len: usize) -> Option<i32> {
        let (mut one, mut other) = (vec![byte; len / 2], vec![byte; len - len / 2]);
        let data = [(&mut one[..]).into(), (&mut other[..]).into()];
        let outcome = disk.write_at(&data, offset);
        outcome.err().map(|err| err.raw_os_error().unwrap())
    }

    /// How many of `len` bytes are as they were written.
    fn count(disk: &FaultyBlock, byte: u8, offset: u64, len: usize) -> usize {
        let mut bytes = vec![0; len];
        let inner = &disk.inner;
        inner.read_at(&[(&mut bytes[..]).into()], offset).unwrap();
        bytes.iter().take_while(|it| **it == byte).count()
    }

    fn fault(op: BlockOp, when: When, effect: BlockEffect) -> BlockFault {
        BlockFault::new(op, when, effect)
    }

    #[test]
    fn the_nth_and_every_nth_fail_as_the_plan_says() {
        let folder = tempfile::tempdir().unwrap();
        let faults = BlockFaults::new([
            fault(
                BlockOp::Write,
                When::Nth(2),
                BlockEffect::Fail(libc::ENOSPC),
            ),
            fault(BlockOp::Write, When::Every(3), BlockEffect::Fail(libc::EIO)),
            fault(BlockOp::Read, When::Every(0), BlockEffect::Fail(libc::EIO)),
        ]);
        let disk = disk(folder.path(), &faults);
        let outcomes: Vec<_> = (0..6).map(|at| write(&disk, 7, at * KIB, 1024)).collect();
        let (full, broken) = (Some(libc::ENOSPC), Some(libc::EIO));
        assert_eq!(outcomes, [None, full, broken, None, None, broken]);
        assert_eq!(faults.struck(), 3);
        for (at, outcome) in (0..).zip(outcomes) {
            let there = count(&disk, 7, at * KIB, 1024);
            assert_eq!(there == 1024, outcome.is_none(), "{at}");
            assert!(there == 0 || there == 1024, "{at}");
        }
        let mut bytes = [0; 512];
        disk.read_at(&[(&mut bytes[..]).into()], 0).unwrap();
        // Counting begins anew.
        faults.set([fault(
            BlockOp::Write,
            When::Nth(1),
            BlockEffect::Fail(libc::EIO),
        )]);
        assert_eq!(write(&disk, 8, 0, 512), broken);
        assert_eq!(write(&disk, 8, 0, 512), None);
        faults.clear();
        assert_eq!(write(&disk, 8, 0, 512), None);
        assert_eq!(faults.struck(), 4);
    }

    #[test]
    fn sectors_are_those_that_a_request_touches() {
        let folder = tempfile::tempdir().unwrap();
        let bad = BlockFault {
            op: None,
            sectors: Some(4..6),
            when: When::Every(1),
            effect: BlockEffect::Fail(libc::EIO),
        };
        let disk = disk(folder.path(), &BlockFaults::new([bad]));
        for (sector, sectors, fails) in [
            (0, 4, false),
            (0, 5, true),
            (4, 1, true),
            (5, 1, true),
            (5, 9, true),
            (6, 1, false),
            (0, 20, true),
        ] {
            let (offset, len) = (sector * SECTOR, sectors * SECTOR);
            let outcomes = [
                write(&disk, 1, offset, len as usize).is_some(),
                disk.discard(offset, len).is_err(),
                disk.write_zeroes(offset, len, true).is_err(),
            ];
            assert_eq!(outcomes, [fails; 3], "{sector} {sectors}");
        }
        disk.flush().unwrap();
    }

    #[test]
    fn what_is_torn_is_done_in_part_whatever_is_said_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let faults = BlockFaults::default();
        let disk = disk(folder.path(), &faults);
        for (then, said) in [
            (Torn::Fails(libc::EIO), Some(libc::EIO)),
            (Torn::Succeeds, None),
        ] {
            write(&disk, 0, 0, 8192);
            // In the second of the two pieces, and in the first.
            for bytes in [5000, 100, 0] {
                let torn = BlockEffect::Tear { bytes, then };
                faults.set([fault(BlockOp::Write, When::Nth(1), torn)]);
                let byte = bytes as u8 | 1;
                assert_eq!(write(&disk, byte, 0, 8192), said);
                assert_eq!(count(&disk, byte, 0, 8192), bytes as usize);
            }
            let torn = BlockEffect::Tear { bytes: 700, then };
            faults.clear();
            write(&disk, 9, 0, 2048);
            faults.set([fault(BlockOp::Write, When::Nth(1), torn)]);
            let zeroed = disk.write_zeroes(0, 2048, false);
            assert_eq!(zeroed.is_err(), said.is_some());
            assert_eq!(count(&disk, 0, 0, 2048), 512);
            faults.set([fault(BlockOp::Read, When::Nth(1), torn)]);
            let mut bytes = [1; 2048];
            let read = disk.read_at(&[(&mut bytes[..]).into()], 512);
            assert_eq!(read.is_err(), said.is_some());
            assert!(bytes[..700].iter().all(|it| *it == 9));
            assert!(bytes[700..].iter().all(|it| *it == 1));
        }
    }

    #[test]
    fn a_flush_that_failed_is_never_forgotten_and_one_may_lie() {
        let folder = tempfile::tempdir().unwrap();
        let lie = BlockEffect::Tear {
            bytes: 0,
            then: Torn::Succeeds,
        };
        let faults = BlockFaults::new([fault(BlockOp::Flush, When::Nth(1), lie)]);
        let disk = disk(folder.path(), &faults);
        disk.flush().unwrap();
        faults.set([fault(
            BlockOp::Flush,
            When::Nth(2),
            BlockEffect::Fail(libc::EIO),
        )]);
        disk.flush().unwrap();
        assert_eq!(disk.flush().unwrap_err().raw_os_error(), Some(libc::EIO));
        faults.clear();
        disk.flush().unwrap_err();
        assert_eq!(write(&disk, 1, 0, 512), None);
    }

    #[test]
    fn a_delay_ends_by_itself_or_with_its_plan() {
        let folder = tempfile::tempdir().unwrap();
        let delay = |delay| fault(BlockOp::Write, When::Nth(1), BlockEffect::Delay(delay));
        let faults = BlockFaults::new([
            delay(Duration::from_millis(1)),
            fault(BlockOp::Write, When::Nth(1), BlockEffect::Fail(libc::EIO)),
        ]);
        let disk = disk(folder.path(), &faults);
        // Late, and then failed.
        assert_eq!(write(&disk, 1, 0, 512), Some(libc::EIO));
        assert_eq!(faults.struck(), 2);
        faults.set([delay(Duration::MAX)]);
        thread::scope(|scope| {
            let writer = scope.spawn(|| write(&disk, 1, 0, 512));
            while faults.struck() == 2 {
                thread::yield_now();
            }
            faults.clear();
            assert_eq!(writer.join().unwrap(), None);
        });
    }
}
