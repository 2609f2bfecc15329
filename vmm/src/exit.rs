//! Why a VM came to its end.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::vcpu::VcpuFailure;

/// Why a VM came to its end.
///
/// ```
/// use ampoule_vmm::ExitReason;
///
/// /// The exit status of a program that runs a guest as a test.
/// fn status(reason: &ExitReason) -> u8 {
///     match reason {
///         ExitReason::PowerOff => 0,
///         ExitReason::Deadline => 124,
///         reason if reason.is_guest_crash() => 134,
///         _ => 125,
///     }
/// }
/// assert_eq!(status(&ExitReason::TripleFault { vcpu: 0 }), 134);
/// assert_eq!(ExitReason::Stopped.to_string(), "the VM was stopped");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitReason {
    /// The guest powered itself off.
    PowerOff,
    /// The guest reset itself, and the configuration says that this ends it.
    Reset,
    /// The guest's kernel panicked.
    Panic(GuestPanic),
    /// A vCPU met a fault while it was delivering a double fault (KVM_EXIT_SHUTDOWN).
    TripleFault {
        /// The vCPU's index.
        vcpu: u32,
    },
    /// KVM could not go on with a vCPU.
    VcpuFailed(Box<VcpuFailure>),
    /// Its owner stopped it.
    Stopped,
    /// It ran for longer than its `timeout`.
    Deadline,
    /// The VMM itself failed while the guest was running.
    HostFailed {
        /// What failed and why.
        message: String,
    },
}

impl ExitReason {
    /// Whether the guest is to blame: a panic, a triple fault, or a state in which KVM could not run it.
    pub fn is_guest_crash(&self) -> bool {
        matches!(
            self,
            Self::Panic(_) | Self::TripleFault { .. } | Self::VcpuFailed(_)
        )
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest reset itself"),
            Self::Panic(panic) => write!(f, "the guest's kernel panicked: {}", panic.summary()),
            Self::TripleFault { vcpu } => {
                write!(f, "the guest crashed: triple fault on vCPU {vcpu}")
            }
            Self::VcpuFailed(failure) => failure.fmt(f),
            Self::Stopped => f.write_str("the VM was stopped"),
            Self::Deadline => f.write_str("the VM reached its time limit"),
            Self::HostFailed { message } => write!(f, "the VMM failed: {message}"),
        }
    }
}

/// What is known of a kernel panic.
///
/// ```
/// use ampoule_vmm::{ExitReason, GuestPanic};
///
/// fn tell(reason: &ExitReason) {
///     if let ExitReason::Panic(GuestPanic { last_lines, .. }) = reason {
///         last_lines.iter().for_each(|line| println!("{line}"));
///     }
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GuestPanic {
    /// The panic line as the kernel printed it on COM1; `None` where only the pvpanic device told of it.
    pub line: Option<String>,
    /// The last lines on COM1, oldest first; terminal control sequences removed.
    pub last_lines: Vec<String>,
}

impl GuestPanic {
    fn summary(&self) -> &str {
        self.line
            .as_deref()
            .unwrap_or("noticed by the pvpanic device, no line on the console")
    }
}

/// The place where a VM's end is written down: the first reason stays, save that a reset, which may be none, gives way to
/// the owner's stop and to the time limit.
///
/// Set by vCPU threads (power-off, reset, crashes), by the control thread and by the VM's owner; the control thread waits on
/// the event and does the rest.
#[derive(Debug)]
pub(crate) struct ExitLatch {
    set: AtomicBool,
    reason: Mutex<Option<ExitReason>>,
    event: EventFd,
}

impl ExitLatch {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            set: AtomicBool::new(false),
            reason: Mutex::new(None),
            event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    /// Writes `reason` down unless there is one already that stays, and wakes the control thread.
    pub(crate) fn set(&self, reason: ExitReason) {
        {
            let mut slot = self
                .reason
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            let is_final = matches!(reason, ExitReason::Stopped | ExitReason::Deadline);
            match &*slot {
                None => {}
                Some(ExitReason::Reset) if is_final => {}
                Some(_) => return,
            }
            *slot = Some(reason);
            self.set.store(true, Ordering::Release);
        }
        // Writing 1 to an eventfd fails only where its counter is full, and then it is readable anyway.
        let _ = self.event.write(1);
    }

    /// Whether there is a reason. Cheap enough to ask after every exit of a vCPU.
    pub(crate) fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    /// Takes the reason, so that the VM can run again.
    pub(crate) fn take(&self) -> Option<ExitReason> {
        let mut slot = self
            .reason
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let _ = self.event.read();
        self.set.store(false, Ordering::Release);
        slot.take()
    }

    /// Readable when there is a reason.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stays_until_it_is_taken() {
        let latch = ExitLatch::new().unwrap();
        assert!(!latch.is_set());
        latch.set(ExitReason::PowerOff);
        latch.set(ExitReason::Stopped);
        assert!(latch.is_set());
        assert_eq!(latch.take(), Some(ExitReason::PowerOff));
        assert!(!latch.is_set());
        assert_eq!(latch.take(), None);
        latch.set(ExitReason::Reset);
        assert_eq!(latch.event().read().unwrap(), 1);
        latch.set(ExitReason::PowerOff);
        latch.set(ExitReason::Stopped);
        latch.set(ExitReason::Deadline);
        assert_eq!(latch.take(), Some(ExitReason::Stopped), "a reset is no end");
    }
}
