//! What `ampoule run IMAGE` runs a command from: a kernel of the host's, an initramfs with just the drivers that it needs and an
//! init of ours, and the session in which that init runs the command.
//!
//! Nothing here knows the VMM: this crate finds and makes files, and talks over a stream that the caller brings.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

extern crate alloc;

pub mod copy;
pub mod initramfs;
pub mod kernel;
pub mod overlay;
pub mod program;
pub mod session;

#[path = "../init/disk_layout.rs"]
pub mod disk_layout;
#[path = "../init/job.rs"]
pub mod job;
#[path = "../init/protocol.rs"]
pub mod protocol;
#[allow(dead_code, reason = "it is the init's half, too")]
#[path = "../init/tree.rs"]
mod tree;

/// The guest's PID 1: a static program for x86-64.
pub const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));

/// The README's example, as a documentation test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
