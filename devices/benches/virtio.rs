//! What a virtqueue costs by itself, and what a disk's requests cost over a disk that costs nothing:
//! `cargo bench -p ampoule-devices --bench virtio`. Without the driver, its exits and its interrupts; all times are of a batch.

use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ampoule_devices::backend::disk::BlockBackend;
use ampoule_devices::virtio::block::{Block, BlockConfig, CacheMode, Engine};
use ampoule_devices::virtio::queue::{ActiveQueue, Chain};
use ampoule_devices::virtio::{
    ActivationContext, DeviceMetrics, InterruptSource, Notification, VirtioDevice,
    VirtioDeviceType, VirtioInterrupt,
};
use criterion::{Criterion, Throughput};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, VolatileSlice};

/// Chains that are made available at once.
const BATCH: u16 = 16;
const SIZE: u16 = 256;

const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x3000;
const USED: u64 = 0x4000;
const INDIRECT: u64 = 0x5000;
const BUFFERS: u64 = 0x10_0000;
const MEMORY: usize = 4 << 20;

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;

struct NoInterrupt;

impl VirtioInterrupt for NoInterrupt {
    fn trigger(&self, source: InterruptSource) -> io::Result<()> {
        black_box(source);
        Ok(())
    }
}

/// A buffer: where, how long, whether the device writes to it.
type Piece = (u64, u32, bool);

/// The driver's side of a ring, with [`BATCH`] chains laid out once and for all, which are made available again and again.
struct Driver {
    memory: GuestMemoryMmap,
    available: u16,
}

impl Driver {
    /// `chain` says of what pieces each of the batch's chains is.
    fn new(chain: impl Fn(u64) -> Vec<Piece>, indirect: bool) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]);
        let driver = Self {
            memory: memory.expect("the host has memory"),
            available: 0,
        };
        let mut next = 0;
        for number in 0..BATCH {
            let pieces = chain(number.into());
            let head = next;
            if indirect {
                let table = INDIRECT + u64::from(number) * 0x1000;
                driver.put_chain(table, 0, &pieces);
                driver.put_descriptor(DESCRIPTORS, head, (table, 16 * pieces.len() as u32), {
                    (F_INDIRECT, 0)
                });
                next += 1;
            } else {
                driver.put_chain(DESCRIPTORS, head, &pieces);
                next += pieces.len() as u16;
            }
            assert!(next <= SIZE, "the batch is larger than the table");
            // The ring's entries stay as they are: only its index moves.
            for slot in (number..SIZE).step_by(BATCH.into()) {
                driver.put(AVAILABLE + 4 + u64::from(slot) * 2, head);
            }
        }
        driver
    }

    fn put<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.memory
            .write_obj(value, GuestAddress(address))
            .expect("all is in memory");
    }

    fn put_chain(&self, table: u64, first: u16, pieces: &[Piece]) {
        for (index, (address, len, writable)) in (first..).zip(pieces) {
            let is_last = index + 1 == first + pieces.len() as u16;
            let flags = if *writable { F_WRITE } else { 0 } | if is_last { 0 } else { F_NEXT };
            let next = if is_last { 0 } else { index + 1 };
            self.put_descriptor(table, index, (*address, *len), (flags, next));
        }
    }

    fn put_descriptor(&self, table: u64, index: u16, buffer: (u64, u32), link: (u16, u16)) {
        let at = table + u64::from(index) * 16;
        self.put(at, buffer.0);
        self.put(at + 8, buffer.1);
        self.put(at + 12, link.0);
        self.put(at + 14, link.1);
    }

    /// Makes a batch available.
    fn offer(&mut self) {
        self.available = self.available.wrapping_add(BATCH);
        self.put(AVAILABLE + 2, self.available);
    }

    /// That the device has given back all that it was offered.
    fn check(&self) {
        let used: u16 = self
            .memory
            .read_obj(GuestAddress(USED + 2))
            .expect("all is in memory");
        assert_eq!(used, self.available);
    }

    /// The device's side.
    fn queue(&self) -> ActiveQueue {
        let mut queue = Queue::new(SIZE).expect("it is a power of two");
        queue.set_size(SIZE);
        queue.set_desc_table_address(Some(DESCRIPTORS as u32), Some(0));
        queue.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_ready(true);
        let notification = Notification::new().expect("the host has an event left");
        let (memory, interrupt) = (self.memory.clone(), Arc::new(NoInterrupt));
        ActiveQueue::new(0, queue, memory, interrupt, Arc::new(notification))
            .expect("the rings are in memory")
    }
}

