//! What the lab tells the person who started it: on standard error, a line per step, so that standard output is the
//! command's.

#![allow(clippy::print_stderr, reason = "this is where the lab speaks")]

use std::time::Instant;

use anyhow::Result;

/// Says something.
pub(crate) fn say(line: impl AsRef<str>) {
    eprintln!("lab: {}", line.as_ref());
}

/// Does something that takes a while; says so, and how long it took.
///
/// # Errors
/// Those of `action`.
pub(crate) fn step<T>(what: &str, action: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    say(format!("{what} …"));
    let result = action()?;
    say(format!("{what}: {:.1} s", start.elapsed().as_secs_f32()));
    Ok(result)
}
