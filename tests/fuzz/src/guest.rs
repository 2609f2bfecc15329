//! The guest: memory, and a driver that lays out chains of its own.

use std::ops::Range;

use ampoule_devices::virtio::VirtioDevice;
use ampoule_devices::virtio::device::GuestMemory;
use ampoule_devices::virtio::testing::{
    AVAILABLE, DESCRIPTORS, Desc, Driver, F_INDIRECT, F_NEXT, F_WRITE, USED,
};
use ampoule_devices::virtio::transport::mmio::register;
use arbitrary::{Arbitrary, Unstructured};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Descriptors of a queue, as the driver sets it up.
pub const SIZE: u16 = 16;
/// Where the rings of a queue are is this times its index.
pub const RING_STEP: u64 = 0x4000;
/// Indirect tables, one a head.
const TABLES: u64 = 0x3_0000;
const TABLE_STEP: u64 = 0x200;
/// The most entries of an indirect table.
const MAX_SEGMENTS: usize = (TABLE_STEP / 16) as usize;
/// Free for buffers.
pub const BUFFERS: u64 = 0x4_0000;
/// The end of RAM. There is a second region, so that buffers may lie in two of them.
pub const RAM_END: u64 = 0x6_0000;
const SECOND: u64 = 0x4_8000;
/// A third region, behind a hole.
const ISLAND: u64 = 0x7_0000;
const ISLAND_SIZE: u64 = 0x1000;

/// The byte that nobody writes on purpose.
pub const POISON: u8 = 0xa5;

thread_local! {
    static MEMORY: GuestMemory = GuestMemoryMmap::from_ranges(&[
        (GuestAddress(0), SECOND as usize),
        (GuestAddress(SECOND), (RAM_END - SECOND) as usize),
        (GuestAddress(ISLAND), ISLAND_SIZE as usize),
    ])
    .expect("no memory");
}

/// The memory of this thread's guest, zeroed, its buffers poisoned: mapping it anew each time would cost more than a run.
pub fn memory() -> GuestMemory {
    let memory = MEMORY.with(Clone::clone);
    let zeroes = [0; BUFFERS as usize];
    let poison = [POISON; (RAM_END - BUFFERS) as usize];
    memory.write_slice(&zeroes, GuestAddress(0)).unwrap();
    memory.write_slice(&poison, GuestAddress(BUFFERS)).unwrap();
    memory
        .write_slice(&zeroes[..ISLAND_SIZE as usize], GuestAddress(ISLAND))
        .unwrap();
    memory
}

/// An address: more often one that is of interest.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Address {
    Buffer(u16),
    Low(u16),
    NearTheEnd(i8),
    NearTheIsland(i8),
    Any(u64),
}

impl Address {
    pub fn get(self) -> u64 {
        match self {
            Self::Buffer(at) => BUFFERS + u64::from(at),
            Self::Low(at) => at.into(),
            Self::NearTheEnd(at) => RAM_END.wrapping_add_signed(at.into()),
            Self::NearTheIsland(at) => (ISLAND + ISLAND_SIZE).wrapping_add_signed(at.into()),
            Self::Any(at) => at,
        }
    }
}

/// A length, the same way.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Length {
    Small(u8),
    Sectors(u8),
    Medium(u16),
    Any(u32),
}

impl Length {
    pub fn get(self) -> u32 {
        match self {
            Self::Small(len) => len.into(),
            Self::Sectors(count) => u32::from(count) * 512,
            Self::Medium(len) => len.into(),
            Self::Any(len) => len,
        }
    }
}

/// At most `max` of what the input has.
pub fn some<'a, T: Arbitrary<'a>>(
    input: &mut Unstructured<'a>,
    max: usize,
) -> arbitrary::Result<Vec<T>> {
    let mut items = Vec::new();
    while items.len() < max && !input.is_empty() && input.arbitrary()? {
        items.push(input.arbitrary()?);
    }
    Ok(items)
}

/// A device and a driver that keeps the rules of the ring.
pub struct Guest {
    pub driver: Driver,
    available: Vec<u16>,
    seen: Vec<u16>,
    next_buffer: u64,
}

impl Guest {
    /// With these of the features, if the device has them, and `queues` queues.
    pub fn new(device: Box<dyn VirtioDevice>, queues: u16, features: u64) -> Self {
        let driver = Driver::with_memory(device, memory());
        driver.set_up(queues.into(), features);
        Self {
            driver,
            available: vec![0; queues.into()],
            seen: vec![0; queues.into()],
            next_buffer: BUFFERS,
        }
    }

