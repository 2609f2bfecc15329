//! Trees of files as a stream of bytes, and back: what is copied into a guest and out of it. `docs/run-protocol.md` has the form.
//!
//! Both halves are made of this file, which reaches files by [`Files`] only. A tree is told as it is walked: into a folder and
//! out of it again, with names of one component. No path is ever sent, so that none can lead out of where it belongs; nothing is
//! opened through a symbolic link below that; and what is neither a file, a folder nor a link has no record. Who unpacks believes
//! nothing else: names, lengths, depth, numbers and sums are checked.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

#[path = "tree/pack.rs"]
mod pack;
#[path = "tree/unpack.rs"]
mod unpack;

pub(crate) use pack::Pack;
pub(crate) use unpack::{Limits, Place, Unpack};

/// Folders in each other, each of which is held open: no deeper.
pub(crate) const MAX_DEPTH: usize = 128;

/// A record is at most this long, without its head.
const MAX_RECORD: usize = 40 << 10;

/// As Linux has them.
const MAX_NAME: usize = 255;
const MAX_TARGET: usize = 4095;

/// Texts of the other side beyond these are dropped.
const MAX_NOTES: usize = 64;

/// What something is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Folder,
    File,
    Link,
    /// A device, a pipe, a socket.
    Other,
}

/// When something was changed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// What a file system says of something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Status {
    pub(crate) kind: Kind,
    /// The permissions, without the kind.
    pub(crate) mode: u32,
    pub(crate) time: Time,
    /// How many names it has.
    pub(crate) names: u64,
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// The file system of this side. Names are of one component, and what a name means is never looked for behind a symbolic link.
pub(crate) trait Files {
    type Fd;
    type Error: fmt::Display;

    /// Whether the error says that there is no such thing.
    fn is_absent(error: &Self::Error) -> bool;

    /// A folder by a path, whose links are followed.
    fn open_path(&self, path: &[u8]) -> Result<Self::Fd, Self::Error>;
    /// Makes a folder by its path, and those that it is in, where this side does so.
    fn make_path(&self, path: &[u8]) -> Result<(), Self::Error>;
    fn open_folder(&self, at: &Self::Fd, name: &[u8]) -> Result<Self::Fd, Self::Error>;
    /// To be read.
    fn open_file(&self, at: &Self::Fd, name: &[u8]) -> Result<Self::Fd, Self::Error>;
    /// A new one, for its owner only. An error where there is something.
    fn make_file(&self, at: &Self::Fd, name: &[u8]) -> Result<Self::Fd, Self::Error>;
    /// A new one, for its owner only. An error where there is something.
    fn make_folder(&self, at: &Self::Fd, name: &[u8]) -> Result<(), Self::Error>;
    fn make_link(&self, at: &Self::Fd, name: &[u8], target: &[u8]) -> Result<(), Self::Error>;
    /// Gives a file another name.
    fn add_name(
        &self,
        at: &Self::Fd,
        name: &[u8],
        new_at: &Self::Fd,
        new: &[u8],
    ) -> Result<(), Self::Error>;
    /// In the place of whatever was there, but for a folder.
    fn rename(&self, at: &Self::Fd, from: &[u8], to: &[u8]) -> Result<(), Self::Error>;
    /// Anything but a folder.
    fn remove(&self, at: &Self::Fd, name: &[u8]) -> Result<(), Self::Error>;
    fn status(&self, at: &Self::Fd, name: &[u8]) -> Result<Status, Self::Error>;
    fn status_of(&self, fd: &Self::Fd) -> Result<Status, Self::Error>;
    /// What is in a folder.
    fn names(&self, folder: &Self::Fd) -> Result<Vec<Vec<u8>>, Self::Error>;
    fn target(&self, at: &Self::Fd, name: &[u8]) -> Result<Vec<u8>, Self::Error>;
    fn read(&self, file: &Self::Fd, buffer: &mut [u8]) -> Result<usize, Self::Error>;
    /// All of it.
    fn write(&self, file: &Self::Fd, bytes: &[u8]) -> Result<(), Self::Error>;
    fn set_mode(&self, fd: &Self::Fd, mode: u32) -> Result<(), Self::Error>;
    fn set_time(&self, fd: &Self::Fd, time: Time) -> Result<(), Self::Error>;
    fn set_time_of_link(&self, at: &Self::Fd, name: &[u8], time: Time) -> Result<(), Self::Error>;
}

