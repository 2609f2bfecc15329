//! What an image is made from: told by its content, never by its name.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::archive::ArchiveReader;
use crate::config::{
    ConfigDocument, Descriptor, ImageConfig, Index, Manifest, SavedImage, architecture,
};
use crate::container::{Container, open_file};
use crate::digest::{Digest, HashingReader};
use crate::erofs;
use crate::error::Error;
use crate::folder::Folder;
use crate::layer::{Builder, stream_error};
use crate::manifest::{for_platform, is_index};
use crate::packed;
use crate::progress::{Phase, Progress};
use crate::reference::Reference;
use crate::stream::{Bounded, decompress, is_compressed};
use crate::tree::Limits;

/// Where an OCI layout names its images.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Where containerd names them.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// An index may name an index, once for the platforms; more is no image.
const MAX_INDEXES: usize = 4;

/// The kinds of sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SourceKind {
    /// A directory of the host's.
    Directory,
    /// What `docker save` and `podman save` write.
    DockerArchive,
    /// An OCI layout in a tar archive.
    OciArchive,
    /// An OCI layout in a directory.
    OciLayout,
    /// One of the archives above, packed by gzip or zstd as a whole; which one shows when it is unpacked.
    PackedArchive,
    /// An image of a registry ([`Pull`](crate::Pull)).
    Registry,
    /// A root file system in a tar archive, packed by gzip or zstd or not, as `docker export` and `debootstrap`'s users write it.
    RootArchive,
    /// A file system image, used as it is.
    FileSystem(FileSystem),
}

/// The file systems of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FileSystem {
    /// EROFS, which is what the store writes.
    Erofs,
    /// ext2, ext3 and ext4.
    Ext4,
    /// SquashFS.
    Squashfs,
}

impl FileSystem {
    /// Its name for mount(2).
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Ext4 => "ext4",
            Self::Squashfs => "squashfs",
        }
    }

    /// What a file's beginning says.
    fn of(start: &[u8]) -> Option<Self> {
        let at =
            |offset: usize, magic: &[u8]| start.get(offset..offset + magic.len()) == Some(magic);
        if at(erofs::SUPER_OFFSET as usize, &erofs::MAGIC.to_le_bytes()) {
            Some(Self::Erofs)
        } else if at(1024 + 56, &[0x53, 0xef]) {
            Some(Self::Ext4)
        } else if at(0, b"hsqs") {
            Some(Self::Squashfs)
        } else {
            None
        }
    }
}

/// Something that is or can become an image.
pub struct Source {
    path: PathBuf,
    kind: SourceKind,
    inner: Inner,
}

enum Inner {
    Folder(Folder),
    Image(Box<Resolved>),
    RootArchive(File),
    /// The archive, and the name of the image that is wanted of it.
    Packed(File, Option<String>),
    FileSystem,
}

/// An image's configuration and layers, found and checked as far as the documents go.
struct Resolved {
    container: Container,
    name: Option<String>,
    config: ImageConfig,
    config_digest: Digest,
    layers: Vec<Layer>,
}

struct Layer {
    file: String,
    /// Of the file, where something says it.
    digest: Option<Digest>,
    size: u64,
    /// Of what it unpacks to.
    diff_id: Digest,
}

