//! The life of a virtio device, from reset to reset: status bits, feature negotiation, the set-up of queues. Virtio 1.2,
//! sections 2.1, 2.2 and 3.1. Written once for all transports, which only decode registers.
//!
//! Called on vCPU threads, under the transport's lock. What a driver does out of order is ignored, as the specification
//! allows; nothing it writes after DRIVER_OK changes a queue.

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::config_change::ConfigNotifier;
use super::device::{
    ActivateError, ActivationContext, GuestMemory, VirtioDevice, VirtioDeviceType, VirtioInterrupt,
    WorkerError, WorkerHost, WorkerId,
};
use super::metrics::DeviceMetrics;
use super::notification::Notification;
use super::queue::ActiveQueue;
use crate::error_chain;
use crate::metrics::Tally;

/// Status bits (2.1).
pub mod bits {
    /// The guest has seen the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The guest has a driver for it.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Features are agreed on.
    pub const FEATURES_OK: u8 = 8;
    /// The device cannot go on without a reset.
    pub const DEVICE_NEEDS_RESET: u8 = 64;
    /// The driver has given up.
    pub const FAILED: u8 = 128;
}

/// Features of the ring and of the transport that every device has (6).
pub mod features {
    /// Indirect descriptors.
    pub const RING_INDIRECT_DESC: u64 = 1 << 28;
    /// `used_event` and `avail_event`.
    pub const RING_EVENT_IDX: u64 = 1 << 29;
    /// No legacy interface. Must be accepted.
    pub const VERSION_1: u64 = 1 << 32;
    /// All three.
    pub const COMMON: u64 = RING_INDIRECT_DESC | RING_EVENT_IDX | VERSION_1;
}

/// What a transport adds to the interrupt: the wish for a reset, which any thread may express.
pub trait TransportState: VirtioInterrupt {
    /// Sets DEVICE_NEEDS_RESET and tells the driver.
    fn set_needs_reset(&self);
    /// Gives the configuration space a new generation; an interrupt for it does so, too.
    fn next_generation(&self);
    /// Whether it is set.
    fn needs_reset(&self) -> bool;
    /// After a reset: no interrupt pending, no reset needed.
    fn clear(&self);
}

/// The part of a ring that an address register names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingPart {
    /// The descriptor table.
    Descriptors,
    /// The available ring, which the driver writes.
    Available,
    /// The used ring, which the device writes.
    Used,
}

#[derive(Debug, Clone, Copy, Default)]
struct QueueSetup {
    max_size: u16,
    size: u16,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
}

impl QueueSetup {
    fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            ..Self::default()
        }
    }
}

/// A device and where it stands with its driver.
pub struct StatusMachine {
    metrics: Arc<DeviceMetrics>,
    /// How often the device could not start, or could not go on.
    stopped: Tally,
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    host: Arc<dyn WorkerHost>,
    state: Arc<dyn TransportState>,
    interrupt: Arc<dyn VirtioInterrupt>,
    notifications: Vec<Arc<Notification>>,
    queues: Vec<QueueSetup>,
    status: u8,
    driver_features: u64,
    worker: Option<WorkerId>,
    config: ConfigNotifier,
}

