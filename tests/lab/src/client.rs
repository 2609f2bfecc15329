//! Runs a command through a broker: its streams are ours, its exit status comes back, signals go to it.
//!
//! The caller's thread reads the frames and writes the command's output; one thread reads its input, one waits for
//! signals. Both are left behind when the command ends, blocked in their reads: the process is about to end, too, or
//! gave no input.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};
use rustix::termios::tcgetwinsize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};
use signal_hook::iterator::Signals;

use crate::frame::{CHUNK, Exit, Frame, Spec, Stream, WINDOW, WindowSize};
use crate::terminal::RawMode;

/// The one channel a client uses.
const CHANNEL: u32 = 1;

/// What a command runs with: this environment, with `programs` first in its `PATH`, in this folder.
///
/// # Errors
/// There is no current folder.
pub(crate) fn spec(
    arguments: Vec<OsString>,
    programs: &Path,
    terminal: Option<WindowSize>,
) -> Result<Spec> {
    let mut path = programs.as_os_str().to_owned();
    if let Some(rest) = std::env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    let environment = std::env::vars_os()
        .filter(|(name, _)| name != "PATH")
        .chain([("PATH".into(), path)])
        .collect();
    Ok(Spec {
        arguments,
        environment,
        folder: std::env::current_dir().context("there is no current folder")?,
        terminal,
        refresh: false,
    })
}

/// The size of our terminal; nothing where standard input or output is not one.
pub(crate) fn terminal_size() -> Option<WindowSize> {
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        return None;
    }
    let size = tcgetwinsize(io::stdin()).ok()?;
    Some(WindowSize {
        columns: size.ws_col,
        rows: size.ws_row,
    })
}

/// Runs a command with this process's streams, terminal mode and signals.
///
/// # Errors
/// The command cannot be started, or the lab host ends before it.
pub(crate) fn run_attached(broker: UnixStream, spec: &Spec) -> Result<Exit> {
    // Put back on every way out of here.
    let _raw = spec.terminal.is_some().then(RawMode::set).transpose()?;
    let writer = Arc::new(Mutex::new(broker.try_clone()?));
    pass_signals(&writer)?;
    let input = Some(Box::new(io::stdin()) as Box<dyn Read + Send>);
    run(broker, &writer, spec, input, &mut |stream, bytes| {
        if stream == Stream::Error {
            io::stderr().write_all(bytes)
        } else {
            let mut out = io::stdout().lock();
            out.write_all(bytes)?;
            out.flush()
        }
    })
}

/// Runs a command without input, with this process's signals; `output` is given what it writes, and an error it returns
/// closes that stream.
///
/// # Errors
/// As [`run_attached`].
pub(crate) fn run_listening(
    broker: UnixStream,
    spec: &Spec,
    output: &mut dyn FnMut(Stream, &[u8]) -> io::Result<()>,
) -> Result<Exit> {
    let writer = Arc::new(Mutex::new(broker.try_clone()?));
    pass_signals(&writer)?;
    run(broker, &writer, spec, None, output)
}

/// Runs a command without input and signals; `output` as in [`run_listening`].
///
/// # Errors
/// As [`run_attached`].
pub(crate) fn run_captured(
    broker: UnixStream,
    spec: &Spec,
    output: &mut dyn FnMut(Stream, &[u8]) -> io::Result<()>,
) -> Result<Exit> {
    let writer = Arc::new(Mutex::new(broker.try_clone()?));
    run(broker, &writer, spec, None, output)
}

fn send(writer: &Mutex<UnixStream>, frame: &Frame) -> io::Result<()> {
    let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
    frame.write(CHANNEL, &mut *writer)
}

fn pass_signals(writer: &Arc<Mutex<UnixStream>>) -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH])
        .context("cannot catch signals")?;
    let writer = Arc::clone(writer);
    thread::spawn(move || {
        for signal in signals.forever() {
            let frame = if signal == SIGWINCH {
                terminal_size().map(Frame::Resize)
            } else {
                Some(Frame::Signal(signal))
            };
            if let Some(frame) = frame
                && send(&writer, &frame).is_err()
            {
                return;
            }
        }
    });
    Ok(())
}

fn run(
    mut broker: UnixStream,
    writer: &Arc<Mutex<UnixStream>>,
    spec: &Spec,
    input: Option<Box<dyn Read + Send>>,
    output: &mut dyn FnMut(Stream, &[u8]) -> io::Result<()>,
) -> Result<Exit> {
    send(writer, &Frame::Open(Box::new(spec.clone()))).context("the lab host is gone")?;
    let credit = Arc::new(Credit::default());
    match input {
        Some(input) => {
            let (credit, writer) = (Arc::clone(&credit), Arc::clone(writer));
            thread::spawn(move || give_input(input, &credit, &writer));
        }
        None => drop(send(writer, &Frame::End(Stream::Input))),
    }
    while let Some((_, frame)) = Frame::read(&mut broker).context("the lab host is gone")? {
        match frame {
            Frame::Data(stream, bytes) => {
                let answer = match output(stream, &bytes) {
                    Ok(()) => Frame::Credit(stream, bytes.len() as u32),
                    // As a pipe without a reader would tell it.
                    Err(_) => Frame::End(stream),
                };
                // A broker that is gone ends the loop.
                let _ = send(writer, &answer);
            }
            Frame::Credit(Stream::Input, bytes) => credit.add(bytes),
            Frame::End(Stream::Input) => credit.close(),
            Frame::Exit(exit) => return Ok(exit),
            Frame::Refused(reason) => bail!("{reason}"),
            _ => (),
        }
    }
    bail!("the lab host ended while the command ran")
}

/// How much of the input may be sent; nothing when the command wants no more.
struct Credit(Mutex<Option<u32>>, Condvar);

impl Default for Credit {
    fn default() -> Self {
        Self(Mutex::new(Some(WINDOW)), Condvar::new())
    }
}

impl Credit {
    fn change(&self, change: impl FnOnce(&mut Option<u32>)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.1.notify_all();
    }

    fn add(&self, more: u32) {
        self.change(|credit| *credit = credit.map(|credit| credit.saturating_add(more)));
    }

    fn close(&self) {
        self.change(|credit| *credit = None);
    }

    fn take(&self, taken: usize) {
        self.change(|credit| *credit = credit.map(|credit| credit.saturating_sub(taken as u32)));
    }

    fn available(&self) -> Option<usize> {
        let credit = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let credit = self
            .1
            .wait_while(credit, |credit| *credit == Some(0))
            .unwrap_or_else(PoisonError::into_inner);
        credit.map(|credit| credit as usize)
    }
}

fn give_input(mut input: Box<dyn Read + Send>, credit: &Credit, writer: &Mutex<UnixStream>) {
    let mut buffer = [0; CHUNK];
    while let Some(available) = credit.available() {
        let sent = match input.read(&mut buffer[..available.min(CHUNK)]) {
            Ok(0) => break,
            Ok(length) => {
                credit.take(length);
                send(
                    writer,
                    &Frame::Data(Stream::Input, buffer[..length].to_vec()),
                )
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(_) => break,
        };
        if sent.is_err() {
            return;
        }
    }
    // The command may have ended, and nobody cares.
    let _ = send(writer, &Frame::End(Stream::Input));
}
