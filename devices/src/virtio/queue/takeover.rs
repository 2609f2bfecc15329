//! Taking over a queue from somebody who went away without giving it back: which chains they had, the rings tell.
//!
//! A chain is outstanding when its head was made available and not used since. What was before the last ring's length of heads is
//! overwritten; what is left of both rings is enough, unless a chain has been outstanding while as many others as the ring has
//! descriptors came and went. Such a chain is not found.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use super::{ActiveQueue, Chain, QueueError};
use crate::virtio::device::WorkerError;

/// Flags and index, before the entries of either ring.
const HEADER: u64 = 4;

impl ActiveQueue {
    /// Goes on where another party left the queue that it had been given, and has gone without a word: at the end of both rings.
    /// The heads of the chains that it has not given back, oldest first; they are in flight now.
    ///
    /// # Errors
    /// The rings cannot be.
    pub(crate) fn take_over(&mut self) -> Result<Vec<u16>, WorkerError> {
        let heads = self.outstanding().map_err(|source| self.broken(source))?;
        heads.iter().for_each(|head| self.in_flight.insert(*head));
        Ok(heads)
    }

    /// Goes on where another party says that it has left the queue, or where the used ring says so, if that is further on: the
    /// virtiofsd of QEMU 7.2 says where it was when it was asked, and only then ends what it is doing.
    pub(crate) fn taken_back_at(&mut self, base: u16) {
        let used = self.queue.used_idx(&self.memory, Ordering::Acquire);
        let further = used.map_or(0, |used| used.0.wrapping_sub(base));
        let further = if further <= self.queue.size() {
            further
        } else {
            0
        };
        self.queue.set_next_avail(base.wrapping_add(further));
    }

    fn outstanding(&mut self) -> Result<Vec<u16>, QueueError> {
        let unreadable = |err: virtio_queue::Error| QueueError::Ring(err.to_string());
        let (memory, size) = (&self.memory, self.queue.size());
        let available = self.queue.avail_idx(memory, Ordering::Acquire);
        let available = available.map_err(unreadable)?.0;
        let used = self.queue.used_idx(memory, Ordering::Acquire);
        let used = used.map_err(unreadable)?.0;
        let count = available.wrapping_sub(used);
        if count > size {
            let text = format!("{count} chains are outstanding in a ring of {size}");
            return Err(QueueError::Ring(text));
        }
        let entry = |ring: u64, at: u16, bytes: u64| {
            let place = HEADER + u64::from(at % size) * bytes;
            let address = ring.checked_add(place).map(GuestAddress);
            // Of an entry of the used ring, the lower half of the head's four bytes.
            let head = address.and_then(|address| memory.read_obj::<u16>(address).ok());
            head.map(u16::from_le)
                .ok_or_else(|| QueueError::Ring("an entry is not in memory".into()))
        };
        let first = available.wrapping_sub(size);
        let made_available = (0..size)
            .map(|at| entry(self.queue.avail_ring(), first.wrapping_add(at), 2))
            .collect::<Result<Vec<_>, _>>()?;
        let used_since = (0..size - count)
            .map(|at| entry(self.queue.used_ring(), first.wrapping_add(at), 8))
            .collect::<Result<Vec<_>, _>>()?;
        self.queue.set_next_avail(available);
        self.queue.set_next_used(used);
        let mut heads = outstanding(&made_available, &used_since);
        // The rings are the driver's: what it wrote there may be anything.
        heads.retain(|head| *head < size);
        Ok(heads)
    }

    /// The chain with this head, one of [`Self::take_over`]'s.
    ///
    /// # Errors
    /// The driver broke the queue.
    pub(crate) fn chain_of(&self, head: u16, chain: &mut Chain) -> Result<(), WorkerError> {
        self.walk(head, chain).map_err(|source| self.broken(source))
    }
}

/// The heads in `available` that are not in `used`. Both are the last entries of their rings, from the same index on: `used` is
/// shorter by as many as are outstanding.
///
/// Since an instant when nothing was outstanding, every used head has been available, and none twice more often than it was used.
/// The earliest index for which that holds is taken to be such an instant.
fn outstanding(available: &[u16], used: &[u16]) -> Vec<u16> {
    let mut balance = Balance::default();
    for head in &available[used.len()..] {
        balance.add(*head, 1);
    }
    let mut start = used.len();
    for at in (0..used.len()).rev() {
        balance.add(available[at], 1);
        balance.add(used[at], -1);
        if balance.impossible == 0 {
            start = at;
        }
    }
    let mut balance = Balance::default();
    used[start..].iter().for_each(|head| balance.add(*head, -1));
    available[start..]
        .iter()
        .for_each(|head| balance.add(*head, 1));
    // The last time that a head was made available counts.
    let mut heads: Vec<u16> = Vec::new();
    for head in available[start..].iter().rev() {
        if balance.of(*head) > 0 && !heads.contains(head) {
            heads.push(*head);
        }
    }
    heads.reverse();
    heads
}

/// How often each head was made available, less how often it was used: 0 or 1, if all of it was seen.
#[derive(Default)]
struct Balance {
    heads: BTreeMap<u16, i32>,
    /// How many are neither.
    impossible: usize,
}

impl Balance {
    fn add(&mut self, head: u16, change: i32) {
        let balance = self.heads.entry(head).or_default();
        let is_possible = |balance: i32| (0..=1).contains(&balance);
        self.impossible -= usize::from(!is_possible(*balance));
        *balance += change;
        self.impossible += usize::from(!is_possible(*balance));
    }

    fn of(&self, head: u16) -> i32 {
        self.heads.get(&head).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::outstanding;

    #[test]
    fn what_was_made_available_and_not_used_is_outstanding() {
        assert!(outstanding(&[], &[]).is_empty());
        assert_eq!(outstanding(&[1, 2, 3], &[]), [1, 2, 3]);
        assert!(outstanding(&[1, 2, 3], &[1, 2, 3]).is_empty());
        assert_eq!(outstanding(&[1, 2, 3], &[1]), [2, 3]);
    }

    #[test]
    fn chains_that_overtake_others_are_not_taken_for_them() {
        assert_eq!(outstanding(&[1, 2], &[2]), [1]);
        assert_eq!(outstanding(&[1, 2, 3, 2], &[2, 3, 2]), [1]);
        // One head again and again, and another that waits.
        assert_eq!(outstanding(&[7, 0, 0, 0, 0], &[0, 0, 0]), [7, 0]);
        // What was outstanding before the first entry has been used since.
        assert_eq!(outstanding(&[1, 2, 3], &[9, 2]), [3]);
    }

    #[test]
    fn one_head_for_all_is_found() {
        assert_eq!(outstanding(&[0, 0, 0, 0], &[0, 0, 0]), [0]);
    }

    #[test]
    fn rings_of_nonsense_are_put_up_with() {
        assert_eq!(outstanding(&[9999, 1], &[9998]), [1]);
        assert_eq!(outstanding(&[1, 1, 1], &[]), [1]);
    }
}
