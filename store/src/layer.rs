//! Puts archives into a tree: the layers of an image from the lowest up, or one archive of a root file system.

use std::io::Read;

use crate::archive::{ArchiveEntry, ArchiveError, ArchiveReader, EntryKind};
use crate::erofs::{self, CopyError, ImageWriter, Stream};
use crate::error::{EntryError, Error};
use crate::tree::{Kind, Metadata, Refusal, Tree, symlink_target, text};

/// What removes a file of a lower layer.
const WHITEOUT: &[u8] = b".wh.";
/// What AUFS keeps for itself, and layers carry along.
const RESERVED: &[u8] = b".wh..wh.";
/// What removes all of a directory's files of lower layers.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// An image while it is made: everything that it needs to be written.
pub(crate) struct Builder<'a> {
    pub(crate) tree: Tree,
    pub(crate) image: ImageWriter<'a>,
    pub(crate) max_image_size: u64,
}

impl Builder<'_> {
    /// What did not go into the image, as an error.
    pub(crate) fn copy_error(
        &self,
        error: CopyError,
        reading: impl FnOnce(std::io::Error) -> Error,
    ) -> Error {
        match error {
            CopyError::Read(error) => reading(error),
            CopyError::Write(source) => Error::Io {
                action: "write",
                path: "(image)".into(),
                source,
            },
            CopyError::Full => Error::TooLarge {
                max: self.max_image_size,
                unit: "bytes",
            },
        }
    }

    /// Adds an archive, which errors call `what`.
    pub(crate) fn add_archive(
        &mut self,
        archive: &mut ArchiveReader<impl Read>,
        what: &str,
        has_whiteouts: bool,
    ) -> Result<(), Error> {
        self.tree.next_layer();
        loop {
            let entry = archive.next().map_err(|error| archive_error(error, what))?;
            let Some(mut entry) = entry else {
                return Ok(());
            };
            let name = std::mem::take(&mut entry.name);
            match self.add_entry(archive, &name, entry, what, has_whiteouts) {
                Ok(()) => {}
                Err(refusal) => return Err(refusal.of(what, &name)),
            }
        }
    }

    fn add_entry(
        &mut self,
        archive: &mut ArchiveReader<impl Read>,
        name: &[u8],
        entry: ArchiveEntry,
        what: &str,
        has_whiteouts: bool,
    ) -> Result<(), Refusal> {
        if has_whiteouts && self.whiteout(name)? {
            return Ok(());
        }
        let xattrs: usize = entry
            .xattrs
            .iter()
            .map(|(n, v)| 64 + n.len() + v.len())
            .sum();
        let map = match entry.pieces {
            Some(_) => erofs::map_size(entry.size),
            None => 0,
        };
        self.tree
            .charge(name.len().min(256) + entry.link.len() + xattrs + map)?;
        let metadata = Metadata {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            mtime_nsec: entry.mtime_nsec,
            xattrs: erofs::checked_xattrs(entry.xattrs)?,
        };
        let Some(slot) = self.tree.resolve(name, true)? else {
            return Err(EntryError::BadName.into());
        };
        let device = || Kind::device_number(entry.device.0, entry.device.1);
        let kind = match entry.kind {
            EntryKind::HardLink => {
                let target = self.tree.link_target(&entry.link)?;
                self.tree.link(&slot, target)?;
                return Ok(());
            }
            EntryKind::File => {
                // Before its data takes time and room.
                self.tree.check(&slot, false)?;
                let pieces = entry.pieces.as_deref();
                let data = self
                    .image
                    .append(&mut Stream(archive), entry.size, pieces)
                    .map_err(|error| self.copy_error(error, |error| stream_error(error, what)))?;
                Kind::File(data)
            }
            EntryKind::Directory => Kind::Directory(Default::default()),
            EntryKind::Symlink => symlink_target(&entry.link)?,
            EntryKind::CharDevice => Kind::CharDevice(device()?),
            EntryKind::BlockDevice => Kind::BlockDevice(device()?),
            EntryKind::Fifo => Kind::Fifo,
        };
        self.tree.put(&slot, metadata, kind)?;
        Ok(())
    }

    /// Takes away what an entry of this name says. Whether it is one that says so.
    fn whiteout(&mut self, name: &[u8]) -> Result<bool, Refusal> {
        let trimmed = name
            .iter()
            .rposition(|byte| *byte != b'/')
            .map_or(0, |last| last + 1);
        let base = &name[..trimmed];
        let base = base.rsplit(|byte| *byte == b'/').next().unwrap_or(base);
        let Some(hidden) = base.strip_prefix(WHITEOUT) else {
            return Ok(false);
        };
        self.tree.charge(0)?;
        let is_opaque = base == OPAQUE;
        if base.starts_with(RESERVED) && !is_opaque {
            return Ok(true);
        }
        if !is_opaque && matches!(hidden, b"" | b"." | b"..") {
            return Err(EntryError::BadName.into());
        }
        let Some(slot) = self.tree.resolve(name, false)? else {
            return Ok(true);
        };
        if is_opaque {
            self.tree.make_opaque(slot.parent)?;
        } else {
            self.tree.whiteout(slot.parent, hidden)?;
        }
        Ok(true)
    }
}

/// With the archive or layer named.
pub(crate) fn archive_error(error: ArchiveError, what: &str) -> Error {
    match error {
        ArchiveError::Stream(error) => stream_error(error, what),
        ArchiveError::Entry(entry, source) => Error::Entry {
            what: what.into(),
            entry: text(&entry),
            source,
        },
    }
}

/// Of a stream that cannot be read on: a limit of ours, or its own fault.
pub(crate) fn stream_error(source: std::io::Error, what: &str) -> Error {
    match source
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<TooLong>())
    {
        Some(TooLong(max)) => Error::TooLarge {
            max: *max,
            unit: "bytes",
        },
        None => Error::Stream {
            what: what.into(),
            source,
        },
    }
}

/// More came out of a stream than may.
#[derive(Debug, thiserror::Error)]
#[error("more than {0} bytes")]
pub(crate) struct TooLong(pub(crate) u64);
