//! Signals that ask the process to end, or to give the terminal away for a while.
//!
//! They arrive through a signalfd on the VM's control thread, so that no handler runs and no thread is interrupted.
//! SIGUSR1 writes the metrics, where there is a place for them; SIGUSR2 looks at the sizes of the disks' images again; SIGWINCH tells
//! a virtio console on the terminal of its size.
//! SIGTERM, SIGINT and SIGHUP press the guest's power button; the second of them, whichever it is, stops the VM at once.
//! Reference: signalfd(2).

use std::fs::File;
use std::io::{self, Read};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use ampoule_vmm::{ControlSource, VmHandle};
use libc::{c_int, signalfd_siginfo, sigset_t};

use crate::metrics::MetricsSink;
use crate::{report, terminal};

/// Signals that ask for an end.
const ENDING: [c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
/// Signals of job control, which matter to a terminal in raw mode.
const JOB_CONTROL: [c_int; 2] = [libc::SIGTSTP, libc::SIGCONT];

/// Signals that are read instead of being delivered.
pub(crate) struct SignalFd(File);

impl SignalFd {
    /// Those of the set, which are to be blocked on all threads.
    pub(crate) fn new(set: &SignalSet) -> io::Result<Self> {
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: the set is initialised; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &set.0, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just created and is owned by nobody else.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// The next signal that waits.
    pub(crate) fn next(&mut self) -> Option<c_int> {
        let mut buffer = [0; size_of::<signalfd_siginfo>()];
        let count = self.0.read(&mut buffer).ok()?;
        // `ssi_signo`, the first field, is 32 bits wide.
        let number = buffer[..count].first_chunk::<4>()?;
        Some(u32::from_ne_bytes(*number) as c_int)
    }
}

impl AsRawFd for SignalFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// The signals of a VM, as its control thread sees them.
pub(crate) struct Signals {
    fd: SignalFd,
    grace: Duration,
    first: FirstSignal,
    metrics: Option<Arc<MetricsSink>>,
}

/// The first signal that asked for an end, where one did.
#[derive(Clone, Default)]
pub(crate) struct FirstSignal(Arc<AtomicI32>);

impl FirstSignal {
    pub(crate) fn get(&self) -> Option<c_int> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(signal),
        }
    }

    /// Remembers a signal; false when there was one before it.
    fn record(&self, signal: c_int) -> bool {
        self.0
            .compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }
}

/// What some VMs have a use for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    /// There are disks, whose images may grow: SIGUSR2.
    pub(crate) disks: bool,
    /// A virtio console is on the terminal, whose size may change: SIGWINCH.
    pub(crate) terminal_size: bool,
}

/// The set of signals to take over, until [`SignalSet::block`] still with their default actions.
pub(crate) struct SignalSet(sigset_t);

impl SignalSet {
    /// These, but for those that whoever started this process has it ignore.
    pub(crate) fn of(signals: impl IntoIterator<Item = c_int>) -> Self {
        let mut set = MaybeUninit::uninit();
        // SAFETY: the pointer is valid; sigemptyset fills the set and cannot fail.
        let mut set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        };
        for signal in signals.into_iter().filter(|signal| !is_ignored(*signal)) {
            // SAFETY: the set is initialised and the signal number valid.
            unsafe { libc::sigaddset(&mut set, signal) };
        }
        Self(set)
    }

    /// Blocks the signals on this thread and on those that it starts from now on. Before it, a signal ends the process.
    pub(crate) fn block(&self) -> io::Result<()> {
        self.mask(libc::SIG_BLOCK)
    }

    /// Has them end the process again, on this thread and on those that it starts from now on.
    #[cfg(feature = "test")]
    pub(crate) fn unblock(&self) -> io::Result<()> {
        self.mask(libc::SIG_UNBLOCK)
    }

    fn mask(&self, how: c_int) -> io::Result<()> {
        // SAFETY: the set is initialised; the old mask is not asked for.
        match unsafe { libc::pthread_sigmask(how, &self.0, std::ptr::null_mut()) } {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }
}

/// Whether whoever started this process has it ignore the signal, as nohup(1) does with SIGHUP.
fn is_ignored(signal: c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: only the present action is asked for, and written where there is room for it.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

impl Signals {
    /// A guest whose power button was pressed has `grace` to power off.
    pub(crate) fn new(
        grace: Duration,
        metrics: Option<Arc<MetricsSink>>,
        wanted: Wanted,
    ) -> io::Result<(Self, SignalSet, FirstSignal)> {
        let more = [
            metrics.as_ref().map(|_| libc::SIGUSR1),
            wanted.disks.then_some(libc::SIGUSR2),
            wanted.terminal_size.then_some(libc::SIGWINCH),
        ];
        let more = more.into_iter().flatten();
        let set = SignalSet::of(ENDING.into_iter().chain(JOB_CONTROL).chain(more));
        let fd = SignalFd::new(&set)?;
        let first = FirstSignal::default();
        Ok((
            Self {
                fd,
                grace,
                first: first.clone(),
                metrics,
            },
            set,
            first,
        ))
    }

    fn end(&self, signal: c_int, vm: &VmHandle) {
        if !self.first.record(signal) {
            vm.stop();
            return;
        }
        log::info!("signal {signal}: asking the guest to power off");
        if let Err(err) = vm.shut_down(self.grace) {
            log::warn!("the guest's power button does not work: {err}");
        }
    }
}

/// What becomes of each disk is in the log.
fn resize_disks(vm: &VmHandle) {
    for id in vm.disk_ids() {
        if let Err(err) = vm.resize_disk(&id) {
            log::warn!("{}", report::chain(&err));
        }
    }
}

impl ControlSource for Signals {
    fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn ready(&mut self, vm: &VmHandle) {
        while let Some(signal) = self.fd.next() {
            match signal {
                libc::SIGTSTP => {
                    let was_raw = terminal::is_raw();
                    terminal::restore();
                    // SAFETY: the call takes no pointer. It returns when somebody continues the process.
                    unsafe { libc::raise(libc::SIGSTOP) };
                    if was_raw {
                        terminal::enter_again();
                    }
                }
                libc::SIGCONT => {
                    if terminal::is_raw() {
                        terminal::enter_again();
                    }
                }
                libc::SIGWINCH => {
                    if let Some((cols, rows)) = terminal::size()
                        && let Err(err) = vm.resize_console(cols, rows)
                    {
                        log::warn!("the guest was not told of the terminal's size: {err}");
                    }
                }
                libc::SIGUSR1 => {
                    if let Some(metrics) = &self.metrics {
                        metrics.write_running(&vm.metrics());
                    }
                }
                libc::SIGUSR2 => resize_disks(vm),
                signal => self.end(signal, vm),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_signal_is_the_one_that_counts() {
        let first = FirstSignal::default();
        assert_eq!(first.get(), None);
        assert!(first.record(libc::SIGTERM));
        assert!(!first.record(libc::SIGINT));
        assert_eq!(first.get(), Some(libc::SIGTERM));
    }

    #[test]
    fn a_blocked_signal_is_read_from_the_descriptor() {
        let (mut signals, set, _) = Signals::new(Duration::ZERO, None, Wanted::default()).unwrap();
        set.block().unwrap();
        assert_eq!(signals.fd.next(), None);
        // SAFETY: the calls take no pointer; the signal is blocked on this thread, to which it is sent.
        unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGTERM) };
        assert_eq!(signals.fd.next(), Some(libc::SIGTERM));
        assert_eq!(signals.fd.next(), None);
    }
}
