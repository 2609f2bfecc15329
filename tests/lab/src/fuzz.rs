//! `cargo lab fuzz`: builds the fuzz targets of `tests/fuzz`, runs them from their committed seeds, and ends with a table.
//!
//! The targets are a workspace with a target folder of its own, so that the flags of the instrumentation never cause anything
//! else to be built anew. Neither a nightly toolchain nor cargo-fuzz is needed: libFuzzer is a crate, which wants a C++
//! compiler. What the fuzzer keeps (`corpus`, `artifacts`) is not committed.

#![allow(clippy::print_stdout, reason = "the table is the command's output")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, bail};

use crate::packages::Packages;
use crate::project::{Project, run};
use crate::say;

/// libFuzzer is written in C++.
const PACKAGES: &[&str] = &["g++"];

/// A target of its own keeps the flags away from build scripts.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// What cargo-fuzz would have rustc do: find errors of memory, and tell libFuzzer which edges were taken.
const FLAGS: &str = "--cfg fuzzing -Ccodegen-units=1 -Zsanitizer=address -Cpasses=sancov-module \
     -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
     -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Longer than any input needs to be.
const MAX_LEN: &str = "-max_len=8192";
/// A run that takes this many seconds is a finding.
const TIMEOUT: &str = "-timeout=30";
/// In MiB: more is a finding, too.
const MEMORY: &str = "-rss_limit_mb=2048";

/// Names of files in `artifacts` that tell of a finding.
const FINDINGS: &[&str] = &["crash-", "leak-", "oom-", "timeout-"];

/// What to fuzz.
pub(crate) struct Plan {
    /// The targets; empty for all.
    pub(crate) targets: Vec<String>,
    /// For how long each, in seconds.
    pub(crate) seconds: u64,
    /// How many at a time.
    pub(crate) jobs: usize,
    /// Only list them.
    pub(crate) list: bool,
}

/// A time such as `90`, `90s`, `10m` or `1h`, in seconds.
pub(crate) fn seconds(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) => (number, text.as_bytes()[text.len() - 1]),
        None => (text, b's'),
    };
    let factor = match unit {
        b'h' => 3600,
        b'm' => 60,
        _ => 1,
    };
    let number = number.parse::<u64>().ok();
    number
        .and_then(|number| number.checked_mul(factor))
        .filter(|seconds| *seconds > 0)
        .ok_or_else(|| format!("{text:?} is no time such as 90s or 10m"))
}

/// Fuzzes; the result is whether nothing was found.
///
/// # Errors
/// The targets do not build or run.
pub(crate) fn run_targets(project: &Project, plan: &Plan) -> Result<bool> {
    let folder = project.root.join("tests/fuzz");
    let known = targets(&folder)?;
    if plan.list {
        known.iter().for_each(|target| println!("{target}"));
        return Ok(true);
    }
    if let Some(unknown) = plan.targets.iter().find(|name| !known.contains(*name)) {
        let names: Vec<_> = known.iter().map(String::as_str).collect();
        bail!("no fuzz target {unknown}; there are {}", names.join(", "));
    }
    let chosen: Vec<&String> = match plan.targets.is_empty() {
        true => known.iter().collect(),
        false => plan.targets.iter().collect(),
    };
    Packages::new(project)?.ensure(PACKAGES)?;
    let fuzz = Fuzz {
        folder,
        seconds: plan.seconds,
    };
    say::step("building the fuzz targets", || fuzz.build(project))?;

    let waiting = Mutex::new(chosen.iter());
    let reports = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..plan.jobs.clamp(1, chosen.len()) {
            scope.spawn(|| {
                loop {
                    // Not held while the target runs.
                    let next = waiting.lock().ok().and_then(|mut waiting| waiting.next());
                    let Some(target) = next else { return };
                    let report = fuzz.run(target);
                    if let Ok(mut reports) = reports.lock() {
                        reports.push(report);
                    }
                }
            });
        }
    });
    let reports = reports.into_inner().unwrap_or_default();
    let reports = reports.into_iter().collect::<Result<Vec<_>>>()?;
    Ok(tell(&fuzz, reports))
}

