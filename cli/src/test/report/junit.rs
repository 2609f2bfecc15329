//! `junit.xml`: a suite for each file, a case for each scenario, retries as Maven's surefire has them.
//!
//! A failure is `<failure>`, host trouble `<error>`. Of several attempts that did not pass the first is the case's own, the others are
//! `<rerunFailure>`; where a later one passed, all are `<flakyFailure>`, and the case is a success. The end of the console is a case's
//! `system-out`. Numbers of tests that readers show are those of cases, not of attempts.

use std::path::Path;
use std::time::Duration;

use chrono::DateTime;
use quick_junit::{
    NonSuccessKind, Property, Report, TestCase, TestCaseStatus, TestRerun, TestSuite,
};

use super::text::{visible, visible_line};
use crate::report::{self, Failure};
use crate::test::outcome::{Attempt, ScenarioResult, TestRun, Verdict};

/// Why a scenario was not begun, as far as its result knows.
pub(super) const SKIPPED: &str =
    "not begun: another scenario failed before, or the run was interrupted";

/// The document.
pub(super) fn text(run: &TestRun) -> Result<String, Failure> {
    let mut report = Report::new("ampoule test");
    report.set_time(Duration::from_millis(run.duration_ms));
    let began = i64::try_from(run.started_ms)
        .ok()
        .and_then(DateTime::from_timestamp_millis);
    if let Some(began) = began {
        report.set_timestamp(began);
    }
    let mut files: Vec<&Path> = Vec::new();
    for scenario in &run.scenarios {
        if !files.contains(&scenario.file.as_path()) {
            files.push(&scenario.file);
        }
    }
    for file in files {
        report.add_test_suite(suite(run, file));
    }
    report.to_string().map_err(|err| {
        let why = report::chain(&err);
        Failure::new(format!("cannot write the results as JUnit XML: {why}"))
    })
}

fn suite(run: &TestRun, file: &Path) -> TestSuite {
    let mut suite = TestSuite::new(line(&file.to_string_lossy()));
    suite.add_property(Property::new("ampoule", line(&run.ampoule)));
    suite.add_property(Property::new("host", line(&run.host)));
    if let Some(seed) = run.seed {
        suite.add_property(Property::new("seed", seed.to_string()));
    }
    let mut time_ms = 0_u64;
    for scenario in run.scenarios.iter().filter(|it| it.file == file) {
        time_ms = time_ms.saturating_add(scenario.duration_ms());
        suite.add_test_case(case(scenario));
    }
    suite.set_time(Duration::from_millis(time_ms));
    suite
}

fn case(scenario: &ScenarioResult) -> TestCase {
    let mut case = TestCase::new(line(&scenario.name), status(scenario));
    case.set_classname(line(&scenario.file.with_extension("").to_string_lossy()));
    case.set_time(Duration::from_millis(scenario.duration_ms()));
    for (axis, value) in &scenario.cell {
        case.add_property(Property::new(format!("cell.{}", line(axis)), line(value)));
    }
    for tag in &scenario.tags {
        case.add_property(Property::new("tag", line(tag)));
    }
    if let Some(description) = &scenario.description {
        case.add_property(Property::new("description", line(description)));
    }
    case.add_property(Property::new("repeat", line(&scenario.repeat)));
    let own = scenario.attempts.iter().find(|it| !it.has_passed());
    if let Some(folder) = own.and_then(|it| it.folder.as_ref()) {
        let folder = folder.to_string_lossy();
        case.add_property(Property::new("folder", line(&folder)));
    }
    if let Some(console) = own.and_then(console) {
        case.set_system_out(console);
    }
    case
}

fn status(scenario: &ScenarioResult) -> TestCaseStatus {
    if scenario.verdict == Verdict::Skipped {
        let mut status = TestCaseStatus::skipped();
        status.set_message(SKIPPED);
        return status;
    }
    let mut others = scenario.attempts.iter().filter(|it| !it.has_passed());
    let mut status = match scenario.verdict {
        Verdict::Passed | Verdict::Flaky => TestCaseStatus::success(),
        verdict => {
            let mut status = TestCaseStatus::non_success(kind(verdict));
            let own = others.next();
            if let Some(failure) = own.and_then(|it| it.failure.as_ref()) {
                status.set_message(line(&failure.message));
                status.set_type(failure.kind.name());
            }
            if let Some(own) = own {
                status.set_description(description(own));
            }
            status
        }
    };
    status.add_reruns(others.map(rerun));
    status
}

