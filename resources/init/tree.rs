//! Trees of files as a stream of bytes, and back: what is copied into a guest and out of it. `docs/run-protocol.md` has the form.
//!
//! Both halves are made of this file, which reaches files by [`Files`] only. A tree is told as it is walked: into a folder and
//! out of it again, with names of one component. No path is ever sent, so that none can lead out of where it belongs; nothing is
//! opened through a symbolic link below that; and what is neither a file, a folder nor a link has no record. Who unpacks believes
//! nothing else: names, lengths, depth, numbers and sums are checked.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::{IntoIter, Vec};
use core::fmt;

/// Folders in each other, each of which is held open: no deeper.
pub(crate) const MAX_DEPTH: usize = 128;

/// Bytes of the paths of files that have several names.
const MAX_LINKED: usize = 16 << 20;

/// A record is at most this long, without its head.
const MAX_RECORD: usize = 40 << 10;

/// Bytes of a file in one record.
const PIECE: usize = 32 << 10;

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

// Reading.

struct Level<Fd> {
    fd: Fd,
    name: Vec<u8>,
    names: IntoIter<Vec<u8>>,
}

/// Reads what is to be copied, piece by piece.
pub(crate) struct Pack<F: Files> {
    files: F,
    paths: IntoIter<Vec<u8>>,
    /// What else is mounted in a folder is not its own.
    one_file_system: bool,
    path: Vec<u8>,
    device: u64,
    folders: Vec<Level<F::Fd>>,
    file: Option<(F::Fd, Vec<u8>)>,
    numbers: BTreeMap<(u64, u64), u32>,
    is_ended: bool,
    /// What could not be, and was left out.
    pub(crate) left_out: Vec<String>,
}

impl<F: Files> Pack<F> {
    pub(crate) fn new(files: F, paths: Vec<Vec<u8>>, one_file_system: bool) -> Self {
        Self {
            files,
            paths: paths.into_iter(),
            one_file_system,
            path: Vec::new(),
            device: 0,
            folders: Vec::new(),
            file: None,
            numbers: BTreeMap::new(),
            is_ended: false,
            left_out: Vec::new(),
        }
    }

    /// Appends some more of the stream; whether there is more to come.
    ///
    /// # Errors
    /// Something cannot be read. [`Self::give_up`] goes on behind the item that it is in.
    pub(crate) fn fill(&mut self, out: &mut Vec<u8>) -> Result<bool, String> {
        let end = out.len() + PIECE;
        while out.len() < end && !self.is_ended {
            self.step(out)?;
        }
        Ok(!self.is_ended)
    }

    /// Has the other side know that no more comes of the item.
    pub(crate) fn give_up(&mut self, out: &mut Vec<u8>, reason: &str) {
        self.folders.clear();
        self.file = None;
        Record::Failed(reason.as_bytes()).encode(out);
    }

    fn step(&mut self, out: &mut Vec<u8>) -> Result<(), String> {
        if let Some((file, name)) = &self.file {
            let mut bytes = alloc::vec![0; PIECE];
            let read = self.files.read(file, &mut bytes);
            let count = read.map_err(|err| self.trouble(name, &err))?;
            match count {
                0 => self.file = None,
                count => Record::Data(&bytes[..count]).encode(out),
            }
            return Ok(());
        }
        let Some(level) = self.folders.last_mut() else {
            return self.next_item(out);
        };
        match level.names.next() {
            Some(name) => {
                // What is gone since its folder was read is no fault.
                let folder = self.folders.len() - 1;
                let status = match self.files.status(&self.folders[folder].fd, &name) {
                    Err(err) if F::is_absent(&err) => return Ok(()),
                    other => other.map_err(|err| self.trouble(&name, &err))?,
                };
                self.entry(Some(folder), None, status, &name, out)
            }
            None => {
                self.folders.pop();
                Record::Leave.encode(out);
                Ok(())
            }
        }
    }

    fn next_item(&mut self, out: &mut Vec<u8>) -> Result<(), String> {
        let Some(path) = self.paths.next() else {
            self.is_ended = true;
            Record::End.encode(out);
            return Ok(());
        };
        Record::Item.encode(out);
        self.numbers.clear();
        self.path = path.clone();
        let (folder, name) = split(&path);
        // The folder itself, and not a link that leads to it.
        let (folder, name) = match name {
            b"" | b"." | b".." => (&path[..], &b"."[..]),
            name => (folder, name),
        };
        let at = self
            .files
            .open_path(folder)
            .map_err(|err| self.trouble(b"", &err))?;
        let status = self
            .files
            .status(&at, name)
            .map_err(|err| self.trouble(b"", &err))?;
        self.device = status.device;
        self.entry(None, Some(&at), status, name, out)
    }

