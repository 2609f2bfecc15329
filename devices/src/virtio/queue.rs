//! Queues in use: taking descriptor chains from the available ring, and giving them back on the used ring. Virtio 1.2,
//! section 2.7.
//!
//! The rings' indices and events are `virtio-queue`'s. Chains are walked here, because its iterator ends a malformed chain
//! where it turns bad and cannot be told from a good one. Every descriptor is read once, into host memory; what a guest
//! changes afterwards has no effect. A rule broken is a [`QueueError`]: the device then needs a reset.

mod poll;
mod takeover;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use thiserror::Error;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress,
    VolatileSlice,
};

use self::poll::Poll;
use super::device::{ActivateError, GuestMemory, InterruptSource, VirtioInterrupt, WorkerError};
use super::notification::Notification;

/// The most descriptors in a chain, indirect ones included: as many as the largest queue has.
pub const MAX_CHAIN: usize = 1024;
/// The largest queue.
pub const MAX_QUEUE_SIZE: u16 = 1024;

const DESCRIPTOR_SIZE: u64 = 16;
const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;
const AVAIL_F_NO_INTERRUPT: u16 = 1;

/// How a driver can break a queue.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum QueueError {
    /// More entries are available than the ring has.
    #[error("the available ring cannot be read: {0}")]
    Ring(String),
    /// A chain begins beyond the descriptor table.
    #[error("head {head} is beyond the queue's {size} descriptors")]
    Head {
        /// The head.
        head: u16,
        /// The queue's size.
        size: u16,
    },
    /// A chain is made available again while the device has it.
    #[error("head {head} is made available while the device has it")]
    InFlight {
        /// The head.
        head: u16,
    },
    /// `next` points beyond the table.
    #[error("a descriptor of chain {head} points to {next}, beyond the table")]
    Next {
        /// The chain's head.
        head: u16,
        /// Where it points.
        next: u16,
    },
    /// The chain has a cycle, or more descriptors than a queue.
    #[error("chain {head} is longer than {MAX_CHAIN} descriptors or a cycle")]
    TooLong {
        /// The chain's head.
        head: u16,
    },
    /// An indirect table is empty, no multiple of 16 bytes, too long, has a successor, or is inside another.
    #[error("chain {head} has a bad indirect table of {len} bytes")]
    Indirect {
        /// The chain's head.
        head: u16,
        /// The table's length.
        len: u32,
    },
    /// A buffer for the device to read follows one for it to write.
    #[error("chain {head} has a readable buffer behind a writable one")]
    Order {
        /// The chain's head.
        head: u16,
    },
    /// A buffer or a table is not in RAM, or all buffers together have 4 GiB or more.
    #[error("chain {head}: {len:#x} bytes at {address:#x} are not guest memory")]
    Memory {
        /// The chain's head.
        head: u16,
        /// Guest-physical address.
        address: u64,
        /// Length.
        len: u32,
    },
}

impl QueueError {
    /// The kinds, in a word each, for counting them.
    pub const KINDS: [&'static str; 8] = [
        "ring",
        "head",
        "in-flight",
        "next",
        "too-long",
        "indirect",
        "order",
        "memory",
    ];

    /// Its kind's place in [`Self::KINDS`].
    pub fn kind(&self) -> usize {
        match self {
            Self::Ring(_) => 0,
            Self::Head { .. } => 1,
            Self::InFlight { .. } => 2,
            Self::Next { .. } => 3,
            Self::TooLong { .. } => 4,
            Self::Indirect { .. } => 5,
            Self::Order { .. } => 6,
            Self::Memory { .. } => 7,
        }
    }
}

/// A piece of guest memory that a chain names; all of it is RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Where it starts.
    pub address: GuestAddress,
    /// Its length in bytes.
    pub len: u32,
}

/// The host's memory behind `len` bytes at `address`, where one region of RAM has them all, as is all but always so.
fn contiguous(
    memory: &GuestMemory,
    address: GuestAddress,
    len: usize,
) -> Option<VolatileSlice<'_>> {
    let region = memory.find_region(address)?;
    let offset = address.checked_offset_from(region.start_addr())?;
    region.get_slice(MemoryRegionAddress(offset), len).ok()
}

