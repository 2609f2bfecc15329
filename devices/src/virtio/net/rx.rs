//! From the back end to the driver. Virtio 1.2, section 5.1.6.3.
//!
//! Chains are taken ahead, as many as the longest frame needs, and stay here until a frame fills them: a frame goes straight
//! to where the driver wants it. Behind them, for a frame that is longer than what there is, comes room of our own; the
//! frame is held then until the driver has made more available. Without any chain nothing is read, and the frames wait in
//! the back end.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::gate::Gate;
use super::{BATCH, Log, MIN_FRAME, features, header};
use crate::backend::net::{HEADER_SIZE, MAX_FRAME, MAX_PIECES, NetBackend, Offloads, Pieces};
use crate::virtio::device::{GuestMemory, WorkerError};
use crate::virtio::queue::{ActiveQueue, Chain, each_slice};

/// Header and frame, where the back end segments: some room for those of larger MTUs, which may go the longer way.
const SEGMENT: u32 = 2048;

/// Header and longest frame.
const LONGEST: u32 = (HEADER_SIZE + MAX_FRAME) as u32;

/// The receive queue at work.
pub(super) struct Receiver {
    queue: ActiveQueue,
    memory: GuestMemory,
    mergeable: bool,
    taken: Offloads,
    /// Bytes of room that are wanted before a frame is read, if the driver has them.
    wanted: u32,
    room: Room,
    /// Chains to be used again.
    spare: Vec<Chain>,
    header: header::Bytes,
    /// What chains had no room for.
    tail: Vec<u8>,
    held: Option<Frame>,
    log: Arc<Log>,
}

/// A frame that was read.
#[derive(Debug, Clone, Copy)]
struct Frame {
    /// Its length with its header.
    total: u32,
    /// Where its tail starts.
    direct: u32,
    /// Whether the rate limit has let it through.
    passed: bool,
}

/// Chains that were taken and not filled yet, none of them without room.
#[derive(Default)]
struct Room {
    chains: VecDeque<Chain>,
    /// Bytes in all of them.
    len: u64,
}

impl Room {
    fn add(&mut self, chain: Chain) {
        self.len += u64::from(chain.writable_len());
        self.chains.push_back(chain);
    }

    fn take(&mut self) -> Option<Chain> {
        let chain = self.chains.pop_front()?;
        self.len -= u64::from(chain.writable_len());
        Some(chain)
    }

    /// Adds the memory behind `len` bytes from `skip` on to `found`, which then has `pieces` pieces at most.
    fn slices<'a>(
        &self,
        memory: &'a GuestMemory,
        (mut skip, mut len): (u32, u32),
        pieces: usize,
        found: &mut Pieces<'a>,
    ) {
        for chain in &self.chains {
            let here = chain.writable_len();
            let part = here.saturating_sub(skip).min(len);
            if part > 0 {
                each_slice(memory, chain.writable(), skip, part, |piece| {
                    found.push(piece);
                });
            }
            skip = skip.saturating_sub(here);
            len -= part;
            if len == 0 || found.len() >= pieces {
                break;
            }
        }
        found.truncate(pieces);
    }

    fn write(&self, memory: &GuestMemory, at: u32, mut bytes: &[u8]) {
        let range = (at, bytes.len() as u32);
        let mut found = Pieces::new();
        self.slices(memory, range, usize::MAX, &mut found);
        for slice in found {
            let (now, later) = bytes.split_at(slice.len().min(bytes.len()));
            slice.copy_from(now);
            bytes = later;
        }
    }
}

/// What became of one attempt.
enum Step {
    /// A frame was delivered or dropped.
    Moved,
    /// The driver has no room.
    NoRoom,
    /// The back end has no frame, or failed.
    NoFrame,
    /// The rate limit holds a frame back.
    Held,
}

impl Receiver {
    pub(super) fn new(queue: ActiveQueue, accepted: u64, taken: Offloads, log: Arc<Log>) -> Self {
        let whole = taken.tso4 || taken.tso6 || taken.ufo;
        Self {
            memory: queue.memory().clone(),
            queue,
            mergeable: accepted & features::MRG_RXBUF != 0,
            taken,
            wanted: if whole { LONGEST } else { SEGMENT },
            room: Room::default(),
            spare: Vec::new(),
            header: [0; HEADER_SIZE],
            // One byte more, by which a frame that was cut off is known.
            tail: vec![0; MAX_FRAME + 1],
            held: None,
            log,
        }
    }

    /// Delivers what has come, a batch of it at most.
    pub(super) fn receive(
        &mut self,
        backend: &dyn NetBackend,
        gate: &mut Gate,
    ) -> Result<(), WorkerError> {
        let mut budget = BATCH;
        self.queue.disable_notification()?;
        while budget > 0 {
            budget -= 1;
            match self.step(backend, gate)? {
                Step::Moved => {}
                // The back end's next edge tells of the next frame, or the limit's timer when it may go.
                Step::NoFrame | Step::Held => return self.queue.notify(),
                Step::NoRoom => {
                    self.queue.notify()?;
                    if !self.queue.enable_notification()? {
                        return Ok(());
                    }
                    self.queue.disable_notification()?;
                }
            }
        }
        self.queue.notify()?;
        self.queue.come_back()
    }

