//! `cargo lab`: the developer's door. Boots Debian's kernels in Ampoule, runs the test suite, and runs anything inside the
//! lab host, an emulated machine with a `/dev/kvm` that can run Linux, for machines that have none.

mod agent;
mod bochs;
mod broker;
mod client;
mod cpio;
mod frame;
mod host;
mod kernels;
mod modules;
mod packages;
mod project;
mod qemu;
mod say;
mod terminal;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::host::{Cpu, Host, HostConfig};
use crate::kernels::Version;
use crate::packages::Packages;
use crate::project::Project;

/// The developer's door to Ampoule
#[derive(Debug, Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
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
    /// The virtualization of its processor
    #[arg(long, value_enum, default_value_t)]
    cpu: Cpu,
    /// Its kernel
    #[arg(long, value_enum, default_value = "6.1")]
    kernel: Version,
    /// Its processors (amd only)
    #[arg(long, default_value_t = 2, value_name = "N")]
    smp: u32,
    /// Its memory in MiB
    #[arg(long, default_value_t = 4096, value_name = "MIB")]
    memory: u32,
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
        Ok(HostConfig {
            cpu: self.cpu,
            kernel: self.kernel,
            cpus: self.smp,
            memory_mib: self.memory,
            read_write: self.rw.iter().map(canonical).collect::<Result<_>>()?,
            paths: Vec::new(),
        })
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
    match command {
        Command::Exec { host, command } => exec(&host, command),
        Command::Shell { host } => {
            let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
            exec(&host, vec![shell])
        }
        Command::Agent { port } => agent::serve(&port).map(|()| 0),
    }
}

fn exec(host: &HostArgs, command: Vec<OsString>) -> Result<i32> {
    let project = Project::find()?;
    let packages = Packages::new(&project)?;
    project.build_ampoule()?;
    let host = Host::start(&project, &packages, &host.config()?)?;
    let spec = client::spec(command, &project.programs(), client::terminal_size())?;
    let exit = client::run_attached(host.broker().connect()?, &spec)?;
    host.take_back()?;
    Ok(exit.status())
}
