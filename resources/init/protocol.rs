//! What the host and the guest's PID 1 say to each other over one stream: `docs/run-protocol.md` has it in words.
//!
//! Both halves are made of this file: the init, which has no standard library, and `ampoule-image`. It does no I/O. The host
//! takes nothing that it reads here for true beyond its form: the guest may be hostile.

use alloc::vec::Vec;
use core::fmt;

/// Says that it is an init of ours that connects.
pub const MAGIC: [u8; 4] = *b"AMPI";

/// The version that this code speaks. There is no other to fall back to: the host brings the init along.
pub const VERSION: u32 = 2;

/// Bytes of a stream that may be on their way, sent and not yet written where they belong. The receiver's buffer is no larger.
pub const WINDOW: u32 = 256 << 10;

/// The payload of a frame is at most this long, but for a job's.
pub const MAX_PAYLOAD: usize = 64 << 10;

/// A job is at most this long: Linux takes 2 MiB of arguments and environment by default.
pub const MAX_JOB: usize = 4 << 20;

/// Bytes of a frame before its payload: kind, stream, two of zero, the payload's length (little-endian, as everything here).
pub const HEADER: usize = 8;

/// One of the command's streams, or of the files that are copied.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stream {
    /// Standard input.
    Input,
    /// Standard output; in a terminal, all that the terminal shows.
    Output,
    /// Standard error.
    Error,
    /// Files for the guest, before the command starts.
    CopyIn,
    /// Files of the guest's, after the command has ended.
    CopyOut,
}

impl Stream {
    fn of(byte: u8) -> Option<Self> {
        [
            Self::Input,
            Self::Output,
            Self::Error,
            Self::CopyIn,
            Self::CopyOut,
        ]
        .into_iter()
        .find(|it| *it as u8 == byte)
    }
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// Why a command was not run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// The guest could not be made ready for it.
    Setup = 125,
    /// It is there, but cannot be executed.
    NotExecutable = 126,
    /// It is not there.
    NotFound = 127,
}

impl Failure {
    fn of(byte: u8) -> Option<Self> {
        [Self::Setup, Self::NotExecutable, Self::NotFound]
            .into_iter()
            .find(|it| *it as u8 == byte)
    }
}

/// When the guest was where, in nanoseconds since its kernel's start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Started {
    /// The init runs.
    pub init: u64,
    /// It is connected to the host.
    pub connected: u64,
    /// It has its job.
    pub job: u64,
    /// The drivers are loaded.
    pub modules: u64,
    /// The root is mounted.
    pub root: u64,
    /// The network is set up, and all else.
    pub network: u64,
    /// The command runs.
    pub command: u64,
}

impl Started {
    const LENGTH: usize = 7 * 8;

    fn encode(&self) -> [u8; Self::LENGTH] {
        let times = [
            self.init,
            self.connected,
            self.job,
            self.modules,
            self.root,
            self.network,
            self.command,
        ];
        let mut bytes = [0; Self::LENGTH];
        for (to, time) in bytes.chunks_exact_mut(8).zip(times) {
            to.copy_from_slice(&time.to_le_bytes());
        }
        bytes
    }

    fn decode(payload: &[u8]) -> Option<Self> {
        let (times, []) = payload.as_chunks::<8>() else {
            return None;
        };
        let times: &[[u8; 8]; Self::LENGTH / 8] = times.try_into().ok()?;
        let [init, connected, job, modules, root, network, command] = times.map(u64::from_le_bytes);
        Some(Self {
            init,
            connected,
            job,
            modules,
            root,
            network,
            command,
        })
    }
}

