//! The lab's arm inside the lab host: runs commands for whoever is at the other end of a byte stream, several at a time
//! (see [`frame`](crate::frame)).
//!
//! The caller's thread reads the link and never waits for a command. Each command has a thread per stream and one that
//! waits for its end; whichever has something to say takes the link's lock for one frame.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::broker::{Broker, Link};
use crate::frame::{CHUNK, Exit, Frame, Spec, Stream, VERSION, WINDOW, WindowSize};

/// How long a command that nobody listens to any more has between SIGHUP and SIGKILL.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long a terminal's last bytes may take from a command that ended to us, where another process keeps the terminal
/// open.
const TERMINAL_DRAIN: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// Serves commands on the byte stream at `port` until it ends.
///
/// # Errors
/// The port cannot be opened, read or written, or something other than the lab speaks there.
pub(crate) fn serve(port: &Path) -> Result<()> {
    let mut reader = File::options()
        .read(true)
        .write(true)
        .open(port)
        .with_context(|| format!("cannot open {}", port.display()))?;
    let writer = reader.try_clone()?;
    run(&mut reader, Box::new(writer)).context("the connection to the lab broke")
}

/// An agent in this process: commands run here as they would in a lab host.
///
/// # Errors
/// No socket pair can be made.
pub(crate) fn local() -> Result<Broker> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut reader = theirs.try_clone()?;
    // It ends with the process.
    thread::spawn(move || run(&mut reader, Box::new(theirs)));
    Broker::start(Link {
        reader: Box::new(ours.try_clone()?),
        writer: Box::new(ours),
    })
}

/// Serves commands on a link until it ends.
fn run(reader: &mut impl Read, writer: Box<dyn Write + Send>) -> io::Result<()> {
    let link = Arc::new(Lab(Mutex::new(writer)));
    link.send(0, &Frame::Hello(VERSION))?;
    let commands: Arc<Mutex<HashMap<u32, Running>>> = Arc::default();
    while let Some((number, frame)) = Frame::read(reader)? {
        if let Frame::Open(spec) = frame {
            let (link, commands) = (Arc::clone(&link), Arc::clone(&commands));
            open(number, &spec, link, commands);
        } else if let Some(command) = lock(&commands).get(&number) {
            // What is said about a command that ended meanwhile concerns nobody.
            command.hear(frame);
        }
    }
    Ok(())
}

/// The way to the lab.
struct Lab(Mutex<Box<dyn Write + Send>>);

impl Lab {
    fn send(&self, channel: u32, frame: &Frame) -> io::Result<()> {
        frame.write(channel, &mut *lock(&self.0))
    }
}

/// A lock whose holder panicked protects nothing that another thread could find half done here.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the link's reader holds of a command.
struct Running {
    input: Sender<Option<Vec<u8>>>,
    output: Arc<Credit>,
    error: Arc<Credit>,
    terminal: Option<OwnedFd>,
    group: Arc<Group>,
}

impl Running {
    fn hear(&self, frame: Frame) {
        match frame {
            // A failed send means that the command does not want input any more.
            Frame::Data(Stream::Input, bytes) => drop(self.input.send(Some(bytes))),
            Frame::End(Stream::Input) => drop(self.input.send(None)),
            Frame::End(Stream::Output) => self.output.close(),
            Frame::End(Stream::Error) => self.error.close(),
            Frame::Credit(Stream::Output, bytes) => self.output.add(bytes),
            Frame::Credit(Stream::Error, bytes) => self.error.add(bytes),
            Frame::Signal(signal) => self.group.kill(signal),
            Frame::Resize(size) => {
                if let Some(terminal) = &self.terminal {
                    // A terminal whose command has just ended has no size to set.
                    let _ = tcsetwinsize(terminal, window(size));
                }
            }
            Frame::Hangup => {
                self.output.close();
                self.error.close();
                let group = Arc::clone(&self.group);
                thread::spawn(move || {
                    group.kill(Signal::HUP.as_raw());
                    if !group.wait_reaped(LAST_WORDS) {
                        group.kill(Signal::KILL.as_raw());
                    }
                });
            }
            _ => (),
        }
    }
}

