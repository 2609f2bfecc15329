//! Virtio over MMIO. Virtio 1.2, section 4.2.2: registers of 32 bits, then the device's configuration space.
//!
//! Called on vCPU threads. Notifications usually do not come here: KVM turns a write to QueueNotify into the queue's event
//! by itself ([`MmioTransport::notifications`]). Interrupts are an edge of one line, with two bits that say what for.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;
use crate::metrics::LogBudget;
use crate::virtio::device::{
    GuestMemory, InterruptSource, VirtioDevice, VirtioInterrupt, WorkerHost,
};
use crate::virtio::metrics::DeviceMetrics;
use crate::virtio::notification::Notification;
use crate::virtio::status::{RingPart, StatusMachine, TransportState};

/// Registers, by their offset (4.2.2, table 4.1).
pub mod register {
    /// "virt".
    pub const MAGIC_VALUE: u64 = 0x000;
    /// 2.
    pub const VERSION: u64 = 0x004;
    /// What the device is.
    pub const DEVICE_ID: u64 = 0x008;
    /// Who made it.
    pub const VENDOR_ID: u64 = 0x00c;
    /// 32 of the features offered.
    pub const DEVICE_FEATURES: u64 = 0x010;
    /// Which.
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    /// 32 of the features accepted.
    pub const DRIVER_FEATURES: u64 = 0x020;
    /// Which.
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    /// The queue that the next six are about.
    pub const QUEUE_SEL: u64 = 0x030;
    /// Its largest size.
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    /// Its size.
    pub const QUEUE_NUM: u64 = 0x038;
    /// Whether it is set up.
    pub const QUEUE_READY: u64 = 0x044;
    /// The driver notifies a queue.
    pub const QUEUE_NOTIFY: u64 = 0x050;
    /// What the interrupt is about.
    pub const INTERRUPT_STATUS: u64 = 0x060;
    /// The driver has seen it.
    pub const INTERRUPT_ACK: u64 = 0x064;
    /// The status bits.
    pub const STATUS: u64 = 0x070;
    /// Descriptor table.
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    /// Descriptor table, upper half.
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    /// Available ring.
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    /// Available ring, upper half.
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    /// Used ring.
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    /// Used ring, upper half.
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    /// Length of the selected shared memory region, from here to 0x0bc with its base: there is none, all ones.
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    /// The last of them.
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    /// Changes with the configuration space.
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    /// The device's configuration space.
    pub const CONFIG: u64 = 0x100;
}

/// What is given to a guest's address space: registers and configuration.
pub const REGION_SIZE: u64 = 0x1000;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
/// "AMPL", of no meaning to drivers.
const VENDOR: u32 = u32::from_le_bytes(*b"AMPL");

const INTERRUPT_USED: u32 = 1;
const INTERRUPT_CONFIG: u32 = 2;

/// The part of the transport that every thread may touch: no lock, so that an I/O thread never waits for a vCPU.
struct MmioState {
    line: Arc<dyn InterruptLine>,
    interrupt_status: AtomicU32,
    /// Whether the host's kernel raises the interrupt, too. It sets no bit here: "used buffers" is then always said, and the
    /// driver's look at its queues is all that it costs where it is not so.
    by_kernel: AtomicBool,
    needs_reset: AtomicBool,
    config_generation: AtomicU32,
    metrics: Arc<DeviceMetrics>,
    /// Told when the device needs a reset.
    broken: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl MmioState {
    fn interrupt_status(&self) -> u32 {
        let used = if self.by_kernel.load(Ordering::SeqCst) {
            INTERRUPT_USED
        } else {
            0
        };
        self.interrupt_status.load(Ordering::SeqCst) | used
    }
}

impl VirtioInterrupt for MmioState {
    fn trigger(&self, source: InterruptSource) -> io::Result<()> {
        let bit = match source {
            InterruptSource::Config => {
                self.metrics.config_interrupts.add(1);
                self.next_generation();
                INTERRUPT_CONFIG
            }
            InterruptSource::Queue(_) => {
                self.metrics.interrupts.add(1);
                INTERRUPT_USED
            }
        };
        self.interrupt_status.fetch_or(bit, Ordering::SeqCst);
        self.line.trigger()
    }

    fn irqfd(&self, source: InterruptSource) -> Option<&EventFd> {
        let event = self.line.irqfd()?;
        if source == InterruptSource::Config {
            return None;
        }
        self.by_kernel.store(true, Ordering::SeqCst);
        Some(event)
    }
}

impl TransportState for MmioState {
    fn set_needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        if let Some(broken) = self.broken.get() {
            broken();
        }
        if let Err(err) = self.trigger(InterruptSource::Config) {
            let tally = self.metrics.host_error();
            tally.add(format_args!("cannot interrupt the guest: {err}"));
        }
    }

    fn next_generation(&self) {
        self.config_generation.fetch_add(1, Ordering::SeqCst);
    }

    fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    fn clear(&self) {
        self.needs_reset.store(false, Ordering::SeqCst);
        self.by_kernel.store(false, Ordering::SeqCst);
        self.interrupt_status.store(0, Ordering::SeqCst);
    }
}

/// A device behind MMIO registers.
pub struct MmioTransport {
    state: Arc<MmioState>,
    notifications: Vec<Arc<Notification>>,
    machine: Mutex<Registers>,
}

/// What the registers select, and the device that they lead to.
struct Registers {
    device: StatusMachine,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
}

