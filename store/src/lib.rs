//! Container images and directories as read-only file system images, made once and cached by digest.
//!
//! ```no_run
//! use ampoule_store::{Limits, Source, Store};
//!
//! # fn main() -> Result<(), ampoule_store::Error> {
//! let source = Source::open("debian.tar", None)?;
//! let image = Store::open_default()?.get(&source, Limits::default(), &mut |_| {})?;
//! println!("{} is {}", image.path().display(), image.file_system().name());
//! println!("it runs {:?}", image.config().cmd);
//! # Ok(())
//! # }
//! ```
//!
//! A [`Source`] is a directory, a `docker save` or OCI archive, an OCI layout, a root file system archive, or a file system image that
//! is used as it is; a [`Pull`] takes what a program brings from a registry, which nothing in here speaks to. A [`Store`] makes an EROFS image of it where it has none yet. Nothing needs root, and nothing is unpacked: files go
//! from the source straight into the image, whose tree is an index in memory. Sources are not trusted; see [`Limits`], [`Error`] and
//! [`EntryError`].
//!
//! Everything here runs on the caller's thread, before a VM exists.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod archive;
mod cache;
mod config;
mod container;
mod digest;
mod erofs;
mod error;
mod folder;
mod layer;
mod lock;
mod manifest;
mod names;
mod packed;
mod progress;
mod pull;
mod reference;
mod source;
mod stream;
mod tree;

pub use cache::{CachedImage, Image, Pruned, Removal, Store, cache_folder};
pub use config::ImageConfig;
pub use digest::{Digest, DigestError};
pub use error::{EntryError, Error};
pub use manifest::{Blob, Contents};
pub use names::NamedImage;
pub use progress::{Phase, Progress};
pub use pull::Pull;
pub use reference::{Reference, ReferenceError};
pub use source::{FileSystem, Source, SourceKind, convert_archive};
pub use tree::Limits;

/// The README's example, as a documentation test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
