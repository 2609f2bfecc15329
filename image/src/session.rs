//! The host's half of a session: sends a job to the guest's init and carries the command's streams, until the command has ended.
//!
//! One thread, the caller's, in one loop of poll(2). What the guest sends is hostile: a stream's window bounds what is kept of
//! it, and whatever the protocol does not allow ends the session.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use thiserror::Error;

use crate::copy::{Copies, CopyError};
use crate::job::Job;
pub use crate::protocol::Started;
use crate::protocol::{
    Decoder, Failure, Frame, MAX_JOB, MAX_PAYLOAD, Malformed, Receipt, Stream, VERSION, WINDOW,
    WindowSize,
};
use transfers::Transfers;

mod transfers;

/// Notices of the guest beyond these are dropped.
const MAX_NOTICES: usize = 64;

/// No text of the guest is longer.
const MAX_TEXT: usize = 4096;

/// The caller's input is not read while so much waits for the guest.
const OUT: usize = 128 << 10;

/// Why a session broke.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The connection failed.
    #[error("the connection to the guest failed")]
    Connection(#[source] io::Error),
    /// It ended before the command did: the guest did.
    #[error("the guest went away before its command had ended")]
    Lost,
    /// The guest's bytes are no messages.
    #[error("the guest sent what is no message")]
    Malformed(#[source] Malformed),
    /// They are messages that have no place there.
    #[error("the guest broke the protocol: {0}")]
    Protocol(&'static str),
    /// The init is not of this version.
    #[error("the guest's init speaks version {0} of the protocol, not {VERSION}")]
    Version(u32),
    /// The command, its environment and the rest of the job are too long.
    #[error("a job of {0} bytes is longer than the {MAX_JOB} that a guest takes")]
    Job(usize),
    /// One of the caller's streams failed.
    #[error("cannot carry {0}")]
    Stream(&'static str, #[source] io::Error),
    /// poll(2) failed.
    #[error("cannot wait for the streams")]
    Wait(#[source] io::Error),
    /// Files are not copied: before the command, or not as they were asked for.
    #[error(transparent)]
    Copy(#[from] CopyError),
}

/// How a command ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum End {
    /// With this status.
    Exited(u8),
    /// By this signal.
    Killed(u8),
    /// Before it began.
    NotRun {
        /// What kind of reason.
        failure: Failure,
        /// The reason: a clause.
        reason: String,
    },
}

impl End {
    /// The status that a shell gives it: 128 and more for a signal; 125, 126 and 127 for a command that was not run.
    pub fn status(&self) -> u8 {
        match self {
            Self::Exited(status) => *status,
            Self::Killed(signal) => 128u8.saturating_add(*signal),
            Self::NotRun { failure, .. } => *failure as u8,
        }
    }
}

/// A session to its end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outcome {
    /// How the command ended.
    pub end: End,
    /// What the guest wants a person to know.
    pub notices: Vec<String>,
    /// When what began, if the command did.
    pub started: Option<Started>,
    /// What was to be copied out of the guest and is not there, or not whole, and why: a clause each.
    pub not_copied: Vec<String>,
}

/// The caller's ends of the command's streams. They may be of any kind; their flags are left as they are.
#[derive(Clone, Copy, Debug)]
pub struct Streams<'a> {
    /// What the command reads, if the job says that it has an input.
    pub input: Option<BorrowedFd<'a>>,
    /// What it writes, or its terminal shows.
    pub output: BorrowedFd<'a>,
    /// Its errors.
    pub error: BorrowedFd<'a>,
}

/// What reaches a session while it runs: made with its [`Remote`].
#[derive(Debug)]
pub struct Commands(PipeReader);

/// The other end of [`Commands`]: for any thread; a signal handler may write to it, as it takes no lock.
#[derive(Clone, Debug)]
pub struct Remote(Arc<PipeWriter>);

/// A remote, and what it commands.
///
/// # Errors
/// There are no descriptors left.
pub fn remote() -> io::Result<(Remote, Commands)> {
    let (reader, writer) = io::pipe()?;
    set_nonblocking(reader.as_fd())?;
    set_nonblocking(writer.as_fd())?;
    Ok((Remote(Arc::new(writer)), Commands(reader)))
}

/// Bytes of a command in the pipe; it takes so few as a whole or not at all.
const COMMAND: usize = 5;

impl Remote {
    /// The command is to get this signal; in a terminal, all of its process group. Without effect once it has ended.
    pub fn signal(&self, signal: u8) {
        self.write([1, signal, 0, 0, 0]);
    }

    /// Its terminal has another size.
    pub fn resize(&self, size: WindowSize) {
        let [r0, r1] = size.rows.to_le_bytes();
        let [c0, c1] = size.columns.to_le_bytes();
        self.write([2, r0, r1, c0, c1]);
    }

    fn write(&self, command: [u8; COMMAND]) {
        // A session that does not look at thousands of them has ended, or is about to.
        let _ = (&*self.0).write(&command);
    }
}

/// Runs a job in the guest at the other end of the connection; returns when its command has ended and all that it wrote is
/// where it belongs.
///
/// The guest keeps the machine on until the connection is closed, which this function does at its end.
///
/// # Errors
/// The guest goes away, or does not keep to the protocol; a stream of the caller's fails.
pub fn run<C>(
    connection: C,
    job: &Job,
    streams: Streams<'_>,
    commands: &Commands,
) -> Result<Outcome, SessionError>
where
    C: Read + Write + AsFd,
{
    run_copying(connection, job, &Copies::default(), streams, commands)
}

/// The same with files that are copied before and after. What comes out of the guest does so however its command ended, but not
/// where it was not run.
///
/// # Errors
/// As [`run`]; what is to be copied into the guest cannot be read, or there is no folder for what comes out of it. What is wrong
/// with that later is in the outcome.
pub fn run_copying<C>(
    connection: C,
    job: &Job,
    copies: &Copies,
    streams: Streams<'_>,
    commands: &Commands,
) -> Result<Outcome, SessionError>
where
    C: Read + Write + AsFd,
{
    let (copies_in, copies_out) = copies.jobs();
    let job = &Job {
        copies_in,
        copies_out,
        ..job.clone()
    };
    set_nonblocking(connection.as_fd()).map_err(SessionError::Connection)?;
    let bytes = job.encode();
    if bytes.len() > MAX_JOB {
        return Err(SessionError::Job(bytes.len()));
    }
    let mut session = Session {
        connection,
        decoder: Decoder::default(),
        out: Vec::new(),
        sent: 0,
        input: Input {
            fd: streams.input.filter(|_| job.input),
            credit: WINDOW,
            is_closed: job.input && streams.input.is_none(),
        },
        outputs: [
            Output::new(streams.output, Stream::Output, "standard output"),
            Output::new(streams.error, Stream::Error, "standard error"),
        ],
        copies: Transfers::new(copies)?,
        is_greeted: false,
        notices: Vec::new(),
        started: None,
        end: None,
    };
    Frame::Job(&bytes).encode(&mut session.out);
    session.serve(commands)
}

struct Session<'a, C> {
    connection: C,
    decoder: Decoder,
    out: Vec<u8>,
    /// What is before has been sent.
    sent: usize,
    input: Input<'a>,
    outputs: [Output<'a>; 2],
    copies: Transfers,
    is_greeted: bool,
    notices: Vec<String>,
    started: Option<Started>,
    end: Option<End>,
}

struct Input<'a> {
    /// Until it ends.
    fd: Option<BorrowedFd<'a>>,
    /// What the guest has room for.
    credit: u32,
    /// There was none, which the guest has yet to hear.
    is_closed: bool,
}

struct Output<'a> {
    fd: BorrowedFd<'a>,
    stream: Stream,
    name: &'static str,
    /// What one write may have without waiting for a reader.
    piece: usize,
    waiting: VecDeque<u8>,
    /// What the guest may send.
    credit: u32,
    receipt: Receipt,
    /// Nobody reads it any more.
    is_closed: bool,
}

