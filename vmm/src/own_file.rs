//! Files that this user keeps for later processes of theirs: trusted on the way back only where nobody else may have written them,
//! and complete or not there at all for whoever looks meanwhile.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use tempfile::{Builder, NamedTempFile};

/// How the names of files begin that are not complete.
pub(crate) const PARTIAL: &str = ".partial-";

/// Opens a file to read, if it is a regular one of this user's that nobody else may write.
pub(crate) fn open(path: &Path) -> Option<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    let metadata = file.metadata().ok()?;
    // SAFETY: takes no pointer, and always succeeds.
    let user = unsafe { libc::geteuid() };
    let is_own = metadata.uid() == user && metadata.mode() & 0o022 == 0;
    (metadata.is_file() && is_own).then_some(file)
}

/// Begins a file in this folder, which is made where it is missing; it gets its name by `persist`. A process that is killed
/// meanwhile leaves it behind.
pub(crate) fn begin(folder: &Path) -> io::Result<NamedTempFile> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    Builder::new().prefix(PARTIAL).tempfile_in(folder)
}
