//! A driver for tests: it reaches a device as guests do, by registers and rings in memory, and may break every rule.
//!
//! Here for this crate's own tests, and by the feature `testing` for the fuzz targets. It panics where a test should fail.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::device::{
    EventSource, GuestMemory, VirtioDevice, VirtioWorker, WorkerError, WorkerHost, WorkerId,
};
use super::notification::Notification;
use super::queue::ActiveQueue;
use super::status::{bits, features};
use super::transport::mmio::{MmioTransport, register};
use crate::bus::BusDevice;
use crate::interrupt::CountingLine;

/// The descriptor has a successor.
pub const F_NEXT: u16 = 1;
/// The device writes to it.
pub const F_WRITE: u16 = 2;
/// It points to a table of others.
pub const F_INDIRECT: u16 = 4;

/// RAM: from 0 to here, then a hole, then [`HIGH`].
pub const LOW_END: u64 = 0x60_0000;
/// A second region of RAM, of 64 KiB.
pub const HIGH: u64 = 0x80_0000;
/// Its end.
pub const HIGH_END: u64 = HIGH + 0x1_0000;

/// Where the rings of queue 0 are; each other queue's are 0x4000 further on.
pub const DESCRIPTORS: u64 = 0x1000;
/// The available ring.
pub const AVAILABLE: u64 = 0x2000;
/// The used ring.
pub const USED: u64 = 0x3000;
/// Free for buffers.
pub const BUFFERS: u64 = 0x4_0000;

struct Running {
    id: WorkerId,
    worker: Box<dyn VirtioWorker>,
    notifications: Vec<(u16, Arc<Notification>)>,
    broken: Option<Box<dyn FnOnce(WorkerError) + Send>>,
}

/// Runs workers when the test says so, on its own thread.
#[derive(Default)]
pub struct TestHost {
    running: Mutex<Vec<Running>>,
    last: AtomicU64,
}

impl TestHost {
    /// Serves notifications until none is left or `turns` of them were; how many were.
    pub fn run(&self, turns: usize) -> usize {
        let mut served = 0;
        loop {
            let before = served;
            for runner in self.running.lock().unwrap().iter_mut() {
                if runner.broken.is_none() {
                    continue;
                }
                for at in 0..runner.notifications.len() {
                    let (index, event) = &runner.notifications[at];
                    if served == turns || !event.take() {
                        continue;
                    }
                    served += 1;
                    if let Err(err) = runner.worker.process_queue(*index) {
                        runner.broken.take().unwrap()(err);
                        break;
                    }
                }
            }
            if served == before {
                return served;
            }
        }
    }

    /// Has the workers handle an event of their own, ready or not, and then what it led to.
    pub fn event(&self, token: u32) {
        for runner in self.running.lock().unwrap().iter_mut() {
            let handled = runner.worker.process_event(token, EventSet::IN);
            if let Err(err) = handled {
                runner.broken.take().unwrap()(err);
            }
        }
        self.run(1000);
    }

    /// Waits, at most for ten seconds, until something that a worker waits for besides its queues is ready, and lets it work;
    /// whether there was.
    pub fn wait(&self) -> bool {
        let mut running = self.running.lock().unwrap();
        let sources: Vec<Vec<EventSource>> = running
            .iter()
            .map(|runner| runner.worker.event_sources())
            .collect();
        let mut polls: Vec<libc::pollfd> = sources
            .iter()
            .flatten()
            .map(|source| libc::pollfd {
                fd: source.fd,
                events: source.events.bits() as i16,
                revents: 0,
            })
            .collect();
        // SAFETY: the pointer and the count are of one vector of pollfds.
        let ready = unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as u64, 10_000) };
        let mut polls = polls.iter();
        for (runner, sources) in running.iter_mut().zip(&sources) {
            for (source, poll) in sources.iter().zip(&mut polls) {
                if poll.revents != 0
                    && runner.broken.is_some()
                    && let Err(err) = runner.worker.process_event(source.token, source.events)
                {
                    runner.broken.take().unwrap()(err);
                }
            }
        }
        ready > 0
    }

    /// Has workers look at what they wait for besides their queues, as far as it is ready.
    pub fn run_events(&self) {
        for runner in self.running.lock().unwrap().iter_mut() {
            for source in runner.worker.event_sources() {
                let ready = match runner.broken.is_some() {
                    true => ready(&source),
                    false => EventSet::empty(),
                };
                if ready.is_empty() {
                    continue;
                }
                if let Err(err) = runner.worker.process_event(source.token, ready) {
                    runner.broken.take().unwrap()(err);
                }
            }
        }
    }

    /// Has the workers stand still.
    pub fn pause(&self) {
        self.each(|worker| worker.pause());
    }

    /// Has them go on.
    pub fn resume(&self) {
        self.each(|worker| worker.resume());
    }

    fn each(&self, work: impl Fn(&mut dyn VirtioWorker) -> Result<(), WorkerError>) {
        for runner in self.running.lock().unwrap().iter_mut() {
            if runner.broken.is_some()
                && let Err(err) = work(&mut *runner.worker)
            {
                runner.broken.take().unwrap()(err);
            }
        }
    }

    /// How many there are.
    pub fn workers(&self) -> usize {
        self.running.lock().unwrap().len()
    }
}

