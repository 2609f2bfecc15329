//! `cargo lab`: the developer's door. Boots Debian's kernels in Ampoule, runs the test suite, and runs anything inside the
//! lab host, an emulated machine with a `/dev/kvm` that can run Linux, for machines that have none.

mod agent;
mod api;
mod bench;
mod bochs;
mod broker;
mod client;
mod cpio;
mod debian;
#[cfg(test)]
mod documents;
mod frame;
mod fuzz;
mod guest;
mod host;
mod kernels;
mod modules;
mod packages;
mod project;
mod qemu;
mod registry;
mod say;
mod shared;
mod stranger;
mod suite;
mod terminal;
mod tools;
mod verdict;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{self, ExitCode};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::frame::Spec;
use crate::host::{Cpu, HostConfig};
use crate::kernels::Version;
use crate::packages::Packages;
use crate::project::{Project, can_run_linux};
use crate::shared::Session;

/// The developer's door to Ampoule
#[derive(Debug, Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a Debian kernel in Ampoule, to a shell or for one command
    ///
    /// Installs and fetches what is missing. Runs on this machine's own KVM where that can run Linux, else inside the lab
    /// host, and says which. `poweroff` ends it, and so does ^A x.
    Boot(guest::BootArgs),
    /// Run a command in the lab host: on an emulated machine whose KVM can run Linux
    ///
    /// It sees this machine's programs and files, with the release build of ampoule first in its PATH. What it writes is
    /// gone with the lab host, save in folders shared by --rw. Where this machine's own KVM can run Linux, it runs here.
    Exec {
        #[command(flatten)]
        host: HostArgs,
        /// The command
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// A shell in the lab host
    Shell {
        #[command(flatten)]
        host: HostArgs,
    },
    /// Start a lab host that stays up, for exec, shell and boot to use
    ///
    /// They need seconds less then. It ends by `cargo lab down`.
    Up {
        #[command(flatten)]
        host: HostArgs,
    },
    /// End the lab hosts that `cargo lab up` started
    Down,
    /// Run the whole test suite, or the tests whose names contain the filter
    ///
    /// Checks and unit tests run on this machine, bare guests on its own KVM, Linux guests where a KVM can run them: here,
    /// or in a lab host. Ends with what was skipped and why, what failed, and the totals.
    Test {
        /// Only tests whose name contains this
        #[arg(value_name = "FILTER")]
        filter: Option<String>,
        /// Only list the tests
        #[arg(long)]
        list: bool,
        /// Run Linux guests in a lab host with this virtualization, even where this machine could
        #[arg(long, value_enum)]
        cpu: Option<Cpu>,
        /// Also the tests that take long, which are skipped otherwise
        #[arg(long)]
        thorough: bool,
        /// Only the tests of Linux guests
        #[arg(long)]
        linux: bool,
        /// Say at the end which tests took longest; all of them are in target/lab/logs/durations.txt
        #[arg(long)]
        durations: bool,
    },
    /// Build and run the fuzz targets of tests/fuzz, from their committed seeds
    ///
    /// Ends with a table of what was executed and found. The exit status is 1 where something was found; the command that
    /// runs it again stands below the table.
    Fuzz {
        /// Only these targets
        #[arg(value_name = "TARGET")]
        targets: Vec<String>,
        /// For how long each: 90s, 10m
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = fuzz::seconds)]
        time: u64,
        /// How many at a time
        #[arg(long, value_name = "N", default_value_t = 1)]
        jobs: usize,
        /// Only list the targets
        #[arg(long)]
        list: bool,
    },
    /// Compare the libraries' public API with what is committed in */public-api.txt
    ///
    /// Prints what differs, a line an item; the exit status is 1 then.
    Api {
        /// Commit to the API as it is now: write the files
        #[arg(long)]
        bless: bool,
    },
    /// Measure what Ampoule costs, beside QEMU's microvm, alioth, and other VMMs that are on PATH
    ///
    /// Bare guests run on this machine's own KVM, Linux guests where a KVM can run them: here, or in a lab host with one processor.
    /// All are measured in turns. Ends with a table of medians and ratios; results.json and report.html hold all of it.
    Bench {
        #[command(flatten)]
        arguments: bench::BenchArgs,
        #[command(flatten)]
        host: HostArgs,
    },
    /// What `cargo lab up` leaves behind
    #[command(hide = true)]
    Keep {
        #[command(flatten)]
        host: HostArgs,
    },
    /// What runs in the lab host
    #[command(hide = true)]
    Agent {
        /// A byte stream to the lab
        port: PathBuf,
    },
}

