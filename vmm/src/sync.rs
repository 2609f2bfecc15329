//! Locks and waits as all of the crate uses them.
//!
//! A panic elsewhere leaves what these locks guard consistent: it is replaced whole, or changed by steps of which each leaves it
//! so. A poisoned lock is therefore taken like any other.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Takes a lock.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits to be notified, until `end`, or for ever without one; `None` when that time has come. May return without a reason.
pub(crate) fn wait_until<'a, T>(
    changed: &Condvar,
    guard: MutexGuard<'a, T>,
    end: Option<Instant>,
) -> Option<MutexGuard<'a, T>> {
    let Some(end) = end else {
        return Some(changed.wait(guard).unwrap_or_else(PoisonError::into_inner));
    };
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return None;
    }
    let waited = changed.wait_timeout(guard, left);
    Some(waited.unwrap_or_else(PoisonError::into_inner).0)
}
