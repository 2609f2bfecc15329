//! TAP interfaces: Ethernet frames to and from the host's network, each behind a `virtio_net_hdr_v1` of 12 bytes.
//!
//! The interface is one that exists, or is created and goes with the VM, or comes as a descriptor that somebody else
//! opened. Frames move straight between it and the buffers given; nothing here waits.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;
use vm_memory::VolatileSlice;

use super::net::{HEADER_SIZE, NetBackend, Offloads, with_iovecs};

/// The longest name of an interface (IFNAMSIZ without its final NUL).
pub const MAX_NAME: usize = libc::IFNAMSIZ - 1;

const TUN: &str = "/dev/net/tun";

/// Why a tap cannot be used.
#[derive(Debug, Error)]
pub enum TapError {
    /// The host has no taps for us.
    #[error("cannot open {TUN} for tap \"{name}\"")]
    Device {
        /// The interface.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The name is none.
    #[error("\"{name}\" is not the name of an interface: it has 1 to {MAX_NAME} bytes")]
    Name {
        /// The name.
        name: String,
    },
    /// The interface cannot be opened or created.
    #[error("cannot open tap \"{name}\"")]
    Attach {
        /// The interface.
        name: String,
        /// Whether for several queues.
        several: bool,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The descriptor is not open, or is no tap.
    #[error("descriptor {fd} is not a tap")]
    NotATap {
        /// The descriptor.
        fd: RawFd,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The descriptor is a tap that was opened in another way.
    #[error("descriptor {fd} was opened without {flag}")]
    Flags {
        /// The descriptor.
        fd: RawFd,
        /// What is missing.
        flag: &'static str,
    },
    /// A setting was refused.
    #[error("cannot set up tap \"{name}\"")]
    SetUp {
        /// The interface.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl TapError {
    /// What a person can do about it.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Device { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Some("load the driver: modprobe tun".into()),
                io::ErrorKind::PermissionDenied => {
                    Some(format!("give this user read and write access to {TUN}"))
                }
                _ => None,
            },
            Self::Attach {
                name,
                several,
                source,
            } => match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => Some(format!(
                    "create it for this user as root: ip tuntap add dev {name} mode tap{} user $USER && \
                     ip link set {name} up; or run ampoule with CAP_NET_ADMIN",
                    if *several { " multi_queue" } else { "" }
                )),
                Some(libc::E2BIG) => Some(format!("tap {name} has no more queues to give: lower queues=N")),
                Some(libc::EINVAL) if *several => Some(format!(
                    "{name} is no tap, or one for a single queue: ip tuntap add dev {name} mode tap multi_queue; or leave out \
                     queues=N"
                )),
                Some(libc::EBUSY) => Some("another process has it: a tap is for one VM".into()),
                Some(libc::EINVAL) => Some(format!(
                    "an interface of this name is no tap: see ip -details link show {name}"
                )),
                _ => None,
            },
            Self::NotATap { .. } | Self::Flags { .. } => Some(
                "open it with TUNSETIFF and IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, and let ampoule inherit it"
                    .into(),
            ),
            Self::Name { .. } | Self::SetUp { .. } => None,
        }
    }
}

/// A TAP interface.
#[derive(Debug)]
pub struct Tap {
    file: File,
    /// For messages.
    name: String,
    offloads: Offloads,
    /// Whether it has a share of the frames.
    enabled: AtomicBool,
}

impl Tap {
    /// Opens the interface of this name, as often as it is to have queues. Where there is none, creates one, which goes when all
    /// are dropped. Of several queues, the first is enabled.
    ///
    /// # Errors
    /// [`TapError`], naming it.
    pub fn open(name: &str, queues: u16) -> Result<Vec<Self>, TapError> {
        let several = queues > 1;
        (0..queues)
            .map(|index| {
                let tap = Self::open_one(name, several)?;
                if index > 0 {
                    let failed = |source| TapError::SetUp {
                        name: name.to_owned(),
                        source,
                    };
                    tap.set_enabled(false).map_err(failed)?;
                }
                Ok(tap)
            })
            .collect()
    }

