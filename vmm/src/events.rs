//! What happens to a VM, told to whoever wants to know.
//!
//! Each receiver has a queue of its own, of bounded length: one that does not look loses the oldest events, and is told how
//! many. Whoever has something to tell never waits for a receiver. The lock of the list comes before that of a queue; both are
//! leaves besides, and may be taken by any thread of the VM.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use crate::exit::ExitReason;
use crate::sync::{lock, wait_until};

/// How many events wait for a receiver that does not look.
pub const MAX_PENDING_EVENTS: usize = 256;

/// Something that happened to a VM.
///
/// ```
/// use ampoule_vmm::{ExitReason, VmEvent};
///
/// fn describe(event: &VmEvent) -> String {
///     match event {
///         VmEvent::PanicNoticed { line: Some(line) } => format!("panic: {line}"),
///         VmEvent::DeviceNeedsReset { device } => format!("{device} needs a reset"),
///         VmEvent::Exited(reason) => format!("over: {reason}"),
///         other => format!("{other:?}"),
///     }
/// }
/// let end = VmEvent::Exited(ExitReason::PowerOff);
/// assert_eq!(describe(&end), "over: the guest powered off");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum VmEvent {
    /// Its vCPUs run for the first time.
    Started,
    /// It stands still, as its owner wished.
    Paused,
    /// It goes on, as its owner wished.
    Resumed,
    /// The guest or its owner has reset it: it boots again.
    Reset,
    /// The guest's kernel panicked, and may go on printing for a while.
    PanicNoticed {
        /// The line of its console that says so; none where pvpanic did.
        line: Option<String>,
    },
    /// A device does nothing more until its driver resets it: the driver broke a rule, the host failed, or the device itself
    /// panicked.
    DeviceNeedsReset {
        /// The device's id.
        device: String,
    },
    /// So many events came before the next one and are lost: the receiver did not look.
    Lost {
        /// How many.
        events: u64,
    },
    /// It came to its end. The last event.
    Exited(ExitReason),
}

/// A receiver of events: of those that happen while it exists, and of the VM's end in any case.
///
/// As an iterator it waits for each event, and ends after [`VmEvent::Exited`].
///
/// ```
/// use ampoule_vmm::{VmEvent, VmHandle};
///
/// /// Waits until the guest has panicked or the VM is over; whether it was a panic.
/// fn panics(vm: &VmHandle) -> bool {
///     vm.events().any(|event| matches!(event, VmEvent::PanicNoticed { .. }))
/// }
/// ```
#[derive(Debug)]
pub struct Events {
    inbox: Arc<Inbox>,
}

#[derive(Debug, Default)]
struct Inbox {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<VmEvent>,
    lost: u64,
    /// The last event has been put in.
    ended: bool,
}

impl Inbox {
    fn put(&self, event: VmEvent) {
        let mut queue = lock(&self.queue);
        if queue.events.len() == MAX_PENDING_EVENTS {
            queue.events.pop_front();
            queue.lost += 1;
        }
        queue.ended |= matches!(event, VmEvent::Exited(_));
        queue.events.push_back(event);
        self.changed.notify_all();
    }
}

impl Queue {
    fn take(&mut self) -> Option<VmEvent> {
        match std::mem::take(&mut self.lost) {
            0 => self.events.pop_front(),
            events => Some(VmEvent::Lost { events }),
        }
    }

    fn is_over(&self) -> bool {
        self.ended && self.lost == 0 && self.events.is_empty()
    }
}

impl Events {
    /// The next event, if there is one already.
    pub fn try_next(&mut self) -> Option<VmEvent> {
        lock(&self.inbox.queue).take()
    }

    /// The next event, if it happens within `timeout`.
    pub fn next_timeout(&mut self, timeout: Duration) -> Option<VmEvent> {
        let end = Instant::now().checked_add(timeout);
        self.wait(end)
    }

    /// The next event before `end`; for ever where there is none.
    fn wait(&self, end: Option<Instant>) -> Option<VmEvent> {
        let mut queue = lock(&self.inbox.queue);
        loop {
            if let Some(event) = queue.take() {
                return Some(event);
            }
            if queue.is_over() {
                return None;
            }
            queue = wait_until(&self.inbox.changed, queue, end)?;
        }
    }
}

impl Iterator for Events {
    type Item = VmEvent;

    fn next(&mut self) -> Option<VmEvent> {
        self.wait(None)
    }
}

/// All receivers of a VM's events.
#[derive(Debug, Default)]
pub(crate) struct EventBus {
    state: Mutex<Receivers>,
}

#[derive(Debug, Default)]
struct Receivers {
    inboxes: Vec<Weak<Inbox>>,
    end: Option<ExitReason>,
}

impl EventBus {
    /// One more receiver.
    pub(crate) fn subscribe(&self) -> Events {
        let inbox = Arc::<Inbox>::default();
        let mut receivers = lock(&self.state);
        match &receivers.end {
            Some(reason) => inbox.put(VmEvent::Exited(reason.clone())),
            None => {
                receivers.inboxes.retain(|inbox| inbox.strong_count() > 0);
                receivers.inboxes.push(Arc::downgrade(&inbox));
            }
        }
        Events { inbox }
    }

    /// Something happened.
    pub(crate) fn tell(&self, event: VmEvent) {
        let mut receivers = lock(&self.state);
        if let VmEvent::Exited(reason) = &event {
            receivers.end = Some(reason.clone());
        }
        for inbox in receivers.inboxes.iter().filter_map(Weak::upgrade) {
            inbox.put(event.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_receiver_gets_what_happens_while_it_exists_and_the_end_in_any_case() {
        let bus = EventBus::default();
        let mut early = bus.subscribe();
        drop(bus.subscribe());
        bus.tell(VmEvent::Started);
        let late = bus.subscribe();
        assert_eq!(early.try_next(), Some(VmEvent::Started));
        assert_eq!(early.try_next(), None);
        assert_eq!(early.next_timeout(Duration::ZERO), None);
        bus.tell(VmEvent::Exited(ExitReason::PowerOff));
        let end = [VmEvent::Exited(ExitReason::PowerOff)];
        for events in [early, late, bus.subscribe()] {
            assert_eq!(events.collect::<Vec<_>>(), end);
        }
    }

    #[test]
    fn one_that_does_not_look_loses_the_oldest_and_is_told_so() {
        let bus = EventBus::default();
        let mut events = bus.subscribe();
        for _ in 0..MAX_PENDING_EVENTS {
            bus.tell(VmEvent::Paused);
        }
        bus.tell(VmEvent::Resumed);
        bus.tell(VmEvent::Exited(ExitReason::Stopped));
        assert_eq!(events.next(), Some(VmEvent::Lost { events: 2 }));
        assert_eq!(events.next(), Some(VmEvent::Paused));
        let rest: Vec<_> = events.collect();
        assert_eq!(rest.len(), MAX_PENDING_EVENTS - 1);
        assert_eq!(rest.last(), Some(&VmEvent::Exited(ExitReason::Stopped)));
    }

    #[test]
    fn a_receiver_waits_until_something_happens() {
        let bus = EventBus::default();
        let mut events = bus.subscribe();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| events.next());
            bus.tell(VmEvent::Reset);
            assert_eq!(waiting.join().unwrap(), Some(VmEvent::Reset));
        });
    }
}
