//! The VMM.
pub mod kernel;
pub mod probe;