    /// Tells of what is in the folder of this number, or, as an item's first, in another one.
    fn entry(
        &mut self,
        folder: Option<usize>,
        first: Option<&F::Fd>,
        status: Status,
        name: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        // The first entry's name is the path's, which a message has already; the other side gives it one of its own.
        let told = if first.is_some() { b"" } else { name };
        let levels = &self.folders;
        let trouble = |err: &dyn fmt::Display| {
            format!(
                "{}: {err}",
                shown(&self.path, levels.iter().map(|it| &it.name), told)
            )
        };
        let at = match (first, folder) {
            (Some(at), _) => at,
            (None, Some(folder)) => &levels[folder].fd,
            (None, None) => return Ok(()),
        };
        let Status { mode, time, .. } = status;
        match status.kind {
            Kind::Folder => {
                if levels.len() >= MAX_DEPTH {
                    return Err(trouble(&"too many folders in each other"));
                }
                if self.one_file_system && status.device != self.device {
                    Record::Folder {
                        mode,
                        time,
                        name: told,
                    }
                    .encode(out);
                    Record::Leave.encode(out);
                    return Ok(());
                }
                let fd = self
                    .files
                    .open_folder(at, name)
                    .map_err(|err| trouble(&err))?;
                let names = self.files.names(&fd).map_err(|err| trouble(&err))?;
                Record::Folder {
                    mode,
                    time,
                    name: told,
                }
                .encode(out);
                self.folders.push(Level {
                    fd,
                    name: told.to_vec(),
                    names: names.into_iter(),
                });
            }
            Kind::File => {
                let id = (status.device, status.inode);
                if let Some(number) = self.numbers.get(&id) {
                    Record::Same {
                        number: *number,
                        name: told,
                    }
                    .encode(out);
                    return Ok(());
                }
                let fd = self
                    .files
                    .open_file(at, name)
                    .map_err(|err| trouble(&err))?;
                let is_file =
                    self.files.status_of(&fd).map_err(|err| trouble(&err))?.kind == Kind::File;
                if !is_file {
                    return Err(trouble(&"it changes while it is read"));
                }
                let has_number = status.names > 1;
                if has_number {
                    self.numbers.insert(id, self.numbers.len() as u32);
                }
                Record::File {
                    mode,
                    time,
                    has_number,
                    name: told,
                }
                .encode(out);
                self.file = Some((fd, told.to_vec()));
            }
            Kind::Link => {
                let target = self.files.target(at, name).map_err(|err| trouble(&err))?;
                Record::Link {
                    time,
                    name: told,
                    target: &target,
                }
                .encode(out);
            }
            Kind::Other if first.is_some() => {
                return Err(trouble(&"it is neither a file nor a folder"));
            }
            Kind::Other => {
                let text = trouble(&"it is neither a file nor a folder, and is left out");
                if self.left_out.len() < MAX_NOTES {
                    self.left_out.push(text);
                }
            }
        }
        Ok(())
    }

    fn trouble(&self, name: &[u8], error: &dyn fmt::Display) -> String {
        let folders = self.folders.iter().map(|it| &it.name);
        format!("{}: {error}", shown(&self.path, folders, name))
    }
}

// Writing.

/// Where an item goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Place {
    /// Into this, where it is a folder; else as this.
    pub(crate) path: Vec<u8>,
    /// What it is called there.
    pub(crate) name: Vec<u8>,
    /// It is a folder, and what is in it goes right there.
    pub(crate) is_contents: bool,
}

/// What may be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of all files together.
    pub(crate) bytes: u64,
    /// Entries of all items together.
    pub(crate) entries: u32,
    /// The bits that remain of every mode.
    pub(crate) mode: u32,
}

struct Open<Fd> {
    fd: Fd,
    name: Vec<u8>,
    /// What it gets when it is complete, where it was not there before.
    made: Option<(u32, Time)>,
}

struct Writing<Fd> {
    fd: Fd,
    /// What it is called until it is complete.
    partial: Vec<u8>,
    name: Vec<u8>,
    mode: u32,
    time: Time,
}

struct Item<Fd> {
    base: Fd,
    /// What its first entry is called; none where it is the base itself.
    name: Option<Vec<u8>>,
    has_entry: bool,
    folders: Vec<Open<Fd>>,
    file: Option<Writing<Fd>>,
    /// From the base, the names that lead to each file that has a number.
    numbered: Vec<Vec<Vec<u8>>>,
}

