//! `ampoule test` under test: runs scenarios, and reads what came of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A scenario of a file that must fail has this before the kind of failure, as a tag.
const MUST_FAIL: &str = "fails-by-";

/// The folder of the project's scenarios.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

/// A command that runs scenarios and puts the results into `results`, and the disks that they make beside it.
pub fn command(ampoule: &Path, scenarios: &[&Path], results: &Path) -> Command {
    let mut command = Command::new(ampoule);
    command
        .arg("test")
        .args(scenarios)
        .arg("--results")
        .arg(results)
        .env("AMPOULE_TEST_GUESTS", env!("GUESTS_DIR"))
        .env("AMPOULE_TEST_SCRATCH", results.parent().unwrap_or(results));
    command
}

/// What came of a run.
///
/// # Panics
/// There is nothing to read.
pub fn results(folder: &Path) -> Vec<Value> {
    let path = folder.join("results.json");
    let text = fs::read_to_string(&path).expect("no results");
    let results: Value = serde_json::from_str(&text).expect("no JSON");
    let scenarios = results["scenarios"].as_array();
    scenarios
        .unwrap_or_else(|| panic!("no scenarios in {text}"))
        .clone()
}

/// A scenario's failure, of its last attempt: the kind, and the message.
pub fn failure(scenario: &Value) -> (&str, &str) {
    let attempts = scenario["attempts"].as_array().map(Vec::as_slice);
    let failure = &attempts.unwrap_or_default().last().unwrap_or(&Value::Null)["failure"];
    let text = |key: &str| failure[key].as_str().unwrap_or_default();
    (text("kind"), text("message"))
}

/// Sees that every scenario did as it must: those with a tag `fails-by-KIND` failed by that kind, and the others passed.
///
/// # Panics
/// One did not; all that did not are told.
pub fn check(scenarios: &[Value]) {
    let mut wrong = Vec::new();
    for scenario in scenarios {
        let tags = scenario["tags"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let mut kinds = tags
            .iter()
            .filter_map(|tag| tag.as_str()?.strip_prefix(MUST_FAIL));
        let expected = match kinds.next() {
            Some(kind) => ("failed", kind),
            None => ("passed", ""),
        };
        let (kind, message) = failure(scenario);
        let found = (scenario["verdict"].as_str().unwrap_or_default(), kind);
        if found != expected {
            wrong.push(format!(
                "{}: {found:?}, not {expected:?}: {message}",
                scenario["name"]
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(!scenarios.is_empty(), "no scenario was run");
}
