//! What a scenario is, once its file is read: typed, whole, one cell of its matrix.
//!
//! It is what the checks have passed, what a worker process is given, and what the results keep as the effective scenario. Nothing
//! in it depends on the file any more but line numbers, for messages.

use std::path::PathBuf;

use ampoule_vmm::config::{Span, VmConfig};
use serde::{Deserialize, Serialize};

/// One VM to boot, and what is to be seen of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Scenario {
    /// Its name, unique in a run: the file's, and the cell's in brackets: `boot[kernel=6.1,memory=512M]`.
    pub(crate) name: String,
    /// The file that it comes from.
    pub(crate) file: PathBuf,
    pub(crate) description: Option<String>,
    /// Words by which it can be chosen.
    pub(crate) tags: Vec<String>,
    /// Its place in the matrix: each axis, and the name of the value on it.
    pub(crate) cell: Vec<(String, String)>,
    /// The machine, all paths absolute.
    pub(crate) vm: VmConfig,
    /// What is run in it, where ampoule's own init is the guest's first process. Without it the machine boots what `vm` says.
    pub(crate) run: Option<RunSpec>,
    /// How long all of it may take.
    pub(crate) timeout: Span,
    /// How long a step may take that does not say so itself.
    pub(crate) step_timeout: Span,
    /// What the console may never show.
    pub(crate) forbid: Vec<Pattern>,
    /// What is not forbidden although a pattern of `forbid` matches.
    pub(crate) allow: Vec<Pattern>,
    pub(crate) steps: Vec<Step>,
}

/// What `ampoule run IMAGE` would be given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunSpec {
    /// The arguments of `ampoule run` that make it: flags first, the image last, paths absolute. They have been parsed once.
    pub(crate) arguments: Vec<String>,
    /// What is run first, as the scenario's command. Where there is none, the machine waits for the steps.
    pub(crate) command: Vec<String>,
}

/// Something to do, or to see.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) action: Action,
    /// Its deadline; the scenario's `step_timeout` where there is none.
    pub(crate) within: Option<Span>,
    /// What to call it; where there is none, what it does.
    pub(crate) name: Option<String>,
    /// The line in the file.
    pub(crate) line: usize,
}

/// What a step does. Texts may name captures, as `{{name}}`; a name is known by then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub(crate) enum Action {
    /// Waits for a text; the search goes on behind it.
    Expect {
        pattern: Pattern,
        on: Stream,
    },
    /// Types on the console; with `echo`, waits until the guest has shown it.
    Send {
        text: String,
        echo: bool,
    },
    /// Runs a command in the guest.
    Run {
        command: RunCommand,
        /// Its standard input. Only with ampoule's init.
        input: Option<String>,
        /// Its status; any where there is none.
        status: Option<u8>,
        stdout: Vec<Pattern>,
        stderr: Vec<Pattern>,
    },
    /// Asks a server of the guest's by HTTP, again and again until it answers as is expected.
    Http {
        /// `http://127.0.0.1:8080/health`.
        url: String,
        status: u16,
        body: Vec<Pattern>,
    },
    /// Connects to a server of the guest's by TCP, again and again until it answers as is expected.
    Tcp {
        /// `127.0.0.1:8080`.
        address: String,
        send: Option<String>,
        expect: Vec<Pattern>,
    },
    /// Writes a file in the guest, or reads one.
    File {
        path: String,
        write: Option<String>,
        expect: Vec<Pattern>,
    },
    /// Waits for the end of the guest, or of the command.
    WaitExit {
        /// How it ends; any way where there is none.
        reason: Option<EndKind>,
        /// The status of the command.
        status: Option<u8>,
    },
    Pause,
    Resume,
    PowerButton,
    Reset,
    /// Gives a disk faults in place of those that it has.
    DiskFault {
        disk: String,
        faults: Vec<DiskFault>,
    },
    /// Gives a network faults in place of those that it has.
    NetFault {
        net: String,
        faults: Vec<NetFault>,
    },
    /// Compares times: mark comes at most `at_most` times as long after `since` as `than` does.
    Timeline {
        mark: String,
        at_most: f64,
        than: String,
        /// The process's start where there is none.
        since: Option<String>,
    },
    /// Keeps what the console has shown so far, as a file of the results.
    SnapshotConsole {
        name: String,
    },
}

