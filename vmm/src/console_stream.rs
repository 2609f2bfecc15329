//! A guest's console inside the program that runs it: a stream to read and to write, without a descriptor to hand around.
//!
//! It takes what the guest prints from its first byte on, whether somebody reads or not, and never makes the guest wait: where
//! nobody has read for long, the oldest bytes go, and are counted. What is written waits until the guest takes it; a writer
//! waits where too much does.
//!
//! The lock is a leaf. The control thread takes it to move bytes; any thread may read and write.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use ampoule_devices::console::ConsoleSink;

use crate::console::{ConsoleEnds, ConsoleInput};
use crate::sync::{lock, wait_until};

/// Memory that a queue keeps when it is empty.
const KEPT_CAPACITY: usize = 4096;

/// How much waits for the guest at most.
const INPUT_CAPACITY: usize = 64 << 10;

/// A console of a guest, to read what it prints and to write what it reads. Cheap to clone; all clones are one stream, and any
/// thread may use them.
///
/// Reading waits for output, and ends (`Ok(0)`) when the VM has ended and all is read. Writing waits while 64 KiB are ahead, and
/// fails with [`io::ErrorKind::BrokenPipe`] once the VM has ended. [`Self::set_read_timeout`] bounds the wait for output.
///
/// ```no_run
/// use std::io::{BufRead, BufReader, Write};
/// use ampoule_vmm::{VmBuilder, config::VmConfig};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = VmConfig { kernel: Some("/boot/vmlinuz".into()), ..VmConfig::default() };
/// let vm = VmBuilder::new(config).build()?.start()?;
/// let mut console = vm.console().expect("the configuration leads it nowhere else");
/// console.write_all(b"uname -a\n")?;
/// for line in BufReader::new(console).lines() {
///     println!("{}", line?);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ConsoleStream {
    pipe: Arc<Pipe>,
    read_timeout: Option<Duration>,
}

struct Pipe {
    state: Mutex<State>,
    changed: Condvar,
    /// Readable when there is input for the guest.
    input_ready: EventFd,
    capacity: usize,
}

#[derive(Default)]
struct State {
    output: VecDeque<u8>,
    lost: u64,
    input: VecDeque<u8>,
    /// The VM is gone.
    ended: bool,
}

impl Pipe {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl ConsoleStream {
    /// A stream that keeps at most `capacity` bytes of output, and what joins a console with it
    /// ([`VmBuilder::console`](crate::VmBuilder::console)).
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(capacity: usize) -> io::Result<(Self, ConsoleEnds)> {
        let pipe = Arc::new(Pipe {
            state: Mutex::default(),
            changed: Condvar::new(),
            input_ready: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            capacity: capacity.max(1),
        });
        let ends = ConsoleEnds {
            output: Box::new(FromGuest(pipe.clone())),
            input: Some(Box::new(ToGuest(pipe.clone()))),
        };
        let stream = Self {
            pipe,
            read_timeout: None,
        };
        Ok((stream, ends))
    }

    /// How long a read of this clone waits before it fails with [`io::ErrorKind::TimedOut`]; none for ever.
    pub fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.read_timeout = timeout;
    }

    /// Bytes that the guest printed and nobody read in time.
    pub fn lost(&self) -> u64 {
        self.pipe.state().lost
    }
}

impl Read for &ConsoleStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let end = self
            .read_timeout
            .and_then(|wait| Instant::now().checked_add(wait));
        let mut state = self.pipe.state();
        while state.output.is_empty() && !state.ended && !buffer.is_empty() {
            state = wait_until(&self.pipe.changed, state, end).ok_or(io::ErrorKind::TimedOut)?;
        }
        let taken = state.output.read(buffer)?;
        if state.output.is_empty() {
            state.output.shrink_to(KEPT_CAPACITY);
        }
        Ok(taken)
    }
}

impl Write for &ConsoleStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.pipe.state();
        loop {
            if state.ended {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let room = INPUT_CAPACITY - state.input.len();
            let taken = room.min(bytes.len());
            if taken > 0 || bytes.is_empty() {
                state.input.extend(&bytes[..taken]);
                self.pipe.input_ready.write(1)?;
                return Ok(taken);
            }
            let waited = self.pipe.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for ConsoleStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for ConsoleStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The VM's end of the output.
struct FromGuest(Arc<Pipe>);

impl ConsoleSink for FromGuest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.state();
        let kept = &bytes[bytes.len().saturating_sub(self.0.capacity)..];
        let room = self.0.capacity - kept.len();
        let oldest = state.output.len().saturating_sub(room);
        state.output.drain(..oldest);
        state.lost += (oldest + bytes.len() - kept.len()) as u64;
        state.output.extend(kept);
        self.0.changed.notify_all();
        Ok(bytes.len())
    }

    fn poll_fd(&self) -> Option<RawFd> {
        None
    }
}

impl Drop for FromGuest {
    fn drop(&mut self) {
        self.0.state().ended = true;
        self.0.changed.notify_all();
    }
}

/// The VM's end of the input.
struct ToGuest(Arc<Pipe>);

impl ConsoleInput for ToGuest {
    fn fd(&self) -> RawFd {
        self.0.input_ready.as_raw_fd()
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.0.state();
        let taken = state.input.read(buffer)?;
        if state.input.is_empty() {
            // Under the lock, so that no write's ring is taken for an old one.
            let _ = self.0.input_ready.read();
            state.input.shrink_to(KEPT_CAPACITY);
        }
        self.0.changed.notify_all();
        match taken {
            // An end of file would be final.
            0 => Err(io::ErrorKind::WouldBlock.into()),
            taken => Ok(taken),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(capacity: usize) -> (ConsoleStream, ConsoleEnds) {
        ConsoleStream::new(capacity).unwrap()
    }

    #[test]
    fn what_nobody_reads_goes_oldest_first_and_is_counted() {
        let (mut stream, mut ends) = stream(8);
        assert_eq!(ends.output.write(b"abcdef").unwrap(), 6);
        assert_eq!(ends.output.write(b"ghij").unwrap(), 4);
        assert_eq!(stream.lost(), 2);
        assert_eq!(ends.output.write(b"0123456789").unwrap(), 10);
        assert_eq!(stream.lost(), 12);
        drop(ends);
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "23456789");
    }

    #[test]
    fn a_reader_waits_for_output_and_for_the_end() {
        let (mut stream, mut ends) = stream(100);
        let mut impatient = stream.clone();
        impatient.set_read_timeout(Some(Duration::ZERO));
        let error = impatient.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let text = std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let mut text = String::new();
                stream.read_to_string(&mut text).map(|_| text)
            });
            ends.output.write(b"one").unwrap();
            ends.output.write(b" two").unwrap();
            drop(ends);
            reader.join().unwrap()
        });
        assert_eq!(text.unwrap(), "one two");
        let error = impatient.write(b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn input_waits_for_the_guest_and_a_writer_for_room() {
        let (mut stream, mut ends) = stream(1);
        let mut input = ends.input.take().unwrap();
        let mut buffer = [0; 4096];
        let error = input.read(&mut buffer).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let sent: Vec<u8> = (0..INPUT_CAPACITY + 5000).map(|at| at as u8).collect();
        let mut got: Vec<u8> = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| stream.write_all(&sent).unwrap());
            while got.len() < sent.len() {
                match input.read(&mut buffer) {
                    Ok(count) => got.extend(&buffer[..count]),
                    Err(_) => std::thread::yield_now(),
                }
            }
        });
        assert_eq!(got, sent);
    }
}