fn rerun(attempt: &Attempt) -> TestRerun {
    let mut rerun = TestRerun::new(kind(attempt.verdict));
    rerun.set_time(Duration::from_millis(attempt.duration_ms));
    if let Some(failure) = &attempt.failure {
        rerun.set_message(line(&failure.message));
        rerun.set_type(failure.kind.name());
    }
    rerun.set_description(description(attempt));
    if let Some(console) = console(attempt) {
        rerun.set_system_out(console);
    }
    rerun
}

fn kind(verdict: Verdict) -> NonSuccessKind {
    match verdict {
        Verdict::Host => NonSuccessKind::Error,
        _ => NonSuccessKind::Failure,
    }
}

/// What there is to read about an attempt: the step, the message, the details, how the VM ended.
fn description(attempt: &Attempt) -> String {
    let mut lines = Vec::new();
    if let Some(failure) = &attempt.failure {
        lines.push(failure.message.clone());
        if let Some((step, title)) = attempt.step_of(failure) {
            lines.push(format!("in step {}: {title}", step + 1));
        }
        lines.extend(failure.details.iter().cloned());
    }
    if let Some(end) = &attempt.end {
        lines.push(format!("the VM: {end}"));
    }
    visible(&lines.join("\n")).into_owned()
}

fn console(attempt: &Attempt) -> Option<String> {
    let lines = &attempt.failure.as_ref()?.console;
    (!lines.is_empty()).then(|| visible(&lines.join("\n")).into_owned())
}

/// As an attribute: a reader makes spaces of line feeds there.
fn line(text: &str) -> String {
    visible_line(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::report::sample;

    fn case_of<'a>(xml: &'a str, name: &str) -> &'a str {
        let start = xml.find(&format!("<testcase name=\"{name}\"")).unwrap();
        let end = xml[start..].find("</testcase>").unwrap();
        &xml[start..start + end]
    }

    #[test]
    fn a_case_says_what_became_of_its_scenario() {
        let xml = text(&sample::run()).unwrap();
        assert!(xml.contains(
            "<testsuites name=\"ampoule test\" tests=\"12\" skipped=\"1\" failures=\"4\" errors=\"1\""
        ), "{xml}");
        let passed = case_of(&xml, "boot[kernel=6.1,memory=128M]");
        assert!(passed.contains("<property name=\"cell.memory\" value=\"128M\"/>"));
        assert!(passed.contains("<property name=\"tag\" value=\"smoke\"/>"));
        assert!(!passed.contains("ailure"));
        let panic = case_of(&xml, "late-panic");
        assert!(panic.contains("type=\"panic\""));
        assert!(panic.contains("in step 3: expect &quot;login:&quot;"));
        assert!(panic.contains("<system-out>"));
        assert_eq!(panic.matches("<rerunFailure").count(), 1);
        let flaky = case_of(&xml, "net");
        assert_eq!(flaky.matches("<flakyFailure").count(), 1);
        assert!(!flaky.contains("<failure"));
        assert!(case_of(&xml, "big").contains("<error "));
        assert!(case_of(&xml, "later").contains("<skipped message=\"not begun"));
    }

    /// XML 1.0, 2.2: what a document may hold.
    #[test]
    fn nothing_that_xml_refuses_comes_through() {
        let xml = text(&sample::run()).unwrap();
        let is_legal = |it: char| match it {
            '\t' | '\n' | '\r' => true,
            _ => it >= ' ' && it != '\u{fffe}' && it != '\u{ffff}',
        };
        assert!(xml.chars().all(is_legal));
        let hostile = case_of(&xml, "hostile&lt;script&gt;alert(1)&lt;/script&gt;");
        assert!(hostile.contains("\\x00\\x01\\x1b[2J"), "{hostile}");
        assert!(hostile.contains("]]&gt;"), "{hostile}");
    }
}
