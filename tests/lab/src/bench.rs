//! `cargo lab bench`: what Ampoule costs beside other VMMs, measured by `ampoule-bench` (tests/bench): bare guests on this machine's
//! own KVM, Linux guests where a KVM can run them; then a table, a file and a page of all.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::host::{Cpu, HostConfig};
use crate::kernels::{Kernel, Version};
use crate::packages::Packages;
use crate::project::{Project, can_run_linux, run};
use crate::shared::Session;
use crate::suite::{BINARY, KERNELS, TOOLS};
use crate::{client, say, tools};

/// The VMM of crates.io that Ampoule is measured beside.
const ALIOTH: (&str, &str) = ("alioth-cli", "0.12.0");
/// Where `ampoule-bench` looks for it before `PATH`.
const ALIOTH_VARIABLE: &str = "AMPOULE_BENCH_ALIOTH";

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Less of everything: some minutes instead of an hour
    #[arg(long)]
    quick: bool,
    /// Only groups of figures whose names contain this (start, block, boot, …); may be given several times
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Only with these guests
    #[arg(long, value_enum, value_name = "GUESTS")]
    part: Option<Part>,
    /// Rounds of each measurement, instead of its own number
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// So many idle VMs at once, at most [default: 1000]
    #[arg(long, value_name = "N")]
    vms: Option<u32>,
    /// Compare with the results.json of another run; exit with 1 where something is worse, and not by chance
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Where results.json and report.html go [default: target/lab/bench]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Guests without a kernel, on this machine's own KVM
    Bare,
    /// Linux, here or in a lab host
    Linux,
}

impl BenchArgs {
    /// What `ampoule-bench measure` is told of it.
    fn pass_on(&self) -> Vec<OsString> {
        let mut arguments = Vec::new();
        let mut add = |name: &str, value: String| arguments.extend([name.into(), value.into()]);
        for only in &self.only {
            add("--only", only.clone());
        }
        if let Some(rounds) = self.rounds {
            add("--rounds", rounds.to_string());
        }
        if let Some(vms) = self.vms {
            add("--vms", vms.to_string());
        }
        if self.quick {
            arguments.push("--quick".into());
        }
        arguments
    }
}

/// Measures, and reports; the exit status.
///
/// # Errors
/// Something is missing, or does not build or start.
pub(crate) fn bench(
    project: &Project,
    packages: &Packages,
    config: &HostConfig,
    arguments: &BenchArgs,
) -> Result<i32> {
    // QEMU is a peer, and makes the lab host.
    packages.ensure(&[&Cpu::Amd.packages(), tools::PACKAGES, &["iproute2"]].concat())?;
    project.build_ampoule()?;
    let program = program(project)?;
    let out = arguments
        .out
        .clone()
        .unwrap_or_else(|| project.lab.join("bench"));
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let out = out.canonicalize()?;
    let mut environment = vec![(BINARY.into(), installed(project, &out)?.into_os_string())];
    match alioth(project) {
        Ok(path) => environment.push((ALIOTH_VARIABLE.into(), path.into_os_string())),
        Err(err) => say::say(format!("without alioth: {err:#}")),
    }

    let mut files = Vec::new();
    let wants = |part| arguments.part.is_none_or(|only| only == part);
    if wants(Part::Bare) {
        say::say("measuring bare guests on this machine's own KVM");
        let file = out.join("bare.json");
        here(
            &line(&program, "bare", &file, &out, arguments),
            &environment,
        )?;
        files.push(file);
    }
    if wants(Part::Linux) {
        let tools = tools::image(project)?;
        Kernel::get(project, packages, Version::V6_1)?;
        environment.push((KERNELS.into(), project.lab.join("kernels").into_os_string()));
        environment.push((TOOLS.into(), tools.into_os_string()));
        let file = out.join("linux.json");
        let line = line(&program, "linux", &file, &out, arguments);
        if can_run_linux(project)? {
            say::say("measuring Linux guests on this machine's own KVM");
            here(&line, &environment)?;
        } else {
            say::say(
                "measuring Linux guests in the lab host: an emulated machine, of which only ratios say anything",
            );
            let mut config = config.clone();
            config.read_write.push(out.clone());
            let mut spec = client::spec(line, &project.programs(), None)?;
            spec.environment.extend(environment);
            let session = Session::open(project, packages, &config, true)?;
            let status = session.run(spec, client::run_attached)?.status();
            if status != 0 {
                bail!("ampoule-bench ended with {status} in the lab host");
            }
        }
        files.push(file);
    }
    report(&program, &files, &out, arguments)
}

