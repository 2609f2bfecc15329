//! Where things are, and how to build what the lab runs.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::say;

/// How long a build may take without a word about it.
const SILENCE: Duration = Duration::from_secs(1);

/// The working tree and its target folder.
#[derive(Debug, Clone)]
pub(crate) struct Project {
    /// The workspace's root.
    pub(crate) root: PathBuf,
    /// Cargo's target folder.
    pub(crate) target: PathBuf,
    /// Everything the lab downloads or makes, in the target folder.
    pub(crate) lab: PathBuf,
}

impl Project {
    /// Finds both from where this program comes from.
    ///
    /// # Errors
    /// The program lies somewhere else than cargo puts it.
    pub(crate) fn find() -> Result<Self> {
        // Cargo says where the package is now; where it was at build time is good for a program started by hand.
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        let root = manifest.join("../..").canonicalize();
        let root = root.with_context(|| format!("no working tree at {}", manifest.display()))?;
        let program = own_program()?;
        let target = program.ancestors().nth(2).filter(|path| path.is_dir());
        let target = target.context("this program is not in cargo's target folder")?;
        Ok(Self {
            root,
            target: target.into(),
            lab: target.join("lab"),
        })
    }

    /// Where the release build puts programs.
    pub(crate) fn programs(&self) -> PathBuf {
        self.target.join("release")
    }

    /// The release build of `ampoule`.
    pub(crate) fn ampoule(&self) -> PathBuf {
        self.programs().join("ampoule")
    }

    /// A cargo command for this workspace, as if a person gave it.
    ///
    /// `cargo run` tells a program of its package by the environment. A build script that looks at the same variables (ring's does) would
    /// run again each time that cargo is called the other way, and all that needs its crate would be built again.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .current_dir(&self.root)
            .env("CARGO_TARGET_DIR", &self.target)
            .stdin(Stdio::null());
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(is_of_a_package) {
                command.env_remove(name);
            }
        }
        command
    }

    /// Builds the release build of `ampoule`, and of what pulls images.
    ///
    /// # Errors
    /// It does not build.
    pub(crate) fn build_ampoule(&self) -> Result<()> {
        self.build(&[])
    }

    /// Builds the release build of `ampoule` as it boots kernels: where what pulls images has not been built yet, without that, for
    /// its libraries (TLS, HTTP) take as long as all the rest.
    ///
    /// # Errors
    /// It does not build.
    pub(crate) fn build_to_boot(&self) -> Result<()> {
        // Where all has been built before, one binary is enough.
        if self.programs().join("ampoule-pull").exists() {
            return self.build_ampoule();
        }
        self.build(&[
            "--bin",
            "ampoule",
            "--no-default-features",
            "--features",
            "decompress,image,io-uring,qcow2",
        ])
    }

    fn build(&self, more: &[&str]) -> Result<()> {
        let mut command = self.cargo();
        command.args(["build", "--quiet", "--release", "--package", "ampoule"]);
        command.args(more);
        // Nothing to say where nothing is to be done.
        let (done, finished) = mpsc::channel::<()>();
        let patient = thread::spawn(move || {
            if finished.recv_timeout(SILENCE) == Err(RecvTimeoutError::Timeout) {
                say::say("building ampoule …");
            }
        });
        let built = run(&mut command);
        drop(done);
        let _ = patient.join();
        built.map(drop)
    }
}

/// Whether cargo has set an environment variable for a program of a package that it runs.
fn is_of_a_package(name: &str) -> bool {
    const OTHERS: [&str; 5] = [
        "CARGO_BIN_NAME",
        "CARGO_CRATE_NAME",
        "CARGO_MANIFEST_DIR",
        "CARGO_MANIFEST_LINKS",
        "CARGO_MANIFEST_PATH",
    ];
    name.starts_with("CARGO_PKG_") || OTHERS.contains(&name)
}

/// Whether this machine's own KVM runs Linux guests, as the release build's `ampoule doctor` finds.
///
/// # Errors
/// It cannot be run.
pub(crate) fn can_run_linux(project: &Project) -> Result<bool> {
    let status = Command::new(project.ampoule())
        .arg("doctor")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("cannot run ampoule doctor")?;
    Ok(status.success())
}

/// The path of this program, or of the one that a build has put in its place meanwhile.
///
/// # Errors
/// It cannot be found out.
pub(crate) fn own_program() -> Result<PathBuf> {
    let path = env::current_exe().context("cannot find this program's own file")?;
    // What the kernel adds to the name of a file that is gone.
    let name = path
        .to_str()
        .and_then(|path| path.strip_suffix(" (deleted)"));
    Ok(name.map(PathBuf::from).unwrap_or(path))
}

/// Runs a program, and takes its output.
///
/// # Errors
/// It cannot be run, or fails; then the message ends in what it said.
pub(crate) fn run(command: &mut Command) -> Result<Output> {
    let name = Path::new(command.get_program())
        .file_name()
        .unwrap_or(OsStr::new("?"))
        .to_string_lossy()
        .into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!(
            "{name} failed ({}):\n{}",
            output.status,
            String::from_utf8_lossy(&said).trim_end()
        );
    }
    Ok(output)
}
