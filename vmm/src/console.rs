//! The host end of a guest's console, a serial port or a virtio console: where its output goes, where its input comes from.
//!
//! Everything here runs on the control thread. Output arrives through a bounded queue that vCPU threads, or a device's worker, fill
//! (`ConsoleOutput` of the devices); input is read only when the guest has room for it, or so much ahead as the input says, so that neither
//! side can make the other wait or grow.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use ampoule_devices::backend::pty::{self, Pty};

pub use ampoule_devices::backend::fd_sink::FdSink;
pub use ampoule_devices::backend::pty::size as terminal_size;
pub use ampoule_devices::console::ConsoleSink;

use crate::config::ConsoleConfig;
use crate::error::Error;

/// Where a guest's console input comes from.
///
/// [`read`](Self::read) is called on the control thread when [`fd`](Self::fd) is readable and the guest can take input; it
/// must not block. An end of file (`Ok(0)`) is final.
///
/// A [`File`] is one: a pipe's end, a terminal, standard input by a clone of its descriptor. Another is a program's own:
///
/// ```
/// use std::io::{self, Read};
/// use std::os::fd::{AsRawFd, RawFd};
/// use std::os::unix::net::UnixStream;
/// use ampoule_vmm::console::ConsoleInput;
///
/// struct Keyboard(UnixStream); // non-blocking
///
/// impl ConsoleInput for Keyboard {
///     fn fd(&self) -> RawFd {
///         self.0.as_raw_fd()
///     }
///
///     fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
///         self.0.read(buffer)
///     }
/// }
/// ```
pub trait ConsoleInput: Send {
    /// The descriptor to wait on; the same for the life of the value.
    fn fd(&self) -> RawFd;

    /// Reads what there is, up to the buffer's size.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] and [`io::ErrorKind::Interrupted`] mean "not now"; any other ends the input.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Up to how many bytes that the guest has not taken more is read; 0 for none, so that nothing is read that nobody wants. For input
    /// in which there is more than what is the guest's, such as keys by which a person leaves a guest that takes nothing.
    fn read_ahead(&self) -> usize {
        0
    }
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

/// The two directions of a console, for a program that does not want what [`ConsoleConfig`] offers.
///
/// ```
/// use std::io;
/// use std::os::fd::RawFd;
/// use std::sync::mpsc::{self, Sender};
/// use ampoule_vmm::console::{ConsoleEnds, ConsoleSink};
/// use ampoule_vmm::{VmBuilder, config::VmConfig};
///
/// /// Output as messages.
/// struct Messages(Sender<Vec<u8>>);
///
/// impl ConsoleSink for Messages {
///     fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
///         let sent = self.0.send(bytes.to_vec());
///         sent.map(|()| bytes.len()).map_err(io::Error::other)
///     }
///
///     fn poll_fd(&self) -> Option<RawFd> {
///         None // It never has to wait.
///     }
/// }
///
/// let (sender, messages) = mpsc::channel();
/// let ends = ConsoleEnds { output: Box::new(Messages(sender)), input: None };
/// let builder = VmBuilder::new(VmConfig::default()).serial(ends);
/// # drop((builder, messages));
/// ```
pub struct ConsoleEnds {
    /// Takes the guest's output.
    pub output: Box<dyn ConsoleSink>,
    /// Gives the guest's input.
    pub input: Option<Box<dyn ConsoleInput>>,
}

/// The host ends of a VM's consoles.
pub(crate) struct Consoles {
    pub(crate) serial: ConsoleHost,
    pub(crate) console: Option<ConsoleHost>,
}

impl Consoles {
    /// Where those are that are pseudo-terminals, by name.
    pub(crate) fn ptys(&self) -> Vec<(&'static str, PathBuf)> {
        let all = [
            ("serial", Some(&self.serial)),
            ("console", self.console.as_ref()),
        ];
        let path = |host: &ConsoleHost| host.pty().map(Path::to_path_buf);
        all.into_iter()
            .filter_map(|(name, host)| Some((name, path(host?)?)))
            .collect()
    }
}

/// The host end of a console.
pub(crate) enum ConsoleHost {
    /// Fixed ends: standard streams, a file, nothing, or an embedder's.
    Fixed {
        ends: ConsoleEnds,
        /// The size of the terminal at the other end, columns and rows.
        size: Option<(u16, u16)>,
        /// The input came to its end. It stays open: who waits on its descriptor has yet to let go of it.
        input_ended: bool,
    },
    /// A Unix socket, one client at a time.
    Socket(SocketConsole),
    /// A pseudo-terminal.
    Pty(PtyConsole),
}

impl ConsoleHost {
    pub(crate) fn fixed(ends: ConsoleEnds, size: Option<(u16, u16)>) -> Self {
        Self::Fixed {
            ends,
            size,
            input_ended: false,
        }
    }

