//! What can be wrong with a source, and with the cache.

use std::io;
use std::path::PathBuf;

use crate::digest::Digest;

/// Why there is no image. Nothing half-made is left in the cache when this is returned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The host refused something.
    #[error("cannot {action} \"{}\"", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is nothing that can become an image.
    #[error("\"{}\" is no directory, image archive or layout, root file system archive, or ext4, squashfs or erofs image", .path.display())]
    Unrecognised {
        /// The file.
        path: PathBuf,
    },
    /// A JSON document of the image is damaged.
    #[error("cannot read {what} of the image")]
    Document {
        /// Which.
        what: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A part of the image is not there.
    #[error("the image has no {what}")]
    Missing {
        /// Which.
        what: String,
    },
    /// The image's documents contradict each other.
    #[error("{what} of the image {fault}")]
    Inconsistent {
        /// Which document.
        what: String,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// There are several images, and none or an unknown one was asked for.
    #[error("which image of {}?", quoted(.names))]
    Ambiguous {
        /// Those that there are.
        names: Vec<String>,
    },
    /// There is no image for this machine.
    #[error("the image is for {}, not for {wanted}", quoted(.found))]
    Platform {
        /// What is wanted, as `linux/amd64`.
        wanted: String,
        /// What there is.
        found: Vec<String>,
    },
    /// A manifest is of something else that registries have.
    #[error("it is no container image, but has a configuration of the type \"{}\"", .media_type.escape_default())]
    NotAnImage {
        /// What the manifest says that the configuration is.
        media_type: String,
    },
    /// A part is not what its digest says.
    #[error("{what} has the digest {found}, not {expected}")]
    WrongDigest {
        /// Which part.
        what: String,
        /// What the image says.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// A part is not as long as the image says.
    #[error("{what} has {found} bytes, not {expected}")]
    WrongSize {
        /// Which part.
        what: String,
        /// What the image says.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// An archive or a layer cannot be read to its end.
    #[error("cannot read {what}")]
    Stream {
        /// Which.
        what: String,
        /// Why: it is cut off, or its compression is damaged.
        #[source]
        source: io::Error,
    },
    /// An entry of an archive or a layer is refused.
    #[error("entry \"{entry}\" of {what} is refused")]
    Entry {
        /// Of which archive or layer.
        what: String,
        /// Its name.
        entry: String,
        /// Why.
        #[source]
        source: EntryError,
    },
    /// The image is larger than it may be.
    #[error("the image has more than {max} {unit}")]
    TooLarge {
        /// What there may be.
        max: u64,
        /// Of what.
        unit: &'static str,
    },
    /// A directory or file is not what it was when it began to be read.
    #[error("\"{}\" changed while it was read", path.display())]
    Changed {
        /// Which.
        path: PathBuf,
    },
    /// Where the cache is to be is not known.
    #[error("there is no folder for a cache")]
    NoCache,
    /// An image of the cache was asked for that is not in it, or more than one.
    #[error("{found} images in the cache are called \"{name}\"")]
    NotOne {
        /// What was asked for.
        name: String,
        /// How many are called so.
        found: usize,
    },
}

impl Error {
    /// What a person can do about it, where there is something.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Unrecognised { .. } => {
                Some("make an archive with `docker save` or `skopeo copy … oci-archive:…`".into())
            }
            Self::TooLarge { unit: "bytes", .. } => {
                Some("raise --max-image-size, if the image is trusted".into())
            }
            Self::NotOne { found: 0, .. } => Some("`ampoule image ls` shows what there is".into()),
            Self::NotOne { .. } => Some("give more of the digest: `ampoule image ls`".into()),
            Self::NoCache => Some("set XDG_CACHE_HOME or HOME".into()),
            Self::WrongDigest { .. } | Self::WrongSize { .. } | Self::Stream { .. } => {
                Some("fetch or save the image again".into())
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("free space, by `ampoule image prune` for instance".into())
            }
            _ => None,
        }
    }

    /// For `map_err`.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// Why an entry of an archive is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// Its name, or that of its hard link's target, has a component `..`.
    #[error("its name has a component \"..\"")]
    ParentComponent,
    /// Its name is empty, or contains a zero byte.
    #[error("its name is empty or contains a zero byte")]
    BadName,
    /// A component has more than 255 bytes, or a name or target more than 4095.
    #[error("its name or target is too long")]
    NameTooLong,
    /// Its name leads through a file.
    #[error("a part of its name is not a directory")]
    NotADirectory,
    /// Its name leads through a symbolic link to nothing.
    #[error("its name leads through a symbolic link to nothing")]
    DanglingLink,
    /// Its name leads through more than 40 symbolic links.
    #[error("its name leads through too many symbolic links")]
    TooManyLinks,
    /// Directories are nested too deep.
    #[error("it is nested too deep")]
    TooDeep,
    /// The same layer has it already.
    #[error("there is one of this name before it")]
    Duplicate,
    /// It is a hard link to what is not there, or to a directory.
    #[error("it is a hard link to \"{0}\", which is not a file")]
    LinkTarget(String),
    /// Its type is not known.
    #[error("its type {0:#04x} is not known")]
    UnknownType(u8),
    /// Its header is damaged.
    #[error("its header is damaged: {0}")]
    Header(&'static str),
    /// Its map of holes is damaged.
    #[error("its map of holes is damaged")]
    Sparse,
    /// Its device number is larger than Linux has them.
    #[error("its device number is out of range")]
    Device,
    /// Its extended attributes are larger than an image can hold.
    #[error("its extended attributes are too large")]
    Xattrs,
}

/// `"a" or "b"`.
fn quoted(names: &[String]) -> String {
    match names {
        [] => "none".into(),
        names => {
            let quoted: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
            quoted.join(" or ")
        }
    }
}
