//! Asynchronous I/O on one file by io_uring(7): reads, writes and flushes of which many are under way at once.
//!
//! A ring is made before the guest runs, and handed from one worker of a device to the next; any thread may use it, one at a
//! time. The memory that it reads and writes is attached to it, and stays mapped until nothing is in
//! flight: only data that lies in there is taken. What the host moves in part is carried on with here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{Ordering, fence};

use io_uring::{EnterFlags, IoUring, opcode, squeue, types};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

/// The most pieces that one operation takes (IOV_MAX).
const MAX_PIECES: usize = 1024;
/// The most bytes that one operation moves: the host's own limit.
const MAX_BYTES: usize = 0x7fff_f000;
/// Pieces for which a slot keeps its memory from one operation to the next.
const KEPT_PIECES: usize = 16;
/// The only file that the ring knows.
const FILE: types::Fixed = types::Fixed(0);

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Read,
    Write,
    Sync,
}

/// A piece of memory, as the host wants it.
#[repr(transparent)]
struct Piece(libc::iovec);

// SAFETY: an address and a length. What they name is guest memory, which every thread may touch.
unsafe impl Send for Piece {}

/// A place for an operation, from its submission to its end.
struct Slot<T> {
    /// None while it is free.
    what: Option<T>,
    operation: Operation,
    offset: u64,
    pieces: Vec<Piece>,
    /// Pieces that are done with.
    done: usize,
    /// The host is to take its time, having said that it cannot do it at once.
    patient: bool,
}

impl<T> Slot<T> {
    fn new() -> Self {
        Self {
            what: None,
            operation: Operation::Sync,
            offset: 0,
            pieces: Vec::new(),
            done: 0,
            patient: false,
        }
    }

    /// The pieces that are left, as many as one operation takes.
    fn rest(&self) -> &[Piece] {
        let rest = self.pieces.get(self.done..).unwrap_or_default();
        &rest[..rest.len().min(MAX_PIECES)]
    }

    /// So many bytes have been moved; whether that was all.
    fn advance(&mut self, mut moved: usize) -> bool {
        self.offset += moved as u64;
        while let Some(Piece(first)) = self.pieces.get_mut(self.done) {
            if moved < first.iov_len {
                first.iov_base = first.iov_base.wrapping_byte_add(moved);
                first.iov_len -= moved;
                return false;
            }
            moved -= first.iov_len;
            self.done += 1;
        }
        true
    }
}

/// A ring on one file. `T` is what the caller wants to be told with the end of an operation.
pub struct DiskRing<T: Copy> {
    ring: IoUring,
    /// Tells of completions while nobody looks for them.
    event: EventFd,
    /// The host says when completions wait for the thread to enter the kernel (IORING_SETUP_TASKRUN_FLAG).
    flagged: bool,
    slots: Vec<Slot<T>>,
    free: Vec<usize>,
    /// Entries that the host has not taken yet.
    queued: usize,
    memory: Option<GuestMemoryMmap<()>>,
    /// Where `memory` is: first and last address of each of its regions.
    ranges: Vec<(usize, usize)>,
}