    fn step(&mut self, backend: &dyn NetBackend, gate: &mut Gate) -> Result<Step, WorkerError> {
        self.take_chains()?;
        let mut frame = match self.held.take() {
            Some(frame) => frame,
            None if self.room.chains.is_empty() => return Ok(Step::NoRoom),
            None => match self.read(backend) {
                Ok(frame) => frame,
                Err(err) => {
                    if err.kind() != io::ErrorKind::WouldBlock {
                        self.log.failed("receiving", &err);
                    }
                    return Ok(Step::NoFrame);
                }
            },
        };
        if let Err(why) = self.check(frame) {
            self.log.dropped(why);
            return Ok(Step::Moved);
        }
        frame.passed = frame.passed || gate.pass(frame.total - HEADER_SIZE as u32)?;
        if !frame.passed {
            self.held = Some(frame);
            return Ok(Step::Held);
        }
        self.deliver(frame)
    }

    /// Takes as many chains as the longest frame needs, or all that there are up to one without room.
    fn take_chains(&mut self) -> Result<(), WorkerError> {
        let wanted = match self.held {
            Some(frame) => frame.total,
            None => self.wanted,
        };
        for _ in 0..self.queue.size() {
            let enough = match self.mergeable {
                true => self.room.len >= u64::from(wanted),
                false => !self.room.chains.is_empty(),
            };
            if enough {
                break;
            }
            let mut chain = self.spare.pop().unwrap_or_default();
            if !self.queue.pop(&mut chain)? {
                self.spare.push(chain);
                break;
            }
            if chain.writable_len() > 0 {
                self.room.add(chain);
                continue;
            }
            // One for each frame of a batch: a driver that has nothing else does not keep the thread.
            self.log.dropped("the driver has a buffer without room");
            self.queue.push(chain.head(), 0)?;
            self.spare.push(chain);
            break;
        }
        Ok(())
    }

    /// Reads a frame: its header to us, the frame to the driver's room, what is left to the tail.
    fn read(&mut self, backend: &dyn NetBackend) -> io::Result<Frame> {
        const HEADER: u32 = HEADER_SIZE as u32;
        let mut all = Pieces::new();
        all.push((&mut self.header[..]).into());
        // The last piece is ours, too.
        self.room
            .slices(&self.memory, (HEADER, LONGEST), MAX_PIECES - 1, &mut all);
        let direct_len: usize = all[1..].iter().map(VolatileSlice::len).sum();
        all.push((&mut self.tail[..]).into());
        let total = backend.receive(&all)?;
        let total = u32::try_from(total).unwrap_or(u32::MAX);
        let direct = HEADER + direct_len as u32;
        if total > direct {
            // The next ones are to have their place ready.
            self.wanted = self.wanted.max(total.min(LONGEST));
        }
        Ok(Frame {
            total,
            direct,
            passed: false,
        })
    }

    /// Whether the driver can be given the frame: one that came before it said what it takes may be otherwise.
    fn check(&mut self, frame: Frame) -> Result<(), &'static str> {
        if frame.total < HEADER_SIZE as u32 + MIN_FRAME || frame.total > LONGEST {
            return Err("the host gives a frame that is too short or too long");
        }
        if !self.taken.csum {
            if self.header[header::FLAGS] & header::NEEDS_CSUM != 0 {
                return Err("the host gives a frame without its checksum");
            }
            // Neither has the driver asked whether others were good.
            self.header[header::FLAGS] = 0;
        }
        let taken = match self.header[header::GSO_TYPE] {
            header::GSO_NONE => true,
            header::GSO_TCPV4 => self.taken.tso4,
            header::GSO_TCPV6 => self.taken.tso6,
            header::GSO_UDP => self.taken.ufo,
            _ => false,
        };
        if taken {
            Ok(())
        } else {
            Err("the host gives a frame that the driver cannot take unsegmented")
        }
    }

    /// Fills chains with a frame that was read, and gives them back.
    fn deliver(&mut self, frame: Frame) -> Result<Step, WorkerError> {
        // It may be longer than what was taken before it was read.
        self.held = Some(frame);
        self.take_chains()?;
        self.held = None;
        if self.room.len < u64::from(frame.total) {
            let all = self.room.chains.len() >= usize::from(self.queue.size());
            if all || !self.mergeable {
                self.log.dropped("the driver's buffers are too small");
                return Ok(Step::Moved);
            }
            self.held = Some(frame);
            return Ok(Step::NoRoom);
        }
        let count = self.chains_for(frame.total);
        header::put(&mut self.header, header::NUM_BUFFERS, count);
        let tail = frame.total.saturating_sub(frame.direct) as usize;
        self.room
            .write(&self.memory, frame.direct, &self.tail[..tail]);
        self.room.write(&self.memory, 0, &self.header);
        self.log.received(frame.total - HEADER_SIZE as u32);
        let mut left = frame.total;
        for _ in 0..count {
            let Some(chain) = self.room.take() else {
                break;
            };
            let written = left.min(chain.writable_len());
            left -= written;
            self.queue.push(chain.head(), written)?;
            self.spare.push(chain);
        }
        Ok(Step::Moved)
    }

    /// How many chains so many bytes fill; there are as many.
    fn chains_for(&self, total: u32) -> u16 {
        let (mut len, mut count) = (0_u32, 0);
        for chain in &self.room.chains {
            if len >= total {
                break;
            }
            len = len.saturating_add(chain.writable_len());
            count += 1;
        }
        count
    }

    /// Gives back the queue with all chains that were not filled.
    pub(super) fn stop(mut self) -> ActiveQueue {
        while let Some(chain) = self.room.chains.pop_back() {
            self.queue.undo_pop(chain.head());
        }
        self.queue
    }
}