fn window(size: WindowSize) -> Winsize {
    Winsize {
        ws_col: size.columns,
        ws_row: size.rows,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// A command's process group, for as long as its leader is not reaped: then its number may belong to somebody else.
struct Group {
    leader: Pid,
    reaped: Mutex<bool>,
    changed: Condvar,
}

impl Group {
    fn kill(&self, signal: i32) {
        let reaped = lock(&self.reaped);
        if !*reaped && let Some(signal) = Signal::from_named_raw(signal) {
            // It may have no member left but the dead leader.
            let _ = kill_process_group(self.leader, signal);
        }
    }

    fn wait_reaped(&self, limit: Duration) -> bool {
        let reaped = lock(&self.reaped);
        let (reaped, _) = self
            .changed
            .wait_timeout_while(reaped, limit, |reaped| !*reaped)
            .unwrap_or_else(PoisonError::into_inner);
        *reaped
    }

    /// Waits for the leader's end, and what it was.
    fn reap(&self, mut child: Child) -> io::Result<Exit> {
        // First without reaping, so that nobody signals a number that is somebody else's.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while let Err(error) = waitid(WaitId::Pid(self.leader), options) {
            if error != rustix::io::Errno::INTR {
                return Err(error.into());
            }
        }
        let mut reaped = lock(&self.reaped);
        let status = child.wait()?;
        *reaped = true;
        self.changed.notify_all();
        Ok(match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, signal) => Exit::Signal(signal.unwrap_or_default()),
        })
    }
}

/// How much may be sent on a stream.
struct Credit {
    bytes: Mutex<Option<u32>>,
    changed: Condvar,
}

impl Credit {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(Some(WINDOW)),
            changed: Condvar::new(),
        })
    }

    fn add(&self, more: u32) {
        if let Some(bytes) = &mut *lock(&self.bytes) {
            *bytes = bytes.saturating_add(more);
        }
        self.changed.notify_all();
    }

    /// Nobody wants this stream any more.
    fn close(&self) {
        *lock(&self.bytes) = None;
        self.changed.notify_all();
    }

    /// Waits until something may be sent, and says how much; nothing on a closed stream.
    fn available(&self) -> Option<usize> {
        let bytes = self
            .changed
            .wait_while(lock(&self.bytes), |bytes| *bytes == Some(0))
            .unwrap_or_else(PoisonError::into_inner);
        bytes.map(|bytes| bytes as usize)
    }

    fn take(&self, taken: usize) {
        if let Some(bytes) = &mut *lock(&self.bytes) {
            *bytes = bytes.saturating_sub(taken as u32);
        }
    }
}

/// Runs a command; what becomes of it goes to `link`.
fn open(number: u32, spec: &Spec, link: Arc<Lab>, commands: Arc<Mutex<HashMap<u32, Running>>>) {
    if spec.refresh {
        // Cached names and attributes of files that may have changed. Needs root; without, they stay a second.
        let _ = fs::write("/proc/sys/vm/drop_caches", "2");
    }
    let started = match spec.terminal {
        Some(size) => start_on_terminal(spec, size),
        None => start_on_pipes(spec),
    };
    // A link that broke ends the reader, too, and the agent with it: no other send needs to look.
    let mut started = match started {
        Ok(started) => started,
        Err(error) => {
            let _ = link.send(number, &Frame::Refused(error.to_string()));
            return;
        }
    };
    let (input, input_bytes) = channel();
    let (output, error) = (Credit::new(), Credit::new());
    let group = Arc::new(Group {
        leader: started.leader,
        reaped: Mutex::new(false),
        changed: Condvar::new(),
    });
    let running = Running {
        input,
        output: Arc::clone(&output),
        error: Arc::clone(&error),
        terminal: started.terminal.take(),
        group: Arc::clone(&group),
    };
    lock(&commands).insert(number, running);
    thread::spawn(move || {
        let exit = tend(number, started, input_bytes, [output, error], &group, &link);
        lock(&commands).remove(&number);
        let last = exit.map_or_else(|error| Frame::Refused(error.to_string()), Frame::Exit);
        let _ = link.send(number, &last);
    });
}