/// A piece of a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Record<'a> {
    /// The next of what is copied begins: its entry is the one that follows, and has no name.
    Item,
    /// The entries until its `Leave` are in it.
    Folder {
        mode: u32,
        time: Time,
        name: &'a [u8],
    },
    /// Its bytes follow. One that has further names has a number, counted from 0 in its item.
    File {
        mode: u32,
        time: Time,
        has_number: bool,
        name: &'a [u8],
    },
    /// Bytes of the last file.
    Data(&'a [u8]),
    /// A symbolic link.
    Link {
        time: Time,
        name: &'a [u8],
        target: &'a [u8],
    },
    /// A further name of a file.
    Same {
        number: u32,
        name: &'a [u8],
    },
    Leave,
    /// No more can be read of this item, and why: a clause.
    Failed(&'a [u8]),
    /// There is nothing else.
    End,
}

const ITEM: u8 = 1;
const FOLDER: u8 = 2;
const FILE: u8 = 3;
const DATA: u8 = 4;
const LINK: u8 = 5;
const SAME: u8 = 6;
const LEAVE: u8 = 7;
const FAILED: u8 = 8;
const END: u8 = 9;

/// Bytes of a record before its content: kind, length of the content.
const HEAD: usize = 5;

impl<'a> Record<'a> {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut put = |kind: u8, parts: &[&[u8]]| {
            let length: usize = parts.iter().map(|part| part.len()).sum();
            out.push(kind);
            out.extend((length as u32).to_le_bytes());
            parts.iter().for_each(|part| out.extend_from_slice(part));
        };
        let times = |time: Time| {
            let (seconds, nanoseconds) =
                (time.seconds.to_le_bytes(), time.nanoseconds.to_le_bytes());
            [&seconds[..], &nanoseconds].concat()
        };
        match *self {
            Self::Item => put(ITEM, &[]),
            Self::Folder { mode, time, name } => {
                put(FOLDER, &[&mode.to_le_bytes(), &times(time), name]);
            }
            Self::File {
                mode,
                time,
                has_number,
                name,
            } => put(
                FILE,
                &[
                    &mode.to_le_bytes(),
                    &times(time),
                    &[u8::from(has_number)],
                    name,
                ],
            ),
            Self::Data(bytes) => put(DATA, &[bytes]),
            Self::Link { time, name, target } => put(LINK, &[&times(time), name, &[0], target]),
            Self::Same { number, name } => put(SAME, &[&number.to_le_bytes(), name]),
            Self::Leave => put(LEAVE, &[]),
            Self::Failed(reason) => put(FAILED, &[&reason[..reason.len().min(MAX_TARGET)]]),
            Self::End => put(END, &[]),
        }
    }

    /// Nothing where the bytes are no record of this kind.
    fn decode(kind: u8, content: &'a [u8]) -> Option<Self> {
        Some(match (kind, content) {
            (ITEM, []) => Self::Item,
            (FOLDER, content) => {
                let (mode, rest) = number(content)?;
                let (time, name) = time(rest)?;
                Self::Folder { mode, time, name }
            }
            (FILE, content) => {
                let (mode, rest) = number(content)?;
                let (time, rest) = time(rest)?;
                let (&flag, name) = rest.split_first()?;
                Self::File {
                    mode,
                    time,
                    has_number: flag != 0,
                    name,
                }
            }
            (DATA, bytes) => Self::Data(bytes),
            (LINK, content) => {
                let (time, rest) = time(content)?;
                let end = rest.iter().position(|byte| *byte == 0)?;
                Self::Link {
                    time,
                    name: &rest[..end],
                    target: &rest[end + 1..],
                }
            }
            (SAME, content) => {
                let (number, name) = number(content)?;
                Self::Same { number, name }
            }
            (LEAVE, []) => Self::Leave,
            (FAILED, reason) => Self::Failed(reason),
            (END, []) => Self::End,
            _ => return None,
        })
    }
}

fn number(content: &[u8]) -> Option<(u32, &[u8])> {
    let (bytes, rest) = content.split_first_chunk()?;
    Some((u32::from_le_bytes(*bytes), rest))
}

fn time(content: &[u8]) -> Option<(Time, &[u8])> {
    let (seconds, rest) = content.split_first_chunk()?;
    let (nanoseconds, rest) = number(rest)?;
    // Others have a meaning of their own for the kernel.
    let is_time = nanoseconds < 1_000_000_000;
    let time = Time {
        seconds: i64::from_le_bytes(*seconds),
        nanoseconds,
    };
    is_time.then_some((time, rest))
}

/// Whether it can be the name of something in a folder.
pub(crate) fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= MAX_NAME
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

/// A path's folder and its last component, which is empty where the path says that it means a folder.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(0) => (b"/", &path[1..]),
        Some(end) => (&path[..end], &path[end + 1..]),
        None => (b".", path),
    }
}

/// A path for a message.
fn shown(base: &[u8], folders: impl Iterator<Item = impl AsRef<[u8]>>, name: &[u8]) -> String {
    let mut path = base.to_vec();
    let folders = folders.map(|it| it.as_ref().to_vec());
    for component in folders.chain([name.to_vec()]).filter(|it| !it.is_empty()) {
        if path.last().is_some_and(|byte| *byte != b'/') {
            path.push(b'/');
        }
        path.extend(component);
    }
    format!("{}", path.escape_ascii())
}
