//! Which devices a machine has, where they are, and how their interrupts reach KVM.
//!
//! Runs once for each machine, on the thread that builds it. The manager knows no device by name beyond the short table of
//! legacy ones: a device is a range on a bus, a line perhaps, and a line in ACPI.

use std::sync::Arc;

use kvm_ioctls::IoEventAddress;
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
use ampoule_devices::metrics::LogBudget;

use ampoule_devices::virtio::DeviceMetrics;
use ampoule_devices::virtio::block::Resizer;
use ampoule_devices::virtio::transport::mmio::{MmioTransport, register};

use crate::error::Error;
use crate::events::VmEvent;
use crate::exit::ExitReason;
use crate::handle::Shared;
use crate::io_thread::WorkerLoop;
use crate::kvm::VmFd;
use crate::memory::GuestRam;
use crate::own_devices::{Guarded, OwnBusDevice, OwnDeviceError, Placed, Placement};
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
    /// What is left for others.
    resources: ResourceAllocator,
    /// What ACPI says of the devices.
    pub(crate) descriptions: Vec<DeviceInfo>,
}

/// What the virtio devices of a machine work with.
pub(crate) struct VirtioHost<'a> {
    pub(crate) ram: &'a GuestRam,
    /// Where their data halves run.
    pub(crate) workers: &'a Arc<WorkerLoop>,
    pub(crate) shared: &'a Shared,
    pub(crate) log: &'a Arc<LogBudget>,
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
            resources: ResourceAllocator::default(),
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
        to: &VirtioHost<'_>,
        devices: Vec<NamedDevice>,
    ) -> Result<(), Error> {
        for (name, device) in devices {
            let slot = self.resources.slot()?;
            let irq = Arc::new(line(vm, slot.gsi)?);
            let (ram, workers, log) = (to.ram.clone(), to.workers.clone(), to.log.clone());
            let transport = MmioTransport::new(name, device, ram, workers, irq, log)
                .map_err(Error::host("virtio device"))?;
            let (events, device) = (to.shared.events.clone(), transport.metrics().clone());
            transport.on_needs_reset(Box::new(move || {
                events.tell(VmEvent::DeviceNeedsReset {
                    device: device.name().to_owned(),
                });
            }));
            self.metrics.push(transport.metrics().clone());
            for (index, queue) in (0..).zip(transport.notifications()) {
                let register = IoEventAddress::Mmio(slot.base + register::QUEUE_NOTIFY);
                vm.register_ioevent(queue.event(), &register, Some(index))?;
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

    /// Adds the devices of the owner's to their buses.
    pub(crate) fn add_own(
        &mut self,
        vm: &VmFd,
        shared: &Shared,
        devices: &[(String, Placement, OwnBusDevice)],
    ) -> Result<(), Error> {
        for (id, placement, device) in devices {
            let failed = |source| Error::OwnDevice {
                device: id.clone(),
                source,
            };
            let placed = self.place(*placement, device).map_err(failed)?;
            let guarded = Arc::new(Guarded::new(id, device, &shared.events));
            let inserted = match placed.range {
                AddressRange::Mmio { base, size } => self.mmio.insert(base, size, guarded),
                AddressRange::Port { base, len } => {
                    self.ports.insert(base.into(), len.into(), guarded)
                }
            };
            inserted.map_err(|err| failed(err.into()))?;
            for (line, gsi) in device.lines.iter().zip(&placed.gsis) {
                vm.register_irqfd(line.event(), *gsi)?;
            }
            for event in device.events.iter() {
                let address = match placed.range {
                    AddressRange::Mmio { base, .. } => IoEventAddress::Mmio(base + event.offset),
                    AddressRange::Port { base, .. } => {
                        IoEventAddress::Pio(u64::from(base) + event.offset)
                    }
                };
                vm.register_ioevent(&event.event, &address, event.value)?;
            }
            self.descriptions.push(DeviceInfo {
                kind: DeviceKind::Custom(device.aml(&placed).map_err(|err| failed(err.into()))?),
                range: placed.range,
                gsi: None,
            });
        }
        Ok(())
    }

    /// Finds a place for a device of the owner's.
    fn place(
        &mut self,
        placement: Placement,
        device: &OwnBusDevice,
    ) -> Result<Placed, OwnDeviceError> {
        let nowhere = || OwnDeviceError::Placement { placement };
        let (range, len) = match placement {
            Placement::Mmio { base, size } => {
                let base = self.resources.window(base, size).ok_or_else(nowhere)?;
                (AddressRange::Mmio { base, size }, size)
            }
            Placement::Port { base, len } => {
                let end = u32::from(base) + u32::from(len);
                if len == 0 || end > 1 << 16 {
                    return Err(nowhere());
                }
                (AddressRange::Port { base, len }, len.into())
            }
        };
        if device.events.iter().any(|event| event.offset >= len) {
            return Err(nowhere());
        }
        let lines = device.lines.iter().map(|_| self.resources.line());
        let gsis = lines.collect::<Option<Vec<u32>>>();
        Ok(Placed {
            range,
            gsis: gsis.ok_or(OwnDeviceError::NoLine)?,
        })
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