/// Calls `use_it` with the host's memory behind `len` bytes of `buffers`, from `skip` on; in one piece where it is one.
pub fn with_slices<T>(
    memory: &GuestMemory,
    buffers: &[Buffer],
    skip: u32,
    len: u32,
    use_it: impl FnOnce(&[VolatileSlice<'_>]) -> T,
) -> T {
    let mut before = 0;
    for buffer in buffers {
        if skip - before < buffer.len {
            let (start, room) = (skip - before, buffer.len - (skip - before));
            let address = GuestAddress(buffer.address.0 + u64::from(start));
            if room >= len
                && let Some(slice) = contiguous(memory, address, len as usize)
            {
                return use_it(&[slice]);
            }
            break;
        }
        before += buffer.len;
    }
    use_it(&slices(memory, buffers, skip, len))
}

/// The host's memory behind `len` bytes of `buffers`, from `skip` on, in as many pieces as it takes.
pub fn slices<'a>(
    memory: &'a GuestMemory,
    buffers: &[Buffer],
    skip: u32,
    len: u32,
) -> Vec<VolatileSlice<'a>> {
    let mut found = Vec::with_capacity(buffers.len());
    each_slice(memory, buffers, skip, len, |slice| found.push(slice));
    found
}

/// Gives each of the pieces of [`slices`] to `take`.
pub fn each_slice<'a>(
    memory: &'a GuestMemory,
    buffers: &[Buffer],
    skip: u32,
    len: u32,
    mut take: impl FnMut(VolatileSlice<'a>),
) {
    let (mut skip, mut left) = (skip, len);
    for buffer in buffers {
        let start = skip.min(buffer.len);
        skip -= start;
        let part = (buffer.len - start).min(left);
        left -= part;
        if part == 0 {
            continue;
        }
        let address = GuestAddress(buffer.address.0 + u64::from(start));
        if let Some(slice) = contiguous(memory, address, part as usize) {
            take(slice);
            continue;
        }
        // A buffer that goes from one region of RAM to the next has several slices.
        GuestMemoryBackend::get_slices(memory, address, part as usize)
            .filter_map(Result::ok)
            .for_each(&mut take);
    }
}

/// A descriptor chain, taken apart. Reused from one request to the next.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
}

impl Chain {
    /// An empty one, to be filled by [`ActiveQueue::pop`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Its first descriptor, by which it is given back.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the driver wrote for the device. No buffer is empty.
    pub fn readable(&self) -> &[Buffer] {
        &self.readable
    }

    /// Where the device may write. No buffer is empty.
    pub fn writable(&self) -> &[Buffer] {
        &self.writable
    }

    /// Copies the first bytes of the readable part; how many there were.
    pub fn read_start(&self, memory: &GuestMemory, data: &mut [u8]) -> usize {
        let mut done = 0;
        for buffer in &self.readable {
            let rest = &mut data[done..];
            let len = rest.len().min(buffer.len as usize);
            if len == 0 {
                break;
            }
            match contiguous(memory, buffer.address, len) {
                Some(slice) => slice.copy_to(&mut rest[..len]),
                // The buffers are RAM, which never goes away: this cannot fail.
                None if memory.read_slice(&mut rest[..len], buffer.address).is_ok() => len,
                None => break,
            };
            done += len;
        }
        done
    }

    /// Copies `data` to the start of the writable part; how much there was room for.
    pub fn write_start(&self, memory: &GuestMemory, data: &[u8]) -> usize {
        let len = data.len().min(self.writable_len() as usize);
        let mut rest = &data[..len];
        for slice in slices(memory, &self.writable, 0, len as u32) {
            let (now, later) = rest.split_at(slice.len());
            slice.copy_from(now);
            rest = later;
        }
        len - rest.len()
    }

    /// Bytes to read; below 4 GiB.
    pub fn readable_len(&self) -> u32 {
        self.readable.iter().map(|buffer| buffer.len).sum()
    }

