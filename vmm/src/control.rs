//! The control thread: one loop that waits for the guest's end, moves console bytes, and keeps deadlines.
//!
//! It owns the machine. vCPU threads and the VM's owner reach it through the exit latch and one wake-up event; it never
//! waits for either, except to join vCPU threads that it has told to stop. Nothing on it blocks: sinks and inputs are
//! non-blocking, and every wait ends at the next deadline.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

use ampoule_devices::console::DrainState;
use ampoule_devices::error_chain;

use crate::config::OnReboot;
use crate::console::ConsoleHost;
use crate::exit::ExitReason;
use crate::handle::VmHandle;
use crate::machine::{Blueprint, Machine};

/// How much console input is read at a time; what the guest has not taken of it is all that is kept.
const INPUT_CHUNK: usize = 4096;

/// How long output may stand still, after the guest's end, before the rest of it is given up.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// Something else for the control thread to wait on: a program's signals, for instance.
pub trait ControlSource: Send {
    /// The descriptor to wait on; the same for the life of the value.
    fn fd(&self) -> RawFd;

    /// The descriptor is readable. Called on the control thread; must not block.
    fn ready(&mut self, vm: &VmHandle);
}

/// What the loop waits on. Sources of the program follow from `SOURCES` on.
mod token {
    pub(super) const EXIT: u32 = 0;
    pub(super) const WAKE: u32 = 1;
    pub(super) const OUTPUT: u32 = 2;
    pub(super) const SINK: u32 = 3;
    pub(super) const INPUT: u32 = 4;
    pub(super) const INPUT_SPACE: u32 = 5;
    pub(super) const CLIENT: u32 = 6;
    pub(super) const WORKERS: u32 = 7;
    pub(super) const SOURCES: u32 = 16;
}

/// A descriptor that is waited on only now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interest {
    None,
    /// epoll tells when.
    Polled(RawFd),
    /// A regular file, which epoll does not take, because it is ready at any time.
    Always(RawFd),
}

/// The loop itself, made when the VM is built: a host that has no descriptor left refuses the start, not the run.
pub(crate) struct EventLoop(EventManager<Control>);

impl EventLoop {
    pub(crate) fn new() -> io::Result<Self> {
        let events = EventManager::new().map_err(|err| match err {
            event_manager::Error::Epoll(err) => err.into(),
            other => io::Error::other(other),
        })?;
        Ok(Self(events))
    }
}

pub(crate) struct Control {
    blueprint: Blueprint,
    machine: Option<Machine>,
    handle: VmHandle,
    console: ConsoleHost,
    sources: Vec<Box<dyn ControlSource>>,
    /// Input that the guest has not taken yet.
    pending: Vec<u8>,
    input: Interest,
    sink: Interest,
    /// When the VM's time is up.
    deadline: Option<Instant>,
}

impl Control {
    pub(crate) fn new(
        blueprint: Blueprint,
        machine: Machine,
        handle: VmHandle,
        console: ConsoleHost,
        sources: Vec<Box<dyn ControlSource>>,
    ) -> Self {
        Self {
            blueprint,
            machine: Some(machine),
            handle,
            console,
            sources,
            pending: Vec::new(),
            input: Interest::None,
            sink: Interest::None,
            deadline: None,
        }
    }

    /// Runs the VM to its end, on this thread.
    pub(crate) fn run(self, events: EventLoop) -> ExitReason {
        let shared = self.blueprint.shared.clone();
        let reason = match self.run_loop(events.0) {
            Ok(reason) => reason,
            Err(message) => ExitReason::HostFailed { message },
        };
        shared.finish(reason.clone());
        reason
    }

