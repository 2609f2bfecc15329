//! What a check of the lab's own comes to.

/// What it came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All is as it should be.
    Good,
    /// What is not, and what to do about it.
    Bad(String),
    /// It cannot be told with this toolchain, and why.
    Unknown(String),
}
