//! Devices that the owner of a VM brings: virtio devices behind the built-in transport, and whatever answers at addresses of
//! the guest's buses.
//!
//! They outlive the machines of their VM: a restart of the guest builds a new machine, and gives it the same devices, after a
//! reset. A device that panics does not take its VM with it: its driver sees DEVICE_NEEDS_RESET, or all ones from a device of
//! the bus, and [`VmEvent::DeviceNeedsReset`] says so.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use ampoule_arch::acpi::{self, AcpiError, AddressRange};
use ampoule_devices::bus::{BusDevice, BusError};
use ampoule_devices::interrupt::EventLine;
use ampoule_devices::virtio::{
    ActivateError, ActivationContext, ConfigNotifier, VirtioDevice, VirtioDeviceType, VirtioWorker,
};

use crate::config::VmConfig;
use crate::error::Error;
use crate::events::{EventBus, VmEvent};
use crate::own_backends::OwnBackends;

/// Where a device of the owner's answers.
///
/// ```
/// use ampoule_vmm::Placement;
///
/// // Wherever there is room for 4 KiB; its entry in ACPI tells the guest where.
/// let anywhere = Placement::Mmio { base: None, size: 0x1000 };
/// let ports = Placement::Port { base: 0x510, len: 2 };
/// # assert_ne!(anywhere, ports);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Guest physical addresses, between 0xc000_0000 and 0xfec0_0000, where there is no RAM.
    Mmio {
        /// The first address, a multiple of 4 KiB; none for one that is free.
        base: Option<u64>,
        /// How many bytes.
        size: u64,
    },
    /// I/O ports.
    Port {
        /// The first port.
        base: u16,
        /// How many ports.
        len: u16,
    },
}

/// Why a device of the owner's cannot be put where it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OwnDeviceError {
    /// Its addresses are none that a device may have.
    #[error("it cannot be at {placement:x?}")]
    Placement {
        /// Where it should be.
        placement: Placement,
    },
    /// Its addresses are another device's.
    #[error("its addresses are taken")]
    Bus(#[from] BusError),
    /// There is no interrupt line left.
    #[error("there is no interrupt line left for it")]
    NoLine,
    /// Its ACPI entry cannot be.
    #[error("it has no valid ACPI entry")]
    Acpi(#[from] AcpiError),
    /// There are too few or too many back ends for a network.
    #[error("it has {pairs} back ends, not 1 to {max}")]
    Pairs {
        /// How many.
        pairs: usize,
        /// The most.
        max: usize,
    },
    /// Another device has its id.
    #[error("another device has its id")]
    Id,
}

/// Where a device has been put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Its addresses.
    pub range: AddressRange,
    /// Its interrupt lines (GSIs), in the order in which it asked for them.
    pub gsis: Vec<u32>,
}

/// A write that rings an event instead of reaching the device, on no thread of the VM (KVM_IOEVENTFD).
///
/// ```
/// use ampoule_vmm::IoEvent;
/// use ampoule_vmm::devices::EventFd;
///
/// // A doorbell: the guest's 32-bit write of 1 to the device's first address.
/// let event = EventFd::new(libc::EFD_NONBLOCK)?;
/// let bell = IoEvent { offset: 0, value: Some(1), event: event.try_clone()? };
/// # drop((bell, event));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct IoEvent {
    /// Where, from the start of the device's range.
    pub offset: u64,
    /// Only 32-bit writes of this value; none for every write.
    pub value: Option<u32>,
    /// What is rung.
    pub event: EventFd,
}

type AcpiEntry = Arc<dyn Fn(&Placed) -> Result<Vec<u8>, AcpiError> + Send + Sync>;

/// A device of the owner's for a bus, and what it needs besides its addresses.
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU8, Ordering};
/// use ampoule_vmm::devices::{BusDevice, EventFd, EventLine, InterruptLine};
/// use ampoule_vmm::{OwnBusDevice, Placement, VmBuilder, config::VmConfig};
///
/// /// One byte that is kept; each write is an interrupt.
/// struct Latch {
///     byte: AtomicU8,
///     line: Arc<EventLine>,
/// }
///
/// impl BusDevice for Latch {
///     fn read(&self, _: u64, data: &mut [u8]) {
///         data.fill(self.byte.load(Ordering::Relaxed));
///     }
///
///     fn write(&self, _: u64, data: &[u8]) {
///         self.byte.store(data[0], Ordering::Relaxed);
///         let _ = self.line.trigger();
///     }
/// }
///
/// let line = Arc::new(EventLine::new(EventFd::new(libc::EFD_NONBLOCK)?));
/// let latch = Arc::new(Latch { byte: AtomicU8::new(0), line: line.clone() });
/// let device = OwnBusDevice::new(latch).interrupt(line).acpi_device("LTCH", "ACME0001");
/// let anywhere = Placement::Mmio { base: None, size: 0x1000 };
/// let builder = VmBuilder::new(VmConfig::default()).bus_device("latch", anywhere, device);
/// # drop(builder);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct OwnBusDevice {
    device: Arc<dyn BusDevice>,
    pub(crate) lines: Vec<Arc<EventLine>>,
    pub(crate) events: Arc<Vec<IoEvent>>,
    entry: Option<AcpiEntry>,
}