    fn run_loop(self, mut events: EventManager<Self>) -> Result<ExitReason, String> {
        let failed = |err: event_manager::Error| format!("event loop: {err}");
        let id = events.add_subscriber(self);
        events.subscriber_mut(id).map_err(failed)?.power_on()?;
        loop {
            let wait = events.subscriber_mut(id).map_err(failed)?.next_wait();
            events.run_with_timeout(wait).map_err(failed)?;
            if let Some(reason) = events.subscriber_mut(id).map_err(failed)?.check()? {
                let mut control = events.remove_subscriber(id).map_err(failed)?;
                control.drain_to_the_end();
                return Ok(reason);
            }
        }
    }

    fn power_on(&mut self) -> Result<(), String> {
        let config = &self.blueprint.config;
        if self.deadline.is_none() {
            let limit = config.timeout.map(|timeout| timeout.as_duration());
            self.deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        }
        if let Some(machine) = &mut self.machine {
            self.blueprint
                .shared
                .set_power(Some(machine.devices.power.clone()));
            machine.start().map_err(|err| error_chain(&err))?;
        }
        // After a restart: what the last guest did not take is for this one.
        self.give_input();
        Ok(())
    }

    /// Milliseconds until the next deadline; -1 without one.
    fn next_wait(&self) -> i32 {
        if self.input_is_ready() {
            return 0;
        }
        let shared = &self.blueprint.shared;
        let next = [
            self.deadline,
            shared.stop_at(),
            shared.watch.panic_deadline(),
        ]
        .into_iter()
        .flatten()
        .min();
        match next {
            None => -1,
            Some(at) => {
                // Rounded up, so that the loop does not spin through the last millisecond.
                let wait = at
                    .saturating_duration_since(Instant::now())
                    .as_micros()
                    .div_ceil(1000);
                i32::try_from(wait).unwrap_or(i32::MAX)
            }
        }
    }

    /// Looks at the latch and the deadlines; `Some` is the VM's end.
    fn check(&mut self) -> Result<Option<ExitReason>, String> {
        if self.input_is_ready() {
            self.read_input();
        }
        let now = Instant::now();
        let shared = &self.blueprint.shared;
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(shared.watch.panic_deadline()) || due(shared.stop_at()) {
            shared.latch.set(ExitReason::Stopped);
        } else if due(self.deadline) {
            shared.latch.set(ExitReason::Deadline);
        }
        if !shared.latch.is_set() {
            return Ok(None);
        }
        self.power_off();
        let shared = &self.blueprint.shared;
        let reason = shared.latch.take().unwrap_or(ExitReason::Stopped);
        // However a guest that panicked came to its end, the panic is the reason.
        if let Some(panic) = shared.watch.panic() {
            return Ok(Some(ExitReason::Panic(panic)));
        }
        match reason {
            ExitReason::Reset
                if shared.take_reset() || self.blueprint.config.on_reboot == OnReboot::Restart =>
            {
                shared.timeline.host("restart");
                let machine = Machine::build(&self.blueprint).map_err(|err| error_chain(&err))?;
                self.machine = Some(machine);
                self.power_on()?;
                Ok(None)
            }
            reason => Ok(Some(reason)),
        }
    }

    fn power_off(&mut self) {
        let shared = &self.blueprint.shared;
        shared.set_power(None);
        // A vCPU may be waiting for room in the queue of a sink that stands still.
        self.blueprint.output.interrupt();
        self.machine = None;
        shared.timeline.host("stopped");
        self.blueprint.output.resume();
    }

    /// Prints what is left, as long as somebody takes it.
    fn drain_to_the_end(&mut self) {
        let output = &self.blueprint.output;
        let mut patience = Instant::now() + DRAIN_PATIENCE;
        let mut left = usize::MAX;
        loop {
            let state = output.drain(self.console.sink());
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
            let Some(fd) = self.console.sink().poll_fd() else {
                break;
            };
            let wait = patience.saturating_duration_since(now);
            if wait.is_zero() || !wait_writable(fd, wait) {
                break;
            }
        }
        output.discard();
        let dropped = output.dropped();
        if dropped > 0 {
            log::warn!(
                "{dropped} bytes of the guest's console output were dropped: nobody read them"
            );
        }
    }

