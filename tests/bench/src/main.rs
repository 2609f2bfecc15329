//! What Ampoule costs, beside what one would take instead: the program behind `cargo lab bench`.
//!
//! `measure` runs VMMs in turns and keeps what it saw as JSON, for bare guests, which run on any KVM, and for Linux guests, where
//! they run. `report` makes of it a table, a page, and a comparison with an older run. See docs/performance.md.

mod bench;
mod host;
mod linux;
mod machine;
mod measure;
mod peer;
mod process;
mod progress;
mod report;
mod results;
mod rounds;
mod smaps;
mod stats;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::bench::{Bench, Plan};
use crate::host::Host;
use crate::report::{compare, page, table};
use crate::results::{FORM, Results};

/// What Ampoule costs, beside other VMMs
#[derive(Debug, Parser)]
#[command(name = "ampoule-bench", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure, and keep what was seen in a file
    Measure(MeasureArgs),
    /// Make a table, a page and a comparison of what was measured
    Report(ReportArgs),
}

#[derive(Debug, Args)]
struct MeasureArgs {
    /// With which guests
    #[arg(value_enum)]
    part: Part,
    /// The file, JSON
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// A folder on a disk, for what is measured of disks
    #[arg(long, value_name = "DIR")]
    disk: PathBuf,
    /// Less of everything
    #[arg(long)]
    quick: bool,
    /// Only groups whose names contain this; may be given several times
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Rounds of each measurement, instead of its own number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// So many idle VMs at once, at most
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    vms: u32,
    /// The command to name in the results
    #[arg(long, value_name = "TEXT", default_value = "ampoule-bench measure")]
    command: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Guests without a kernel, which any KVM can run
    Bare,
    /// Linux
    Linux,
}

#[derive(Debug, Args)]
struct ReportArgs {
    /// What was measured
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A file for all of it
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A file for the page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Compare with this older run; exit with 1 where something is worse, and not by chance
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(err) => {
            progress::note(&format!("error: {err:#}"));
            ExitCode::from(125)
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Measure(arguments) => measure(arguments).map(|()| ExitCode::SUCCESS),
        Command::Report(arguments) => report(&arguments),
    }
}

fn measure(arguments: MeasureArgs) -> Result<()> {
    raise_descriptors()?;
    let began = Instant::now();
    let mut results = Results::new(&arguments.command);
    let plan = Plan {
        quick: arguments.quick,
        only: arguments.only,
        rounds: arguments.rounds.map(|rounds| rounds as usize),
        disk: arguments.disk,
        vms: arguments.vms as usize,
    };
    let bench = Bench::new(plan, &mut results)?;
    let (name, all) = match arguments.part {
        Part::Bare => ("bare", measure::ALL),
        Part::Linux => ("linux", linux::ALL),
    };
    results
        .hosts
        .insert(name.into(), Host::look(bench.ampoule()?.binary()));
    // What was measured in half an hour is not to be lost with what comes after it.
    let keep = |results: &Results| {
        let kept = serde_json::to_vec_pretty(results)
            .map_err(Into::into)
            .and_then(|text| write(&arguments.out, &text));
        if let Err(err) = kept {
            progress::note(&format!("not kept until now: {err:#}"));
        }
    };
    bench.measure(all, &mut results, keep);
    results.seconds = began.elapsed().as_secs_f64();
    write(&arguments.out, &serde_json::to_vec_pretty(&results)?)
}

/// A thousand VMs have two pipes each.
fn raise_descriptors() -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("cannot have more descriptors")
}

fn report(arguments: &ReportArgs) -> Result<ExitCode> {
    let mut parts = arguments.files.iter().map(|path| read(path));
    let mut results = parts.next().context("no files")??;
    for part in parts {
        results.add(part?);
    }
    if let Some(path) = &arguments.json {
        write(path, &serde_json::to_vec_pretty(&results)?)?;
    }
    if let Some(path) = &arguments.html {
        write(path, page::html(&results).as_bytes())?;
    }
    let width =
        rustix::termios::tcgetwinsize(std::io::stdout()).map_or(160, |size| size.ws_col.max(100));
    let mut text = table::text(&results, width);
    let mut code = ExitCode::SUCCESS;
    if let Some(path) = &arguments.compare {
        let compared = compare::compare(&read(path)?, &results);
        text.push_str(&compare::text(
            &compared,
            &path.display().to_string(),
            width,
        ));
        if compared
            .iter()
            .any(|one| one.change == compare::Change::Worse)
        {
            code = ExitCode::from(1);
        }
    }
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(code)
}

fn read(path: &Path) -> Result<Results> {
    let what = || format!("cannot read {}", path.display());
    let results: Results = serde_json::from_reader(std::io::BufReader::new(
        File::open(path).with_context(what)?,
    ))
    .with_context(what)?;
    ensure!(
        results.form == FORM,
        "{} is of form {}, which this program does not read; it reads {FORM}",
        path.display(),
        results.form
    );
    Ok(results)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
