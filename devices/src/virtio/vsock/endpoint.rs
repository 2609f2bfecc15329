//! The end of a guest's sockets inside the program that runs it: streams both ways, without a socket's path.
//!
//! A stream of the program's is one of a pair of Unix sockets, and the device has the other. What the program connects waits here
//! until a driver is there, and is taken by the device's own thread, which an event wakes; it then speaks the greeting that clients
//! of the Unix socket speak. What the guest connects to a port that is listened on here waits with its [`VsockListener`].
//!
//! An endpoint outlives the devices of its VM, and their drivers: a reset ends the streams, while listeners stay and what was
//! connecting goes on with the next driver. The lock is a leaf; the device's thread takes it for a few moves, any thread of the
//! program's to wait.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

/// Connections of the guest's that wait to be accepted, for each port; more are refused.
pub const MAX_VSOCK_BACKLOG: usize = 128;
/// The port that means "any" (VMADDR_PORT_ANY).
const ANY_PORT: u32 = u32::MAX;
/// The longest answer to a greeting is "OK 4294967295\n".
const MAX_ANSWER: usize = 14;

/// The sockets of a guest, for the program that runs it. Cheap to clone, and safe to use from any thread, before the VM's start
/// and after its end.
#[derive(Clone, Debug)]
pub struct VsockEndpoint {
    shared: Arc<Shared>,
}

/// What keeps an endpoint alive: when it is dropped, all that waits for the guest fails.
#[derive(Debug)]
pub struct EndpointLife(VsockEndpoint);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Tells the device that the program wants a connection.
    asked: EventFd,
}

#[derive(Debug, Default)]
struct State {
    /// The VM is gone.
    ended: bool,
    /// How many drivers have gone.
    drivers: u64,
    last_id: u64,
    /// The device's ends of connections that no driver has heard of.
    asking: VecDeque<(u64, UnixStream)>,
    listeners: HashMap<u32, Backlog>,
}

#[derive(Debug)]
struct Backlog {
    waiting: VecDeque<VsockStream>,
    door: Arc<Door>,
}

/// What tells a listener of connections.
#[derive(Debug)]
struct Door {
    arrived: Condvar,
    /// Readable as long as one waits, and for ever when the VM has ended.
    ready: EventFd,
}

impl Door {
    fn knock(&self) {
        self.arrived.notify_one();
        let _ = self.ready.write(1);
    }
}

/// A connection of the program's, on its way.
struct Asked {
    stream: UnixStream,
    id: u64,
    /// How many drivers had gone before.
    drivers: u64,
}

fn event() -> io::Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the VM has ended")
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, port: u32) -> io::Result<Asked> {
        let (mut mine, theirs) = UnixStream::pair()?;
        theirs.set_nonblocking(true)?;
        writeln!(mine, "CONNECT {port}")?;
        let mut state = self.state();
        if state.ended {
            return Err(ended());
        }
        state.last_id += 1;
        let id = state.last_id;
        state.asking.push_back((id, theirs));
        self.asked.write(1)?;
        Ok(Asked {
            stream: mine,
            id,
            drivers: state.drivers,
        })
    }
}

impl EndpointLife {
    /// An endpoint of a VM that is about to be.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(VsockEndpoint {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                asked: event()?,
            }),
        }))
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &VsockEndpoint {
        &self.0
    }
}

impl Drop for EndpointLife {
    fn drop(&mut self) {
        let mut state = self.0.shared.state();
        state.ended = true;
        state.asking.clear();
        for backlog in state.listeners.values() {
            backlog.door.arrived.notify_all();
            let _ = backlog.door.ready.write(1);
        }
    }
}

impl VsockEndpoint {
    /// Connects to a port of the guest, and waits until the guest accepts or refuses: for as long as it takes it to have a
    /// driver, too.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionRefused`] by the guest, or where there are too many connections;
    /// [`io::ErrorKind::BrokenPipe`] once the VM has ended; the host's.
    pub fn connect(&self, port: u32) -> io::Result<VsockStream> {
        self.connect_until(port, None)
    }

    /// Connects as [`Self::connect`] does, and waits no longer than `timeout`.
    ///
    /// # Errors
    /// The same, and [`io::ErrorKind::TimedOut`].
    pub fn connect_timeout(&self, port: u32, timeout: Duration) -> io::Result<VsockStream> {
        self.connect_until(port, Instant::now().checked_add(timeout))
    }