    fn input_is_ready(&self) -> bool {
        matches!(self.input, Interest::Always(_))
            && self.pending.is_empty()
            && self.console.input_fd().is_some()
    }

    /// Gives the guest as much of the pending input as it has room for.
    fn give_input(&mut self) {
        if let Some(machine) = &self.machine
            && !self.pending.is_empty()
        {
            let taken = machine.devices.serial.receive(&self.pending);
            self.pending.drain(..taken);
        }
    }

    /// Reads input that is ready; only when the guest has taken all that was read before.
    fn read_input(&mut self) {
        if self.console.input_fd().is_none() || !self.pending.is_empty() {
            return;
        }
        self.pending.resize(INPUT_CHUNK, 0);
        let count = self.console.read(&mut self.pending).unwrap_or(0);
        self.pending.truncate(count);
        self.give_input();
    }

    /// Does what virtio devices have to do that have no thread of their own.
    fn dispatch_workers(&self, ops: &mut EventOps) {
        if let Some(workers) = &self.blueprint.workers
            && let Err(err) = workers.dispatch(0)
        {
            log::error!("virtio devices stop: {err}");
            let events = Events::with_data_raw(workers.as_raw_fd(), token::WORKERS, EventSet::IN);
            if let Err(err) = ops.remove(events) {
                log::error!("the control thread cannot go on without them: {err}");
            }
        }
    }

    /// Waits on input only while the guest can take some, and on the sink only while it is blocked.
    fn update_interest(&mut self, blocked: bool, ops: &mut EventOps) {
        let input = self.console.input_fd().filter(|_| self.pending.is_empty());
        self.input = reconcile(ops, self.input, input, token::INPUT, EventSet::IN);
        let sink = self.console.sink().poll_fd().filter(|_| blocked);
        self.sink = reconcile(ops, self.sink, sink, token::SINK, EventSet::OUT);
    }
}

impl MutEventSubscriber for Control {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            // `check` looks at the latch and the deadlines after every turn.
            token::EXIT => {}
            token::WAKE => {
                let _ = self.blueprint.shared.wake.read();
            }
            token::OUTPUT => {
                let _ = self.blueprint.output.wake_event().read();
            }
            token::INPUT_SPACE => {
                let _ = self.blueprint.input_space.read();
                self.give_input();
            }
            token::INPUT => self.read_input(),
            token::CLIENT => self.console.accept(),
            token::SINK => {}
            token::WORKERS => self.dispatch_workers(ops),
            source => {
                let index = source.saturating_sub(token::SOURCES) as usize;
                if let Some(source) = self.sources.get_mut(index) {
                    source.ready(&self.handle);
                }
            }
        }
        let state = self.blueprint.output.drain(self.console.sink());
        self.update_interest(state == DrainState::Blocked, ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        let shared = &self.blueprint.shared;
        let mut fixed = vec![
            (shared.latch.event().as_raw_fd(), token::EXIT),
            (shared.wake.as_raw_fd(), token::WAKE),
            (
                self.blueprint.output.wake_event().as_raw_fd(),
                token::OUTPUT,
            ),
            (self.blueprint.input_space.as_raw_fd(), token::INPUT_SPACE),
        ];
        let workers = self.blueprint.workers.as_ref();
        fixed.extend(workers.map(|workers| (workers.as_raw_fd(), token::WORKERS)));
        fixed.extend(self.console.listener().map(|fd| (fd, token::CLIENT)));
        let sources = self.sources.iter().zip(token::SOURCES..);
        fixed.extend(sources.map(|(source, token)| (source.fd(), token)));
        for (fd, token) in fixed {
            if let Err(err) = ops.add(Events::with_data_raw(fd, token, EventSet::IN)) {
                log::error!("the control thread cannot wait on descriptor {fd}: {err}");
            }
        }
        self.update_interest(false, ops);
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
