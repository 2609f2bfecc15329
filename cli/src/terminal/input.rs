//! Keys from a terminal on their way to the guest's serial port. On the VM's control thread.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ampoule_vmm::console::ConsoleInput;
use ampoule_vmm::{ControlSource, VmHandle};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::escape::{Command, EscapeFilter};

const HELP: &str = "
^A x   leave: stops the VM at once
^A c   show this help
^A ^A  send ^A to the guest
";

/// Up to how much a person may have typed for a guest that takes nothing, for `^A x` behind it to be seen still.
const READ_AHEAD: usize = 64 << 10;

/// The terminal's input, without the keys that are for `ampoule`.
pub(crate) struct Keys {
    stdin: File,
    filter: EscapeFilter,
    quit: EventFd,
    asked: Arc<AtomicBool>,
}

/// Stops the VM when `^A x` was pressed.
pub(crate) struct QuitKey {
    event: EventFd,
}

/// Whether the person at the terminal asked to leave.
#[derive(Clone)]
pub(crate) struct QuitAsked(Arc<AtomicBool>);

impl QuitAsked {
    pub(crate) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The terminal's input, and what watches it for `^A x`.
pub(crate) fn keys() -> io::Result<(Keys, QuitKey, QuitAsked)> {
    let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    let asked = Arc::new(AtomicBool::new(false));
    let keys = Keys {
        stdin: io::stdin().as_fd().try_clone_to_owned()?.into(),
        filter: EscapeFilter::default(),
        quit: event.try_clone()?,
        asked: asked.clone(),
    };
    Ok((keys, QuitKey { event }, QuitAsked(asked)))
}

impl ConsoleInput for Keys {
    fn fd(&self) -> RawFd {
        self.stdin.as_raw_fd()
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = Read::read(&mut self.stdin, buffer)?;
        if count == 0 {
            return Ok(0);
        }
        let (quit, asked) = (&self.quit, &self.asked);
        let kept = self
            .filter
            .filter(&mut buffer[..count], |command| match command {
                Command::Help => crate::report::print_stderr(HELP),
                Command::Quit => {
                    asked.store(true, Ordering::Relaxed);
                    // Fails only where the event is already as loud as it can be.
                    let _ = quit.write(1);
                }
            });
        // Nothing for the guest is not the end of the input.
        if kept == 0 {
            Err(ErrorKind::WouldBlock.into())
        } else {
            Ok(kept)
        }
    }

    fn read_ahead(&self) -> usize {
        READ_AHEAD
    }
}

impl ControlSource for QuitKey {
    fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    fn ready(&mut self, vm: &VmHandle) {
        let _ = self.event.read();
        vm.stop();
    }
}