    /// Bytes to write; below 4 GiB.
    pub fn writable_len(&self) -> u32 {
        self.writable.iter().map(|buffer| buffer.len).sum()
    }
}

/// A set of heads: one bit for each descriptor of the largest queue.
#[derive(Debug, Default)]
struct HeadSet([u64; MAX_QUEUE_SIZE as usize / 64]);

impl HeadSet {
    fn place(head: u16) -> (usize, u64) {
        (
            usize::from(head / 64) % (MAX_QUEUE_SIZE as usize / 64),
            1 << (head % 64),
        )
    }

    fn contains(&self, head: u16) -> bool {
        let (word, bit) = Self::place(head);
        self.0[word] & bit != 0
    }

    fn insert(&mut self, head: u16) {
        let (word, bit) = Self::place(head);
        self.0[word] |= bit;
    }

    fn remove(&mut self, head: u16) {
        let (word, bit) = Self::place(head);
        self.0[word] &= !bit;
    }
}

/// A queue that the driver has set up, as a worker has it.
pub struct ActiveQueue {
    index: u16,
    queue: Queue,
    memory: GuestMemory,
    interrupt: Arc<dyn VirtioInterrupt>,
    notification: Arc<Notification>,
    /// Heads of chains that were taken and not given back.
    in_flight: HeadSet,
    /// Chains were given back since the last interrupt was considered.
    used: bool,
    poll: Poll,
}

impl ActiveQueue {
    /// Checks that the rings are in guest memory.
    ///
    /// # Errors
    /// [`ActivateError::BadQueue`].
    pub fn new(
        index: u16,
        queue: Queue,
        memory: GuestMemory,
        interrupt: Arc<dyn VirtioInterrupt>,
        notification: Arc<Notification>,
    ) -> Result<Self, ActivateError> {
        if !queue.is_valid(&memory) || queue.size() > MAX_QUEUE_SIZE {
            return Err(ActivateError::BadQueue { index });
        }
        Ok(Self {
            index,
            queue,
            memory,
            interrupt,
            notification,
            in_flight: HeadSet::default(),
            used: false,
            poll: Poll::default(),
        })
    }

    /// The number of its descriptors: at most so many chains can be available at once.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Its number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Where its rings are, and where in them the device is.
    pub(crate) fn ring(&self) -> &Queue {
        &self.queue
    }

    /// Where in the available ring the next chain is, after somebody else took chains.
    pub(crate) fn set_next_avail(&mut self, index: u16) {
        self.queue.set_next_avail(index);
    }

    /// The event by which the driver notifies.
    pub(crate) fn notification(&self) -> &Notification {
        &self.notification
    }

