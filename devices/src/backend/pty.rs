//! Pseudo-terminals and the sizes of terminals. Reference: pty(7), ioctl_tty(2).

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A pseudo-terminal of our own, raw, whose slave is for a terminal program.
#[derive(Debug)]
pub struct Pty {
    master: File,
    path: PathBuf,
    /// Kept open: without anybody at the other end the master is always readable, and reading fails.
    _slave: File,
}

impl Pty {
    /// A new one.
    ///
    /// # Errors
    /// The host has none left, or no /dev/pts.
    pub fn open() -> io::Result<Self> {
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: the call takes no pointer.
        let master = unsafe { libc::posix_openpt(flags) };
        if master < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just created and is owned by nobody else.
        let master = unsafe { File::from_raw_fd(master) };
        let path = slave_path(&master)?;
        let slave = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC)
            .open(&path)?;
        make_raw(&slave)?;
        Ok(Self {
            master,
            path,
            _slave: slave,
        })
    }

    /// Our end. It does not block.
    pub fn master(&self) -> &File {
        &self.master
    }

    /// Where the other end is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes the other end one that can be opened.
fn slave_path(master: &File) -> io::Result<PathBuf> {
    let fd = master.as_raw_fd();
    let mut name: [libc::c_char; 64] = [0; 64];
    // SAFETY: `fd` is a pseudo-terminal's; the name is written to `name`, whose length is given.
    let ready = unsafe {
        libc::grantpt(fd) == 0
            && libc::unlockpt(fd) == 0
            && libc::ptsname_r(fd, name.as_mut_ptr(), name.len()) == 0
    };
    if !ready {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the name ends with a zero within the array, as the call succeeded.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    Ok(PathBuf::from(OsStr::from_bytes(name.to_bytes())))
}

/// A guest has a line discipline of its own: what it prints and is sent passes as it is.
fn make_raw(terminal: &File) -> io::Result<()> {
    let mut settings = MaybeUninit::<libc::termios>::uninit();
    let fd = terminal.as_raw_fd();
    // SAFETY: the first call fills the settings when it succeeds; only then are they changed and read.
    let done = unsafe {
        libc::tcgetattr(fd, settings.as_mut_ptr()) == 0 && {
            libc::cfmakeraw(settings.as_mut_ptr());
            libc::tcsetattr(fd, libc::TCSANOW, settings.as_ptr()) == 0
        }
    };
    match done {
        true => Ok(()),
        false => Err(io::Error::last_os_error()),
    }
}

/// The size of a terminal, columns and rows; none where it is no terminal, or does not know.
pub fn size(terminal: BorrowedFd<'_>) -> Option<(u16, u16)> {
    let mut size = MaybeUninit::<libc::winsize>::zeroed();
    // SAFETY: the call writes one `winsize`; one of zeroes is valid where it fails.
    let (known, size) = unsafe {
        let result = libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, size.as_mut_ptr());
        (result == 0, size.assume_init())
    };
    let size = (size.ws_col, size.ws_row);
    (known && size != (0, 0)).then_some(size)
}
