//! Our terminal in raw mode while a command in the lab host has one of its own: that one does the line editing and makes
//! signals of `^C`.

use std::io;

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Raw mode, until dropped.
pub(crate) struct RawMode(Termios);

impl RawMode {
    /// Sets the terminal on standard input to raw mode.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn set() -> Result<Self> {
        let before = tcgetattr(io::stdin()).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)
            .context("cannot change the terminal's settings")?;
        Ok(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing is left to do if the terminal is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