/// Chains are taken apart, and given back as they are.
fn ring(criterion: &mut Criterion) {
    let pieces = |count: u64| {
        move |chain: u64| {
            let piece = |index| (BUFFERS + (chain * count + index) * 0x1000, 0x1000, false);
            (0..count).map(piece).collect()
        }
    };
    let mut group = criterion.benchmark_group("ring");
    group.throughput(Throughput::Elements(BATCH.into()));
    for (name, count, indirect) in [
        ("1 descriptor", 1, false),
        ("3 descriptors", 3, false),
        ("3 indirect descriptors", 3, true),
        ("16 indirect descriptors", 16, true),
    ] {
        let mut driver = Driver::new(pieces(count), indirect);
        let mut queue = driver.queue();
        let mut chain = Chain::new();
        let mut serve = || {
            driver.offer();
            let served = queue.serve(&mut chain, |chain, _| {
                black_box(chain.readable());
                Ok(0)
            });
            served.expect("the ring is as it should be");
        };
        serve();
        group.bench_function(name, |bench| bench.iter(&mut serve));
        driver.check();
    }
    group.finish();
}

/// A disk of zeroes that forgets what is written.
struct NoDisk;

const SECTORS: u64 = 1 << 20;

impl BlockBackend for NoDisk {
    fn size(&self) -> u64 {
        SECTORS * 512
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, data: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        black_box((data, offset));
        Ok(())
    }

    fn write_at(&self, data: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        self.read_at(data, offset)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Ok(())
    }
}

/// Of requests: where each chain's header, data and status are.
const SPAN: u64 = 0x3000;

/// Requests of a disk are read, checked and answered.
fn requests(criterion: &mut Criterion) {
    const IN: u32 = 0;
    const OUT: u32 = 1;
    const GET_ID: u32 = 8;
    let mut group = criterion.benchmark_group("disk requests");
    group.throughput(Throughput::Elements(BATCH.into()));
    for (name, kind, sector, len, status) in [
        ("read of 4 KiB", IN, 8, 4096, 0),
        ("write of 4 KiB", OUT, 8, 4096, 0),
        ("name", GET_ID, 0, 20, 0),
        ("beyond the end", IN, SECTORS, 4096, 1),
        ("unknown", 99, 0, 4096, 2),
    ] {
        let chain = move |number: u64| {
            let base = BUFFERS + number * SPAN;
            vec![
                (base, 16, false),
                (base + 0x1000, len, kind != OUT),
                (base + 0x2000, 1, true),
            ]
        };
        let mut driver = Driver::new(chain, false);
        for number in 0..u64::from(BATCH) {
            let header = BUFFERS + number * SPAN;
            driver.put(header, kind);
            // All at one place: requests that follow one another would be made by one call.
            driver.put(header + 8, sector);
        }
        let queue = driver.queue();
        let mut worker = worker(queue);
        let mut serve = || {
            driver.offer();
            worker
                .process_queue(0)
                .expect("the ring is as it should be");
        };
        serve();
        group.bench_function(name, |bench| bench.iter(&mut serve));
        driver.check();
        let answer: u8 = driver
            .memory
            .read_obj(GuestAddress(BUFFERS + 0x2000))
            .expect("all is in memory");
        assert_eq!(answer, status, "{name}");
    }
    group.finish();
}

/// The data half of a disk.
fn worker(queue: ActiveQueue) -> Box<dyn ampoule_devices::virtio::VirtioWorker> {
    let config = BlockConfig {
        name: "disk".into(),
        serial: "disk".into(),
        cache: CacheMode::Writeback,
        queues: 1,
        limiter: None,
        poll: Duration::ZERO,
    };
    let mut device = Block::new(config, Arc::new(NoDisk), Engine::sync());
    let metrics = DeviceMetrics::new("disk", VirtioDeviceType::BLOCK, Vec::new());
    let context = ActivationContext {
        features: device.device_features(),
        queues: vec![queue],
        interrupt: Arc::new(NoInterrupt),
        metrics: Arc::new(metrics),
    };
    device.activate(context).expect("it has its queue")
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    ring(&mut criterion);
    requests(&mut criterion);
    criterion.final_summary();
}