    fn open_one(name: &str, several: bool) -> Result<Self, TapError> {
        let owned = || name.to_owned();
        let mut request =
            interface_request(name).ok_or_else(|| TapError::Name { name: owned() })?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(TUN)
            .map_err(|source| TapError::Device {
                name: owned(),
                source,
            })?;
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let mut attach = |flags: i32| {
            request.ifr_ifru.ifru_flags = flags as libc::c_short;
            // SAFETY: the request is a valid `ifreq`, which lives through the call and is read and written by it.
            result(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
        };
        let attached = if several {
            attach(flags | libc::IFF_MULTI_QUEUE)
        } else {
            match attach(flags) {
                // One that was made for several queues is opened as such.
                Err(err) if err.raw_os_error() == Some(libc::EINVAL) => {
                    attach(flags | libc::IFF_MULTI_QUEUE).map_err(|_| err)
                }
                other => other,
            }
        };
        attached.map_err(|source| TapError::Attach {
            name: owned(),
            several,
            source,
        })?;
        Self::set_up(file, name)
    }

    /// Uses a tap that another process opened. `fd` stays open and the caller's.
    ///
    /// # Errors
    /// [`TapError`], naming the descriptor.
    pub fn inherit(fd: RawFd) -> Result<Self, TapError> {
        let not_a_tap = |source| TapError::NotATap { fd, source };
        // SAFETY: takes no pointer; the kernel refuses what is not open.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
        result(copy).map_err(not_a_tap)?;
        // SAFETY: the call returned a new descriptor, which nobody else has.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(copy) });
        // Only a tap knows this request. It is asked before anything of the descriptor is changed.
        // SAFETY: `ifreq` is plain data, for which zeroes are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: the request lives through the call, which writes it.
        result(unsafe { libc::ioctl(copy, libc::TUNGETIFF, &raw mut request) })
            .map_err(not_a_tap)?;
        // SAFETY: the call succeeded, and this is the field that it wrote.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        for (flag, name) in [
            (libc::IFF_TAP, "IFF_TAP"),
            (libc::IFF_NO_PI, "IFF_NO_PI"),
            (libc::IFF_VNET_HDR, "IFF_VNET_HDR"),
        ] {
            if flags & flag == 0 {
                return Err(TapError::Flags { fd, flag: name });
            }
        }
        let name = interface_name(&request);
        // SAFETY: takes no pointer.
        let status = unsafe { libc::fcntl(copy, libc::F_GETFL) } | libc::O_NONBLOCK;
        // SAFETY: takes no pointer.
        result(unsafe { libc::fcntl(copy, libc::F_SETFL, status) }).map_err(|source| {
            TapError::SetUp {
                name: name.clone(),
                source,
            }
        })?;
        Self::set_up(file, &name)
    }

    fn set_up(file: File, name: &str) -> Result<Self, TapError> {
        let failed = |source| TapError::SetUp {
            name: name.to_owned(),
            source,
        };
        let size = HEADER_SIZE as libc::c_int;
        // SAFETY: the pointer is to an int, which is only read.
        result(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })
            .map_err(failed)?;
        let mut tap = Self {
            file,
            name: name.to_owned(),
            offloads: Offloads::default(),
            enabled: AtomicBool::new(true),
        };
        let most = Offloads {
            csum: true,
            tso4: true,
            tso6: true,
            ufo: true,
        };
        let without_ufo = Offloads { ufo: false, ..most };
        // What a kernel does not know it refuses.
        tap.offloads = [most, without_ufo]
            .into_iter()
            .find(|offloads| tap.set_offloads(*offloads).is_ok())
            .unwrap_or_default();
        // Until a driver says what it takes, frames are to be complete.
        tap.set_offloads(Offloads::default()).map_err(failed)?;
        Ok(tap)
    }

    /// The descriptor, for a kernel that moves its frames.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What a tap's errors mean, where the host's own words for them do not tell.
    fn explain(&self, err: io::Error) -> io::Error {
        let name = &self.name;
        match err.raw_os_error() {
            Some(libc::EIO) => {
                io::Error::other(format!("tap {name} is down: ip link set {name} up"))
            }
            Some(libc::EBADFD) => io::Error::other(format!("tap {name} is gone")),
            _ => err,
        }
    }

    fn transfer(
        &self,
        slices: &[VolatileSlice<'_>],
        call: unsafe extern "C" fn(i32, *const libc::iovec, i32) -> isize,
    ) -> io::Result<usize> {
        with_iovecs(slices, |pieces| {
            loop {
                // SAFETY: each piece is memory that `slices` borrows for the time of the call. A guest may change its own
                // meanwhile: no reference to it exists here.
                let moved =
                    unsafe { call(self.file.as_raw_fd(), pieces.as_ptr(), pieces.len() as i32) };
                let Ok(moved) = usize::try_from(moved) else {
                    let err = io::Error::last_os_error();
                    if err.kind() == io::ErrorKind::Interrupted {
                        continue;
                    }
                    return Err(err);
                };
                return Ok(moved);
            }
        })
    }
}

