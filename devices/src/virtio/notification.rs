//! A queue's notifications: an event that its driver rings, by way of KVM, and that its worker waits for.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::metrics::QueueMetrics;

/// The event of a queue. A driver's notification rings it; a worker that wants to be called again does, too.
#[derive(Debug)]
pub struct Notification {
    event: EventFd,
    metrics: Arc<QueueMetrics>,
}

impl Notification {
    /// One that has not rung.
    ///
    /// # Errors
    /// The host has no events left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            metrics: Arc::default(),
        })
    }

    /// What to wait on, and what a write to the transport's register rings.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// The counters of its queue.
    pub fn metrics(&self) -> &Arc<QueueMetrics> {
        &self.metrics
    }

    /// The driver notifies the queue.
    pub fn notify(&self) {
        // The only error is a counter that is full, which is a notification, too.
        let _ = self.event.write(1);
    }

    /// Rings without the driver.
    ///
    /// # Errors
    /// The host's.
    pub fn ring(&self) -> io::Result<()> {
        self.metrics.own_rings.add(1);
        match self.event.write(1) {
            // It rings already.
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }

    /// Takes what has come; `false` where nothing has.
    pub fn take(&self) -> bool {
        match self.event.read() {
            Ok(rings) => {
                self.metrics.rings.add(rings);
                true
            }
            Err(_) => false,
        }
    }
}