/// Writes what comes, and nowhere but in its places.
///
/// A file has its name when it is complete, and what was there before is there until then. When it is dropped, an incomplete one
/// is removed; what was complete stays.
pub(crate) struct Unpack<F: Files> {
    files: F,
    places: IntoIter<Place>,
    place: Vec<u8>,
    limits: Limits,
    bytes: Vec<u8>,
    item: Option<Item<F::Fd>>,
    entries: u32,
    size: u64,
    linked: usize,
    /// Numbers the names of incomplete files.
    partial: u32,
    is_ended: bool,
    /// What the other side could not read.
    pub(crate) failures: Vec<Vec<u8>>,
}

impl<F: Files> Unpack<F> {
    /// Incomplete files are numbered from `seed` on.
    pub(crate) fn new(files: F, places: Vec<Place>, limits: Limits, seed: u32) -> Self {
        Self {
            files,
            places: places.into_iter(),
            place: Vec::new(),
            limits,
            bytes: Vec::new(),
            item: None,
            entries: 0,
            size: 0,
            linked: 0,
            partial: seed,
            is_ended: false,
            failures: Vec::new(),
        }
    }

    /// Takes a piece of the stream.
    ///
    /// # Errors
    /// It is none, or cannot be written: what and why. Nothing that comes after it means anything.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<(), String> {
        let mut bytes = core::mem::take(&mut self.bytes);
        bytes.extend_from_slice(piece);
        let mut rest = &bytes[..];
        while let Some((head, after)) = rest.split_first_chunk::<HEAD>() {
            let [kind, length @ ..] = *head;
            let length = u32::from_le_bytes(length) as usize;
            if length > MAX_RECORD {
                return Err(self.trouble(b"", &"what was sent is no record"));
            }
            let Some((content, after)) = after.split_at_checked(length) else {
                break;
            };
            let record = Record::decode(kind, content);
            let record = record.ok_or_else(|| self.trouble(b"", &"what was sent is no record"))?;
            self.take(record)?;
            rest = after;
        }
        self.bytes = rest.to_vec();
        Ok(())
    }

    /// Whether all of it has come.
    pub(crate) fn is_complete(&self) -> bool {
        self.is_ended && self.bytes.is_empty()
    }

    fn take(&mut self, record: Record<'_>) -> Result<(), String> {
        if self.is_ended {
            return Err(self.trouble(b"", &"something was sent after the end"));
        }
        match record {
            Record::Data(bytes) => return self.write(bytes),
            // One that was cut short is none.
            Record::Failed(reason) => {
                self.abandon();
                self.item = None;
                if self.failures.len() < MAX_NOTES {
                    self.failures.push(reason.to_vec());
                }
                return Ok(());
            }
            _ => self.complete_file()?,
        }
        match record {
            Record::Item => {
                self.complete_item()?;
                self.begin()
            }
            Record::End => {
                self.complete_item()?;
                self.is_ended = true;
                match self.places.next() {
                    None => Ok(()),
                    Some(_) => Err(self.trouble(b"", &"something that was asked for was not sent")),
                }
            }
            Record::Leave => self.leave(),
            Record::Folder { mode, time, name } => self.folder(name, mode, time),
            Record::File {
                mode,
                time,
                has_number,
                name,
            } => self.file(name, mode, time, has_number),
            Record::Link { time, name, target } => self.link(name, time, target),
            Record::Same { number, name } => self.same(name, number),
            Record::Data(_) | Record::Failed(_) => Ok(()),
        }
    }

    /// Finds the place of the next item.
    fn begin(&mut self) -> Result<(), String> {
        let Some(place) = self.places.next() else {
            return Err(self.trouble(b"", &"more was sent than was asked for"));
        };
        self.place = place.path.clone();
        let path = &place.path[..];
        let (folder, name) = split(path);
        let made = self.files.make_path(folder);
        made.map_err(|err| self.trouble(b"", &err))?;
        let (base, name) = match (self.files.open_path(path), place.is_contents) {
            (Ok(base), true) => (base, None),
            (Ok(base), false) => (base, Some(place.name)),
            (Err(err), _) if !is_name(name) => return Err(self.trouble(b"", &err)),
            (Err(_), _) => {
                let base = self.files.open_path(folder);
                let base = base.map_err(|err| self.trouble(b"", &err))?;
                // For messages, which have the name besides.
                self.place = path[..path.len() - name.len()].to_vec();
                (base, Some(name.to_vec()))
            }
        };
        self.item = Some(Item {
            base,
            name,
            has_entry: false,
            folders: Vec::new(),
            file: None,
            numbered: Vec::new(),
        });
        Ok(())
    }

    fn complete_item(&mut self) -> Result<(), String> {
        match self.item.take() {
            Some(item) if !item.has_entry || !item.folders.is_empty() => {
                Err(self.trouble(b"", &"not all of it was sent"))
            }
            _ => Ok(()),
        }
    }

    /// What an entry is called; nothing where it is the item's folder itself.
    fn name(&mut self, sent: &[u8]) -> Result<Option<Vec<u8>>, String> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            let limit = self.limits.entries;
            return Err(self.trouble(b"", &format_args!("more than {limit} files and folders")));
        }
        let item = self.item.as_mut();
        let is_first = match item {
            None => None,
            Some(item) if !item.folders.is_empty() => Some(false),
            Some(item) if item.has_entry => None,
            Some(item) => {
                item.has_entry = true;
                Some(true)
            }
        };
        match is_first {
            Some(true) if sent.is_empty() => {
                let name = self.item.as_ref().and_then(|item| item.name.clone());
                match name {
                    Some(name) if !is_name(&name) => {
                        Err(self.trouble(&name, &"that is no name for a file"))
                    }
                    name => Ok(name),
                }
            }
            Some(false) if is_name(sent) => Ok(Some(sent.to_vec())),
            Some(_) => Err(self.trouble(sent, &"that is no name for a file")),
            None => Err(self.trouble(sent, &"it belongs to nothing that was asked for")),
        }
    }

    /// The folder that entries are in now.
    fn at(&self) -> Option<&F::Fd> {
        let item = self.item.as_ref()?;
        Some(item.folders.last().map_or(&item.base, |it| &it.fd))
    }

    fn folder(&mut self, sent: &[u8], mode: u32, time: Time) -> Result<(), String> {
        let name = self.name(sent)?;
        let depth = self.item.as_ref().map_or(0, |item| item.folders.len());
        if depth >= MAX_DEPTH {
            return Err(self.trouble(sent, &"too many folders in each other"));
        }
        let name = name.unwrap_or_default();
        let opened = self.at().map(|at| match &name[..] {
            b"" => self.files.open_folder(at, b".").map(|fd| (fd, false)),
            name => match self.files.status(at, name) {
                Err(err) if F::is_absent(&err) => {
                    self.files.make_folder(at, name)?;
                    self.files.open_folder(at, name).map(|fd| (fd, true))
                }
                _ => self.files.open_folder(at, name).map(|fd| (fd, false)),
            },
        });
        let (fd, is_new) = match opened {
            Some(Ok(opened)) => opened,
            Some(Err(err)) => return Err(self.trouble(&name, &err)),
            None => return Ok(()),
        };
        let made = is_new.then_some((mode & self.limits.mode, time));
        if let Some(item) = &mut self.item {
            item.folders.push(Open { fd, name, made });
        }
        Ok(())
    }

    fn leave(&mut self) -> Result<(), String> {
        let folder = self.item.as_mut().and_then(|item| item.folders.pop());
        let Some(folder) = folder else {
            return Err(self.trouble(b"", &"it leaves a folder that it is not in"));
        };
        if let Some((mode, time)) = folder.made {
            let set = self.files.set_mode(&folder.fd, mode);
            set.and_then(|()| self.files.set_time(&folder.fd, time))
                .map_err(|err| self.trouble(&folder.name, &err))?;
        }
        Ok(())
    }

    /// The name of an entry that is no folder; what is there may be put out of the way.
    fn replaceable(&mut self, sent: &[u8]) -> Result<Vec<u8>, String> {
        let Some(name) = self.name(sent)? else {
            return Err(self.trouble(b"", &"it is no folder, whose content could be copied"));
        };
        let status = self.at().map(|at| self.files.status(at, &name));
        let why = match status {
            Some(Ok(status)) if status.kind == Kind::Folder => "a folder is in its place",
            Some(Ok(status)) if status.kind == Kind::Other => {
                "a device or the like is in its place"
            }
            Some(Err(err)) if !F::is_absent(&err) => return Err(self.trouble(&name, &err)),
            _ => return Ok(name),
        };
        Err(self.trouble(&name, &why))
    }

    fn file(&mut self, sent: &[u8], mode: u32, time: Time, has_number: bool) -> Result<(), String> {
        let name = self.replaceable(sent)?;
        let (partial, fd) = loop {
            let partial = format!(".ampoule-partial-{}", self.partial).into_bytes();
            self.partial = self.partial.wrapping_add(1);
            let Some(at) = self.at() else {
                return Ok(());
            };
            match self.files.make_file(at, &partial) {
                Ok(fd) => break (partial, fd),
                // Another one's, or one that a killed process left behind.
                Err(_) if self.files.status(at, &partial).is_ok() => {}
                Err(err) => return Err(self.trouble(&name, &err)),
            }
        };
        if let Some(item) = &mut self.item {
            if has_number {
                let folders = item.folders.iter().map(|it| it.name.clone());
                let way: Vec<_> = folders
                    .chain([name.clone()])
                    .filter(|it| !it.is_empty())
                    .collect();
                self.linked += way.iter().map(|it| it.len() + 32).sum::<usize>();
                item.numbered.push(way);
            }
            item.file = Some(Writing {
                fd,
                partial,
                name,
                mode: mode & self.limits.mode,
                time,
            });
        }
        if self.linked > MAX_LINKED {
            return Err(self.trouble(b"", &"too many files with several names"));
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        let Some(file) = self.item.as_ref().and_then(|item| item.file.as_ref()) else {
            return Err(self.trouble(b"", &"bytes of no file were sent"));
        };
        self.size = self.size.saturating_add(bytes.len() as u64);
        let limit = self.limits.bytes;
        if self.size > limit {
            return Err(self.trouble(&file.name, &format_args!("more than {limit} bytes in all")));
        }
        let written = self.files.write(&file.fd, bytes);
        written.map_err(|err| self.trouble(&file.name, &err))
    }

    /// Gives a file its name.
    fn complete_file(&mut self) -> Result<(), String> {
        let Some(file) = self.item.as_mut().and_then(|item| item.file.take()) else {
            return Ok(());
        };
        let Some(at) = self.at() else {
            return Ok(());
        };
        let files = &self.files;
        let set = files.set_mode(&file.fd, file.mode);
        let set = set.and_then(|()| files.set_time(&file.fd, file.time));
        let done = set.and_then(|()| files.rename(at, &file.partial, &file.name));
        done.map_err(|err| {
            let _ = files.remove(at, &file.partial);
            self.trouble(&file.name, &err)
        })
    }

    fn link(&mut self, sent: &[u8], time: Time, target: &[u8]) -> Result<(), String> {
        let name = self.replaceable(sent)?;
        if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
            return Err(self.trouble(&name, &"no link leads there"));
        }
        let Some(at) = self.at() else {
            return Ok(());
        };
        self.clear(at, &name)
            .and_then(|()| self.files.make_link(at, &name, target))
            .and_then(|()| self.files.set_time_of_link(at, &name, time))
            .map_err(|err| self.trouble(&name, &err))
    }

    fn same(&mut self, sent: &[u8], number: u32) -> Result<(), String> {
        let name = self.replaceable(sent)?;
        let Some(item) = &self.item else {
            return Ok(());
        };
        let way = item.numbered.get(number as usize);
        let Some((first, folders)) = way.and_then(|way| way.split_last()) else {
            return Err(self.trouble(&name, &"it is another name of a file that was not sent"));
        };
        let at = item.folders.last().map_or(&item.base, |it| &it.fd);
        let made = self.clear(at, &name).and_then(|()| {
            let mut folder = None;
            for name in folders {
                let from = folder.as_ref().unwrap_or(&item.base);
                folder = Some(self.files.open_folder(from, name)?);
            }
            let from = folder.as_ref().unwrap_or(&item.base);
            self.files.add_name(from, first, at, &name)
        });
        made.map_err(|err| self.trouble(&name, &err))
    }

    /// Removes what is in the way, which is no folder.
    fn clear(&self, at: &F::Fd, name: &[u8]) -> Result<(), F::Error> {
        match self.files.remove(at, name) {
            Err(err) if !F::is_absent(&err) => Err(err),
            _ => Ok(()),
        }
    }

    /// An incomplete file is nobody's.
    fn abandon(&mut self) {
        let file = self.item.as_mut().and_then(|item| item.file.take());
        if let (Some(file), Some(at)) = (file, self.at()) {
            let _ = self.files.remove(at, &file.partial);
        }
    }

    fn trouble(&self, name: &[u8], error: &dyn fmt::Display) -> String {
        let item = self.item.iter();
        let folders = item.flat_map(|item| item.folders.iter().map(|it| &it.name));
        format!("{}: {error}", shown(&self.place, folders, name))
    }
}

impl<F: Files> Drop for Unpack<F> {
    fn drop(&mut self) {
        self.abandon();
    }
}
