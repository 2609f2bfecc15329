//! `--overlay size=10G`, `--overlay path=FILE`: a disk for what the command writes.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use ampoule_image::overlay::{DEFAULT_SIZE, Overlay};
use ampoule_store::Image;
use ampoule_vmm::config::{CacheMode, DiskConfig, MemorySize};

use crate::key_list::{each, needed, typed, unknown};
use crate::report::{self, Failure};

/// The serial number of the disk.
pub(super) const SERIAL: &str = "ampoule-overlay";

/// Which disk.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct OverlayArg {
    /// Where it is kept, if it is.
    path: Option<PathBuf>,
    size: Option<MemorySize>,
}

/// Reads the argument.
pub(super) fn parse(text: &str) -> Result<OverlayArg, String> {
    let mut overlay = OverlayArg {
        path: None,
        size: None,
    };
    each(text, |key, value| {
        match key {
            "path" => overlay.path = Some(needed(key, value)?.into()),
            "size" => overlay.size = Some(typed::<MemorySize>(key, value)?),
            _ => return Err(unknown(key, "an overlay", &["path", "size"])),
        }
        Ok(())
    })?;
    Ok(overlay)
}

/// The disk, made if need be, and its configuration. One that is temporary is gone with the first.
pub(super) fn make(asked: &OverlayArg, image: &Image) -> Result<(Overlay, DiskConfig), Failure> {
    let size = asked.size.map(MemorySize::as_bytes);
    let made = match &asked.path {
        Some(path) => {
            let base = base(image).map_err(|err| {
                Failure::new(format!(
                    "cannot look at the image: {}",
                    report::io_text(&err)
                ))
            })?;
            Overlay::kept(path, size, &base)
        }
        None => {
            // Not where temporary files are: that may be memory.
            let folder = ampoule_store::cache_folder();
            let folder = folder.map_err(|err| Failure::from_error(&err, err.remedy()))?;
            Overlay::temporary(&folder, size.unwrap_or(DEFAULT_SIZE))
        }
    };
    let overlay = made.map_err(|err| Failure::from_error(&err, err.remedy()))?;
    let config = DiskConfig {
        serial: Some(SERIAL.into()),
        id: Some("overlay".into()),
        cache: match overlay.is_temporary() {
            // Nobody is left to miss it.
            true => CacheMode::Unsafe,
            false => CacheMode::default(),
        },
        ..DiskConfig::new(overlay.path())
    };
    Ok((overlay, config))
}

/// What says which image it is: its digest, or of a file that has none its place, size and time.
fn base(image: &Image) -> io::Result<Vec<u8>> {
    if let Some(digest) = image.digest() {
        return Ok(digest.as_bytes().to_vec());
    }
    let path = fs::canonicalize(image.path())?;
    let metadata = fs::metadata(&path)?;
    let numbers = [
        metadata.size() as i64,
        metadata.mtime(),
        metadata.mtime_nsec(),
    ];
    let numbers = numbers.map(i64::to_le_bytes).concat();
    Ok([path.as_os_str().as_bytes(), b"\0", &numbers].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_a_path_and_a_size() {
        let overlay = parse("path=a,,b.img,size=1G").unwrap();
        assert_eq!(overlay.path, Some("a,b.img".into()));
        assert_eq!(overlay.size, Some(MemorySize::mib(1024)));
        assert_eq!(parse("size=1G").unwrap().path, None);
        assert_eq!(parse("path=x").unwrap().size, None);
        for text in ["", "x", "size", "path=", "size=big", "path=a,path=b"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