/// A message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Frame<'a> {
    /// Guest: here I am.
    Hello {
        /// The version of the protocol that it speaks.
        version: u32,
    },
    /// Host: what to run, as [`super::job::Job::encode`] writes it.
    Job(&'a [u8]),
    /// Bytes of a stream.
    Data(Stream, &'a [u8]),
    /// So many bytes of the stream are where they belong: as many more may come.
    Credit(Stream, u32),
    /// By its writer: the stream has ended. By its reader: nobody reads it any more.
    Close(Stream),
    /// Host: the command is to get this signal.
    Signal(u8),
    /// Host: the terminal has this size now.
    Resize(WindowSize),
    /// Guest: the command runs.
    Started(Started),
    /// Guest, last: the command has exited with this status.
    Exited(u8),
    /// Guest, last: a signal has ended the command.
    Killed(u8),
    /// Guest, last: the command was not run.
    Failed(Failure, &'a [u8]),
    /// Guest: something that a person should know.
    Notice(&'a [u8]),
}

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Malformed {
    /// No frame is of this kind.
    Kind(u8),
    /// A frame of this kind is never that long, or never that short.
    Length(u8, u32),
    /// A frame of this kind has another content.
    Content(u8),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(kind) => write!(f, "no message is of kind {kind}"),
            Self::Length(kind, length) => {
                write!(f, "a message of kind {kind} cannot have {length} bytes")
            }
            Self::Content(kind) => write!(f, "the content of a message of kind {kind} is wrong"),
        }
    }
}

impl core::error::Error for Malformed {}

const HELLO: u8 = 1;
const JOB: u8 = 2;
const DATA: u8 = 3;
const CREDIT: u8 = 4;
const CLOSE: u8 = 5;
const SIGNAL: u8 = 6;
const RESIZE: u8 = 7;
const STARTED: u8 = 8;
const EXITED: u8 = 9;
const KILLED: u8 = 10;
const FAILED: u8 = 11;
const NOTICE: u8 = 12;

impl<'a> Frame<'a> {
    /// Appends it to what is to be sent. Payloads that are too long are the caller's mistake: they are cut.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Hello { version } => {
                frame(out, HELLO, 0, &[&MAGIC, &version.to_le_bytes()]);
            }
            Self::Job(job) => frame(out, JOB, 0, &[&job[..job.len().min(MAX_JOB)]]),
            Self::Data(stream, bytes) => frame(out, DATA, stream as u8, &[cut(bytes)]),
            Self::Credit(stream, count) => {
                frame(out, CREDIT, stream as u8, &[&count.to_le_bytes()]);
            }
            Self::Close(stream) => frame(out, CLOSE, stream as u8, &[]),
            Self::Signal(signal) => frame(out, SIGNAL, 0, &[&[signal]]),
            Self::Resize(size) => {
                let (rows, columns) = (size.rows.to_le_bytes(), size.columns.to_le_bytes());
                frame(out, RESIZE, 0, &[&rows, &columns]);
            }
            Self::Started(times) => frame(out, STARTED, 0, &[&times.encode()]),
            Self::Exited(status) => frame(out, EXITED, 0, &[&[status]]),
            Self::Killed(signal) => frame(out, KILLED, 0, &[&[signal]]),
            Self::Failed(failure, reason) => {
                let reason = &reason[..reason.len().min(MAX_PAYLOAD - 1)];
                frame(out, FAILED, 0, &[&[failure as u8], reason]);
            }
            Self::Notice(text) => frame(out, NOTICE, 0, &[cut(text)]),
        }
    }

    fn decode(kind: u8, stream: u8, payload: &'a [u8]) -> Result<Self, Malformed> {
        let wrong = Malformed::Content(kind);
        let stream = Stream::of(stream).ok_or(wrong)?;
        Ok(match (kind, payload) {
            (HELLO, payload) => {
                let (magic, version) = pair(payload).ok_or(wrong)?;
                if magic != MAGIC {
                    return Err(wrong);
                }
                Self::Hello {
                    version: u32::from_le_bytes(version),
                }
            }
            (JOB, job) => Self::Job(job),
            (DATA, bytes) => Self::Data(stream, bytes),
            (CREDIT, payload) => {
                let count = payload.try_into().map_err(|_| wrong)?;
                Self::Credit(stream, u32::from_le_bytes(count))
            }
            (CLOSE, []) => Self::Close(stream),
            (SIGNAL, &[signal]) => Self::Signal(signal),
            (RESIZE, payload) => {
                let (rows, columns) = pair(payload).ok_or(wrong)?;
                Self::Resize(WindowSize {
                    rows: u16::from_le_bytes(rows),
                    columns: u16::from_le_bytes(columns),
                })
            }
            (STARTED, payload) => Self::Started(Started::decode(payload).ok_or(wrong)?),
            (EXITED, &[status]) => Self::Exited(status),
            (KILLED, &[signal]) => Self::Killed(signal),
            (FAILED, &[failure, ref reason @ ..]) => {
                Self::Failed(Failure::of(failure).ok_or(wrong)?, reason)
            }
            (NOTICE, text) => Self::Notice(text),
            _ => return Err(wrong),
        })
    }
}

fn cut(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(MAX_PAYLOAD)]
}

/// Two fields that make up a payload.
fn pair<const A: usize, const B: usize>(payload: &[u8]) -> Option<([u8; A], [u8; B])> {
    let (first, second) = payload.split_first_chunk()?;
    Some((*first, second.try_into().ok()?))
}

fn frame(out: &mut Vec<u8>, kind: u8, stream: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.extend([kind, stream, 0, 0]);
    out.extend((length as u32).to_le_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// How long the payload of a frame may be.
fn limit(kind: u8) -> Option<usize> {
    match kind {
        JOB => Some(MAX_JOB),
        HELLO..=NOTICE => Some(MAX_PAYLOAD),
        _ => None,
    }
}

/// Frames out of a stream's bytes, whatever the pieces that they come in.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// What is before has been taken.
    start: usize,
}

impl Decoder {
    /// Takes what has been read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next frame, if all of it has come.
    ///
    /// # Errors
    /// The bytes are no frame: those after them mean nothing.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, Malformed> {
        let rest = &self.bytes[self.start..];
        let Some((header, rest)) = rest.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [kind, stream, _, _, length @ ..] = *header;
        let length = u32::from_le_bytes(length);
        let limit = limit(kind).ok_or(Malformed::Kind(kind))?;
        if length as usize > limit {
            return Err(Malformed::Length(kind, length));
        }
        let Some(payload) = rest.get(..length as usize) else {
            return Ok(None);
        };
        self.start += HEADER + length as usize;
        Frame::decode(kind, stream, payload).map(Some)
    }
}

/// Counts what has been written of a stream that comes in, until it is worth telling.
#[derive(Debug, Default)]
pub struct Receipt(u32);

impl Receipt {
    /// So many more bytes are where they belong; what is to be told of them now.
    pub fn add(&mut self, count: usize) -> Option<u32> {
        self.0 = self.0.saturating_add(count as u32);
        // The other half of the window lets the sender go on meanwhile.
        (self.0 >= WINDOW / 2).then(|| core::mem::take(&mut self.0))
    }
}
