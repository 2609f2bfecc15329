//! The host's half of a console: what was typed and not yet taken, where output goes, the terminal's size.
//!
//! One thread, the control thread, types, resizes and drains the output; the device's worker takes. Locks are leaves.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use crate::console::ConsoleOutput;
use crate::virtio::ConfigNotifier;

/// Bytes of input that wait for the guest; more wait where they come from.
const INPUT_CAPACITY: usize = 4096;

/// What joins a console's host end with its device. Outlives resets of the device, and the machine that it is in.
pub struct ConsoleLink {
    output: Arc<ConsoleOutput>,
    input: Mutex<Input>,
    input_event: EventFd,
    input_space: Arc<EventFd>,
    stall: Mutex<TimerFd>,
    stall_fd: RawFd,
    screen: Mutex<Screen>,
}

#[derive(Default)]
struct Input {
    bytes: VecDeque<u8>,
    /// There was more than there was space for, and [`ConsoleLink::input_space`] will ring.
    starved: bool,
}

#[derive(Default)]
struct Screen {
    size: Option<(u16, u16)>,
    notifier: Option<ConfigNotifier>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks guard is whole after each step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ConsoleLink {
    /// A link whose output goes to `output`. `size` is that of the terminal, columns and rows, where there is one.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn new(output: Arc<ConsoleOutput>, size: Option<(u16, u16)>) -> io::Result<Self> {
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let stall = TimerFd::new()?;
        Ok(Self {
            output,
            input: Mutex::default(),
            input_event: event()?,
            input_space: Arc::new(event()?),
            stall_fd: stall.as_raw_fd(),
            stall: Mutex::new(stall),
            screen: Mutex::new(Screen {
                size,
                notifier: None,
            }),
        })
    }

    /// Where output goes.
    pub fn output(&self) -> &Arc<ConsoleOutput> {
        &self.output
    }

    /// Takes what was typed, as far as there is space; how much was taken. If it is less than there was,
    /// [`Self::input_space`] rings when there is space again.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        let mut input = lock(&self.input);
        let taken = bytes.len().min(INPUT_CAPACITY - input.bytes.len());
        input.bytes.extend(&bytes[..taken]);
        input.starved = taken < bytes.len();
        if taken > 0 {
            ring(&self.input_event);
        }
        taken
    }

    /// Rings when there is space for input that was refused.
    pub fn input_space(&self) -> &Arc<EventFd> {
        &self.input_space
    }

    /// The terminal has another size now, in columns and rows. Nothing happens where it has not.
    ///
    /// # Errors
    /// The host's, where it cannot interrupt the guest.
    pub fn resize(&self, size: (u16, u16)) -> io::Result<()> {
        let notifier = {
            let mut screen = lock(&self.screen);
            // One that came up without a size has told its driver so.
            if screen.size.is_none_or(|known| known == size) {
                return Ok(());
            }
            screen.size = Some(size);
            screen.notifier.clone()
        };
        notifier.map_or(Ok(()), |notifier| notifier.notify())
    }

    /// Tells the driver to look at the size.
    pub(super) fn tell_size(&self) -> io::Result<()> {
        let notifier = lock(&self.screen).notifier.clone();
        notifier.map_or(Ok(()), |notifier| notifier.notify())
    }

    pub(super) fn size(&self) -> Option<(u16, u16)> {
        lock(&self.screen).size
    }

    pub(super) fn attach(&self, notifier: ConfigNotifier) {
        lock(&self.screen).notifier = Some(notifier);
    }

    /// Rings when there is input.
    pub(super) fn input_event(&self) -> &EventFd {
        &self.input_event
    }

    pub(super) fn has_input(&self) -> bool {
        !lock(&self.input).bytes.is_empty()
    }

    /// Moves up to `count` bytes of input to `piece`, whose content is replaced.
    pub(super) fn take_input(&self, count: usize, piece: &mut Vec<u8>) {
        let mut input = lock(&self.input);
        let count = count.min(input.bytes.len());
        piece.clear();
        piece.extend(input.bytes.drain(..count));
        if input.starved && count > 0 {
            input.starved = false;
            ring(&self.input_space);
        }
    }

    /// Expires when a reader has stood still for too long. Waited for by its edges, never read.
    pub(super) fn stall_timer(&self) -> RawFd {
        self.stall_fd
    }

    pub(super) fn stall_timer_expired(&self) -> io::Result<bool> {
        Ok(!lock(&self.stall).is_armed()?)
    }

    pub(super) fn arm_stall_timer(&self, wait: Duration) -> io::Result<()> {
        Ok(lock(&self.stall).reset(wait, None)?)
    }
}

fn ring(event: &EventFd) {
    // It can only fail by being full, and then it is ringing.
    let _ = event.write(1);
}