    fn connect_until(&self, port: u32, end: Option<Instant>) -> io::Result<VsockStream> {
        loop {
            let asked = self.shared.ask(port)?;
            match is_accepted(&asked.stream, end) {
                Ok(true) => {
                    return Ok(VsockStream {
                        stream: asked.stream,
                        guest_port: port,
                    });
                }
                Ok(false) => {}
                Err(err) => {
                    let mut state = self.shared.state();
                    state.asking.retain(|(id, _)| *id != asked.id);
                    return Err(err);
                }
            }
            let state = self.shared.state();
            if state.ended {
                return Err(ended());
            }
            if state.drivers == asked.drivers {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            // It was the driver that went, and not the guest that refused: the next one is asked.
        }
    }

    /// Listens on a port of the host's, CID 2 to the guest: what the guest connects there comes to the listener, and not to the
    /// Unix socket of that port. It stays through resets of the guest.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] where it is listened on here already; [`io::ErrorKind::InvalidInput`] for the port that means
    /// "any"; [`io::ErrorKind::BrokenPipe`] once the VM has ended; the host's.
    pub fn listen(&self, port: u32) -> io::Result<VsockListener> {
        if port == ANY_PORT {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let door = Arc::new(Door {
            arrived: Condvar::new(),
            ready: event()?,
        });
        let mut state = self.shared.state();
        if state.ended {
            return Err(ended());
        }
        if state.listeners.contains_key(&port) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let backlog = Backlog {
            waiting: VecDeque::new(),
            door: door.clone(),
        };
        state.listeners.insert(port, backlog);
        Ok(VsockListener {
            shared: self.shared.clone(),
            port,
            door,
        })
    }

    /// What the device waits on.
    pub(super) fn asked(&self) -> RawFd {
        self.shared.asked.as_raw_fd()
    }

    /// The device has heard that something is asked for.
    pub(super) fn heard(&self) {
        // Another thread may have heard it before.
        let _ = self.shared.asked.read();
    }

    /// Has the device told again, if something waits.
    pub(super) fn remind(&self) {
        if !self.shared.state().asking.is_empty() {
            let _ = self.shared.asked.write(1);
        }
    }

    /// The device's end of a connection that the program wants.
    pub(super) fn take(&self) -> Option<UnixStream> {
        let mut state = self.shared.state();
        state.asking.pop_front().map(|(_, stream)| stream)
    }

    /// The driver is about to go, and its streams with it.
    pub(super) fn driver_goes(&self) {
        self.shared.state().drivers += 1;
    }

    /// The device's end of a connection with whoever listens on a port of the host's; none where nobody does.
    ///
    /// # Errors
    /// `WouldBlock` where too many wait there; the host's.
    pub(super) fn dial(&self, port: u32, guest_port: u32) -> io::Result<Option<UnixStream>> {
        let mut state = self.shared.state();
        let Some(backlog) = state.listeners.get_mut(&port) else {
            return Ok(None);
        };
        if backlog.waiting.len() >= MAX_VSOCK_BACKLOG {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let (stream, mine) = UnixStream::pair()?;
        mine.set_nonblocking(true)?;
        backlog
            .waiting
            .push_back(VsockStream { stream, guest_port });
        backlog.door.knock();
        Ok(Some(mine))
    }
}

/// Waits for the answer to a greeting: whether it is OK. What follows its line is not touched.
fn is_accepted(mut stream: &UnixStream, end: Option<Instant>) -> io::Result<bool> {
    for _ in 0..MAX_ANSWER {
        let mut byte = [0];
        loop {
            if let Some(end) = end {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                stream.set_read_timeout(Some(left))?;
            }
            match stream.read(&mut byte) {
                Ok(0) => return Ok(false),
                Ok(_) => break,
                // Closed with the greeting in it, unread.
                Err(err) if err.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
                Err(err)
                    if matches!(
                        err.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                    ) => {}
                Err(err) => return Err(err),
            }
        }
        if byte == *b"\n" {
            stream.set_read_timeout(None)?;
            return Ok(true);
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// A stream between the program and a guest.
///
/// Reading ends (`Ok(0)`) when the guest has sent all, and when the VM has ended or its guest was reset;
/// [`io::ErrorKind::ConnectionReset`] says that the guest did not take all that was written. Its descriptor is that of a Unix
/// stream socket, and may be given to an async runtime: `UnixStream::from(stream)`, after [`Self::set_nonblocking`].
#[derive(Debug)]
pub struct VsockStream {
    stream: UnixStream,
    guest_port: u32,
}

impl VsockStream {
    /// The guest's port.
    pub fn guest_port(&self) -> u32 {
        self.guest_port
    }

    /// Ends one direction, or both: the guest is told.
    ///
    /// # Errors
    /// The host's.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.stream.shutdown(how)
    }

    /// The same stream once more: the one to read, for instance, and the other to write.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            stream: self.stream.try_clone()?,
            guest_port: self.guest_port,
        })
    }

    /// How long a read waits before it fails with [`io::ErrorKind::WouldBlock`]; none for ever.
    ///
    /// # Errors
    /// A timeout of no time; the host's.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(timeout)
    }

    /// How long a write waits for the guest to take bytes before it fails with [`io::ErrorKind::WouldBlock`]; none for ever.
    ///
    /// # Errors
    /// A timeout of no time; the host's.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_write_timeout(timeout)
    }

