//! What the lab and its agent say to each other: frames over any byte stream that neither loses nor reorders, be it a
//! virtio-serial port, an emulated UART or a Unix socket.
//!
//! A frame is the payload's length (u32), a channel (u32), a kind (u8), then the payload; numbers are little-endian. Each
//! command has a channel of its own, chosen by whoever opens it. Streams are flow-controlled: a sender starts with
//! [`WINDOW`] bytes of credit per stream and gets more as the receiver disposes of what came, so that a command whose
//! output nobody reads holds up nobody else.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Changes with the protocol; both sides must have the same.
pub(crate) const VERSION: u32 = 1;

/// Bytes that may be under way on a stream.
pub(crate) const WINDOW: u32 = 128 << 10;

/// The most a data frame carries. Small, for a slow link is shared by frame.
pub(crate) const CHUNK: usize = 8 << 10;

/// The longest payload: an [`Frame::Open`] with a large environment.
const LONGEST: u32 = 4 << 20;

/// One of a command's standard streams. On a terminal there is no [`Stream::Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Towards the command.
    Input,
    /// Its standard output, or its terminal.
    Output,
    /// Its standard error.
    Error,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// By itself, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// The exit status a shell would show.
    pub(crate) fn status(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// Columns and rows of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WindowSize {
    /// Characters in a line.
    pub(crate) columns: u16,
    /// Lines.
    pub(crate) rows: u16,
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    /// The program, looked up in the `PATH` of `environment`, and its arguments.
    pub(crate) arguments: Vec<OsString>,
    /// All of its environment.
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// Where it starts.
    pub(crate) folder: PathBuf,
    /// Gives it a terminal of this size instead of three pipes.
    pub(crate) terminal: Option<WindowSize>,
    /// Makes the lab host look at files anew: it may have been up while they changed.
    pub(crate) refresh: bool,
}

/// A message about one channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// The agent's first frame, on channel 0.
    Hello(u32),
    /// Runs a command on this channel.
    Open(Box<Spec>),
    /// Bytes of a stream.
    Data(Stream, Vec<u8>),
    /// Nothing follows on this stream; from the receiver: nothing more is wanted.
    End(Stream),
    /// So many bytes of this stream were disposed of.
    Credit(Stream, u32),
    /// Sends a signal to the command's process group.
    Signal(i32),
    /// The terminal has a new size.
    Resize(WindowSize),
    /// The command ended; the agent's last frame on a channel.
    Exit(Exit),
    /// The command could not be started, and why; the agent's last frame on a channel.
    Refused(String),
    /// Nobody listens on this channel any more: the command is to end.
    Hangup,
}

impl Frame {
    /// Writes the frame in one piece.
    ///
    /// # Errors
    /// Those of `link`.
    pub(crate) fn write(&self, channel: u32, link: &mut impl Write) -> io::Result<()> {
        let (kind, payload) = self.encode();
        let mut bytes = Vec::with_capacity(9 + payload.len());
        bytes.extend((payload.len() as u32).to_le_bytes());
        bytes.extend(channel.to_le_bytes());
        bytes.push(kind);
        bytes.extend(payload);
        link.write_all(&bytes)?;
        link.flush()
    }

    /// Reads the next frame and its channel; nothing at the end of the stream.
    ///
    /// # Errors
    /// Those of `link`; [`io::ErrorKind::InvalidData`] for what is no frame.
    pub(crate) fn read(link: &mut impl Read) -> io::Result<Option<(u32, Self)>> {
        let mut header = [0; 9];
        match link.read_exact(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let mut fields = Fields(&header);
        let (length, channel, kind) = (fields.u32()?, fields.u32()?, fields.u8()?);
        if length > LONGEST {
            return Err(malformed());
        }
        let mut payload = vec![0; length as usize];
        link.read_exact(&mut payload)?;
        Ok(Some((channel, Self::decode(kind, &payload)?)))
    }

    fn encode(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Hello(version) => (0, version.to_le_bytes().into()),
            Self::Open(spec) => (1, spec.encode()),
            Self::Data(stream, bytes) => (2 + *stream as u8, bytes.clone()),
            Self::End(stream) => (5 + *stream as u8, Vec::new()),
            Self::Credit(stream, bytes) => (8 + *stream as u8, bytes.to_le_bytes().into()),
            Self::Signal(signal) => (11, signal.to_le_bytes().into()),
            Self::Resize(size) => (12, size.encode()),
            Self::Exit(Exit::Code(code)) => (13, code.to_le_bytes().into()),
            Self::Exit(Exit::Signal(signal)) => (14, signal.to_le_bytes().into()),
            Self::Refused(reason) => (15, reason.clone().into_bytes()),
            Self::Hangup => (16, Vec::new()),
        }
    }

    fn decode(kind: u8, payload: &[u8]) -> io::Result<Self> {
        const STREAMS: [Stream; 3] = [Stream::Input, Stream::Output, Stream::Error];
        let stream = |base: u8| STREAMS[usize::from(kind - base)];
        let mut fields = Fields(payload);
        let frame = match kind {
            0 => Self::Hello(fields.u32()?),
            1 => Self::Open(Box::new(Spec::decode(&mut fields)?)),
            2..=4 => Self::Data(stream(2), fields.rest()),
            5..=7 => Self::End(stream(5)),
            8..=10 => Self::Credit(stream(8), fields.u32()?),
            11 => Self::Signal(fields.i32()?),
            12 => Self::Resize(WindowSize::decode(&mut fields)?),
            13 => Self::Exit(Exit::Code(fields.i32()?)),
            14 => Self::Exit(Exit::Signal(fields.i32()?)),
            15 => Self::Refused(String::from_utf8_lossy(&fields.rest()).into_owned()),
            16 => Self::Hangup,
            _ => return Err(malformed()),
        };
        if fields.0.is_empty() {
            Ok(frame)
        } else {
            Err(malformed())
        }
    }
}

