//! Tar archives: entries one after the other, from a stream that is not trusted.
//!
//! The headers are those of the crate `tar`; its reader is not used. It takes extended headers of any size into memory, splits
//! their values at line feeds (a `security.capability` contains them), does not know the PAX forms of sparse files, and gives out
//! holes as zeros. Known here: ustar, GNU (long names, sparse files) and PAX (all its keys that matter, `SCHILY.xattr.*`, sparse
//! files 0.0, 0.1 and 1.0).

use std::io::{self, Read, Seek, SeekFrom};

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use crate::error::EntryError;
use crate::tree::Xattrs;

const BLOCK: u64 = 512;
/// Of one extended header; xattrs of a file have 64 KiB on most file systems.
const MAX_EXTENDED: u64 = 1 << 20;
/// Pieces of a sparse file: as many as 4 GiB have with every other block a hole.
const MAX_PIECES: usize = 1 << 19;
/// The size of a file, sparse or not: what Linux can address in a page cache of 4 KiB pages is more.
const MAX_SIZE: u64 = 1 << 44;

/// Why an archive cannot be read on.
#[derive(Debug)]
pub(crate) enum ArchiveError {
    /// The stream, or where it ends.
    Stream(io::Error),
    /// An entry, with what is known of its name.
    Entry(Vec<u8>, EntryError),
}

impl From<io::Error> for ArchiveError {
    fn from(error: io::Error) -> Self {
        Self::Stream(error)
    }
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File,
    Directory,
    Symlink,
    HardLink,
    CharDevice,
    BlockDevice,
    Fifo,
}

/// A piece of a sparse file: offset and length.
pub(crate) type Piece = (u64, u64);

/// An entry; its data is read from the reader it came from.
#[derive(Debug)]
pub(crate) struct ArchiveEntry {
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: EntryKind,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
    pub(crate) mtime_nsec: u32,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Xattrs,
    /// As it is seen, holes included.
    pub(crate) size: u64,
    /// What of a sparse file is stored, in order.
    pub(crate) pieces: Option<Vec<Piece>>,
    /// Where its data begins.
    pub(crate) offset: u64,
}

/// What PAX headers say of the entry that follows.
#[derive(Debug, Default)]
struct Extended {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Xattrs,
    /// Of a sparse file; `path` is a made-up one then.
    sparse_name: Option<Vec<u8>>,
    sparse_version: Option<(u64, u64)>,
    sparse_size: Option<u64>,
    sparse_map: Vec<u64>,
}

/// An archive's entries.
pub(crate) struct ArchiveReader<R> {
    inner: R,
    skip: fn(&mut R, u64) -> io::Result<()>,
    position: u64,
    /// Of the data of the last entry.
    remaining: u64,
    padding: u64,
    needs_end: bool,
}

impl<R: Read> ArchiveReader<R> {
    /// An archive that must end as archives do where `needs_end` says so: nothing else tells that it is complete.
    pub(crate) fn new(inner: R, needs_end: bool) -> Self {
        Self {
            inner,
            skip: |inner, count| {
                let skipped = io::copy(&mut inner.by_ref().take(count), &mut io::sink())?;
                if skipped < count {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(())
            },
            position: 0,
            remaining: 0,
            padding: 0,
            needs_end,
        }
    }

    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// The next header, `None` at a block of zeros or the end.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        (self.skip)(&mut self.inner, self.remaining)?;
        match (self.skip)(&mut self.inner, self.padding) {
            // `umoci insert` leaves the padding away together with the end.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !self.needs_end => {
                (self.remaining, self.padding) = (0, 0);
                return Ok(None);
            }
            skipped => skipped?,
        }
        self.position += self.remaining + self.padding;
        (self.remaining, self.padding) = (0, 0);
        let mut block = [0; BLOCK as usize];
        let mut filled = 0;
        while filled < block.len() {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 && !self.needs_end => return Ok(None),
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.position += BLOCK;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        Ok(Some(Header::from_byte_slice(&block).clone()))
    }

    /// The data of the last entry, whole: of extended headers, and maps.
    fn read_whole(&mut self) -> Result<Vec<u8>, ArchiveError> {
        if self.remaining > MAX_EXTENDED {
            let name = b"(extended header)".to_vec();
            return Err(ArchiveError::Entry(name, EntryError::NameTooLong));
        }
        let mut data = vec![0; self.remaining as usize];
        self.inner.read_exact(&mut data)?;
        self.position += self.remaining;
        self.remaining = 0;
        Ok(data)
    }

