//! The console device. Virtio 1.2, section 5.3: one port, whose receive queue (0) takes what is typed and whose transmit queue
//! (1) has what the guest prints.
//!
//! `link` is the host's half, which outlives the guest's resets and restarts; here are the rings.
//!
//! A driver of Linux's spins while it waits for what it printed to be taken. So a reader that stands still is waited for as
//! long as it makes progress, and [`STALL_LIMIT`] longer; then it is given up until it reads again: what does not fit is dropped
//! and counted. The thread itself never waits. What is typed waits in the link, and before that wherever it comes from.
//!
//! Linux looks at the size only when it is told that it has changed, and takes no notice while its port is half-way there. So it is told
//! of the first one, too, and a few times, when it prints (`SizeNews`).
//!
//! A port of the driver's own (F_MULTIPORT) is not offered.

mod link;
#[cfg(test)]
mod tests;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::EventSet;

use super::ConfigNotifier;
use super::device::{
    ActivateError, ActivationContext, EventSource, VirtioDevice, VirtioDeviceType, VirtioWorker,
    WorkerError, read_space,
};
use super::metrics::DeviceMetrics;
use super::queue::{ActiveQueue, Chain, with_slices};
use crate::console::STALL_LIMIT;
use crate::metrics::Tally;

pub use link::ConsoleLink;

/// Feature bits (5.3.3).
pub mod features {
    /// `cols` and `rows` are valid.
    pub const SIZE: u64 = 1 << 0;
    /// `emerg_wr` may be written.
    pub const EMERG_WRITE: u64 = 1 << 2;
}

const RX: u16 = 0;
const TX: u16 = 1;
const QUEUE_SIZES: &[u16] = &[64, 64];
const CONFIG_SIZE: usize = 12;
/// Where a driver writes a byte without a queue.
const EMERG_WR: u64 = 8;

/// Bytes that are moved at a time.
const PIECE: u32 = 4096;
/// Bytes that one call takes from the guest before others on the thread have their turn.
const BATCH: u32 = 64 << 10;

/// Events of the worker.
mod token {
    /// Something was typed.
    pub(super) const INPUT: u32 = 0;
    /// The reader has made room.
    pub(super) const ROOM: u32 = 1;
    /// It has made none for too long.
    pub(super) const STALL: u32 = 2;
}

/// The console device.
pub struct Console {
    link: Arc<ConsoleLink>,
}

impl Console {
    /// The device at the guest's end of `link`.
    pub fn new(link: Arc<ConsoleLink>) -> Self {
        Self { link }
    }
}

impl VirtioDevice for Console {
    fn attach(&mut self, config: ConfigNotifier) {
        self.link.attach(config);
    }

    fn device_type(&self) -> VirtioDeviceType {
        VirtioDeviceType::CONSOLE
    }

    fn device_features(&self) -> u64 {
        match self.link.size() {
            Some(_) => features::SIZE | features::EMERG_WRITE,
            // A size that is none must not look like one.
            None => features::EMERG_WRITE,
        }
    }

    fn queue_max_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let (cols, rows) = self.link.size().unwrap_or_default();
        let mut space = [0; CONFIG_SIZE];
        space[0..2].copy_from_slice(&cols.to_le_bytes());
        space[2..4].copy_from_slice(&rows.to_le_bytes());
        read_space(&space, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if offset == EMERG_WR
            && let [byte, ..] = data
        {
            self.link.output().offer_or_drop(&[*byte]);
        }
    }

    fn activate(
        &mut self,
        context: ActivationContext,
    ) -> Result<Box<dyn VirtioWorker>, ActivateError> {
        let mut queues = context.queues.into_iter();
        let mut queue = |index| {
            queues
                .next()
                .filter(|queue| queue.index() == index)
                .ok_or(ActivateError::MissingQueue { index })
        };
        Ok(Box::new(ConsoleWorker {
            rx: queue(RX)?,
            tx: queue(TX)?,
            rx_chain: Chain::new(),
            tx_chain: Chain::new(),
            tx_done: None,
            size_news: self.link.size().map(|_| SizeNews::new()),
            piece: Vec::with_capacity(PIECE as usize),
            link: self.link.clone(),
            bad_buffers: context.metrics.guest_fault("bad-buffer"),
            metrics: context.metrics,
        }))
    }
}

/// When to tell a driver of the terminal's size, which has not changed: when it prints, at growing distances.
struct SizeNews {
    next: Instant,
    distance: Duration,
}

impl SizeNews {
    const FIRST: Duration = Duration::from_millis(250);
    const LAST: Duration = Duration::from_secs(8);

    fn new() -> Self {
        Self {
            next: Instant::now(),
            distance: Self::FIRST,
        }
    }

    /// Whether now is the time; `None` when there is none any more.
    fn is_due(&mut self) -> Option<bool> {
        let now = Instant::now();
        if now < self.next {
            return Some(false);
        }
        if self.distance > Self::LAST {
            return None;
        }
        self.next = now + self.distance;
        self.distance *= 2;
        Some(true)
    }
}

struct ConsoleWorker {
    rx: ActiveQueue,
    tx: ActiveQueue,
    rx_chain: Chain,
    tx_chain: Chain,
    /// `tx_chain` has been taken, and this much of it was passed on.
    tx_done: Option<u32>,
    /// None where there is no size, or the driver has been told often enough.
    size_news: Option<SizeNews>,
    /// Bytes on their way.
    piece: Vec<u8>,
    link: Arc<ConsoleLink>,
    bad_buffers: Tally,
    metrics: Arc<DeviceMetrics>,
}

