//! What tests came to: read from their programs' output, added up, told.

#![allow(clippy::print_stdout, reason = "the totals are the suite's output")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Error, Result};

/// How much of a log is shown of a step that failed, in lines.
const EXCERPT: usize = 60;

/// What the tests of one step came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Outcomes {
    pub(super) passed: usize,
    /// By name, those that passed.
    pub(super) ok: BTreeSet<String>,
    /// By name.
    pub(super) failed: Vec<String>,
    /// By name: those that failed, and passed when they were run again.
    pub(super) flaky: Vec<String>,
    /// By name, with the reason.
    pub(super) skipped: Vec<(String, String)>,
    /// By name, how long those took that say so.
    pub(super) took: BTreeMap<String, Duration>,
}

impl Outcomes {
    pub(super) fn count(&mut self, name: &str, passed: bool) {
        if passed {
            self.passed += 1;
        } else {
            self.failed.push(name.to_owned());
        }
    }

    pub(super) fn of_log(log: &Path) -> Self {
        Self::of_output(&String::from_utf8_lossy(&fs::read(log).unwrap_or_default()))
    }

    /// Reads what Rust's test programs print, and libtest-mimic's: `test NAME ... ok`, and the harness's lines
    /// `skipped NAME: REASON` and `took NAME: SECONDS s`.
    fn of_output(output: &str) -> Self {
        let mut outcomes = Self::default();
        let (mut passed, mut ignored) = (Vec::new(), Vec::new());
        // The test whose result is on a line of its own, behind what it printed.
        let mut open = None;
        for line in output.lines() {
            match (line, open) {
                ("ok", Some(name)) => {
                    passed.push(name);
                    open = None;
                }
                ("FAILED", Some(name)) => {
                    outcomes.failed.push(String::from(name));
                    open = None;
                }
                _ => {}
            }
            if let Some((name, reason)) = line
                .strip_prefix("skipped ")
                .and_then(|rest| rest.split_once(": "))
            {
                outcomes.skipped.push((name.to_owned(), reason.to_owned()));
                continue;
            }
            if let Some((name, took)) = took(line) {
                outcomes.took.insert(name, took);
                continue;
            }
            let Some((name, result)) = line
                .strip_prefix("test ")
                .and_then(|rest| rest.rsplit_once(" ... "))
            else {
                continue;
            };
            let name = name.trim();
            open = None;
            match result.split([',', ' ']).next() {
                Some("ok") => passed.push(name),
                Some("FAILED") => outcomes.failed.push(name.to_owned()),
                Some("ignored") => ignored.push(name.to_owned()),
                _ => open = Some(name),
            }
        }
        // What a test prints when it fails may stand between its name and its end: the list behind all of them has its name, too.
        let list = output
            .rsplit_once("\nfailures:\n")
            .map_or("", |(_, list)| list);
        for name in list.lines().map_while(|line| line.strip_prefix("    ")) {
            if !outcomes.failed.iter().any(|known| known == name) {
                outcomes.failed.push(name.to_owned());
            }
        }
        // A unit test that finds at run time that it cannot run says so, and then returns as if it had passed.
        let skipped = |name: &&&str| !outcomes.skipped.iter().any(|(test, _)| test == **name);
        outcomes.passed = passed.iter().filter(skipped).count();
        outcomes.ok = passed
            .iter()
            .filter(skipped)
            .map(|name| (*name).to_owned())
            .collect();
        // A test that its source ignores has no line of its own.
        for name in ignored {
            if !outcomes.skipped.iter().any(|(skipped, _)| *skipped == name) {
                outcomes
                    .skipped
                    .push((name, "ignored by its source".to_owned()));
            }
        }
        outcomes
    }
}

/// A test and how long it took, from a line of the harness's or of [`Totals::write_durations`].
fn took(line: &str) -> Option<(String, Duration)> {
    let (name, took) = line.strip_prefix("took ")?.rsplit_once(": ")?;
    let seconds = took.strip_suffix(" s")?.parse().ok()?;
    let took = Duration::try_from_secs_f64(seconds).ok()?;
    Some((name.to_owned(), took))
}

/// How long tests took when they were run before, as [`Totals::write_durations`] has written it.
pub(super) fn durations(path: &Path) -> BTreeMap<String, Duration> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(took).collect()
}

/// What all steps came to.
#[derive(Debug, Default)]
pub(super) struct Totals {
    passed: usize,
    failed: Vec<String>,
    flaky: Vec<String>,
    skipped: Vec<(String, String)>,
    /// By step and name.
    took: BTreeMap<String, Duration>,
}

impl Totals {
    /// Adds a step and says what it came to, with an excerpt of its log where something failed.
    pub(super) fn step(&mut self, name: &str, took: Duration, outcomes: Outcomes, log: &Path) {
        let Outcomes {
            passed,
            failed,
            flaky,
            skipped,
            took: each,
            ok: _,
        } = outcomes;
        let passed = passed + flaky.len();
        let verdict = match (failed.is_empty(), flaky.is_empty()) {
            (false, _) => "FAILED",
            (true, false) => "flaky",
            (true, true) => "ok",
        };
        println!(
            "{name:<24} {verdict:<7} {:>7.1} s   {passed} passed, {} failed, {} skipped",
            took.as_secs_f32(),
            failed.len(),
            skipped.len()
        );
        if !failed.is_empty() {
            println!("--- {}\n{}\n---", log.display(), excerpt(log));
        }
        self.passed += passed;
        self.failed
            .extend(failed.into_iter().map(|test| format!("{name}: {test}")));
        let named = |test| format!("{name}: {test}");
        self.flaky.extend(flaky.into_iter().map(named));
        self.skipped.extend(skipped);
        let step = name.split(' ').next().unwrap_or(name);
        let named = |(test, took)| (format!("{step}: {test}"), took);
        self.took.extend(each.into_iter().map(named));
    }