/// What is looked for in a text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Pattern {
    /// Just this.
    Literal(String),
    /// A regular expression (crate regex; `^` and `$` are of a line). Its named groups are captures.
    Regex(String),
}

/// Where a text is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stream {
    /// The guest's serial port.
    Console,
    /// What the scenario's command prints, both of its outputs.
    Output,
    /// What ampoule logs.
    Log,
}

/// A command in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RunCommand {
    /// A line for a shell.
    Shell(String),
    /// A program and its arguments.
    Words(Vec<String>),
}

/// How a guest, or the command in it, ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EndKind {
    PowerOff,
    Reset,
    Panic,
    TripleFault,
    /// KVM could not go on.
    VcpuFailed,
    /// The scenario's command ended by itself; the machine is stopped then.
    Command,
    /// The scenario's command was killed by a signal.
    Signal,
}

/// A fault of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct DiskFault {
    pub(crate) op: DiskOp,
    pub(crate) when: When,
    pub(crate) effect: DiskEffect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DiskOp {
    Read,
    Write,
    Flush,
    Discard,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DiskEffect {
    /// By this `errno`.
    Fail(i32),
    Delay(Span),
}

/// A fault of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct NetFault {
    /// From the guest, or to it.
    pub(crate) from_guest: bool,
    pub(crate) when: When,
    pub(crate) effect: NetEffect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum NetEffect {
    Drop,
    Duplicate,
    Delay(Span),
}

/// Which of the requests or frames a fault strikes, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum When {
    Nth(u64),
    Every(u64),
}

impl Step {
    /// What to call it.
    pub(crate) fn title(&self) -> String {
        match &self.name {
            Some(name) => name.clone(),
            None => self.action.to_string(),
        }
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Literal(text) => write!(f, "{text:?}"),
            Self::Regex(text) => write!(f, "/{text}/"),
        }
    }
}

impl std::fmt::Display for RunCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shell(line) => f.write_str(line),
            Self::Words(words) => f.write_str(&words.join(" ")),
        }
    }
}

impl Stream {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::Output => "output",
            Self::Log => "log",
        }
    }
}

impl EndKind {
    /// Its name in scenarios.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PowerOff => "power-off",
            Self::Reset => "reset",
            Self::Panic => "panic",
            Self::TripleFault => "triple-fault",
            Self::VcpuFailed => "vcpu-failed",
            Self::Command => "command",
            Self::Signal => "signal",
        }
    }
}

/// What it does, in a few words, as in a list of steps.
impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Expect {
                pattern,
                on: Stream::Console,
            } => write!(f, "expect {pattern}"),
            Self::Expect { pattern, on } => write!(f, "expect {pattern} on {}", on.name()),
            Self::Send { text, .. } => write!(f, "send {text:?}"),
            Self::Run { command, .. } => write!(f, "run {command}"),
            Self::Http { url, .. } => write!(f, "http {url}"),
            Self::Tcp { address, .. } => write!(f, "tcp {address}"),
            Self::File {
                path,
                write: Some(_),
                ..
            } => write!(f, "file {path}, written"),
            Self::File { path, .. } => write!(f, "file {path}"),
            Self::WaitExit {
                reason: Some(reason),
                ..
            } => write!(f, "wait-exit {}", reason.name()),
            Self::WaitExit {
                status: Some(status),
                ..
            } => write!(f, "wait-exit, status {status}"),
            Self::WaitExit { .. } => f.write_str("wait-exit"),
            Self::Pause => f.write_str("pause"),
            Self::Resume => f.write_str("resume"),
            Self::PowerButton => f.write_str("power-button"),
            Self::Reset => f.write_str("reset"),
            Self::DiskFault { disk, faults } if faults.is_empty() => {
                write!(f, "disk-fault {disk}: none")
            }
            Self::DiskFault { disk, .. } => write!(f, "disk-fault {disk}"),
            Self::NetFault { net, faults } if faults.is_empty() => {
                write!(f, "net-fault {net}: none")
            }
            Self::NetFault { net, .. } => write!(f, "net-fault {net}"),
            Self::Timeline {
                mark,
                at_most,
                than,
                ..
            } => write!(f, "timeline {mark}, at most {at_most} times {than}"),
            Self::SnapshotConsole { name } => write!(f, "snapshot-console {name}"),
        }
    }
}