impl MmioTransport {
    /// Puts `device` behind registers. `name` is for messages, which are taken from `log`; `line` its interrupt; its worker will run
    /// on `host`.
    ///
    /// # Errors
    /// The host has no events left.
    pub fn new(
        name: String,
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        host: Arc<dyn WorkerHost>,
        line: Arc<dyn InterruptLine>,
        log: Arc<LogBudget>,
    ) -> io::Result<Self> {
        let notifications = device
            .queue_max_sizes()
            .iter()
            .map(|_| Notification::new().map(Arc::new))
            .collect::<io::Result<Vec<_>>>()?;
        let queues = notifications.iter();
        let metrics = DeviceMetrics::new(
            name,
            device.device_type(),
            queues.map(|queue| queue.metrics().clone()).collect(),
        );
        let metrics = Arc::new(metrics.with_log(log));
        let state = Arc::new(MmioState {
            line,
            interrupt_status: AtomicU32::new(0),
            by_kernel: AtomicBool::new(false),
            needs_reset: AtomicBool::new(false),
            config_generation: AtomicU32::new(0),
            metrics: metrics.clone(),
            broken: OnceLock::new(),
        });
        let device = StatusMachine::new(
            metrics,
            device,
            memory,
            host,
            state.clone(),
            notifications.clone(),
        );
        Ok(Self {
            state,
            notifications,
            machine: Mutex::new(Registers {
                device,
                device_features_sel: 0,
                driver_features_sel: 0,
                queue_sel: 0,
            }),
        })
    }

    /// The queues' events: each stands for a write of its index to [`register::QUEUE_NOTIFY`].
    pub fn notifications(&self) -> &[Arc<Notification>] {
        &self.notifications
    }

    /// Has `hook` called, on whatever thread, each time the device needs a reset by its driver. The first hook stays.
    pub fn on_needs_reset(&self, hook: Box<dyn Fn() + Send + Sync>) {
        let _ = self.state.broken.set(hook);
    }

    /// The device's counters.
    pub fn metrics(&self) -> &Arc<DeviceMetrics> {
        &self.state.metrics
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self, offset: u64) -> u32 {
        use register::*;
        match offset {
            MAGIC_VALUE => MAGIC,
            VERSION => self::VERSION,
            VENDOR_ID => VENDOR,
            INTERRUPT_STATUS => self.state.interrupt_status(),
            CONFIG_GENERATION => self.state.config_generation.load(Ordering::SeqCst),
            SHM_LEN_LOW..=SHM_BASE_HIGH => u32::MAX,
            _ => {
                let registers = self.lock();
                let queue = registers.queue_sel;
                let device = &registers.device;
                match offset {
                    DEVICE_ID => device.device_type().0,
                    DEVICE_FEATURES => match registers.device_features_sel {
                        0 => device.device_features() as u32,
                        1 => (device.device_features() >> 32) as u32,
                        _ => 0,
                    },
                    QUEUE_NUM_MAX => u32::from(device.queue_max_size(queue)),
                    QUEUE_READY => u32::from(device.queue_ready(queue)),
                    STATUS => u32::from(device.status()),
                    _ => 0,
                }
            }
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        use register::*;
        match offset {
            QUEUE_NOTIFY => {
                let index = usize::try_from(value).unwrap_or(usize::MAX);
                if let Some(event) = self.notifications.get(index) {
                    event.notify();
                }
                return;
            }
            INTERRUPT_ACK => {
                self.state
                    .interrupt_status
                    .fetch_and(!value, Ordering::SeqCst);
                return;
            }
            _ => {}
        }
        let mut registers = self.lock();
        let queue = registers.queue_sel;
        let (driver_page, device) = (registers.driver_features_sel, &mut registers.device);
        match offset {
            DEVICE_FEATURES_SEL => registers.device_features_sel = value,
            DRIVER_FEATURES_SEL => registers.driver_features_sel = value,
            DRIVER_FEATURES => device.set_driver_features(driver_page, value),
            QUEUE_SEL => registers.queue_sel = value,
            QUEUE_NUM => device.set_queue_size(queue, value),
            QUEUE_READY => device.set_queue_ready(queue, value & 1 != 0),
            QUEUE_DESC_LOW => device.set_ring_address(queue, RingPart::Descriptors, false, value),
            QUEUE_DESC_HIGH => device.set_ring_address(queue, RingPart::Descriptors, true, value),
            QUEUE_DRIVER_LOW => device.set_ring_address(queue, RingPart::Available, false, value),
            QUEUE_DRIVER_HIGH => device.set_ring_address(queue, RingPart::Available, true, value),
            QUEUE_DEVICE_LOW => device.set_ring_address(queue, RingPart::Used, false, value),
            QUEUE_DEVICE_HIGH => device.set_ring_address(queue, RingPart::Used, true, value),
            // Bits above the eighth are none.
            STATUS => device.set_status(value as u8),
            _ => {}
        }
    }
}

impl MmioTransport {
    /// Lets the driver reach the device. One that panics needs a reset, like one whose data half does.
    fn guarded(&self, access: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(access)).is_err() {
            // The hook has printed where and why.
            let tally = self.state.metrics.tally("panicked");
            tally.add("stopped until its driver resets it: the device panicked");
            self.state.set_needs_reset();
        }
    }

    fn read_guarded(&self, offset: u64, data: &mut [u8]) {
        if offset >= register::CONFIG {
            return self
                .lock()
                .device
                .read_config(offset - register::CONFIG, data);
        }
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) if offset.is_multiple_of(4) => {
                *word = self.read_register(offset).to_le_bytes();
            }
            // Registers have 32 bits (4.2.2.2); all other accesses read zero.
            _ => data.fill(0),
        }
    }

    fn write_guarded(&self, offset: u64, data: &[u8]) {
        if offset >= register::CONFIG {
            return self
                .lock()
                .device
                .write_config(offset - register::CONFIG, data);
        }
        if let Ok(word) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.guarded(|| self.read_guarded(offset, data));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.guarded(|| self.write_guarded(offset, data));
    }
}
