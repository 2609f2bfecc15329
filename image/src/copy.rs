//! Files into a guest before its command starts, and out of it when the command has ended: what is asked for, and the host's half.
//!
//! What comes from a guest is hostile. It is written below the folder that was named and nowhere else, through no link; it cannot
//! be anything but files, folders and links; it has no set-user-ID or set-group-ID bits; and its depth, number and size are
//! limited.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::job::CopyIn;
use crate::tree::{self, Limits, Pack, Place, Unpack};

mod host;
#[cfg(test)]
mod tests;

pub(crate) use host::Host;

/// Files, folders and links that may come out of a guest.
const MAX_ENTRIES: u32 = 1 << 20;

/// Why files are not copied.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CopyError {
    /// What is to be copied into the guest is not there, or may not be looked at.
    #[error("cannot copy \"{}\" into the guest", path.display())]
    Source {
        /// On the host.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// What comes out of the guest cannot be put there.
    #[error("cannot copy to \"{}\"", path.display())]
    Target {
        /// On the host.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Something on the way into the guest cannot be read.
    #[error("cannot copy into the guest: {0}")]
    Read(String),
}

/// A file or folder of the host's, and where it goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CopyInto {
    /// What is copied; of `FOLDER/.`, what is in it.
    pub host: PathBuf,
    /// Into this, where it is a folder; else as this. Folders that it is in are made.
    pub guest: Vec<u8>,
}

/// A file or folder of the guest's, and where it goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CopyOutOf {
    /// What is copied; of `FOLDER/.`, what is in it.
    pub guest: Vec<u8>,
    /// Into this, where it is a folder; else as this, in a folder that is there.
    pub host: PathBuf,
}

/// All that is copied in a session.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Copies {
    /// Before the command starts, in this order.
    pub into: Vec<CopyInto>,
    /// When it has ended, in this order.
    pub out: Vec<CopyOutOf>,
    /// Bytes that may come out of the guest.
    pub max_size: u64,
}

impl Default for Copies {
    fn default() -> Self {
        Self {
            into: Vec::new(),
            out: Vec::new(),
            max_size: 1 << 30,
        }
    }
}

impl Copies {
    /// Whether it can be begun: before a machine is started for it.
    ///
    /// # Errors
    /// Something to copy is not there; there is no folder for what comes.
    pub fn check(&self) -> Result<(), CopyError> {
        for CopyInto { host, .. } in &self.into {
            fs::symlink_metadata(host).map_err(|source| CopyError::Source {
                path: host.clone(),
                source,
            })?;
        }
        for CopyOutOf { host, .. } in &self.out {
            target(host).map_err(|source| CopyError::Target {
                path: host.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// What a job says about it.
    pub(crate) fn jobs(&self) -> (Vec<CopyIn>, Vec<Vec<u8>>) {
        let into = self.into.iter().map(|it| {
            let (name, is_contents) = name_of(&it.host);
            CopyIn {
                target: it.guest.clone(),
                name,
                is_contents,
            }
        });
        let out = self.out.iter().map(|it| it.guest.clone());
        (into.collect(), out.collect())
    }

    /// What is read on the way into the guest.
    pub(crate) fn pack(&self) -> Option<Pack<Host>> {
        let paths = self
            .into
            .iter()
            .map(|it| it.host.as_os_str().as_bytes().to_vec());
        (!self.into.is_empty()).then(|| Pack::new(Host, paths.collect(), false))
    }

    /// What is written on the way out of it.
    pub(crate) fn unpack(&self) -> Result<Option<Unpack<Host>>, CopyError> {
        let places = self.out.iter().map(|it| {
            let (name, is_contents) = name_of(Path::new(OsStr::from_bytes(&it.guest)));
            let path = target(&it.host).map_err(|source| CopyError::Target {
                path: it.host.clone(),
                source,
            })?;
            Ok(Place {
                path: path.into_os_string().into_vec(),
                name,
                is_contents,
            })
        });
        let places = places.collect::<Result<Vec<_>, _>>()?;
        let limits = Limits {
            bytes: self.max_size,
            entries: MAX_ENTRIES,
            mode: 0o777,
        };
        let unpack = || Unpack::new(Host, places, limits, std::process::id());
        Ok((!self.out.is_empty()).then(unpack))
    }
}

/// What a path's end is called, and whether it means what is in that folder.
fn name_of(path: &Path) -> (Vec<u8>, bool) {
    let bytes = path.as_os_str().as_bytes();
    let (_, last) = tree::split(bytes);
    let is_contents = last == b"." || path.file_name().is_none() && path.has_root();
    let real;
    let name = match path.file_name() {
        Some(name) => name,
        None => {
            // `..`: a name that is nowhere in the path.
            real = fs::canonicalize(path).unwrap_or_default();
            real.file_name().unwrap_or_default()
        }
    };
    (name.as_bytes().to_vec(), is_contents)
}

/// Where something that comes out of a guest is put. A link that somebody of the host's put there is followed, as it was named.
fn target(path: &Path) -> io::Result<PathBuf> {
    let is_link = fs::symlink_metadata(path).is_ok_and(|it| it.is_symlink());
    let path = match is_link {
        true => fs::canonicalize(path)?,
        false => path.to_owned(),
    };
    match fs::metadata(&path) {
        Ok(it) if it.is_dir() || it.is_file() => return Ok(path),
        Ok(_) => return Err(io::Error::other("it is neither a file nor a folder")),
        Err(err) if err.kind() == io::ErrorKind::NotFound => {}
        Err(err) => return Err(err),
    }
    let (folder, name) = tree::split(path.as_os_str().as_bytes());
    let folder = Path::new(OsStr::from_bytes(folder));
    if !fs::metadata(folder).is_ok_and(|it| it.is_dir()) || !tree::is_name(name) {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "there is no such folder",
        ));
    }
    Ok(path)
}