impl Source {
    /// Opens what is there. Of several images in an archive or layout, `name` says which: a tag, or all of its name.
    ///
    /// Documents are read and their digests verified; layers are not read yet.
    ///
    /// # Errors
    /// It cannot be opened, is nothing of the kind, or its documents do not make an image for this machine.
    pub fn open(path: impl AsRef<Path>, name: Option<&str>) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        let metadata = std::fs::metadata(&path).map_err(Error::io("open", &path))?;
        if metadata.is_dir() {
            let container = Container::Folder(path.clone());
            if container.has("oci-layout") && container.has("index.json") {
                let inner = Inner::Image(Box::new(oci(container, name)?));
                let kind = SourceKind::OciLayout;
                return Ok(Self { path, kind, inner });
            }
            let inner = Inner::Folder(Folder::open(&path)?);
            let kind = SourceKind::Directory;
            return Ok(Self { path, kind, inner });
        }
        let mut file = open_file(&path).map_err(Error::io("open", &path))?;
        let mut start = Vec::new();
        let reading = || Error::io("read", &path);
        let head = &mut (&file).take(4096);
        head.read_to_end(&mut start).map_err(reading())?;
        file.seek(SeekFrom::Start(0)).map_err(reading())?;
        if let Some(file_system) = FileSystem::of(&start) {
            let kind = SourceKind::FileSystem(file_system);
            let inner = Inner::FileSystem;
            return Ok(Self { path, kind, inner });
        }
        let (kind, inner) = if is_compressed(&start) && packed::holds_images(&file, &path)? {
            let inner = Inner::Packed(file, name.map(ToOwned::to_owned));
            (SourceKind::PackedArchive, inner)
        } else if is_compressed(&start) {
            (SourceKind::RootArchive, Inner::RootArchive(file))
        } else if is_archive(&start) {
            archive(file, &path, name)?
        } else {
            return Err(Error::Unrecognised { path });
        };
        Ok(Self { path, kind, inner })
    }

    /// What a registry calls so, whose blobs are in a layout.
    pub(crate) fn pulled(layout: &Path, reference: &Reference) -> Result<Self, Error> {
        let mut image = oci(Container::Folder(layout.to_owned()), None)?;
        // Its names are the cache's matter: they may become those of other images.
        image.name = None;
        Ok(Self {
            path: reference.to_string().into(),
            kind: SourceKind::Registry,
            inner: Inner::Image(Box::new(image)),
        })
    }

    /// What is in an archive that is packed as a whole: unpacked to a file that had this path for a moment, and has none any more.
    /// `None` of others.
    pub(crate) fn unpack(
        &self,
        at: &Path,
        limits: Limits,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Option<Self>, Error> {
        let Inner::Packed(file, name) = &self.inner else {
            return Ok(None);
        };
        let size = file.metadata().map_err(Error::io("read", &self.path))?;
        let counted = Counted::new(file, 0, size.len(), progress).of(Phase::Unpacking);
        let unpacked = packed::unpack(file, counted, &self.path, at, limits)?;
        let (kind, inner) = archive(unpacked, &self.path, name.as_deref())?;
        let path = self.path.clone();
        // It only looked like one: it is read as it is.
        let is_image = matches!(inner, Inner::Image(_));
        Ok(is_image.then_some(Self { path, kind, inner }))
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> SourceKind {
        self.kind
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Of what its layers unpack to, the lowest first.
    pub(crate) fn layers(&self) -> Vec<Digest> {
        match &self.inner {
            Inner::Image(image) => image.layers.iter().map(|layer| layer.diff_id).collect(),
            _ => Vec::new(),
        }
    }

    /// How its command is to be run; of an archive that is packed as a whole, only its image says it.
    #[must_use]
    pub fn config(&self) -> ImageConfig {
        match &self.inner {
            Inner::Image(image) => image.config.clone(),
            _ => ImageConfig::default(),
        }
    }

    /// The image's name in its archive or layout, where it has one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match &self.inner {
            Inner::Image(image) => image.name.as_deref(),
            _ => None,
        }
    }

    /// What the image is called by: the digest of its configuration, which names all layers; else of what `stat` says of the source,
    /// times of change included. `None` for a file system image.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn digest(&self) -> Result<Option<Digest>, Error> {
        Ok(match &self.inner {
            Inner::Image(image) => Some(image.config_digest),
            Inner::Folder(folder) => Some(folder.manifest()?.digest),
            Inner::RootArchive(file) => Some(self.stat_digest(file)?),
            Inner::Packed(file, name) => {
                let name = name.as_deref().unwrap_or_default();
                let stat = self.stat_digest(file)?;
                Some(Digest::of(&[stat.as_bytes(), name.as_bytes()].concat()))
            }
            Inner::FileSystem => None,
        })
    }

    fn stat_digest(&self, file: &File) -> Result<Digest, Error> {
        let stat = file.metadata().map_err(Error::io("read", &self.path))?;
        let numbers = [
            stat.dev(),
            stat.ino(),
            stat.size(),
            stat.mtime() as u64,
            stat.mtime_nsec() as u64,
            stat.ctime() as u64,
            stat.ctime_nsec() as u64,
        ];
        let bytes: Vec<u8> = numbers.into_iter().flat_map(u64::to_le_bytes).collect();
        Ok(Digest::of(&bytes))
    }

    /// Writes the image to an empty file. Its size.
    pub(crate) fn build(
        &self,
        digest: Digest,
        image: &File,
        limits: Limits,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<u64, Error> {
        let mut builder = Builder::new(image, limits)?;
        match &self.inner {
            Inner::Image(resolved) => resolved.add_to(&mut builder, progress)?,
            Inner::Folder(folder) => {
                let manifest = folder.manifest()?;
                let total = Some(manifest.bytes);
                let phase = Phase::Reading;
                let mut report = |done| progress(Progress { phase, done, total });
                folder.add_to(&mut builder, &mut report)?;
                if folder.manifest()?.digest != digest {
                    let path = self.path.clone();
                    return Err(Error::Changed { path });
                }
            }
            Inner::RootArchive(file) | Inner::Packed(file, _) => {
                let mut file = file;
                let size = file
                    .metadata()
                    .map_err(Error::io("read", &self.path))?
                    .len();
                file.seek(SeekFrom::Start(0))
                    .map_err(Error::io("read", &self.path))?;
                let what = format!("\"{}\"", self.path.display());
                let counted = Counted::new(file, 0, size, progress);
                let mut left = limits.max_image_size;
                builder.add_stream(counted, &mut left, &what, None)?;
                if self.digest()? != Some(digest) {
                    let path = self.path.clone();
                    return Err(Error::Changed { path });
                }
            }
            Inner::FileSystem => {}
        }
        progress(Progress {
            phase: Phase::Writing,
            done: builder.image.position(),
            total: None,
        });
        builder.finish(digest)
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source")
            .field("path", &self.path)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl<'a> Builder<'a> {
    pub(crate) fn new(image: &'a File, limits: Limits) -> Result<Self, Error> {
        let writer = erofs::ImageWriter::new(image, limits.max_image_size);
        Ok(Self {
            tree: crate::tree::Tree::new(limits),
            image: writer.map_err(Error::io("write", "(image)"))?,
            max_image_size: limits.max_image_size,
        })
    }

    /// Adds an archive, packed or not; a layer where there is a digest of what it unpacks to.
    pub(crate) fn add_stream(
        &mut self,
        stream: impl Read,
        left: &mut u64,
        what: &str,
        diff_id: Option<Digest>,
    ) -> Result<(), Error> {
        let error = |error| stream_error(error, what);
        let unpacked = decompress(stream).map_err(error)?;
        let bounded = Bounded::new(unpacked, left, self.max_image_size);
        let Some(expected) = diff_id else {
            let mut archive = ArchiveReader::new(io::BufReader::new(bounded), true);
            self.add_archive(&mut archive, what, false)?;
            // Damage behind the archive's end is damage.
            io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(error)?;
            return Ok(());
        };
        let hashing = io::BufReader::with_capacity(64 << 10, HashingReader::new(bounded));
        // The digest says whether it is complete; some programs leave the end away.
        let mut archive = ArchiveReader::new(hashing, false);
        self.add_archive(&mut archive, what, true)?;
        let mut hashing = archive.into_inner();
        io::copy(&mut hashing, &mut io::sink()).map_err(error)?;
        let (_, found) = hashing.into_inner().finish();
        if found != expected {
            let what = format!("{what}, unpacked,");
            return Err(Error::WrongDigest {
                what,
                expected,
                found,
            });
        }
        Ok(())
    }

    /// Completes the image, and says how large it is.
    pub(crate) fn finish(self, digest: Digest) -> Result<u64, Error> {
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&digest.as_bytes()[..16]);
        let Self {
            tree,
            image,
            max_image_size,
        } = self;
        image.finish(&tree, uuid).map_err(|error| match error {
            erofs::CopyError::Read(source) | erofs::CopyError::Write(source) => {
                Error::io("write", "(image)")(source)
            }
            erofs::CopyError::Full => Error::TooLarge {
                max: max_image_size,
                unit: "bytes",
            },
        })
    }
}

/// Writes an EROFS image of a root file system archive (a plain, gzip or zstd tar stream) to an empty file, past any cache. Its size.
///
/// # Errors
/// The archive is damaged, refused or too large, or the file cannot be written.
pub fn convert_archive(archive: impl Read, image: &File, limits: Limits) -> Result<u64, Error> {
    let mut builder = Builder::new(image, limits)?;
    let mut left = limits.max_image_size;
    builder.add_stream(archive, &mut left, "the archive", None)?;
    builder.finish(Digest::of(b""))
}

/// A reader that reports how far it is.
struct Counted<'a, R> {
    inner: R,
    phase: Phase,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(Progress),
}

