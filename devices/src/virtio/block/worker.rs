//! The data half: requests from the queues to the engine, and back. Lives on an I/O thread.
//!
//! With a ring, all queues share it. What has no room on it stays in its queue, which is not asked to notify then: the next
//! completion makes room. Completions come in any order; a driver that wants an order waits (5.2.6.2: a flush covers what was
//! completed before it was made available).
//!
//! Without one, requests that follow one another in a queue and on the disk are served by one call.
//!
//! A request that the rate limit does not let go is put back, and its queue left alone until the timer expires.

use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::epoll::EventSet;

use super::engine::{Engine, InFlight, Ring};
use super::request::{Disk, Step, Transfer, TransferKind};
use crate::backend::disk::Route;
use crate::rate_limiter::RateLimiter;
use crate::virtio::device::{EventSource, VirtioWorker, WorkerError};
use crate::virtio::queue::{ActiveQueue, Buffer, Chain};

const COMPLETIONS: u32 = 0;
const TIMER: u32 = 1;

/// The request's header and its status byte.
const OVERHEAD: u32 = 17;

pub(super) struct BlockWorker {
    queues: Vec<ActiveQueue>,
    disk: Disk,
    engine: Engine,
    limiter: Option<Arc<RateLimiter>>,
    /// Whether several transfers may be made by one call.
    joins: bool,
    chain: Chain,
    batch: Batch,
    waiting: Waiting,
}

/// Requests of one queue that lie one behind the other on the disk, and are served by one call. Kept for its memory.
#[derive(Default)]
struct Batch {
    requests: Vec<(u16, Transfer)>,
    /// The memory of all of them.
    buffers: Vec<Buffer>,
    len: u32,
}

impl Batch {
    /// Bytes that one call moves; what there is more is another's, so that the first are not kept waiting for the last.
    const MAX: u32 = 512 << 10;

    /// Whether the batch goes on with this.
    fn continues(&self, transfer: &Transfer) -> bool {
        let Some((_, first)) = self.requests.first() else {
            return true;
        };
        transfer.kind == first.kind
            && transfer.offset == first.offset + u64::from(self.len)
            && transfer.len <= Self::MAX - self.len.min(Self::MAX)
    }

    fn add(&mut self, chain: &Chain, transfer: Transfer) {
        self.requests.push((chain.head(), transfer));
        self.len += transfer.len;
        transfer.add_buffers(chain, &mut self.buffers);
    }

    fn clear(&mut self) {
        self.requests.clear();
        self.buffers.clear();
        self.len = 0;
    }
}

/// Queues that are not looked at for a while, nor asked to notify: by a bit each.
#[derive(Default)]
struct Waiting {
    /// For room on the ring.
    room: u32,
    /// For the rate limit's timer.
    timer: u32,
    /// When that expires.
    until: Option<Instant>,
    /// The queue that is looked at first then.
    first: usize,
}

impl BlockWorker {
    /// A worker for these queues, of which there is at least one.
    pub(super) fn new(
        queues: Vec<ActiveQueue>,
        disk: Disk,
        engine: Engine,
        limiter: Option<Arc<RateLimiter>>,
    ) -> Self {
        if let (Some(mut ring), Some(queue)) = (engine.ring(), queues.first()) {
            ring.attach(queue.memory());
        }
        Self {
            joins: engine.ring().is_none() && disk.backend.joins_requests(),
            queues,
            disk,
            engine,
            limiter,
            chain: Chain::new(),
            batch: Batch::default(),
            waiting: Waiting::default(),
        }
    }

    /// Does some work, with the ring in hand.
    fn turn(
        &mut self,
        work: impl FnOnce(&mut Turn<'_>) -> Result<(), WorkerError>,
    ) -> Result<(), WorkerError> {
        let mut ring = self.engine.ring();
        if let Some(ring) = &mut ring {
            ring.wake();
        }
        work(&mut Turn {
            queues: &mut self.queues,
            disk: &self.disk,
            joins: self.joins,
            chain: &mut self.chain,
            batch: &mut self.batch,
            limiter: self.limiter.as_deref(),
            waiting: &mut self.waiting,
            ring: ring.as_deref_mut(),
        })?;
        if let Some(ring) = &mut ring {
            ring.listen();
        }
        Ok(())
    }
}

impl VirtioWorker for BlockWorker {
    fn event_sources(&self) -> Vec<EventSource> {
        let completions = self.engine.ring().map(|ring| EventSource {
            fd: ring.fd(),
            token: COMPLETIONS,
            events: EventSet::IN | EventSet::EDGE_TRIGGERED,
        });
        let timer = self.limiter.as_ref().map(|limiter| EventSource {
            fd: limiter.fd(),
            token: TIMER,
            events: EventSet::IN | EventSet::EDGE_TRIGGERED,
        });
        completions.into_iter().chain(timer).collect()
    }

    fn process_queue(&mut self, index: u16) -> Result<(), WorkerError> {
        let at = self.queues.iter().position(|queue| queue.index() == index);
        at.map_or(Ok(()), |at| self.turn(|turn| turn.serve(at)))
    }

