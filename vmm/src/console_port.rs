//! A console on the control thread: moves bytes between its host end and its device, in both directions.
//!
//! Nothing here blocks. Output is waited for by its event, and by the sink's descriptor only while that has no room; input is
//! read only when the device has taken all that was read before, but for input that is read ahead.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events};
use vmm_sys_util::eventfd::EventFd;

use ampoule_devices::console::{ConsoleOutput, DrainState};

use crate::console::ConsoleHost;

/// How much input is read at a time; what the guest has not taken of it, and of what is read ahead, is all that is kept.
const INPUT_CHUNK: usize = 4096;

/// How long output may stand still, after the guest's end, before the rest of it is given up.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// Events of a port, from the token on that it is given.
mod event {
    pub(super) const OUTPUT: u32 = 0;
    pub(super) const SINK: u32 = 1;
    pub(super) const INPUT: u32 = 2;
    pub(super) const INPUT_SPACE: u32 = 3;
    pub(super) const CLIENT: u32 = 4;
}

/// How many tokens a port has.
pub(crate) const TOKENS: u32 = 8;

/// A descriptor that is waited on only now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interest {
    None,
    /// epoll tells when.
    Polled(RawFd),
    /// A regular file, which epoll does not take, because it is ready at any time.
    Always(RawFd),
}

/// What takes a console's input: as much as it has room for. If that is less than there was, its event rings when there is room
/// again.
pub(crate) type Receiver = Box<dyn Fn(&[u8]) -> usize + Send>;

/// What is told of the size of a terminal, which may be the one it has.
pub(crate) type Resized = Box<dyn Fn((u16, u16)) + Send>;

pub(crate) struct ConsolePort {
    host: ConsoleHost,
    output: Arc<ConsoleOutput>,
    /// Rings when the receiver has room again.
    input_space: Arc<EventFd>,
    /// None while there is no guest.
    receiver: Option<Receiver>,
    /// Told of the sizes of a pseudo-terminal.
    resized: Option<Resized>,
    /// Its first token.
    token: u32,
    /// Input that the guest has not taken yet.
    pending: Vec<u8>,
    input: Interest,
    sink: Interest,
}

impl ConsolePort {
    /// Joins `host` with a device that prints to `output`. The events of the port have tokens from `token` on.
    pub(crate) fn new(
        host: ConsoleHost,
        output: Arc<ConsoleOutput>,
        input_space: Arc<EventFd>,
        token: u32,
    ) -> Self {
        Self {
            host,
            output,
            input_space,
            receiver: None,
            resized: None,
            token,
            pending: Vec::new(),
            input: Interest::None,
            sink: Interest::None,
        }
    }

    /// The guest is there. What the last one did not take is for this one.
    pub(crate) fn connect(&mut self, receiver: Receiver) {
        self.receiver = Some(receiver);
        self.give_input();
    }

    /// Has `resized` told of the size of a pseudo-terminal.
    pub(crate) fn on_resize(&mut self, resized: Resized) {
        self.resized = Some(resized);
    }

    /// The guest is gone.
    pub(crate) fn disconnect(&mut self) {
        self.receiver = None;
    }

    /// What its output goes through.
    pub(crate) fn output(&self) -> &ConsoleOutput {
        &self.output
    }

    /// Begins to wait.
    pub(crate) fn init(&mut self, ops: &mut EventOps) {
        let mut fixed = vec![
            (self.output.wake_event().as_raw_fd(), event::OUTPUT),
            (self.input_space.as_raw_fd(), event::INPUT_SPACE),
        ];
        fixed.extend(self.host.listener().map(|fd| (fd, event::CLIENT)));
        for (fd, event) in fixed {
            let events = Events::with_data_raw(fd, self.token + event, EventSet::IN);
            if let Err(err) = ops.add(events) {
                log::error!("the control thread cannot wait on descriptor {fd}: {err}");
            }
        }
        self.update_interest(false, ops);
    }

    /// Handles an event, if it is one of this port's.
    pub(crate) fn handle(&mut self, token: u32) -> bool {
        match token.wrapping_sub(self.token) {
            event::OUTPUT => {
                let _ = self.output.wake_event().read();
            }
            event::INPUT_SPACE => {
                let _ = self.input_space.read();
                self.give_input();
            }
            event::INPUT => self.read_input(),
            event::CLIENT => self.host.accept(),
            event::SINK => {}
            _ => return false,
        }
        true
    }

