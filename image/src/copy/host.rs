//! Files below open folders: the host's side.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{
    self, AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT,
};
use rustix::io::Errno;

use crate::tree::{Files, Kind, Status, Time};

/// The file system of the host, as the user may use it.
#[derive(Debug)]
pub(crate) struct Host;

/// What it says of a failure: the end of a sentence.
#[derive(Debug)]
pub(crate) struct HostError(Errno);

impl From<Errno> for HostError {
    fn from(errno: Errno) -> Self {
        Self(errno)
    }
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            // Of a name that is opened without following links.
            Errno::LOOP => return f.write_str("it is a symbolic link"),
            Errno::NOTDIR => return f.write_str("it is no folder"),
            _ => {}
        }
        let text = io::Error::from(self.0).to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        let mut chars = text.chars();
        match chars.next() {
            Some(first) => write!(f, "{}{}", first.to_lowercase(), chars.as_str()),
            None => Ok(()),
        }
    }
}

type Result<T> = std::result::Result<T, HostError>;

const FOLDER: OFlags = OFlags::DIRECTORY
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOFOLLOW);

fn status(it: &Stat) -> Status {
    Status {
        kind: match FileType::from_raw_mode(it.st_mode) {
            FileType::Directory => Kind::Folder,
            FileType::RegularFile => Kind::File,
            FileType::Symlink => Kind::Link,
            _ => Kind::Other,
        },
        mode: it.st_mode & 0o7777,
        time: Time {
            seconds: it.st_mtime,
            nanoseconds: it.st_mtime_nsec as u32,
        },
        names: it.st_nlink,
        device: it.st_dev,
        inode: it.st_ino,
    }
}

/// The time of the last access is left alone.
fn times(time: Time) -> Timestamps {
    let spec = |seconds, nanoseconds| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    Timestamps {
        last_access: spec(0, UTIME_OMIT),
        last_modification: spec(time.seconds, time.nanoseconds.into()),
    }
}

impl Files for Host {
    type Fd = OwnedFd;
    type Error = HostError;

    fn is_absent(error: &HostError) -> bool {
        error.0 == Errno::NOENT
    }

    fn open_path(&self, path: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(fs::openat(CWD, path, flags, Mode::empty())?)
    }

    fn make_path(&self, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn open_folder(&self, at: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
        Ok(fs::openat(at, name, FOLDER, Mode::empty())?)
    }

    fn open_file(&self, at: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
        // A pipe that is in its place by now is not waited for.
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        Ok(fs::openat(at, name, flags, Mode::empty())?)
    }

    fn make_file(&self, at: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(fs::openat(at, name, flags, Mode::from(0o600))?)
    }

    fn make_folder(&self, at: &OwnedFd, name: &[u8]) -> Result<()> {
        Ok(fs::mkdirat(at, name, Mode::from(0o700))?)
    }

    fn make_link(&self, at: &OwnedFd, name: &[u8], target: &[u8]) -> Result<()> {
        Ok(fs::symlinkat(target, at, name)?)
    }

    fn add_name(&self, at: &OwnedFd, name: &[u8], new_at: &OwnedFd, new: &[u8]) -> Result<()> {
        Ok(fs::linkat(at, name, new_at, new, AtFlags::empty())?)
    }

    fn rename(&self, at: &OwnedFd, from: &[u8], to: &[u8]) -> Result<()> {
        Ok(fs::renameat(at, from, at, to)?)
    }

    fn remove(&self, at: &OwnedFd, name: &[u8]) -> Result<()> {
        Ok(fs::unlinkat(at, name, AtFlags::empty())?)
    }

    fn status(&self, at: &OwnedFd, name: &[u8]) -> Result<Status> {
        Ok(status(&fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?))
    }

    fn status_of(&self, fd: &OwnedFd) -> Result<Status> {
        Ok(status(&fs::fstat(fd)?))
    }

    fn names(&self, folder: &OwnedFd) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(folder)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn target(&self, at: &OwnedFd, name: &[u8]) -> Result<Vec<u8>> {
        Ok(fs::readlinkat(at, name, Vec::new())?.into_bytes())
    }

    fn read(&self, file: &OwnedFd, buffer: &mut [u8]) -> Result<usize> {
        loop {
            match rustix::io::read(file, &mut *buffer) {
                Err(Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    fn write(&self, file: &OwnedFd, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match rustix::io::write(file, bytes) {
                Err(Errno::INTR) => {}
                other => bytes = &bytes[other?..],
            }
        }
        Ok(())
    }

    fn set_mode(&self, fd: &OwnedFd, mode: u32) -> Result<()> {
        Ok(fs::fchmod(fd, Mode::from(mode))?)
    }

    fn set_time(&self, fd: &OwnedFd, time: Time) -> Result<()> {
        Ok(fs::futimens(fd, &times(time))?)
    }

    fn set_time_of_link(&self, at: &OwnedFd, name: &[u8], time: Time) -> Result<()> {
        Ok(fs::utimensat(
            at,
            name,
            &times(time),
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }
}
