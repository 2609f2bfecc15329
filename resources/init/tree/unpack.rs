//! From a stream to files: whatever it says, nowhere but in their places, and no more than may be.

use alloc::format;
use alloc::string::String;
use alloc::vec::{IntoIter, Vec};
use core::fmt;

use super::{
    Files, HEAD, Kind, MAX_DEPTH, MAX_NOTES, MAX_RECORD, MAX_TARGET, Record, Time, is_name, shown,
    split,
};

/// Bytes of the paths of files that have several names.
const MAX_LINKED: usize = 16 << 20;

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