/// A command that runs, and our ends of its streams.
struct Started {
    child: Child,
    leader: Pid,
    input: File,
    output: File,
    error: Option<File>,
    terminal: Option<OwnedFd>,
}

fn command(spec: &Spec) -> io::Result<Command> {
    let (program, arguments) = spec
        .arguments
        .split_first()
        .ok_or_else(|| io::Error::other("no command given"))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(spec.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(&spec.folder);
    Ok(command)
}

/// What went wrong at a start, in words that name it.
fn explain(spec: &Spec, error: io::Error) -> io::Error {
    let program = spec.arguments[0].to_string_lossy();
    if spec.folder.is_dir() {
        io::Error::new(error.kind(), format!("cannot run {program}: {error}"))
    } else {
        let folder = spec.folder.display();
        io::Error::new(error.kind(), format!("no folder {folder} in the lab host"))
    }
}

fn start_on_pipes(spec: &Spec) -> io::Result<Started> {
    let (output, their_output) = io::pipe()?;
    let (error, their_error) = io::pipe()?;
    let (their_input, input) = io::pipe()?;
    let child = command(spec)?
        .stdin(their_input)
        .stdout(their_output)
        .stderr(their_error)
        .process_group(0)
        .spawn()
        .map_err(|error| explain(spec, error))?;
    Ok(Started {
        leader: Pid::from_child(&child),
        child,
        input: OwnedFd::from(input).into(),
        output: OwnedFd::from(output).into(),
        error: Some(OwnedFd::from(error).into()),
        terminal: None,
    })
}

fn start_on_terminal(spec: &Spec, size: WindowSize) -> io::Result<Started> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let theirs = ioctl_tiocgptpeer(&ours, flags)?;
    tcsetwinsize(&ours, window(size))?;
    let mut command = command(spec)?;
    command
        .stdin(theirs.try_clone()?)
        .stdout(theirs.try_clone()?)
        .stderr(Stdio::from(theirs));
    // SAFETY: between fork and exec only system calls may be made, no lock taken and nothing allocated; these are four
    // system calls, two of them on the terminal that is standard input by then.
    unsafe {
        command.pre_exec(|| {
            // What was started in the background ignores them, and its children would, too: ^C must work here.
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            libc::signal(libc::SIGQUIT, libc::SIG_DFL);
            rustix::process::setsid()?;
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            Ok(())
        });
    }
    let child = command.spawn().map_err(|error| explain(spec, error))?;
    Ok(Started {
        leader: Pid::from_child(&child),
        child,
        input: ours.try_clone()?.into(),
        output: ours.try_clone()?.into(),
        error: None,
        terminal: Some(ours),
    })
}

/// Moves a command's streams until it ended and all it wrote is sent, and returns how it ended.
fn tend(
    number: u32,
    started: Started,
    input: Receiver<Option<Vec<u8>>>,
    [output_credit, error_credit]: [Arc<Credit>; 2],
    group: &Group,
    link: &Arc<Lab>,
) -> io::Result<Exit> {
    let terminal = started.error.is_none();
    let ended = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
    let (to_command, ended_input) = (started.input, Arc::clone(&ended));
    let input_link = Arc::clone(link);
    thread::spawn(move || {
        feed(
            number,
            to_command,
            &input,
            terminal,
            &ended_input,
            &input_link,
        )
    });
    let pump = |from: File, stream: Stream, credit: Arc<Credit>| {
        let (link, ended) = (Arc::clone(link), Arc::clone(&ended));
        thread::spawn(move || drain(number, from, stream, terminal, &credit, &ended, &link))
    };
    let mut pumps = vec![pump(started.output, Stream::Output, output_credit)];
    if let Some(error) = started.error {
        pumps.push(pump(error, Stream::Error, error_credit));
    }
    let exit = group.reap(started.child);
    // Stays readable for good: all three poll it.
    rustix::io::write(&*ended, &1_u64.to_ne_bytes())?;
    for pump in pumps {
        // A pump that panicked has nothing more to say.
        let _ = pump.join();
    }
    exit
}