    /// Passes output on, and sees to what is to be waited for.
    pub(crate) fn turn(&mut self, ops: &mut EventOps) {
        let state = self.output.drain(self.host.sink());
        self.update_interest(state == DrainState::Blocked, ops);
    }

    /// Whether there is input of which nothing will tell.
    pub(crate) fn input_is_ready(&self) -> bool {
        matches!(self.input, Interest::Always(_))
            && self.reads_more()
            && self.host.input_fd().is_some()
    }

    /// Whether input is read now: the guest has taken all that was read before, or there is not much of it.
    fn reads_more(&self) -> bool {
        self.pending.is_empty() || self.pending.len() < self.host.read_ahead()
    }

    /// Reads input that is ready, if it is time to.
    pub(crate) fn read_input(&mut self) {
        if self.host.input_fd().is_none() || !self.reads_more() {
            return;
        }
        let before = self.pending.len();
        self.pending.resize(before + INPUT_CHUNK, 0);
        let read = self.host.read(&mut self.pending[before..]).unwrap_or(0);
        self.pending.truncate(before + read);
        // Of a new size of a pseudo-terminal's nobody tells; who resized it will type there.
        if let (Some(pty), Some(resized)) = (self.host.pty_size(), &self.resized) {
            resized(pty);
        }
        self.give_input();
    }

    /// Gives the guest as much of the pending input as it has room for.
    fn give_input(&mut self) {
        if let Some(receiver) = &self.receiver
            && !self.pending.is_empty()
        {
            let taken = receiver(&self.pending);
            self.pending.drain(..taken);
        }
    }

    /// Waits on input only while the guest can take some, and on the sink only while it is blocked.
    fn update_interest(&mut self, blocked: bool, ops: &mut EventOps) {
        let input = self.host.input_fd().filter(|_| self.reads_more());
        let token = self.token;
        self.input = reconcile(ops, self.input, input, token + event::INPUT, EventSet::IN);
        let sink = self.host.sink().poll_fd().filter(|_| blocked);
        self.sink = reconcile(ops, self.sink, sink, token + event::SINK, EventSet::OUT);
    }

    /// Passes on what is left, as long as somebody takes it; how much has been dropped in all its life.
    pub(crate) fn drain_to_the_end(&mut self) -> u64 {
        let output = &self.output;
        let mut patience = Instant::now() + DRAIN_PATIENCE;
        let mut left = usize::MAX;
        loop {
            let state = output.drain(self.host.sink());
            let now = Instant::now();
            match state {
                DrainState::Empty | DrainState::Closed => break,
                DrainState::Blocked => {}
            }
            let pending = output.pending();
            if pending < left {
                (left, patience) = (pending, now + DRAIN_PATIENCE);
            }
            // Without a descriptor there is nobody who could take it.
            let Some(fd) = self.host.sink().poll_fd() else {
                break;
            };
            let wait = patience.saturating_duration_since(now);
            if wait.is_zero() || !wait_writable(fd, wait) {
                break;
            }
        }
        output.discard();
        output.dropped()
    }
}

/// Makes epoll wait on `wanted` instead of on what it waited on before.
fn reconcile(
    ops: &mut EventOps,
    current: Interest,
    wanted: Option<RawFd>,
    token: u32,
    set: EventSet,
) -> Interest {
    let (Interest::Polled(held) | Interest::Always(held)) = current else {
        return match wanted {
            Some(fd) => add(ops, fd, token, set),
            None => Interest::None,
        };
    };
    if wanted == Some(held) {
        return current;
    }
    if current == Interest::Polled(held)
        && let Err(err) = ops.remove(Events::with_data_raw(held, token, set))
    {
        log::debug!("descriptor {held} was not waited on: {err}");
    }
    match wanted {
        Some(fd) => add(ops, fd, token, set),
        None => Interest::None,
    }
}

fn add(ops: &mut EventOps, fd: RawFd, token: u32, set: EventSet) -> Interest {
    match ops.add(Events::with_data_raw(fd, token, set)) {
        Ok(()) => Interest::Polled(fd),
        // The file does not know readiness (a regular file, /dev/null), and is always ready.
        Err(event_manager::Error::Epoll(err)) if err.errno() == libc::EPERM => Interest::Always(fd),
        Err(err) => {
            log::warn!("the control thread cannot wait on descriptor {fd}: {err}");
            Interest::None
        }
    }
}

fn wait_writable(fd: RawFd, wait: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    let wait = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `poll` is one valid pollfd, and the count says so.
    let ready = unsafe { libc::poll(&mut poll, 1, wait) };
    ready > 0
}
