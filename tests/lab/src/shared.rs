//! A lab host that stays up for many commands: `cargo lab up` leaves a process behind that holds it and serves its agent on
//! a socket in the target folder; `cargo lab down` ends it.
//!
//! The socket is the only sign of it: whoever can connect has a lab host, and a socket nobody answers at is a leftover. To
//! end it is a message, too, so that no process number is ever trusted.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::frame::{Exit, Frame, Spec};
use crate::host::{Cpu, Host, HostConfig};
use crate::packages::Packages;
use crate::project::{Project, own_program};
use crate::say;

/// What the process that stays says when its lab host is up.
const READY: &str = "ready";

/// A lab host to run commands in: one that is up, or one of our own that ends with this.
pub(crate) enum Session {
    /// Somebody else's.
    Shared(UnixStream),
    /// Ours.
    Own(Box<Host>),
}

impl Session {
    /// The one that is up where it will do, else a new one. It will not do if the config is to be met `exactly`, or names
    /// files that it may not have.
    ///
    /// # Errors
    /// Those of [`Host::start`].
    pub(crate) fn open(
        project: &Project,
        packages: &Packages,
        config: &HostConfig,
        exactly: bool,
    ) -> Result<Self> {
        // What Bochs shares is a copy from when it started.
        let usable = !exactly && (config.cpu == Cpu::Amd || config.paths.is_empty());
        if usable && let Some(connection) = connect(project, config.cpu) {
            return Ok(Self::Shared(connection));
        }
        Ok(Self::Own(Box::new(Host::start(project, packages, config)?)))
    }

    /// Runs a command by one of [`client`](crate::client)'s functions.
    ///
    /// # Errors
    /// Theirs; a file that cannot be brought back.
    pub(crate) fn run(
        self,
        mut spec: Spec,
        run: impl FnOnce(UnixStream, &Spec) -> Result<Exit>,
    ) -> Result<Exit> {
        match self {
            Self::Shared(connection) => {
                spec.refresh = true;
                run(connection, &spec)
            }
            Self::Own(mut host) => {
                let exit = run(host.broker().connect()?, &spec);
                if exit.is_err() && host.broker().is_over() {
                    return exit.with_context(|| host.keep_logs());
                }
                host.take_back()?;
                exit
            }
        }
    }
}

/// Starts a lab host that stays up; does nothing where one is.
///
/// # Errors
/// It does not come up.
pub(crate) fn up(project: &Project, cpu: Cpu, arguments: &[OsString]) -> Result<()> {
    if connect(project, cpu).is_some() {
        say::say(format!("a lab host ({}) is up already", cpu.name()));
        return Ok(());
    }
    let log = log(project, cpu);
    fs::create_dir_all(project.lab.join("run")).context("cannot create the run folder")?;
    let errors = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    say::step(&format!("starting a lab host ({})", cpu.name()), || {
        let mut keeper = Command::new(own_program()?)
            .arg("keep")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .process_group(0) // a ^C is not meant for it
            .spawn()
            .context("cannot run this program again")?;
        let mut said = String::new();
        let output = keeper.stdout.take().context("no pipe")?;
        BufReader::new(output)
            .read_line(&mut said)
            .context("cannot read what the lab host's keeper says")?;
        let Some(pid) = said.strip_prefix(READY) else {
            let _ = keeper.wait();
            let reason = fs::read_to_string(&log).unwrap_or_default();
            bail!("no lab host:\n{}", reason.trim_end());
        };
        say::say(format!("the emulator is process {}", pid.trim()));
        Ok(())
    })
}

/// Ends the lab host that is up, if there is one, and waits until it has ended.
///
/// # Errors
/// The connection breaks in an unexpected way.
pub(crate) fn down(project: &Project, cpu: Cpu) -> Result<()> {
    let Some(mut connection) = connect(project, cpu) else {
        return Ok(());
    };
    Frame::Hangup
        .write(0, &mut connection)
        .context("cannot tell the lab host to end")?;
    let mut rest = Vec::new();
    match connection.read_to_end(&mut rest) {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => {
            Err(error).context("cannot hear the lab host's end")
        }
        _ => {
            say::say(format!("the lab host ({}) is down", cpu.name()));
            Ok(())
        }
    }
}

/// Holds a lab host until it ends or is told to; what [`up`] leaves behind.
///
/// # Errors
/// It does not come up, or the socket cannot be made.
pub(crate) fn keep(project: &Project, packages: &Packages, config: &HostConfig) -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("cannot catch signals")?;
    let host = Host::start(project, packages, config)?;
    let path = socket(project, config.cpu);
    // Nobody answered there, or `up` would not have started this.
    let _ = fs::remove_file(&path);
    let listener = at(&path, |path| UnixListener::bind(path))
        .with_context(|| format!("cannot listen at {}", path.display()))?;
    let broker = host.broker().clone();
    thread::spawn(move || {
        for connection in listener.incoming() {
            // A connection that failed is its client's to complain about.
            let _ = connection.and_then(|connection| broker.serve(connection));
        }
    });
    let broker = host.broker().clone();
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            broker.shut_down();
        }
    });
    let mut output = io::stdout();
    writeln!(output, "{READY} {}", host.pid()).and_then(|()| output.flush())?;
    host.broker().wait();
    let _ = fs::remove_file(&path);
    host.take_back()
}

fn connect(project: &Project, cpu: Cpu) -> Option<UnixStream> {
    at(&socket(project, cpu), |path| UnixStream::connect(path)).ok()
}

fn socket(project: &Project, cpu: Cpu) -> PathBuf {
    project.lab.join(format!("run/up-{}.socket", cpu.name()))
}

fn log(project: &Project, cpu: Cpu) -> PathBuf {
    project.lab.join(format!("run/up-{}.log", cpu.name()))
}

/// Does something with the path of a socket, which may be longer than a socket's address takes: the folder is named by a
/// descriptor.
///
/// # Errors
/// Those of `action`; the folder cannot be opened.
pub(crate) fn at<T>(path: &Path, action: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = File::open(folder)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    action(&short.join(name))
}