impl VirtioWorker for ConsoleWorker {
    fn event_sources(&self) -> Vec<EventSource> {
        let source = |fd, token| EventSource {
            fd,
            token,
            events: EventSet::IN | EventSet::EDGE_TRIGGERED,
        };
        // By their edges: there is nothing to read.
        vec![
            source(self.link.input_event().as_raw_fd(), token::INPUT),
            source(self.link.output().room_event(), token::ROOM),
            source(self.link.stall_timer(), token::STALL),
        ]
    }

    fn process_queue(&mut self, index: u16) -> Result<(), WorkerError> {
        match index {
            RX => self.give_input(),
            TX => self.take_output(),
            _ => Ok(()),
        }
    }

    fn process_event(&mut self, token: u32, _events: EventSet) -> Result<(), WorkerError> {
        match token {
            token::INPUT => self.give_input(),
            token::STALL => {
                // It may have been armed again since.
                if self.link.stall_timer_expired()? {
                    self.link.output().give_up();
                }
                self.take_output()
            }
            _ => self.take_output(),
        }
    }

    fn stop(mut self: Box<Self>) -> Vec<ActiveQueue> {
        if let Some(done) = self.tx_done {
            // It was printed; there is no other time to take it.
            let rest = self.tx_chain.readable_len() - done;
            let rest = rest.min(PIECE);
            self.read_piece(done, rest);
            self.link.output().offer_or_drop(&self.piece);
            // A ring that cannot be written is of no use to its driver either way.
            let _ = self.tx.push(self.tx_chain.head(), 0);
        }
        vec![self.rx, self.tx]
    }
}

impl ConsoleWorker {
    /// Gives the guest what was typed, as long as it has buffers.
    fn give_input(&mut self) -> Result<(), WorkerError> {
        let mut budget = self.rx.size();
        self.rx.disable_notification()?;
        while self.link.has_input() {
            if budget == 0 {
                self.rx.notify()?;
                return self.rx.come_back();
            }
            if !self.rx.pop(&mut self.rx_chain)? {
                self.rx.notify()?;
                if !self.rx.enable_notification()? {
                    return Ok(());
                }
                self.rx.disable_notification()?;
                continue;
            }
            budget -= 1;
            let (chain, memory) = (&self.rx_chain, self.rx.memory());
            let space = chain.writable_len().min(PIECE);
            if space == 0 {
                self.bad_buffers.add("the guest has a buffer without space");
            }
            self.link.take_input(space as usize, &mut self.piece);
            let len = self.piece.len() as u32;
            let mut rest = &self.piece[..];
            with_slices(memory, chain.writable(), 0, len, |slices| {
                for slice in slices {
                    let (now, later) = rest.split_at(slice.len().min(rest.len()));
                    slice.copy_from(now);
                    rest = later;
                }
            });
            self.metrics.bytes_read.add_owned(len.into());
            self.rx.push(self.rx_chain.head(), len)?;
        }
        self.rx.notify()?;
        Ok(())
    }

    /// Takes what the guest printed, as long as there is room for it.
    fn take_output(&mut self) -> Result<(), WorkerError> {
        if let Some(news) = &mut self.size_news {
            match news.is_due() {
                Some(true) => self.link.tell_size()?,
                Some(false) => {}
                None => self.size_news = None,
            }
        }
        let (mut chains, mut bytes) = (self.tx.size(), BATCH);
        self.tx.disable_notification()?;
        loop {
            while chains > 0 && bytes > 0 {
                if self.tx_done.is_none() {
                    if !self.tx.pop(&mut self.tx_chain)? {
                        break;
                    }
                    chains -= 1;
                    self.tx_done = Some(0);
                }
                if !self.pass_on(&mut bytes)? {
                    return self.tx.notify();
                }
            }
            self.tx.notify()?;
            if chains == 0 || bytes == 0 {
                return self.tx.come_back();
            }
            if !self.tx.enable_notification()? {
                return Ok(());
            }
            self.tx.disable_notification()?;
        }
    }

    /// Passes on the chain that is held, up to `budget` bytes of it; `false` where there is no room, and an event will come.
    fn pass_on(&mut self, budget: &mut u32) -> Result<bool, WorkerError> {
        let len = self.tx_chain.readable_len();
        while let Some(done) = self.tx_done {
            if done == len {
                self.tx_done = None;
                self.tx.push(self.tx_chain.head(), 0)?;
                break;
            }
            if *budget == 0 {
                break;
            }
            self.read_piece(done, (len - done).min(PIECE).min(*budget));
            let taken = self.link.output().offer(&self.piece);
            let all = taken == self.piece.len();
            self.metrics.bytes_written.add_owned(taken as u64);
            *budget -= taken as u32;
            self.tx_done = Some(done + taken as u32);
            if !all {
                self.link.arm_stall_timer(STALL_LIMIT)?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Copies `len` bytes of the chain that is held, from `skip` on.
    fn read_piece(&mut self, skip: u32, len: u32) {
        self.piece.resize(len as usize, 0);
        let (chain, memory, piece) = (&self.tx_chain, self.tx.memory(), &mut self.piece);
        let copy = |slices: &[VolatileSlice<'_>]| {
            let mut done = 0;
            for slice in slices {
                done += slice.copy_to(&mut piece[done..]);
            }
        };
        with_slices(memory, chain.readable(), skip, len, copy);
    }
}
