//! Archives of images that are packed as a whole (`docker save | gzip`): they are read by offset, so that they are unpacked first.
//!
//! Whether one holds images is told by its first entry: finding the documents that say it would take reading all of it, at every use.
//! The names that are taken for an image's here are none that a root file system begins with; what is taken for one by mistake is
//! seen when it is unpacked, and read as a root file system all the same.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use crate::archive::ArchiveReader;
use crate::cache::create;
use crate::container::normal;
use crate::digest::Digest;
use crate::error::Error;
use crate::layer::stream_error;
use crate::stream::{Bounded, decompress};
use crate::tree::Limits;

/// So much of a packed archive is looked at for its first entry.
const HEAD: u64 = 4 << 20;

/// Whether a packed archive looks like one of images.
pub(crate) fn holds_images(mut file: &File, path: &Path) -> Result<bool, Error> {
    let found = first_name(file).is_ok_and(|name| name.is_some_and(|name| is_of_images(&name)));
    file.seek(SeekFrom::Start(0))
        .map_err(Error::io("read", path))?;
    Ok(found)
}

/// The first name that is not the root's. What cannot be read is told when it is read in earnest.
fn first_name(file: &File) -> io::Result<Option<Vec<u8>>> {
    let head = decompress(file.take(HEAD))?;
    let mut archive = ArchiveReader::new(BufReader::new(head.take(HEAD)), true);
    while let Ok(Some(entry)) = archive.next() {
        let name = normal(&entry.name);
        if !name.is_empty() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Whether an archive of images begins so: with a layout's files, or with those that are called by a digest.
fn is_of_images(name: &[u8]) -> bool {
    let Ok(name) = str::from_utf8(name) else {
        return false;
    };
    let first = name.split('/').next().unwrap_or(name);
    let stem = first.strip_suffix(".json").unwrap_or(first);
    let stem = stem.strip_suffix(".tar").unwrap_or(stem);
    let is_layout = matches!(
        name,
        "oci-layout" | "index.json" | "manifest.json" | "repositories"
    );
    is_layout
        || name == "blobs"
        || name.starts_with("blobs/sha256")
        || stem.parse::<Digest>().is_ok()
}

/// Unpacks an archive to a file that nobody else finds. `packed` reads the file from its beginning.
pub(crate) fn unpack(
    mut file: &File,
    packed: impl Read,
    path: &Path,
    at: &Path,
    limits: Limits,
) -> Result<File, Error> {
    file.seek(SeekFrom::Start(0))
        .map_err(Error::io("read", path))?;
    let mut unpacked = create(at)?;
    fs::remove_file(at).map_err(Error::io("remove", at))?;
    let what = format!("\"{}\"", path.display());
    let stream = decompress(packed).map_err(|error| stream_error(error, &what))?;
    let mut left = limits.max_image_size;
    let mut stream = Bounded::new(stream, &mut left, limits.max_image_size);
    let mut buffer = vec![0; 128 << 10];
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(stream_error(error, &what)),
        };
        io::Write::write_all(&mut unpacked, &buffer[..count]).map_err(Error::io("write", at))?;
    }
    unpacked
        .seek(SeekFrom::Start(0))
        .map_err(Error::io("read", at))?;
    Ok(unpacked)
}