    fn process_event(&mut self, token: u32, _events: EventSet) -> Result<(), WorkerError> {
        if token == TIMER {
            return self.turn(|turn| turn.serve_after_timer());
        }
        self.turn(|turn| turn.serve_after_completions())
    }

    fn pause(&mut self) -> Result<(), WorkerError> {
        self.turn(|turn| turn.drain())
    }

    fn stop(mut self: Box<Self>) -> Vec<ActiveQueue> {
        let drained = self.turn(|turn| turn.drain());
        if let Err(err) = drained {
            log::warn!("a disk's requests could not be finished: {err}");
        }
        std::mem::take(&mut self.queues)
    }
}

impl Drop for BlockWorker {
    fn drop(&mut self) {
        if let Some(mut ring) = self.engine.ring() {
            ring.detach();
        }
    }
}

/// Why no more requests were begun.
enum Taken {
    /// There are no more.
    All,
    /// It is the turn of others.
    Enough,
    /// The ring is full.
    NoRoom,
    /// The rate limit is reached.
    Limited,
}

struct Turn<'a> {
    queues: &'a mut [ActiveQueue],
    disk: &'a Disk,
    joins: bool,
    chain: &'a mut Chain,
    batch: &'a mut Batch,
    limiter: Option<&'a RateLimiter>,
    waiting: &'a mut Waiting,
    ring: Option<&'a mut Ring>,
}

