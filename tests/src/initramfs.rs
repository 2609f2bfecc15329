//! Initramfs archives for Linux guests: busybox, modules, a script as PID 1. Format: "newc" cpio, as in Linux
//! Documentation/driver-api/early-userspace/buffer-format.rst.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use cpio::newc;
use lzma_rust2::XzReader;

/// An archive in the making.
#[derive(Default)]
pub struct Initramfs {
    bytes: Vec<u8>,
}

impl Initramfs {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a folder; its parent must be there.
    ///
    /// # Errors
    /// None that memory does not cause.
    pub fn folder(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, 0o040_755, &[])
    }

    /// Adds a program or script.
    ///
    /// # Errors
    /// As [`Self::folder`].
    pub fn program(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.entry(name, 0o100_755, content)
    }

    /// Writes the archive to a file.
    ///
    /// # Errors
    /// Those of writing it.
    pub fn write_to(mut self, path: &Path) -> io::Result<()> {
        self.bytes = newc::trailer(self.bytes)?;
        fs::write(path, self.bytes)
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let mut entry = newc::Builder::new(name)
            .mode(mode)
            .write(&mut self.bytes, size);
        entry.write_all(content)?;
        entry.finish().map(drop)
    }
}

/// The file of a kernel module, somewhere below `folder`, uncompressed.
///
/// # Errors
/// It is not there, or damaged.
pub fn module(folder: &Path, name: &str) -> io::Result<Vec<u8>> {
    if let Some(path) = find(folder, &format!("{name}.ko"))? {
        return fs::read(path);
    }
    let path = find(folder, &format!("{name}.ko.xz"))?
        .ok_or_else(|| io::Error::other(format!("no module {name} below {}", folder.display())))?;
    let mut object = Vec::new();
    XzReader::new(fs::File::open(path)?, true).read_to_end(&mut object)?;
    Ok(object)
}

fn find(folder: &Path, name: &str) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if let Some(found) = find(&path, name)? {
                return Ok(Some(found));
            }
        } else if entry.file_name() == name {
            return Ok(Some(path));
        }
    }
    Ok(None)
}
