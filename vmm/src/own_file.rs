//! Files that this user keeps for later processes of theirs: trusted on the way back only where nobody else may have written them,
//! and complete or not there at all for whoever looks meanwhile.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

/// Opens a file to read, if it is a regular one of this user's that nobody else may write.
pub(crate) fn open(path: &Path) -> Option<(File, Metadata)> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    let metadata = file.metadata().ok()?;
    // SAFETY: takes no pointer, and always succeeds.
    let user = unsafe { libc::geteuid() };
    let is_own = metadata.uid() == user && metadata.mode() & 0o022 == 0;
    (metadata.is_file() && is_own).then_some((file, metadata))
}

/// A file in the making; gone unless it is finished.
pub(crate) struct Partial {
    file: File,
    path: PathBuf,
    is_finished: bool,
}

impl Partial {
    /// Begins one in this folder, which is made where it is missing. A process that is killed meanwhile leaves it behind.
    pub(crate) fn new(folder: &Path) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{PARTIAL}{}-{number}", process::id()));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)?;
        Ok(Self {
            file,
            path,
            is_finished: false,
        })
    }

    /// Gives it its name, in the same folder, in the place of another that has it.
    pub(crate) fn finish(mut self, name: &str) -> io::Result<()> {
        fs::rename(&self.path, self.path.with_file_name(name))?;
        self.is_finished = true;
        Ok(())
    }
}

/// How the names of files begin that are not finished.
pub(crate) const PARTIAL: &str = ".partial-";

impl Write for Partial {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_finished {
            let _ = fs::remove_file(&self.path);
        }
    }
}