    /// The next entry. What was not read of the last one's data is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<ArchiveEntry>, ArchiveError> {
        let mut extended = Extended::default();
        let mut is_extended = false;
        loop {
            let Some(header) = self.header()? else {
                if is_extended {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                return Ok(None);
            };
            let plain_name = || header.path_bytes().into_owned();
            let fault = |error| ArchiveError::Entry(plain_name(), error);
            check_sum(&header).map_err(fault)?;
            let stored = header
                .entry_size()
                .map_err(|_| fault(EntryError::Header("size")))?;
            self.expect(stored).map_err(fault)?;
            match header.as_bytes()[156] {
                b'x' => {
                    let data = self.read_whole()?;
                    extended.read(&data).map_err(fault)?;
                }
                // Of no entry; what is in them in practice is a comment.
                b'g' | b'V' => continue,
                b'L' => extended.name = Some(c_string(self.read_whole()?)),
                b'K' => extended.link = Some(c_string(self.read_whole()?)),
                _ => return self.entry(&header, extended).map(Some),
            }
            is_extended = true;
        }
    }

    fn expect(&mut self, stored: u64) -> Result<(), EntryError> {
        if stored > MAX_SIZE {
            return Err(EntryError::Header("size"));
        }
        self.remaining = stored;
        self.padding = stored.next_multiple_of(BLOCK) - stored;
        Ok(())
    }

    fn entry(&mut self, header: &Header, mut pax: Extended) -> Result<ArchiveEntry, ArchiveError> {
        let name = pax.sparse_name.take().or(pax.name.take());
        let name = name.unwrap_or_else(|| header.path_bytes().into_owned());
        let fault = |error| ArchiveError::Entry(name.clone(), error);
        let kind = match header.as_bytes()[156] {
            b'0' | 0 if name.last() == Some(&b'/') => EntryKind::Directory,
            b'0' | 0 | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::CharDevice,
            b'4' => EntryKind::BlockDevice,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            unknown => return Err(fault(EntryError::UnknownType(unknown))),
        };
        let damaged = |what| move |_: io::Error| EntryError::Header(what);
        let id = |id: u64, what| u32::try_from(id).map_err(|_| EntryError::Header(what));
        let (mode, uid, gid, mtime, device) = (|| {
            let mode = (header.mode().map_err(damaged("mode"))? & 0o7777) as u16;
            let uid = pax.uid.map_or_else(|| header.uid(), Ok);
            let uid = id(uid.map_err(damaged("user"))?, "user")?;
            let gid = pax.gid.map_or_else(|| header.gid(), Ok);
            let gid = id(gid.map_err(damaged("group"))?, "group")?;
            let mtime = match pax.mtime {
                Some(mtime) => mtime,
                None => (header.mtime().map_err(damaged("time"))? as i64, 0),
            };
            let device = match kind {
                EntryKind::CharDevice | EntryKind::BlockDevice => {
                    let number = "device number";
                    let major = header.device_major().map_err(damaged(number))?;
                    let minor = header.device_minor().map_err(damaged(number))?;
                    (major.unwrap_or(0), minor.unwrap_or(0))
                }
                _ => (0, 0),
            };
            Ok((mode, uid, gid, mtime, device))
        })()
        .map_err(fault)?;
        if let Some(size) = pax.size {
            self.expect(size).map_err(fault)?;
        }
        let mut size = self.remaining;
        let mut pieces = None;
        if kind == EntryKind::File
            && let Some((real, map)) = self.sparse(header, &pax, &name)?
        {
            check_pieces(real, &map, self.remaining).map_err(fault)?;
            size = real;
            pieces = Some(map);
        }
        if kind != EntryKind::File {
            // Whatever the header says: data follows files only.
            self.expect(0).map_err(fault)?;
            size = 0;
        }
        let link = pax.link.take();
        let link = link.or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
        Ok(ArchiveEntry {
            kind,
            mode,
            uid,
            gid,
            mtime: mtime.0,
            mtime_nsec: mtime.1,
            device,
            link: link.unwrap_or_default(),
            xattrs: pax.xattrs,
            size,
            pieces,
            offset: self.position,
            name,
        })
    }

