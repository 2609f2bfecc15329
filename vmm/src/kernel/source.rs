//! Where an image comes from: a regular file, or bytes in host memory.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::GuestRam;
use super::error::{FileRole, KernelError};

/// Why bytes of an image did not reach guest memory.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The file could not be read.
    #[error("cannot read {length} bytes at offset {offset}")]
    Read {
        /// Offset in the file, in bytes.
        offset: u64,
        /// Length in bytes.
        length: u64,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Guest memory could not be written.
    #[error("cannot write {length} bytes of guest memory at {address:#x}")]
    Write {
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        length: u64,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
}

/// Random access to an image whose length is taken once: one that shrinks meanwhile gives errors, not part of a kernel.
pub(super) trait ImageSource {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Reads bytes from `offset` on; fewer than asked for, at the end or by chance.
    fn read_some(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Copies `length` bytes from `offset` on to guest memory, without a detour.
    fn copy_to_guest(
        &self,
        offset: u64,
        length: u64,
        address: u64,
        ram: &GuestRam,
    ) -> Result<(), CopyError>;

    /// Fills `buffer` from `offset` on.
    fn read_exact(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self.read_up_to(buffer, offset)? == buffer.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Fills `buffer` from `offset` on, or as much of it as there is.
    fn read_up_to(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.read_some(&mut buffer[done..], offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
        Ok(done)
    }
}

impl ImageSource for [u8] {
    fn len(&self) -> u64 {
        self.len() as u64
    }

    fn read_some(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = self.get(offset..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn copy_to_guest(
        &self,
        offset: u64,
        length: u64,
        address: u64,
        ram: &GuestRam,
    ) -> Result<(), CopyError> {
        let range = offset as usize..offset.saturating_add(length) as usize;
        let bytes = self.get(range).ok_or_else(|| CopyError::Read {
            offset,
            length,
            source: io::ErrorKind::UnexpectedEof.into(),
        })?;
        ram.write_slice(bytes, GuestAddress(address))
            .map_err(|source| CopyError::Write {
                address,
                length,
                source,
            })
    }
}

/// A regular file.
#[derive(Debug)]
pub(super) struct ImageFile {
    file: File,
    metadata: Metadata,
}

impl ImageFile {
    /// What it was when it was opened.
    pub(super) fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

/// Opens the regular file at `path`; never waits for the other end of a FIFO.
pub(super) fn open(role: FileRole, path: &Path) -> Result<ImageFile, KernelError> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY)
        .open(path)
        .map_err(|source| KernelError::Open {
            role,
            path: path.into(),
            source,
        })?;
    regular(role, path, file)
}

/// Takes an open file, if it is a regular one.
pub(super) fn regular(role: FileRole, path: &Path, file: File) -> Result<ImageFile, KernelError> {
    let metadata = file.metadata().map_err(KernelError::reading(role, path))?;
    let kind = metadata.file_type();
    let kind = match () {
        () if kind.is_file() => {
            return Ok(ImageFile { file, metadata });
        }
        () if kind.is_dir() => "directory",
        () if kind.is_fifo() => "pipe",
        () if kind.is_socket() => "socket",
        () => "device",
    };
    Err(KernelError::NotAFile {
        role,
        path: path.into(),
        kind,
    })
}

impl ImageSource for ImageFile {
    fn len(&self) -> u64 {
        self.metadata.len()
    }

    fn read_some(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn copy_to_guest(
        &self,
        offset: u64,
        length: u64,
        address: u64,
        ram: &GuestRam,
    ) -> Result<(), CopyError> {
        let read_error = |source| CopyError::Read {
            offset,
            length,
            source,
        };
        let mut reader = self.file.as_fd();
        let mut done = 0;
        while done < length {
            // One read may end early, at the end of a memory region or by a signal.
            (&self.file)
                .seek(SeekFrom::Start(offset.saturating_add(done)))
                .map_err(read_error)?;
            let target = GuestAddress(address.saturating_add(done));
            match ram.read_volatile_from(target, &mut reader, (length - done) as usize) {
                Ok(0) => return Err(read_error(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => done += count as u64,
                Err(GuestMemoryError::IOError(err)) => match err.kind() {
                    io::ErrorKind::Interrupted => {}
                    _ => return Err(read_error(err)),
                },
                Err(source) => {
                    return Err(CopyError::Write {
                        address,
                        length,
                        source,
                    });
                }
            }
        }
        Ok(())
    }
}

/// Reads a part of an image from its beginning to its end.
pub(super) struct Section<'a, S: ?Sized> {
    source: &'a S,
    offset: u64,
    remaining: u64,
}

impl<'a, S: ImageSource + ?Sized> Section<'a, S> {
    /// The `length` bytes from `offset` on.
    pub(super) fn new(source: &'a S, offset: u64, length: u64) -> Self {
        Self {
            source,
            offset,
            remaining: length,
        }
    }
}

impl<S: ImageSource + ?Sized> Read for Section<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = self.remaining.min(buffer.len() as u64) as usize;
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.source.read_some(&mut buffer[..wanted], self.offset)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += count as u64;
        self.remaining -= count as u64;
        Ok(count)
    }
}
