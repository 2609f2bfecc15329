//! Device models for a microVM.
//!
//! A device here is registers and behaviour, reached through [`bus::BusDevice`]; it knows neither
//! KVM nor the VMM. What it needs of them it is given: an [`interrupt::InterruptLine`] to raise, a
//! callback for what it has to tell, an event to ring.
//!
//! Calls come from vCPU threads unless a method says otherwise, several at once. A device is the
//! guest's to abuse: every access of every width and value is answered, none panics, and none
//! allocates more than its documented bound.
#![deny(missing_docs)]

pub mod backend;
pub mod bus;
pub mod console;
pub mod interrupt;
pub mod legacy;
pub mod metrics;
pub mod rate_limiter;
pub mod virtio;

/// An error with its causes, on one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// The README's example, as a documentation test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
