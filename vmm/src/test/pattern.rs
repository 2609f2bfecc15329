//! What is looked for in a text, and what may never be there.

use std::fmt;
use std::sync::OnceLock;

use regex::bytes::{Captures, Regex, RegexBuilder, RegexSet, RegexSetBuilder};

/// The memory that a compiled expression may take, in bytes: those that tests need are far below it.
const SIZE_LIMIT: usize = 1 << 20;

/// What is looked for in the text of a guest.
///
/// ```
/// # fn main() -> Result<(), ampoule_vmm::test::PatternError> {
/// use ampoule_vmm::test::Pattern;
///
/// let just_this = Pattern::from("login:");
/// let version = Pattern::regex(r"^Linux version (?P<version>\S+)")?;
/// assert_eq!(version.to_string(), r"/^Linux version (?P<version>\S+)/");
/// # drop(just_this);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Pattern {
    regex: Regex,
    literal: Option<String>,
}

/// Why something is no regular expression.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct PatternError(String);

impl Pattern {
    /// A regular expression, as the crate `regex` has them. `^` and `$` are the ends of lines; a `.` is anything but a line feed.
    ///
    /// # Errors
    /// It is none, or takes more than 1 MiB.
    pub fn regex(expression: &str) -> Result<Self, PatternError> {
        Ok(Self {
            regex: builder(expression).build().map_err(|err| in_a_line(&err))?,
            literal: None,
        })
    }

    /// The names of its groups: what it captures.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.regex.capture_names().flatten()
    }

    /// The first place where it matches `text` from `from` on.
    pub(super) fn find<'t>(&self, text: &'t [u8], from: usize) -> Option<Captures<'t>> {
        self.regex.captures_at(text, from)
    }

    /// Whether it is in a text, and the texts of its named groups.
    pub fn search(&self, text: &[u8]) -> Option<Vec<(String, String)>> {
        Some(self.named(&self.find(text, 0)?))
    }

    /// The texts of its named groups.
    pub(super) fn named(&self, captures: &Captures<'_>) -> Vec<(String, String)> {
        let text = |name: &str| {
            let bytes = captures.name(name)?.as_bytes();
            Some((name.to_owned(), String::from_utf8_lossy(bytes).into_owned()))
        };
        self.names().filter_map(text).collect()
    }

    /// Whether what it matches may become longer as the text does.
    pub(super) fn may_grow(&self) -> bool {
        self.literal.is_none()
    }
}

fn builder(expression: &str) -> RegexBuilder {
    let mut builder = RegexBuilder::new(expression);
    builder.multi_line(true).size_limit(SIZE_LIMIT);
    builder
}

/// The crate draws the place of a mistake over several lines; its last one says what the mistake is.
fn in_a_line(error: &regex::Error) -> PatternError {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    PatternError(last.trim_start_matches("error: ").to_owned())
}

impl From<&str> for Pattern {
    /// Just this text.
    fn from(text: &str) -> Self {
        let literal = Regex::new(&regex::escape(text));
        // Nothing but its length could be wrong with an escaped text, and then it is nowhere.
        let regex = literal.unwrap_or_else(|_| never().clone());
        Self {
            regex,
            literal: Some(text.to_owned()),
        }
    }
}

impl From<String> for Pattern {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<&Pattern> for Pattern {
    fn from(pattern: &Pattern) -> Self {
        pattern.clone()
    }
}

fn never() -> &'static Regex {
    static NEVER: OnceLock<Regex> = OnceLock::new();
    NEVER.get_or_init(|| Regex::new("[^\\s\\S]").expect("it is one"))
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.literal {
            Some(text) => write!(f, "{text:?}"),
            None => write!(f, "/{}/", self.regex),
        }
    }
}

/// Expressions of lines that may not be, save those that are allowed all the same.
#[derive(Clone, Debug)]
pub(super) struct Forbidding {
    forbidden: RegexSet,
    allowed: RegexSet,
}

impl Default for Forbidding {
    fn default() -> Self {
        Self {
            forbidden: RegexSet::empty(),
            allowed: RegexSet::empty(),
        }
    }
}

