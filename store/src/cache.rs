//! The cache: one folder with an image, a description and a lock for each digest.
//!
//! - `sha256-….erofs` is complete: it was written as `sha256-….part`, brought to the disk, and renamed.
//! - `sha256-….json` describes it; it is there before the image is. Its time of modification is that of the last use.
//! - `sha256-….lock` is held (flock) exclusively by who makes or removes the image, shared by who uses it. A process that dies lets
//!   go of its locks: a `.part` whose lock is free is left over, and is removed by whoever sees it.
//!
//! A lock file is removed with its image, while it is held: who then gets the lock of a file that is no longer there tries again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::Error;
use crate::progress::{Phase, Progress};
use crate::source::{FileSystem, Source, SourceKind};
use crate::tree::Limits;

/// Of what the images look like: those of another one are made anew.
const VERSION: u32 = 1;

/// A folder of images.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

/// An image to be used. While it exists, no process removes it from the cache.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file_system: FileSystem,
    config: ImageConfig,
    digest: Option<Digest>,
    was_cached: bool,
    /// Held shared.
    _lock: Option<File>,
}

impl Image {
    /// The image's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to mount it as.
    #[must_use]
    pub fn file_system(&self) -> FileSystem {
        self.file_system
    }

    /// How its command is to be run.
    #[must_use]
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// What it is called by in the cache; `None` where it is a file that the source named.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Whether it was there already.
    #[must_use]
    pub fn was_cached(&self) -> bool {
        self.was_cached
    }
}

/// What the cache knows of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct CachedImage {
    /// What it is called by.
    pub digest: Digest,
    /// The image's name in its source, where it had one.
    pub name: Option<String>,
    /// What it was made from.
    pub source: PathBuf,
    /// What that was.
    pub kind: SourceKind,
    /// In bytes.
    pub size: u64,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// When it was used last, in seconds since 1970.
    pub last_used: u64,
    /// Where it is.
    pub path: PathBuf,
    /// How its command is to be run.
    pub config: ImageConfig,
}

/// A description as it is in its file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Description {
    version: u32,
    name: Option<String>,
    source: PathBuf,
    kind: SourceKind,
    size: u64,
    created: u64,
    config: ImageConfig,
}

/// What became of an image that was to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Removal {
    /// It is gone.
    Removed {
        /// The bytes that it had.
        size: u64,
    },
    /// It is being used or made: it stays.
    InUse,
    /// There was none.
    Absent,
}

/// What [`Store::prune`] has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pruned {
    /// The images that it has removed.
    pub removed: Vec<Digest>,
    /// Their bytes, with those of what was left over from processes that died.
    pub bytes: u64,
    /// The images that it has left, being used.
    pub in_use: Vec<Digest>,
}

/// Where a user's caches of Ampoule are: `$XDG_CACHE_HOME/ampoule`, or `$HOME/.cache/ampoule`. It may not be there yet.
///
/// # Errors
/// [`Error::NoCache`]: neither variable is set.
pub fn cache_folder() -> Result<PathBuf, Error> {
    let absolute = |name: &str| {
        let path = PathBuf::from(std::env::var_os(name)?);
        // As the specification of these folders has it, others are ignored.
        path.is_absolute().then_some(path)
    };
    let cache = absolute("XDG_CACHE_HOME");
    let cache = cache.or_else(|| Some(absolute("HOME")?.join(".cache")));
    Ok(cache.ok_or(Error::NoCache)?.join("ampoule"))
}

impl Store {
    /// The folder `images` of [`cache_folder`].
    ///
    /// # Errors
    /// There is no place for it, or it cannot be made.
    pub fn open_default() -> Result<Self, Error> {
        Self::open(cache_folder()?.join("images"))
    }

