//! The store through its public door: sources made here, images read back by a reader of the tests' own.

mod archives;
mod cache;
mod directories;
mod hostile;
mod images;
mod reader;
mod support;
mod tools;
mod trees;
