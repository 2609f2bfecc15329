//! vCPUs: their state at power-on and the threads that run them.
//!
//! One thread a vCPU, named `vcpuN`. It owns its [`Vcpu`] and does nothing but enter the guest, answer what the guest asked
//! of a device (`exit`), and enter again, until the VM's end is written down or it is told to stop. It takes no lock of its
//! own; devices that it calls take theirs.
//!
//! Another thread reaches a vCPU only by a [`Kick`], after it has raised a flag: one that stops the vCPU, or the gate's, where
//! a paused VM's vCPUs wait (`gate`). The kick sets `immediate_exit` in the page shared with KVM, and sends [`kick_signal`].
//! Whatever the vCPU is doing, one of the three ends its KVM_RUN: the signal if it is in the guest, `immediate_exit` if it is
//! about to be, the flag if it is in a device.

mod exit;
mod failure;
mod gate;
mod setup;

use std::io;
use std::os::unix::thread::{JoinHandleExt, RawPthread};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use ampoule_devices::bus::Bus;

use crate::exit::{ExitLatch, ExitReason};
use crate::lifecycle::OwnThread;
use crate::memory::GuestRam;
use crate::metrics::VcpuMetrics;
use crate::threads::{Muster, VmThread};
use crate::timeline::Timeline;

use exit::Turn;

pub use failure::{FailureKind, Registers, VcpuFailure};
pub(crate) use gate::PauseGate;
pub(crate) use setup::VcpuTemplate;

/// Why a vCPU could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM refused a part of its state.
    #[error("KVM refused the {what} of vCPU {index}")]
    State {
        /// The vCPU's index.
        index: u32,
        /// Which part.
        what: &'static str,
        /// What KVM said.
        #[source]
        source: io::Error,
    },
    /// The host's CPUID cannot be made a guest's.
    #[error("cannot derive a guest's CPUID from the host's")]
    Cpuid(#[source] ampoule_arch::cpuid::CpuidError),
    /// A model-specific register was refused.
    #[error("KVM refused model-specific register {msr:#x} of vCPU {index}")]
    Msr {
        /// The vCPU's index.
        index: u32,
        /// The register.
        msr: u32,
    },
}

/// The signal that interrupts a vCPU: the first real-time signal of the C library.
///
/// The library installs an empty handler for it, once in the process, when the first vCPU thread is spawned: without a
/// handler the signal would end the process. A program that embeds the library leaves this signal alone.
///
/// ```
/// // For a program that blocks signals in all of its threads.
/// let keep = ampoule_vmm::kick_signal();
/// assert!(keep >= libc::SIGRTMIN());
/// ```
pub fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

fn install_kick_handler() -> io::Result<()> {
    extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| register_signal_handler(kick_signal(), ignore).map_err(|err| err.errno()))
        .map_err(io::Error::from_raw_os_error)
}

/// What a vCPU needs of its VM while it runs.
#[derive(Clone)]
pub(crate) struct VcpuContext {
    /// Port I/O.
    pub(crate) ports: Arc<Bus>,
    /// Memory-mapped I/O.
    pub(crate) mmio: Arc<Bus>,
    /// Where it writes the VM's end down.
    pub(crate) latch: Arc<ExitLatch>,
    /// Where it waits while the VM is paused.
    pub(crate) gate: Arc<PauseGate>,
    /// Where the first vCPU marks its first entry.
    pub(crate) timeline: Arc<Timeline>,
    /// What its thread counts.
    pub(crate) metrics: Arc<VcpuMetrics>,
    /// To show the bytes of an instruction that KVM could not execute.
    pub(crate) ram: GuestRam,
}

/// A vCPU, ready to run on whatever thread owns it.
pub(crate) struct Vcpu {
    index: u32,
    fd: VcpuFd,
    /// The page that `fd` shares with KVM; mapped for as long as `fd` lives.
    shared: NonNull<kvm_run>,
    /// How often in a row KVM_RUN has said that it may work another time.
    put_off: u32,
    context: VcpuContext,
}

// SAFETY: `shared` points into a mapping that `fd` owns, so that it may go where `fd` goes.
unsafe impl Send for Vcpu {}

impl Vcpu {
    fn new(index: u32, mut fd: VcpuFd, context: VcpuContext) -> Self {
        let shared = NonNull::from(fd.get_kvm_run());
        Self {
            index,
            fd,
            shared,
            put_off: 0,
            context,
        }
    }

