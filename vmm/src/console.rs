//! The host end of a guest's serial port: where its output goes, where its input comes from.
//!
//! Everything here runs on the control thread. Output arrives through a bounded queue that vCPU threads fill
//! (`ConsoleOutput` of the devices); input is read only when the guest has room for it, so that neither side can make the other wait or
//! grow.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

pub use ampoule_devices::backend::fd_sink::FdSink;
pub use ampoule_devices::console::ConsoleSink;

use crate::config::SerialConfig;
use crate::error::Error;

/// Where a guest's console input comes from.
///
/// [`read`](Self::read) is called on the control thread when [`fd`](Self::fd) is readable and the guest can take input; it
/// must not block. An end of file (`Ok(0)`) is final.
pub trait ConsoleInput: Send {
    /// The descriptor to wait on; the same for the life of the value.
    fn fd(&self) -> RawFd;

    /// Reads what there is, up to the buffer's size.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] and [`io::ErrorKind::Interrupted`] mean "not now"; any other ends the input.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
}

/// Input from any descriptor that a file can be made of.
impl ConsoleInput for File {
    fn fd(&self) -> RawFd {
        self.as_raw_fd()
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Read::read(self, buffer)
    }
}

/// The two directions of a serial port, for a program that does not want what [`SerialConfig`] offers.
pub struct SerialEnds {
    /// Takes the guest's output.
    pub output: Box<dyn ConsoleSink>,
    /// Gives the guest's input.
    pub input: Option<Box<dyn ConsoleInput>>,
}

/// The host end of a serial port.
pub(crate) enum ConsoleHost {
    /// Fixed ends: standard streams, a file, nothing, or an embedder's.
    Fixed {
        ends: SerialEnds,
        /// The input came to its end. It stays open: who waits on its descriptor has yet to let go of it.
        input_ended: bool,
    },
    /// A Unix socket, one client at a time.
    Socket(SocketConsole),
}

impl ConsoleHost {
    pub(crate) fn fixed(ends: SerialEnds) -> Self {
        Self::Fixed {
            ends,
            input_ended: false,
        }
    }

    pub(crate) fn open(config: &SerialConfig) -> Result<Self, Error> {
        Ok(match config {
            SerialConfig::Stdio => Self::fixed(stdio().map_err(Error::host("console"))?),
            SerialConfig::Null => Self::fixed(SerialEnds {
                output: Box::new(NullSink),
                input: None,
            }),
            SerialConfig::File(path) => {
                let file =
                    File::create(path).map_err(|source| serial_error("file", path, source))?;
                let sink = FdSink::new(file.into()).map_err(Error::host("console"))?;
                Self::fixed(SerialEnds {
                    output: Box::new(sink),
                    input: None,
                })
            }
            SerialConfig::Socket(path) => Self::Socket(
                SocketConsole::bind(path).map_err(|source| serial_error("socket", path, source))?,
            ),
        })
    }

    /// The descriptor that tells of new clients.
    pub(crate) fn listener(&self) -> Option<RawFd> {
        match self {
            Self::Fixed { .. } => None,
            Self::Socket(socket) => Some(socket.listener.as_raw_fd()),
        }
    }

    /// Takes a waiting client, or turns it away.
    pub(crate) fn accept(&mut self) {
        if let Self::Socket(socket) = self {
            socket.accept();
        }
    }

    /// The descriptor that input comes from, until its end.
    pub(crate) fn input_fd(&self) -> Option<RawFd> {
        match self {
            Self::Fixed {
                input_ended: true, ..
            } => None,
            Self::Fixed { ends, .. } => ends.input.as_ref().map(|input| input.fd()),
            Self::Socket(socket) => socket.live_client().map(|client| client.reader.as_raw_fd()),
        }
    }