impl<'a> Output<'a> {
    fn new(fd: BorrowedFd<'a>, stream: Stream, name: &'static str) -> Self {
        // What poll(2) calls writable takes PIPE_BUF bytes; a file never keeps anybody waiting.
        let is_file = fstat(fd).is_ok_and(|it| FileType::from_raw_mode(it.st_mode).is_file());
        Self {
            fd,
            stream,
            name,
            piece: if is_file { WINDOW as usize } else { 4096 },
            waiting: VecDeque::new(),
            credit: WINDOW,
            receipt: Receipt::default(),
            is_closed: false,
        }
    }

    /// Writes a piece, as the stream is writable. The message that the guest is to have about it.
    fn write(&mut self) -> Result<Option<Frame<'static>>, SessionError> {
        let (piece, _) = self.waiting.as_slices();
        let piece = &piece[..piece.len().min(self.piece)];
        match rustix::io::write(self.fd, piece) {
            Ok(count) => {
                self.waiting.drain(..count);
                let told = self.receipt.add(count);
                self.credit += told.unwrap_or(0);
                Ok(told.map(|count| Frame::Credit(self.stream, count)))
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => Ok(None),
            // The command is to see that, as if it had the stream itself.
            Err(rustix::io::Errno::PIPE) => {
                self.is_closed = true;
                self.waiting = VecDeque::new();
                Ok(Some(Frame::Close(self.stream)))
            }
            Err(err) => Err(SessionError::Stream(self.name, err.into())),
        }
    }
}

