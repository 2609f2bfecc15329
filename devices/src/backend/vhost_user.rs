//! vhost-user: another process moves the data of a device, in the guest's memory itself, over a Unix socket that sets it up.
//!
//! Connected before the guest runs; the memory goes to the other process then. What follows is a few short messages that need no
//! answer, but for the one by which a queue comes back: that is waited for, for [`PATIENCE`] at most. Who does not answer, or
//! closes the connection, is gone for good. The other process is trusted as much as the one that started it: it has all of the
//! guest's memory.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use thiserror::Error;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{
    Frontend, VhostUserFrontend, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use crate::virtio::device::GuestMemory;
use crate::virtio::queue::ActiveQueue;

/// How long the other process may take to answer. It ends what it is doing first, on whatever its files are.
pub const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 10 });

/// Why another process cannot be a device's back end.
#[derive(Debug, Error)]
pub enum VhostUserError {
    /// Nobody is there.
    #[error("cannot connect to the vhost-user socket \"{}\"", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The guest's memory is this process's own.
    #[error("the guest's memory is not shared")]
    PrivateMemory,
    /// It does not do what is wanted, or not in time.
    #[error("cannot set up the vhost-user back end")]
    SetUp(#[source] io::Error),
    /// It is too old, or something else.
    #[error("the vhost-user back end lacks the features {missing:#x}")]
    Features {
        /// Their bits.
        missing: u64,
    },
    /// It is a back end of another device.
    #[error("the vhost-user back end has {there} queues, not {wanted}")]
    Queues {
        /// How many it has.
        there: u64,
        /// How many the device has.
        wanted: u64,
    },
}

impl VhostUserError {
    /// What a person can do about it.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Connect { source, .. } => match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Some(
                    "start the back end first: it listens there, and serves one VM at a time"
                        .into(),
                ),
                io::ErrorKind::PermissionDenied => {
                    Some("give this user write access to the socket".into())
                }
                _ => None,
            },
            Self::PrivateMemory => Some("use --memory-backing shared".into()),
            Self::Features { .. } | Self::Queues { .. } => {
                Some("see that it is a back end of this kind of device, and a recent one".into())
            }
            Self::SetUp(_) => None,
        }
    }
}

/// Another process that is the data half of a device.
pub struct VhostUser {
    frontend: Frontend,
    /// The same connection, for what wants a deadline.
    socket: UnixStream,
    memory: GuestMemory,
    /// Rung when the driver has broken a queue.
    errors: EventFd,
    gone: AtomicBool,
}

impl VhostUser {
    /// Connects to the socket at which it listens; see [`Self::open`].
    ///
    /// # Errors
    /// [`VhostUserError`].
    pub fn connect(
        path: &Path,
        memory: GuestMemory,
        queues: u16,
        needed: u64,
    ) -> Result<Self, VhostUserError> {
        let socket = UnixStream::connect(path).map_err(|source| VhostUserError::Connect {
            path: path.to_owned(),
            source,
        })?;
        Self::open(socket, memory, queues, needed)
    }

