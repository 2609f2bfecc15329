//! The control queue. Virtio 1.2, section 5.1.6.5: a class, a command, what belongs to it, and an answer of one byte.
//!
//! There is one command: how many pairs of queues the driver uses (5.1.6.5.6). All others are answered with an error.

use std::sync::Arc;

use super::Log;
use crate::virtio::device::{GuestMemory, WorkerError};
use crate::virtio::queue::{ActiveQueue, Chain, slices};

const CLASS_MQ: u8 = 4;
const VQ_PAIRS_SET: u8 = 0;

const OK: u8 = 0;
const ERR: u8 = 1;

/// Class, command, and the number of pairs.
const LONGEST: usize = 4;

/// The control queue at work.
pub(super) struct Control {
    queue: ActiveQueue,
    chain: Chain,
    log: Arc<Log>,
}

impl Control {
    pub(super) fn new(queue: ActiveQueue, log: Arc<Log>) -> Self {
        Self {
            queue,
            chain: Chain::new(),
            log,
        }
    }

    /// Answers one command, and is called again if there may be more: each may take the host some milliseconds. `set_pairs`
    /// carries out a change of pairs, or tells why it cannot be.
    pub(super) fn answer(
        &mut self,
        set_pairs: impl FnOnce(u16) -> Result<(), &'static str>,
    ) -> Result<(), WorkerError> {
        self.queue.disable_notification()?;
        if self.queue.pop(&mut self.chain)? {
            let written = self.answer_one(set_pairs);
            self.queue.push(self.chain.head(), written)?;
            self.queue.notify()?;
            return self.queue.come_back();
        }
        if self.queue.enable_notification()? {
            return self.queue.come_back();
        }
        Ok(())
    }

    /// How many bytes were written.
    fn answer_one(&self, set_pairs: impl FnOnce(u16) -> Result<(), &'static str>) -> u32 {
        let (chain, memory) = (&self.chain, self.queue.memory());
        if chain.writable_len() == 0 {
            // Nothing is done of which the driver could not learn how it ended.
            self.log
                .dropped("the driver has a command without room for an answer");
            return 0;
        }
        let outcome = command(chain, memory).and_then(set_pairs);
        if let Err(why) = outcome {
            self.log.dropped(why);
        }
        let answer = if outcome.is_ok() { OK } else { ERR };
        for place in slices(memory, chain.writable(), 0, 1) {
            place.copy_from(&[answer]);
        }
        1
    }

    pub(super) fn stop(self) -> ActiveQueue {
        self.queue
    }
}

/// The pairs of queues that a command asks for.
fn command(chain: &Chain, memory: &GuestMemory) -> Result<u16, &'static str> {
    let mut command = [0; LONGEST];
    let len = chain.read_start(memory, &mut command);
    let [class, number, low, high] = command;
    if len < 2 || (class, number) != (CLASS_MQ, VQ_PAIRS_SET) {
        return Err("the driver has a command that there is not");
    }
    if chain.readable_len() as usize != LONGEST {
        return Err("the driver has a command of a wrong length");
    }
    Ok(u16::from_le_bytes([low, high]))
}
