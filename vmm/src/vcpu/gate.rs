//! Where vCPU threads wait while their VM is paused.
//!
//! A gate is closed by the thread that pauses the VM, which then kicks the vCPUs and waits until all of them stand here. A
//! vCPU that stands here answers questions about itself, because KVM lets no other thread ask. The gate's lock is a leaf; a
//! vCPU takes it only where the gate is closed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::Registers;

/// The gate of a machine's vCPUs.
#[derive(Debug, Default)]
pub(crate) struct PauseGate {
    /// What `State::closed` says, for a look without the lock.
    closed: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    /// The machine ends: nobody waits any more.
    over: bool,
    /// vCPUs that wait here.
    parked: u32,
    /// vCPUs that will never come.
    gone: u32,
    /// The vCPU that is asked for its registers.
    asked: Option<u32>,
    answer: Option<Option<Registers>>,
}

impl PauseGate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether vCPUs are to wait. Cheap enough to ask before every entry.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// From now on vCPUs wait, once they leave the guest.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        self.closed.store(true, Ordering::Release);
    }

    /// Lets the vCPUs go on.
    pub(crate) fn open(&self) {
        let mut state = self.lock();
        state.closed = false;
        self.closed.store(false, Ordering::Release);
        self.changed.notify_all();
    }

    /// The machine ends: whoever waits here goes on, for ever.
    pub(crate) fn end(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// Waits until `vcpus` vCPUs stand here; `false` where that cannot be any more, because the VM is about to end.
    pub(crate) fn wait_for_all(&self, vcpus: u32) -> bool {
        let mut state = self.lock();
        while state.parked + state.gone < vcpus && !state.over {
            state = self.wait(state);
        }
        state.parked == vcpus && !state.over
    }

    /// A vCPU waits until the gate is open. `go_on` runs before anybody can close it again.
    pub(super) fn park(
        &self,
        index: u32,
        registers: impl Fn() -> Option<Registers>,
        go_on: impl FnOnce(),
    ) {
        let mut state = self.lock();
        state.parked += 1;
        self.changed.notify_all();
        while state.closed && !state.over {
            if state.asked == Some(index) {
                state.asked = None;
                state.answer = Some(registers());
                self.changed.notify_all();
            }
            state = self.wait(state);
        }
        state.parked -= 1;
        go_on();
    }

    /// A vCPU's thread ends.
    pub(super) fn leave(&self) {
        self.lock().gone += 1;
        self.changed.notify_all();
    }

    /// The registers of a vCPU that stands here; `None` where KVM does not tell, or the machine ends.
    pub(crate) fn registers(&self, index: u32) -> Option<Registers> {
        let mut state = self.lock();
        state.asked = Some(index);
        state.answer = None;
        self.changed.notify_all();
        loop {
            if let Some(answer) = state.answer.take() {
                return answer;
            }
            if state.over {
                return None;
            }
            state = self.wait(state);
        }
    }
}