/// Gives a command its input, until it has ended or wants no more.
fn feed(
    number: u32,
    to: File,
    input: &Receiver<Option<Vec<u8>>>,
    terminal: bool,
    ended: &OwnedFd,
    link: &Lab,
) {
    while let Ok(next) = input.recv() {
        let Some(bytes) = next else {
            if terminal {
                // End of file, as typed.
                let _ = write_unless_ended(&to, b"\x04", ended);
                continue;
            }
            return;
        };
        if write_unless_ended(&to, &bytes, ended).is_err() {
            let _ = link.send(number, &Frame::End(Stream::Input));
            return;
        }
        let _ = link.send(number, &Frame::Credit(Stream::Input, bytes.len() as u32));
    }
}

fn write_unless_ended(to: &File, mut bytes: &[u8], ended: &OwnedFd) -> io::Result<()> {
    set_nonblocking(to)?;
    while !bytes.is_empty() {
        match (&*to).write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut watched = [
                    PollFd::new(to, PollFlags::OUT),
                    PollFd::new(ended, PollFlags::IN),
                ];
                poll_until(&mut watched, None)?;
                if !watched[1].revents().is_empty() {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends what a command writes to one stream, until nobody can write there any more, or the command has ended and what
/// it wrote is sent (something it left running may keep the stream open for good), or nobody wants it.
fn drain(
    number: u32,
    mut from: File,
    stream: Stream,
    terminal: bool,
    credit: &Credit,
    ended: &OwnedFd,
    link: &Lab,
) {
    if set_nonblocking(&from).is_err() {
        return;
    }
    let mut buffer = [0; CHUNK];
    let mut last = false;
    while let Some(available) = credit.available() {
        let room = available.min(CHUNK);
        match from.read(&mut buffer[..room]) {
            Ok(0) => break,
            Ok(length) => {
                credit.take(length);
                let data = Frame::Data(stream, buffer[..length].to_vec());
                if link.send(number, &data).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if last {
                    break;
                }
                match wait_readable(&from, ended, terminal) {
                    Ok(more) => last = !more,
                    Err(_) => break,
                }
            }
            // A terminal's way to say that its last user is gone.
            Err(_) => break,
        }
    }
    let _ = link.send(number, &Frame::End(stream));
}

/// Waits for something to read; false where the command has ended, and what is to be read then is the last.
fn wait_readable(from: &File, ended: &OwnedFd, terminal: bool) -> io::Result<bool> {
    let mut watched = [
        PollFd::new(from, PollFlags::IN),
        PollFd::new(ended, PollFlags::IN),
    ];
    poll_until(&mut watched, None)?;
    if !watched[0].revents().is_empty() {
        return Ok(true);
    }
    if terminal {
        // The kernel passes a terminal's bytes on in the background.
        poll_until(&mut watched[..1], Some(&TERMINAL_DRAIN))?;
        return Ok(!watched[0].revents().is_empty());
    }
    Ok(false)
}

fn poll_until(watched: &mut [PollFd<'_>], limit: Option<&Timespec>) -> io::Result<()> {
    loop {
        match poll(watched, limit) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => (),
            Err(error) => return Err(error.into()),
        }
    }
}

fn set_nonblocking(file: &impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    rustix::fs::fcntl_setfl(file, flags | rustix::fs::OFlags::NONBLOCK)?;
    Ok(())
}

#[cfg(test)]
mod tests;
