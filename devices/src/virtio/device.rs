//! What a virtio device is to the rest: the traits of its two halves, and what they are given.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::config_change::ConfigNotifier;
use super::metrics::DeviceMetrics;
use super::notification::Notification;
use super::queue::{ActiveQueue, QueueError};

/// The guest's RAM, as devices reach it.
pub type GuestMemory = GuestMemoryMmap<()>;

/// The device id (virtio 1.2, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioDeviceType(pub u32);

impl VirtioDeviceType {
    /// Network device (5.1).
    pub const NET: Self = Self(1);
    /// Block device (5.2).
    pub const BLOCK: Self = Self(2);
    /// Console device (5.3).
    pub const CONSOLE: Self = Self(3);
    /// Entropy device (5.4).
    pub const RNG: Self = Self(4);
    /// Socket device (5.10).
    pub const VSOCK: Self = Self(19);
    /// File system device (5.11).
    pub const FS: Self = Self(26);

    /// In a word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NET => "net",
            Self::BLOCK => "block",
            Self::CONSOLE => "console",
            Self::RNG => "rng",
            Self::VSOCK => "vsock",
            Self::FS => "fs",
            _ => "other",
        }
    }
}

/// What an interrupt is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterruptSource {
    /// The device's configuration or status changed.
    Config,
    /// A queue has used buffers.
    Queue(u16),
}

/// How a device interrupts its driver. Callable from any thread; does not block.
pub trait VirtioInterrupt: Send + Sync {
    /// Raises an interrupt.
    ///
    /// # Errors
    /// The host's, where it could not pass the interrupt on.
    fn trigger(&self, source: InterruptSource) -> io::Result<()>;

    /// The event by which the host's kernel raises the interrupt without us, from now until the device is reset. None where it
    /// cannot.
    fn irqfd(&self, source: InterruptSource) -> Option<&EventFd> {
        let _ = source;
        None
    }
}

/// What a device is given when its driver is ready.
pub struct ActivationContext {
    /// The features that driver and device agreed on.
    pub features: u64,
    /// The queues that the driver set up, in the order of their indices.
    pub queues: Vec<ActiveQueue>,
    /// For configuration changes; each queue has its own way to notify.
    pub interrupt: Arc<dyn VirtioInterrupt>,
    /// The device's counters, the same after each reset.
    pub metrics: Arc<DeviceMetrics>,
}

/// Why a device cannot start. The driver sees DEVICE_NEEDS_RESET.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// The driver left out a queue that the device cannot do without.
    #[error("queue {index} is not set up")]
    MissingQueue {
        /// Which.
        index: u16,
    },
    /// A ring lies outside of guest memory, or is none.
    #[error("queue {index} cannot be used")]
    BadQueue {
        /// Which.
        index: u16,
    },
    /// The host failed.
    #[error("the host cannot run the device")]
    Host(#[from] io::Error),
}

/// Why a worker cannot go on. The driver sees DEVICE_NEEDS_RESET, and nothing more happens until it resets the device.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// The driver broke the rules of the ring.
    #[error("the driver broke queue {index}")]
    Queue {
        /// Which.
        index: u16,
        /// How.
        #[source]
        source: QueueError,
    },
    /// The host failed.
    #[error("the host failed")]
    Host(#[from] io::Error),
}

/// The control half of a device. Owned by the status machine; called on vCPU threads, one at a time.
pub trait VirtioDevice: Send {
    /// Given once, before any other call: by this the device tells its driver of changes to its configuration space.
    fn attach(&mut self, config: ConfigNotifier) {
        let _ = config;
    }

    /// What it is.
    fn device_type(&self) -> VirtioDeviceType;

    /// The features of its own that it offers. The ring's and the transport's are added by the status machine.
    fn device_features(&self) -> u64;

    /// The largest size of each of its queues: powers of two, at most 1024.
    fn queue_max_sizes(&self) -> &[u16];

    /// Fills `data` from the device's configuration space; what lies beyond its end is zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The driver writes to the configuration space. Most devices have nothing there to write to.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver is ready: makes the data half. May not open, map or spawn anything.
    ///
    /// # Errors
    /// [`ActivateError`]; the driver may reset the device and try again.
    fn activate(
        &mut self,
        context: ActivationContext,
    ) -> Result<Box<dyn VirtioWorker>, ActivateError>;
}

/// Fills `data` from a configuration space, with zeroes beyond its end.
pub(super) fn read_space(space: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset)
        .ok()
        .and_then(|offset| space.get(offset..))
        .unwrap_or_default();
    let known = rest.len().min(data.len());
    data[..known].copy_from_slice(&rest[..known]);
    data[known..].fill(0);
}

/// Something besides its queues that a worker waits for.
#[derive(Debug, Clone, Copy)]
pub struct EventSource {
    /// The descriptor, open for as long as the worker lives.
    pub fd: RawFd,
    /// Comes back with [`VirtioWorker::process_event`]; below 2^16.
    pub token: u32,
    /// What to wait for.
    pub events: EventSet,
}

/// The data half of a device. Lives on an I/O thread, which it shares with others: a call does a bounded amount of work
/// and does not wait.
pub trait VirtioWorker: Send {
    /// What it waits for besides its queues' notifications.
    fn event_sources(&self) -> Vec<EventSource> {
        Vec::new()
    }

    /// Whether it is to be called for a queue's notifications; not, where the host's kernel waits for them.
    fn takes_notifications(&self, index: u16) -> bool {
        let _ = index;
        true
    }

    /// The driver notified a queue (or might have: the first call after activation comes unasked).
    ///
    /// # Errors
    /// [`WorkerError`] stops the worker until the driver resets the device.
    fn process_queue(&mut self, index: u16) -> Result<(), WorkerError>;

    /// A descriptor of [`Self::event_sources`] is ready.
    ///
    /// # Errors
    /// As for [`Self::process_queue`].
    fn process_event(&mut self, token: u32, events: EventSet) -> Result<(), WorkerError> {
        let _ = (token, events);
        Ok(())
    }

    /// The VM is to stand still: finishes what is in flight, and touches no guest memory until [`Self::resume`] or
    /// [`Self::stop`]. It is not called for anything else meanwhile. Most workers have nothing in flight between two calls.
    ///
    /// # Errors
    /// As for [`Self::process_queue`].
    fn pause(&mut self) -> Result<(), WorkerError> {
        Ok(())
    }

    /// The VM goes on.
    ///
    /// # Errors
    /// As for [`Self::process_queue`].
    fn resume(&mut self) -> Result<(), WorkerError> {
        Ok(())
    }

    /// Finishes or drops what is in flight, and hands the queues back.
    fn stop(self: Box<Self>) -> Vec<ActiveQueue>;
}

/// A worker on its I/O thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerId(pub u64);

/// Where workers run.
pub trait WorkerHost: Send + Sync {
    /// Takes a worker in. `notifications` are its queues' events, by index; `broken` is called on the I/O thread, at most
    /// once, when the worker returns an error.
    ///
    /// # Errors
    /// The host cannot wait for its events; the worker has been dropped.
    fn start(
        &self,
        worker: Box<dyn VirtioWorker>,
        notifications: Vec<(u16, Arc<Notification>)>,
        broken: Box<dyn FnOnce(WorkerError) + Send>,
    ) -> io::Result<WorkerId>;

    /// Stops a worker and waits until it has. Empty where there is none any more.
    fn stop(&self, id: WorkerId) -> Vec<ActiveQueue>;
}
