//! `ampoule test`: VMs as tests, from files.
//!
//! ```text
//!  files --format--> Scenario… --supervisor--> a worker process each --Event--> ScenarioResult… --report--> JUnit, TAP, JSON, HTML
//! ```
//! - `format` reads files: inheritance, matrix, checks. What passes it can be run. `scenario` is what it makes.
//! - `supervisor` runs scenarios, each attempt in a process of its own, which may be killed, hang, or crash: that is a result, too.
//! - `worker` is that process: it boots the VM through the library's test feature ([`ampoule_vmm::test`]) and goes through the steps.
//! - `report` writes what came of it, `live` says it meanwhile; `outcome` is the model in between.
//! - `bisect` chooses what to try next between a kernel that passes and one that fails.

pub(crate) mod args;
mod bisect;
mod choice;
mod format;
mod live;
mod outcome;
mod report;
mod scenario;
mod supervisor;
mod words;
pub(crate) mod worker;

use std::fs;
use std::path::{Path, PathBuf};

use crate::report::{self as printer, Failure};
use args::{BisectArgs, TestArgs};
use bisect::{Judged, Judgement};
use live::Reporter;
use outcome::{Happening, ScenarioResult, TestRun, Verdict};
use report::Consoles;
use scenario::Scenario;
use supervisor::Settings;

/// The scenarios are wrong.
const EXIT_WRONG: u8 = 2;

/// Somebody pressed ^C.
const EXIT_INTERRUPTED: u8 = 130;

/// Does what `ampoule test` is asked for; the exit status.
pub(crate) fn run(args: TestArgs) -> Result<u8, Failure> {
    if args.schema {
        return print(format::SCHEMA);
    }
    let Some(mut scenarios) = chosen(&args.paths, &args.set, &args.filter, &args.tag) else {
        return Ok(EXIT_WRONG);
    };
    let seed = choice::shuffle(&mut scenarios, args.shuffle);
    if args.list {
        let names = scenarios.iter().map(|it| it.name.clone() + "\n");
        return print(&names.collect::<String>());
    }
    if args.dry_run {
        return print(&effective(&scenarios)?);
    }
    let settings = Settings {
        jobs: usize::try_from(args.jobs).unwrap_or(usize::MAX),
        retries: args.retries,
        repeat: args.repeat,
        fail_fast: args.fail_fast,
        results: args.results,
        sets: args.set,
        seed,
    };
    let reporter = Reporter::new(args.format, &settings.results);
    let (run, is_interrupted) = carry_out(&scenarios, &settings, args.keep, Some(reporter))?;
    Ok(match is_interrupted {
        true => EXIT_INTERRUPTED,
        false => run.exit_status(),
    })
}

/// Reads scenarios and takes those that are wanted. None, where they are wrong: that has been told.
fn chosen(
    paths: &[PathBuf],
    sets: &[String],
    filter: &[String],
    tag: &[String],
) -> Option<Vec<Scenario>> {
    let chosen = format::load(paths, sets).and_then(|scenarios| {
        choice::choose(scenarios, filter, tag).map_err(|complaint| vec![complaint])
    });
    chosen
        .map_err(|complaints| complaints.iter().for_each(Failure::print))
        .ok()
}

/// Runs scenarios, keeps what is to be kept, and writes the reports. What came of them, and whether somebody interrupted it.
fn carry_out(
    scenarios: &[Scenario],
    settings: &Settings,
    keep: bool,
    mut reporter: Option<Reporter>,
) -> Result<(TestRun, bool), Failure> {
    let mut consoles = Consoles::default();
    let done = supervisor::run(scenarios, settings, &mut |happening| {
        if let Happening::Ended { scenario, result } = &happening
            && !keep
        {
            tidy(*scenario, result, &mut consoles);
        }
        if let Some(reporter) = &mut reporter {
            reporter.tell(&happening);
        }
    })?;
    let mut run = done.run;
    for attempt in run.scenarios.iter_mut().flat_map(|it| &mut it.attempts) {
        attempt.folder = attempt.folder.take().filter(|folder| folder.is_dir());
    }
    report::write(&run, consoles, &settings.results)?;
    if let Some(reporter) = reporter {
        reporter.finish(&run)?;
    }
    Ok((run, done.is_interrupted))
}

