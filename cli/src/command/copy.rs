//! `--copy`, `--copy-out` and `--file`: which files go where.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use ampoule_image::copy::{Copies, CopyInto, CopyOutOf};
use ampoule_image::program;
use clap::builder::{OsStringValueParser, TypedValueParser, ValueParser};

use super::args::CommandArgs;
use crate::report::Failure;

/// Reads `HOST:GUEST`.
pub(super) fn into_parser() -> ValueParser {
    OsStringValueParser::new().try_map(|it| into(&it)).into()
}

/// Reads `GUEST:HOST`.
pub(super) fn out_parser() -> ValueParser {
    OsStringValueParser::new().try_map(|it| out(&it)).into()
}

/// Reads `PROGRAM[:GUESTPATH]`.
pub(super) fn file_parser() -> ValueParser {
    OsStringValueParser::new().try_map(|it| file(&it)).into()
}

const ABSOLUTE: &str = "the path in the guest begins by a /";

/// At the last colon that a path of the guest's follows, as those of the host may have some.
fn into(text: &OsStr) -> Result<CopyInto, &'static str> {
    let bytes = text.as_bytes();
    let at = bytes
        .windows(2)
        .rposition(|it| it == b":/")
        .ok_or(ABSOLUTE)?;
    let (host, guest) = (&bytes[..at], &bytes[at + 1..]);
    if host.is_empty() {
        return Err("the path on this host is empty: HOST:GUEST");
    }
    Ok(CopyInto {
        host: OsStr::from_bytes(host).into(),
        guest: guest.into(),
    })
}

/// At the first colon: what follows is the host's.
fn out(text: &OsStr) -> Result<CopyOutOf, &'static str> {
    let bytes = text.as_bytes();
    let at = bytes.iter().position(|it| *it == b':');
    let (guest, host) = bytes.split_at(at.unwrap_or(bytes.len()));
    let host = host.get(1..).unwrap_or_default();
    match guest.first() {
        Some(b'/') => {}
        _ => return Err(ABSOLUTE),
    }
    if host.is_empty() {
        return Err("the path on this host is missing: GUEST:HOST");
    }
    if guest.split(|it| *it == b'/').any(|it| it == b"..") {
        return Err("the path in the guest has a .. in it, which says no name");
    }
    Ok(CopyOutOf {
        guest: guest.into(),
        host: OsStr::from_bytes(host).into(),
    })
}

fn file(text: &OsStr) -> Result<CopyInto, String> {
    let both = into(text);
    let host = both
        .as_ref()
        .map_or_else(|_| text.into(), |it| it.host.clone());
    let name = host.file_name().ok_or("it names no file")?;
    let own = [b"/", name.as_bytes()].concat();
    let guest = both.map_or(own, |it| it.guest);
    // What a link leads to is what is run.
    let host = fs::canonicalize(&host).map_err(|err| crate::report::io_text(&err))?;
    if !host.is_file() {
        return Err("it is no file".into());
    }
    Ok(CopyInto { host, guest })
}

/// All that is copied for a command; whether it can be is seen before a machine is started for it.
pub(super) fn copies(arguments: &CommandArgs) -> Result<Copies, Failure> {
    let mut copies = Copies {
        into: [&arguments.file[..], &arguments.copy].concat(),
        out: arguments.copy_out.clone(),
        ..Copies::default()
    };
    if let Some(size) = arguments.max_copy_size {
        copies.max_size = size.as_bytes();
    }
    copies
        .check()
        .map_err(|err| Failure::from_error(&err, None))?;
    Ok(copies)
}

/// What to do about a command without an image that cannot be run.
pub(super) fn help_for_files(files: &[CopyInto]) -> Option<String> {
    files.iter().find_map(|it| {
        let loader = program::loader(&it.host).ok()??;
        Some(format!(
            "{} is dynamically linked: it wants {} and libraries, and there are none without an IMAGE; link it statically, or run it from an image",
            it.host.display(),
            loader.display()
        ))
    })
}

/// Where programs are looked for if nobody says, and there is no image: in `/` too, where they are by themselves.
pub(super) fn set_path(environment: &mut Vec<Vec<u8>>) {
    const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/";
    if !environment.iter().any(|it| it.starts_with(b"PATH=")) {
        environment.push(OsString::from(PATH).into_vec());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_of_a_copy_are_told_apart() {
        let it = into("a:b:/c/d".as_ref()).unwrap();
        assert_eq!((it.host, it.guest), ("a:b".into(), b"/c/d".into()));
        let it = out("/c/d:x:/y".as_ref()).unwrap();
        assert_eq!((it.guest, it.host), (b"/c/d".into(), "x:/y".into()));
        for text in ["", "a", "a:b", ":/a", "/a"] {
            assert!(into(text.as_ref()).is_err(), "{text}");
        }
        for text in ["", "a:/b", "/a", "/a:", "/a/..:b"] {
            assert!(out(text.as_ref()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_is_in_the_root_unless_it_is_given_a_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("program");
        fs::write(&path, "").unwrap();
        let link = path.with_file_name("link");
        std::os::unix::fs::symlink("program", &link).unwrap();
        let it = file(link.as_os_str()).unwrap();
        assert_eq!((&it.host, &it.guest[..]), (&path, &b"/link"[..]));
        let mut text = path.clone().into_os_string();
        text.push(":/bin/x");
        let it = file(&text).unwrap();
        assert_eq!((it.host, &it.guest[..]), (path, &b"/bin/x"[..]));
        assert!(file(folder.path().as_os_str()).is_err());
        assert!(
            file("/no/such".as_ref())
                .unwrap_err()
                .contains("no such file")
        );
    }
}