impl<'a, R: Read> Counted<'a, R> {
    fn new(inner: R, done: u64, total: u64, progress: &'a mut dyn FnMut(Progress)) -> Self {
        Self {
            inner,
            phase: Phase::Reading,
            done,
            total,
            progress,
        }
    }

    /// The same of another phase.
    fn of(self, phase: Phase) -> Self {
        Self { phase, ..self }
    }
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.done += count as u64;
        (self.progress)(Progress {
            phase: self.phase,
            done: self.done,
            total: Some(self.total),
        });
        Ok(count)
    }
}

impl Resolved {
    fn add_to(
        &self,
        builder: &mut Builder<'_>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), Error> {
        let total = self.layers.iter().map(|layer| layer.size).sum();
        let mut done = 0;
        let mut left = builder.max_image_size;
        for (number, layer) in self.layers.iter().enumerate() {
            let what = format!("layer {} of {}", number + 1, self.layers.len());
            let blob = self.container.open(&layer.file)?;
            let mut packed = HashingReader::new(Counted::new(blob, done, total, progress));
            let added = builder.add_stream(&mut packed, &mut left, &what, Some(layer.diff_id));
            // Where the file itself is another one, that is the fault that counts.
            let rest = io::copy(&mut packed, &mut io::sink());
            if let Some(expected) = layer.digest {
                let (_, found) = packed.finish();
                if rest.is_ok() && found != expected {
                    return Err(Error::WrongDigest {
                        what,
                        expected,
                        found,
                    });
                }
            }
            added?;
            rest.map_err(|error| stream_error(error, &what))?;
            done += layer.size;
        }
        Ok(())
    }
}