impl NetBackend for Tap {
    fn send(&self, packet: &[VolatileSlice<'_>]) -> io::Result<()> {
        // A frame is taken whole or not at all.
        self.transfer(packet, libc::writev)
            .map(drop)
            .map_err(|err| self.explain(err))
    }

    fn receive(&self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.transfer(room, libc::readv)
            .map_err(|err| self.explain(err))
    }

    fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn takes(&self) -> Offloads {
        Offloads {
            csum: true,
            tso4: true,
            tso6: true,
            ufo: self.offloads.ufo,
        }
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let mut bits = 0;
        for (wanted, bit) in [
            (offloads.csum, libc::TUN_F_CSUM),
            (offloads.tso4, libc::TUN_F_TSO4),
            (offloads.tso6, libc::TUN_F_TSO6),
            (offloads.ufo, libc::TUN_F_UFO),
        ] {
            if wanted {
                bits |= bit;
            }
        }
        let bits = libc::c_ulong::from(bits);
        // SAFETY: the argument is a number, not a pointer.
        result(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, bits) })
    }

    fn set_enabled(&self, enabled: bool) -> io::Result<()> {
        if self.enabled.swap(enabled, Ordering::Relaxed) == enabled {
            return Ok(());
        }
        // SAFETY: `ifreq` is plain data, for which zeroes are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let flag = if enabled {
            libc::IFF_ATTACH_QUEUE
        } else {
            libc::IFF_DETACH_QUEUE
        };
        request.ifr_ifru.ifru_flags = flag as libc::c_short;
        // SAFETY: the request is a valid `ifreq`, which lives through the call and is read by it.
        result(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })
            .inspect_err(|_| self.enabled.store(!enabled, Ordering::Relaxed))
    }
}

fn interface_request(name: &str) -> Option<libc::ifreq> {
    if name.is_empty() || name.len() > MAX_NAME || name.contains('\0') {
        return None;
    }
    // SAFETY: `ifreq` is plain data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Some(request)
}

fn interface_name(request: &libc::ifreq) -> String {
    let bytes = request.ifr_name.iter().map(|byte| *byte as u8);
    let name: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&name).into_owned()
}

fn result(code: libc::c_int) -> io::Result<()> {
    match code {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_tap_is_refused_and_stays_as_it_was() {
        let (reader, _writer) = io::pipe().unwrap();
        let fd = reader.as_raw_fd();
        let err = Tap::inherit(fd).unwrap_err();
        assert_eq!(err.to_string(), format!("descriptor {fd} is not a tap"));
        assert!(err.remedy().unwrap().contains("IFF_VNET_HDR"));
        // SAFETY: takes no pointer.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
        assert_eq!(flags & libc::O_NONBLOCK, 0);
        assert!(Tap::inherit(-1).is_err());
    }

    #[test]
    fn a_name_that_is_none_is_refused_before_the_host_is_asked() {
        for name in ["", "sixteen-bytes-xx", "a\0b"] {
            let err = Tap::open(name, 1).unwrap_err();
            assert!(matches!(err, TapError::Name { .. }), "{err}");
        }
        let longest = interface_request("fifteen-bytes-x").unwrap();
        assert_eq!(interface_name(&longest), "fifteen-bytes-x");
    }

    #[test]
    fn every_refusal_of_the_host_has_a_remedy() {
        let attach = |code| {
            TapError::Attach {
                name: "tap7".into(),
                several: false,
                source: io::Error::from_raw_os_error(code),
            }
            .remedy()
        };
        let text = attach(libc::EPERM).unwrap();
        assert!(text.contains("ip tuntap add dev tap7 mode tap"), "{text}");
        assert!(text.contains("CAP_NET_ADMIN"), "{text}");
        assert!(attach(libc::EBUSY).unwrap().contains("another process"));
        assert!(attach(libc::EINVAL).unwrap().contains("no tap"));
    }
}