    /// The real size and the map of a sparse file.
    fn sparse(
        &mut self,
        header: &Header,
        pax: &Extended,
        name: &[u8],
    ) -> Result<Option<(u64, Vec<Piece>)>, ArchiveError> {
        let fault = || ArchiveError::Entry(name.to_vec(), EntryError::Sparse);
        if header.as_bytes()[156] == b'S' {
            return self.gnu_sparse(header, name).map(Some);
        }
        let Some(real) = pax.sparse_size else {
            return Ok(None);
        };
        if pax.sparse_version == Some((1, 0)) {
            let count = self.decimal().map_err(|e| e.of(name))?;
            let count = usize::try_from(count).map_err(|_| fault())?;
            if count > MAX_PIECES {
                return Err(fault());
            }
            let mut map = Vec::new();
            for _ in 0..count {
                let offset = self.decimal().map_err(|e| e.of(name))?;
                map.push((offset, self.decimal().map_err(|e| e.of(name))?));
            }
            // The map is padded to whole blocks; the data's own padding says how far this one is in.
            let rest = (self.remaining + self.padding) % BLOCK;
            if rest > self.remaining {
                return Err(fault());
            }
            (self.skip)(&mut self.inner, rest)?;
            self.position += rest;
            self.remaining -= rest;
            return Ok(Some((real, map)));
        }
        let pairs = pax.sparse_map.chunks_exact(2);
        if !pairs.remainder().is_empty() {
            return Err(fault());
        }
        Ok(Some((real, pairs.map(|pair| (pair[0], pair[1])).collect())))
    }

    fn gnu_sparse(
        &mut self,
        header: &Header,
        name: &[u8],
    ) -> Result<(u64, Vec<Piece>), ArchiveError> {
        let fault = || ArchiveError::Entry(name.to_vec(), EntryError::Sparse);
        let gnu = header.as_gnu().ok_or_else(fault)?;
        let real = gnu.real_size().map_err(|_| fault())?;
        let mut map = Vec::new();
        let mut add = |headers: &[GnuSparseHeader]| {
            for piece in headers.iter().filter(|piece| !piece.is_empty()) {
                let offset = piece.offset().map_err(|_| fault())?;
                map.push((offset, piece.length().map_err(|_| fault())?));
                if map.len() > MAX_PIECES {
                    return Err(fault());
                }
            }
            Ok(())
        };
        add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            self.inner.read_exact(block.as_mut_bytes())?;
            self.position += BLOCK;
            add(&block.sparse)?;
            more = block.is_extended();
        }
        Ok((real, map))
    }

    /// A decimal number and a line feed, of the data.
    fn decimal(&mut self) -> Result<u64, DecimalError> {
        let mut value: Option<u64> = None;
        loop {
            if self.remaining == 0 {
                return Err(DecimalError::Damaged);
            }
            let mut byte = [0];
            self.inner
                .read_exact(&mut byte)
                .map_err(DecimalError::Stream)?;
            self.position += 1;
            self.remaining -= 1;
            match byte[0] {
                b'\n' => return value.ok_or(DecimalError::Damaged),
                digit @ b'0'..=b'9' => {
                    let next = value.unwrap_or(0).checked_mul(10);
                    let next = next.and_then(|next| next.checked_add(u64::from(digit - b'0')));
                    value = Some(next.ok_or(DecimalError::Damaged)?);
                }
                _ => return Err(DecimalError::Damaged),
            }
        }
    }
}

enum DecimalError {
    Damaged,
    Stream(io::Error),
}

impl DecimalError {
    fn of(self, name: &[u8]) -> ArchiveError {
        match self {
            Self::Damaged => ArchiveError::Entry(name.to_vec(), EntryError::Sparse),
            Self::Stream(error) => ArchiveError::Stream(error),
        }
    }
}

impl<R: Read + Seek> ArchiveReader<R> {
    /// An archive whose data is not passed through where it is not wanted.
    pub(crate) fn seekable(inner: R) -> Self {
        let mut reader = Self::new(inner, true);
        reader.skip = |inner, count| {
            // Seeking over the end is no error: the last byte is read.
            let Some(before) = count.checked_sub(1) else {
                return Ok(());
            };
            let before = i64::try_from(before).map_err(io::Error::other)?;
            inner.seek(SeekFrom::Current(before))?;
            inner.read_exact(&mut [0])
        };
        reader
    }
}

/// Of the last entry's data.
impl<R: Read> Read for ArchiveReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = self.remaining.min(buffer.len() as u64) as usize;
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.inner.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.remaining -= count as u64;
        self.position += count as u64;
        Ok(count)
    }
}

/// Sums as unsigned and, as some old programs do, as signed bytes.
fn check_sum(header: &Header) -> Result<(), EntryError> {
    let error = EntryError::Header("checksum");
    let expected = header.cksum().map_err(|_| error.clone())?;
    let bytes = header.as_bytes().iter().enumerate();
    let bytes = bytes.map(|(at, byte)| {
        if (148..156).contains(&at) {
            b' '
        } else {
            *byte
        }
    });
    let (mut unsigned, mut signed) = (0u32, 0i32);
    for byte in bytes {
        unsigned += u32::from(byte);
        signed += i32::from(byte as i8);
    }
    if expected == unsigned || i64::from(expected) == i64::from(signed) {
        Ok(())
    } else {
        Err(error)
    }
}