impl StatusMachine {
    /// A device after reset. `notifications` are the events of its queues, `metrics` its counters and its name.
    pub fn new<T: TransportState + 'static>(
        metrics: Arc<DeviceMetrics>,
        mut device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        host: Arc<dyn WorkerHost>,
        state: Arc<T>,
        notifications: Vec<Arc<Notification>>,
    ) -> Self {
        let queues = fresh_queues(&*device);
        let config = ConfigNotifier::new(state.clone());
        device.attach(config.clone());
        Self {
            config,
            stopped: metrics.tally("stopped"),
            metrics,
            device,
            memory,
            host,
            state: state.clone(),
            interrupt: state,
            notifications,
            queues,
            status: 0,
            driver_features: 0,
            worker: None,
        }
    }

    /// What the device is.
    pub fn device_type(&self) -> VirtioDeviceType {
        self.device.device_type()
    }

    /// The features offered.
    pub fn device_features(&self) -> u64 {
        self.device.device_features() | features::COMMON
    }

    /// The status register.
    pub fn status(&self) -> u8 {
        let needs_reset = if self.state.needs_reset() {
            bits::DEVICE_NEEDS_RESET
        } else {
            0
        };
        self.status | needs_reset
    }

    /// The driver writes the status register: 0 resets the device, all else adds bits.
    pub fn set_status(&mut self, value: u8) {
        if value == 0 {
            return self.reset();
        }
        // A driver must not clear bits (2.1.1); one that does gets what it had.
        for bit in [
            bits::ACKNOWLEDGE,
            bits::DRIVER,
            bits::FEATURES_OK,
            bits::DRIVER_OK,
            bits::FAILED,
        ] {
            if value & bit != 0 && self.status & bit == 0 {
                self.add_status(bit);
            }
        }
    }

    fn add_status(&mut self, bit: u8) {
        let has = |needed: u8| self.status & needed == needed;
        let allowed = match bit {
            bits::DRIVER => has(bits::ACKNOWLEDGE),
            bits::FEATURES_OK => has(bits::DRIVER) && self.features_are_good(),
            bits::DRIVER_OK => has(bits::FEATURES_OK) && !has(bits::FAILED),
            _ => true,
        };
        if !allowed {
            return;
        }
        self.status |= bit;
        if bit == bits::DRIVER_OK
            && let Err(err) = self.activate()
        {
            self.stopped
                .add(format_args!("cannot start: {}", error_chain(&err)));
            self.state.set_needs_reset();
        }
    }

    fn features_are_good(&self) -> bool {
        let offered = self.device_features();
        self.driver_features & !offered == 0 && self.driver_features & features::VERSION_1 != 0
    }

    /// 32 bits of what the driver accepts; `page` 0 has the lower ones. Ignored once features are agreed on.
    pub fn set_driver_features(&mut self, page: u32, value: u32) {
        if self.status & bits::FEATURES_OK != 0 {
            return;
        }
        let shift = match page {
            0 => 0,
            1 => 32,
            // What is beyond is never offered: accepting it must be refused, and remembered for that.
            _ if value == 0 => return,
            _ => {
                self.driver_features |= 1 << 63;
                return;
            }
        };
        let mask = u64::from(u32::MAX) << shift;
        self.driver_features = self.driver_features & !mask | u64::from(value) << shift;
    }

    /// A queue's largest size; 0 where there is no such queue.
    pub fn queue_max_size(&self, index: u32) -> u16 {
        self.queue(index).map_or(0, |queue| queue.max_size)
    }

    /// Whether a queue is set up.
    pub fn queue_ready(&self, index: u32) -> bool {
        self.queue(index).is_some_and(|queue| queue.ready)
    }

    fn queue(&self, index: u32) -> Option<&QueueSetup> {
        self.queues.get(usize::try_from(index).ok()?)
    }

    /// A queue that may be changed: not while the driver is at work, and not while it is ready.
    fn idle_queue(&mut self, index: u32) -> Option<&mut QueueSetup> {
        self.configurable(index).filter(|queue| !queue.ready)
    }

    fn configurable(&mut self, index: u32) -> Option<&mut QueueSetup> {
        if self.status & bits::DRIVER == 0 || self.status & bits::DRIVER_OK != 0 {
            return None;
        }
        self.queues.get_mut(usize::try_from(index).ok()?)
    }

    /// The driver chooses a queue's size: a power of two, not above the largest (2.7). All else is ignored.
    pub fn set_queue_size(&mut self, index: u32, size: u32) {
        if let Some(queue) = self.idle_queue(index)
            && let Ok(size) = u16::try_from(size)
            && size.is_power_of_two()
            && size <= queue.max_size
        {
            queue.size = size;
        }
    }

    /// 32 bits of a ring's address.
    pub fn set_ring_address(&mut self, index: u32, part: RingPart, high: bool, value: u32) {
        let Some(queue) = self.idle_queue(index) else {
            return;
        };
        let address = match part {
            RingPart::Descriptors => &mut queue.descriptors,
            RingPart::Available => &mut queue.available,
            RingPart::Used => &mut queue.used,
        };
        let shift = if high { 32 } else { 0 };
        *address = *address & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift;
    }

    /// The driver says that a queue is set up, or is not.
    pub fn set_queue_ready(&mut self, index: u32, ready: bool) {
        if let Some(queue) = self.configurable(index) {
            queue.ready = ready;
        }
    }

    /// Fills `data` from the device's configuration.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device.read_config(offset, data);
    }

    /// Writes to the device's configuration; only a driver may.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        if self.status & bits::DRIVER != 0 {
            self.device.write_config(offset, data);
        }
    }

    fn activate(&mut self) -> Result<(), ActivateError> {
        let mut queues = Vec::new();
        let mut notifications = Vec::new();
        let event_idx = self.driver_features & features::RING_EVENT_IDX != 0;
        for (index, (setup, event)) in (0..).zip(self.queues.iter().zip(&self.notifications)) {
            if !setup.ready {
                continue;
            }
            let queue = ring(setup, event_idx).ok_or(ActivateError::BadQueue { index })?;
            queues.push(ActiveQueue::new(
                index,
                queue,
                self.memory.clone(),
                self.interrupt.clone(),
                event.clone(),
            )?);
            notifications.push((index, event.clone()));
        }
        let worker = self.device.activate(ActivationContext {
            features: self.driver_features,
            queues,
            interrupt: self.interrupt.clone(),
            metrics: self.metrics.clone(),
        })?;
        let (state, tally) = (self.state.clone(), self.stopped.clone());
        let broken = Box::new(move |err: WorkerError| {
            let why = error_chain(&err);
            tally.add(format_args!("stopped until its driver resets it: {why}"));
            state.set_needs_reset();
        });
        self.worker = Some(self.host.start(worker, notifications, broken)?);
        Ok(self.config.driver_is_ready()?)
    }

    /// Back to the beginning. Nothing of the driver's memory is touched after the return.
    pub fn reset(&mut self) {
        if let Some(worker) = self.worker.take() {
            drop(self.host.stop(worker));
        }
        if self.status != 0 {
            self.metrics.resets.add(1);
        }
        self.status = 0;
        self.driver_features = 0;
        self.queues = fresh_queues(&*self.device);
        self.config.device_is_reset();
        self.state.clear();
    }
}

impl Drop for StatusMachine {
    fn drop(&mut self) {
        self.reset();
    }
}

fn fresh_queues(device: &dyn VirtioDevice) -> Vec<QueueSetup> {
    let sizes = device.queue_max_sizes().iter();
    sizes.copied().map(QueueSetup::new).collect()
}

fn ring(setup: &QueueSetup, event_idx: bool) -> Option<Queue> {
    let mut queue = Queue::new(setup.max_size).ok()?;
    queue.try_set_size(setup.size).ok()?;
    queue
        .try_set_desc_table_address(GuestAddress(setup.descriptors))
        .ok()?;
    queue
        .try_set_avail_ring_address(GuestAddress(setup.available))
        .ok()?;
    queue
        .try_set_used_ring_address(GuestAddress(setup.used))
        .ok()?;
    queue.set_event_idx(event_idx);
    queue.set_ready(true);
    Some(queue)
}