    /// Opens what `config` says; `console` is the name in messages of what it is for. A file takes `file_limit` bytes.
    pub(crate) fn open(
        config: &ConsoleConfig,
        console: &'static str,
        file_limit: u64,
    ) -> Result<Self, Error> {
        let failed = |what, path: &Path, source| Error::Console {
            console,
            what,
            path: path.into(),
            source,
        };
        Ok(match config {
            ConsoleConfig::Stdio => {
                let size = pty::size(io::stdout().as_fd()).or(pty::size(io::stdin().as_fd()));
                Self::fixed(stdio().map_err(Error::host("console"))?, size)
            }
            ConsoleConfig::Null => {
                let ends = ConsoleEnds {
                    output: Box::new(NullSink),
                    input: None,
                };
                Self::fixed(ends, None)
            }
            ConsoleConfig::File(path) => {
                let file = File::create(path).map_err(|source| failed("file", path, source))?;
                let sink = FdSink::new(file.into()).map_err(Error::host("console"))?;
                let sink = LimitedSink {
                    sink,
                    left: file_limit,
                };
                let ends = ConsoleEnds {
                    output: Box::new(sink),
                    input: None,
                };
                Self::fixed(ends, None)
            }
            ConsoleConfig::Socket(path) => Self::Socket(
                SocketConsole::bind(path).map_err(|source| failed("socket", path, source))?,
            ),
            ConsoleConfig::Pty => {
                Self::Pty(PtyConsole::open().map_err(Error::host("pseudo-terminal"))?)
            }
        })
    }

    /// The descriptor that tells of new clients.
    pub(crate) fn listener(&self) -> Option<RawFd> {
        match self {
            Self::Fixed { .. } | Self::Pty(_) => None,
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
            Self::Pty(pty) => Some(pty.pty.master().as_raw_fd()),
        }
    }

    /// Up to how many bytes that the guest has not taken more is read.
    pub(crate) fn read_ahead(&self) -> usize {
        match self {
            Self::Fixed { ends, .. } => ends.input.as_ref().map_or(0, |input| input.read_ahead()),
            Self::Socket(_) | Self::Pty(_) => 0,
        }
    }

    /// Where a pseudo-terminal is.
    pub(crate) fn pty(&self) -> Option<&Path> {
        match self {
            Self::Pty(pty) => Some(pty.pty.path()),
            Self::Fixed { .. } | Self::Socket(_) => None,
        }
    }

    /// The size of a pseudo-terminal, once somebody has given it one.
    pub(crate) fn pty_size(&self) -> Option<(u16, u16)> {
        match self {
            Self::Pty(pty) => pty::size(pty.pty.master().as_fd()),
            Self::Fixed { .. } | Self::Socket(_) => None,
        }
    }

    /// The size of its terminal, columns and rows, if it is one.
    pub(crate) fn size(&self) -> Option<(u16, u16)> {
        match self {
            // One that nobody has opened yet has none.
            Self::Pty(pty) => Some(pty::size(pty.pty.master().as_fd()).unwrap_or_default()),
            Self::Fixed { size, .. } => *size,
            Self::Socket(_) => None,
        }
    }

