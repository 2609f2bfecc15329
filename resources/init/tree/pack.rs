//! From files to a stream.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::{IntoIter, Vec};
use core::fmt;

use super::{Files, Kind, MAX_DEPTH, MAX_NOTES, Record, Status, shown, split};

/// Bytes of a file in one record.
const PIECE: usize = 32 << 10;

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
