//! Signals of this process that are the command's: passed on to it, and its terminal's size with them.
//!
//! They are read on the VM's control thread. A command that takes no notice of being asked to end is not asked for ever: the
//! third time its VM is stopped.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ampoule_image::protocol::WindowSize;
use ampoule_image::session::{self, Commands, Remote};
use ampoule_vmm::{ControlSource, VmHandle};
use libc::c_int;

use crate::signals::{SignalFd, SignalSet};
use crate::terminal;

/// Signals that ask for an end.
const ENDING: [c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];
/// Others that a command may have a use for.
const OTHERS: [c_int; 3] = [libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH];

/// How often a command is asked to end.
const PATIENCE: u32 = 3;

/// What carries signals to a command.
pub(super) struct Remotes {
    /// Where the session hears of them.
    pub(super) commands: Commands,
    set: SignalSet,
    stopped: Arc<AtomicBool>,
}

/// The control thread's part.
pub(super) struct Source {
    fd: SignalFd,
    remote: Remote,
    asked: u32,
    stopped: Arc<AtomicBool>,
}

/// Both parts.
pub(super) fn remotes() -> io::Result<(Source, Remotes)> {
    let set = SignalSet::of(ENDING.into_iter().chain(OTHERS));
    let (remote, commands) = session::remote()?;
    let stopped = Arc::<AtomicBool>::default();
    let source = Source {
        fd: SignalFd::new(&set)?,
        remote,
        asked: 0,
        stopped: stopped.clone(),
    };
    let remotes = Remotes {
        commands,
        set,
        stopped,
    };
    Ok((source, remotes))
}

impl Remotes {
    /// From here on the signals are the command's.
    pub(super) fn block(&self) -> io::Result<()> {
        self.set.block()
    }

    /// Whether the VM was stopped, because the command took no notice.
    pub(super) fn was_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

impl ControlSource for Source {
    fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn ready(&mut self, vm: &VmHandle) {
        while let Some(signal) = self.fd.next() {
            if signal == libc::SIGWINCH {
                if let Some((columns, rows)) = terminal::size() {
                    self.remote.resize(WindowSize { rows, columns });
                }
                continue;
            }
            if ENDING.contains(&signal) {
                self.asked += 1;
                if self.asked >= PATIENCE {
                    self.stopped.store(true, Ordering::Relaxed);
                    vm.stop();
                }
            }
            self.remote.signal(signal as u8);
        }
    }
}