    /// Starts the thread that runs this vCPU, and comes to `muster` first.
    pub(crate) fn spawn(mut self, muster: Option<Arc<Muster>>) -> io::Result<VcpuThread> {
        install_kick_handler()?;
        let stop = Arc::new(AtomicBool::new(false));
        let shared = SharedPage(self.shared);
        let thread = {
            let stop = stop.clone();
            thread::Builder::new()
                .name(format!("vcpu{}", self.index))
                // A vCPU thread's deepest stack is a device's register access.
                .stack_size(256 << 10)
                .spawn(move || {
                    let _own = OwnThread::enter();
                    if let Some(muster) = muster {
                        muster.arrive(VmThread::Vcpu { index: self.index });
                    }
                    self.run_guarded(&stop);
                    self.context.gate.leave();
                    self
                })?
        };
        let target = Target {
            shared,
            thread: thread.as_pthread_t(),
        };
        Ok(VcpuThread {
            stop,
            kick: Arc::new(Kick(Mutex::new(Some(target)))),
            thread,
        })
    }

    /// Runs until told to stop; a panic in a device ends the VM, not the process.
    fn run_guarded(&mut self, stop: &AtomicBool) {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.run(stop)));
        let reason = match outcome {
            Ok(None) => return,
            Ok(Some(reason)) => reason,
            Err(panic) => ExitReason::HostFailed {
                message: format!("vCPU {} panicked: {}", self.index, panic_text(&*panic)),
            },
        };
        self.context.latch.set(reason);
    }

    fn run(&mut self, stop: &AtomicBool) -> Option<ExitReason> {
        if self.index == 0 {
            self.context.timeline.host("first-entry");
        }
        loop {
            if stop.load(Ordering::Acquire) || self.context.latch.is_set() {
                return None;
            }
            let turn = if self.context.gate.is_closed() {
                self.park()
            } else {
                self.run_once()
            };
            if let Turn::End(reason) = turn {
                return Some(reason);
            }
        }
    }

    /// Waits while the VM is paused, once the instruction is complete that the last exit was for: KVM does that when it is
    /// entered again, and leaves the registers as they were until then.
    fn park(&mut self) -> Turn {
        let (gate, shared) = (self.context.gate.clone(), SharedPage(self.shared));
        shared.immediate_exit().store(1, Ordering::Release);
        match self.run_once() {
            Turn::Interrupted => {}
            turn => return turn,
        }
        gate.park(
            self.index,
            || self.registers(),
            // A kick that comes later finds the gate closed before it, and sets this again.
            || shared.immediate_exit().store(0, Ordering::Release),
        );
        // The guest's watchdogs are told that it was not running. A guest without kvmclock cannot be told, and needs not.
        if let Err(err) = self.fd.kvmclock_ctrl() {
            log::debug!(
                "vCPU {} was paused without its clock's knowledge: {err}",
                self.index
            );
        }
        Turn::Served
    }
}

/// A running vCPU, as the control thread has it.
pub(crate) struct VcpuThread {
    stop: Arc<AtomicBool>,
    kick: Arc<Kick>,
    thread: JoinHandle<Vcpu>,
}

/// Makes a vCPU leave the guest, and look at what it is told. From any thread, at any time.
pub(crate) struct Kick(Mutex<Option<Target>>);

/// The thread that a kick is for. Gone before the thread is joined.
struct Target {
    shared: SharedPage,
    thread: RawPthread,
}

impl Kick {
    fn target(&self) -> MutexGuard<'_, Option<Target>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the vCPU leave the guest; does not wait for it.
    pub(crate) fn kick(&self) {
        let target = self.target();
        let Some(Target { shared, thread }) = &*target else {
            return;
        };
        shared.immediate_exit().store(1, Ordering::Release);
        // SAFETY: the thread has not been joined, because `VcpuThread::join` takes the target away first, under the lock that
        // is held here; so its id is valid, whether it still runs or not. The signal has a handler.
        let error = unsafe { libc::pthread_kill(*thread, kick_signal()) };
        if error != 0 {
            // The thread has ended by itself.
            log::debug!(
                "no vCPU thread to kick: {}",
                io::Error::from_raw_os_error(error)
            );
        }
    }
}

/// The page shared with KVM, for raising `immediate_exit` from another thread.
struct SharedPage(NonNull<kvm_run>);

impl SharedPage {
    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: whoever holds a `SharedPage` is the vCPU itself, or a `Target`, which is gone before the thread that owns the
        // mapping is joined: the mapping lives. `immediate_exit` is a byte of it, which KVM reads at any time, so that only
        // atomic accesses are made to it.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.0.as_ptr()).immediate_exit) }
    }
}

// SAFETY: the pointer is used only for atomic accesses to one byte, while the mapping is known to live (see `immediate_exit`).
unsafe impl Send for SharedPage {}

impl VcpuThread {
    /// What makes the vCPU look at flags.
    pub(crate) fn kick(&self) -> &Arc<Kick> {
        &self.kick
    }

    /// Makes the vCPU leave the guest and its thread end; does not wait for it.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.kick.kick();
    }

    /// Waits until the thread has ended. Only after [`Self::stop`], or when the VM's end is written down.
    pub(crate) fn join(self) {
        *self.kick.target() = None;
        // The thread catches panics, so that there is no other way for it to end.
        if self.thread.join().is_err() {
            log::error!("a vCPU thread panicked outside of the guest's run loop");
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
