//! `results.json`: all that is known, for programs.

use serde::Serialize;

use crate::report::Failure;
use crate::test::outcome::{TestRun, Verdict};

/// What the file holds: the run, and what a program would count first.
#[derive(Serialize)]
struct Document<'a> {
    /// Of this shape of the document.
    format: u32,
    exit_status: u8,
    totals: Totals,
    #[serde(flatten)]
    run: &'a TestRun,
}

#[derive(Serialize)]
struct Totals {
    passed: usize,
    flaky: usize,
    skipped: usize,
    failed: usize,
    host: usize,
}

/// The document, with a line feed at its end.
///
/// # Errors
///
/// The path of a scenario or a folder is no UTF-8.
pub(crate) fn text(run: &TestRun) -> Result<String, Failure> {
    let document = Document {
        format: 1,
        exit_status: run.exit_status(),
        totals: Totals {
            passed: run.count(Verdict::Passed),
            flaky: run.count(Verdict::Flaky),
            skipped: run.count(Verdict::Skipped),
            failed: run.count(Verdict::Failed),
            host: run.count(Verdict::Host),
        },
        run,
    };
    match serde_json::to_string_pretty(&document) {
        Ok(text) => Ok(text + "\n"),
        Err(err) => Err(Failure::new(format!(
            "cannot write the results as JSON: {err}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::report::sample;

    #[test]
    fn what_is_written_is_the_run_again() {
        let run = sample::run();
        let text = text(&run).unwrap();
        assert_eq!(serde_json::from_str::<TestRun>(&text).unwrap(), run);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["totals"]["flaky"], 1);
        assert_eq!(value["exit_status"], 1);
        assert_eq!(value["scenarios"][0]["verdict"], "passed");
    }
}
