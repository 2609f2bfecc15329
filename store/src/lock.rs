//! Locks between processes (flock): files that are held shared or exclusively, and let go of by a process that dies.
//!
//! A lock's file may be removed by who holds it exclusively. Who then gets the lock of a file that is no longer there tries again.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::Error;

/// Takes a lock and waits for it; `waiting` is called where that takes time.
pub(crate) fn lock(path: &Path, exclusive: bool, mut waiting: impl FnMut()) -> Result<File, Error> {
    loop {
        if let Some(lock) = try_lock(path, exclusive)? {
            return Ok(lock);
        }
        waiting();
        let file = open(path)?;
        let operation = match exclusive {
            true => FlockOperation::LockExclusive,
            false => FlockOperation::LockShared,
        };
        match rustix::fs::flock(&file, operation) {
            Ok(()) if is_current(&file, path) => return Ok(file),
            Ok(()) | Err(Errno::INTR) => {}
            Err(error) => return Err(Error::io("lock", path)(error.into())),
        }
    }
}

/// Takes a lock where nobody is in the way.
pub(crate) fn try_lock(path: &Path, exclusive: bool) -> Result<Option<File>, Error> {
    let operation = match exclusive {
        true => FlockOperation::NonBlockingLockExclusive,
        false => FlockOperation::NonBlockingLockShared,
    };
    loop {
        let file = open(path)?;
        match rustix::fs::flock(&file, operation) {
            Ok(()) if is_current(&file, path) => return Ok(Some(file)),
            Ok(()) | Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(Error::io("lock", path)(error.into())),
        }
    }
}

fn open(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map_err(Error::io("lock", path))
}

/// Whether a lock's file is still the one of its name.
fn is_current(file: &File, path: &Path) -> bool {
    let key = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let held = file.metadata().map(key);
    matches!((held, fs::metadata(path).map(key)), (Ok(held), Ok(named)) if held == named)
}
