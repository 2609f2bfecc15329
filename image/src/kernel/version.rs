//! A kernel's version: in its image, else in its name; and which of two is newer.

use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// As much of a bzImage as its version can be in: the header has its place in 16 bits, from the second sector on.
const HEAD: u64 = (64 << 10) + 1024;

/// Bytes of a version, at most: utsname's field.
const LENGTH: usize = 64;

/// The version of the kernel in a file.
pub(super) fn of(path: &Path) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    File::open(path)?.take(HEAD).read_to_end(&mut head)?;
    let name = path.file_name().and_then(|name| name.to_str());
    let named = name.and_then(|name| Some(name.split_once('-')?.1.to_owned()));
    Ok(in_bzimage(&head).or(named))
}

/// Linux `Documentation/arch/x86/boot.rst`, "kernel_version": where a text begins, less a sector; the version is its first word.
fn in_bzimage(head: &[u8]) -> Option<String> {
    if head.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let place = u16::from_le_bytes(head.get(0x20e..0x210)?.try_into().ok()?);
    let text = head
        .get(usize::from(place) + 0x200..)
        .filter(|_| place != 0)?;
    let text = &text[..text.len().min(LENGTH)];
    let word = text.split(|byte| *byte == b' ' || *byte == 0).next()?;
    // It becomes part of a path.
    let is_sane = |byte: &u8| byte.is_ascii_alphanumeric() || b".-+_~".contains(byte);
    let is_version = word.first()?.is_ascii_digit() && word.iter().all(is_sane);
    String::from_utf8(word.to_vec()).ok().filter(|_| is_version)
}

/// As `sort -V` orders them: numbers by their value, the rest by its bytes, the end before both, `~` before the end.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let (a_text, a_rest) = split(a, |it| it.is_ascii_digit());
        let (b_text, b_rest) = split(b, |it| it.is_ascii_digit());
        let weights = |text: &str| -> Vec<i32> { text.bytes().map(weight).chain([0]).collect() };
        let (a_number, a_rest) = split(a_rest, |it| !it.is_ascii_digit());
        let (b_number, b_rest) = split(b_rest, |it| !it.is_ascii_digit());
        let value = |digits: &str| {
            let digits = digits.trim_start_matches('0').to_owned();
            (digits.len(), digits)
        };
        let order = weights(a_text)
            .cmp(&weights(b_text))
            .then_with(|| value(a_number).cmp(&value(b_number)));
        if order.is_ne() || (a_rest.is_empty() && b_rest.is_empty()) {
            return order;
        }
        (a, b) = (a_rest, b_rest);
    }
}

/// Up to the first character of a kind, and from there.
fn split(text: &str, is_end: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(is_end).unwrap_or(text.len()))
}

fn weight(byte: u8) -> i32 {
    match byte {
        b'~' => -1,
        it if it.is_ascii_alphabetic() => it.into(),
        it => i32::from(it) + 256,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_by_sort() {
        let sorted = [
            "6.1~rc1",
            "6.1",
            "6.1.0-9-amd64",
            "6.1.0-56-amd64",
            "6.1.0-56-cloud-amd64",
            "6.9",
            "6.12.117+deb12-amd64",
            "10.0",
        ];
        for (at, a) in sorted.iter().enumerate() {
            for (other, b) in sorted.iter().enumerate() {
                assert_eq!(compare(a, b), at.cmp(&other), "{a} {b}");
            }
        }
    }

    #[test]
    fn a_bzimages_version_is_in_its_header() {
        let mut head = vec![0; 0x600];
        head[0x202..0x206].copy_from_slice(b"HdrS");
        head[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        head[0x300..0x310].copy_from_slice(b"6.1.0-x (me@h) #");
        assert_eq!(in_bzimage(&head).as_deref(), Some("6.1.0-x"));
        head[0x302] = b'/';
        assert_eq!(in_bzimage(&head), None);
        head[0x20e..0x210].copy_from_slice(&0xffffu16.to_le_bytes());
        assert_eq!(in_bzimage(&head), None);
        for length in 0..head.len() {
            in_bzimage(&head[..length]);
        }
    }
}