    /// Sets it up for a guest with this memory, and a device with so many queues. `needed` are features of the device that it
    /// must have. Waits for its answers, for [`PATIENCE`] at most.
    ///
    /// # Errors
    /// [`VhostUserError`].
    pub fn open(
        socket: UnixStream,
        memory: GuestMemory,
        queues: u16,
        needed: u64,
    ) -> Result<Self, VhostUserError> {
        let own = socket.try_clone().map_err(VhostUserError::SetUp)?;
        let frontend = Frontend::from_stream(socket, queues.into());
        let regions = memory
            .iter()
            .map(VhostUserMemoryRegionInfo::from_guest_region)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| VhostUserError::PrivateMemory)?;
        within(&own, || greet(&frontend, &regions, queues, needed))?;
        own.set_read_timeout(Some(PATIENCE))
            .map_err(VhostUserError::SetUp)?;
        let errors = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        Ok(Self {
            frontend,
            socket: own,
            memory,
            errors: errors.map_err(VhostUserError::SetUp)?,
            gone: AtomicBool::new(false),
        })
    }

    /// Readable, or hung up, when it has closed the connection; valid for as long as this lives.
    pub fn connection(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Becomes readable when it has met an error of the driver's; valid for as long as this lives.
    pub fn errors(&self) -> RawFd {
        self.errors.as_raw_fd()
    }

    /// How many errors there were since the last time.
    pub fn take_errors(&self) -> u64 {
        self.errors.read().unwrap_or_default()
    }

    /// Whether it is still there. Unasked, it has nothing to say: one that does is not.
    pub fn is_there(&self) -> bool {
        if self.gone.load(Ordering::Acquire) {
            return false;
        }
        let mut byte = 0_u8;
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: the buffer is one byte, which is borrowed for the call.
        let count =
            unsafe { libc::recv(self.socket.as_raw_fd(), (&raw mut byte).cast(), 1, flags) };
        let there = count < 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock;
        if !there {
            self.give_up();
        }
        there
    }

    /// Has nothing more to do with it. It sees the end of its connection.
    pub fn give_up(&self) {
        self.gone.store(true, Ordering::Release);
        // Of a connection that is closed already there is nothing to close.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// What the driver accepted, before queues are given.
    ///
    /// # Errors
    /// It is gone.
    pub fn set_features(&self, accepted: u64) -> io::Result<()> {
        // Of an earlier driver.
        self.take_errors();
        let own = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        self.frontend.set_features(accepted | own).map_err(to_io)
    }

    /// Gives it a queue, on which it works at once. Its interrupt is `call`.
    ///
    /// # Errors
    /// It is gone.
    pub fn give(&self, queue: &ActiveQueue, call: &EventFd) -> io::Result<()> {
        let (ring, index) = (queue.ring(), usize::from(queue.index()));
        let place = VringConfigData {
            queue_max_size: ring.max_size(),
            queue_size: ring.size(),
            flags: 0,
            desc_table_addr: self.host_address(ring.desc_table())?,
            used_ring_addr: self.host_address(ring.used_ring())?,
            avail_ring_addr: self.host_address(ring.avail_ring())?,
            log_addr: None,
        };
        let frontend = &self.frontend;
        frontend
            .set_vring_num(index, ring.size())
            .and_then(|()| frontend.set_vring_addr(index, &place))
            .and_then(|()| frontend.set_vring_base(index, ring.next_avail()))
            .and_then(|()| frontend.set_vring_err(index, &self.errors))
            .and_then(|()| frontend.set_vring_call(index, call))
            .and_then(|()| frontend.set_vring_kick(index, queue.notification().event()))
            .and_then(|()| frontend.clone().set_vring_enable(index, true))
            .map_err(to_io)
    }

    /// It knows memory by the addresses that it has in this process.
    fn host_address(&self, guest: u64) -> io::Result<u64> {
        let address = self.memory.get_host_address(GuestAddress(guest));
        address
            .map(|address| address as u64)
            .map_err(io::Error::other)
    }

    /// Takes a queue back: it ends what it does with it, and touches it no more.
    ///
    /// # Errors
    /// It is gone, or does not answer in time, and is gone from now on.
    pub fn take_back(&self, queue: &mut ActiveQueue) -> io::Result<()> {
        let base = self.ask_base(queue.index().into());
        match base {
            // The index is of 16 bits, as the ring's is.
            Ok(base) => queue.taken_back_at(base as u16),
            Err(_) => self.give_up(),
        }
        base.map(|_| ())
    }

    /// VHOST_USER_GET_VRING_BASE, here and not in the front end, which would wait for ever.
    fn ask_base(&self, index: u32) -> io::Result<u32> {
        const GET_VRING_BASE: u32 = 11;
        const VERSION: u32 = 1;
        const REPLY: u32 = 1 << 2;
        const PAYLOAD: u32 = 8;
        // Numbers are the host's own.
        let words = |words: [u32; 5]| words.map(u32::to_ne_bytes).concat();
        let question = words([GET_VRING_BASE, VERSION, PAYLOAD, index, 0]);
        // SAFETY: pointer and length are those of a slice that is borrowed for the call.
        let sent = unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                question.as_ptr().cast(),
                question.len(),
                libc::MSG_NOSIGNAL,
            )
        };
        match usize::try_from(sent) {
            Ok(count) if count == question.len() => {}
            Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
            Err(_) => return Err(io::Error::last_os_error()),
        }
        let mut answer = [0; 20];
        (&self.socket)
            .read_exact(&mut answer)
            .map_err(|err| match err.kind() {
                io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
                _ => err,
            })?;
        let (head, base) = answer.split_at(16);
        if head != &words([GET_VRING_BASE, VERSION | REPLY, PAYLOAD, index, 0])[..16] {
            return Err(io::Error::other("it does not keep to the protocol"));
        }
        let base = base.first_chunk().copied().unwrap_or_default();
        Ok(u32::from_ne_bytes(base))
    }
}

/// All that does not depend on the driver.
fn greet(
    frontend: &Frontend,
    regions: &[VhostUserMemoryRegionInfo],
    queues: u16,
    needed: u64,
) -> Result<(), VhostUserError> {
    let failed = |err| VhostUserError::SetUp(to_io(err));
    let mut frontend = frontend.clone();
    frontend.set_owner().map_err(failed)?;
    let needed = needed | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    let missing = needed & !frontend.get_features().map_err(failed)?;
    if missing != 0 {
        return Err(VhostUserError::Features { missing });
    }
    let wanted = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
    let protocol = wanted & frontend.get_protocol_features().map_err(failed)?;
    frontend.set_protocol_features(protocol).map_err(failed)?;
    if protocol.contains(VhostUserProtocolFeatures::MQ) {
        let (there, wanted) = (frontend.get_queue_num().map_err(failed)?, queues.into());
        if there < wanted {
            return Err(VhostUserError::Queues { there, wanted });
        }
    }
    // That it cannot map the memory it would not say otherwise.
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let mapped = frontend.set_mem_table(regions);
    frontend.set_hdr_flags(VhostUserHeaderFlag::empty());
    mapped.map(|_| ()).map_err(failed)
}

/// Does what waits for answers, and ends the connection when they do not come in time.
fn within<T>(socket: &UnixStream, work: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        let (done, wait) = mpsc::channel::<()>();
        scope.spawn(move || {
            if wait.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                // The wait ends as if the other process had closed it.
                let _ = socket.shutdown(Shutdown::Both);
            }
        });
        let result = work();
        drop(done);
        result
    })
}

fn to_io(err: vhost::Error) -> io::Error {
    use vhost::vhost_user::Error as Protocol;
    match err {
        vhost::Error::VhostUserProtocol(
            Protocol::SocketBroken(source) | Protocol::SocketError(source),
        ) => source,
        vhost::Error::VhostUserProtocol(Protocol::Disconnected | Protocol::PartialMessage) => {
            io::ErrorKind::ConnectionReset.into()
        }
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_person_can_mend_has_a_remedy() {
        let connect = |code| VhostUserError::Connect {
            path: "/s".into(),
            source: io::Error::from_raw_os_error(code),
        };
        let missing = connect(libc::ENOENT).remedy().unwrap();
        assert!(missing.contains("start the back end"), "{missing}");
        assert!(connect(libc::EACCES).remedy().unwrap().contains("access"));
        let private = VhostUserError::PrivateMemory.remedy().unwrap();
        assert!(private.contains("--memory-backing shared"), "{private}");
    }
}
