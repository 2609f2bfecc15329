//! What came of scenarios: the one model that the live list, the reports and the exit status are made of.
//!
//! A worker process tells it in parts (`worker::Event`); the supervisor puts the parts together. All of it serialises: it is the JSON result.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::scenario::Step;

/// A whole run of `ampoule test`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TestRun {
    /// The version of ampoule.
    pub(crate) ampoule: String,
    /// When it began: milliseconds since 1970 in UTC.
    pub(crate) started_ms: u64,
    pub(crate) duration_ms: u64,
    /// The host's kernel, and what its KVM is: for the report's head.
    pub(crate) host: String,
    /// The seed of the order, where it was shuffled.
    pub(crate) seed: Option<u64>,
    /// In the order of the files.
    pub(crate) scenarios: Vec<ScenarioResult>,
}

/// How a scenario, or an attempt at it, came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// All steps did what they should.
    Passed,
    /// It passed, but not at once.
    Flaky,
    /// It was not begun, because another one failed before (`--fail-fast`), or somebody interrupted the run.
    Skipped,
    /// A step, the guest, or the VMM failed.
    Failed,
    /// The host could not do it: no KVM, no memory, no such file.
    Host,
}

impl Verdict {
    /// All of them, from bad to good: as totals are listed.
    pub(crate) const ALL: [Self; 5] = [
        Self::Failed,
        Self::Host,
        Self::Flaky,
        Self::Skipped,
        Self::Passed,
    ];

    /// Its name, as in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Flaky => "flaky",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
            Self::Host => "host",
        }
    }
}

/// What came of a scenario.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ScenarioResult {
    pub(crate) name: String,
    pub(crate) file: PathBuf,
    pub(crate) description: Option<String>,
    pub(crate) tags: Vec<String>,
    /// Its place in the matrix.
    pub(crate) cell: Vec<(String, String)>,
    pub(crate) verdict: Verdict,
    /// All attempts, in their order; none of one that was skipped.
    pub(crate) attempts: Vec<Attempt>,
    /// The command line that repeats it alone.
    pub(crate) repeat: String,
}

/// One boot of a scenario.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Attempt {
    pub(crate) verdict: Verdict,
    pub(crate) duration_ms: u64,
    /// Why it did not pass.
    pub(crate) failure: Option<FailureInfo>,
    /// All steps, also those that were not reached.
    pub(crate) steps: Vec<StepResult>,
    /// How the VM ended, as a clause; none where it never was.
    pub(crate) end: Option<String>,
    /// When what happened.
    pub(crate) timeline: Vec<TimelineMark>,
    /// Where its files are: `console.log` (as it came), `console.txt` (without control sequences; offsets of matches are in
    /// it), `scenario.toml`, `timeline.json`, `metrics.json`, `vmm.log`, `registers.txt` on a crash or a hang, `command.sh`; none where none are kept.
    pub(crate) folder: Option<PathBuf>,
    /// Where in `console.txt` steps matched.
    pub(crate) matches: Vec<ConsoleMatch>,
}

/// Why an attempt did not pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FailureInfo {
    pub(crate) kind: FailureKind,
    /// The step at hand, counted from 0; none before the first and after the last.
    pub(crate) step: Option<usize>,
    /// What went wrong, in one line.
    pub(crate) message: String,
    /// More of it: what the guest was doing, registers, the difference. Lines.
    pub(crate) details: Vec<String>,
    /// The end of the console, lines.
    pub(crate) console: Vec<String>,
}

/// The kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FailureKind {
    /// The guest's kernel panicked.
    Panic,
    /// Triple fault, or KVM could not go on.
    Crash,
    /// The guest, or the command, ended before it should, or in another way.
    UnexpectedEnd,
    /// A status, a text or a time is another one.
    Mismatch,
    /// A forbidden text.
    Forbidden,
    /// Nothing came in time: the guest waits.
    HangIdle,
    /// Nothing came in time: the guest computes.
    HangSpinning,
    /// Nothing came in time: the VMM does not answer.
    VmmStuck,
    /// Nothing came in time: the host did not let the guest run.
    HostStarved,
    /// Nothing came in time, and why is not known.
    Deadline,
    /// The process of the VM was killed, or ended without a result.
    VmmDied,
    /// The host lacks something.
    Host,
    /// A step cannot be done as the scenario has it: it cannot be known before it runs.
    Scenario,
}

