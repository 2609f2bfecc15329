//! The most memory that a registry can make this process take, and what is said when it is not enough.
//!
//! What is read is bounded where it is read in here, but not in the libraries: a hostile answer to a request for a token would
//! otherwise take all memory there is. Rust's own end, when an allocation fails, is a signal and a line that tell nobody why.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Resource, Rlimit};

/// Address space while a registry is spoken to.
const MAX: u64 = 1 << 30;

/// What `ampoule` is told then: as [`crate::fault::Fault::to_json`] has it, which cannot be called without memory.
const ANSWER: &[u8] =
    b"{\"error\":\"the registry sends more than the 1 GiB of memory that a pull may take\"}\n";

/// While there is a limit, and it is the registry that is to blame.
static IS_LIMITED: AtomicBool = AtomicBool::new(false);

#[global_allocator]
static ALLOCATOR: Answering = Answering;

/// The system's allocator, and an end with an answer where it has nothing more to give.
struct Answering;

// SAFETY: every call is the system allocator's, with the same arguments; what comes of it is only looked at.
unsafe impl GlobalAlloc for Answering {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise, passed on.
        checked(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise, passed on.
        checked(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise, passed on.
        checked(unsafe { System.realloc(pointer, layout, size) })
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn checked(memory: *mut u8) -> *mut u8 {
    if memory.is_null() && IS_LIMITED.load(Ordering::Relaxed) {
        // SAFETY: both are system calls; pointer and length are those of a constant. Nothing of this process is needed any more.
        unsafe {
            libc::write(1, ANSWER.as_ptr().cast(), ANSWER.len());
            libc::_exit(crate::EXIT_FAILURE.into());
        }
    }
    memory
}

/// Limits the address space until this is dropped.
pub(crate) struct Limit(Rlimit);

impl Limit {
    pub(crate) fn new() -> Self {
        let before = rustix::process::getrlimit(Resource::As);
        let limit = Rlimit {
            current: Some(before.current.map_or(MAX, |now| now.min(MAX))),
            ..before
        };
        // Lowering it is allowed to everybody.
        let _ = rustix::process::setrlimit(Resource::As, limit);
        IS_LIMITED.store(true, Ordering::Relaxed);
        Self(before)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        IS_LIMITED.store(false, Ordering::Relaxed);
        // Up to what it was is allowed to everybody, too.
        let _ = rustix::process::setrlimit(Resource::As, self.0);
    }
}
