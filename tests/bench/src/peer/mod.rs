//! The VMMs that are measured side by side. Each has a file, which knows how to ask it for a [`Machine`]: with its own defaults
//! where they cost nothing, and without what the guest does not need.
//!
//! None of them is fetched or built. An environment variable names a binary, or it is on `PATH`.

mod alioth;
mod ampoule;
mod cloud_hypervisor;
mod crosvm;
mod firecracker;
mod qemu;

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::machine::Machine;

/// A VMM that is on this host.
pub(crate) trait Vmm {
    fn name(&self) -> &'static str;
    fn binary(&self) -> &Path;
    /// What it says of its version, in one line.
    fn version(&self) -> Result<String> {
        version(self.binary(), "--version")
    }
    /// What a Linux guest is told on its command line, besides what it is to do: where its console is, how it ends (`bench.end`, of
    /// the bench's init), and that a panic is no reason to wait.
    fn linux(&self) -> &'static str {
        "console=ttyS0 reboot=t panic=-1 quiet bench.end=poweroff"
    }
    /// What runs the machine. The command's standard output carries the guest's COM1 and nothing else;
    /// the VMM's own messages go to standard error. `place` is an empty folder for its files and sockets.
    fn launch(&self, machine: &Machine, place: &Path) -> Result<Launch, Unable>;
}

/// A VMM about to be started.
#[derive(Debug)]
pub(crate) struct Launch {
    pub command: Command,
    /// Where the machine has a socket device.
    pub vsock: Option<Vsock>,
    /// The status that it ends with when the guest has ended well.
    pub status: i32,
    /// Where it has to have a terminal as its standard input: both sides. The other one stays open as long as it runs.
    pub terminal: Option<Terminal>,
}

/// Both sides of a pseudo-terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    pub ours: OwnedFd,
    pub its: OwnedFd,
}

/// How programs of the host reach a guest's sockets, and it theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Vsock {
    /// A Unix socket: `CONNECT port` leads into the guest; the guest's connections to port N come to the socket PATH_N.
    Unix(PathBuf),
}

/// Why a VMM cannot have such a machine.
#[derive(Debug)]
pub(crate) struct Unable(pub String);

/// A VMM that is not here.
#[derive(Debug)]
pub(crate) struct Absent {
    pub name: &'static str,
    pub why: String,
}

impl fmt::Display for Unable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<anyhow::Error> for Unable {
    fn from(err: anyhow::Error) -> Self {
        Self(format!("{err:#}"))
    }
}

impl Launch {
    /// Of a VMM that needs nothing on its standard input.
    fn new(command: Command) -> Self {
        Self {
            command,
            vsock: None,
            status: 0,
            terminal: None,
        }
    }
}

/// Where a VMM is looked for.
struct Known {
    name: &'static str,
    variable: &'static str,
    program: &'static str,
    new: fn(PathBuf) -> Box<dyn Vmm>,
}

const KNOWN: [Known; 6] = [
    Known {
        name: "Ampoule",
        variable: "AMPOULE_BIN",
        program: "ampoule",
        new: |binary| Box::new(ampoule::Ampoule(binary)),
    },
    Known {
        name: "QEMU microvm",
        variable: "AMPOULE_BENCH_QEMU",
        program: "qemu-system-x86_64",
        new: |binary| Box::new(qemu::Qemu(binary)),
    },
    Known {
        name: "alioth",
        variable: "AMPOULE_BENCH_ALIOTH",
        program: "alioth",
        new: |binary| Box::new(alioth::Alioth(binary)),
    },
    Known {
        name: "Firecracker",
        variable: "AMPOULE_BENCH_FIRECRACKER",
        program: "firecracker",
        new: |binary| Box::new(firecracker::Firecracker(binary)),
    },
    Known {
        name: "Cloud Hypervisor",
        variable: "AMPOULE_BENCH_CLOUD_HYPERVISOR",
        program: "cloud-hypervisor",
        new: |binary| Box::new(cloud_hypervisor::CloudHypervisor(binary)),
    },
    Known {
        name: "crosvm",
        variable: "AMPOULE_BENCH_CROSVM",
        program: "crosvm",
        new: |binary| Box::new(crosvm::Crosvm(binary)),
    },
];

/// The VMMs that are on this host, Ampoule first, and those that are not.
pub(crate) fn find() -> (Vec<Box<dyn Vmm>>, Vec<Absent>) {
    let (mut found, mut absent) = (Vec::new(), Vec::new());
    for known in &KNOWN {
        match locate(known.variable, known.program) {
            Ok(binary) => found.push((known.new)(binary)),
            Err(why) => absent.push(Absent {
                name: known.name,
                why,
            }),
        }
    }
    (found, absent)
}

/// Where a program is, or why not.
fn locate(variable: &str, program: &str) -> Result<PathBuf, String> {
    if let Some(named) = env::var_os(variable) {
        let named = PathBuf::from(named);
        return match named.is_file() {
            true => Ok(named),
            false => Err(format!("{variable} names no file: {}", named.display())),
        };
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .ok_or_else(|| format!("{program} is not on PATH; {variable} names one"))
}

/// The first line of what a program prints when asked in this way for its version.
fn version(binary: &Path, how: &str) -> Result<String> {
    let output = Command::new(binary)
        .arg(how)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", binary.display()))?;
    ensure!(
        output.status.success(),
        "{} {how}: {}",
        binary.display(),
        output.status
    );
    let said = String::from_utf8_lossy(&output.stdout);
    Ok(said.lines().next().unwrap_or_default().trim().to_owned())
}

/// `key=value`, for options made of such.
fn pair(key: &str, value: impl AsRef<OsStr>) -> String {
    format!("{key}={}", value.as_ref().display())
}

/// The hardware address of a guest's interface, for those VMMs that want to be told one.
const MAC: &str = "52:54:00:ab:ca:fe";