    /// How long each test took, the slowest first, into a file that has those of earlier runs, too.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn write_durations(&self, path: &Path) -> Result<()> {
        let mut all = durations(path);
        all.extend(self.took.clone());
        let mut text = String::new();
        for (name, took) in slowest(&all) {
            text.push_str(&format!("took {name}: {:.3} s\n", took.as_secs_f64()));
        }
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Prints the tests of this run that took longest.
    pub(super) fn tell_slowest(&self, count: usize) {
        println!("\nthe slowest tests");
        for (name, took) in slowest(&self.took).into_iter().take(count) {
            println!("{:8.1} s  {name}", took.as_secs_f64());
        }
    }

    pub(super) fn skip(&mut self, name: &str, reason: &str) {
        println!("{name:<24} skipped");
        self.skipped.push((name.to_owned(), reason.to_owned()));
    }

    /// A step that could not be taken.
    pub(super) fn fail(&mut self, name: &str, error: &Error) {
        println!("{name:<24} FAILED\n--- {error:#}\n---");
        self.failed.push(name.to_owned());
    }

    pub(super) fn all_is_well(&self) -> bool {
        self.failed.is_empty() && self.passed > 0
    }

    /// The last word: what failed, what was skipped and why, and the totals on a line of their own.
    pub(super) fn report(&self, took: Duration) {
        println!("\n{:.0} s in all", took.as_secs_f32());
        for (name, reason) in &self.skipped {
            println!("skipped {name}: {reason}");
        }
        for name in &self.flaky {
            println!("flaky   {name}: failed, and passed in a lab host of its own");
        }
        for name in &self.failed {
            println!("failed  {name}");
        }
        println!(
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failed.len(),
            self.skipped.len()
        );
    }
}

fn slowest(all: &BTreeMap<String, Duration>) -> Vec<(&String, &Duration)> {
    let mut all: Vec<_> = all.iter().collect();
    all.sort_by(|(_, one), (_, other)| other.cmp(one));
    all
}

/// From the first failure's report on; else the end.
fn excerpt(log: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let start = lines
        .iter()
        .position(|line| *line == "failures:" || line.starts_with("error"))
        .unwrap_or(lines.len().saturating_sub(EXCERPT));
    lines[start..]
        .iter()
        .take(EXCERPT)
        .copied()
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_read_from_both_harnesses() {
        let output = "running 3 tests\n\
            test a::b ... ok\n\
            test vmm/src/vm.rs - vm::VmBuilder (line 3) - compile ... ok\n\
            test c       ... FAILED\n\
            test g       ... \nit panicked\nFAILED\n\
            test h       ... it said this\nok\n\
            test d       ... ignored\n\
            test f ... ok\n\
            skipped f: no KVM, either\n\
            test e ... ignored, a reason\n\
            failures:\n\n---- c ----\nit panicked\n\nfailures:\n\x20   c\n\x20   g\n\n\
            test result: FAILED. 2 passed; 2 failed; 2 ignored\n\
            skipped d: no KVM here: none\n\
            took h: 12.345 s\n";
        let outcomes = Outcomes::of_output(output);
        assert_eq!(outcomes.passed, 3);
        assert!(outcomes.ok.contains("h"));
        let took = [("h".to_owned(), Duration::from_millis(12_345))];
        assert_eq!(outcomes.took, took.into());
        assert_eq!(outcomes.failed, ["c", "g"]);
        let skipped = |name: &str, reason: &str| (name.to_owned(), reason.to_owned());
        assert_eq!(
            outcomes.skipped,
            [
                skipped("f", "no KVM, either"),
                skipped("d", "no KVM here: none"),
                skipped("e", "ignored by its source")
            ]
        );
    }

    #[test]
    fn durations_are_kept_and_the_slowest_come_first() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let run = |tests: &[(&str, u64)]| {
            let mut totals = Totals::default();
            let each =
                |(name, seconds): &(&str, u64)| ((*name).to_owned(), Duration::from_secs(*seconds));
            let outcomes = Outcomes {
                took: tests.iter().map(each).collect(),
                ..Outcomes::default()
            };
            totals.step(
                "linux (amd lab host)",
                Duration::ZERO,
                outcomes,
                path.path(),
            );
            totals.write_durations(path.path()).unwrap();
            fs::read_to_string(path.path()).unwrap()
        };
        run(&[("a", 1), ("b", 2)]);
        let text = run(&[("a", 3), ("c", 1)]);
        let expected = "took linux: a: 3.000 s\ntook linux: b: 2.000 s\ntook linux: c: 1.000 s\n";
        assert_eq!(text, expected);
        let known = durations(path.path());
        assert_eq!(known["linux: b"], Duration::from_secs(2));
    }

    #[test]
    fn nothing_run_is_not_well() {
        let mut totals = Totals::default();
        assert!(!totals.all_is_well());
        let log = Path::new("no-such-log");
        totals.step(
            "x",
            Duration::ZERO,
            Outcomes {
                passed: 1,
                ..Outcomes::default()
            },
            log,
        );
        assert!(totals.all_is_well());
        totals.fail("y", &anyhow::anyhow!("broken"));
        assert!(!totals.all_is_well());
    }
}
