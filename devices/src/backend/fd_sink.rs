//! A console sink on a file descriptor that may be anything: a terminal, a pipe, a file, a socket.
//!
//! The descriptor's open file description is usually shared (standard output with the shell, and
//! with every program after us), so that `O_NONBLOCK` must not be set on it. What is done instead
//! depends on what it is:
//!
//! - a socket: `MSG_DONTWAIT` on each send;
//! - a pipe or a terminal: opened once more through `/proc/self/fd`, which makes a description of our
//!   own, and that is non-blocking;
//! - a regular file: written to plainly, since it does not know readiness;
//! - anything else, and what cannot be opened again (a pseudo-terminal's master, another user's
//!   terminal): asked by `poll` first, then given no more than it takes without waiting.
//!
//! A reader that is gone is [`io::ErrorKind::BrokenPipe`], never a SIGPIPE, whatever the process does
//! with that signal. Used by the thread that drains the console.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use crate::console::ConsoleSink;

/// A pipe that polls as writable takes so much at once (`PIPE_BUF`, pipe(7)).
const PIPE_STEP: usize = 4096;

/// A terminal promises nothing; drivers have room for a few hundred bytes when they poll as writable.
const OTHER_STEP: usize = 512;

/// A console sink on a file descriptor.
#[derive(Debug)]
pub struct FdSink {
    file: File,
    method: Method,
    /// What is written to may raise SIGPIPE.
    is_pipe: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    /// Writes do not wait, or are those of a regular file.
    Write {
        pollable: bool,
    },
    Send,
    /// Writes of at most so many bytes, when `poll` says so.
    PollFirst {
        step: usize,
    },
}

impl FdSink {
    /// A sink that writes to `fd`, and closes it when it is dropped. Neither the descriptor's file
    /// description nor the process's signals are changed.
    ///
    /// # Errors
    /// The host's, where `fd` is not one that can be written to.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        let kind = file.metadata()?.file_type();
        let flags = status_flags(file.as_fd())?;
        if flags & libc::O_ACCMODE == libc::O_RDONLY {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let is_pipe = kind.is_fifo();
        if kind.is_socket() {
            return Ok(Self {
                file,
                method: Method::Send,
                is_pipe,
            });
        }
        if kind.is_file() {
            return Ok(Self {
                file,
                method: Method::Write { pollable: false },
                is_pipe,
            });
        }
        if flags & libc::O_NONBLOCK != 0 {
            return Ok(Self {
                file,
                method: Method::Write { pollable: true },
                is_pipe,
            });
        }
        if (is_pipe || is_terminal_slave(file.as_fd()))
            && let Ok(file) = reopen(file.as_fd())
        {
            return Ok(Self {
                file,
                method: Method::Write { pollable: true },
                is_pipe,
            });
        }
        let step = if is_pipe { PIPE_STEP } else { OTHER_STEP };
        Ok(Self {
            file,
            method: Method::PollFirst { step },
            is_pipe,
        })
    }

    fn write_plainly(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.is_pipe {
            return self.file.write(bytes);
        }
        let guard = SigpipeGuard::new()?;
        let result = self.file.write(bytes);
        guard.finish(&result);
        result
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the pointer and the length are those of `bytes`, which is only read.
        let sent = unsafe {
            libc::send(
                self.file.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                flags,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Whether a write of a step would not wait, or would fail at once.
    fn is_writable(&self) -> io::Result<bool> {
        let mut poll = libc::pollfd {
            fd: self.file.as_raw_fd(),
            events: libc::POLLOUT,
            revents: 0,
        };
        // SAFETY: `poll` is one valid pollfd, and the count says so.
        let ready = unsafe { libc::poll(&mut poll, 1, 0) };
        match ready {
            -1 => Err(io::Error::last_os_error()),
            // A terminal that hung up, a pipe without a reader: the write tells what it is.
            _ => Ok(poll.revents != 0),
        }
    }
}

impl ConsoleSink for FdSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.method {
            Method::Send => self.send(bytes),
            Method::Write { .. } => self.write_plainly(bytes),
            Method::PollFirst { step } => {
                if !self.is_writable()? {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                self.write_plainly(&bytes[..bytes.len().min(step)])
            }
        }
    }

    fn poll_fd(&self) -> Option<RawFd> {
        let pollable = self.method != Method::Write { pollable: false };
        pollable.then(|| self.file.as_raw_fd())
    }
}

fn status_flags(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    // SAFETY: F_GETFL takes no argument and touches no memory.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(flags)
    }
}

/// Whether this is a terminal that can be opened again. Opening a pseudo-terminal's master (or
/// `/dev/ptmx`) again would make another pseudo-terminal.
fn is_terminal_slave(fd: BorrowedFd<'_>) -> bool {
    let mut number: libc::c_uint = 0;
    // SAFETY: isatty only looks at the descriptor.
    let is_terminal = unsafe { libc::isatty(fd.as_raw_fd()) } == 1;
    // SAFETY: TIOCGPTN writes one unsigned int, which `number` is.
    let is_master = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGPTN, &mut number) } == 0;
    is_terminal && !is_master
}

