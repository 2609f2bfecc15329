//! `ampoule test`: VMs as tests, from files.
//!
//! ```text
//!  files --format--> Scenario… --supervisor--> a worker process each --Event--> ScenarioResult… --report--> JUnit, TAP, JSON, HTML
//! ```
//! - `format` reads files: inheritance, matrix, checks. What passes it can be run. `scenario` is what it makes.
//! - `supervisor` runs scenarios, each attempt in a process of its own, which may be killed, hang, or crash: that is a result, too.
//! - `worker` is that process: it boots the VM through the library's test feature ([`ampoule_vmm::test`]) and goes through the steps.
//! - `report` writes what came of it; `outcome` is the model in between.

pub(crate) mod args;
mod choice;
mod format;
mod outcome;
mod scenario;
mod supervisor;

use crate::report::{self, Failure};
use args::{BisectArgs, TestArgs};
use scenario::Scenario;

/// The scenarios are wrong.
const EXIT_WRONG: u8 = 2;

/// Does what `ampoule test` is asked for; the exit status.
pub(crate) fn run(args: TestArgs) -> Result<u8, Failure> {
    if args.schema {
        return print(format::SCHEMA);
    }
    let scenarios = match format::load(&args.paths, &args.set) {
        Ok(scenarios) => scenarios,
        Err(complaints) => {
            complaints.iter().for_each(Failure::print);
            return Ok(EXIT_WRONG);
        }
    };
    let mut scenarios = match choice::choose(scenarios, &args.filter, &args.tag) {
        Ok(scenarios) => scenarios,
        Err(complaint) => {
            complaint.print();
            return Ok(EXIT_WRONG);
        }
    };
    let seed = choice::shuffle(&mut scenarios, args.shuffle);
    if args.list {
        let names = scenarios.iter().map(|it| it.name.clone() + "\n");
        return print(&names.collect::<String>());
    }
    if args.dry_run {
        return print(&effective(&scenarios)?);
    }
    supervisor::run(&args, scenarios, seed)
}

/// Does what `ampoule bisect` is asked for; the exit status.
pub(crate) fn bisect(args: BisectArgs) -> Result<u8, Failure> {
    supervisor::bisect(&args)
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
    report::print_stdout(text)
        .map_err(|err| Failure::new(format!("cannot print: {}", report::io_text(&err))))?;
    Ok(0)
}
