//! What the guest's console and its paravirtual devices tell about its health.
//!
//! Called on vCPU threads, with each byte that the guest prints; the control thread asks for the outcome. A panic is not the
//! end at once: the kernel has more to print (registers, a trace), so that the VM goes on until its closing line, until it
//! has been quiet for [`QUIET`], or for [`LONGEST`], whichever comes first.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use ampoule_devices::console::ConsoleObserver;
use ampoule_devices::console::panic_watch::{PanicEvent, PanicWatch};

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
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    matcher: PanicWatch,
    seen_output: bool,
    panic: Option<Noticed>,
}

/// A panic that was noticed.
struct Noticed {
    line: Option<String>,
    /// When there is nothing more to wait for, unless it goes on printing.
    settled_at: Instant,
    /// When there is nothing more to wait for in any case.
    last_call: Instant,
}

impl GuestWatch {
    pub(crate) fn new(timeline: Arc<Timeline>, wake: EventFd) -> Self {
        Self {
            timeline,
            wake,
            state: Mutex::default(),
        }
    }

    /// The pvpanic device was told of a panic.
    pub(crate) fn panicked(&self) {
        self.timeline.guest("pvpanic");
        self.notice(&mut self.state(), None);
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
            last_lines: state.matcher.last_lines(EXCERPT_LINES),
        })
    }

    fn notice(&self, state: &mut State, line: Option<String>) {
        match &mut state.panic {
            Some(noticed) => noticed.line = noticed.line.take().or(line),
            None => {
                let now = Instant::now();
                let (settled_at, last_call) = (now + QUIET, now + LONGEST);
                state.panic = Some(Noticed {
                    line,
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

impl ConsoleObserver for GuestWatch {
    fn observe(&self, bytes: &[u8]) {
        let mut state = self.state();
        if !state.seen_output {
            state.seen_output = true;
            self.timeline.guest("first-serial-byte");
        }
        if let Some(noticed) = &mut state.panic {
            // The control thread wakes at the earlier time, and finds that it is later now.
            noticed.settled_at = noticed
                .settled_at
                .max(noticed.last_call.min(Instant::now() + QUIET));
        }
        let mut events = Vec::new();
        state.matcher.feed(bytes, &mut |event| events.push(event));
        for event in events {
            match event {
                PanicEvent::Panic { line } => {
                    self.timeline.guest("panic-line");
                    self.notice(&mut state, Some(line));
                }
                PanicEvent::End => {
                    if let Some(noticed) = &mut state.panic {
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