/// Whether a file begins with a tar header, or is an archive without entries.
fn is_archive(start: &[u8]) -> bool {
    let Some(block) = start.get(..512) else {
        return false;
    };
    if block.iter().all(|byte| *byte == 0) {
        return start.len() >= 1024 && start.iter().all(|byte| *byte == 0);
    }
    let sum = |(at, byte): (usize, &u8)| {
        if (148..156).contains(&at) {
            32
        } else {
            u32::from(*byte)
        }
    };
    let found: u32 = block.iter().enumerate().map(sum).sum();
    tar::Header::from_byte_slice(block).cksum().ok() == Some(found)
}

/// What an archive that is not packed holds.
fn archive(mut file: File, path: &Path, name: Option<&str>) -> Result<(SourceKind, Inner), Error> {
    let clone = file.try_clone().map_err(Error::io("read", path))?;
    let container = Container::archive(clone, path)?;
    if container.has("oci-layout") && container.has("index.json") {
        let image = Inner::Image(Box::new(oci(container, name)?));
        return Ok((SourceKind::OciArchive, image));
    }
    if container.has("manifest.json") {
        // A root file system may have such a file, too.
        let manifest = container.document("manifest.json")?;
        if let Ok(images) = serde_json::from_slice::<Vec<SavedImage>>(&manifest) {
            let image = Inner::Image(Box::new(docker(container, images, name)?));
            return Ok((SourceKind::DockerArchive, image));
        }
    }
    file.seek(SeekFrom::Start(0))
        .map_err(Error::io("read", path))?;
    Ok((SourceKind::RootArchive, Inner::RootArchive(file)))
}

/// Whether an image called `known` is meant by `wanted`: all of it, or its tag.
fn is_called(known: &str, wanted: &str) -> bool {
    known == wanted || known.rsplit_once(':').is_some_and(|(_, tag)| tag == wanted)
}

/// The one that is called so, or the only one.
fn choose<T>(
    images: Vec<T>,
    names: impl Fn(&T) -> Vec<String>,
    wanted: Option<&str>,
) -> Result<T, Error> {
    let ambiguous = |images: &[T]| Error::Ambiguous {
        names: images.iter().flat_map(&names).collect(),
    };
    let is_wanted = |image: &T| match wanted {
        Some(wanted) => names(image).iter().any(|name| is_called(name, wanted)),
        None => true,
    };
    let chosen: Vec<usize> = (0..images.len())
        .filter(|&at| is_wanted(&images[at]))
        .collect();
    match chosen[..] {
        [one] => {
            let mut images = images;
            Ok(images.swap_remove(one))
        }
        _ => Err(ambiguous(&images)),
    }
}

fn docker(
    container: Container,
    images: Vec<SavedImage>,
    name: Option<&str>,
) -> Result<Resolved, Error> {
    let image = choose(images, |image| image.repo_tags.clone(), name)?;
    let bytes = container.document(&image.config)?;
    let config_digest = Digest::of(&bytes);
    if let Some(expected) = digest_in(&image.config)
        && expected != config_digest
    {
        return Err(Error::WrongDigest {
            what: image.config,
            expected,
            found: config_digest,
        });
    }
    let (config, diff_ids) = configuration(&bytes, &image.config)?;
    let layers = zip(image.layers, diff_ids, |file, diff_id| {
        // The names of old archives are those of something else, that of the file layer.tar.
        let digest = digest_in(&file).filter(|_| file.starts_with("blobs/"));
        let size = container.open(&file)?.size;
        Ok(Layer {
            file,
            digest,
            size,
            diff_id,
        })
    })?;
    Ok(Resolved {
        container,
        name: image.repo_tags.into_iter().next(),
        config,
        config_digest,
        layers,
    })
}