    /// Resets the device, and sets it up as [`Self::new`] does.
    pub fn set_up_again(&mut self, queues: u16, features: u64) {
        self.driver.set_up(queues.into(), features);
        self.available = vec![0; queues.into()];
        self.seen = vec![0; queues.into()];
    }

    /// A place for a buffer that no other has; a few bytes on either side belong to nobody.
    pub fn allocate(&mut self, len: u32) -> Option<u64> {
        let at = self.next_buffer + 8;
        let end = at + u64::from(len) + 8;
        (end <= RAM_END).then(|| {
            self.next_buffer = end;
            at
        })
    }

    /// Forgets all buffers.
    pub fn free_all(&mut self) {
        self.next_buffer = BUFFERS;
    }

    /// Lays out a chain whose head is `head`, and makes it available: readable buffers, then writable ones.
    ///
    /// A direct chain takes all the descriptors that it has buffers; the caller knows that they are free.
    pub fn offer(&mut self, queue: u16, head: u16, buffers: &[(u64, u32, bool)], indirect: bool) {
        let rings = u64::from(queue) * RING_STEP;
        let buffers = &buffers[..buffers.len().min(MAX_SEGMENTS)];
        let table = match indirect {
            true => TABLES + u64::from(queue * SIZE + head) * TABLE_STEP % (BUFFERS - TABLES),
            false => rings + DESCRIPTORS,
        };
        let first = if indirect { 0 } else { head };
        for (at, (address, len, write)) in (0..).zip(buffers) {
            let last = usize::from(at) + 1 == buffers.len();
            let flags = if last { 0 } else { F_NEXT } | if *write { F_WRITE } else { 0 };
            let next = if last { 0 } else { first + at + 1 };
            let desc = Desc {
                address: *address,
                len: *len,
                flags,
                next,
            };
            self.driver.put_desc(table, first + at, desc);
        }
        if indirect {
            let desc = Desc {
                address: table,
                len: buffers.len() as u32 * 16,
                flags: F_INDIRECT,
                next: 0,
            };
            self.driver.put_desc(rings + DESCRIPTORS, head, desc);
        }
        let index = &mut self.available[usize::from(queue)];
        let slot = rings + AVAILABLE + 4 + u64::from(*index % SIZE) * 2;
        self.driver.put(slot, head);
        *index = index.wrapping_add(1);
        self.driver.put(rings + AVAILABLE + 2, *index);
    }

    pub fn notify(&self, queue: u16) {
        self.driver.write(register::QUEUE_NOTIFY, queue.into());
    }

    pub fn kick(&self, queue: u16) {
        self.notify(queue);
        self.driver.host.run(100);
    }

    /// The next chain that the device has given back: its head, and how much was written.
    pub fn take_used(&mut self, queue: u16) -> Option<(u16, u32)> {
        let rings = u64::from(queue) * RING_STEP;
        let seen = &mut self.seen[usize::from(queue)];
        let index: u16 = self.driver.get(rings + USED + 2);
        if *seen == index {
            return None;
        }
        let entry = rings + USED + 4 + u64::from(*seen % SIZE) * 8;
        *seen = seen.wrapping_add(1);
        let (head, written): (u32, u32) = (self.driver.get(entry), self.driver.get(entry + 4));
        Some((head.try_into().expect("a head beyond 16 bits"), written))
    }

    /// What the area of buffers holds.
    pub fn buffers(&self) -> Vec<u8> {
        let mut bytes = vec![0; (RAM_END - BUFFERS) as usize];
        let memory = &self.driver.memory;
        memory
            .read_slice(&mut bytes, GuestAddress(BUFFERS))
            .unwrap();
        bytes
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        let memory = &self.driver.memory;
        memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn read(&self, address: u64, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        let memory = &self.driver.memory;
        memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    /// Fails if what buffers held has changed, other than in the ranges given.
    pub fn assert_unchanged_but(&self, before: &[u8], ranges: &mut [Range<u64>]) {
        let now = self.buffers();
        ranges.sort_by_key(|range| range.start);
        let mut at = 0;
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            let start = (range.start - BUFFERS) as usize;
            let end = (range.end - BUFFERS) as usize;
            assert!(
                now[at..start] == before[at..start],
                "written before {:#x}",
                range.start
            );
            at = end;
        }
        assert!(now[at..] == before[at..], "written behind all buffers");
    }
}
