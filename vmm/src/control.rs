//! The control thread: one loop that waits for the guest's end, moves console bytes, and keeps deadlines.
//!
//! It owns the machine. vCPU threads and the VM's owner reach it through the exit latch and one wake-up event; it never
//! waits for either, except to join vCPU threads that it has told to stop. Nothing on it blocks: sinks and inputs are
//! non-blocking, and every wait ends at the next deadline.

use std::io;
use std::iter;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

use crate::config::OnReboot;
use crate::console::Consoles;
use crate::console_port::{self, ConsolePort};
use crate::exit::ExitReason;
use crate::handle::VmHandle;
use crate::machine::{Blueprint, Machine};
use crate::threads::VmThread;

/// Something else for the control thread to wait on: a program's signals, for instance.
///
/// ```
/// use std::os::fd::{AsRawFd, RawFd};
/// use std::os::unix::net::UnixStream;
/// use ampoule_vmm::{ControlSource, VmBuilder, VmHandle, config::VmConfig};
///
/// /// Presses the power button when the other end of a pair of sockets writes, or is gone.
/// struct OnWord(UnixStream);
///
/// impl ControlSource for OnWord {
///     fn fd(&self) -> RawFd {
///         self.0.as_raw_fd()
///     }
///
///     fn ready(&mut self, vm: &VmHandle) {
///         use std::io::Read;
///         let _ = self.0.read(&mut [0; 64]);
///         let _ = vm.press_power_button();
///     }
/// }
///
/// let (mine, its) = UnixStream::pair()?;
/// its.set_nonblocking(true)?;
/// let builder = VmBuilder::new(VmConfig::default()).control_source(OnWord(its));
/// # drop((builder, mine));
/// # Ok::<(), std::io::Error>(())
/// ```
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
    pub(super) const WORKERS: u32 = 2;
    pub(super) const HELPERS: u32 = 3;
    /// Of the first console; those of the others follow.
    pub(super) const CONSOLES: u32 = 8;
    pub(super) const SOURCES: u32 = 64;
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
    serial: ConsolePort,
    console: Option<ConsolePort>,
    sources: Vec<Box<dyn ControlSource>>,
    /// When the VM's time is up.
    deadline: Option<Instant>,
}

impl Control {
    pub(crate) fn new(
        blueprint: Blueprint,
        machine: Machine,
        handle: VmHandle,
        consoles: Consoles,
        sources: Vec<Box<dyn ControlSource>>,
    ) -> Self {
        let Blueprint {
            output,
            input_space,
            console: link,
            ..
        } = &blueprint;
        let token = token::CONSOLES;
        let serial = ConsolePort::new(consoles.serial, output.clone(), input_space.clone(), token);
        let console = consoles.console.zip(link.clone()).map(|(host, link)| {
            let (output, space) = (link.output().clone(), link.input_space().clone());
            let mut port = ConsolePort::new(host, output, space, token + console_port::TOKENS);
            let resized = link.clone();
            port.on_resize(Box::new(move |size| {
                if let Err(err) = resized.resize(size) {
                    log::debug!("the guest was not told of a new size: {err}");
                }
            }));
            // It keeps what is typed for whatever guest comes.
            port.connect(Box::new(move |bytes| link.receive(bytes)));
            port
        });
        Self {
            blueprint,
            machine: Some(machine),
            handle,
            serial,
            console,
            sources,
            deadline: None,
        }
    }

    /// Runs the VM to its end, on this thread.
    pub(crate) fn run(self, events: EventLoop) -> ExitReason {
        let shared = self.blueprint.shared.clone();
        let hooked = self.blueprint.hooks.run(VmThread::Control);
        let reason = match hooked {
            Ok(()) => self.run_loop(events.0),
            Err(err) => Err(format!("the control thread was not set up: {err}")),
        };
        let reason = reason.unwrap_or_else(|message| ExitReason::HostFailed { message });
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
                for port in control.ports() {
                    let dropped = port.drain_to_the_end();
                    if dropped > 0 {
                        log::warn!(
                            "{dropped} bytes of the guest's console output were dropped: nobody read them"
                        );
                    }
                }
                return Ok(reason);
            }
        }
    }

    fn ports(&mut self) -> impl Iterator<Item = &mut ConsolePort> {
        iter::once(&mut self.serial).chain(&mut self.console)
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
            self.blueprint
                .shared
                .set_resizers(machine.devices.resizers.clone());
            machine.start().map_err(|err| err.in_full())?;
            let serial = machine.devices.serial.clone();
            self.serial
                .connect(Box::new(move |bytes| serial.receive(bytes)));
        }
        Ok(())
    }

    /// Milliseconds until the next deadline; -1 without one.
    fn next_wait(&self) -> i32 {
        let mut ports = iter::once(&self.serial).chain(&self.console);
        if ports.any(ConsolePort::input_is_ready) {
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
        for port in self.ports().filter(|port| port.input_is_ready()) {
            port.read_input();
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
                let machine = Machine::build(&self.blueprint).map_err(|err| err.in_full())?;
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
        // They keep the images open, and locked.
        shared.set_resizers(Vec::new());
        // A vCPU may be waiting for room in the queue of a sink that stands still.
        for port in self.ports() {
            port.output().interrupt();
        }
        self.serial.disconnect();
        self.machine = None;
        self.blueprint.shared.timeline.host("stopped");
        for port in self.ports() {
            port.output().resume();
        }
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
}

impl MutEventSubscriber for Control {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            // `check` looks at the latch and the deadlines after every turn.
            token::EXIT => {}
            token::WAKE => {
                let _ = self.blueprint.shared.wake.read();
            }
            token::WORKERS => self.dispatch_workers(ops),
            token::HELPERS => {
                if let Some(helpers) = &self.blueprint.helpers {
                    let machine = self.machine.as_mut();
                    helpers.dispatch(machine.map_or(&mut [], |machine| &mut machine.helpers));
                }
            }
            token @ ..token::SOURCES => {
                let _ = self.ports().any(|port| port.handle(token));
            }
            source => {
                let index = (source - token::SOURCES) as usize;
                if let Some(source) = self.sources.get_mut(index) {
                    source.ready(&self.handle);
                }
            }
        }
        for port in self.ports() {
            port.turn(ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        let shared = &self.blueprint.shared;
        let mut fixed = vec![
            (shared.latch.event().as_raw_fd(), token::EXIT),
            (shared.wake.as_raw_fd(), token::WAKE),
        ];
        let workers = self.blueprint.workers.as_ref();
        fixed.extend(workers.map(|workers| (workers.as_raw_fd(), token::WORKERS)));
        let helpers = self.blueprint.helpers.as_ref();
        fixed.extend(helpers.map(|helpers| (helpers.as_raw_fd(), token::HELPERS)));
        let sources = self.sources.iter().zip(token::SOURCES..);
        fixed.extend(sources.map(|(source, token)| (source.fd(), token)));
        for (fd, token) in fixed {
            if let Err(err) = ops.add(Events::with_data_raw(fd, token, EventSet::IN)) {
                log::error!("the control thread cannot wait on descriptor {fd}: {err}");
            }
        }
        for port in self.ports() {
            port.init(ops);
        }
    }
}
