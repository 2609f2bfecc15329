//! A lab host of either kind, and the broker to its agent.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::bochs::{self, Bochs, BochsConfig};
use crate::broker::{Broker, Link};
use crate::kernels::{Kernel, Version};
use crate::packages::{self, Packages};
use crate::project::{Project, own_program};
use crate::qemu::{self, Qemu, QemuConfig};

/// How long a lab host may take until its agent greets, on a machine that is slow or busy.
const START_LIMIT: Duration = Duration::from_secs(300);

/// A lab host's memory in MiB, unless said otherwise. It is taken from this machine as it is used.
pub(crate) const DEFAULT_MEMORY_MIB: u32 = 4096;

/// What virtualization the emulated processor has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cpu {
    /// AMD-V, by QEMU.
    #[default]
    Amd,
    /// VT-x, by Bochs: slower, and of this machine's files it has a selection.
    Intel,
}

impl Cpu {
    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Amd => "amd",
            Self::Intel => "intel",
        }
    }

    /// The Debian packages a lab host of this kind needs.
    pub(crate) fn packages(self) -> Vec<&'static str> {
        let own = match self {
            Self::Amd => qemu::PACKAGES,
            Self::Intel => bochs::PACKAGES,
        };
        [packages::BASE, own].concat()
    }
}

/// What to start.
#[derive(Debug, Clone)]
pub(crate) struct HostConfig {
    /// The processor.
    pub(crate) cpu: Cpu,
    /// The lab host's kernel.
    pub(crate) kernel: Version,
    /// Its processors; Bochs has one.
    pub(crate) cpus: u32,
    /// Its memory in MiB.
    pub(crate) memory_mib: u32,
    /// Folders shared read-write.
    pub(crate) read_write: Vec<PathBuf>,
    /// Whether the files that it sees of this machine stay as they are while it runs: it need not look again at what it has read.
    pub(crate) frozen: bool,
    /// What a lab host that sees a selection of files is to see beside the working tree's usual.
    pub(crate) paths: Vec<PathBuf>,
}

impl HostConfig {
    /// The usual lab host of a kind.
    pub(crate) fn of(cpu: Cpu) -> Self {
        Self {
            cpu,
            kernel: Version::V6_1,
            cpus: 2,
            memory_mib: DEFAULT_MEMORY_MIB,
            read_write: Vec::new(),
            frozen: false,
            paths: Vec::new(),
        }
    }
}

/// A running lab host. Dropping it ends it.
pub(crate) struct Host {
    machine: Machine,
    broker: Broker,
    run_dir: PathBuf,
    keep: bool,
}

enum Machine {
    Qemu(Qemu),
    Bochs(Box<Bochs>),
}

impl Host {
    /// Starts a lab host, and waits for its agent.
    ///
    /// # Errors
    /// What it needs is missing, or it does not come up; the message ends in its console's last lines.
    pub(crate) fn start(
        project: &Project,
        packages: &Packages,
        config: &HostConfig,
    ) -> Result<Self> {
        packages.ensure(&config.cpu.packages())?;
        let kernel = Kernel::get(project, packages, config.kernel)?;
        // A process may have several.
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{}-{number}", config.cpu.name(), std::process::id());
        let run_dir = project.lab.join("run").join(name);
        Self::start_in(project, &kernel, config, &run_dir)
            .with_context(|| format!("the lab host did not come up; {}", logs(&run_dir)))
    }

    fn start_in(
        project: &Project,
        kernel: &Kernel,
        config: &HostConfig,
        run_dir: &Path,
    ) -> Result<Self> {
        let (machine, link) = match config.cpu {
            Cpu::Amd => {
                let qemu = qemu::start(&QemuConfig {
                    kernel,
                    run_dir,
                    cpus: config.cpus,
                    memory_mib: config.memory_mib,
                    read_write: &config.read_write,
                    frozen: config.frozen,
                })?;
                let stream = qemu.stream();
                stream.set_read_timeout(Some(START_LIMIT))?;
                let link = Link {
                    reader: Box::new(stream.try_clone()?),
                    writer: Box::new(stream.try_clone()?),
                };
                (Machine::Qemu(qemu), link)
            }
            Cpu::Intel => {
                let mut paths = vec![
                    project.programs().join("ampoule"),
                    project.root.clone(),
                    std::env::current_dir()?,
                ];
                paths.extend(config.paths.iter().cloned());
                let agent = [
                    own_program()?.into_os_string(),
                    "agent".into(),
                    bochs::AGENT_PORT.into(),
                ];
                let bochs = bochs::start(&BochsConfig {
                    kernel: &kernel.bzimage,
                    modules: &kernel.modules,
                    run_dir,
                    memory_mib: config.memory_mib,
                    agent: &agent,
                    paths: &paths,
                    read_write: &config.read_write,
                })?;
                let stream = bochs.stream();
                stream.set_read_timeout(Some(START_LIMIT))?;
                let link = Link {
                    reader: Box::new(stream.try_clone()?),
                    writer: Box::new(stream.try_clone()?),
                };
                (Machine::Bochs(Box::new(bochs)), link)
            }
        };
        let broker = Broker::start(link)?;
        match &machine {
            Machine::Qemu(qemu) => qemu.stream().set_read_timeout(None)?,
            Machine::Bochs(bochs) => bochs.stream().set_read_timeout(None)?,
        }
        Ok(Self {
            machine,
            broker,
            run_dir: run_dir.into(),
            keep: false,
        })
    }

    /// The way to its agent.
    pub(crate) fn broker(&self) -> &Broker {
        &self.broker
    }

    /// The emulator's process id.
    pub(crate) fn pid(&self) -> u32 {
        match &self.machine {
            Machine::Qemu(qemu) => qemu.pid(),
            Machine::Bochs(bochs) => bochs.pid(),
        }
    }

    /// Ends the machine, whatever it is doing; those who wait for its commands get an error.
    pub(crate) fn end(&self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.pid().cast_signed()) {
            // It has ended already, or does now.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    /// Brings what commands wrote in read-write folders to this machine, where that does not happen by itself. Call it
    /// after a command.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn take_back(&self) -> Result<()> {
        match &self.machine {
            Machine::Qemu(_) => Ok(()),
            Machine::Bochs(bochs) => bochs.take_back(),
        }
    }

    /// Keeps its logs when it ends; where they are, and what its console said last.
    pub(crate) fn keep_logs(&mut self) -> String {
        self.keep = true;
        logs(&self.run_dir)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if !self.keep {
            // The machine still has some of the files open; they go with it.
            let _ = fs::remove_dir_all(&self.run_dir);
        }
    }
}

/// Where a lab host's logs are, and the last lines its console said.
fn logs(run_dir: &Path) -> String {
    format!(
        "its logs are in {}{}",
        run_dir.display(),
        last_lines(&run_dir.join("console.log"))
    )
}

/// The last lines of a log, each on a line of its own.
fn last_lines(log: &Path) -> String {
    let content = fs::read(log).unwrap_or_default();
    let content = String::from_utf8_lossy(&content);
    let lines: Vec<&str> = content.lines().filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(8)..]
        .iter()
        .map(|line| format!("\n  {line}"))
        .collect()
}
