//! What a guest of this architecture finds when it wakes: the memory layout, CPUID, model-specific
//! registers, registers, page tables, boot protocols and ACPI tables.
//!
//! Pure data in, bytes and structs out: nothing here opens a file, talks to KVM or touches guest
//! memory, and every function may be called from any thread. The caller writes what it gets where
//! it is told to.
//!
//! The modules of the architecture that this is built for are re-exported at the root, under names
//! that all architectures share.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(target_arch = "x86_64")]
pub mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("ampoule-arch knows x86_64 only");

/// The README's example, as a documentation test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
