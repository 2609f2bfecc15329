//! A driver for tests: it reaches a device as guests do, by registers and rings in memory, and may break every rule.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::device::{GuestMemory, VirtioDevice, VirtioWorker, WorkerError, WorkerHost, WorkerId};
use super::notification::Notification;
use super::queue::ActiveQueue;
use super::status::{bits, features};
use super::transport::mmio::{MmioTransport, register};
use crate::bus::BusDevice;
use crate::interrupt::CountingLine;

pub(crate) const F_NEXT: u16 = 1;
pub(crate) const F_WRITE: u16 = 2;
pub(crate) const F_INDIRECT: u16 = 4;

/// RAM: from 0 to here, then a hole, then [`HIGH`].
pub(crate) const LOW_END: u64 = 0x60_0000;
/// A second region of RAM, of 64 KiB.
pub(crate) const HIGH: u64 = 0x80_0000;
pub(crate) const HIGH_END: u64 = HIGH + 0x1_0000;

/// Where the rings of queue 0 are; each other queue's are 0x4000 further on.
pub(crate) const DESCRIPTORS: u64 = 0x1000;
pub(crate) const AVAILABLE: u64 = 0x2000;
pub(crate) const USED: u64 = 0x3000;
/// Free for buffers.
pub(crate) const BUFFERS: u64 = 0x4_0000;

struct Running {
    id: WorkerId,
    worker: Box<dyn VirtioWorker>,
    notifications: Vec<(u16, Arc<Notification>)>,
    broken: Option<Box<dyn FnOnce(WorkerError) + Send>>,
}

/// Runs workers when the test says so, on its own thread.
#[derive(Default)]
pub(crate) struct TestHost {
    running: Mutex<Vec<Running>>,
    last: AtomicU64,
}

impl TestHost {
    /// Serves notifications until none is left or `turns` of them were; how many were.
    pub(crate) fn run(&self, turns: usize) -> usize {
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

    /// Has the workers handle an event of their own, and then what it led to.
    pub(crate) fn event(&self, token: u32) {
        for runner in self.running.lock().unwrap().iter_mut() {
            let handled = runner.worker.process_event(token, EventSet::IN);
            if let Err(err) = handled {
                runner.broken.take().unwrap()(err);
            }
        }
        self.run(1000);
    }

    pub(crate) fn workers(&self) -> usize {
        self.running.lock().unwrap().len()
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
pub(crate) struct Desc {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

/// A readable descriptor that is followed by `next`, or is the last.
pub(crate) fn readable(address: u64, len: u32, next: Option<u16>) -> Desc {
    Desc {
        address,
        len,
        flags: if next.is_some() { F_NEXT } else { 0 },
        next: next.unwrap_or(0),
    }
}

/// The same for a writable one.
pub(crate) fn writable(address: u64, len: u32, next: Option<u16>) -> Desc {
    let desc = readable(address, len, next);
    Desc {
        flags: desc.flags | F_WRITE,
        ..desc
    }
}

/// A device with its driver.
pub(crate) struct Driver {
    pub(crate) transport: MmioTransport,
    pub(crate) memory: GuestMemory,
    pub(crate) host: Arc<TestHost>,
    pub(crate) line: Arc<CountingLine>,
    size: u16,
}

impl Driver {
    /// A device after reset.
    pub(crate) fn new(device: impl VirtioDevice + 'static) -> Self {
        let ranges = [
            (GuestAddress(0), LOW_END as usize),
            (GuestAddress(HIGH), (HIGH_END - HIGH) as usize),
        ];
        let memory: GuestMemory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let host = Arc::new(TestHost::default());
        let line = Arc::new(CountingLine::default());
        let transport = MmioTransport::new(
            "test".into(),
            Box::new(device),
            memory.clone(),
            host.clone(),
            line.clone(),
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
    pub(crate) fn ready(device: impl VirtioDevice + 'static, queues: u32) -> Self {
        let driver = Self::new(device);
        driver.set_up(queues, !features::RING_EVENT_IDX);
        driver
    }

    pub(crate) fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn write(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    pub(crate) fn status(&self) -> u8 {
        self.read(register::STATUS) as u8
    }

    pub(crate) fn add_status(&self, bit: u8) -> u8 {
        self.write(register::STATUS, u32::from(self.status() | bit));
        self.status()
    }

    pub(crate) fn needs_reset(&self) -> bool {
        self.status() & bits::DEVICE_NEEDS_RESET != 0
    }

    pub(crate) fn offered(&self) -> u64 {
        let page = |page| {
            self.write(register::DEVICE_FEATURES_SEL, page);
            u64::from(self.read(register::DEVICE_FEATURES))
        };
        page(0) | page(1) << 32
    }

    pub(crate) fn accept(&self, features: u64) {
        for page in [0, 1] {
            self.write(register::DRIVER_FEATURES_SEL, page);
            self.write(register::DRIVER_FEATURES, (features >> (32 * page)) as u32);
        }
    }

    /// From reset to DRIVER_OK, accepting what is offered of `wanted`.
    pub(crate) fn set_up(&self, queues: u32, wanted: u64) {
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

    pub(crate) fn set_up_queue(&self, index: u32) {
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

    pub(crate) fn put<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    pub(crate) fn get<T: vm_memory::ByteValued>(&self, address: u64) -> T {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    pub(crate) fn put_desc(&self, table: u64, index: u16, desc: Desc) {
        let at = table + u64::from(index) * 16;
        self.put(at, desc.address);
        self.put(at + 8, desc.len);
        self.put(at + 12, desc.flags);
        self.put(at + 14, desc.next);
    }

    /// Makes a chain available in queue 0, without telling the device.
    pub(crate) fn make_available(&self, head: u16) {
        let index: u16 = self.get(AVAILABLE + 2);
        self.put(AVAILABLE + 4 + u64::from(index % self.size) * 2, head);
        self.put(AVAILABLE + 2, index.wrapping_add(1));
    }

    /// Lays `chain` at the table's start, makes it available, and lets the device work.
    pub(crate) fn send(&self, chain: &[Desc]) {
        for (index, desc) in (0..).zip(chain) {
            self.put_desc(DESCRIPTORS, index, *desc);
        }
        self.make_available(0);
        self.kick();
    }

    pub(crate) fn kick(&self) {
        self.write(register::QUEUE_NOTIFY, 0);
        self.host.run(1000);
    }

    pub(crate) fn used_index(&self) -> u16 {
        self.get(USED + 2)
    }

    /// The last entry of the used ring: head and bytes written.
    pub(crate) fn last_used(&self) -> (u32, u32) {
        let last = u64::from(self.used_index().wrapping_sub(1) % self.size);
        (self.get(USED + 4 + last * 8), self.get(USED + 8 + last * 8))
    }
}