    /// The memory that its chains point to.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Takes the next chain; `false` when the driver has made no more available.
    ///
    /// # Errors
    /// The driver broke the queue; `chain` is then of no use.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, WorkerError> {
        let head = self.next_head().map_err(|source| self.broken(source))?;
        let Some(head) = head else {
            return Ok(false);
        };
        self.walk(head, chain)
            .map_err(|source| self.broken(source))?;
        self.in_flight.insert(head);
        Ok(true)
    }

    /// Puts the chain that was taken last back into the available ring. Of several, the one taken last goes back first.
    pub fn undo_pop(&mut self, head: u16) {
        self.in_flight.remove(head);
        let before = self.queue.next_avail().wrapping_sub(1);
        self.queue.set_next_avail(before);
    }

    fn broken(&self, source: QueueError) -> WorkerError {
        self.notification.metrics().fault(&source);
        WorkerError::Queue {
            index: self.index,
            source,
        }
    }

    fn next_head(&mut self) -> Result<Option<u16>, QueueError> {
        let unreadable = |err: virtio_queue::Error| QueueError::Ring(err.to_string());
        let mut available = self.queue.iter(&self.memory).map_err(unreadable)?;
        let Some(head) = available.next().map(|chain| chain.head_index()) else {
            return Ok(None);
        };
        let size = self.queue.size();
        if head >= size {
            return Err(QueueError::Head { head, size });
        }
        if self.in_flight.contains(head) {
            return Err(QueueError::InFlight { head });
        }
        Ok(Some(head))
    }

    fn walk(&self, head: u16, chain: &mut Chain) -> Result<(), QueueError> {
        chain.head = head;
        chain.readable.clear();
        chain.writable.clear();
        let mut table = (self.queue.desc_table(), self.queue.size());
        let mut indirect = false;
        let mut index = head;
        let mut total = 0_u32;
        for _ in 0..MAX_CHAIN {
            let descriptor = self.descriptor(head, table.0, index)?;
            let (address, len, flags) = (descriptor.addr(), descriptor.len(), descriptor.flags());
            if flags & F_INDIRECT != 0 {
                let entries = u64::from(len) / DESCRIPTOR_SIZE;
                let bad = indirect
                    || flags & F_NEXT != 0
                    || len == 0
                    || u64::from(len) % DESCRIPTOR_SIZE != 0
                    || entries > MAX_CHAIN as u64;
                if bad {
                    return Err(QueueError::Indirect { head, len });
                }
                table = (address.0, entries as u16);
                indirect = true;
                index = 0;
                continue;
            }
            total = total.checked_add(len).ok_or(QueueError::Memory {
                head,
                address: address.0,
                len,
            })?;
            self.add(chain, Buffer { address, len }, flags & F_WRITE != 0)?;
            if flags & F_NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next();
            if index >= table.1 {
                return Err(QueueError::Next { head, next: index });
            }
        }
        Err(QueueError::TooLong { head })
    }

    fn descriptor(&self, head: u16, table: u64, index: u16) -> Result<Descriptor, QueueError> {
        let address = table.checked_add(u64::from(index) * DESCRIPTOR_SIZE);
        let outside = QueueError::Memory {
            head,
            address: address.unwrap_or(table),
            len: DESCRIPTOR_SIZE as u32,
        };
        match address {
            Some(address) => {
                let table = contiguous(
                    &self.memory,
                    GuestAddress(address),
                    DESCRIPTOR_SIZE as usize,
                );
                table
                    .and_then(|entry| entry.read_obj(0).ok())
                    .ok_or(outside)
            }
            None => Err(outside),
        }
    }

    fn add(&self, chain: &mut Chain, buffer: Buffer, writable: bool) -> Result<(), QueueError> {
        let head = chain.head;
        if !writable && !chain.writable.is_empty() {
            return Err(QueueError::Order { head });
        }
        if buffer.len == 0 {
            return Ok(());
        }
        let (address, len) = (buffer.address, buffer.len as usize);
        if contiguous(&self.memory, address, len).is_none()
            && !GuestMemoryBackend::check_range(&self.memory, address, len)
        {
            return Err(QueueError::Memory {
                head,
                address: buffer.address.0,
                len: buffer.len,
            });
        }
        let list = if writable {
            &mut chain.writable
        } else {
            &mut chain.readable
        };
        list.push(buffer);
        Ok(())
    }

    /// Gives a chain back, of which `written` bytes were written from the start of its writable part. The driver learns of
    /// it with [`Self::notify`].
    ///
    /// # Errors
    /// The used ring cannot be written.
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), WorkerError> {
        self.in_flight.remove(head);
        self.used = true;
        self.notification.metrics().requests.add_owned(1);
        self.queue
            .add_used(&self.memory, head, written)
            .map_err(|err| self.broken(QueueError::Ring(err.to_string())))
    }

    /// Interrupts the driver, if it wants to know of the chains that were given back since the last time. Once for a batch.
    ///
    /// # Errors
    /// The rings cannot be read, or the host cannot interrupt.
    pub fn notify(&mut self) -> Result<(), WorkerError> {
        if !std::mem::take(&mut self.used) {
            return Ok(());
        }
        let wanted = if self.queue.event_idx_enabled() {
            self.queue
                .needs_notification(&self.memory)
                .map_err(|err| self.broken(QueueError::Ring(err.to_string())))?
        } else {
            // The used index must be visible before the driver's flag is read.
            std::sync::atomic::fence(Ordering::SeqCst);
            self.avail_flags()? & AVAIL_F_NO_INTERRUPT == 0
        };
        if wanted {
            self.interrupt
                .trigger(InterruptSource::Queue(self.index))
                .map_err(WorkerError::Host)?;
        }
        Ok(())
    }

    fn avail_flags(&self) -> Result<u16, WorkerError> {
        self.memory
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(|err| self.broken(QueueError::Ring(err.to_string())))
    }

    /// Asks the driver to notify again; `true` when chains came in meanwhile, of which it will not.
    ///
    /// # Errors
    /// The rings cannot be written.
    pub fn enable_notification(&mut self) -> Result<bool, WorkerError> {
        self.queue
            .enable_notification(&self.memory)
            .map_err(|err| self.broken(QueueError::Ring(err.to_string())))
    }

    /// Tells the driver that it need not notify.
    ///
    /// # Errors
    /// The rings cannot be written.
    pub fn disable_notification(&mut self) -> Result<(), WorkerError> {
        self.queue
            .disable_notification(&self.memory)
            .map_err(|err| self.broken(QueueError::Ring(err.to_string())))
    }

    /// Has the worker called again for this queue, after the others on its thread had their turn.
    ///
    /// # Errors
    /// The host's.
    pub fn come_back(&self) -> Result<(), WorkerError> {
        self.notification.ring().map_err(WorkerError::Host)
    }

    /// Watches the ring for up to `window` after its last chain, while its chains come closely; never, where it is zero. The
    /// thread does nothing else meanwhile, so that a window is some tens of microseconds at most.
    pub fn set_poll(&mut self, window: Duration) {
        self.poll.window = window;
    }

    /// A notification has come, and no other is needed before [`Self::rest`].
    ///
    /// # Errors
    /// The rings cannot be written.
    pub fn wake(&mut self) -> Result<(), WorkerError> {
        self.poll.woken();
        self.disable_notification()
    }

    /// Nothing is left to do: watches the ring for a moment, if its chains come closely, and then asks the driver to notify.
    /// `true` when there is a chain, or when `or_else`, which is asked meanwhile, says that there is something else to do.
    ///
    /// # Errors
    /// The rings cannot be read or written.
    pub fn rest(&mut self, or_else: impl FnMut() -> bool) -> Result<bool, WorkerError> {
        if self.watch(or_else)? {
            return Ok(true);
        }
        if self.enable_notification()? {
            self.disable_notification()?;
            return Ok(true);
        }
        self.poll.ask();
        Ok(false)
    }

    /// Watches the ring; whether there is a chain, or something else.
    fn watch(&mut self, mut or_else: impl FnMut() -> bool) -> Result<bool, WorkerError> {
        if !self.poll.busy {
            return Ok(false);
        }
        let start = Instant::now();
        loop {
            let available = self
                .queue
                .avail_idx(&self.memory, Ordering::Acquire)
                .map_err(|err| self.broken(QueueError::Ring(err.to_string())))?;
            if available.0 != self.queue.next_avail() || or_else() {
                self.poll.hit();
                return Ok(true);
            }
            if start.elapsed() >= self.poll.window {
                self.poll.missed();
                return Ok(false);
            }
            std::hint::spin_loop();
        }
    }

    /// Takes chains, has each answered, gives them back and interrupts once: at most as many as the queue has, so that a
    /// driver that keeps it full does not keep the thread.
    ///
    /// `answer` returns how many bytes it wrote to the chain.
    ///
    /// # Errors
    /// What `answer` returns, and what breaks the queue.
    pub fn serve(
        &mut self,
        chain: &mut Chain,
        mut answer: impl FnMut(&Chain, &GuestMemory) -> Result<u32, WorkerError>,
    ) -> Result<(), WorkerError> {
        let mut budget = self.queue.size();
        self.wake()?;
        loop {
            while budget > 0 && self.pop(chain)? {
                budget -= 1;
                let written = answer(chain, &self.memory)?;
                self.push(chain.head, written)?;
            }
            self.notify()?;
            if budget == 0 {
                return self.come_back();
            }
            if !self.rest(|| false)? {
                return Ok(());
            }
        }
    }
}
