//! What holds an image's documents and layers: a layout's folder, or an archive.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::archive::{ArchiveReader, EntryKind};
use crate::error::Error;
use crate::layer::archive_error;

/// As much as an image specification grants a manifest.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;
/// Files of an archive that holds images: layers and documents, a few for each.
const MAX_FILES: usize = 100_000;

/// Opens what exists and is a file; a pipe is not waited for.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

/// Files by name.
pub(crate) enum Container {
    Folder(PathBuf),
    Archive {
        file: File,
        path: PathBuf,
        files: HashMap<Vec<u8>, Place>,
    },
}

/// Where an archive has a file.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    At {
        offset: u64,
        size: u64,
    },
    /// `docker save` once wrote layers that several images have as links.
    Link(Vec<u8>),
}

/// A file of a container.
pub(crate) struct Blob {
    pub(crate) size: u64,
    reader: Section,
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}

/// A part of a file, read without moving the file's own position.
struct Section {
    file: File,
    offset: u64,
    end: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = (self.end - self.offset).min(buffer.len() as u64) as usize;
        let count = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        if count == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += count as u64;
        Ok(count)
    }
}

impl Container {
    /// An archive's table of contents; its data is passed over.
    pub(crate) fn archive(file: File, path: &Path) -> Result<Self, Error> {
        let what = || format!("\"{}\"", path.display());
        let mut files = HashMap::new();
        let clone = file.try_clone().map_err(Error::io("read", path))?;
        let mut reader = ArchiveReader::seekable(BufReader::with_capacity(512, clone));
        while let Some(entry) = reader.next().map_err(|e| archive_error(e, &what()))? {
            let name = normal(&entry.name);
            let place = match entry.kind {
                EntryKind::File if entry.pieces.is_none() => Place::At {
                    offset: entry.offset,
                    size: entry.size,
                },
                EntryKind::HardLink => Place::Link(normal(&entry.link)),
                EntryKind::Symlink => Place::Link(beside(&name, &entry.link)),
                _ => continue,
            };
            if files.len() >= MAX_FILES {
                // It is some other archive: what would be looked for comes in the first ones.
                break;
            }
            // As anything that unpacks it would have it, the last one counts.
            files.insert(name, place);
        }
        let path = path.to_owned();
        Ok(Self::Archive { file, path, files })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Self::Folder(path) => path.join(name).is_file(),
            Self::Archive { files, .. } => files.contains_key(name.as_bytes()),
        }
    }

    /// Opens a file; the name is a plain one, made of digests and what the specification says.
    pub(crate) fn open(&self, name: &str) -> Result<Blob, Error> {
        let missing = || Error::Missing { what: name.into() };
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                let file = match open_file(&path) {
                    Ok(file) => file,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
                    Err(error) => return Err(Error::io("open", path)(error)),
                };
                let size = file.metadata().map_err(Error::io("read", path))?.len();
                let reader = Section {
                    file,
                    offset: 0,
                    end: size,
                };
                Ok(Blob { size, reader })
            }
            Self::Archive { file, path, files } => {
                let mut place = files.get(name.as_bytes());
                for _ in 0..8 {
                    match place {
                        Some(Place::Link(target)) => place = files.get(target),
                        _ => break,
                    }
                }
                let Some(&Place::At { offset, size }) = place else {
                    return Err(missing());
                };
                let file = file.try_clone().map_err(Error::io("read", path))?;
                let reader = Section {
                    file,
                    offset,
                    end: offset + size,
                };
                Ok(Blob { size, reader })
            }
        }
    }

    /// A document, whole.
    pub(crate) fn document(&self, name: &str) -> Result<Vec<u8>, Error> {
        let blob = self.open(name)?;
        if blob.size > MAX_DOCUMENT {
            return Err(Error::Inconsistent {
                what: name.into(),
                fault: "is too long",
            });
        }
        let mut bytes = Vec::new();
        let mut blob = blob.take(MAX_DOCUMENT);
        match blob.read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(source) => Err(Error::Stream {
                what: name.into(),
                source,
            }),
        }
    }
}

/// A name without what does not matter.
pub(crate) fn normal(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// What a symbolic link of this name means.
fn beside(name: &[u8], target: &[u8]) -> Vec<u8> {
    let folder = name.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    normal(&[&name[..folder], b"/", target].concat())
}
