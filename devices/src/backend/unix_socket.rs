//! Unix stream sockets that never make their thread wait: a listening one with a path, and connections to others.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::{fs, ptr};

use thiserror::Error;

/// The longest path of a socket: `sun_path`, without its final NUL.
pub const MAX_PATH: usize = 107;

/// Why a socket cannot be listened on.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another process listens there.
    #[error("socket \"{}\" is in use by another process", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("\"{}\" is there and not a socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The path does not fit a socket's address.
    #[error("the socket's path \"{}\" has more than {max} bytes", path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
        /// The most that fit.
        max: usize,
    },
    /// The host refuses.
    #[error("cannot listen on socket \"{}\"", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host has nothing to wait for sockets with.
    #[error("cannot wait for sockets")]
    Wait(#[source] io::Error),
}

impl SocketError {
    /// What a person can do about it.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::InUse { .. } => Some("give each VM a socket of its own".into()),
            Self::NotASocket { .. } => Some("remove the file, or name another".into()),
            Self::TooLong { .. } => {
                Some("use a shorter path, for instance one that is relative".into())
            }
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("create the folder first".into())
            }
            Self::Listen { .. } | Self::Wait(_) => None,
        }
    }
}

/// A socket that is listened on. Its file goes when it is dropped.
#[derive(Debug)]
pub struct ListeningSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, so that another's is not removed.
    identity: Option<(u64, u64)>,
}

impl ListeningSocket {
    /// Listens at `path`, of at most `max` bytes. What a killed process left behind there is replaced.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn open(path: &Path, max: usize) -> Result<Self, SocketError> {
        let path = path.to_path_buf();
        if path.as_os_str().len() > max.min(MAX_PATH) {
            return Err(SocketError::TooLong {
                path,
                max: max.min(MAX_PATH),
            });
        }
        let bound = match UnixListener::bind(&path) {
            Err(err) if err.kind() == io::ErrorKind::AddrInUse => {
                make_room(&path)?;
                UnixListener::bind(&path)
            }
            other => other,
        };
        let ready = bound.and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        match ready {
            Ok(listener) => Ok(Self {
                listener,
                identity: identity(&path),
                path,
            }),
            Err(source) => Err(SocketError::Listen { path, source }),
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next client, non-blocking; none where nobody waits.
    ///
    /// # Errors
    /// The host's.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                Ok(Some(stream))
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(err) => Err(err),
        }
    }
}

impl AsRawFd for ListeningSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

impl Drop for ListeningSocket {
    fn drop(&mut self) {
        if self.identity.is_none() || identity(&self.path) != self.identity {
            return;
        }
        if let Err(err) = fs::remove_file(&self.path) {
            let path = self.path.display();
            log::debug!("socket {path} cannot be removed: {err}");
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// Removes a socket that nobody listens on.
fn make_room(path: &Path) -> Result<(), SocketError> {
    let owned = || path.to_path_buf();
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if !is_socket {
        return Err(SocketError::NotASocket { path: owned() });
    }
    match connect(path) {
        Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|source| SocketError::Listen {
                path: owned(),
                source,
            }),
        _ => Err(SocketError::InUse { path: owned() }),
    }
}

/// Connects to a socket. Unlike the standard library's, does not wait for one whose backlog is full: that is an error,
/// `WouldBlock`. The stream does not block either.
///
/// # Errors
/// The host's.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() > MAX_PATH || bytes.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: all zeroes is a value of this plain C struct.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: the address is borrowed for the call, and `len` is its size; its path ends with a NUL, being shorter than
    // the array.
    let outcome = unsafe { libc::connect(socket.as_raw_fd(), ptr::from_ref(&address).cast(), len) };
    if outcome < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_one_in_use_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let socket = ListeningSocket::open(&path, MAX_PATH).unwrap();
        assert!(matches!(
            ListeningSocket::open(&path, MAX_PATH),
            Err(SocketError::InUse { .. })
        ));
        let _client = connect(&path).unwrap();
        // One for the second VM that looked whether it is in use, one for the client.
        assert!(socket.accept().unwrap().is_some());
        assert!(socket.accept().unwrap().is_some());
        assert!(socket.accept().unwrap().is_none());
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            ListeningSocket::open(&path, MAX_PATH),
            Err(SocketError::NotASocket { .. })
        ));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert!(matches!(
            ListeningSocket::open(&path, 3),
            Err(SocketError::TooLong { max: 3, .. })
        ));
    }

    #[test]
    fn another_process_s_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let socket = ListeningSocket::open(&path, MAX_PATH).unwrap();
        // Both at once, so that the inode is not the same again.
        let other = UnixListener::bind(folder.path().join("t")).unwrap();
        fs::rename(folder.path().join("t"), &path).unwrap();
        drop(socket);
        assert!(path.exists());
        drop(other);
    }

    #[test]
    fn a_full_backlog_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let socket = ListeningSocket::open(&path, MAX_PATH).unwrap();
        // SAFETY: takes no pointers; the descriptor is the socket's.
        assert_eq!(unsafe { libc::listen(socket.as_raw_fd(), 0) }, 0);
        let _first = connect(&path).unwrap();
        let err = connect(&path).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::WouldBlock);
    }
}