/// What has happened of that which a worker waits for.
fn ready(source: &EventSource) -> EventSet {
    let wanted = source.events & (EventSet::IN | EventSet::OUT);
    let mut poll = libc::pollfd {
        fd: source.fd,
        events: wanted.bits() as libc::c_short,
        revents: 0,
    };
    // SAFETY: the pointer is to one live structure, as the count says.
    match unsafe { libc::poll(&raw mut poll, 1, 0) } {
        1 => EventSet::from_bits_truncate(poll.revents.cast_unsigned().into()),
        _ => EventSet::empty(),
    }
}

impl WorkerHost for TestHost {
    fn start(
        &self,
        worker: Box<dyn VirtioWorker>,
        notifications: Vec<(u16, Arc<Notification>)>,
        broken: Box<dyn FnOnce(WorkerError) + Send>,
    ) -> io::Result<WorkerId> {
        let id = WorkerId(self.last.fetch_add(1, Ordering::Relaxed));
        self.running.lock().unwrap().push(Running {
            id,
            worker,
            notifications,
            broken: Some(broken),
        });
        Ok(id)
    }

    fn stop(&self, id: WorkerId) -> Vec<ActiveQueue> {
        let mut running = self.running.lock().unwrap();
        let at = running.iter().position(|runner| runner.id == id);
        at.map(|at| running.remove(at).worker.stop())
            .unwrap_or_default()
    }
}

/// A descriptor, as it lies in a table.
#[derive(Debug, Clone, Copy)]
pub struct Desc {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
    /// [`F_NEXT`] and others.
    pub flags: u16,
    /// Its successor.
    pub next: u16,
}

/// A readable descriptor that is followed by `next`, or is the last.
pub fn readable(address: u64, len: u32, next: Option<u16>) -> Desc {
    Desc {
        address,
        len,
        flags: if next.is_some() { F_NEXT } else { 0 },
        next: next.unwrap_or(0),
    }
}

/// The same for a writable one.
pub fn writable(address: u64, len: u32, next: Option<u16>) -> Desc {
    let desc = readable(address, len, next);
    Desc {
        flags: desc.flags | F_WRITE,
        ..desc
    }
}

/// A device with its driver.
pub struct Driver {
    /// The device, behind its registers.
    pub transport: MmioTransport,
    /// The guest's memory.
    pub memory: GuestMemory,
    /// Where the device's worker runs.
    pub host: Arc<TestHost>,
    /// Its interrupt.
    pub line: Arc<CountingLine>,
    size: u16,
}

impl Driver {
    /// A device after reset.
    pub fn new(device: impl VirtioDevice + 'static) -> Self {
        let ranges = [
            (GuestAddress(0), LOW_END as usize),
            (GuestAddress(HIGH), (HIGH_END - HIGH) as usize),
        ];
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        Self::with_memory(Box::new(device), memory)
    }

    /// A device after reset, with memory of another shape.
    pub fn with_memory(device: Box<dyn VirtioDevice>, memory: GuestMemory) -> Self {
        let host = Arc::new(TestHost::default());
        let line = Arc::new(CountingLine::default());
        let transport = MmioTransport::new(
            "test".into(),
            device,
            memory.clone(),
            host.clone(),
            line.clone(),
            Arc::default(),
        )
        .unwrap();
        Self {
            transport,
            memory,
            host,
            line,
            size: 16,
        }
    }

