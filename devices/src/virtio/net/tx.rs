//! From the driver to the back end. Virtio 1.2, section 5.1.6.2.
//!
//! The header is fetched once and checked; what the back end gets is made of the copy. A short frame is fetched with it, and goes to
//! the back end in one piece, which spares the system call more than the copy costs; a long one goes from where it lies.

use std::io;
use std::sync::Arc;

use super::gate::Gate;
use super::{BATCH, Log, MIN_FRAME, features, header};
use crate::backend::net::{HEADER_SIZE, MAX_FRAME, MAX_PIECES, NetBackend, Pieces};
use crate::virtio::device::{GuestMemory, WorkerError};
use crate::virtio::queue::{ActiveQueue, Chain, each_slice};

/// Frames of up to as much, their header included, are copied: with longer ones the copy costs more than it saves (measured with 60,
/// 1514 and 65,000 bytes).
const SHORT: usize = 512;

/// The transmit queue at work.
pub(super) struct Sender {
    queue: ActiveQueue,
    memory: GuestMemory,
    chain: Chain,
    features: u64,
    /// A short frame and its header.
    short: Box<[u8; SHORT]>,
    /// Whether a frame waits for the back end to have room.
    blocked: bool,
    log: Arc<Log>,
}

/// Why a frame was not sent.
enum Unsent {
    /// It is none.
    Dropped(&'static str),
    /// There is no room for it now.
    NoRoom,
}

impl From<&'static str> for Unsent {
    fn from(why: &'static str) -> Self {
        Self::Dropped(why)
    }
}

impl Sender {
    pub(super) fn new(queue: ActiveQueue, features: u64, log: Arc<Log>) -> Self {
        Self {
            memory: queue.memory().clone(),
            queue,
            chain: Chain::new(),
            features,
            short: Box::new([0; SHORT]),
            blocked: false,
            log,
        }
    }

    /// Whether it waits for the back end to have room.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Sends what is available, a batch of it at most.
    pub(super) fn send(
        &mut self,
        backend: &dyn NetBackend,
        gate: &mut Gate,
    ) -> Result<(), WorkerError> {
        let mut budget = BATCH;
        // What passed the gate before it met a back end without room.
        let mut passed = std::mem::take(&mut self.blocked);
        self.queue.disable_notification()?;
        loop {
            while budget > 0 && self.queue.pop(&mut self.chain)? {
                budget -= 1;
                passed = passed || gate.pass(self.frame_len())?;
                let sent = match passed {
                    true => self.send_one(backend),
                    false => Err(Unsent::NoRoom),
                };
                match sent {
                    Ok(()) => {}
                    Err(Unsent::Dropped(why)) => self.log.dropped(why),
                    Err(Unsent::NoRoom) => {
                        self.blocked = passed;
                        self.queue.undo_pop(self.chain.head());
                        // The back end or the limit's timer tells when to go on, the driver need not.
                        return self.queue.notify();
                    }
                }
                passed = false;
                self.queue.push(self.chain.head(), 0)?;
            }
            self.queue.notify()?;
            if budget == 0 {
                return self.queue.come_back();
            }
            if !self.queue.enable_notification()? {
                return Ok(());
            }
            self.queue.disable_notification()?;
        }
    }

    /// What the chain counts for a limit: no more than the longest frame, for what is longer is not sent.
    fn frame_len(&self) -> u32 {
        let len = self.chain.readable_len().saturating_sub(HEADER_SIZE as u32);
        len.min(MAX_FRAME as u32)
    }

    /// Sends the frame of a chain, or tells why not.
    fn send_one(&mut self, backend: &dyn NetBackend) -> Result<(), Unsent> {
        let total = self.chain.readable_len();
        let is_short = total as usize <= SHORT;
        let fetched = if is_short {
            total as usize
        } else {
            HEADER_SIZE
        };
        let fetched = &mut self.short[..fetched];
        let is_whole = self.chain.read_start(&self.memory, fetched) == fetched.len();
        let Some(header) = fetched.first_chunk_mut().filter(|_| is_whole) else {
            return Err("the driver sends a header that is too short".into());
        };
        let len = total - HEADER_SIZE as u32;
        if len < MIN_FRAME || len as usize > MAX_FRAME {
            return Err("the driver sends a frame that is too short or too long".into());
        }
        *header = check(header, len, self.features)?;
        let mut packet = Pieces::new();
        packet.push(fetched.into());
        if !is_short {
            each_slice(
                &self.memory,
                self.chain.readable(),
                HEADER_SIZE as u32,
                len,
                |piece| {
                    packet.push(piece);
                },
            );
        }
        if packet.len() > MAX_PIECES {
            return Err("the driver sends a frame in too many pieces".into());
        }
        match backend.send(&packet) {
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Err(Unsent::NoRoom),
            Err(err) => {
                self.log.failed("sending", &err);
                Ok(())
            }
            Ok(()) => {
                self.log.sent(len);
                Ok(())
            }
        }
    }

    pub(super) fn stop(self) -> ActiveQueue {
        self.queue
    }
}

/// Makes a header for the host of what the driver says about a frame of `len` bytes.
fn check(given: &header::Bytes, len: u32, accepted: u64) -> Result<header::Bytes, &'static str> {
    let field = |at| header::get(given, at);
    let mut checked = [0; HEADER_SIZE];
    let mut copy = |at| header::put(&mut checked, at, field(at));
    // Flags that are not known are to be ignored (5.1.6.2.2).
    let needs_csum =
        given[header::FLAGS] & header::NEEDS_CSUM != 0 && accepted & features::CSUM != 0;
    if needs_csum {
        let start = u32::from(field(header::CSUM_START));
        let end = start + u32::from(field(header::CSUM_OFFSET)) + 2;
        if end > len {
            return Err("the driver wants a checksum beyond the frame");
        }
        copy(header::CSUM_START);
        copy(header::CSUM_OFFSET);
    }
    let needed = match given[header::GSO_TYPE] {
        header::GSO_NONE => 0,
        header::GSO_TCPV4 => features::HOST_TSO4,
        header::GSO_TCPV6 => features::HOST_TSO6,
        header::GSO_UDP => features::HOST_UFO,
        _ => return Err("the driver wants a segmentation that there is not"),
    };
    if needed != 0 {
        if accepted & needed == 0 || !needs_csum {
            return Err("the driver wants a segmentation that it has not negotiated");
        }
        if field(header::GSO_SIZE) == 0 || u32::from(field(header::HDR_LEN)) > len {
            return Err("the driver wants a segmentation that cannot be");
        }
        copy(header::GSO_SIZE);
        copy(header::HDR_LEN);
    }
    checked[header::GSO_TYPE] = given[header::GSO_TYPE];
    checked[header::FLAGS] = if needs_csum { header::NEEDS_CSUM } else { 0 };
    Ok(checked)
}
