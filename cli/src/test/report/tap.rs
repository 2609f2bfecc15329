//! `results.tap` and `--format tap`: the Test Anything Protocol (testanything.org), as prove(1) reads it.
//!
//! It says version 13, and has nothing that 14 does not know: perls of today call a run failed that says 14.
//!
//! The plan comes first, then a test point for each scenario as it ends, with a block of YAML where there is more to say. All text in
//! YAML is quoted, and nothing in it is nested deeper than a list: what TAP's own YAML knows.

use std::fmt::Write as _;

use super::junit::SKIPPED;
use super::text::{visible, visible_line};
use crate::test::outcome::{Attempt, ScenarioResult, TestRun, Verdict};

/// The stream: text for each scenario as it ends.
#[derive(Debug, Default)]
pub(crate) struct Tap {
    /// How many test points there were.
    done: usize,
}

impl Tap {
    /// The version and the plan.
    pub(crate) fn head(total: usize) -> String {
        match total {
            0 => "TAP version 13\n1..0 # SKIP no scenarios\n".to_owned(),
            _ => format!("TAP version 13\n1..{total}\n"),
        }
    }

    /// The test point of a scenario that has ended.
    pub(crate) fn point(&mut self, scenario: &ScenarioResult) -> String {
        self.done += 1;
        let ok = match scenario.verdict {
            Verdict::Failed | Verdict::Host => "not ok",
            Verdict::Passed | Verdict::Flaky | Verdict::Skipped => "ok",
        };
        let mut text = format!("{ok} {} - {}", self.done, escaped(&scenario.name));
        if scenario.verdict == Verdict::Skipped {
            text += &format!(" # SKIP {SKIPPED}\n");
            return text;
        }
        text.push('\n');
        block(&mut text, scenario);
        text
    }
}

/// The whole of a run, in the order of the files.
pub(super) fn text(run: &TestRun) -> String {
    let mut tap = Tap::default();
    let mut text = Tap::head(run.scenarios.len());
    for scenario in &run.scenarios {
        text += &tap.point(scenario);
    }
    text
}

fn block(text: &mut String, scenario: &ScenarioResult) {
    text.push_str("  ---\n");
    let mut pair = |key: &str, value: &str| {
        let _ = writeln!(text, "  {key}: {}", quoted(value));
    };
    pair("verdict", scenario.verdict.name());
    pair("file", &scenario.file.to_string_lossy());
    pair("duration_ms", &scenario.duration_ms().to_string());
    if scenario.attempts.len() > 1 {
        pair("attempts", &scenario.attempts.len().to_string());
    }
    if let Some((_, attempt)) = scenario.telling() {
        if let Some(failure) = &attempt.failure {
            pair("message", &failure.message);
            pair("kind", failure.kind.name());
            if let Some((step, title)) = attempt.step_of(failure) {
                pair("step", &format!("{}: {title}", step + 1));
                pair("line", &attempt.steps[step].line.to_string());
            }
        }
        if let Some(folder) = &attempt.folder {
            pair("folder", &folder.to_string_lossy());
        }
        pair("repeat", &scenario.repeat);
        lists(text, attempt);
    }
    text.push_str("  ...\n");
}

fn lists(text: &mut String, attempt: &Attempt) {
    let Some(failure) = &attempt.failure else {
        return;
    };
    for (key, lines) in [("details", &failure.details), ("console", &failure.console)] {
        if lines.is_empty() {
            continue;
        }
        let _ = writeln!(text, "  {key}:");
        for line in lines {
            let _ = writeln!(text, "    - {}", quoted(line));
        }
    }
}

/// A description: one line, in which `#` begins no directive.
fn escaped(text: &str) -> String {
    visible_line(text).replace('\\', "\\\\").replace('#', "\\#")
}

/// A double-quoted scalar of YAML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for it in visible(text).chars() {
        match it {
            '"' => quoted += "\\\"",
            '\\' => quoted += "\\\\",
            '\n' => quoted += "\\n",
            '\t' => quoted += "\\t",
            _ => quoted.push(it),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::test::report::sample;

    #[test]
    fn the_plan_comes_first_and_all_points_are_numbered() {
        let text = text(&sample::run());
        assert!(
            text.starts_with("TAP version 13\n1..12\nok 1 - boot[kernel=6.1,memory=128M]\n  ---\n")
        );
        let points = text
            .lines()
            .filter(|line| line.starts_with("ok ") || line.starts_with("not ok "));
        assert_eq!(points.count(), 12);
        assert!(text.contains("# SKIP not begun"));
        assert!(text.contains("  verdict: \"flaky\"\n"));
        assert!(text.contains("  attempts: \"2\"\n"));
        assert_eq!(Tap::head(0), "TAP version 13\n1..0 # SKIP no scenarios\n");
    }

    #[test]
    fn a_name_gives_no_directives_and_a_text_no_lines() {
        let mut scenario = sample::run().scenarios.remove(0);
        scenario.name = "a # SKIP \\ b\nok 2".into();
        let text = Tap::default().point(&scenario);
        assert!(
            text.starts_with("ok 1 - a \\# SKIP \\\\ b ok 2\n"),
            "{text}"
        );
        assert_eq!(quoted("a\"b\\\n\t\0"), "\"a\\\"b\\\\\\n\\t\\\\x00\"");
        // A console that plays a test point stays in its block.
        let all = super::text(&sample::run());
        assert!(all.contains("    - \"not ok 99 - bogus\"\n"));
        assert!(!all.contains("\nnot ok 99"));
    }

    /// Perl's own reader, which nobody here wrote, agrees: as many tests, the same ones failed.
    #[test]
    fn prove_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("results.tap");
        std::fs::write(&file, text(&sample::run())).unwrap();
        let output = Command::new("prove")
            .args(["--exec", "cat"])
            .arg(&file)
            .stdin(Stdio::null())
            .output();
        let output = match output {
            Ok(output) => output,
            Err(err) => {
                let _ = writeln!(std::io::stderr(), "skipped: no prove here: {err}");
                return;
            }
        };
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("Failed 5/12 subtests"), "{said}");
        assert!(!said.contains("Parse errors"), "{said}");
    }
}