/// Whether pieces are in order, apart, inside the file, and as long together as what is stored.
fn check_pieces(size: u64, pieces: &[Piece], stored: u64) -> Result<(), EntryError> {
    let mut end = 0u64;
    let mut sum = 0u64;
    for &(offset, length) in pieces {
        if offset < end {
            return Err(EntryError::Sparse);
        }
        end = offset.checked_add(length).ok_or(EntryError::Sparse)?;
        sum = sum.checked_add(length).ok_or(EntryError::Sparse)?;
    }
    if end > size || sum != stored || size > MAX_SIZE {
        return Err(EntryError::Sparse);
    }
    Ok(())
}

fn c_string(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

impl Extended {
    /// Records: a length, a space, `key=value`, a line feed; the length counts all of it.
    fn read(&mut self, mut data: &[u8]) -> Result<(), EntryError> {
        let error = EntryError::Header("extended header");
        while !data.is_empty() {
            let space = data.iter().position(|byte| *byte == b' ');
            let space = space.ok_or(error.clone())?;
            let length = number(&data[..space])
                .and_then(|length| usize::try_from(length).ok())
                .filter(|length| *length > space + 1 && *length <= data.len())
                .ok_or(error.clone())?;
            let (record, rest) = data.split_at(length);
            let record = record[space + 1..].strip_suffix(b"\n");
            let record = record.ok_or(error.clone())?;
            let equals = record.iter().position(|byte| *byte == b'=');
            let equals = equals.ok_or(error.clone())?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            self.set(key, value).ok_or(error.clone())?;
            data = rest;
        }
        Ok(())
    }

    /// `None`: the value is not one of this key's.
    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.name = Some(value.to_vec()),
            b"GNU.sparse.name" => self.sparse_name = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number(value)?),
            b"uid" => self.uid = Some(number(value)?),
            b"gid" => self.gid = Some(number(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"GNU.sparse.major" => {
                self.sparse_version =
                    Some((number(value)?, self.sparse_version.unwrap_or_default().1));
            }
            b"GNU.sparse.minor" => {
                self.sparse_version =
                    Some((self.sparse_version.unwrap_or_default().0, number(value)?));
            }
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse_size = Some(number(value)?),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse_map.push(number(value)?),
            b"GNU.sparse.map" => {
                let numbers = value.split(|byte| *byte == b',').filter(|n| !n.is_empty());
                self.sparse_map = numbers.map(number).collect::<Option<_>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.insert(name.into(), value.into());
                }
            }
        }
        Some(())
    }
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with a fraction, before 1970 as well.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_negative = seconds.starts_with('-');
    let seconds: i64 = seconds.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    if is_negative && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_fractions_and_signs() {
        assert_eq!(time(b"12"), Some((12, 0)));
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"1.0000000019"), Some((1, 1)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-0.25"), Some((-1, 750_000_000)));
        for wrong in [&b""[..], b"x", b"1.x", b"1.-5", b"99999999999999999999"] {
            assert_eq!(time(wrong), None);
        }
    }

    #[test]
    fn values_may_contain_line_feeds() {
        let mut extended = Extended::default();
        extended
            .read(b"33 SCHILY.xattr.user.x=\n1\0 a=b\n\n\n9 uid=70\n")
            .unwrap();
        let value = extended.xattrs.get(&b"user.x"[..]).unwrap();
        assert_eq!(&**value, b"\n1\0 a=b\n\n");
        assert_eq!(extended.uid, Some(70));
    }

    #[test]
    fn damaged_records_are_refused() {
        for wrong in [
            &b"9 uid=70"[..],
            b"8 uid=70\n",
            b"99 uid=70\n",
            b"0 uid=70\n",
            b"-9 uid=70\n",
            b"9 uid 70\n",
            b"9 uid=x0\n",
            b"uid=70\n",
            b"2 \n",
        ] {
            let read = Extended::default().read(wrong);
            assert!(read.is_err(), "{}", String::from_utf8_lossy(wrong));
        }
    }

    #[test]
    fn pieces_of_sparse_files_are_in_order_and_inside() {
        assert!(check_pieces(10, &[(0, 2), (4, 2), (10, 0)], 4).is_ok());
        for (size, pieces, stored) in [
            (10, &[(4, 2), (0, 2)][..], 4),
            (10, &[(0, 2), (1, 2)], 4),
            (10, &[(8, 4)], 4),
            (10, &[(0, 4)], 5),
            (10, &[(u64::MAX, 2)], 2),
            (MAX_SIZE + 1, &[], 0),
        ] {
            assert_eq!(check_pieces(size, pieces, stored), Err(EntryError::Sparse));
        }
    }
}
