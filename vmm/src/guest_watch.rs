//! What the guest's consoles and its paravirtual devices tell about its health.
//!
//! Called on vCPU threads and on those of devices, with each byte that the guest prints on the serial port and on the virtio console, each
//! of which is a text of its own; the control thread asks for the outcome. A panic is not the
//! end at once: the kernel has more to print (registers, a trace), so that the VM goes on until its closing line, until it
//! has been quiet for [`QUIET`], or for [`LONGEST`], whichever comes first.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use ampoule_devices::console::ConsoleObserver;
use ampoule_devices::console::panic_watch::{PanicEvent, PanicWatch};

use crate::events::{EventBus, VmEvent};
use crate::exit::GuestPanic;
use crate::timeline::Timeline;

/// How long a kernel that panicked is silent when it has said all.
const QUIET: Duration = Duration::from_secs(1);

/// How long the line feed after the closing line may take: the line counts as complete with its carriage return.
const LINE_FEED: Duration = Duration::from_millis(50);

/// How long a kernel that panicked may go on printing.
const LONGEST: Duration = Duration::from_secs(10);

/// How many of the console's last lines are kept for an excerpt.
const EXCERPT_LINES: usize = 30;

pub(crate) struct GuestWatch {
    timeline: Arc<Timeline>,
    /// Wakes the control thread.
    wake: EventFd,
    events: Arc<EventBus>,
    state: Mutex<State>,
}

/// The consoles that are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watched {
    Serial,
    Console,
}

/// Watches one of them.
struct Observer {
    watch: Arc<GuestWatch>,
    console: Watched,
}

#[derive(Default)]
struct State {
    serial: Seen,
    console: Seen,
    panic: Option<Noticed>,
}

/// What a console has shown.
#[derive(Default)]
struct Seen {
    matcher: PanicWatch,
    output: bool,
}

/// A panic that was noticed.
struct Noticed {
    line: Option<String>,
    /// Where it was seen.
    console: Watched,
    /// When there is nothing more to wait for, unless it goes on printing.
    settled_at: Instant,
    /// When there is nothing more to wait for in any case.
    last_call: Instant,
}

impl GuestWatch {
    pub(crate) fn new(timeline: Arc<Timeline>, wake: EventFd, events: Arc<EventBus>) -> Self {
        Self {
            timeline,
            wake,
            events,
            state: Mutex::default(),
        }
    }

    /// The pvpanic device was told of a panic.
    pub(crate) fn panicked(&self) {
        self.timeline.guest("pvpanic");
        self.notice(&mut self.state().panic, Watched::Serial, None);
    }

    /// When the VM of a guest that panicked should end.
    pub(crate) fn panic_deadline(&self) -> Option<Instant> {
        self.state()
            .panic
            .as_ref()
            .map(|noticed| noticed.settled_at)
    }

    /// What is known of the guest's panic, if it did panic.
    pub(crate) fn panic(&self) -> Option<GuestPanic> {
        let state = self.state();
        let noticed = state.panic.as_ref()?;
        Some(GuestPanic {
            line: noticed.line.clone(),
            last_lines: state.last_lines(noticed.console),
        })
    }

    /// What is to see the output of a console.
    pub(crate) fn observer(self: &Arc<Self>, console: Watched) -> Arc<dyn ConsoleObserver> {
        Arc::new(Observer {
            watch: self.clone(),
            console,
        })
    }

    fn notice(&self, panic: &mut Option<Noticed>, console: Watched, line: Option<String>) {
        match panic {
            Some(noticed) => {
                if noticed.line.is_none() && line.is_some() {
                    (noticed.line, noticed.console) = (line, console);
                }
            }
            None => {
                let now = Instant::now();
                let (settled_at, last_call) = (now + QUIET, now + LONGEST);
                self.events
                    .tell(VmEvent::PanicNoticed { line: line.clone() });
                *panic = Some(Noticed {
                    line,
                    console,
                    settled_at,
                    last_call,
                });
                self.wake();
            }
        }
    }

    fn wake(&self) {
        let _ = self.wake.write(1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    /// The last lines of a console, or of the other one, where it has none.
    fn last_lines(&self, console: Watched) -> Vec<String> {
        let (one, other) = match console {
            Watched::Serial => (&self.serial, &self.console),
            Watched::Console => (&self.console, &self.serial),
        };
        let lines = one.matcher.last_lines(EXCERPT_LINES);
        match lines.is_empty() {
            true => other.matcher.last_lines(EXCERPT_LINES),
            false => lines,
        }
    }
}

impl ConsoleObserver for Observer {
    fn observe(&self, bytes: &[u8]) {
        self.watch.observe(self.console, bytes);
    }
}

impl GuestWatch {
    fn observe(&self, console: Watched, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut state = self.state();
        let State {
            serial,
            console: hvc,
            panic,
        } = &mut *state;
        let (seen, first) = match console {
            Watched::Serial => (serial, "first-serial-byte"),
            Watched::Console => (hvc, "first-console-byte"),
        };
        if !seen.output {
            seen.output = true;
            self.timeline.guest(first);
        }
        if let Some(noticed) = panic {
            // The control thread wakes at the earlier time, and finds that it is later now.
            noticed.settled_at = noticed
                .settled_at
                .max(noticed.last_call.min(Instant::now() + QUIET));
        }
        let mut events = Vec::new();
        seen.matcher.feed(bytes, &mut |event| events.push(event));
        for event in events {
            match event {
                PanicEvent::Panic { line } => {
                    self.timeline.guest("panic-line");
                    self.notice(panic, console, Some(line));
                }
                PanicEvent::End => {
                    if let Some(noticed) = panic {
                        let end = Instant::now() + LINE_FEED;
                        (noticed.settled_at, noticed.last_call) = (end, end);
                        self.wake();
                    }
                }
                PanicEvent::Init => self.timeline.guest("/init"),
            }
        }
    }
}
