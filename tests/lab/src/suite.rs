//! `cargo lab test`: the whole suite, in order, with a line for each step and totals at the end.
//!
//! Checks and unit tests run on this machine. Integration tests run here, too, on this machine's own KVM; those of them that
//! need Linux guests run where a KVM can run Linux: here, or in one lab host that serves them all. While the checks
//! compile, a thread fetches what the guests need and makes the release build.

mod lab;
mod outcome;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::host::Cpu;
use crate::kernels::{Kernel, Version};
use crate::packages::Packages;
use crate::project::Project;
use crate::stranger;
use crate::verdict::Verdict;
use crate::{api, debian, fuzz, registry, tools};

use lab::LinuxTests;
use outcome::{Outcomes, Totals};

/// What the test programs look for (`ampoule_tests::harness`): the binary under test, the kernels, the tools for guests, the
/// Debian system, and whether to take long.
pub(crate) const BINARY: &str = "AMPOULE_BIN";
pub(crate) const KERNELS: &str = "AMPOULE_TEST_KERNELS";
pub(crate) const TOOLS: &str = "AMPOULE_TEST_TOOLS";
const DEBIAN: &str = "AMPOULE_TEST_DEBIAN";
const THOROUGH: &str = "AMPOULE_TEST_THOROUGH";
const STRANGER: &str = "AMPOULE_TEST_STRANGER";
const SHARED: &str = "AMPOULE_TEST_SHARED";
const PREPARED: &str = "AMPOULE_TEST_PREPARED";
const PREPARE: &str = "AMPOULE_TEST_PREPARE";

/// How many of the slowest tests are told, where somebody wants to know.
const SLOWEST: usize = 20;

/// What to run.
pub(crate) struct Plan {
    /// Only tests whose name contains this; `None` for all, checks included.
    pub(crate) filter: Option<String>,
    /// Only list the tests' names.
    pub(crate) list: bool,
    /// Which lab host runs Linux guests; `None` leaves it to this machine where it can.
    pub(crate) cpu: Option<Cpu>,
    /// Also what takes long.
    pub(crate) thorough: bool,
    /// Only tests of Linux guests.
    pub(crate) linux: bool,
    /// Say at the end which tests took longest.
    pub(crate) durations: bool,
}

/// Runs the suite; the result is whether all is well.
///
/// # Errors
/// The suite itself cannot be run; a test that fails is no error.
pub(crate) fn run(project: &Project, plan: &Plan) -> Result<bool> {
    let packages = Packages::new(project)?;
    let start = Instant::now();
    let mut suite = Suite::new(project, plan)?;
    if plan.list {
        return suite.list().map(|()| true);
    }
    let prepared = prepare(project, plan.cpu.unwrap_or_default());
    if plan.filter.is_none() && !plan.linux {
        suite.checks();
    }
    if !plan.linux {
        suite.unit_tests();
    }
    suite.integration_tests(&packages, prepared);
    suite.totals.write_durations(&suite.durations())?;
    if plan.durations {
        suite.totals.tell_slowest(SLOWEST);
    }
    suite.totals.report(start.elapsed());
    Ok(suite.totals.all_is_well())
}

/// What has been made for guests.
pub(crate) struct Prepared {
    /// The image of their tools.
    tools: PathBuf,
    /// The folder of the Debian system.
    debian: PathBuf,
}

/// Fetches and builds what integration tests need, beside the checks.
fn prepare(project: &Project, cpu: Cpu) -> Receiver<Result<Prepared>> {
    let (done, prepared) = mpsc::channel();
    let project = project.clone();
    thread::spawn(move || {
        let result = (|| {
            let packages = Packages::new(&project)?;
            packages.ensure(&[&cpu.packages(), tools::PACKAGES, debian::PACKAGES].concat())?;
            let tools = tools::image(&project)?;
            for version in Version::ALL {
                Kernel::get(&project, &packages, version)?;
            }
            let debian = debian::get(&project, &packages)?;
            project.build_ampoule()?;
            Ok(Prepared { tools, debian })
        })();
        // Nobody listens when the suite has failed before.
        let _ = done.send(result);
    });
    prepared
}

/// What the integration tests are.
struct Programs {
    /// Their programs, by name.
    tests: Vec<(String, PathBuf)>,
    /// The folder of the guests that their build has made.
    guests: Option<PathBuf>,
}

struct Suite<'a> {
    project: &'a Project,
    plan: &'a Plan,
    logs: PathBuf,
    totals: Totals,
    /// The program of docs/embedding.md, where it has been built.
    stranger: Option<PathBuf>,
    /// What this machine has made for the tests of Linux guests, and the lab hosts need not.
    shared: Option<TempDir>,
}

impl<'a> Suite<'a> {
    fn new(project: &'a Project, plan: &'a Plan) -> Result<Self> {
        let logs = project.lab.join("logs");
        fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        Ok(Self {
            project,
            plan,
            logs,
            totals: Totals::default(),
            stranger: None,
            shared: None,
        })
    }

    /// Where it is kept how long tests take.
    fn durations(&self) -> PathBuf {
        self.logs.join("durations.txt")
    }

