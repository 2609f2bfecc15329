//! Changes of a device's configuration space from the host's side: a disk that grows, a terminal that is resized.
//!
//! The device changes what it shows first, and notifies then. The transport gives the configuration a new generation, so
//! that a driver that is reading it reads it again (virtio 1.2, 2.5), and interrupts the driver once that is ready.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::InterruptSource;
use super::status::TransportState;

/// Tells the driver of a device that its configuration space has changed. Cheap to clone; any thread may use it.
#[derive(Clone)]
pub struct ConfigNotifier {
    state: Arc<dyn TransportState>,
    since_reset: Arc<Mutex<SinceReset>>,
}

/// What has happened since the device was reset. Its lock is held for no longer than an interrupt takes.
#[derive(Debug, Default)]
struct SinceReset {
    driver_ready: bool,
    changed: bool,
}

impl ConfigNotifier {
    pub(super) fn new(state: Arc<dyn TransportState>) -> Self {
        Self {
            state,
            since_reset: Arc::default(),
        }
    }

    /// The configuration space has changed.
    ///
    /// # Errors
    /// The host's, where it cannot interrupt the guest.
    pub fn notify(&self) -> io::Result<()> {
        let mut since_reset = self.since_reset();
        since_reset.changed = true;
        if since_reset.driver_ready {
            return self.state.trigger(InterruptSource::Config);
        }
        self.state.next_generation();
        Ok(())
    }

    /// The driver may be interrupted from now on; it is at once, if it may have read what is no more.
    pub(super) fn driver_is_ready(&self) -> io::Result<()> {
        let mut since_reset = self.since_reset();
        since_reset.driver_ready = true;
        match since_reset.changed {
            true => self.state.trigger(InterruptSource::Config),
            false => Ok(()),
        }
    }

    pub(super) fn device_is_reset(&self) {
        *self.since_reset() = SinceReset::default();
    }

    fn since_reset(&self) -> MutexGuard<'_, SinceReset> {
        self.since_reset
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
