//! What a bench is told on its command line.

use std::env;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};

/// The arguments behind `cargo bench … --`.
pub(crate) struct Options(Vec<String>);

impl Options {
    /// None where nothing is to be measured: `cargo bench` says so, `cargo test --benches` does not.
    pub(crate) fn of_bench() -> Option<Self> {
        let options = Self(env::args().skip(1).collect());
        options.has("--bench").then_some(options)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|argument| argument == name)
    }

    /// What stands behind `name`.
    #[allow(dead_code, reason = "most take numbers only")]
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        let at = self.0.iter().position(|argument| argument == name)?;
        self.0.get(at + 1).map(String::as_str)
    }

    /// All that stands behind `name`.
    #[allow(dead_code, reason = "for benches that pass options on")]
    pub(crate) fn behind(&self, name: &str) -> &[String] {
        let at = self.0.iter().position(|argument| argument == name);
        let behind = at.map_or(&[][..], |at| &self.0[at + 1..]);
        // Cargo's own word comes last.
        behind
            .strip_suffix(&["--bench".to_owned()][..])
            .unwrap_or(behind)
    }

    /// The number behind `name`, which is 1 or more.
    pub(crate) fn number<T>(&self, name: &str, usual: T) -> Result<T>
    where
        T: FromStr + Default + PartialOrd,
    {
        let Some(at) = self.0.iter().position(|argument| argument == name) else {
            return Ok(usual);
        };
        let number = self.0.get(at + 1).and_then(|text| text.parse().ok());
        let number = number.with_context(|| format!("{name} needs a number"))?;
        ensure!(number > T::default(), "{name} must be 1 or more");
        Ok(number)
    }
}