impl Turn<'_> {
    fn has_room(&self) -> bool {
        self.ring.as_ref().is_none_or(|ring| ring.has_room())
    }

    fn serve_after_completions(&mut self) -> Result<(), WorkerError> {
        self.finish()?;
        for at in 0..self.queues.len() {
            if self.waiting.room & 1 << at != 0 && self.has_room() {
                self.serve(at)?;
            }
        }
        Ok(())
    }

    fn serve_after_timer(&mut self) -> Result<(), WorkerError> {
        self.waiting.until = None;
        let queues = std::mem::take(&mut self.waiting.timer);
        let (first, count) = (self.waiting.first, self.queues.len());
        for at in (0..count).map(|at| (at + first) % count) {
            if queues & 1 << at != 0 {
                self.serve(at)?;
            }
        }
        // Each is the first of them once.
        self.waiting.first = (first + 1) % count;
        Ok(())
    }

    /// Serves a queue until it is empty, or the ring full, or the limit reached; at most as many requests as the queue has, so
    /// that a driver that keeps it full does not keep the thread.
    fn serve(&mut self, at: usize) -> Result<(), WorkerError> {
        let bit = 1 << at;
        self.waiting.room &= !bit;
        if self.waiting.timer & bit != 0 {
            return Ok(());
        }
        let mut budget = self.queues[at].size();
        self.queues[at].wake()?;
        loop {
            let taken = self.take(at, &mut budget)?;
            self.finish()?;
            match taken {
                Taken::Enough => return self.queues[at].come_back(),
                // What has ended at once has made room.
                Taken::NoRoom if self.has_room() => continue,
                Taken::NoRoom => {
                    self.waiting.room |= bit;
                    return Ok(());
                }
                Taken::Limited => {
                    self.waiting.timer |= bit;
                    return Ok(());
                }
                Taken::All => {}
            }
            let ring = &mut self.ring;
            let done = || ring.as_mut().is_some_and(|ring| ring.is_ready());
            if !self.queues[at].rest(done)? {
                return Ok(());
            }
        }
    }

    /// Begins requests of a queue.
    fn take(&mut self, at: usize, budget: &mut u16) -> Result<Taken, WorkerError> {
        let taken = self.take_some(at, budget);
        self.carry_out(at)?;
        taken
    }

    fn take_some(&mut self, at: usize, budget: &mut u16) -> Result<Taken, WorkerError> {
        while *budget > 0 {
            if !self.has_room() {
                return Ok(Taken::NoRoom);
            }
            if !self.queues[at].pop(self.chain)? {
                return Ok(Taken::All);
            }
            if !self.may_go()? {
                self.queues[at].undo_pop(self.chain.head());
                return Ok(Taken::Limited);
            }
            *budget -= 1;
            let step = self.disk.begin(self.chain, self.queues[at].memory());
            let written = match step {
                Step::Done(written) => written,
                Step::Transfer(transfer) if self.joins(&transfer) => {
                    if !self.batch.continues(&transfer) {
                        self.carry_out(at)?;
                    }
                    self.batch.add(self.chain, transfer);
                    continue;
                }
                Step::Transfer(transfer) => match self.begin(at, transfer)? {
                    Some(written) => written,
                    None => continue,
                },
            };
            self.queues[at].push(self.chain.head(), written)?;
        }
        Ok(Taken::Enough)
    }

    /// Whether a transfer may be one of several that are made by one call.
    fn joins(&self, transfer: &Transfer) -> bool {
        self.joins && transfer.kind != TransferKind::Flush && !self.disk.needs_flush(transfer)
    }

    /// Makes the transfers of the batch, and gives their requests back.
    fn carry_out(&mut self, at: usize) -> Result<(), WorkerError> {
        let (disk, batch) = (self.disk, &mut *self.batch);
        let Some((_, first)) = batch.requests.first() else {
            return Ok(());
        };
        let mut all = Some(disk.move_data(
            first,
            self.queues[at].memory(),
            &batch.buffers,
            0,
            batch.len,
        ));
        // Of several, each is told of its own error.
        let each = batch.requests.len() > 1 && matches!(all, Some(Err(_)));
        let mut skip = 0;
        for (head, transfer) in &batch.requests {
            let memory = self.queues[at].memory();
            let result = match each {
                true => disk.move_data(transfer, memory, &batch.buffers, skip, transfer.len),
                false => all.take().unwrap_or(Ok(())),
            };
            skip += transfer.len;
            let written = disk.end(transfer, memory, result);
            self.queues[at].push(*head, written)?;
        }
        batch.clear();
        Ok(())
    }

    /// Whether the rate limit lets the chain go; if not, the timer tells when to ask again.
    fn may_go(&mut self) -> Result<bool, WorkerError> {
        let Some(limiter) = self.limiter else {
            return Ok(true);
        };
        let chain = &*self.chain;
        let bytes = chain.readable_len().saturating_add(chain.writable_len());
        let now = Instant::now();
        let Err(wait) = limiter.take(1, bytes.saturating_sub(OVERHEAD).into(), now) else {
            return Ok(true);
        };
        // The soonest of all queues.
        let until = now + wait;
        if self.waiting.until.is_none_or(|soonest| until < soonest) {
            limiter.wake_after(wait)?;
            self.waiting.until = Some(until);
        }
        Ok(false)
    }

    /// Begins a transfer. Where it has ended already, how many bytes were written to the request's buffers.
    fn begin(&mut self, at: usize, transfer: Transfer) -> Result<Option<u32>, WorkerError> {
        let route = self.route(at, &transfer);
        if route == Route::Alone {
            self.drain()?;
        }
        let memory = self.queues[at].memory();
        let (disk, chain) = (self.disk, &*self.chain);
        let result = match &mut self.ring {
            Some(ring) if route == Route::Straight => {
                let what = InFlight {
                    queue: at,
                    head: chain.head(),
                    transfer,
                    flushing: false,
                };
                let begun = transfer.with_data(chain, memory, |data| match transfer.kind {
                    TransferKind::Read => ring.read(what, data, transfer.offset),
                    TransferKind::Write => ring.write(what, data, transfer.offset),
                    TransferKind::Flush => ring.sync(what),
                });
                match begun {
                    Ok(()) => return Ok(None),
                    Err(err) => Err(err),
                }
            }
            _ => disk.transfer(&transfer, chain, memory),
        };
        Ok(Some(disk.end(&transfer, memory, result)))
    }

    /// Whether the ring can make a transfer.
    fn route(&self, at: usize, transfer: &Transfer) -> Route {
        if self.ring.is_none() {
            return Route::Here;
        }
        let write = match transfer.kind {
            TransferKind::Read => false,
            TransferKind::Write => true,
            TransferKind::Flush => return Route::Straight,
        };
        transfer.with_data(self.chain, self.queues[at].memory(), |data| {
            self.disk.backend.route(data, transfer.offset, write)
        })
    }

    /// Hands over what was begun, gives back what has ended, and interrupts once for each queue.
    fn finish(&mut self) -> Result<(), WorkerError> {
        if self.ring.is_some() {
            self.complete()?;
        }
        for queue in &mut *self.queues {
            queue.notify()?;
        }
        Ok(())
    }

    fn complete(&mut self) -> Result<(), WorkerError> {
        while let Some(ring) = &mut self.ring {
            ring.submit()?;
            while let Some((what, result)) = ring.reap() {
                let InFlight { transfer, .. } = what;
                let result = match result {
                    Ok(()) if self.disk.needs_flush(&transfer) && !what.flushing => {
                        let flush = InFlight {
                            flushing: true,
                            ..what
                        };
                        // The place that it had is free.
                        match ring.sync(flush) {
                            Ok(()) => continue,
                            Err(err) => Err(err),
                        }
                    }
                    result if what.flushing || transfer.kind == TransferKind::Flush => {
                        self.disk.backend.flushed(result)
                    }
                    result => result,
                };
                let queue = &mut self.queues[what.queue];
                let written = self.disk.end(&transfer, queue.memory(), result);
                queue.push(what.head, written)?;
            }
            if !ring.has_queued() {
                break;
            }
        }
        Ok(())
    }

    /// Finishes all that is in flight.
    fn drain(&mut self) -> Result<(), WorkerError> {
        while let Some(ring) = &mut self.ring
            && !ring.is_idle()
        {
            ring.wait()?;
            self.finish()?;
        }
        Ok(())
    }
}
