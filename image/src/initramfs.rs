//! The initramfs of a guest: the init, the modules of its drivers, the list of them, what the caller adds. Format: "newc" cpio,
//! Linux `Documentation/driver-api/early-userspace/buffer-format.rst`.
//!
//! It is made once for the same content and kept in a cache, where any number of processes may look for it and make it at a time:
//! a file has its name only when it is complete.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cpio::newc;
use sha2::{Digest, Sha256};
use tempfile::Builder;
use thiserror::Error;

use crate::INIT;
use crate::kernel::{KernelError, Module};

/// Changes with what is in an archive, when its parts do not.
const LAYOUT: &[u8] = b"ampoule-initramfs-1";

/// What begins the names of files that are not complete.
const PARTIAL: &str = ".partial-";

/// Nobody takes so long to write one: it was left behind by a process that was killed.
const STALE: Duration = Duration::from_secs(3600);

/// Why there is no initramfs.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InitramfsError {
    /// A module cannot be read.
    #[error(transparent)]
    Module(#[from] KernelError),
    /// A part is larger than the format allows, or its name is wrong.
    #[error("cannot put \"{name}\" into an initramfs")]
    Part {
        /// Its name in the archive.
        name: String,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// The cache cannot be written to.
    #[error("cannot keep an initramfs in \"{}\"", folder.display())]
    Cache {
        /// The folder.
        folder: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// A file of the caller's, for a guest without another root.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Addition {
    /// Where, from the root: `bin/server`. Its folders are made.
    pub name: String,
    /// Who may do what: `0o755`.
    pub mode: u32,
    /// What is in it.
    pub content: Vec<u8>,
}

/// The archive's bytes.
///
/// # Errors
/// A module cannot be read, or a part does not fit into the format.
pub fn build(modules: &[Module], additions: &[Addition]) -> Result<Vec<u8>, InitramfsError> {
    let mut archive = Archive::default();
    for folder in ["dev", "modules", "proc", "sys"] {
        archive.folder(folder)?;
    }
    // The kernel opens it for its first process.
    archive.entry("dev/console", 0o020_600, (5, 1), &[])?;
    archive.entry("init", 0o100_755, (0, 0), INIT)?;
    let mut list = String::new();
    for module in modules {
        let name = format!("{}.ko", module.name);
        archive.entry(
            &format!("modules/{name}"),
            0o100_644,
            (0, 0),
            &module.read()?,
        )?;
        list.push_str(&name);
        list.push('\n');
    }
    archive.entry("modules/list", 0o100_644, (0, 0), list.as_bytes())?;
    for addition in additions {
        archive.add(addition)?;
    }
    archive.finish()
}

/// The path of an archive of these parts in the cache, made if it is not there.
///
/// # Errors
/// As [`build`]; the cache cannot be written to.
pub fn cached(
    cache: &Path,
    modules: &[Module],
    additions: &[Addition],
) -> Result<PathBuf, InitramfsError> {
    let path = cache.join(format!("{}.cpio", key(modules, additions)?));
    // It is complete, or it would have another name. An old time of last use is no reason to fail.
    if let Ok(file) = File::open(&path) {
        let _ = file.set_modified(SystemTime::now());
        return Ok(path);
    }
    let bytes = build(modules, additions)?;
    keep(cache, &path, &bytes).map_err(|source| InitramfsError::Cache {
        folder: cache.to_owned(),
        source,
    })?;
    Ok(path)
}

/// Removes archives that were not used for so long, and files that processes left behind when they were killed. The bytes. One
/// that somebody may be about to read stays.
///
/// # Errors
/// A file cannot be removed.
pub fn prune(cache: &Path, unused_for: Duration) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        let age = metadata.modified().ok().and_then(|it| it.elapsed().ok());
        if !metadata.is_file() || age.is_none_or(|age| age < unused_for.max(STALE)) {
            continue;
        }
        match fs::remove_file(entry.path()) {
            Ok(()) => bytes += metadata.len(),
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// What is in an archive, in short.
fn key(modules: &[Module], additions: &[Addition]) -> Result<String, InitramfsError> {
    let mut sum = Sha256::new();
    let mut part = |name: &str, content: &[u8]| {
        for bytes in [name.as_bytes(), content] {
            sum.update((bytes.len() as u64).to_le_bytes());
            sum.update(bytes);
        }
    };
    part("", LAYOUT);
    part("init", INIT);
    for module in modules {
        part(&module.name, &module.packed()?);
    }
    for it in additions {
        part(&format!("{:o} {}", it.mode, it.name), &it.content);
    }
    let sum = sum.finalize();
    Ok(sum.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn keep(cache: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::create_dir_all(cache)?;
    remove_stale(cache);
    let mut file = Builder::new().prefix(PARTIAL).tempfile_in(cache)?;
    file.write_all(bytes)?;
    // A power cut must not leave an empty file of this name.
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Files that processes left behind when they were killed.
fn remove_stale(cache: &Path) {
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        let is_partial = entry.file_name().to_string_lossy().starts_with(PARTIAL);
        let modified = entry.metadata().and_then(|it| it.modified());
        let age = modified.ok().and_then(|it| it.elapsed().ok());
        if is_partial && age.is_some_and(|age| age > STALE) {
            // Somebody else may have been faster.
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, addition: &Addition) -> Result<(), InitramfsError> {
        let name = addition.name.trim_start_matches('/');
        let is_plain = |piece: &str| !matches!(piece, "" | "." | "..");
        if !name.split('/').all(is_plain) || name.contains('\0') {
            return Err(InitramfsError::Part {
                name: addition.name.clone(),
                source: io::Error::other("it is no path from the root to a file"),
            });
        }
        for (end, _) in name.match_indices('/') {
            self.folder(&name[..end])?;
        }
        self.entry(
            name,
            0o100_000 | addition.mode & 0o7777,
            (0, 0),
            &addition.content,
        )
    }

    fn folder(&mut self, name: &str) -> Result<(), InitramfsError> {
        match self.folders.insert(name.to_owned()) {
            true => self.entry(name, 0o040_755, (0, 0), &[]),
            false => Ok(()),
        }
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> Result<(), InitramfsError> {
        self.entries += 1;
        let failed = |source| InitramfsError::Part {
            name: name.to_owned(),
            source,
        };
        let size = u32::try_from(content.len()).map_err(|err| failed(io::Error::other(err)))?;
        let entry = newc::Builder::new(name)
            .ino(self.entries)
            .nlink(1)
            .mode(mode)
            .rdev_major(device.0)
            .rdev_minor(device.1);
        let mut writer = entry.write(&mut self.bytes, size);
        let written = writer.write_all(content).and_then(|()| writer.finish());
        written.map(drop).map_err(failed)
    }

    fn finish(self) -> Result<Vec<u8>, InitramfsError> {
        newc::trailer(self.bytes).map_err(|source| InitramfsError::Part {
            name: "TRAILER!!!".into(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;
    use std::thread;

    use super::*;

    fn modules(folder: &Path) -> Vec<Module> {
        ["b", "a"]
            .map(|name| {
                let path = folder.join(format!("{name}.ko"));
                fs::write(&path, format!("module {name}")).unwrap();
                Module {
                    name: name.into(),
                    path,
                }
            })
            .into()
    }

    fn addition(name: &str) -> Addition {
        Addition {
            name: name.into(),
            mode: 0o755,
            content: b"program".into(),
        }
    }

    /// Name, mode and content of all entries.
    fn entries(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut rest = archive;
        let mut entries = Vec::new();
        loop {
            let mut reader = newc::Reader::new(rest).unwrap();
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            if reader.entry().is_trailer() {
                return entries;
            }
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            rest = reader.finish().unwrap();
            entries.push((name, mode, content));
        }
    }

    #[test]
    fn an_archive_has_its_parts_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let archive = build(&modules(folder.path()), &[addition("/usr/bin/x")]).unwrap();
        let entries = entries(&archive);
        let names: Vec<&str> = entries.iter().map(|it| it.0.as_str()).collect();
        let expected = [
            "dev",
            "modules",
            "proc",
            "sys",
            "dev/console",
            "init",
            "modules/b.ko",
            "modules/a.ko",
            "modules/list",
            "usr",
            "usr/bin",
            "usr/bin/x",
        ];
        assert_eq!(names, expected);
        assert_eq!(entries[4].1, 0o020_600);
        assert_eq!((entries[5].1, &entries[5].2[..]), (0o100_755, INIT));
        assert_eq!(entries[6].2, b"module b");
        assert_eq!(entries[8].2, b"b.ko\na.ko\n");
        for name in ["", "a/../b", "a//b", "./a", "a/"] {
            assert!(build(&[], &[addition(name)]).is_err(), "{name}");
        }
    }

    #[test]
    fn the_same_content_is_made_once_by_any_number() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache/initramfs");
        let modules = modules(folder.path());
        let paths: Vec<PathBuf> = thread::scope(|scope| {
            let makers = [(); 8].map(|()| scope.spawn(|| cached(&cache, &modules, &[]).unwrap()));
            makers.into_iter().map(|it| it.join().unwrap()).collect()
        });
        assert!(paths.iter().all(|path| *path == paths[0]));
        assert_eq!(fs::read(&paths[0]).unwrap(), build(&modules, &[]).unwrap());
        let number = || fs::metadata(&paths[0]).unwrap().ino();
        let before = number();
        assert_eq!(cached(&cache, &modules, &[]).unwrap(), paths[0]);
        assert_eq!(number(), before);
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 1);
        // Another content or order is another archive.
        let mut others = vec![cached(&cache, &modules[..1], &[]).unwrap()];
        others.push(cached(&cache, &[modules[1].clone(), modules[0].clone()], &[]).unwrap());
        others.push(cached(&cache, &modules, &[addition("x")]).unwrap());
        fs::write(&modules[0].path, "changed").unwrap();
        others.push(cached(&cache, &modules, &[]).unwrap());
        others.push(paths[0].clone());
        others.sort();
        others.dedup();
        assert_eq!(others.len(), 5);
    }

    #[test]
    fn what_a_killed_process_left_goes_when_it_is_old() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (
            folder.path().join(".partial-1"),
            folder.path().join(".partial-2"),
        );
        let file = fs::File::create(&old).unwrap();
        let then = SystemTime::now() - 2 * STALE;
        file.set_modified(then).unwrap();
        fs::write(&new, "in work").unwrap();
        cached(folder.path(), &[], &[]).unwrap();
        assert!(!old.exists() && new.exists());
    }

    #[test]
    fn what_was_not_used_for_long_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path();
        assert_eq!(prune(&cache.join("none"), Duration::ZERO).unwrap(), 0);
        let used = cached(cache, &[], &[]).unwrap();
        let unused = cached(cache, &[], &[addition("x")]).unwrap();
        let grow_old = |path: &Path, age| {
            let file = File::open(path).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        };
        grow_old(&used, 3 * STALE);
        grow_old(&unused, 3 * STALE);
        // A use counts.
        cached(cache, &[], &[]).unwrap();
        assert_eq!(prune(cache, 4 * STALE).unwrap(), 0);
        let size = fs::metadata(&unused).unwrap().len();
        assert_eq!(prune(cache, Duration::ZERO).unwrap(), size);
        assert!(used.exists() && !unused.exists());
    }
}