    /// Format, lints, documentation, dependencies: each counts as one test.
    fn checks(&mut self) {
        let cargo = |arguments: &[&str]| {
            let mut cargo = self.project.cargo();
            cargo.args(arguments);
            cargo
        };
        let mut doc = cargo(&["doc", "--quiet", "--workspace", "--no-deps"]);
        doc.env("RUSTDOCFLAGS", "-D warnings");
        let clippy = [
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ];
        let featureless = [
            "clippy",
            "--quiet",
            "--package",
            "ampoule",
            "--package",
            "ampoule-vmm",
            "--no-default-features",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ];
        let checks = [
            ("fmt", cargo(&["fmt", "--all", "--check"])),
            ("clippy", cargo(&clippy)),
            ("no features", cargo(&featureless)),
            ("doc", doc),
        ];
        for (name, command) in checks {
            self.check(name, command);
        }
        self.judge("public api", api::compare);
        self.judge("package", registry::check);
        // The fuzz targets are a workspace that nothing else builds.
        self.check("fuzz targets", fuzz::check(self.project));
        // The advisories' database is not part of any package registry: `cargo deny check` by hand reads it, too.
        let deny = cargo(&[
            "deny",
            "--log-level",
            "error",
            "check",
            "licenses",
            "bans",
            "sources",
        ]);
        let installed = cargo(&["deny", "--version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        match installed {
            Ok(status) if status.success() => self.check("deny", deny),
            _ => self.totals.skip(
                "deny",
                "cargo-deny is not installed: cargo install cargo-deny",
            ),
        }
    }

    /// Takes a check of the lab's own.
    fn judge(&mut self, name: &str, check: impl FnOnce(&Project) -> Result<Verdict>) {
        let start = Instant::now();
        let log = self.logs.join(format!("{}.log", name.replace(' ', "-")));
        let told = |report: String| {
            fs::write(&log, &report).with_context(|| format!("cannot write {}", log.display()))
        };
        let mut outcomes = Outcomes::default();
        match check(self.project) {
            Ok(Verdict::Good) => outcomes.count(name, true),
            Ok(Verdict::Bad(report)) => {
                outcomes.count(name, false);
                if let Err(error) = told(report) {
                    return self.totals.fail(name, &error);
                }
            }
            Ok(Verdict::Unknown(reason)) => return self.totals.skip(name, &reason),
            Err(error) => return self.totals.fail(name, &error),
        }
        self.totals.step(name, start.elapsed(), outcomes, &log);
    }

    fn check(&mut self, name: &str, mut command: Command) {
        let start = Instant::now();
        let log = self.logs.join(format!("{name}.log"));
        let passed = logged(&mut command, &log).unwrap_or(false);
        let mut outcomes = Outcomes::default();
        outcomes.count(name, passed);
        self.totals.step(name, start.elapsed(), outcomes, &log);
    }

    /// Unit, property and documentation tests of all packages but the integration tests' own.
    fn unit_tests(&mut self) {
        let mut command = self.project.cargo();
        command.args([
            "test",
            "--workspace",
            "--exclude",
            "ampoule-tests",
            "--no-fail-fast",
        ]);
        // The output of tests that pass says which of them could not run.
        command
            .arg("--")
            .arg("--show-output")
            .args(&self.plan.filter);
        self.tests("unit tests", command);
    }

    /// Runs a command that prints as Rust's test programs do.
    fn tests(&mut self, name: &str, mut command: Command) -> Outcomes {
        let start = Instant::now();
        let log = self.logs.join(format!("{}.log", name.replace(' ', "-")));
        let finished = logged(&mut command, &log);
        let mut outcomes = Outcomes::of_log(&log);
        if !finished.unwrap_or(false) && outcomes.failed.is_empty() {
            // It did not build, or died: that is a failure although no test says so.
            outcomes.count(name, false);
        }
        let skipped = outcomes.clone();
        self.totals.step(name, start.elapsed(), outcomes, &log);
        skipped
    }

    fn integration_tests(&mut self, packages: &Packages, prepared: Receiver<Result<Prepared>>) {
        let Programs { tests, guests } = match self.programs() {
            Ok(programs) => programs,
            Err(error) => return self.totals.fail("integration tests", &error),
        };
        let ready = prepared
            .recv()
            .unwrap_or_else(|_| bail!("the preparation died"));
        let prepared = match ready {
            Ok(prepared) => prepared,
            Err(error) => return self.totals.fail("preparation", &error),
        };
        self.build_stranger();
        for (name, program) in &tests {
            if name != "linux" && !self.plan.linux {
                self.tests(name, self.program(program, &prepared));
            }
        }
        let Some((_, linux)) = tests.iter().find(|(name, _)| name == "linux") else {
            return;
        };
        let here = self.plan.cpu.is_none() && self.runs_linux();
        if here {
            self.tests("linux", self.program(linux, &prepared));
        } else {
            let cpu = self.plan.cpu.unwrap_or_default();
            self.shared = self.make_shared(linux, &prepared);
            if let Err(error) = self.in_the_lab(
                packages,
                cpu,
                &LinuxTests {
                    program: linux,
                    guests: guests.as_deref(),
                    prepared: &prepared,
                },
            ) {
                self.totals.fail("linux", &error);
            }
        }
    }

    /// Has the tests' program make on this machine what takes it much longer in an emulated one. Without it each lab host makes its
    /// own.
    fn make_shared(&self, program: &Path, prepared: &Prepared) -> Option<TempDir> {
        let runs = self.project.lab.join("run");
        fs::create_dir_all(&runs).ok()?;
        let folder = tempfile::Builder::new().prefix("shared-").tempdir_in(runs);
        let folder = folder.ok()?;
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        command.envs(self.environment(prepared));
        command.env(SHARED, folder.path()).env(PREPARE, "1");
        let made = logged(&mut command, &self.logs.join("prepare.log"));
        made.is_ok_and(|made| made).then_some(folder)
    }

    /// Builds the program of docs/embedding.md, which a test of Linux guests runs.
    fn build_stranger(&mut self) {
        match stranger::build(self.project) {
            Ok((command, program)) => {
                self.check("embedding.md", command);
                self.stranger = program.exists().then_some(program);
            }
            Err(error) => self.totals.fail("embedding.md", &error),
        }
    }

    /// Whether this machine's own KVM can run Linux.
    fn runs_linux(&self) -> bool {
        Command::new(self.project.ampoule())
            .arg("doctor")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }

    /// A test program with what it looks for.
    fn program(&self, program: &Path, prepared: &Prepared) -> Command {
        let mut command = Command::new(program);
        command.args(&self.plan.filter).stdin(Stdio::null());
        command.envs(self.environment(prepared));
        command
    }

    /// What test programs look for.
    fn environment(&self, prepared: &Prepared) -> Vec<(&'static str, PathBuf)> {
        let mut environment = vec![
            (BINARY, self.project.ampoule()),
            (KERNELS, self.project.lab.join("kernels")),
            (TOOLS, prepared.tools.clone()),
            (DEBIAN, prepared.debian.clone()),
        ];
        environment.extend(self.stranger.clone().map(|program| (STRANGER, program)));
        let shared = self.shared.as_ref();
        environment.extend(shared.map(|folder| (PREPARED, folder.path().into())));
        if self.plan.thorough {
            environment.push((THOROUGH, "1".into()));
        }
        environment
    }

    /// The integration tests' programs, built.
    fn programs(&self) -> Result<Programs> {
        let log = self.logs.join("build-integration-tests.log");
        // They run the library's examples.
        let mut command = self.project.cargo();
        command.args(["build", "--package", "ampoule-vmm", "--examples"]);
        if !logged(&mut command, &log)? {
            bail!(
                "the examples do not build:\n{}",
                fs::read_to_string(&log).unwrap_or_default()
            );
        }
        let mut command = self.project.cargo();
        command.args(["test", "--package", "ampoule-tests", "--tests", "--no-run"]);
        command.args(["--message-format", "json-render-diagnostics"]);
        let output = command
            .stderr(create(&log)?)
            .output()
            .context("cannot run cargo")?;
        if !output.status.success() {
            bail!(
                "they do not build:\n{}",
                fs::read_to_string(&log).unwrap_or_default()
            );
        }
        let messages = String::from_utf8_lossy(&output.stdout);
        let program = |line: &str| {
            let message: Value = serde_json::from_str(line).ok()?;
            let is_test = message["target"]["kind"] == serde_json::json!(["test"]);
            let path = message["executable"].as_str().filter(|_| is_test)?;
            Some((
                message["target"]["name"].as_str()?.to_owned(),
                PathBuf::from(path),
            ))
        };
        let guests = |line: &str| {
            let message: Value = serde_json::from_str(line).ok()?;
            let is_ours = message["package_id"].as_str()?.contains("#ampoule-tests@");
            Some(message["out_dir"].as_str().filter(|_| is_ours)?.into())
        };
        Ok(Programs {
            tests: messages.lines().filter_map(program).collect(),
            guests: messages.lines().find_map(guests),
        })
    }

    /// Prints the names of all tests.
    fn list(&mut self) -> Result<()> {
        let mut units = self.project.cargo();
        units.args(["test", "--workspace", "--exclude", "ampoule-tests", "--"]);
        let mut commands = vec![units];
        commands.extend(
            self.programs()?
                .tests
                .into_iter()
                .map(|(_, path)| Command::new(path)),
        );
        for mut command in commands {
            command
                .arg("--list")
                .args(&self.plan.filter)
                .stdin(Stdio::null());
            let status = command
                .stderr(Stdio::null())
                .status()
                .context("cannot list tests")?;
            if !status.success() {
                bail!("{command:?} cannot list its tests");
            }
        }
        Ok(())
    }
}

/// Runs a command with its output in a log; whether it succeeded.
fn logged(command: &mut Command, log: &Path) -> Result<bool> {
    let file = create(log)?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    Ok(status.success())
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot create {}", path.display()))
}
