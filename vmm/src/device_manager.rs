//! Which devices a machine has, where they are, and how their interrupts reach KVM.
//!
//! Runs once for each machine, on the thread that builds it. The manager knows no device by name beyond the short table of
//! legacy ones: a device is a range on a bus, a line perhaps, and a line in ACPI.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use ampoule_arch::acpi::{AddressRange, DeviceInfo, DeviceKind};
use ampoule_arch::layout;
use ampoule_devices::bus::{Bus, BusDevice};
use ampoule_devices::console::ConsoleOutput;
use ampoule_devices::interrupt::EventLine;
use ampoule_devices::legacy::debug_port::DebugPort;
use ampoule_devices::legacy::i8042::I8042;
use ampoule_devices::legacy::power::{AcpiPower, PowerEvent};
use ampoule_devices::legacy::pvpanic::{PvPanic, PvPanicEvent};
use ampoule_devices::legacy::rtc::Rtc;
use ampoule_devices::legacy::serial::Serial;

use ampoule_devices::virtio::DeviceMetrics;
use ampoule_devices::virtio::block::Resizer;
use ampoule_devices::virtio::transport::mmio::{MmioTransport, register};

use crate::error::Error;
use crate::exit::ExitReason;
use crate::handle::Shared;
use crate::io_thread::WorkerLoop;
use crate::kvm::VmFd;
use crate::memory::GuestRam;
use crate::resource_allocator::ResourceAllocator;
use crate::virtio::NamedDevice;

/// The devices of one machine.
pub(crate) struct DeviceManager {
    /// Port I/O.
    pub(crate) ports: Arc<Bus>,
    /// Memory-mapped I/O.
    pub(crate) mmio: Arc<Bus>,
    /// COM1.
    pub(crate) serial: Arc<Serial>,
    /// The ACPI power registers and button.
    pub(crate) power: Arc<AcpiPower>,
    /// The counters of the virtio devices.
    pub(crate) metrics: Vec<Arc<DeviceMetrics>>,
    /// What changes disks' sizes.
    pub(crate) resizers: Vec<Resizer>,
    /// What ACPI says of the devices.
    pub(crate) descriptions: Vec<DeviceInfo>,
}

impl DeviceManager {
    /// Creates the devices that every machine has.
    pub(crate) fn new(
        vm: &VmFd,
        shared: &Arc<Shared>,
        output: &Arc<ConsoleOutput>,
        input_space: &EventFd,
    ) -> Result<Self, Error> {
        let serial = Arc::new(Serial::new(
            Arc::new(line(vm, layout::COM1_GSI)?),
            output.clone(),
            clone_event(input_space)?,
        ));
        let power = Arc::new(AcpiPower::new(
            Arc::new(line(vm, layout::ACPI_EVENT_GSI)?),
            on_power_event(shared),
        ));
        let i8042 = {
            let latch = shared.latch.clone();
            I8042::new(move || latch.set(ExitReason::Reset))
        };
        let pvpanic = {
            let watch = shared.watch.clone();
            PvPanic::new(move |event| {
                // "Crash loaded" says that a crash kernel takes over now, which is not the end.
                if event == PvPanicEvent::Panicked {
                    watch.panicked();
                }
            })
        };
        let debug_port = {
            let timeline = shared.timeline.clone();
            DebugPort::new(move |value| timeline.guest(format!("debug-port-{value}")))
        };

        let mut manager = Self {
            ports: Arc::new(Bus::new()),
            mmio: Arc::new(Bus::new()),
            serial: serial.clone(),
            power: power.clone(),
            metrics: Vec::new(),
            resizers: Vec::new(),
            descriptions: Vec::new(),
        };
        let com1 = (layout::COM1_PORT, layout::COM1_LEN);
        manager.add_port(DeviceKind::Serial, com1, Some(layout::COM1_GSI), serial)?;
        let acpi = (layout::ACPI_POWER_PORT, layout::ACPI_POWER_LEN);
        manager.add_port(DeviceKind::Power, acpi, Some(layout::ACPI_EVENT_GSI), power)?;
        let i8042_ports = (layout::I8042_PORT, layout::I8042_LEN);
        manager.add_port(DeviceKind::I8042, i8042_ports, None, Arc::new(i8042))?;
        let rtc = (layout::RTC_PORT, layout::RTC_LEN);
        manager.add_port(DeviceKind::Rtc, rtc, None, Arc::new(Rtc::new()))?;
        let pvpanic_port = (layout::PVPANIC_PORT, 1);
        manager.add_port(DeviceKind::PvPanic, pvpanic_port, None, Arc::new(pvpanic))?;
        let debug = (layout::DEBUG_PORT, 1);
        manager.add_port(DeviceKind::DebugPort, debug, None, Arc::new(debug_port))?;
        Ok(manager)
    }

    /// Adds virtio devices, each with registers and an interrupt line of its own.
    pub(crate) fn add_virtio(
        &mut self,
        vm: &VmFd,
        ram: &GuestRam,
        host: &Arc<WorkerLoop>,
        devices: Vec<NamedDevice>,
    ) -> Result<(), Error> {
        let mut resources = ResourceAllocator::default();
        for (name, device) in devices {
            let slot = resources.slot()?;
            let irq = Arc::new(line(vm, slot.gsi)?);
            let transport = MmioTransport::new(name, device, ram.clone(), host.clone(), irq)
                .map_err(Error::host("virtio device"))?;
            self.metrics.push(transport.metrics().clone());
            for (index, queue) in (0..).zip(transport.notifications()) {
                vm.register_ioevent(queue.event(), slot.base + register::QUEUE_NOTIFY, index)?;
            }
            let size = layout::VIRTIO_MMIO_SLOT_SIZE;
            self.mmio
                .insert(slot.base, size, Arc::new(transport))
                .map_err(Error::platform("devices"))?;
            self.descriptions.push(DeviceInfo {
                kind: DeviceKind::VirtioMmio,
                range: AddressRange::Mmio {
                    base: slot.base,
                    size,
                },
                gsi: Some(slot.gsi),
            });
        }
        Ok(())
    }

    fn add_port(
        &mut self,
        kind: DeviceKind,
        (base, len): (u16, u16),
        gsi: Option<u32>,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), Error> {
        self.ports
            .insert(u64::from(base), u64::from(len), device)
            .map_err(Error::platform("devices"))?;
        self.descriptions.push(DeviceInfo {
            kind,
            range: AddressRange::Port { base, len },
            gsi,
        });
        Ok(())
    }
}

fn on_power_event(shared: &Arc<Shared>) -> impl Fn(PowerEvent) + Send + Sync + 'static {
    let latch = shared.latch.clone();
    move |event| {
        latch.set(match event {
            PowerEvent::PowerOff => ExitReason::PowerOff,
            PowerEvent::Reset => ExitReason::Reset,
        });
    }
}

/// An edge-triggered interrupt line that KVM raises by itself.
fn line(vm: &VmFd, gsi: u32) -> Result<EventLine, Error> {
    let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
        .map_err(Error::host("interrupt event"))?;
    vm.register_irqfd(&event, gsi)?;
    Ok(EventLine::new(event))
}

fn clone_event(event: &EventFd) -> Result<EventFd, Error> {
    event.try_clone().map_err(Error::host("event"))
}
