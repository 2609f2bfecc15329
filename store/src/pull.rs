//! Images on their way from a registry: a folder for each manifest, in which blobs gather until the image can be made of them.
//!
//! `pulls/sha256-…/` is an OCI layout in the making, `pulls/sha256-….lock` is held exclusively by who fills it. Who comes second waits,
//! and finds the image made. What a process that died has left is a start for the next one that wants the same image: a blob has the
//! name of its digest when it is whole, and is verified once more when the image is made. [`Store::prune`] removes the rest.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::cache::{Image, Store, create, remove};
use crate::digest::Digest;
use crate::error::Error;
use crate::lock;
use crate::progress::{Phase, Progress};
use crate::reference::Reference;
use crate::source::Source;
use crate::tree::Limits;

/// The folder of an image that is being pulled. When it is dropped, all of it is removed.
#[derive(Debug)]
pub struct Pull {
    store: Store,
    folder: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Store {
    fn pulls_folder(&self) -> PathBuf {
        self.folder().join("pulls")
    }

    /// A folder for the blobs of an image, by the digest of its manifest. Another process that pulls the same is waited for.
    ///
    /// # Errors
    /// The folder cannot be made, or not be locked.
    pub fn pull(
        &self,
        manifest: &Digest,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Pull, Error> {
        let pulls = self.pulls_folder();
        self.make_folder(&pulls)?;
        let folder = pulls.join(format!("sha256-{}", manifest.hex()));
        let lock_path = folder.with_extension("lock");
        let waiting = || {
            progress(Progress {
                phase: Phase::Waiting,
                done: 0,
                total: None,
            });
        };
        let lock = lock::lock(&lock_path, true, waiting)?;
        let pull = Pull {
            store: self.clone(),
            folder,
            lock_path,
            _lock: lock,
        };
        self.make_folder(&pull.folder.join("blobs/sha256"))?;
        Ok(pull)
    }

    /// Removes the folders of pulls that nobody is at. Their bytes.
    pub(crate) fn sweep_pulls(&self) -> Result<u64, Error> {
        let pulls = self.pulls_folder();
        let mut bytes = 0;
        for entry in fs::read_dir(&pulls).into_iter().flatten().flatten() {
            let lock_path = entry.path().with_extension("lock");
            let Some(_lock) = lock::try_lock(&lock_path, true)? else {
                continue;
            };
            bytes += clear(&lock_path)?;
        }
        Ok(bytes)
    }
}

impl Pull {
    /// Where a blob is when it is whole.
    #[must_use]
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs/sha256").join(digest.hex())
    }

    /// Where a blob is while it comes.
    #[must_use]
    pub fn partial(&self, digest: &Digest) -> PathBuf {
        self.blob(digest).with_extension("part")
    }

    /// Makes the image of the blobs, among them its manifest, and gives it its name. `named` is the digest of what the registry has
    /// under that name: the manifest, or an index that leads to it.
    ///
    /// # Errors
    /// As [`Store::get`]; a blob is missing or not what its digest says.
    pub fn finish(
        self,
        reference: &Reference,
        named: Digest,
        manifest: &Digest,
        limits: Limits,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Image, Error> {
        let size = fs::metadata(self.blob(manifest));
        let size = size.map_err(Error::io("read", self.blob(manifest)))?.len();
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{manifest}","size":{size}}}]}}"#
        );
        for (name, text) in [
            ("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
            ("index.json", &index),
        ] {
            let path = self.folder.join(name);
            create(&path)?
                .write_all(text.as_bytes())
                .map_err(Error::io("write", &path))?;
        }
        let source = Source::pulled(&self.folder, reference)?;
        let image = self.store.get(&source, limits, progress)?;
        self.store.set_name(reference, &image, named)?;
        Ok(image)
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        // What does not go now goes by a prune.
        let _ = clear(&self.lock_path);
    }
}

/// Removes a pull's folder, and last its lock, which is held. The bytes.
fn clear(lock_path: &Path) -> Result<u64, Error> {
    let folder = lock_path.with_extension("");
    let bytes = size_of(&folder);
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io("remove", folder)(error));
        }
        _ => {}
    }
    remove(lock_path)?;
    Ok(bytes)
}

/// The bytes of a layout's files.
fn size_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size_of(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
