//! What moves a disk's data: the worker's own thread, one request after the other, or a ring of the host's, many at once.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::request::Transfer;
use crate::backend::disk::BlockBackend;
use crate::backend::uring::DiskRing;

/// What moves a disk's data.
#[derive(Clone)]
pub struct Engine {
    ring: Option<Arc<Mutex<Ring>>>,
}

/// The host's ring, with requests on it.
pub(super) type Ring = DiskRing<InFlight>;

impl Engine {
    /// The worker's own thread, by calls that return when the data is there.
    pub fn sync() -> Self {
        Self { ring: None }
    }

    /// An io_uring on the file of `backend`, with at most `depth` requests at once, a power of two; what more there is stays in
    /// the queues.
    ///
    /// # Errors
    /// The host's: it has no io_uring, or does not let us have it. `Unsupported` where this build is without it, or the disk
    /// is no plain file.
    pub fn io_uring(backend: &dyn BlockBackend, depth: u16) -> io::Result<Self> {
        let file = backend.file().ok_or(io::ErrorKind::Unsupported)?;
        let ring = DiskRing::new(file, depth)?;
        Ok(Self {
            ring: Some(Arc::new(Mutex::new(ring))),
        })
    }

    /// The ring, if there is one: the worker's as long as there is a worker.
    pub(super) fn ring(&self) -> Option<MutexGuard<'_, Ring>> {
        let ring = self.ring.as_ref()?;
        Some(ring.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A request that the host works on.
#[derive(Debug, Clone, Copy)]
pub(super) struct InFlight {
    /// The queue's place among the worker's.
    pub(super) queue: usize,
    pub(super) head: u16,
    pub(super) transfer: Transfer,
    /// Its data is written; what is under way is the flush that it needs.
    pub(super) flushing: bool,
}
