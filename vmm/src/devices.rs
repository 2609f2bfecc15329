//! What a device of a program's own is made of: the traits that the built-in devices implement, and the types that these speak
//! in, from the crates that have them.
//!
//! A virtio device has a control half, [`VirtioDevice`], and a data half, [`VirtioWorker`], which owns the queues while the
//! driver is at work ([`ActiveQueue`]); it goes to [`VmBuilder::virtio_device`](crate::VmBuilder::virtio_device). Anything else
//! is a [`BusDevice`], for [`VmBuilder::bus_device`](crate::VmBuilder::bus_device).

pub use ampoule_arch::acpi::{AcpiError, AddressRange};
pub use ampoule_devices::bus::{BusDevice, BusError};
pub use ampoule_devices::interrupt::{EventLine, InterruptLine};
pub use ampoule_devices::metrics::{Counter, Tally};
pub use ampoule_devices::virtio::queue::{
    ActiveQueue, Buffer, Chain, MAX_CHAIN, MAX_QUEUE_SIZE, QueueError, slices,
};
pub use ampoule_devices::virtio::{
    ActivateError, ActivationContext, ConfigNotifier, DeviceMetrics, EventSource, InterruptSource,
    VirtioDevice, VirtioDeviceType, VirtioInterrupt, VirtioWorker, WorkerError,
};
pub use vm_memory::VolatileSlice;
pub use vmm_sys_util::epoll::EventSet;
pub use vmm_sys_util::eventfd::EventFd;