    /// Whether reads and writes fail with [`io::ErrorKind::WouldBlock`] instead of waiting.
    ///
    /// # Errors
    /// The host's.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.stream.set_nonblocking(nonblocking)
    }
}

impl Read for &VsockStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.stream).read(buffer)
    }
}

impl Write for &VsockStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&self.stream).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for VsockStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for VsockStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for VsockStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsRawFd for VsockStream {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

impl From<VsockStream> for UnixStream {
    fn from(stream: VsockStream) -> Self {
        stream.stream
    }
}

impl From<VsockStream> for OwnedFd {
    fn from(stream: VsockStream) -> Self {
        stream.stream.into()
    }
}

/// A port of the host's that a guest may connect to. At most [`MAX_VSOCK_BACKLOG`] connections wait for [`Self::accept`]; a guest that
/// makes more is refused. Dropping it ends the listening, and those that wait.
///
/// Its descriptor is readable as long as a connection waits, and when the VM has ended; read nothing from it.
#[derive(Debug)]
pub struct VsockListener {
    shared: Arc<Shared>,
    port: u32,
    door: Arc<Door>,
}

impl VsockListener {
    /// The port.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// The next connection; waits for it. What the guest connected before the VM's end is still there afterwards, with all that
    /// it sent.
    ///
    /// # Errors
    /// [`io::ErrorKind::BrokenPipe`] when the VM has ended, and no connection waits.
    pub fn accept(&self) -> io::Result<VsockStream> {
        self.accept_until(None)
    }

    /// The next connection, if there is one within `timeout`.
    ///
    /// # Errors
    /// The same, and [`io::ErrorKind::TimedOut`].
    pub fn accept_timeout(&self, timeout: Duration) -> io::Result<VsockStream> {
        self.accept_until(Instant::now().checked_add(timeout))
    }

    fn accept_until(&self, end: Option<Instant>) -> io::Result<VsockStream> {
        let mut state = self.shared.state();
        loop {
            let ended_before = state.ended;
            if let Some(backlog) = state.listeners.get_mut(&self.port)
                && let Some(stream) = backlog.waiting.pop_front()
            {
                if backlog.waiting.is_empty() && !ended_before {
                    let _ = self.door.ready.read();
                }
                return Ok(stream);
            }
            if ended_before {
                return Err(ended());
            }
            let arrived = &self.door.arrived;
            state = match end.map(|end| end.saturating_duration_since(Instant::now())) {
                None => arrived.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return Err(io::ErrorKind::TimedOut.into()),
                Some(left) => {
                    let waited = arrived.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// All connections, one after the other, to the VM's end.
    pub fn incoming(&self) -> VsockIncoming<'_> {
        VsockIncoming { listener: self }
    }
}

impl AsFd for VsockListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the event is open for as long as the listener, which is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.door.ready.as_raw_fd()) }
    }
}

impl Drop for VsockListener {
    fn drop(&mut self) {
        self.shared.state().listeners.remove(&self.port);
    }
}

/// The connections that come to a [`VsockListener`], to the VM's end.
#[derive(Debug)]
pub struct VsockIncoming<'a> {
    listener: &'a VsockListener,
}

impl Iterator for VsockIncoming<'_> {
    type Item = VsockStream;

    fn next(&mut self) -> Option<VsockStream> {
        // The only error is the end.
        self.listener.accept().ok()
    }
}
