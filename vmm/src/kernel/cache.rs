//! Kernels that were unpacked before, as ELF files in a folder of this user's: unpacking takes longer than the guest's own boot.
//!
//! A file counts for the bzImage that it was made of, as the host's file system tells it from others and from its own earlier
//! content, and until the host starts again: nothing has to be waited for until it is on a disk.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::NamedTempFile;

use super::error::FileRole;
use super::source::{self, ImageFile};
use crate::host_cache::boot_id;
use crate::own_file::{self, PARTIAL};

/// Kernels that are kept: those that were used last.
const KEPT: usize = 4;

const PREFIX: &str = "vmlinux-";

/// Nobody takes so long to unpack one: it was left behind by a process that was killed.
const STALE: Duration = Duration::from_secs(3600);

/// Where a bzImage's ELF is, or is to be.
pub(super) struct Place<'a> {
    folder: &'a Path,
    name: String,
}

impl<'a> Place<'a> {
    /// Nothing where the host does not tell its boots apart.
    pub(super) fn new(folder: &'a Path, bzimage: &Metadata) -> Option<Self> {
        let boot = boot_id()?;
        let (device, inode, size) = (bzimage.dev(), bzimage.ino(), bzimage.len());
        // Any write changes it, and nobody can set it.
        let (changed, fraction) = (bzimage.ctime(), bzimage.ctime_nsec());
        let name = format!("{PREFIX}{device:x}-{inode:x}-{size:x}-{changed:x}.{fraction}-{boot}");
        Some(Self { folder, name })
    }

    /// The ELF, if it is there.
    pub(super) fn find(&self) -> Option<ImageFile> {
        let path = self.folder.join(&self.name);
        let file = own_file::open(&path)?;
        // It has been used: others go before it.
        let _ = file.set_modified(SystemTime::now());
        source::regular(FileRole::Kernel, &path, file).ok()
    }

    /// A file for the ELF that is about to be unpacked.
    pub(super) fn begin(&self) -> Option<NamedTempFile> {
        let partial = own_file::begin(self.folder);
        partial.map_err(|err| self.complain(&err)).ok()
    }

    /// The ELF is whole.
    pub(super) fn keep(&self, partial: NamedTempFile) {
        match partial.persist(self.folder.join(&self.name)) {
            Ok(_) => remove_others(self.folder),
            Err(err) => self.complain(&err.error),
        }
    }

    /// It is only slower without.
    fn complain(&self, err: &std::io::Error) {
        log::debug!(
            "cannot keep an unpacked kernel in {}: {err}",
            self.folder.display()
        );
    }
}

/// Removes all but the kernels that were used last, and what killed processes left.
fn remove_others(folder: &Path) {
    let mut kernels: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let Ok(used) = entry.metadata().and_then(|it| it.modified()) else {
            continue;
        };
        if name.starts_with(PREFIX) {
            kernels.push((used, entry.path()));
        } else if name.starts_with(PARTIAL) && used.elapsed().is_ok_and(|age| age > STALE) {
            let _ = fs::remove_file(entry.path());
        }
    }
    kernels.sort_by(|a, b| b.cmp(a));
    for (_, path) in kernels.iter().skip(KEPT) {
        // Whoever has it open goes on with it.
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    #[test]
    fn the_kernels_used_last_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let kernels = folder.path().join("kernels");
        let bzimage = folder.path().join("bzimage");
        let places: Vec<Place<'_>> = (0..=KEPT)
            .map(|number| {
                fs::write(&bzimage, vec![0; number]).unwrap();
                Place::new(&kernels, &fs::metadata(&bzimage).unwrap()).unwrap()
            })
            .collect();
        let old = SystemTime::now() - 2 * STALE;
        for (place, number) in places[..KEPT].iter().zip(1..) {
            assert!(place.find().is_none());
            let mut partial = place.begin().unwrap();
            partial.write_all(b"\x7fELF").unwrap();
            place.keep(partial);
            let file = File::open(kernels.join(&place.name)).unwrap();
            file.set_modified(old + Duration::from_secs(number))
                .unwrap();
        }
        let abandoned = kernels.join(format!("{PARTIAL}1-1"));
        fs::write(&abandoned, "").unwrap();
        File::open(&abandoned).unwrap().set_modified(old).unwrap();
        // The oldest is used again, so that the second is the next to go.
        assert!(places[0].find().is_some());
        places[KEPT].keep(places[KEPT].begin().unwrap());
        let there: Vec<bool> = places.iter().map(|it| it.find().is_some()).collect();
        assert_eq!(there, [true, false, true, true, true]);
        assert!(!abandoned.exists());
        drop(places[1].begin().unwrap());
        assert_eq!(fs::read_dir(&kernels).unwrap().count(), KEPT);
    }
}
