//! Integration tests.

pub mod guests;