impl OwnBusDevice {
    /// A device that needs nothing but its addresses.
    pub fn new(device: Arc<dyn BusDevice>) -> Self {
        Self {
            device,
            lines: Vec::new(),
            events: Arc::default(),
            entry: None,
        }
    }

    /// Gives it an interrupt line, edge-triggered: each ring of its event is one interrupt. The device keeps a clone.
    pub fn interrupt(mut self, line: Arc<EventLine>) -> Self {
        self.lines.push(line);
        self
    }

    /// Has some writes to it ring events.
    pub fn io_events(mut self, events: Vec<IoEvent>) -> Self {
        self.events = Arc::new(events);
        self
    }

    /// Describes it to the guest as a device with this name and `_HID`: `name` of four upper-case letters, digits or underscores
    /// that no other device has, `id` like `PNP0501` or `ACME0001`.
    pub fn acpi_device(self, name: &str, id: &str) -> Self {
        let (name, id) = (name.to_owned(), id.to_owned());
        self.acpi(move |placed| acpi::custom_device(&name, &id, placed.range, &placed.gsis))
    }

    /// Describes it to the guest by AML of its own, which is put into the scope `\_SB`.
    pub fn acpi(
        mut self,
        entry: impl Fn(&Placed) -> Result<Vec<u8>, AcpiError> + Send + Sync + 'static,
    ) -> Self {
        self.entry = Some(Arc::new(entry));
        self
    }

    /// Its AML; empty where it has none.
    pub(crate) fn aml(&self, placed: &Placed) -> Result<Vec<u8>, AcpiError> {
        self.entry
            .as_ref()
            .map_or(Ok(Vec::new()), |entry| entry(placed))
    }
}

impl<D: BusDevice + 'static> From<Arc<D>> for OwnBusDevice {
    fn from(device: Arc<D>) -> Self {
        Self::new(device)
    }
}

/// What the owner of a VM brings.
#[derive(Default)]
pub(crate) struct OwnDevices {
    pub(crate) virtio: Vec<(String, SharedVirtio)>,
    pub(crate) bus: Vec<(String, Placement, OwnBusDevice)>,
    pub(crate) backends: OwnBackends,
}

impl OwnDevices {
    /// Sees to it that an id names one device.
    pub(crate) fn check_ids(&self, config: &VmConfig) -> Result<(), Error> {
        let virtio = self.virtio.iter().map(|(id, _)| id);
        let virtio = self.backends.ids().chain(virtio);
        let mut own = virtio.chain(self.bus.iter().map(|(id, ..)| id)).peekable();
        // Most VMs have none, and are not to pay for them.
        if own.peek().is_none() {
            return Ok(());
        }
        let mut ids: BTreeSet<String> = config.device_ids().collect();
        for id in own {
            if !ids.insert(id.clone()) {
                return Err(Error::OwnDevice {
                    device: id.clone(),
                    source: OwnDeviceError::Id,
                });
            }
        }
        Ok(())
    }
}

/// A virtio device that outlives its transports.
#[derive(Clone)]
pub(crate) struct SharedVirtio {
    device: Arc<Mutex<Box<dyn VirtioDevice>>>,
    device_type: VirtioDeviceType,
    queue_sizes: Arc<[u16]>,
}

impl SharedVirtio {
    pub(crate) fn new(device: impl VirtioDevice + 'static) -> Self {
        Self {
            device_type: device.device_type(),
            queue_sizes: device.queue_max_sizes().into(),
            device: Arc::new(Mutex::new(Box::new(device))),
        }
    }

    /// Never contended: the transport, whose lock comes before this one, is its only user.
    fn lock(&self) -> MutexGuard<'_, Box<dyn VirtioDevice>> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VirtioDevice for SharedVirtio {
    fn attach(&mut self, config: ConfigNotifier) {
        self.lock().attach(config);
    }

    fn device_type(&self) -> VirtioDeviceType {
        self.device_type
    }

    fn device_features(&self) -> u64 {
        self.lock().device_features()
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.lock().read_config(offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.lock().write_config(offset, data);
    }

    fn activate(
        &mut self,
        context: ActivationContext,
    ) -> Result<Box<dyn VirtioWorker>, ActivateError> {
        self.lock().activate(context)
    }
}

/// A device of the bus that may panic: from then on nobody answers at its addresses, until the next machine.
pub(crate) struct Guarded {
    id: String,
    device: Arc<dyn BusDevice>,
    broken: AtomicBool,
    events: Arc<EventBus>,
}

impl Guarded {
    /// The device as it is after a reset.
    pub(crate) fn new(id: &str, device: &OwnBusDevice, events: &Arc<EventBus>) -> Self {
        let guarded = Self {
            id: id.to_owned(),
            device: device.device.clone(),
            broken: AtomicBool::new(false),
            events: events.clone(),
        };
        guarded.call(|device| device.reset());
        guarded
    }

    fn call(&self, access: impl FnOnce(&dyn BusDevice)) {
        if self.broken.load(Ordering::Acquire) {
            return;
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| access(&*self.device)));
        // The hook has printed where and why.
        if outcome.is_err() && !self.broken.swap(true, Ordering::AcqRel) {
            log::error!("{}: the device panicked", self.id);
            self.events.tell(VmEvent::DeviceNeedsReset {
                device: self.id.clone(),
            });
        }
    }
}

impl BusDevice for Guarded {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        self.call(|device| device.read(offset, data));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.call(|device| device.write(offset, data));
    }
}
