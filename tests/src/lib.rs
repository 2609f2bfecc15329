//! What the integration tests share: bare guests, a harness that knows what this machine can run, initramfs archives,
//! what a disk has lost.

pub mod guests;
pub mod harness;
pub mod initramfs;
pub mod numbered;
pub mod scenarios;