impl Forbidding {
    pub(super) fn new(forbidden: &[Pattern], allowed: &[Pattern]) -> Result<Self, PatternError> {
        let set = |patterns: &[Pattern]| {
            RegexSetBuilder::new(patterns.iter().map(|pattern| pattern.regex.as_str()))
                .multi_line(true)
                .size_limit(16 * SIZE_LIMIT)
                .build()
                .map_err(|err| in_a_line(&err))
        };
        Ok(Self {
            forbidden: set(forbidden)?,
            allowed: set(allowed)?,
        })
    }

    pub(super) fn forbids(&self, line: &[u8]) -> bool {
        self.forbidden.is_match(line) && !self.allowed.is_match(line)
    }
}

/// What a healthy guest's console never shows: panics, oopses, bugs, lockups, stalls, and programs that crash.
pub const FORBIDDEN: &[&str] = &[
    r"Kernel panic - not syncing",
    r"\bOops: ",
    r"\bBUG: |\bkernel BUG at ",
    r"watchdog: BUG: soft lockup|\bsoft lockup - CPU#",
    r"Watchdog detected hard LOCKUP|NMI watchdog: .*LOCKUP",
    r"\brcu: INFO: \S+ (?:self-)?detected (?:expedited )?stalls?|\bdetected (?:expedited )?stalls on CPUs",
    r"\bINFO: task \S+ blocked for more than \d+ seconds",
    r"\S+\[\d+\]: segfault at [0-9a-f]+ ip ",
    r"\bgeneral protection fault\b.*, probably for|traps: \S+\[\d+\] general protection",
    r"\bUnable to handle kernel |\bunable to handle page fault for address",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_taken_as_it_is() {
        let pattern = Pattern::from("a.b (c)");
        assert!(pattern.search(b"xx a.b (c) yy").is_some());
        assert!(pattern.search(b"xx aXb (c) yy").is_none());
        assert_eq!(pattern.to_string(), "\"a.b (c)\"");
    }

    #[test]
    fn an_expression_captures_by_name_and_lines_have_ends() {
        let pattern = Pattern::regex(r"^version (?P<version>\S+)$").unwrap();
        let captured = pattern.search(b"a version 1\nversion 6.1\nx").unwrap();
        assert_eq!(captured, [("version".to_owned(), "6.1".to_owned())]);
        assert_eq!(pattern.names().collect::<Vec<_>>(), ["version"]);
    }

    #[test]
    fn what_is_no_expression_is_told_in_a_line() {
        let error = Pattern::regex("a(b").unwrap_err().to_string();
        assert_eq!(error, "unclosed group");
        assert!(Pattern::regex("(a{1000}){1000}").is_err());
    }

    #[test]
    fn kernels_complaints_are_forbidden_and_prose_is_not() {
        let patterns: Vec<Pattern> = FORBIDDEN
            .iter()
            .map(|it| Pattern::regex(it).unwrap())
            .collect();
        let forbidding = Forbidding::new(&patterns, &["a known BUG: ".into()]).unwrap();
        for line in [
            "[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)",
            "[    1.0] Oops: 0002 [#1] PREEMPT SMP NOPTI",
            "[    1.0] BUG: unable to handle page fault for address: ffffffffdeadbeef",
            "[    1.0] BUG: kernel NULL pointer dereference, address: 0000000000000000",
            "[    1.0] kernel BUG at mm/slub.c:448!",
            "[   26.1] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [sh:1]",
            "[   26.1] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "[   26.1] rcu: INFO: rcu_sched self-detected stall on CPU",
            "[  243.1] INFO: task mount:301 blocked for more than 120 seconds.",
            "[    2.5] a.out[94]: segfault at 0 ip 0000000000401136 sp 00007ffd error 6 in a.out[401000+1000]",
            "[    2.5] traps: a.out[94] general protection fault ip:401136 sp:7ffd error:0 in a.out",
            "[    2.5] general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP",
        ] {
            assert!(forbidding.forbids(line.as_bytes()), "{line}");
        }
        for line in [
            "DEBUG: nothing here",
            "report any BUG to us",
            "Oops, I did it again",
            "segfaults are bad",
            "[    0.0] rcu: Hierarchical RCU implementation.",
            "[    0.0] soft lockup watchdog is on",
            "a known BUG: that one",
        ] {
            assert!(!forbidding.forbids(line.as_bytes()), "{line}");
        }
    }
}