impl<C: Read + Write + AsFd> Session<'_, C> {
    fn serve(mut self, commands: &Commands) -> Result<Outcome, SessionError> {
        let mut buffer = vec![0; MAX_PAYLOAD];
        loop {
            self.copies.fill(&mut self.out, self.sent)?;
            self.notices.extend(self.copies.left_out());
            if self.input.is_closed && self.copies.is_quiet() {
                self.input.is_closed = false;
                Frame::Close(Stream::Input).encode(&mut self.out);
            }
            self.flush()?;
            let is_written = self.outputs.iter().all(|it| it.waiting.is_empty());
            if let (Some(end), true) = (&self.end, is_written) {
                return Ok(Outcome {
                    end: end.clone(),
                    notices: self.notices,
                    started: self.started,
                    not_copied: self.copies.finish(self.started.is_some()),
                });
            }
            let ready = self.wait(commands)?;
            if ready.connection {
                self.receive(&mut buffer)?;
            }
            if ready.commands {
                self.obey(commands);
            }
            if ready.input {
                self.read_input(&mut buffer)?;
            }
            for (output, _) in self.outputs.iter_mut().zip(ready.outputs).filter(|it| it.1) {
                if let Some(frame) = output.write()? {
                    frame.encode(&mut self.out);
                }
            }
        }
    }

    fn wait(&self, commands: &Commands) -> Result<Ready, SessionError> {
        let unsent = self.out.len() - self.sent;
        let mut fds = Vec::with_capacity(5);
        let mut add = |fd, flags| {
            fds.push(PollFd::from_borrowed_fd(fd, flags));
            Some(fds.len() - 1)
        };
        let writable = match unsent {
            0 => PollFlags::empty(),
            _ => PollFlags::OUT,
        };
        // After its last word a guest has nothing to say, and may go.
        let connection = match self.end {
            None => add(self.connection.as_fd(), PollFlags::IN | writable),
            Some(_) => None,
        };
        // Files for the guest come before all else.
        let is_quiet = self.copies.is_quiet();
        let obeyed = match is_quiet {
            true => add(commands.0.as_fd(), PollFlags::IN),
            false => None,
        };
        let is_wanted = is_quiet && self.input.credit > 0 && unsent < OUT && self.end.is_none();
        let input = match self.input.fd {
            Some(fd) if is_wanted => add(fd, PollFlags::IN),
            _ => None,
        };
        let outputs = [0, 1].map(|at| {
            let output: &Output<'_> = &self.outputs[at];
            match output.waiting.is_empty() {
                true => None,
                false => add(output.fd, PollFlags::OUT),
            }
        });
        loop {
            match poll(&mut fds, None) {
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(err) => return Err(SessionError::Wait(err.into())),
            }
        }
        let came = |at: Option<usize>| at.is_some_and(|at| !fds[at].revents().is_empty());
        Ok(Ready {
            connection: came(connection),
            commands: came(obeyed),
            input: came(input),
            outputs: outputs.map(came),
        })
    }

    fn flush(&mut self) -> Result<(), SessionError> {
        while self.sent < self.out.len() {
            match self.connection.write(&self.out[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(err) if err.kind() == ErrorKind::Interrupted => {}
                Err(err) if err.kind() == ErrorKind::WouldBlock => return Ok(()),
                // What it said before it went is still to be read; then its end is seen.
                Err(err) if is_gone(&err) => break,
                Err(err) => return Err(SessionError::Connection(err)),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<(), SessionError> {
        match self.connection.read(buffer) {
            Ok(0) => return Err(SessionError::Lost),
            Ok(count) => self.decoder.push(&buffer[..count]),
            Err(err) if matches!(err.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {
                return Ok(());
            }
            Err(err) if is_gone(&err) => return Err(SessionError::Lost),
            Err(err) => return Err(SessionError::Connection(err)),
        }
        while self.end.is_none()
            && let Some(frame) = self.decoder.next_frame().map_err(SessionError::Malformed)?
        {
            if !self.is_greeted {
                match frame {
                    Frame::Hello { version: VERSION } => self.is_greeted = true,
                    Frame::Hello { version } => return Err(SessionError::Version(version)),
                    _ => return Err(SessionError::Protocol("it does not begin by a greeting")),
                }
                continue;
            }
            match frame {
                Frame::Data(stream @ (Stream::Output | Stream::Error), bytes) => {
                    let output = &mut self.outputs[stream as usize - 1];
                    let left = output.credit.checked_sub(bytes.len() as u32);
                    output.credit = left.ok_or(SessionError::Protocol("more than a window"))?;
                    if !output.is_closed {
                        output.waiting.extend(bytes);
                    }
                }
                Frame::Data(Stream::CopyOut, bytes) => self.copies.take(bytes, &mut self.out)?,
                Frame::Close(Stream::Input) => self.input.fd = None,
                Frame::Close(Stream::CopyOut) => self.copies.end(),
                Frame::Close(_) => {}
                Frame::Credit(Stream::CopyIn, count) => self.copies.credit(count)?,
                Frame::Credit(Stream::Input, count) => {
                    let credit = self.input.credit.checked_add(count);
                    let credit = credit.filter(|credit| *credit <= WINDOW);
                    self.input.credit = credit.ok_or(SessionError::Protocol("too much credit"))?;
                }
                Frame::Notice(text) if self.notices.len() < MAX_NOTICES => {
                    self.notices.push(text_of(text));
                }
                Frame::Notice(_) => {}
                Frame::Started(times) => {
                    self.started = Some(times);
                }
                Frame::Exited(status) => self.end = Some(End::Exited(status)),
                Frame::Killed(signal) => self.end = Some(End::Killed(signal)),
                Frame::Failed(failure, reason) => {
                    self.end = Some(End::NotRun {
                        failure,
                        reason: text_of(reason),
                    });
                }
                _ => return Err(SessionError::Protocol("a message that only hosts send")),
            }
        }
        Ok(())
    }

    fn obey(&mut self, commands: &Commands) {
        let mut command = [0; COMMAND];
        while (&commands.0).read_exact(&mut command).is_ok() {
            let [kind, a, b, c, d] = command;
            let frame = match kind {
                1 => Frame::Signal(a),
                _ => Frame::Resize(WindowSize {
                    rows: u16::from_le_bytes([a, b]),
                    columns: u16::from_le_bytes([c, d]),
                }),
            };
            frame.encode(&mut self.out);
        }
    }

    fn read_input(&mut self, buffer: &mut [u8]) -> Result<(), SessionError> {
        let Some(fd) = self.input.fd else {
            return Ok(());
        };
        let limit = buffer.len().min(self.input.credit as usize);
        match rustix::io::read(fd, &mut buffer[..limit]) {
            // EIO: a terminal that has hung up.
            Ok(0) | Err(rustix::io::Errno::IO) => {
                self.input.fd = None;
                Frame::Close(Stream::Input).encode(&mut self.out);
            }
            Ok(count) => {
                self.input.credit -= count as u32;
                Frame::Data(Stream::Input, &buffer[..count]).encode(&mut self.out);
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(err) => return Err(SessionError::Stream("standard input", err.into())),
        }
        Ok(())
    }
}

/// What poll(2) found.
struct Ready {
    connection: bool,
    commands: bool,
    input: bool,
    outputs: [bool; 2],
}

fn is_gone(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::NotConnected
    )
}

/// A text of the guest's that a terminal may show.
fn text_of(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(MAX_TEXT)];
    let text = String::from_utf8_lossy(bytes);
    text.chars()
        .map(|it| {
            if it.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                it
            }
        })
        .collect()
}

fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = fcntl_getfl(fd)?;
    Ok(fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    /// What becomes of a session whose guest says this, and no more.
    fn told(bytes: &[u8]) -> Result<Outcome, SessionError> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let (_remote, commands) = remote().unwrap();
        let streams = Streams {
            input: None,
            output: null.as_fd(),
            error: null.as_fd(),
        };
        thread::scope(|scope| {
            scope.spawn(move || {
                // It may have ended before it has heard all.
                let _ = theirs.write_all(bytes);
                let _ = theirs.shutdown(std::net::Shutdown::Write);
                let _ = io::copy(&mut theirs, &mut io::sink());
            });
            run(ours, &Job::default(), streams, &commands)
        })
    }

    fn frames(frames: &[Frame<'_>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let hello = Frame::Hello { version: VERSION };
        let all = [&[hello], frames].concat();
        all.iter().for_each(|frame| frame.encode(&mut bytes));
        bytes
    }

    #[test]
    fn a_hostile_guest_ends_only_its_session() {
        let text = |bytes: &[u8]| told(bytes).unwrap_err().to_string();
        let gone = "the guest went away before its command had ended";
        assert_eq!(text(b""), gone);
        assert_eq!(text(&frames(&[])), gone);
        assert_eq!(
            text(b"SSH-2.0-OpenSSH"),
            "the guest sent what is no message"
        );
        let mut old = Vec::new();
        Frame::Hello { version: 7 }.encode(&mut old);
        assert!(matches!(told(&old), Err(SessionError::Version(7))));
        let mut silent = Vec::new();
        Frame::Exited(0).encode(&mut silent);
        for bytes in [
            silent,
            frames(&[Frame::Job(b"")]),
            frames(&[Frame::Hello { version: VERSION }]),
            frames(&[Frame::Data(Stream::Input, b"x")]),
            frames(&[Frame::Credit(Stream::Input, 1)]),
            frames(&[Frame::Credit(Stream::Output, 1)]),
        ] {
            assert!(matches!(told(&bytes), Err(SessionError::Protocol(_))));
        }
    }

    /// One thread of the host's keeps no more of a stream than its window.
    #[test]
    fn more_than_a_window_is_refused() {
        let (_reader, writer) = io::pipe().unwrap();
        let piece = [0; MAX_PAYLOAD];
        let data = Frame::Data(Stream::Output, &piece);
        let window = WINDOW as usize / MAX_PAYLOAD;
        let bytes = frames(&vec![data; window + 1]);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (_remote, commands) = remote().unwrap();
        let streams = Streams {
            input: None,
            output: writer.as_fd(),
            error: writer.as_fd(),
        };
        let error = thread::scope(|scope| {
            scope.spawn(move || {
                let _ = theirs.write_all(&bytes);
                let _ = io::copy(&mut theirs, &mut io::sink());
            });
            run(ours, &Job::default(), streams, &commands).unwrap_err()
        });
        assert!(matches!(
            error,
            SessionError::Protocol("more than a window")
        ));
    }

    #[test]
    fn what_a_guest_says_cannot_drive_a_terminal() {
        let reason = b"\x1b[2Jgone\n\xff";
        let outcome = told(&frames(&[
            Frame::Notice(reason),
            Frame::Failed(Failure::Setup, reason),
        ]));
        let outcome = outcome.unwrap();
        let text = "\u{fffd}[2Jgone\u{fffd}\u{fffd}";
        assert_eq!(outcome.notices, [text]);
        assert_eq!(outcome.end.status(), 125);
        assert!(matches!(outcome.end, End::NotRun { reason, .. } if reason == text));
    }
}
