//! What goes wrong: all of it is counted, less and less of it is logged.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of what the guest and the host do wrong.
#[derive(Debug, Default)]
pub(super) struct Tally {
    guest: AtomicU64,
    host: AtomicU64,
}

impl Tally {
    /// The guest broke a rule, and what it sent was dropped or refused.
    pub(super) fn guest(&self, what: &str) {
        let count = self.guest.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            log::warn!("vsock: the guest sent {what} (mistake {count})");
        }
    }

    /// The host failed.
    pub(super) fn host(&self, what: &str, err: &io::Error) {
        let count = self.host.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            log::error!("vsock: {what} failed: {err} (error {count})");
        }
    }
}
