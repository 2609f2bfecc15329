//! The ring: whatever a driver writes to its tables, what the queue hands out is memory, of bounded length, and of no chain
//! twice; and nothing but the used ring is written.

#![no_main]

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use ampoule_devices::virtio::notification::Notification;
use ampoule_devices::virtio::queue::{ActiveQueue, Chain, MAX_CHAIN};
use ampoule_devices::virtio::{InterruptSource, VirtioInterrupt, WorkerError};
use ampoule_fuzz::guest::{self, Address, Length, some};
use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x6000;
const USED: u64 = 0x8000;
/// Descriptors that inputs name are these, and then some.
const NEAR: u16 = 40;

#[derive(Debug, Arbitrary)]
enum Op {
    Descriptor {
        table: Address,
        index: u8,
        address: Address,
        len: Length,
        flags: u8,
        next: u16,
    },
    /// An entry of the queue's own table.
    Own {
        index: u8,
        address: Address,
        len: Length,
        flags: u8,
        next: u8,
    },
    Available(u16),
    AvailableIndex(u16),
    AvailableFlags(u16),
    UsedEvent(u16),
    Poke {
        address: Address,
        value: u64,
    },
    Pop,
    Push {
        which: u8,
        written: u32,
    },
    Undo,
    Notify,
    Enable,
    Disable,
    Serve {
        written: u32,
    },
}

#[derive(Debug)]
struct Input {
    log_size: u8,
    event_idx: bool,
    rings: [Option<Address>; 3],
    start: u16,
    ops: Vec<Op>,
}

impl<'a> Arbitrary<'a> for Input {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self {
            log_size: input.arbitrary()?,
            event_idx: input.arbitrary()?,
            rings: input.arbitrary()?,
            start: input.arbitrary()?,
            ops: some(input, 64)?,
        })
    }
}

struct Silent;

impl VirtioInterrupt for Silent {
    fn trigger(&self, _: InterruptSource) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|input: Input| {
    let memory = guest::memory();
    let size = 1_u16 << (input.log_size % 11);
    let place = |at: usize, usual| input.rings[at].map_or(usual, Address::get);
    let (descriptors, available) = (place(0, DESCRIPTORS), place(1, AVAILABLE));
    let Some(ring) = ring(
        size,
        descriptors,
        available,
        place(2, USED),
        input.event_idx,
        input.start,
    ) else {
        return;
    };
    let event = Arc::new(Notification::new().unwrap());
    let Ok(mut queue) = ActiveQueue::new(0, ring, memory.clone(), Arc::new(Silent), event) else {
        return;
    };
    let put = |address: u64, bytes: &[u8]| {
        // Elsewhere than in memory there is nothing to write to.
        let _ = memory.write_slice(bytes, GuestAddress(address));
    };
    let entry = |table: u64, index: u16, address: u64, len: u32, flags: u8, next: u16| {
        let at = table.wrapping_add(u64::from(index) * 16);
        put(at, &address.to_le_bytes());
        put(at.wrapping_add(8), &len.to_le_bytes());
        put(at.wrapping_add(12), &u16::from(flags % 8).to_le_bytes());
        put(at.wrapping_add(14), &next.to_le_bytes());
    };
    let mut chain = Chain::new();
    let mut taken: Vec<u16> = Vec::new();
    let mut index = input.start;
    for op in &input.ops {
        let result = match *op {
            Op::Descriptor {
                table,
                index,
                address,
                len,
                flags,
                next,
            } => {
                entry(
                    table.get(),
                    index.into(),
                    address.get(),
                    len.get(),
                    flags,
                    next,
                );
                Ok(())
            }
            Op::Own {
                index,
                address,
                len,
                flags,
                next,
            } => {
                let (index, next) = (u16::from(index) % NEAR, u16::from(next) % NEAR);
                entry(descriptors, index, address.get(), len.get(), flags, next);
                Ok(())
            }
            Op::Available(head) => {
                let slot = available.wrapping_add(4 + u64::from(index % size) * 2);
                put(slot, &head.to_le_bytes());
                index = index.wrapping_add(1);
                put(available.wrapping_add(2), &index.to_le_bytes());
                Ok(())
            }
            Op::AvailableIndex(to) => {
                index = to;
                put(available.wrapping_add(2), &to.to_le_bytes());
                Ok(())
            }
            Op::AvailableFlags(flags) => {
                put(available, &flags.to_le_bytes());
                Ok(())
            }
            Op::UsedEvent(at) => {
                put(
                    available.wrapping_add(4 + u64::from(size) * 2),
                    &at.to_le_bytes(),
                );
                Ok(())
            }
            Op::Poke { address, value } => {
                put(address.get(), &value.to_le_bytes());
                Ok(())
            }
            Op::Pop => queue.pop(&mut chain).map(|some| {
                if some {
                    check(&chain, size, &memory);
                    assert!(!taken.contains(&chain.head()), "taken twice");
                    taken.push(chain.head());
                }
            }),
            Op::Push { which, written } if !taken.is_empty() => {
                let head = taken.swap_remove(usize::from(which) % taken.len());
                queue.push(head, written)
            }
            Op::Undo => {
                if let Some(head) = taken.pop() {
                    queue.undo_pop(head);
                }
                Ok(())
            }
            Op::Notify => queue.notify(),
            Op::Enable => queue.enable_notification().map(drop),
            Op::Disable => queue.disable_notification(),
            Op::Serve { written } => serve(&mut queue, &mut chain, &taken, written),
            Op::Push { .. } => Ok(()),
        };
        // A worker that has an error is stopped.
        if result.is_err() {
            return;
        }
    }
});

fn ring(
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    event_idx: bool,
    start: u16,
) -> Option<Queue> {
    let mut queue = Queue::new(size).ok()?;
    queue
        .try_set_desc_table_address(GuestAddress(descriptors))
        .ok()?;
    queue
        .try_set_avail_ring_address(GuestAddress(available))
        .ok()?;
    queue.try_set_used_ring_address(GuestAddress(used)).ok()?;
    queue.set_event_idx(event_idx);
    queue.set_next_avail(start);
    queue.set_next_used(start);
    queue.set_ready(true);
    Some(queue)
}

fn serve(
    queue: &mut ActiveQueue,
    chain: &mut Chain,
    taken: &[u16],
    written: u32,
) -> Result<(), WorkerError> {
    let (mut served, size) = (0, queue.size());
    let taken: HashSet<u16> = taken.iter().copied().collect();
    queue.serve(chain, |chain, memory| {
        served += 1;
        assert!(served <= size, "serves for ever");
        check(chain, size, memory);
        assert!(!taken.contains(&chain.head()), "serves what was taken");
        Ok(written)
    })
}

/// A chain that was handed out is one that a device may use.
fn check(chain: &Chain, size: u16, memory: &ampoule_devices::virtio::device::GuestMemory) {
    assert!(chain.head() < size);
    let buffers = chain.readable().iter().chain(chain.writable());
    let (mut count, mut total) = (0, 0_u64);
    for buffer in buffers {
        count += 1;
        total += u64::from(buffer.len);
        assert!(buffer.len > 0);
        assert!(memory.check_range(buffer.address, buffer.len as usize));
    }
    assert!(count <= MAX_CHAIN);
    let known = u64::from(chain.readable_len()) + u64::from(chain.writable_len());
    assert_eq!(total, known);
    let mut start = [0; 64];
    let copied = chain.read_start(memory, &mut start);
    assert_eq!(copied, start.len().min(chain.readable_len() as usize));
}
