//! What images of registries are called: for each name a file that says which image it was when somebody asked last.
//!
//! `names/HEX.json`, where HEX is the digest of the complete name, is written beside and renamed. Changes are made under `names/lock`,
//! so that a name that was just given is not taken away as one of an image that is gone.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::cache::{Image, Store, create, remove, seconds};
use crate::digest::Digest;
use crate::error::Error;
use crate::lock;
use crate::reference::Reference;

/// Which image a name means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct NamedImage {
    /// The complete name.
    pub name: String,
    /// What the image is called by in the cache.
    pub digest: Digest,
    /// The digest of the manifest, or of the index of manifests, that the registry has under this name.
    pub manifest: Digest,
    /// When the registry said so, in seconds since 1970.
    pub checked: u64,
}

impl Store {
    fn names_folder(&self) -> PathBuf {
        self.folder().join("names")
    }

    fn name_path(&self, reference: &Reference) -> PathBuf {
        let digest = Digest::of(reference.to_string().as_bytes());
        self.names_folder().join(format!("{}.json", digest.hex()))
    }

    /// The folder is there, and nobody else changes it.
    fn lock_names(&self) -> Result<File, Error> {
        let folder = self.names_folder();
        self.make_folder(&folder)?;
        lock::lock(&folder.join("lock"), true, || {})
    }

    /// Which image a name means, as far as the cache knows. The image may be gone.
    #[must_use]
    pub fn named(&self, reference: &Reference) -> Option<NamedImage> {
        read(&self.name_path(reference)).filter(|named| named.name == reference.to_string())
    }

    /// The image of a name, if it is in the cache. No registry is asked.
    ///
    /// # Errors
    /// Its lock cannot be taken.
    pub fn open_named(&self, reference: &Reference) -> Result<Option<Image>, Error> {
        match self.named(reference) {
            Some(named) => self.open_image(named.digest),
            None => Ok(None),
        }
    }

    /// Gives a name to an image that is being used, and takes it from another one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_name(
        &self,
        reference: &Reference,
        image: &Image,
        manifest: Digest,
    ) -> Result<(), Error> {
        let Some(digest) = image.digest() else {
            return Ok(());
        };
        let named = NamedImage {
            name: reference.to_string(),
            digest,
            manifest,
            checked: seconds(SystemTime::now()),
        };
        let text = serde_json::to_vec_pretty(&named).map_err(|source| Error::Document {
            what: "the name".into(),
            source,
        })?;
        let _lock = self.lock_names()?;
        let path = self.name_path(reference);
        let new = path.with_extension("new");
        let mut file = create(&new)?;
        file.write_all(&text)
            .and_then(|()| file.sync_all())
            .map_err(Error::io("write", &new))?;
        fs::rename(&new, &path).map_err(Error::io("create", &path))
    }

    /// Takes a name from its image, which stays. Whether there was one.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn forget(&self, reference: &Reference) -> Result<bool, Error> {
        if self.named(reference).is_none() {
            return Ok(false);
        }
        let _lock = self.lock_names()?;
        remove(&self.name_path(reference)).map(|bytes| bytes > 0)
    }

    /// All names, in order.
    pub(crate) fn names(&self) -> Vec<NamedImage> {
        let files = fs::read_dir(self.names_folder());
        let files = files.into_iter().flatten().flatten();
        let mut names: Vec<_> = files.filter_map(|file| read(&file.path())).collect();
        names.sort_by(|a, b| a.name.cmp(&b.name));
        names
    }

    /// Takes away the names of images that are not there, and what was half written.
    pub(crate) fn sweep_names(&self) -> Result<(), Error> {
        let folder = self.names_folder();
        if !folder.is_dir() {
            return Ok(());
        }
        let _lock = self.lock_names()?;
        for file in fs::read_dir(&folder).map_err(Error::io("read", &folder))? {
            let path = file.map_err(Error::io("read", &folder))?.path();
            if path.ends_with("lock") {
                continue;
            }
            let is_good = read(&path).is_some_and(|named| self.contains(&named.digest));
            if !is_good {
                remove(&path)?;
            }
        }
        Ok(())
    }
}

/// What is damaged is as good as not there.
fn read(path: &Path) -> Option<NamedImage> {
    if path.extension()? != "json" {
        return None;
    }
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}
