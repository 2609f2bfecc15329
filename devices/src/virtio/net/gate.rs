//! The rate limit of one direction, which all of a device's queues share.
//!
//! A frame that may not go yet closes the gate, for all queues, until the limiter's timer has expired: none of them asks in
//! vain meanwhile, and none takes what another waits for. The control half keeps the limiters, so that a reset fills no
//! bucket.

use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::epoll::EventSet;

use crate::rate_limiter::RateLimiter;
use crate::virtio::device::{EventSource, WorkerError};

/// Lets frames through at their rate; all of them at once, where there is no limit.
pub(super) struct Gate {
    limiter: Option<Arc<RateLimiter>>,
    closed: bool,
}

impl Gate {
    pub(super) fn new(limiter: Option<Arc<RateLimiter>>) -> Self {
        Self {
            limiter,
            closed: false,
        }
    }

    /// Whether a frame of so many bytes may go now.
    pub(super) fn pass(&mut self, bytes: u32) -> Result<bool, WorkerError> {
        let Some(limiter) = &self.limiter else {
            return Ok(true);
        };
        if self.closed {
            return Ok(false);
        }
        if let Err(wait) = limiter.take(1, bytes.into(), Instant::now()) {
            self.closed = true;
            limiter.wake_after(wait)?;
        }
        Ok(!self.closed)
    }

    /// The timer has expired.
    pub(super) fn open(&mut self) {
        self.closed = false;
    }

    /// The timer to wait for.
    pub(super) fn event_source(&self, token: u32) -> Option<EventSource> {
        let limiter = self.limiter.as_ref()?;
        Some(EventSource {
            fd: limiter.fd(),
            token,
            events: EventSet::IN | EventSet::EDGE_TRIGGERED,
        })
    }
}
