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
    fn what_is_allowed_is_not_forbidden() {
        let forbidding = Forbidding::new(&["BUG: ".into()], &["a known BUG: ".into()]).unwrap();
        assert!(forbidding.forbids(b"[    1.0] BUG: here"));
        assert!(!forbidding.forbids(b"a known BUG: that one"));
        assert!(!Forbidding::default().forbids(b"BUG: "));
    }
}