/// A command line that measures.
fn line(
    program: &Path,
    part: &str,
    file: &Path,
    out: &Path,
    arguments: &BenchArgs,
) -> Vec<OsString> {
    let mut line: Vec<OsString> = vec![program.into(), "measure".into(), part.into()];
    line.extend(["--out".into(), file.into(), "--disk".into(), out.into()]);
    line.extend(["--command".into(), own_command().into()]);
    line.extend(arguments.pass_on());
    line
}

/// What was typed, for the report.
fn own_command() -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    format!("cargo lab {}", arguments.join(" "))
}

fn here(line: &[OsString], environment: &[(OsString, OsString)]) -> Result<()> {
    let mut command = Command::new(&line[0]);
    command
        .args(&line[1..])
        .envs(environment.iter().map(|(name, value)| (name, value)));
    let status = command
        .stdin(Stdio::null())
        .status()
        .context("cannot run ampoule-bench")?;
    if !status.success() {
        bail!("ampoule-bench: {status}");
    }
    Ok(())
}

fn report(program: &Path, files: &[PathBuf], out: &Path, arguments: &BenchArgs) -> Result<i32> {
    let (json, html) = (out.join("results.json"), out.join("report.html"));
    let mut command = Command::new(program);
    command.arg("report").args(files);
    command.arg("--json").arg(&json).arg("--html").arg(&html);
    // It may be the file that is about to be written.
    let old = out.join("compared.json");
    if let Some(path) = &arguments.compare {
        fs::copy(path, &old).with_context(|| format!("cannot read {}", path.display()))?;
        command.arg("--compare").arg(&old);
    }
    let status = command
        .stdin(Stdio::null())
        .status()
        .context("cannot run ampoule-bench")?;
    say::say(format!(
        "all of it is in {} and {}",
        json.display(),
        html.display()
    ));
    status.code().context("ampoule-bench was killed")
}

/// The binary as a user has it: a copy, as `cargo install` makes one. What the linker writes piece by piece, the page cache keeps in
/// small pieces, and the program takes more page faults to come in.
fn installed(project: &Project, out: &Path) -> Result<PathBuf> {
    let copy = out.join("ampoule");
    // One that runs cannot be written to.
    let _ = fs::remove_file(&copy);
    fs::copy(project.ampoule(), &copy).context("cannot copy the binary")?;
    // Pages that are not on the disk yet would count as dirty ones of the process that runs them.
    let file = fs::File::open(&copy).and_then(|file| file.sync_all());
    file.context("cannot write the copy of the binary")?;
    Ok(copy)
}

/// The peer of crates.io, built once.
fn alioth(project: &Project) -> Result<PathBuf> {
    if let Some(named) = std::env::var_os(ALIOTH_VARIABLE) {
        return Ok(named.into());
    }
    let root = project.lab.join("peers");
    let (name, version) = ALIOTH;
    let program = root.join("bin/alioth");
    let mark = root.join(format!("{name}-{version}"));
    if !(program.exists() && mark.exists()) {
        say::step(&format!("building {name} {version}"), || {
            let mut command = project.cargo();
            command.args([
                "install",
                name,
                "--version",
                version,
                "--locked",
                "--quiet",
                "--force",
            ]);
            command.arg("--root").arg(&root);
            // Its own: nothing of ours is to be built again.
            command.env("CARGO_TARGET_DIR", root.join("target"));
            run(&mut command)?;
            let _ = fs::remove_dir_all(root.join("target"));
            Ok(fs::write(&mark, "")?)
        })?;
    }
    Ok(program)
}

/// The program, built.
fn program(project: &Project) -> Result<PathBuf> {
    let mut command = project.cargo();
    command.args(["build", "--package", "ampoule-bench", "--quiet"]);
    command.args(["--message-format", "json-render-diagnostics"]);
    let output = run(&mut command)?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "ampoule-bench")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo built no such program")
}