/// Which lab host.
#[derive(Debug, Args)]
struct HostArgs {
    /// The virtualization of its processor; the lab host runs then even where this machine's own KVM would do
    #[arg(long, value_enum)]
    cpu: Option<Cpu>,
    /// Its kernel
    #[arg(long, value_enum, value_name = "VERSION")]
    kernel: Option<Version>,
    /// Its processors (amd only)
    #[arg(long, value_name = "N")]
    smp: Option<u32>,
    /// Its memory in MiB
    #[arg(long, value_name = "MIB")]
    memory: Option<u32>,
    /// A folder shared read-write; may be given several times
    #[arg(long, value_name = "DIR")]
    rw: Vec<PathBuf>,
}

impl HostArgs {
    fn config(&self) -> Result<HostConfig> {
        let canonical = |folder: &PathBuf| {
            folder
                .canonicalize()
                .with_context(|| format!("cannot share {}", folder.display()))
        };
        let usual = HostConfig::of(self.cpu.unwrap_or_default());
        Ok(HostConfig {
            kernel: self.kernel.unwrap_or(usual.kernel),
            cpus: self.smp.unwrap_or(usual.cpus),
            memory_mib: self.memory.unwrap_or(usual.memory_mib),
            read_write: self.rw.iter().map(canonical).collect::<Result<_>>()?,
            ..usual
        })
    }

    /// Whether the usual lab host is not what is wanted.
    fn are_special(&self) -> bool {
        self.kernel.is_some() || self.smp.is_some() || self.memory.is_some() || !self.rw.is_empty()
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        // Statuses are 8 bits wide.
        Ok(status) => ExitCode::from(status as u8),
        Err(error) => {
            say::say(format!("error: {error:#}"));
            ExitCode::from(125)
        }
    }
}

fn run(command: Command) -> Result<i32> {
    if let Command::Agent { port } = command {
        return agent::serve(&port).map(|()| 0);
    }
    let project = Project::find()?;
    let packages = Packages::new(&project)?;
    match command {
        Command::Boot(arguments) => guest::boot(&project, &packages, &arguments),
        Command::Exec { host, command } => exec(&project, &packages, &host, command),
        Command::Shell { host } => {
            let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
            exec(&project, &packages, &host, vec![shell])
        }
        Command::Test {
            filter,
            list,
            cpu,
            thorough,
            linux,
            durations,
        } => {
            let plan = suite::Plan {
                filter,
                list,
                cpu,
                thorough,
                linux,
                durations,
            };
            Ok(i32::from(!suite::run(&project, &plan)?))
        }
        Command::Api { bless } => Ok(i32::from(!api::check(&project, bless)?)),
        Command::Bench { arguments, host } => {
            let mut config = host.config()?;
            // In one with two, guests of QEMU's died of a triple fault in the middle of half of the boots.
            config.cpus = host.smp.unwrap_or(1);
            bench::bench(&project, &packages, &config, &arguments)
        }
        Command::Fuzz {
            targets,
            time,
            jobs,
            list,
        } => {
            let plan = fuzz::Plan {
                targets,
                seconds: time,
                jobs,
                list,
            };
            Ok(i32::from(!fuzz::run_targets(&project, &plan)?))
        }
        Command::Up { host } => {
            project.build_ampoule()?;
            // As they were given, for the process that stays to read again.
            let arguments: Vec<OsString> = std::env::args_os().skip(2).collect();
            host.config()?;
            shared::up(&project, host.cpu.unwrap_or_default(), &arguments).map(|()| 0)
        }
        Command::Down => {
            shared::down(&project, Cpu::Amd)?;
            shared::down(&project, Cpu::Intel).map(|()| 0)
        }
        Command::Keep { host } => shared::keep(&project, &packages, &host.config()?).map(|()| 0),
        Command::Agent { .. } => Ok(0),
    }
}

fn exec(
    project: &Project,
    packages: &Packages,
    host: &HostArgs,
    command: Vec<OsString>,
) -> Result<i32> {
    project.build_ampoule()?;
    let mut config = host.config()?;
    // The Intel lab host sees a copy of some of this machine's files: those that the command names are among them.
    if config.cpu == Cpu::Intel {
        config.paths = bochs::named_in(&command);
    }
    let spec = client::spec(command, &project.programs(), client::terminal_size())?;
    if host.cpu.is_none() && can_run_linux(project)? {
        return exec_here(&spec);
    }
    let session = Session::open(project, packages, &config, host.are_special())?;
    let exit = session.run(spec, client::run_attached)?;
    Ok(exit.status())
}

/// Becomes the command, on this machine.
fn exec_here(spec: &Spec) -> Result<i32> {
    let (program, arguments) = spec.arguments.split_first().context("no command given")?;
    let error = process::Command::new(program)
        .args(arguments)
        .envs(spec.environment.iter().map(|(name, value)| (name, value)))
        .exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}