impl FailureKind {
    /// Its name, as in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Crash => "crash",
            Self::UnexpectedEnd => "unexpected-end",
            Self::Mismatch => "mismatch",
            Self::Forbidden => "forbidden",
            Self::HangIdle => "hang-idle",
            Self::HangSpinning => "hang-spinning",
            Self::VmmStuck => "vmm-stuck",
            Self::HostStarved => "host-starved",
            Self::Deadline => "deadline",
            Self::VmmDied => "vmm-died",
            Self::Host => "host",
            Self::Scenario => "scenario",
        }
    }
}

/// What came of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StepResult {
    pub(crate) title: String,
    /// Its line in the file.
    pub(crate) line: usize,
    pub(crate) state: StepState,
    /// When it began, since the start of the attempt's process.
    pub(crate) at_ms: u64,
    pub(crate) duration_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StepState {
    Passed,
    Failed,
    NotReached,
}

impl StepResult {
    /// Of a step that nobody has come to yet.
    pub(crate) fn not_reached(step: &Step) -> Self {
        Self {
            title: step.title(),
            line: step.line,
            state: StepState::NotReached,
            at_ms: 0,
            duration_ms: 0,
        }
    }
}

/// A time as the results have it.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A mark of the timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TimelineMark {
    /// Microseconds since the start of the attempt's process.
    pub(crate) at_us: u64,
    /// Whether the guest set it; else the VMM did.
    pub(crate) guest: bool,
    pub(crate) name: String,
}

/// A text that a step found, or that was forbidden.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConsoleMatch {
    /// The step, counted from 0; none of a forbidden text.
    pub(crate) step: Option<usize>,
    /// Bytes of `console.txt`.
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Attempt {
    /// Whether it did what it should.
    pub(crate) fn has_passed(&self) -> bool {
        matches!(self.verdict, Verdict::Passed | Verdict::Flaky)
    }

    /// The step at which it failed, from 0, and its title.
    pub(crate) fn step_of(&self, failure: &FailureInfo) -> Option<(usize, &str)> {
        let step = failure.step?;
        Some((step, self.steps.get(step)?.title.as_str()))
    }

    /// Whether trying again may help.
    pub(crate) fn is_worth_a_retry(&self) -> bool {
        self.verdict == Verdict::Failed
    }
}

impl ScenarioResult {
    /// The attempt that tells best why the scenario did not pass, and its place: the last that did not.
    pub(crate) fn telling(&self) -> Option<(usize, &Attempt)> {
        let mut attempts = self.attempts.iter().enumerate();
        attempts.rfind(|(_, attempt)| !attempt.has_passed())
    }

    /// How long all attempts took.
    pub(crate) fn duration_ms(&self) -> u64 {
        let times = self.attempts.iter().map(|it| it.duration_ms);
        times.fold(0, u64::saturating_add)
    }
}

impl TestRun {
    pub(crate) fn count(&self, verdict: Verdict) -> usize {
        self.scenarios
            .iter()
            .filter(|it| it.verdict == verdict)
            .count()
    }

    /// The exit status: 0 all passed, 1 some failed, 125 host trouble.
    pub(crate) fn exit_status(&self) -> u8 {
        if self.count(Verdict::Failed) > 0 {
            1
        } else if self.count(Verdict::Host) > 0 {
            crate::EXIT_FAILURE
        } else {
            0
        }
    }
}

/// What happens while a run goes on, for whoever shows it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Happening<'a> {
    /// So many scenarios are to come.
    Begun { total: usize, jobs: usize },
    /// A scenario was begun, for the `attempt`th time (from 1).
    Started {
        scenario: usize,
        name: &'a str,
        attempt: u32,
    },
    /// It is at this step of so many.
    Step {
        scenario: usize,
        step: usize,
        of: usize,
        title: &'a str,
    },
    /// An attempt ended, and another follows.
    Retried {
        scenario: usize,
        name: &'a str,
        attempt: &'a Attempt,
    },
    /// It came to its end.
    Ended {
        scenario: usize,
        result: &'a ScenarioResult,
    },
}