    /// Reads input. An end of it, or an error that is one, makes [`Self::input_fd`] `None`.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = match self {
            Self::Fixed {
                ends: SerialEnds {
                    input: Some(input), ..
                },
                ..
            } => input.read(buffer),
            Self::Fixed { .. } => Ok(0),
            Self::Socket(socket) => match &mut socket.client {
                Some(client) => client.reader.read(buffer),
                None => return Err(io::ErrorKind::WouldBlock.into()),
            },
        };
        match (&result, self) {
            (Ok(1..), _) => {}
            (Err(err), _) if is_transient(err) => {}
            (_, Self::Fixed { input_ended, .. }) => *input_ended = true,
            (_, Self::Socket(socket)) => socket.hang_up(),
        }
        result
    }

    /// The sink for output.
    pub(crate) fn sink(&mut self) -> &mut dyn ConsoleSink {
        match self {
            Self::Fixed { ends, .. } => &mut *ends.output,
            Self::Socket(socket) => socket,
        }
    }
}

fn is_transient(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

fn serial_error(what: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Serial {
        what,
        path: path.into(),
        source,
    }
}

/// Standard input and output, each through a descriptor of its own.
fn stdio() -> io::Result<SerialEnds> {
    let output = FdSink::new(io::stdout().as_fd().try_clone_to_owned()?)?;
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    Ok(SerialEnds {
        output: Box::new(output),
        input: Some(Box::new(input)),
    })
}

/// Output to nowhere.
struct NullSink;

impl ConsoleSink for NullSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn poll_fd(&self) -> Option<RawFd> {
        None
    }
}

/// A connection, by two descriptors: input and output are waited on separately, and epoll takes a descriptor once.
struct Client {
    reader: UnixStream,
    writer: UnixStream,
}

impl Client {
    fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            writer: stream.try_clone()?,
            reader: stream,
        })
    }
}

/// A listening Unix socket, and its client. Without a client, output waits in its queue.
pub(crate) struct SocketConsole {
    listener: UnixListener,
    client: Option<Client>,
    /// The client hung up. Its stream stays open until the next one replaces it: who waits on its descriptor has yet to
    /// let go of it.
    client_gone: bool,
    path: PathBuf,
}

/// Whether a socket is one that a killed process left behind: it is there, and nobody listens.
fn is_abandoned(path: &Path) -> bool {
    let refused = |err: &io::Error| err.kind() == io::ErrorKind::ConnectionRefused;
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
        && UnixStream::connect(path).is_err_and(|err| refused(&err))
}

impl SocketConsole {
    fn bind(path: &Path) -> io::Result<Self> {
        let listener = match UnixListener::bind(path) {
            Err(err) if err.kind() == io::ErrorKind::AddrInUse && is_abandoned(path) => {
                fs::remove_file(path)?;
                UnixListener::bind(path)?
            }
            other => other?,
        };
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            client: None,
            client_gone: false,
            path: path.into(),
        })
    }

    fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else {
            return;
        };
        // Two readers would each get half of the output: the second is turned away by an end of file.
        if self.live_client().is_some() {
            return;
        }
        match Client::new(stream) {
            Ok(client) => {
                self.client = Some(client);
                self.client_gone = false;
            }
            Err(err) => log::warn!("a client of the serial socket was turned away: {err}"),
        }
    }

    fn live_client(&self) -> Option<&Client> {
        self.client.as_ref().filter(|_| !self.client_gone)
    }

    fn hang_up(&mut self) {
        self.client_gone = true;
        if let Some(client) = &self.client {
            // Fails only where the peer is gone already.
            let _ = client.reader.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl ConsoleSink for SocketConsole {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(client) = self.client.as_mut().filter(|_| !self.client_gone) else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        match client.writer.write(bytes) {
            // This client is gone; the next one gets what it did not take.
            Err(err) if !is_transient(&err) => {
                self.hang_up();
                Err(io::ErrorKind::WouldBlock.into())
            }
            other => other,
        }
    }

    fn poll_fd(&self) -> Option<RawFd> {
        self.live_client().map(|client| client.writer.as_raw_fd())
    }
}

impl Drop for SocketConsole {
    fn drop(&mut self) {
        if let Err(err) = fs::remove_file(&self.path) {
            log::debug!(
                "socket {} was not there to remove: {err}",
                self.path.display()
            );
        }
    }
}
