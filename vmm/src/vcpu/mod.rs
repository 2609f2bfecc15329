//! vCPUs: their state at power-on and the threads that run them.
//!
//! One thread a vCPU, named `vcpuN`. It owns its [`Vcpu`] and does nothing but enter the guest, answer what the guest asked
//! of a device (`exit`), and enter again, until the VM's end is written down or it is told to stop. It takes no lock of its
//! own; devices that it calls take theirs.
//!
//! Another thread reaches a vCPU only through [`VcpuThread::stop`]: it raises a flag, sets `immediate_exit` in the page
//! shared with KVM, and sends [`kick_signal`]. Whatever the vCPU is doing, one of the three ends its KVM_RUN: the signal
//! if it is in the guest, `immediate_exit` if it is about to be, the flag if it is in a device.

mod exit;
mod failure;
mod setup;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use ampoule_devices::bus::Bus;

use crate::exit::{ExitLatch, ExitReason};
use crate::memory::GuestRam;
use crate::metrics::VcpuMetrics;
use crate::timeline::Timeline;

pub use failure::{FailureKind, Registers, VcpuFailure};
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
            context,
        }
    }

    /// Starts the thread that runs this vCPU.
    pub(crate) fn spawn(mut self) -> io::Result<VcpuThread> {
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
                    self.run_guarded(&stop);
                    self
                })?
        };
        Ok(VcpuThread {
            stop,
            shared,
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
            if let Some(reason) = self.run_once() {
                return Some(reason);
            }
        }
    }
}

/// A running vCPU, as the other threads see it.
pub(crate) struct VcpuThread {
    stop: Arc<AtomicBool>,
    shared: SharedPage,
    thread: JoinHandle<Vcpu>,
}

/// The page shared with KVM, for raising `immediate_exit` from another thread.
struct SharedPage(NonNull<kvm_run>);

// SAFETY: the pointer is used only by `VcpuThread::stop`, for an atomic store to one byte, while the mapping is known to
// live: the thread hands its `Vcpu`, which owns the mapping, back through the join handle that `VcpuThread` holds.
unsafe impl Send for SharedPage {}
// SAFETY: as above; the only access is an atomic store.
unsafe impl Sync for SharedPage {}

impl VcpuThread {
    /// Makes the vCPU leave the guest and its thread end; does not wait for it.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        // SAFETY: the mapping lives until the thread is joined (see `SharedPage`), `immediate_exit` is a byte of it, and
        // KVM reads that byte at any time, so that only atomic stores are made to it while the thread runs.
        let immediate_exit =
            unsafe { AtomicU8::from_ptr(&raw mut (*self.shared.0.as_ptr()).immediate_exit) };
        immediate_exit.store(1, Ordering::Release);
        if let Err(err) = self.thread.kill(kick_signal()) {
            // The thread has ended by itself.
            log::debug!("no vCPU thread to kick: {err}");
        }
    }

    /// Waits until the thread has ended. Only after [`Self::stop`], or when the VM's end is written down.
    pub(crate) fn join(self) {
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
