//! The threads of a VM, and what its owner does on each before the guest runs.
//!
//! Without hooks nothing of this exists. With them, every thread calls its hook first; the first vCPU's thread waits for all
//! others, calls the last hook, and only then enters the guest. The lock is a leaf, and not held while a hook runs.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::exit::{ExitLatch, ExitReason};

/// A thread of a VM.
///
/// ```
/// use ampoule_vmm::{VmBuilder, VmThread, config::VmConfig};
///
/// let builder = VmBuilder::new(VmConfig::default()).on_thread_start(|thread| {
///     match thread {
///         VmThread::Vcpu { index } => println!("vCPU {index} could choose its CPU here"),
///         other => println!("the {other} starts"),
///     }
///     Ok(())
/// });
/// # drop(builder);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum VmThread {
    /// Owns the machine, moves console bytes and keeps deadlines; named `vm-control`, or the caller of
    /// [`Vm::run`](crate::Vm::run). Calls its hook once, however often the guest restarts.
    Control,
    /// Moves the data of virtio devices; named `io`.
    Io,
    /// Runs a vCPU; named `vcpuN`.
    Vcpu {
        /// The vCPU's index.
        index: u32,
    },
}

impl fmt::Display for VmThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control => f.write_str("control thread"),
            Self::Io => f.write_str("I/O thread"),
            Self::Vcpu { index } => write!(f, "thread of vCPU {index}"),
        }
    }
}

type StartHook = Arc<dyn Fn(VmThread) -> io::Result<()> + Send + Sync>;
type GuestHook = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// What the owner of a VM wants its threads to do.
#[derive(Clone, Default)]
pub(crate) struct ThreadHooks {
    pub(crate) on_start: Option<StartHook>,
    pub(crate) before_guest: Option<GuestHook>,
}

impl ThreadHooks {
    /// What a thread does first.
    pub(crate) fn run(&self, thread: VmThread) -> io::Result<()> {
        match &self.on_start {
            Some(hook) => guarded(|| hook(thread)),
            None => Ok(()),
        }
    }

    /// The place where the threads of a machine meet: `threads` of them. None where there is nothing to do there.
    pub(crate) fn muster(&self, threads: usize, latch: &Arc<ExitLatch>) -> Option<Arc<Muster>> {
        let wanted = self.on_start.is_some() || self.before_guest.is_some();
        wanted.then(|| {
            Arc::new(Muster {
                hooks: self.clone(),
                latch: latch.clone(),
                missing: Mutex::new(threads),
                all_here: Condvar::new(),
            })
        })
    }
}

/// Calls a hook. One that panics fails: others wait for its thread.
fn guarded(hook: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    catch_unwind(AssertUnwindSafe(hook)).unwrap_or_else(|_| Err(io::Error::other("it panicked")))
}

/// Where the threads of a machine meet before its guest runs.
pub(crate) struct Muster {
    hooks: ThreadHooks,
    latch: Arc<ExitLatch>,
    missing: Mutex<usize>,
    all_here: Condvar,
}

impl Muster {
    /// A thread is there, and does what its owner wants. The first vCPU's waits for the others.
    pub(crate) fn arrive(&self, thread: VmThread) {
        if let Err(err) = self.hooks.run(thread) {
            self.fail(&thread.to_string(), &err);
        }
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        *missing = missing.saturating_sub(1);
        self.all_here.notify_all();
        if thread != (VmThread::Vcpu { index: 0 }) {
            return;
        }
        while *missing > 0 {
            let waited = self.all_here.wait(missing);
            missing = waited.unwrap_or_else(PoisonError::into_inner);
        }
        drop(missing);
        if let Some(hook) = &self.hooks.before_guest
            && let Err(err) = guarded(|| hook())
        {
            self.fail("hook before the guest", &err);
        }
    }

    fn fail(&self, what: &str, err: &io::Error) {
        self.latch.set(ExitReason::HostFailed {
            message: format!("the {what} was not set up: {err}"),
        });
    }
}
