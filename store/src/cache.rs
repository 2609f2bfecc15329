//! The cache: one folder with an image, a description and a lock for each digest.
//!
//! - `sha256-….erofs` is complete: it was written as `sha256-….part`, brought to the disk, and renamed.
//! - `sha256-….json` describes it; it is there before the image is. Its time of modification is that of the last use.
//! - `sha256-….lock` is held (flock) exclusively by who makes or removes the image, shared by who uses it. A process that dies lets
//!   go of its locks: a `.part` whose lock is free is left over, and is removed by whoever sees it.
//!
//! A lock file is removed with its image, while it is held (`lock.rs`). What images of registries are called is in `names.rs`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::Error;
use crate::lock;
use crate::names::NamedImage;
use crate::progress::{Phase, Progress};
use crate::reference::Reference;
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
    /// What registries call it: complete names, in order.
    pub names: Vec<String>,
    /// The same by the digests of their manifests.
    pub manifests: Vec<String>,
    /// What it was made from: a path, or the name that it was pulled by.
    pub source: PathBuf,
    /// What that was.
    pub kind: SourceKind,
    /// What to mount it as.
    pub file_system: FileSystem,
    /// In bytes.
    pub size: u64,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// When it was used last, in seconds since 1970.
    pub last_used: u64,
    /// Where it is.
    pub path: PathBuf,
    /// Of what its layers unpack to, the lowest first; empty where it had none, or an older version has made it.
    pub layers: Vec<Digest>,
    /// How its command is to be run.
    pub config: ImageConfig,
}

impl CachedImage {
    /// Takes its own of these names.
    fn take_names(&mut self, names: &[NamedImage]) {
        for named in names.iter().filter(|named| named.digest == self.digest) {
            self.names.push(named.name.clone());
            if let Ok(reference) = named.name.parse::<Reference>() {
                let manifest = reference.with_digest(named.manifest).to_string();
                self.manifests.push(manifest);
            }
        }
        self.manifests.dedup();
    }

    /// Whether this is what a person may call it.
    fn is_called(&self, name: &str) -> bool {
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        if hex.len() >= 4 && self.digest.hex().starts_with(hex) {
            return true;
        }
        let complete = name.parse::<Reference>().map(|name| name.to_string());
        if complete.is_ok_and(|name| self.names.contains(&name) || self.manifests.contains(&name)) {
            return true;
        }
        // The name that an image was pulled by may be another one's by now.
        let path = fs::canonicalize(name).unwrap_or_else(|_| name.into());
        self.name.as_deref() == Some(name)
            || self.kind != SourceKind::Registry && self.source == path
    }
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
    #[serde(default)]
    layers: Vec<Digest>,
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
        let store = Self {
            folder: folder.into(),
        };
        store.make_folder(&store.folder)?;
        Ok(store)
    }

    pub(crate) fn make_folder(&self, folder: &Path) -> Result<(), Error> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(folder).map_err(Error::io("create", folder))
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
            if let Some(image) = self.used(digest, lock, was_cached) {
                return Ok(image);
            }
            // That shared lock is let go of by now: two that wait for each other's would wait for ever.
            let _lock = self.lock(&digest, true, progress)?;
            if self.description(&digest).is_none() {
                was_cached = false;
                if let Err(error) = self.make(source, digest, limits, progress) {
                    // Last, and while it is held.
                    let _ = remove(&self.path(&digest, "lock"));
                    return Err(error);
                }
            }
        }
    }

    /// The image of this digest, if it is there.
    ///
    /// # Errors
    /// Its lock cannot be taken.
    pub fn open_image(&self, digest: Digest) -> Result<Option<Image>, Error> {
        if !self.contains(&digest) {
            return Ok(None);
        }
        let lock = self.lock(&digest, false, &mut |_| {})?;
        Ok(self.used(digest, lock, true))
    }

    /// Whether the image of this digest is there and whole.
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        self.description(digest).is_some()
    }

    /// An image that is used from now on, if it is there; its lock is held.
    fn used(&self, digest: Digest, lock: File, was_cached: bool) -> Option<Image> {
        let description = self.description(&digest)?;
        let now = File::open(self.path(&digest, "json"));
        // An old time of last use is no reason to fail.
        let _ = now.and_then(|file| file.set_modified(SystemTime::now()));
        Some(Image {
            path: self.path(&digest, "erofs"),
            file_system: FileSystem::Erofs,
            config: description.config,
            digest: Some(digest),
            was_cached,
            _lock: Some(lock),
        })
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
        let unpacked = source.unpack(part, limits, progress)?;
        let made_from = unpacked.as_ref().unwrap_or(source);
        let file = create(part)?;
        let size = made_from.build(digest, &file, limits, progress)?;
        if unpacked.is_some() && source.digest()? != Some(digest) {
            let path = source.path().to_owned();
            return Err(Error::Changed { path });
        }
        file.sync_all().map_err(Error::io("write", part))?;
        let description = Description {
            version: VERSION,
            name: made_from.name().map(ToOwned::to_owned),
            source: match source.kind() {
                SourceKind::Registry => source.path().to_owned(),
                _ => fs::canonicalize(source.path()).unwrap_or_else(|_| source.path().to_owned()),
            },
            kind: made_from.kind(),
            size,
            created: seconds(SystemTime::now()),
            layers: made_from.layers(),
            config: made_from.config(),
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
        let waiting = || {
            progress(Progress {
                phase: Phase::Waiting,
                done: 0,
                total: None,
            });
        };
        lock::lock(&self.path(digest, "lock"), exclusive, waiting)
    }

    /// Takes an image's lock where nobody is in the way.
    fn try_lock(&self, digest: &Digest, exclusive: bool) -> Result<Option<File>, Error> {
        lock::try_lock(&self.path(digest, "lock"), exclusive)
    }

    /// All images, the last used first. What processes that died have left over is removed.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> Result<Vec<CachedImage>, Error> {
        let mut images = Vec::new();
        self.sweep()?;
        let names = self.names();
        for digest in self.digests("erofs")? {
            if let Some(mut image) = self.cached(digest) {
                image.take_names(&names);
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
            names: Vec::new(),
            manifests: Vec::new(),
            source: description.source,
            kind: description.kind,
            file_system: FileSystem::Erofs,
            size: description.size,
            created: description.created,
            last_used: used.map_or(description.created, seconds),
            path: self.path(&digest, "erofs"),
            layers: description.layers,
            config: description.config,
        })
    }

    /// The one image that is called so: by its digest or the digest's first digits (at least four), its name in a registry or in its
    /// source, or its source's path.
    ///
    /// # Errors
    /// None is, several are, or the folder cannot be read.
    pub fn inspect(&self, name: &str) -> Result<CachedImage, Error> {
        let mut images = self.list()?;
        images.retain(|image| image.is_called(name));
        match images.len() {
            1 => Ok(images.swap_remove(0)),
            found => Err(Error::NotOne {
                name: name.into(),
                found,
            }),
        }
    }

    /// Removes an image and its names, unless it is being used.
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
        self.sweep_names()?;
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
            bytes: self.sweep()? + self.sweep_pulls()?,
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
        self.sweep_names()?;
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

pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// An empty file.
pub(crate) fn create(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    options
        .mode(0o600)
        .open(path)
        .map_err(Error::io("create", path))
}

/// Removes a file that may be missing. The bytes it had.
pub(crate) fn remove(path: &Path) -> Result<u64, Error> {
    let size = fs::symlink_metadata(path).map_or(0, |metadata| metadata.len());
    match fs::remove_file(path) {
        Ok(()) => Ok(size),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(Error::io("remove", path)(error)),
    }
}