/// Removes the folders of attempts that passed, of which the report has the consoles.
fn tidy(scenario: usize, result: &ScenarioResult, consoles: &mut Consoles) {
    for (number, attempt) in result.attempts.iter().enumerate() {
        if attempt.verdict == Verdict::Passed
            && let Some(folder) = &attempt.folder
        {
            consoles.keep(scenario, number, attempt);
            if let Err(err) = fs::remove_dir_all(folder) {
                let why = printer::io_text(&err);
                Failure::new(format!("cannot remove \"{}\": {why}", folder.display())).print();
            }
        }
    }
}

/// Does what `ampoule bisect` is asked for; the exit status: 0 where the first that fails was found, or narrowed down.
pub(crate) fn bisect(args: BisectArgs) -> Result<u8, Failure> {
    let candidates = bisect::candidates(&args.good, &args.bad, &args.candidates)?;
    let key = match &args.key {
        Some(key) => key.clone(),
        None => usual_key(&args)?.to_owned(),
    };
    let mut say = |line: &str| {
        let _ = printer::print_stdout(&format!("{line}\n"));
    };
    bisect::bisect(&candidates, &mut say, |candidate| {
        try_one(&args, &key, candidate)
    })?;
    Ok(0)
}

/// What the candidates are, where nobody says so: with the good one as an image the scenario may be none without it.
fn usual_key(args: &BisectArgs) -> Result<&'static str, Failure> {
    let set = |key: &str| {
        let mut sets = args.set.clone();
        sets.push(format!("{key}={}", args.good.display()));
        format::load(std::slice::from_ref(&args.scenario), &sets)
    };
    match set("vm.kernel") {
        Ok(scenarios) if scenarios.iter().any(|it| it.run.is_some()) => Ok("run.image"),
        Ok(_) => Ok("vm.kernel"),
        Err(_) if set("run.image").is_ok() => Ok("run.image"),
        Err(complaints) => {
            let first = complaints.into_iter().next();
            Err(first.unwrap_or_else(|| Failure::new("there is no scenario")))
        }
    }
}

/// Runs the scenario with a candidate.
fn try_one(args: &BisectArgs, key: &str, candidate: &Path) -> Result<Judged, Failure> {
    let mut sets = args.set.clone();
    sets.push(format!("{key}={}", candidate.display()));
    let loaded = format::load(std::slice::from_ref(&args.scenario), &sets);
    let scenarios =
        loaded.and_then(|it| choice::choose(it, &args.filter, &[]).map_err(|it| vec![it]));
    let scenarios = scenarios.map_err(|complaints| {
        let first = complaints.into_iter().next();
        first.unwrap_or_else(|| Failure::new("there is no scenario"))
    })?;
    let name = candidate.file_name().unwrap_or_default().to_string_lossy();
    let settings = Settings {
        jobs: 1,
        retries: args.retries,
        repeat: 1,
        fail_fast: true,
        results: args.results.join(&*name),
        sets,
        seed: None,
    };
    let (run, is_interrupted) = carry_out(&scenarios, &settings, true, None)?;
    if is_interrupted {
        return Err(Failure::new("the search was interrupted"));
    }
    let worst = run.scenarios.iter().max_by_key(|it| it.verdict);
    let failure = worst.and_then(|it| it.attempts.last()?.failure.clone());
    Ok(Judged {
        judgement: match worst.map(|it| it.verdict) {
            Some(Verdict::Passed | Verdict::Flaky) => Judgement::Good,
            Some(Verdict::Failed)
                if failure
                    .as_ref()
                    .is_some_and(|it| it.kind == outcome::FailureKind::Scenario) =>
            {
                Judgement::Skip
            }
            Some(Verdict::Failed) => Judgement::Bad,
            Some(Verdict::Host | Verdict::Skipped) | None => Judgement::Skip,
        },
        why: failure.map(|it| it.message),
        duration_ms: run.duration_ms,
        repeat: worst.map(|it| it.repeat.clone()).unwrap_or_default(),
    })
}

/// The scenarios as they would be run, each a file of its own below a line that says which it is.
fn effective(scenarios: &[Scenario]) -> Result<String, Failure> {
    let mut text = String::new();
    for scenario in scenarios {
        let toml = format::to_toml(scenario).map_err(|err| {
            Failure::new(format!(
                "{} cannot be written as TOML: {err}",
                scenario.name
            ))
        })?;
        let file = scenario.file.display().to_string();
        // A name of a file may have a line feed.
        text += &format!("# {} of {}\n{toml}\n", scenario.name, file.escape_debug());
    }
    Ok(text)
}

fn print(text: &str) -> Result<u8, Failure> {
    printer::print_stdout(text)
        .map_err(|err| Failure::new(format!("cannot print: {}", printer::io_text(&err))))?;
    Ok(0)
}