    /// A folder of this name, made where it is missing.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, Error> {
        let folder = folder.into();
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder
            .create(&folder)
            .map_err(Error::io("create", &folder))?;
        Ok(Self { folder })
    }

    /// Where the images are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The image of a source: the one in the cache, or one that is made now, which another process that wants it waits for. A file system
    /// image is its own.
    ///
    /// # Errors
    /// The source is refused, cannot be read, or the image cannot be written.
    pub fn get(
        &self,
        source: &Source,
        limits: Limits,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Image, Error> {
        if let SourceKind::FileSystem(file_system) = source.kind() {
            return Ok(Image {
                path: source.path().to_owned(),
                file_system,
                config: ImageConfig::default(),
                digest: None,
                was_cached: true,
                _lock: None,
            });
        }
        let Some(digest) = source.digest()? else {
            return Err(Error::Unrecognised {
                path: source.path().into(),
            });
        };
        let mut was_cached = true;
        loop {
            let lock = self.lock(&digest, false, progress)?;
            if let Some(description) = self.description(&digest) {
                let now = File::open(self.path(&digest, "json"));
                // An old time of last use is no reason to fail.
                let _ = now.and_then(|file| file.set_modified(SystemTime::now()));
                return Ok(Image {
                    path: self.path(&digest, "erofs"),
                    file_system: FileSystem::Erofs,
                    config: description.config,
                    digest: Some(digest),
                    was_cached,
                    _lock: Some(lock),
                });
            }
            // Two that both wait for the other's shared lock would wait for ever.
            drop(lock);
            let _lock = self.lock(&digest, true, progress)?;
            if self.description(&digest).is_none() {
                was_cached = false;
                self.make(source, digest, limits, progress)?;
            }
        }
    }

    /// Makes an image, whose lock is held exclusively.
    fn make(
        &self,
        source: &Source,
        digest: Digest,
        limits: Limits,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), Error> {
        let part = self.path(&digest, "part");
        let made = self.write(source, digest, &part, limits, progress);
        if made.is_err() {
            // What does not go now is recognised later.
            let _ = fs::remove_file(&part);
        }
        made.map_err(|error| match error {
            Error::Io {
                action,
                path,
                source,
            } if path == Path::new("(image)") => Error::io(action, &part)(source),
            error => error,
        })
    }

    fn write(
        &self,
        source: &Source,
        digest: Digest,
        part: &Path,
        limits: Limits,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), Error> {
        let file = create(part)?;
        let size = source.build(digest, &file, limits, progress)?;
        file.sync_all().map_err(Error::io("write", part))?;
        let description = Description {
            version: VERSION,
            name: source.name().map(ToOwned::to_owned),
            source: fs::canonicalize(source.path()).unwrap_or_else(|_| source.path().to_owned()),
            kind: source.kind(),
            size,
            created: seconds(SystemTime::now()),
            config: source.config(),
        };
        let text = serde_json::to_vec_pretty(&description).map_err(|source| Error::Document {
            what: "the description".into(),
            source,
        })?;
        // The image goes first where there is one: a description never is one of another image.
        let image = self.path(&digest, "erofs");
        remove(&image)?;
        let json = self.path(&digest, "json");
        let mut file = create(&json)?;
        file.write_all(&text)
            .and_then(|()| file.sync_all())
            .map_err(Error::io("write", &json))?;
        fs::rename(part, &image).map_err(Error::io("create", &image))?;
        let folder = File::open(&self.folder).and_then(|folder| folder.sync_all());
        folder.map_err(Error::io("write", &self.folder))
    }

    fn path(&self, digest: &Digest, extension: &str) -> PathBuf {
        self.folder
            .join(format!("sha256-{}.{extension}", digest.hex()))
    }

    /// An image's description, where the image is complete.
    fn description(&self, digest: &Digest) -> Option<Description> {
        let image = fs::metadata(self.path(digest, "erofs")).ok()?;
        let text = fs::read(self.path(digest, "json")).ok()?;
        let description: Description = serde_json::from_slice(&text).ok()?;
        let is_good = description.version == VERSION && description.size == image.len();
        is_good.then_some(description)
    }

    /// Takes an image's lock, and waits for it.
    fn lock(
        &self,
        digest: &Digest,
        exclusive: bool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<File, Error> {
        loop {
            if let Some(lock) = self.try_lock(digest, exclusive)? {
                return Ok(lock);
            }
            progress(Progress {
                phase: Phase::Waiting,
                done: 0,
                total: None,
            });
            let path = self.path(digest, "lock");
            let file = open_lock(&path)?;
            let operation = match exclusive {
                true => FlockOperation::LockExclusive,
                false => FlockOperation::LockShared,
            };
            match rustix::fs::flock(&file, operation) {
                Ok(()) if is_current(&file, &path) => return Ok(file),
                Ok(()) | Err(Errno::INTR) => {}
                Err(error) => return Err(Error::io("lock", path)(error.into())),
            }
        }
    }

    /// Takes an image's lock where nobody is in the way.
    fn try_lock(&self, digest: &Digest, exclusive: bool) -> Result<Option<File>, Error> {
        let path = self.path(digest, "lock");
        let operation = match exclusive {
            true => FlockOperation::NonBlockingLockExclusive,
            false => FlockOperation::NonBlockingLockShared,
        };
        loop {
            let file = open_lock(&path)?;
            match rustix::fs::flock(&file, operation) {
                Ok(()) if is_current(&file, &path) => return Ok(Some(file)),
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(Error::io("lock", path)(error.into())),
            }
        }
    }

    /// All images, the last used first. What processes that died have left over is removed.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> Result<Vec<CachedImage>, Error> {
        let mut images = Vec::new();
        self.sweep()?;
        for digest in self.digests("erofs")? {
            if let Some(image) = self.cached(digest) {
                images.push(image);
            }
        }
        images.sort_by(|a, b| (b.last_used, a.digest).cmp(&(a.last_used, b.digest)));
        Ok(images)
    }

    fn cached(&self, digest: Digest) -> Option<CachedImage> {
        let description = self.description(&digest)?;
        let used = fs::metadata(self.path(&digest, "json"));
        let used = used.and_then(|metadata| metadata.modified());
        Some(CachedImage {
            digest,
            name: description.name,
            source: description.source,
            kind: description.kind,
            size: description.size,
            created: description.created,
            last_used: used.map_or(description.created, seconds),
            path: self.path(&digest, "erofs"),
            config: description.config,
        })
    }

    /// The one image that is called so: by its digest or the digest's first digits (at least four), its name, or its source's path.
    ///
    /// # Errors
    /// None is, several are, or the folder cannot be read.
    pub fn inspect(&self, name: &str) -> Result<CachedImage, Error> {
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        let is_called = |image: &CachedImage| {
            let by_digest = hex.len() >= 4 && image.digest.hex().starts_with(hex);
            by_digest || image.name.as_deref() == Some(name) || image.source == Path::new(name)
        };
        let mut images = self.list()?;
        images.retain(is_called);
        match images.len() {
            1 => Ok(images.swap_remove(0)),
            found => Err(Error::NotOne {
                name: name.into(),
                found,
            }),
        }
    }

    /// Removes an image, unless it is being used.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn remove(&self, digest: &Digest) -> Result<Removal, Error> {
        let exists = |extension| self.path(digest, extension).exists();
        if !exists("erofs") && !exists("part") && !exists("json") {
            return Ok(Removal::Absent);
        }
        let Some(_lock) = self.try_lock(digest, true)? else {
            return Ok(Removal::InUse);
        };
        let mut size = 0;
        for extension in ["erofs", "json", "part"] {
            size += remove(&self.path(digest, extension))?;
        }
        // Last, and while it is held.
        remove(&self.path(digest, "lock"))?;
        Ok(Removal::Removed { size })
    }

    /// Removes the images that were not used for so long, zero for all, and what processes that died have left over.
    ///
    /// # Errors
    /// The folder cannot be read, or a file not removed.
    pub fn prune(&self, unused_for: Duration) -> Result<Pruned, Error> {
        let mut pruned = Pruned {
            bytes: self.sweep()?,
            ..Pruned::default()
        };
        let now = seconds(SystemTime::now());
        for digest in self.digests("erofs")? {
            let used = self.cached(digest).map_or(0, |image| image.last_used);
            if now.saturating_sub(used) < unused_for.as_secs() {
                continue;
            }
            match self.remove(&digest)? {
                Removal::Removed { size } => {
                    pruned.bytes += size;
                    pruned.removed.push(digest);
                }
                Removal::InUse => pruned.in_use.push(digest),
                Removal::Absent => {}
            }
        }
        Ok(pruned)
    }

    /// Removes what is left over: images half made, descriptions and locks without an image. The bytes.
    fn sweep(&self) -> Result<u64, Error> {
        let mut bytes = 0;
        for extension in ["part", "json", "lock"] {
            for digest in self.digests(extension)? {
                let is_whole = self.description(&digest).is_some();
                if extension != "part" && is_whole {
                    continue;
                }
                // Who makes or removes it holds the lock.
                let Some(_lock) = self.try_lock(&digest, true)? else {
                    continue;
                };
                bytes += remove(&self.path(&digest, "part"))?;
                if self.description(&digest).is_none() {
                    bytes += remove(&self.path(&digest, "erofs"))?;
                    remove(&self.path(&digest, "json"))?;
                    remove(&self.path(&digest, "lock"))?;
                }
            }
        }
        Ok(bytes)
    }

    /// The digests of the folder's files of this kind, in order.
    fn digests(&self, extension: &str) -> Result<Vec<Digest>, Error> {
        let error = || Error::io("read", &self.folder);
        let mut digests = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(error())? {
            let name = entry.map_err(error())?.file_name();
            let name = name.to_str().and_then(|name| name.strip_prefix("sha256-"));
            let stem = name.and_then(|name| name.strip_suffix(extension)?.strip_suffix('.'));
            digests.extend(stem.and_then(|stem| stem.parse::<Digest>().ok()));
        }
        digests.sort_unstable();
        Ok(digests)
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn open_lock(path: &Path) -> Result<File, Error> {
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

/// An empty file.
fn create(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    options
        .mode(0o600)
        .open(path)
        .map_err(Error::io("create", path))
}

/// Removes a file that may be missing. The bytes it had.
fn remove(path: &Path) -> Result<u64, Error> {
    let size = fs::symlink_metadata(path).map_or(0, |metadata| metadata.len());
    match fs::remove_file(path) {
        Ok(()) => Ok(size),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(Error::io("remove", path)(error)),
    }
}