fn reopen(fd: BorrowedFd<'_>) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Keeps SIGPIPE from this thread while it writes to a pipe. (The runtime of a Rust program ignores
/// the signal; a program that embeds a VMM may not.)
struct SigpipeGuard {
    /// The thread's mask from before, where SIGPIPE was not in it and is to be let through again.
    before: Option<libc::sigset_t>,
}

impl SigpipeGuard {
    fn new() -> io::Result<Self> {
        let sigpipe = sigpipe_set();
        let mut before = sigpipe;
        // SAFETY: both sets are initialised and live through the call; the second is written.
        let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &sigpipe, &mut before) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: `before` was written by the call above.
        let blocked = unsafe { libc::sigismember(&before, libc::SIGPIPE) } == 1;
        Ok(Self {
            before: (!blocked).then_some(before),
        })
    }

    /// Takes back the signal that a write with this result raised, and restores the mask.
    fn finish(self, result: &io::Result<usize>) {
        let Some(before) = self.before else { return };
        let broken = matches!(result, Err(err) if err.kind() == io::ErrorKind::BrokenPipe);
        if broken {
            let none = libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let sigpipe = sigpipe_set();
            // SAFETY: the set and the time are initialised and live through the call; no
            // information about the signal is asked for.
            unsafe { libc::sigtimedwait(&sigpipe, std::ptr::null_mut(), &none) };
        }
        // SAFETY: `before` is a mask that the kernel gave out; the old one is not asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut()) };
    }
}