impl<T: Copy> DiskRing<T> {
    /// A ring for `file`, which it keeps open, with at most `depth` operations at once: a power of two.
    ///
    /// # Errors
    /// The host's: it has no io_uring, or does not let us have it.
    pub fn new(file: BorrowedFd<'_>, depth: u16) -> io::Result<Self> {
        // Completions wait until the thread enters the kernel, and do not interrupt it (Linux 5.19); the plain kind is for hosts
        // before. Not IORING_SETUP_SINGLE_ISSUER: a worker is stopped by other threads than the one that it works on.
        let (ring, flagged) = match IoUring::builder()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .build(depth.into())
        {
            Err(err) if err.raw_os_error() == Some(libc::EINVAL) => {
                (IoUring::new(depth.into())?, false)
            }
            result => (result?, true),
        };
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Self {
            ring,
            event,
            flagged,
            slots: (0..depth).map(|_| Slot::new()).collect(),
            free: (0..usize::from(depth)).collect(),
            queued: 0,
            memory: None,
            ranges: Vec::new(),
        })
    }

    /// Becomes readable when an operation has ended, once [`Self::listen`] has asked for it, and stays so: to be waited for by its
    /// edges. There is nothing to read.
    pub fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// Somebody looks for completions by himself from now on.
    pub fn wake(&mut self) {
        self.ring.completion().disable_eventfd();
    }

    /// Nobody looks any more: asks to be told. What has ended before counts.
    pub fn listen(&mut self) {
        if self.is_idle() {
            return;
        }
        self.ring.completion().enable_eventfd();
        fence(Ordering::SeqCst);
        if self.is_ready() {
            // The only error is a counter that is full, which is readable, too.
            let _ = self.event.write(1);
        }
    }

    /// Lets operations reach `memory`, until [`Self::detach`].
    pub fn attach(&mut self, memory: &GuestMemoryMmap<()>) {
        self.detach();
        self.ranges = memory
            .iter()
            .map(|region| {
                let start = region.as_ptr() as usize;
                (start, start + (region.len() - 1) as usize)
            })
            .collect();
        self.memory = Some(memory.clone());
    }

    /// Waits for what is in flight, forgets it, and lets go of the memory.
    pub fn detach(&mut self) {
        while !self.is_idle() {
            if let Err(err) = self.wait() {
                log::error!("cannot wait for a disk's requests: {err}");
                // The host may still write there.
                std::mem::forget(self.memory.take());
                break;
            }
            while self.reap().is_some() {}
        }
        self.memory = None;
        self.ranges.clear();
    }

    /// Whether one operation more can be begun.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether something waits for [`Self::submit`].
    pub fn has_queued(&self) -> bool {
        self.queued > 0
    }

    /// Whether nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Begins to fill `data` from `offset` on.
    ///
    /// # Errors
    /// There is no room, or `data` is not in the attached memory; nothing has begun.
    pub fn read(&mut self, what: T, data: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        self.begin(Operation::Read, what, data, offset)
    }

    /// Begins to write `data` at `offset`.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub fn write(&mut self, what: T, data: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        self.begin(Operation::Write, what, data, offset)
    }

    /// Begins to make safe what has been written by operations that have ended.
    ///
    /// # Errors
    /// There is no room.
    pub fn sync(&mut self, what: T) -> io::Result<()> {
        self.begin(Operation::Sync, what, &[], 0)
    }

    fn begin(
        &mut self,
        operation: Operation,
        what: T,
        data: &[VolatileSlice<'_>],
        offset: u64,
    ) -> io::Result<()> {
        for slice in data {
            let start = slice.ptr_guard().as_ptr() as usize;
            let end = start + slice.len().saturating_sub(1);
            let held = |(first, last): &(usize, usize)| *first <= start && end <= *last;
            if !self.ranges.iter().any(held) {
                return Err(io::Error::from_raw_os_error(libc::EFAULT));
            }
        }
        let index = self.free.pop().ok_or(io::ErrorKind::WouldBlock)?;
        let slot = &mut self.slots[index];
        slot.what = Some(what);
        slot.operation = operation;
        slot.offset = offset;
        slot.done = 0;
        slot.patient = false;
        slot.pieces.clear();
        slot.pieces
            .extend(data.iter().filter(|slice| !slice.is_empty()).map(|slice| {
                Piece(libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                })
            }));
        self.push(index);
        Ok(())
    }

    /// Queues what is left of an operation for the next [`Self::submit`].
    fn push(&mut self, index: usize) {
        let slot = &self.slots[index];
        let rest = slot.rest();
        let entry = match (slot.operation, rest) {
            (Operation::Sync, _) => opcode::Fsync::new(FILE)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            (Operation::Read, [Piece(one)]) => {
                let len = one.iov_len.min(MAX_BYTES) as u32;
                opcode::Read::new(FILE, one.iov_base.cast(), len)
                    .offset(slot.offset)
                    .build()
            }
            (Operation::Write, [Piece(one)]) => {
                let len = one.iov_len.min(MAX_BYTES) as u32;
                opcode::Write::new(FILE, one.iov_base.cast(), len)
                    .offset(slot.offset)
                    .build()
            }
            (Operation::Read, many) => {
                opcode::Readv::new(FILE, many.as_ptr().cast(), many.len() as u32)
                    .offset(slot.offset)
                    .build()
            }
            (Operation::Write, many) => {
                opcode::Writev::new(FILE, many.as_ptr().cast(), many.len() as u32)
                    .offset(slot.offset)
                    .build()
            }
        };
        let flags = if slot.patient {
            squeue::Flags::ASYNC
        } else {
            squeue::Flags::empty()
        };
        let entry = entry.flags(flags).user_data(index as u64);
        // SAFETY: the slot keeps the pieces, and `memory` what they name, until the operation has ended. There is room: the
        // ring has as many entries as there are slots, and a slot has one at a time.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        debug_assert!(pushed.is_ok());
        self.queued += 1;
    }

    /// Hands what is queued to the host, all in one call, and has it deliver what has ended. No call where there is neither.
    ///
    /// # Errors
    /// The host's; then nothing more comes of this ring.
    pub fn submit(&mut self) -> io::Result<()> {
        if self.queued == 0 && self.flagged && self.ring.submission().taskrun() {
            return self.enter(0);
        }
        while self.queued > 0 {
            match self.enter(0) {
                // Too much is under way for the host: one less, and it goes on.
                Err(err) if is_busy(&err) && self.free.len() + self.queued < self.slots.len() => {
                    self.enter_to_wait()?;
                    // What has ended must be taken first.
                    return Ok(());
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// Hands over what is queued and waits until an operation has ended.
    ///
    /// # Errors
    /// As for [`Self::submit`].
    pub fn wait(&mut self) -> io::Result<()> {
        self.submit()?;
        if self.ring.completion().is_empty() {
            self.enter_to_wait()?;
        }
        Ok(())
    }

    fn enter_to_wait(&mut self) -> io::Result<()> {
        match self.enter(1) {
            Err(err) if is_busy(&err) && !self.ring.completion().is_empty() => Ok(()),
            result => result,
        }
    }

    fn enter(&mut self, want: u32) -> io::Result<()> {
        loop {
            let flags = EnterFlags::GETEVENTS.bits();
            let queued = self.queued as u32;
            // SAFETY: no argument besides numbers; the entries' memory is valid, as `push` says.
            let taken = unsafe {
                self.ring
                    .submitter()
                    .enter::<libc::sigset_t>(queued, want, flags, None)
            };
            match taken {
                Ok(taken) => {
                    self.queued = self.queued.saturating_sub(taken);
                    return Ok(());
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
    }

    /// Whether there is something for [`Self::submit`] or [`Self::reap`] to do.
    pub fn is_ready(&mut self) -> bool {
        !self.ring.completion().is_empty() || self.flagged && self.ring.submission().taskrun()
    }

    /// An operation that has ended, in whatever order; what the host did of it in part is queued again.
    pub fn reap(&mut self) -> Option<(T, io::Result<()>)> {
        loop {
            let entry = self.ring.completion().next()?;
            let index = entry.user_data() as usize;
            let slot = self.slots.get_mut(index)?;
            let result = match entry.result() {
                again if again == -libc::EINTR || again == -libc::EAGAIN => {
                    slot.patient = true;
                    self.push(index);
                    continue;
                }
                error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
                moved if slot.advance(moved as usize) => Ok(()),
                // The file is shorter than it was.
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                _ => {
                    self.push(index);
                    continue;
                }
            };
            if slot.pieces.capacity() > KEPT_PIECES {
                slot.pieces = Vec::new();
            }
            let what = slot.what.take()?;
            self.free.push(index);
            return Some((what, result));
        }
    }
}

/// The host is short of something, for now.
fn is_busy(err: &io::Error) -> bool {
    matches!(err.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY))
}

impl<T: Copy> Drop for DiskRing<T> {
    fn drop(&mut self) {
        self.detach();
        // The host takes a ring apart some time after it was closed, and would keep the file and its lock until then.
        if let Err(err) = self.ring.submitter().unregister_files() {
            log::debug!("a ring keeps its file for a moment: {err}");
        }
    }
}
