//! Interrupt lines, as a device sees them.
//!
//! A line is edge-triggered: each trigger is one interrupt, and there is nothing to take back. How
//! it reaches the guest is the VMM's affair; [`EventLine`] is the usual way, an event that KVM turns
//! into an interrupt by itself (irqfd).

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// An edge-triggered interrupt line. Callable from any thread.
pub trait InterruptLine: Send + Sync {
    /// Raises one interrupt. Does not block.
    ///
    /// # Errors
    /// The host's, where it could not pass the interrupt on.
    fn trigger(&self) -> io::Result<()>;

    /// The event that the host's kernel may ring instead; none where there is none.
    fn irqfd(&self) -> Option<&EventFd> {
        None
    }
}

/// A line that rings an event, which is registered as an irqfd.
#[derive(Debug)]
pub struct EventLine {
    event: EventFd,
}

impl EventLine {
    /// A line that rings `event`, which should be non-blocking.
    pub fn new(event: EventFd) -> Self {
        Self { event }
    }

    /// The event that is rung, to register it.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

impl InterruptLine for EventLine {
    fn trigger(&self) -> io::Result<()> {
        match self.event.write(1) {
            // The event's counter is full: nobody has looked at it for 2^64 rings, and it is ringing.
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result,
        }
    }

    fn irqfd(&self) -> Option<&EventFd> {
        Some(&self.event)
    }
}

/// A line for tests: counts its interrupts, and fails when told to.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug, Default)]
pub struct CountingLine {
    count: std::sync::atomic::AtomicU64,
    broken: std::sync::atomic::AtomicBool,
    event: std::sync::OnceLock<EventFd>,
}

#[cfg(any(test, feature = "testing"))]
impl CountingLine {
    /// How many interrupts there were.
    pub fn count(&self) -> u64 {
        self.count.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Makes it fail from now on.
    pub fn break_it(&self) {
        self.broken.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

#[cfg(any(test, feature = "testing"))]
impl InterruptLine for CountingLine {
    fn trigger(&self) -> io::Result<()> {
        if self.broken.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Ok(())
    }

    fn irqfd(&self) -> Option<&EventFd> {
        let new = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        Some(self.event.get_or_init(new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trigger_rings_the_event_and_a_full_one_is_ringing_already() {
        let line = EventLine::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        line.trigger().unwrap();
        line.trigger().unwrap();
        assert_eq!(line.event().read().unwrap(), 2);
        line.event().write(u64::MAX - 1).unwrap();
        line.trigger().unwrap();
    }
}