    /// Reads input. An end of it, or an error that is one, makes [`Self::input_fd`] `None`.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = match self {
            Self::Fixed {
                ends: ConsoleEnds {
                    input: Some(input), ..
                },
                ..
            } => input.read(buffer),
            Self::Fixed { .. } => Ok(0),
            Self::Socket(socket) => match &mut socket.client {
                Some(client) => client.reader.read(buffer),
                None => return Err(io::ErrorKind::WouldBlock.into()),
            },
            Self::Pty(pty) => pty.pty.master().read(buffer),
        };
        match (&result, self) {
            (Ok(1..), _) => {}
            (Err(err), _) if is_transient(err) => {}
            (_, Self::Fixed { input_ended, .. }) => *input_ended = true,
            (_, Self::Socket(socket)) => socket.hang_up(),
            // Our own slave keeps it open, whoever comes and goes.
            (_, Self::Pty(_)) => {}
        }
        result
    }

    /// The sink for output.
    pub(crate) fn sink(&mut self) -> &mut dyn ConsoleSink {
        match self {
            Self::Fixed { ends, .. } => &mut *ends.output,
            Self::Socket(socket) => socket,
            Self::Pty(pty) => &mut pty.writer,
        }
    }
}

fn is_transient(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// Standard input and output, each through a descriptor of its own.
fn stdio() -> io::Result<ConsoleEnds> {
    let output = FdSink::new(io::stdout().as_fd().try_clone_to_owned()?)?;
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    Ok(ConsoleEnds {
        output: Box::new(output),
        input: Some(Box::new(input)),
    })
}

/// A sink that is full one day: a guest must not be the reason that a disk is.
struct LimitedSink {
    sink: FdSink,
    left: u64,
}

impl ConsoleSink for LimitedSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX);
        let bytes = &bytes[..bytes.len().min(room)];
        if bytes.is_empty() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let taken = self.sink.write(bytes)?;
        self.left -= taken as u64;
        Ok(taken)
    }

    fn poll_fd(&self) -> Option<RawFd> {
        self.sink.poll_fd()
    }
}

/// A pseudo-terminal, by two descriptors: input and output are waited on separately.
pub(crate) struct PtyConsole {
    pty: Pty,
    writer: FdSink,
}

impl PtyConsole {
    fn open() -> io::Result<Self> {
        let pty = Pty::open()?;
        let writer = FdSink::new(pty.master().as_fd().try_clone_to_owned()?)?;
        Ok(Self { pty, writer })
    }
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
            Err(err) => log::warn!("a client of the console's socket was turned away: {err}"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_does_not_fill_a_disk() {
        let file = tempfile::tempfile().unwrap();
        let mut sink = LimitedSink {
            sink: FdSink::new(file.try_clone().unwrap().into()).unwrap(),
            left: 10,
        };
        assert_eq!(sink.write(b"1234567").unwrap(), 7);
        assert_eq!(sink.write(b"89abcd").unwrap(), 3);
        let error = sink.write(b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(file.metadata().unwrap().len(), 10);
    }

    #[test]
    fn a_pty_is_read_and_written_whoever_comes_and_goes() {
        let mut host = ConsoleHost::open(&ConsoleConfig::Pty, "console", 0).unwrap();
        let path = host.pty().unwrap().to_path_buf();
        assert_eq!(host.size(), Some((0, 0)));
        let mut buffer = [0; 8];
        for _ in 0..2 {
            // Nobody has it open.
            let error = host.read(&mut buffer).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            assert_eq!(host.sink().write(b"hi\n").unwrap(), 3);
            let mut options = File::options();
            let mut terminal = options.read(true).write(true).open(&path).unwrap();
            let mut got = [0; 3];
            terminal.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"hi\n", "it is as the guest made it");
            terminal.write_all(b"key").unwrap();
            assert_eq!(host.read(&mut buffer).unwrap(), 3);
            assert_eq!(&buffer[..3], b"key");
        }
        // One that nobody reads has no room some time, and blocks nobody.
        let mut written = 0;
        let blocked = loop {
            match host.sink().write(&[b'x'; 4096]) {
                Ok(count) => written += count,
                Err(err) => break err,
            }
        };
        assert_eq!(blocked.kind(), io::ErrorKind::WouldBlock);
        assert!(written > 0);
    }
}