/// The digest that a file is called by: `<hex>.json`, `blobs/sha256/<hex>`.
fn digest_in(file: &str) -> Option<Digest> {
    let base = file.rsplit('/').next()?;
    base.strip_suffix(".json").unwrap_or(base).parse().ok()
}

/// What a configuration says, for this machine.
fn configuration(bytes: &[u8], what: &str) -> Result<(ImageConfig, Vec<Digest>), Error> {
    let document: ConfigDocument = parse(bytes, what)?;
    let suits = |value: &str, wanted: &str| value.is_empty() || value == wanted;
    if !suits(&document.os, "linux") || !suits(&document.architecture, architecture()) {
        return Err(Error::Platform {
            wanted: format!("linux/{}", architecture()),
            found: vec![format!("{}/{}", document.os, document.architecture)],
        });
    }
    Ok(document.image_config())
}

fn zip<T>(
    layers: Vec<T>,
    diff_ids: Vec<Digest>,
    layer: impl Fn(T, Digest) -> Result<Layer, Error>,
) -> Result<Vec<Layer>, Error> {
    if layers.len() != diff_ids.len() {
        return Err(Error::Inconsistent {
            what: "the manifest".into(),
            fault: "has not as many layers as the configuration",
        });
    }
    let pairs = layers.into_iter().zip(diff_ids);
    pairs.map(|(each, diff_id)| layer(each, diff_id)).collect()
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::Document {
        what: what.into(),
        source,
    })
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A document that another one names, as long as that says and with its digest.
fn described(container: &Container, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
    let what = blob_path(&descriptor.digest);
    let bytes = container.document(&what)?;
    if bytes.len() as u64 != descriptor.size {
        return Err(Error::WrongSize {
            what,
            expected: descriptor.size,
            found: bytes.len() as u64,
        });
    }
    let found = Digest::of(&bytes);
    if found != descriptor.digest {
        return Err(Error::WrongDigest {
            what,
            expected: descriptor.digest,
            found,
        });
    }
    Ok(bytes)
}

fn names(descriptor: &Descriptor) -> Vec<String> {
    let annotations = [CONTAINERD_NAME, REF_NAME];
    let names = annotations
        .iter()
        .filter_map(|key| descriptor.annotations.get(*key));
    names.cloned().collect()
}

fn oci(container: Container, name: Option<&str>) -> Result<Resolved, Error> {
    let index: Index = parse(&container.document("index.json")?, "index.json")?;
    let candidates = match name {
        // Several without names may be one image for several platforms.
        None if index.manifests.len() > 1
            && index.manifests.iter().all(|m| m.platform.is_some()) =>
        {
            vec![for_platform(index.manifests)?]
        }
        _ => index.manifests,
    };
    let mut chosen = choose(candidates, names, name)?;
    let name = names(&chosen).into_iter().next();
    let mut indexes = 0;
    while is_index(&chosen) {
        indexes += 1;
        if indexes > MAX_INDEXES {
            return Err(Error::Inconsistent {
                what: "an index".into(),
                fault: "leads to indexes only",
            });
        }
        let bytes = described(&container, &chosen)?;
        let index: Index = parse(&bytes, &blob_path(&chosen.digest))?;
        chosen = for_platform(index.manifests)?;
    }
    let bytes = described(&container, &chosen)?;
    let manifest: Manifest = parse(&bytes, &blob_path(&chosen.digest))?;
    let bytes = described(&container, &manifest.config)?;
    let (config, diff_ids) = configuration(&bytes, &blob_path(&manifest.config.digest))?;
    let layers = zip(manifest.layers, diff_ids, |layer, diff_id| {
        let file = blob_path(&layer.digest);
        let found = container.open(&file)?.size;
        if found != layer.size {
            return Err(Error::WrongSize {
                what: file,
                expected: layer.size,
                found,
            });
        }
        Ok(Layer {
            file,
            digest: Some(layer.digest),
            size: layer.size,
            diff_id,
        })
    })?;
    Ok(Resolved {
        container,
        name,
        config,
        config_digest: manifest.config.digest,
        layers,
    })
}