    /// A device that is set up: `queues` queues of 16 descriptors, every feature but EVENT_IDX.
    pub fn ready(device: impl VirtioDevice + 'static, queues: u32) -> Self {
        let driver = Self::new(device);
        driver.set_up(queues, !features::RING_EVENT_IDX);
        driver
    }

    /// Reads a register.
    pub fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub fn write(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// The status bits.
    pub fn status(&self) -> u8 {
        self.read(register::STATUS) as u8
    }

    /// Sets a status bit; the status bits after that.
    pub fn add_status(&self, bit: u8) -> u8 {
        self.write(register::STATUS, u32::from(self.status() | bit));
        self.status()
    }

    /// Whether the device has given up.
    pub fn needs_reset(&self) -> bool {
        self.status() & bits::DEVICE_NEEDS_RESET != 0
    }

    /// The features that the device offers.
    pub fn offered(&self) -> u64 {
        let page = |page| {
            self.write(register::DEVICE_FEATURES_SEL, page);
            u64::from(self.read(register::DEVICE_FEATURES))
        };
        page(0) | page(1) << 32
    }

    /// Accepts these features.
    pub fn accept(&self, features: u64) {
        for page in [0, 1] {
            self.write(register::DRIVER_FEATURES_SEL, page);
            self.write(register::DRIVER_FEATURES, (features >> (32 * page)) as u32);
        }
    }

    /// From reset to DRIVER_OK, accepting what is offered of `wanted`.
    pub fn set_up(&self, queues: u32, wanted: u64) {
        self.write(register::STATUS, 0);
        self.add_status(bits::ACKNOWLEDGE);
        self.add_status(bits::DRIVER);
        self.accept(self.offered() & wanted);
        assert_ne!(self.add_status(bits::FEATURES_OK) & bits::FEATURES_OK, 0);
        for index in 0..queues {
            self.set_up_queue(index);
        }
        self.add_status(bits::DRIVER_OK);
    }

    /// Sets up a queue of 16 descriptors, with empty rings at their usual place.
    pub fn set_up_queue(&self, index: u32) {
        let base = u64::from(index) * 0x4000;
        self.memory
            .write_slice(&[0; 0x3000], GuestAddress(base + DESCRIPTORS))
            .unwrap();
        self.write(register::QUEUE_SEL, index);
        self.write(register::QUEUE_NUM, self.size.into());
        for (register, address) in [
            (register::QUEUE_DESC_LOW, DESCRIPTORS),
            (register::QUEUE_DRIVER_LOW, AVAILABLE),
            (register::QUEUE_DEVICE_LOW, USED),
        ] {
            self.write(register, (base + address) as u32);
            self.write(register + 4, 0);
        }
        self.write(register::QUEUE_READY, 1);
    }

    /// Writes to memory.
    pub fn put<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    /// Reads memory.
    pub fn get<T: vm_memory::ByteValued>(&self, address: u64) -> T {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    /// Writes an entry of a descriptor table.
    pub fn put_desc(&self, table: u64, index: u16, desc: Desc) {
        let at = table + u64::from(index) * 16;
        self.put(at, desc.address);
        self.put(at + 8, desc.len);
        self.put(at + 12, desc.flags);
        self.put(at + 14, desc.next);
    }

    /// Makes a chain available in queue 0, without telling the device.
    pub fn make_available(&self, head: u16) {
        let index: u16 = self.get(AVAILABLE + 2);
        self.put(AVAILABLE + 4 + u64::from(index % self.size) * 2, head);
        self.put(AVAILABLE + 2, index.wrapping_add(1));
    }

    /// Lays `chain` at the table's start, makes it available, and lets the device work.
    pub fn send(&self, chain: &[Desc]) {
        for (index, desc) in (0..).zip(chain) {
            self.put_desc(DESCRIPTORS, index, *desc);
        }
        self.make_available(0);
        self.kick();
    }

    /// Notifies queue 0, and lets the device work.
    pub fn kick(&self) {
        self.write(register::QUEUE_NOTIFY, 0);
        self.host.run(1000);
    }

    /// How many chains of queue 0 the device has given back.
    pub fn used_index(&self) -> u16 {
        self.get(USED + 2)
    }

    /// The last entry of the used ring: head and bytes written.
    pub fn last_used(&self) -> (u32, u32) {
        let last = u64::from(self.used_index().wrapping_sub(1) % self.size);
        (self.get(USED + 4 + last * 8), self.get(USED + 8 + last * 8))
    }
}