impl Spec {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![u8::from(self.refresh), u8::from(self.terminal.is_some())];
        bytes.extend(self.terminal.iter().flat_map(|size| size.encode()));
        let mut string = |string: &OsStr| {
            bytes.extend((string.len() as u32).to_le_bytes());
            bytes.extend(string.as_bytes());
        };
        string(self.folder.as_os_str());
        for (name, value) in &self.environment {
            string(name);
            string(value);
        }
        string(OsStr::new("")); // no variable has an empty name
        for argument in &self.arguments {
            string(argument);
        }
        bytes
    }

    fn decode(fields: &mut Fields<'_>) -> io::Result<Self> {
        let refresh = fields.u8()? != 0;
        let terminal = match fields.u8()? {
            0 => None,
            _ => Some(WindowSize::decode(fields)?),
        };
        let folder = fields.string()?.into();
        let mut environment = Vec::new();
        loop {
            let name = fields.string()?;
            if name.is_empty() {
                break;
            }
            environment.push((name, fields.string()?));
        }
        let mut arguments = Vec::new();
        while !fields.0.is_empty() {
            arguments.push(fields.string()?);
        }
        Ok(Self {
            arguments,
            environment,
            folder,
            terminal,
            refresh,
        })
    }
}

impl WindowSize {
    fn encode(self) -> Vec<u8> {
        [self.columns.to_le_bytes(), self.rows.to_le_bytes()].concat()
    }

    fn decode(fields: &mut Fields<'_>) -> io::Result<Self> {
        Ok(Self {
            columns: u16::from_le_bytes(fields.array()?),
            rows: u16::from_le_bytes(fields.array()?),
        })
    }
}

/// The part of a payload that is not yet read.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk().ok_or_else(malformed)?;
        self.0 = rest;
        Ok(*array)
    }

    fn u8(&mut self) -> io::Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn i32(&mut self) -> io::Result<i32> {
        Ok(i32::from_le_bytes(self.array()?))
    }

    fn string(&mut self) -> io::Result<OsString> {
        let length = self.u32()? as usize;
        let (string, rest) = self.0.split_at_checked(length).ok_or_else(malformed)?;
        self.0 = rest;
        Ok(OsString::from_vec(string.to_vec()))
    }

    fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0).to_vec()
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed frame")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        Spec {
            arguments: vec!["cat".into(), "".into(), OsString::from_vec(vec![0xff, 10])],
            environment: vec![("PATH".into(), "/bin".into()), ("EMPTY".into(), "".into())],
            folder: "/some/where".into(),
            terminal: Some(WindowSize {
                columns: 80,
                rows: 25,
            }),
            refresh: true,
        }
    }

    #[test]
    fn frames_survive_the_wire() {
        let size = WindowSize {
            columns: 300,
            rows: 2,
        };
        let frames = [
            Frame::Hello(VERSION),
            Frame::Open(Box::new(spec())),
            Frame::Data(Stream::Input, vec![0, 255, 10]),
            Frame::Data(Stream::Error, Vec::new()),
            Frame::End(Stream::Output),
            Frame::Credit(Stream::Output, u32::MAX),
            Frame::Signal(15),
            Frame::Resize(size),
            Frame::Exit(Exit::Code(-1)),
            Frame::Exit(Exit::Signal(9)),
            Frame::Refused("no such file".into()),
            Frame::Hangup,
        ];
        let mut wire = Vec::new();
        for (channel, frame) in frames.iter().enumerate() {
            frame.write(channel as u32, &mut wire).unwrap();
        }
        let mut wire = wire.as_slice();
        for (channel, frame) in frames.into_iter().enumerate() {
            let read = Frame::read(&mut wire).unwrap();
            assert_eq!(read, Some((channel as u32, frame)));
        }
        assert_eq!(Frame::read(&mut wire).unwrap(), None);
    }

    #[test]
    fn every_truncation_of_a_payload_is_an_error_or_another_frame() {
        let mut wire = Vec::new();
        Frame::Open(Box::new(spec())).write(1, &mut wire).unwrap();
        for length in 0..wire.len() - 9 {
            let mut cut = wire[..9 + length].to_vec();
            cut[..4].copy_from_slice(&(length as u32).to_le_bytes());
            let read = Frame::read(&mut cut.as_slice());
            assert_ne!(
                read.ok().flatten().map(|(_, frame)| frame),
                Some(Frame::Open(Box::new(spec()))),
                "{length}"
            );
        }
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        for wire in [
            &[0, 0, 0, 0, 0, 0, 0, 0, 99][..],
            &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 2],
            &[1, 0, 0, 0, 0, 0, 0, 0, 16, 7],
            &[2, 0, 0, 0, 0, 0, 0, 0, 11, 7, 7],
        ] {
            assert!(Frame::read(&mut &wire[..]).is_err(), "{wire:?}");
        }
    }
}
