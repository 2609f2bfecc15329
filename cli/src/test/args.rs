//! The command lines of `ampoule test` and `ampoule bisect`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

const CHOICE: &str = "Which scenarios";
const COURSE: &str = "How they run";
const RESULTS: &str = "Results";

/// `ampoule test`.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Scenarios: files, or directories whose *.toml files are scenarios, those in directories below them included
    #[arg(value_name = "FILE|DIR", required_unless_present = "schema")]
    pub(crate) paths: Vec<PathBuf>,

    /// Only scenarios whose name contains this; several times for one or the other
    #[arg(long, value_name = "TEXT", help_heading = CHOICE)]
    pub(crate) filter: Vec<String>,
    /// Only scenarios that have this tag; several times for one or the other
    #[arg(long, value_name = "TAG", help_heading = CHOICE)]
    pub(crate) tag: Vec<String>,
    /// Set a key of all scenarios: vm.kernel=vmlinuz, vm.cpus=2, run.image=debian.tar
    #[arg(long, value_name = "KEY=VALUE", help_heading = CHOICE)]
    pub(crate) set: Vec<String>,
    /// List the scenarios' names, and run none
    #[arg(long, help_heading = CHOICE)]
    pub(crate) list: bool,
    /// Check the scenarios and print them as they would be run, and run none
    #[arg(long, help_heading = CHOICE, conflicts_with = "list")]
    pub(crate) dry_run: bool,
    /// Print the JSON schema of scenario files, for editors
    #[arg(long, help_heading = CHOICE, conflicts_with_all = ["list", "dry_run"])]
    pub(crate) schema: bool,

    /// How many scenarios run at once
    #[arg(short, long, value_name = "N", help_heading = COURSE, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) jobs: u32,
    /// How often one that failed is tried again; one that passes then is reported as flaky
    #[arg(long, value_name = "N", help_heading = COURSE, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) retries: u32,
    /// How often each scenario is run; it passes if all runs do
    #[arg(long, value_name = "N", help_heading = COURSE, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) repeat: u32,
    /// Run them in a random order, or in the one that a seed gives
    #[arg(long, value_name = "SEED", help_heading = COURSE, num_args = 0..=1, require_equals = true)]
    pub(crate) shuffle: Option<Option<u64>>,
    /// Begin no other scenario once one has failed
    #[arg(long, help_heading = COURSE)]
    pub(crate) fail_fast: bool,

    /// Where the results go: junit.xml, results.tap, results.json, report.html, and a folder for each scenario
    #[arg(long, value_name = "DIR", help_heading = RESULTS, default_value = "ampoule-results")]
    pub(crate) results: PathBuf,
    /// Keep the folders of scenarios that passed, too
    #[arg(long, help_heading = RESULTS)]
    pub(crate) keep: bool,
    /// What standard output shows
    #[arg(long, value_name = "FORMAT", help_heading = RESULTS, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// What standard output shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// What happens: live on a terminal, else a line for each scenario
    #[default]
    Human,
    /// The Test Anything Protocol, as prove(1) reads it
    Tap,
    /// All results at the end
    Json,
}

/// `ampoule bisect`.
#[derive(Debug, Args)]
pub(crate) struct BisectArgs {
    /// The scenario, one of a file's: --filter chooses
    #[arg(value_name = "FILE")]
    pub(crate) scenario: PathBuf,
    /// The kernels or images, in their order, from the good one to the bad one [default: the files beside the good one, in the order
    /// of their versions]
    #[arg(value_name = "CANDIDATE")]
    pub(crate) candidates: Vec<PathBuf>,
    /// With it the scenario passes
    #[arg(long, value_name = "PATH")]
    pub(crate) good: PathBuf,
    /// With it the scenario fails
    #[arg(long, value_name = "PATH")]
    pub(crate) bad: PathBuf,
    /// What the candidates are: the key of the scenario that is set [default: run.image if the scenario has an image, else
    /// vm.kernel]
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// Only scenarios whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub(crate) filter: Vec<String>,
    /// Set a key of the scenario: vm.cpus=2
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// How often one that failed is tried again before it counts as bad
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) retries: u32,
    /// Where the results go, a folder for each candidate
    #[arg(long, value_name = "DIR", default_value = "ampoule-results")]
    pub(crate) results: PathBuf,
}