/// The command that lints the targets, without their instrumentation.
pub(crate) fn check(project: &Project) -> Command {
    let folder = project.root.join("tests/fuzz");
    let mut cargo = project.cargo();
    cargo.env("CARGO_TARGET_DIR", folder.join("target"));
    // Only what is linked needs libFuzzer, and with it a C++ compiler: any archive will do.
    cargo.env("CUSTOM_LIBFUZZER_PATH", folder.join("README.md"));
    cargo.args(["clippy", "--quiet", "--locked", "--manifest-path"]);
    cargo.arg(folder.join("Cargo.toml"));
    cargo.args(["--", "-D", "warnings"]);
    cargo
}

/// The names of the targets: those of their sources.
fn targets(folder: &Path) -> Result<BTreeSet<String>> {
    let sources = folder.join("fuzz_targets");
    let entries = fs::read_dir(&sources)
        .with_context(|| format!("cannot read {}", sources.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()));
    let name = |path: PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
    Ok(entries
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter_map(name)
        .collect())
}

struct Fuzz {
    folder: PathBuf,
    seconds: u64,
}

/// What became of a target.
#[derive(Debug)]
struct Report {
    target: String,
    statistics: Statistics,
    /// The inputs that failed.
    findings: Vec<PathBuf>,
    log: PathBuf,
    /// libFuzzer ended as it does when it has found nothing.
    is_well: bool,
}

impl Fuzz {
    fn build(&self, project: &Project) -> Result<()> {
        let mut cargo = project.cargo();
        cargo
            .current_dir(&self.folder)
            .env("CARGO_TARGET_DIR", self.folder.join("target"))
            // A stable compiler takes flags that are not, then.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", FLAGS)
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .args([
                "build",
                "--quiet",
                "--release",
                "--locked",
                "--target",
                TRIPLE,
            ]);
        run(&mut cargo).map(drop)
    }

    fn program(&self, target: &str) -> PathBuf {
        let programs = self.folder.join("target").join(TRIPLE).join("release");
        programs.join(target)
    }

    /// Runs a target from its seeds and from what earlier runs have found.
    fn run(&self, target: &str) -> Result<Report> {
        say::say(format!("fuzzing {target} for {} s …", self.seconds));
        let made = |name: &str| -> Result<PathBuf> {
            let path = self.folder.join(name).join(target);
            fs::create_dir_all(&path)
                .with_context(|| format!("cannot create {}", path.display()))?;
            Ok(path)
        };
        let (corpus, artifacts) = (made("corpus")?, made("artifacts")?);
        let before = findings(&artifacts);
        let log = artifacts.join("log");
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        // libFuzzer takes what ends in a slash for a folder.
        let mut prefix = artifacts.clone().into_os_string();
        prefix.push("/");
        let status = Command::new(self.program(target))
            .arg(&corpus)
            .args(Some(self.folder.join("seeds").join(target)).filter(|seeds| seeds.is_dir()))
            .arg(named("-artifact_prefix=", &prefix))
            .arg(format!("-max_total_time={}", self.seconds))
            .args([MAX_LEN, TIMEOUT, MEMORY, "-print_final_stats=1"])
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("no descriptors left")?)
            .stderr(file)
            .status()
            .with_context(|| format!("cannot run {target}"))?;
        let text = fs::read(&log).unwrap_or_default();
        Ok(Report {
            target: target.to_owned(),
            statistics: Statistics::of_log(&String::from_utf8_lossy(&text)),
            findings: findings(&artifacts).difference(&before).cloned().collect(),
            log,
            is_well: status.success(),
        })
    }
}

fn named(option: &str, value: &std::ffi::OsStr) -> std::ffi::OsString {
    let mut argument = std::ffi::OsString::from(option);
    argument.push(value);
    argument
}

fn findings(artifacts: &Path) -> BTreeSet<PathBuf> {
    let is_finding = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        FINDINGS.iter().any(|kind| name.starts_with(kind))
    };
    let entries = fs::read_dir(artifacts).into_iter().flatten();
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(is_finding)
        .collect()
}

