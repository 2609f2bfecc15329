//! Small files.

use alloc::ffi::CString;
use alloc::format;
use alloc::vec::Vec;
use core::ffi::CStr;

use crate::sys::{self, Errno, Fd, Result};
use crate::{Context, Problem};

/// Larger files of an image are not read: none that the init looks at is as large as that.
const LIMIT: usize = 4 << 20;

/// A path out of pieces.
pub(crate) fn path(pieces: &[&[u8]]) -> Result<CString> {
    CString::new(pieces.concat()).map_err(|_| Errno::INVAL)
}

/// A text that becomes a path or an argument.
pub(crate) fn text(bytes: &[u8]) -> core::result::Result<CString, Problem> {
    let text = path(&[bytes]);
    text.context(&format!("{}", bytes.escape_ascii()))
}

/// A file's content.
pub(crate) fn read(path: &CStr) -> Result<Vec<u8>> {
    content(&sys::open(path, sys::READ | sys::NO_TERMINAL)?)
}

/// The rest of an open file's content.
pub(crate) fn content(file: &Fd) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let count = file.read(&mut piece)?;
        content.extend_from_slice(&piece[..count]);
        if count == 0 || content.len() > LIMIT {
            return Ok(content);
        }
    }
}

/// Makes it a file with this content, whatever it was.
pub(crate) fn replace(path: &CStr, content: &[u8]) -> Result<()> {
    // It may be a link to what is not there.
    let _ = sys::unlink(path);
    let flags = sys::WRITE | sys::CREATE | sys::TRUNCATE | sys::NO_FOLLOW;
    let file = sys::open(path, flags)?;
    let mut rest = content;
    while !rest.is_empty() {
        let count = file.write(rest)?;
        rest = &rest[count..];
    }
    Ok(())
}

/// Makes a folder and those that it is in.
pub(crate) fn make_folders(path: &CStr) -> Result<()> {
    let bytes = path.to_bytes();
    let ends = (1..bytes.len()).filter(|at| bytes[*at] == b'/');
    for end in ends.chain([bytes.len()]) {
        let folder = self::path(&[&bytes[..end]])?;
        match sys::mkdir(&folder, 0o755) {
            // What is there already may be on a file system that is read-only.
            Err(_) if sys::exists(&folder) => {}
            other => other?,
        }
    }
    Ok(())
}
