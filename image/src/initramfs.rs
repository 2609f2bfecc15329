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
const LAYOUT: &[u8] = b"ampoule-initramfs-2";

/// How often the same modules may be replaced while they are read.
const ATTEMPTS: usize = 5;

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
    /// Modules are replaced again and again.
    #[error("the kernel's modules change while they are read")]
    Changing,
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

/// The modules of a distribution's guest, whose init of ours finds the root on the first disk.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct BootModules {
    /// Those that are loaded in any case, in their order.
    pub always: Vec<Module>,
    /// Those of file systems, by their names for mount(2), each with what it needs: loaded where the root has that file system.
    pub file_systems: Vec<(&'static str, Vec<Module>)>,
}

/// What is in an archive.
#[derive(Clone, Copy, Default)]
struct Parts<'a> {
    modules: &'a [Module],
    /// Where a disk is to be booted from.
    file_systems: Option<&'a [(&'static str, Vec<Module>)]>,
    additions: &'a [Addition],
}

/// The archive's bytes.
///
/// # Errors
/// A module cannot be read, or a part does not fit into the format.
pub fn build(modules: &[Module], additions: &[Addition]) -> Result<Vec<u8>, InitramfsError> {
    let parts = Parts {
        modules,
        additions,
        ..Parts::default()
    };
    parts.build()
}

impl Parts<'_> {
    fn build(&self) -> Result<Vec<u8>, InitramfsError> {
        let Self {
            modules,
            file_systems,
            additions,
        } = *self;
        let mut archive = Archive::default();
        for folder in ["dev", "modules", "proc", "sys"] {
            archive.folder(folder)?;
        }
        // The kernel opens it for its first process.
        archive.entry("dev/console", 0o020_600, (5, 1), &[])?;
        archive.entry("init", 0o100_755, (0, 0), INIT)?;
        archive.modules("list", modules)?;
        if let Some(file_systems) = file_systems {
            archive.entry("modules/boot", 0o100_644, (0, 0), &[])?;
            for (name, modules) in file_systems {
                archive.modules(&format!("{name}.list"), modules)?;
            }
        }
        for addition in additions {
            archive.add(addition)?;
        }
        archive.finish()
    }

    /// What stands for the content, at the price of a look at each file: the names of all parts, and of modules the files' size and
    /// times. Nobody but the kernel sets the time of a file's last change.
    fn key(&self) -> Result<String, InitramfsError> {
        let mut sum = Sha256::new();
        let mut part = |name: &str, content: &[u8]| {
            for bytes in [name.as_bytes(), content] {
                sum.update((bytes.len() as u64).to_le_bytes());
                sum.update(bytes);
            }
        };
        part("", LAYOUT);
        part("init", INIT);
        for module in self.modules {
            part(&module.name, &module.stamp()?);
        }
        for (name, modules) in self.file_systems.unwrap_or_default() {
            part("file system", name.as_bytes());
            for module in modules {
                part(&module.name, &module.stamp()?);
            }
        }
        part("boot", &[self.file_systems.is_some().into()]);
        for it in self.additions {
            part(&format!("{:o} {}", it.mode, it.name), &it.content);
        }
        Ok(text_of(sum))
    }

    fn cached(&self, cache: &Path) -> Result<PathBuf, InitramfsError> {
        let mut key = self.key()?;
        for _ in 0..ATTEMPTS {
            let path = cache.join(format!("{key}.cpio"));
            // It is complete, or it would have another name.
            // An old time of last use is no reason to fail.
            if let Ok(file) = File::open(&path) {
                let _ = file.set_modified(SystemTime::now());
                return Ok(path);
            }
            let bytes = self.build()?;
            // A module that was replaced meanwhile: the name would be wrong.
            let now = self.key()?;
            if now == key {
                return keep(cache, &path, &bytes).map(|()| path).map_err(|source| {
                    InitramfsError::Cache {
                        folder: cache.to_owned(),
                        source,
                    }
                });
            }
            key = now;
        }
        Err(InitramfsError::Changing)
    }
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
    let parts = Parts {
        modules,
        additions,
        ..Parts::default()
    };
    parts.cached(cache)
}

/// The same for a guest that is a distribution's, on its first disk.
///
/// # Errors
/// As [`cached`].
pub fn cached_for_boot(cache: &Path, modules: &BootModules) -> Result<PathBuf, InitramfsError> {
    let parts = Parts {
        modules: &modules.always,
        file_systems: Some(&modules.file_systems),
        ..Parts::default()
    };
    parts.cached(cache)
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

/// A sum as the name of a file.
pub(crate) fn text_of(sum: Sha256) -> String {
    let sum = sum.finalize();
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Gives a file its name when it is complete.
pub(crate) fn keep(cache: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
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
    modules: BTreeSet<String>,
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

    /// A list of modules, and those of them that are not there yet.
    fn modules(&mut self, list: &str, modules: &[Module]) -> Result<(), InitramfsError> {
        let mut names = String::new();
        for module in modules {
            let name = format!("{}.ko", module.name);
            if self.modules.insert(name.clone()) {
                let path = format!("modules/{name}");
                self.entry(&path, 0o100_644, (0, 0), &module.read()?)?;
            }
            names.push_str(&name);
            names.push('\n');
        }
        let path = format!("modules/{list}");
        self.entry(&path, 0o100_644, (0, 0), names.as_bytes())
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