fn sigpipe_set() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the whole set, and sigaddset changes an initialised one.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGPIPE);
        set.assume_init()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::FromRawFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    fn is_nonblocking(fd: &impl AsFd) -> bool {
        status_flags(fd.as_fd()).unwrap() & libc::O_NONBLOCK != 0
    }

    /// Writes until there is no room, and returns how much went in.
    fn fill(sink: &mut FdSink) -> usize {
        let mut total = 0;
        loop {
            match sink.write(&[b'x'; 3000]) {
                Ok(count) => total += count,
                Err(err) => {
                    assert_eq!(err.kind(), io::ErrorKind::WouldBlock);
                    return total;
                }
            }
            assert!(total < 64 << 20, "this sink has no end");
        }
    }

    fn pollable(fd: RawFd) -> bool {
        let mut poll = libc::pollfd {
            fd,
            events: libc::POLLOUT,
            revents: 0,
        };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 }
    }

    /// A pseudo-terminal's two sides.
    fn terminal() -> (File, File) {
        let (mut master, mut slave) = (0, 0);
        let null = std::ptr::null_mut();
        // SAFETY: openpty writes the two descriptors; the other arguments are optional.
        let made =
            unsafe { libc::openpty(&mut master, &mut slave, null, null.cast(), null.cast()) };
        assert_eq!(made, 0);
        // SAFETY: openpty has just made them, and nobody else has them.
        unsafe { (File::from_raw_fd(master), File::from_raw_fd(slave)) }
    }

    #[test]
    fn a_pipe_that_nobody_reads_blocks_nobody_and_stays_as_it_was() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut sink = FdSink::new(writer.try_clone().unwrap().into()).unwrap();
        assert_eq!(sink.method, Method::Write { pollable: true });
        let total = fill(&mut sink);
        assert!(total >= PIPE_STEP);
        assert!(!is_nonblocking(&writer) && !is_nonblocking(&reader));
        assert!(!pollable(sink.poll_fd().unwrap()));
        let mut got = vec![0; total];
        reader.read_exact(&mut got).unwrap();
        assert!(pollable(sink.poll_fd().unwrap()));
    }

    #[test]
    fn a_pipe_that_cannot_be_opened_again_is_polled_first() {
        let (_reader, writer) = io::pipe().unwrap();
        let file = File::from(OwnedFd::from(writer));
        let method = Method::PollFirst { step: PIPE_STEP };
        let mut sink = FdSink {
            file,
            method,
            is_pipe: true,
        };
        assert!(fill(&mut sink) >= PIPE_STEP);
        assert!(sink.poll_fd().is_some());
    }

    #[test]
    fn a_terminal_that_nobody_reads_blocks_nobody_and_stays_as_it_was() {
        let (master, slave) = terminal();
        let mut sink = FdSink::new(slave.try_clone().unwrap().into()).unwrap();
        assert_eq!(sink.method, Method::Write { pollable: true });
        fill(&mut sink);
        assert!(!is_nonblocking(&slave));
        drop(master);
        assert_eq!(
            sink.write(b"x").unwrap_err().raw_os_error(),
            Some(libc::EIO)
        );
    }

    #[test]
    fn a_terminal_s_master_is_not_opened_again() {
        let (master, mut slave) = terminal();
        let mut sink = FdSink::new(master.try_clone().unwrap().into()).unwrap();
        assert_eq!(sink.method, Method::PollFirst { step: OTHER_STEP });
        assert_eq!(sink.write(b"line\n").unwrap(), 5);
        let mut got = [0; 5];
        slave.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"line\n");
    }

    #[test]
    fn a_socket_that_nobody_reads_blocks_nobody_and_stays_as_it_was() {
        let (reader, writer) = UnixStream::pair().unwrap();
        let mut sink = FdSink::new(writer.try_clone().unwrap().into()).unwrap();
        assert!(fill(&mut sink) > 0);
        assert!(!is_nonblocking(&writer));
        assert!(!pollable(sink.poll_fd().unwrap()));
        drop(reader);
        assert_eq!(
            sink.write(b"x").unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
        let (_reader, writer) = UnixDatagram::pair().unwrap();
        assert!(fill(&mut FdSink::new(writer.into()).unwrap()) > 0);
    }

    #[test]
    fn a_regular_file_is_appended_to_and_not_polled() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before ").unwrap();
        let mut sink = FdSink::new(file.try_clone().unwrap().into()).unwrap();
        assert_eq!(sink.poll_fd(), None);
        assert_eq!(sink.write(b"after").unwrap(), 5);
        let mut text = String::new();
        io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "before after");
    }

    #[test]
    fn devices_take_what_they_take() {
        let open = |path| OpenOptions::new().write(true).open(path).unwrap();
        let mut null = FdSink::new(open("/dev/null").into()).unwrap();
        assert!(null.write(&[0; 10_000]).unwrap() > 0);
        let mut full = FdSink::new(open("/dev/full").into()).unwrap();
        assert_eq!(
            full.write(b"x").unwrap_err().kind(),
            io::ErrorKind::StorageFull
        );
    }

    #[test]
    fn what_cannot_be_written_to_is_refused() {
        let (reader, _writer) = io::pipe().unwrap();
        let error = FdSink::new(reader.into()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }

    /// The disposition of a signal belongs to the process, so that this cannot be seen from inside
    /// one that runs other tests: a child writes, and its exit tells.
    #[test]
    fn a_broken_pipe_is_an_error_and_not_a_signal() {
        let (reader, writer) = io::pipe().unwrap();
        let mut sink = FdSink::new(writer.into()).unwrap();
        drop(reader);
        // SAFETY: the child calls only what is safe after a fork of a threaded process: signal,
        // write, mask and exit; it allocates nothing.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            // SAFETY: restores the default action, no handler is installed.
            unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
            let broken = |result: io::Result<usize>| matches!(result, Err(err) if err.kind() == io::ErrorKind::BrokenPipe);
            let code = if broken(sink.write(b"x")) && broken(sink.write(b"y")) {
                7
            } else {
                8
            };
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(code) };
        }
        let mut status = 0;
        // SAFETY: waits for the child made above; `status` is written.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert!(
            libc::WIFEXITED(status),
            "killed by signal {}",
            libc::WTERMSIG(status)
        );
        assert_eq!(libc::WEXITSTATUS(status), 7);
    }
}
