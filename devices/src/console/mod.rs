//! The host's half of a guest console: between the device that prints and whoever reads.

mod output;
pub mod panic_watch;

pub use output::{
    ConsoleObserver, ConsoleOutput, ConsoleSink, DEFAULT_CAPACITY, DrainState, STALL_LIMIT,
};
