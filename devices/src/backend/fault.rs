//! Faults on purpose: when they strike, and how often they did. What they do is said in [`fault_block`](super::fault_block) and
//! [`fault_net`](super::fault_net).
//!
//! A plan is a list of faults, each of which counts by itself what it is about. It is set and read through a handle, on any
//! thread, while the back end is in use; the lock is a leaf, held for a walk along the list.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest delay; more is taken for this.
pub const MAX_DELAY: Duration = Duration::from_secs(10);

/// Which of the requests or frames that a fault is about it strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The one with this number, counted from 1 since the plan was set; no other.
    Nth(u64),
    /// Every one whose number is a multiple of this: 1 for all, 0 for none.
    Every(u64),
}

impl When {
    fn strikes(self, number: u64) -> bool {
        match self {
            Self::Nth(nth) => number == nth,
            Self::Every(step) => step > 0 && number.is_multiple_of(step),
        }
    }
}

/// A fault of a plan.
pub(super) trait Fault {
    /// When it strikes.
    fn when(&self) -> When;
}

/// A plan at work. Cheap to clone; all clones are one.
#[derive(Debug)]
pub(super) struct Plan<F> {
    shared: Arc<Shared<F>>,
}

#[derive(Debug)]
struct Shared<F> {
    state: Mutex<State<F>>,
    /// The plan is another one.
    changed: Condvar,
    /// There is a fault.
    armed: AtomicBool,
    struck: AtomicU64,
    lost: AtomicU64,
}

#[derive(Debug)]
struct State<F> {
    /// Each with how many it has counted.
    faults: Vec<(F, u64)>,
    /// How often the plan was set.
    version: u64,
}

impl<F> Clone for Plan<F> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl<F> Default for Plan<F> {
    fn default() -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    faults: Vec::new(),
                    version: 0,
                }),
                changed: Condvar::new(),
                armed: AtomicBool::new(false),
                struck: AtomicU64::new(0),
                lost: AtomicU64::new(0),
            }),
        }
    }
}

impl<F: Fault> Plan<F> {
    fn state(&self) -> MutexGuard<'_, State<F>> {
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, faults: impl IntoIterator<Item = F>) {
        let faults: Vec<_> = faults.into_iter().map(|fault| (fault, 0)).collect();
        let mut state = self.state();
        self.shared
            .armed
            .store(!faults.is_empty(), Ordering::Release);
        state.faults = faults;
        state.version += 1;
        self.shared.changed.notify_all();
    }

    /// Whether there is a fault.
    pub(super) fn is_armed(&self) -> bool {
        self.shared.armed.load(Ordering::Acquire)
    }

    /// How often faults have struck.
    pub(super) fn struck(&self) -> u64 {
        self.shared.struck.load(Ordering::Acquire)
    }

    /// What was given up for want of room.
    pub(super) fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Acquire)
    }

    pub(super) fn add_lost(&self) {
        self.shared.lost.fetch_add(1, Ordering::AcqRel);
    }

    /// Has each fault that is about something count it, and calls `strike` with those that strike, in the order of the plan.
    /// The plan's version.
    pub(super) fn count(&self, is_about: impl Fn(&F) -> bool, mut strike: impl FnMut(&F)) -> u64 {
        let mut state = self.state();
        let concerned = state.faults.iter_mut().filter(|(fault, _)| is_about(fault));
        for (fault, counted) in concerned {
            *counted += 1;
            if fault.when().strikes(*counted) {
                self.shared.struck.fetch_add(1, Ordering::AcqRel);
                strike(fault);
            }
        }
        state.version
    }

    /// Waits, as long as the plan is of this version.
    pub(super) fn delay(&self, delay: Duration, version: u64) {
        let end = Instant::now() + delay.min(MAX_DELAY);
        let mut state = self.state();
        while state.version == version {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