/// What libFuzzer says of a run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Statistics {
    executions: u64,
    /// Edges of the program that inputs have taken.
    edges: u64,
    /// Those, and how often they were taken.
    features: u64,
    inputs: u64,
}

impl Statistics {
    /// Reads lines like `#4096 pulse cov: 123 ft: 456 corp: 7/89b …` and `stat::number_of_executed_units: 4096`.
    fn of_log(log: &str) -> Self {
        let mut statistics = Self::default();
        for line in log.lines() {
            if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
                statistics.executions = count.trim().parse().unwrap_or(0);
            }
            let Some(counters) = line.strip_prefix('#') else {
                continue;
            };
            let mut words = counters.split_whitespace();
            if let Some(Ok(count)) = words.next().map(str::parse::<u64>) {
                statistics.executions = statistics.executions.max(count);
            }
            while let Some(word) = words.next() {
                let counter = match word {
                    "cov:" => &mut statistics.edges,
                    "ft:" => &mut statistics.features,
                    "corp:" => &mut statistics.inputs,
                    _ => continue,
                };
                let number = words.next().and_then(|word| word.split('/').next());
                *counter = number
                    .and_then(|word| word.parse().ok())
                    .unwrap_or(*counter);
            }
        }
        statistics
    }
}

/// Prints the table, and how to run again what failed; whether nothing did.
fn tell(fuzz: &Fuzz, mut reports: Vec<Report>) -> bool {
    reports.sort_by(|one, other| one.target.cmp(&other.target));
    println!(
        "{:<16} {:>12} {:>8} {:>9} {:>7} {:>9}",
        "target", "executions", "edges", "features", "inputs", "findings"
    );
    for report in &reports {
        let Statistics {
            executions,
            edges,
            features,
            inputs,
        } = report.statistics;
        let failed = !report.is_well && report.findings.is_empty();
        let found = report.findings.len() + usize::from(failed);
        println!(
            "{:<16} {executions:>12} {edges:>8} {features:>9} {inputs:>7} {found:>9}",
            report.target
        );
    }
    for report in reports.iter().filter(|report| !report.is_well) {
        println!("\n{}: see {}", report.target, report.log.display());
        let program = fuzz.program(&report.target);
        for input in &report.findings {
            println!("  {} {}", program.display(), input.display());
        }
    }
    reports
        .iter()
        .all(|report| report.is_well && report.findings.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_that_people_write() {
        assert_eq!(seconds("90"), Ok(90));
        assert_eq!(seconds("90s"), Ok(90));
        assert_eq!(seconds("10m"), Ok(600));
        assert_eq!(seconds("2h"), Ok(7200));
        for text in [
            "",
            "0",
            "m",
            "-1s",
            "1d",
            "99999999999999999999s",
            "9999999999999999999h",
        ] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_last_line_counts() {
        let log = "INFO: Seed: 1\n\
             #2\tINITED cov: 11 ft: 12 corp: 1/1b exec/s: 0 rss: 40Mb\n\
             #4096\tpulse  cov: 123 ft: 456 corp: 7/89b lim: 48 exec/s: 2048 rss: 41Mb\n\
             #5000\tDONE   cov: 124 ft: 457 corp: 8/99b lim: 48 exec/s: 2048 rss: 41Mb\n\
             stat::number_of_executed_units: 5001\n";
        let expected = Statistics {
            executions: 5001,
            edges: 124,
            features: 457,
            inputs: 8,
        };
        assert_eq!(Statistics::of_log(log), expected);
        assert_eq!(Statistics::of_log("it died"), Statistics::default());
    }

    #[test]
    fn what_the_fuzzer_leaves_is_told_from_findings() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["log", "crash-01", "slow-unit-02", "oom-03"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let names: Vec<_> = findings(folder.path())
            .iter()
            .map(|path| path.file_name().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["crash-01", "oom-03"]);
    }

    #[test]
    fn every_source_is_a_target() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        for target in targets(&folder).unwrap() {
            assert!(
                manifest.contains(&format!("name = \"{target}\"")),
                "{target}"
            );
        }
    }
}
