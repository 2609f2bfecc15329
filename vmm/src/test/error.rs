//! Why a test's step failed, told so that nobody has to run it again to know.

use std::error::Error as _;
use std::fmt;
use std::io;

use super::hang::Hang;
use super::pattern::PatternError;
use super::text_log::Found;
use crate::error::Error;
use crate::exit::ExitReason;
use crate::lifecycle::StateError;

/// Why a step failed.
///
/// Both its texts, `Display` and `Debug`, are for people: a `#[test]` that returns it shows the second, which goes on with the end of
/// the guest's console.
#[non_exhaustive]
pub enum TestError {
    /// There is no VM.
    Boot(Error),
    /// The configuration leads the serial port elsewhere, or names what cannot be.
    Setup(String),
    /// What was waited for did not come in time.
    Deadline {
        /// What: a clause.
        what: String,
        /// What the guest was doing.
        hang: Box<Hang>,
        /// The end of its console.
        console: Vec<String>,
    },
    /// The VM ended before that, or in another way.
    Ended {
        /// What was waited for: a clause.
        what: String,
        /// How it ended.
        reason: Box<ExitReason>,
        /// The end of its console.
        console: Vec<String>,
    },
    /// The guest printed what it may not.
    Forbidden {
        /// The line.
        found: Found,
        /// The end of its console.
        console: Vec<String>,
    },
    /// A command could not be run by the shell on the console.
    Shell {
        /// Why: a clause.
        why: String,
        /// The end of the console.
        console: Vec<String>,
    },
    /// The VM is not in a state for it.
    State(StateError),
    /// The console or the host refused it.
    Host {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It is no regular expression.
    Pattern(PatternError),
}

impl TestError {
    /// The end of the guest's console, oldest line first; empty where there was none.
    pub fn console(&self) -> &[String] {
        match self {
            Self::Deadline { console, .. }
            | Self::Ended { console, .. }
            | Self::Forbidden { console, .. }
            | Self::Shell { console, .. } => console,
            _ => &[],
        }
    }
}

impl fmt::Display for TestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boot(_) => f.write_str("the VM cannot be booted"),
            Self::Setup(why) => f.write_str(why),
            Self::Deadline { what, hang, .. } => write!(f, "{what} in time; {hang}"),
            Self::Ended { what, reason, .. } => write!(f, "{what}: {reason}"),
            Self::Forbidden { found, .. } => {
                write!(f, "the guest printed what is forbidden: {}", found.text)
            }
            Self::Shell { why, .. } => f.write_str(why),
            Self::State(err) => err.fmt(f),
            Self::Host { what, .. } => f.write_str(what),
            Self::Pattern(err) => write!(f, "no regular expression: {err}"),
        }
    }
}

impl fmt::Debug for TestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)?;
        let mut source = self.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        if let Self::Boot(err) = self
            && let Some(remedy) = err.remedy()
        {
            write!(f, "\nhelp: {remedy}")?;
        }
        if let Self::Deadline { hang, .. } = self {
            for vcpu in &hang.vcpus {
                if let Some(registers) = &vcpu.registers {
                    write!(f, "\nvCPU {}:\n{registers}", vcpu.index)?;
                }
            }
        }
        if !self.console().is_empty() {
            f.write_str("\nthe last lines on the guest's console:")?;
            for line in self.console() {
                write!(f, "\n  {line}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for TestError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Boot(err) => Some(err),
            Self::Host { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<StateError> for TestError {
    fn from(err: StateError) -> Self {
        Self::State(err)
    }
}

impl From<PatternError> for TestError {
    fn from(err: PatternError) -> Self {
        Self::Pattern(err)
    }
}

impl From<Error> for TestError {
    fn from(err: Error) -> Self {
        Self::Boot(err)
    }
}
