//! What a program needs to be run.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use object::Endianness;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader, ProgramHeader};

/// Program headers, and what names the loader, are at the beginning of every program that a linker wrote.
const LOOKED_AT: u64 = 64 << 10;

/// The loader (dynamic linker) that a program names: it is dynamically linked, and does not run where there is none. `None` of a
/// program without one, and of what is no 64-bit ELF file.
///
/// # Errors
/// The file cannot be read.
pub fn loader(path: &Path) -> io::Result<Option<PathBuf>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LOOKED_AT).read_to_end(&mut bytes)?;
    Ok(loader_of(&bytes).map(|it| OsStr::from_bytes(it).into()))
}

fn loader_of(bytes: &[u8]) -> Option<&[u8]> {
    let header = FileHeader64::<Endianness>::parse(bytes).ok()?;
    let endian = header.endian().ok()?;
    let headers = header.program_headers(endian, bytes).ok()?;
    headers
        .iter()
        .find_map(|it| it.interpreter(endian, bytes).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::INIT;

    #[test]
    fn a_loader_is_found_where_there_is_one() {
        // This program is dynamically linked, as tests are.
        let own = std::env::current_exe().unwrap();
        let found = loader(&own).unwrap().unwrap();
        assert!(found.is_file(), "{}", found.display());
        assert_eq!(loader_of(INIT), None);
        assert_eq!(loader_of(b"#!/bin/sh\n"), None);
        let bytes = std::fs::read(own).unwrap();
        for end in (0..4096).chain([bytes.len()]) {
            // Cut short, or not: no panic.
            let _ = loader_of(&bytes[..end.min(bytes.len())]);
        }
    }
}
