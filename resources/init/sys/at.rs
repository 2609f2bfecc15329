//! Files below open folders: the guest's side of what is copied. It may do everything, and its host is trusted.

use alloc::vec::Vec;
use core::ffi::CStr;

use super::{
    CLOSE_ON_EXEC, CREATE, Errno, Fd, NO_FOLLOW, NO_TERMINAL, PATH, READ, Result, WRITE, call,
};
use crate::files;
use crate::tree::{Files, Kind, Status, Time};

const FOLDER: u32 = 0o20_0000;
const NONBLOCKING: u32 = 0o4000;
const NEW: u32 = 0o200;

/// No folder: what the path itself says.
const HERE: isize = -100;
/// The link itself.
const THIS: u32 = 0x100;
/// The descriptor, where the name is empty.
const EMPTY: u32 = 0x1000;

/// The file system of the guest.
pub(crate) struct Guest;

fn text(name: &[u8]) -> Result<alloc::ffi::CString> {
    files::path(&[name])
}

fn open(at: isize, name: &[u8], flags: u32, mode: u32) -> Result<Fd> {
    let name = text(name)?;
    call!(257, at, name.as_ptr(), flags | CLOSE_ON_EXEC, mode).map(Fd::new)
}

/// As the kernel has it in `struct stat`.
fn status(at: isize, name: &CStr, flags: u32) -> Result<Status> {
    let mut words = [0u64; 18];
    call!(262, at, name.as_ptr(), words.as_mut_ptr(), flags)?;
    let [device, inode, names, mode, ..] = words;
    let mode = mode as u32;
    Ok(Status {
        kind: match mode & 0o17_0000 {
            0o04_0000 => Kind::Folder,
            0o10_0000 => Kind::File,
            0o12_0000 => Kind::Link,
            _ => Kind::Other,
        },
        mode: mode & 0o7777,
        time: Time {
            seconds: words[11] as i64,
            nanoseconds: words[12] as u32,
        },
        names,
        device,
        inode,
    })
}

/// The time of the last access, which is left alone, and that of the last change.
fn times(time: Time) -> [i64; 4] {
    const OMIT: i64 = 0x3fff_fffe;
    [0, OMIT, time.seconds, time.nanoseconds.into()]
}

impl Files for Guest {
    type Fd = Fd;
    type Error = Errno;

    fn is_absent(error: &Errno) -> bool {
        *error == Errno::NOENT
    }

    fn open_path(&self, path: &[u8]) -> Result<Fd> {
        open(HERE, path, PATH | FOLDER, 0)
    }

    fn make_path(&self, path: &[u8]) -> Result<()> {
        files::make_folders(&text(path)?)
    }

    fn open_folder(&self, at: &Fd, name: &[u8]) -> Result<Fd> {
        open(at.0 as isize, name, READ | FOLDER | NO_FOLLOW, 0)
    }

    fn open_file(&self, at: &Fd, name: &[u8]) -> Result<Fd> {
        let flags = READ | NO_FOLLOW | NONBLOCKING | NO_TERMINAL;
        open(at.0 as isize, name, flags, 0)
    }

    fn make_file(&self, at: &Fd, name: &[u8]) -> Result<Fd> {
        let flags = WRITE | CREATE | NEW | NO_FOLLOW;
        open(at.0 as isize, name, flags, 0o600)
    }

    fn make_folder(&self, at: &Fd, name: &[u8]) -> Result<()> {
        let name = text(name)?;
        call!(258, at.0, name.as_ptr(), 0o700).map(drop)
    }

    fn make_link(&self, at: &Fd, name: &[u8], target: &[u8]) -> Result<()> {
        let (name, target) = (text(name)?, text(target)?);
        call!(266, target.as_ptr(), at.0, name.as_ptr()).map(drop)
    }

    fn add_name(&self, at: &Fd, name: &[u8], new_at: &Fd, new: &[u8]) -> Result<()> {
        let (name, new) = (text(name)?, text(new)?);
        call!(265, at.0, name.as_ptr(), new_at.0, new.as_ptr(), 0).map(drop)
    }

    fn rename(&self, at: &Fd, from: &[u8], to: &[u8]) -> Result<()> {
        let (from, to) = (text(from)?, text(to)?);
        call!(264, at.0, from.as_ptr(), at.0, to.as_ptr()).map(drop)
    }

    fn remove(&self, at: &Fd, name: &[u8]) -> Result<()> {
        let name = text(name)?;
        call!(263, at.0, name.as_ptr(), 0).map(drop)
    }

    fn status(&self, at: &Fd, name: &[u8]) -> Result<Status> {
        status(at.0 as isize, &text(name)?, THIS)
    }

    fn status_of(&self, fd: &Fd) -> Result<Status> {
        status(fd.0 as isize, c"", EMPTY)
    }

    fn names(&self, folder: &Fd) -> Result<Vec<Vec<u8>>> {
        super::names(folder)
    }

    fn target(&self, at: &Fd, name: &[u8]) -> Result<Vec<u8>> {
        let name = text(name)?;
        let mut target = alloc::vec![0; 4096];
        let (to, size) = (target.as_mut_ptr(), target.len());
        let length = call!(267, at.0, name.as_ptr(), to, size)?;
        target.truncate(length);
        Ok(target)
    }

    fn read(&self, file: &Fd, buffer: &mut [u8]) -> Result<usize> {
        file.read(buffer)
    }

    fn write(&self, file: &Fd, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let count = file.write(bytes)?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    fn set_mode(&self, fd: &Fd, mode: u32) -> Result<()> {
        call!(91, fd.0, mode).map(drop)
    }

    fn set_time(&self, fd: &Fd, time: Time) -> Result<()> {
        let times = times(time);
        call!(280, fd.0, 0, times.as_ptr(), 0).map(drop)
    }

    fn set_time_of_link(&self, at: &Fd, name: &[u8], time: Time) -> Result<()> {
        let (name, times) = (text(name)?, times(time));
        call!(280, at.0, name.as_ptr(), times.as_ptr(), THIS).map(drop)
    }
}
