//! qcow2 images, by the crate imago, which reads and writes them on the calling thread.
//!
//! An image is what the configuration says, and never named so by its content. What it names itself, a backing file or an external
//! data file, is opened only where the configuration allows it, and locked as the image is; the format of a backing file has to be
//! in the header. Metadata is cached: at most 160 clusters of it, 10 MiB with the usual clusters of 64 KiB.
//!
//! Data goes through a buffer, because imago takes slices, and guest memory may change under one. A request may have to read and
//! write metadata and to copy a cluster before it gets to its data; all of that is done before the next request of the I/O thread's
//! devices.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use imago::file::File;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, StorageOpenOptions};
use vm_memory::VolatileSlice;

use super::disk::{BlockBackend, DiskError, Flushes, OpenDisk, SECTOR, open_file};

/// Bytes that go through the buffer at once: a cluster of the usual size.
const CHUNK: u64 = 64 << 10;
/// Where the header says where the table of refcounts is; then, in 32 bits, its length in clusters.
const REFCOUNT_TABLE_OFFSET: u64 = 48;
/// The most backing files, one behind the other.
const MAX_CHAIN: usize = 16;

/// A qcow2 image.
pub struct Qcow2Disk {
    /// None while it is dropped.
    image: RwLock<Option<FormatAccess<File>>>,
    /// Imago has panicked, and nothing is known of its state.
    damaged: AtomicBool,
    size: u64,
    read_only: bool,
    buffer: Mutex<Vec<u8>>,
    flushes: Flushes,
}

impl Qcow2Disk {
    /// Opens, locks and checks an image; `allow_backing` lets it name other files. A new one is made with `options.create_size`.
    ///
    /// # Errors
    /// [`DiskError`], naming the image.
    pub fn open(options: &OpenDisk<'_>, allow_backing: bool) -> Result<Self, DiskError> {
        let opened = open_file(options)?;
        let unusable = |source| DiskError::Format {
            path: options.path.to_owned(),
            source,
        };
        if let Some(size) = options.create_size.filter(|_| opened.is_new) {
            create(&opened.file, size, options).inspect_err(|_| {
                // Half an image is none, and would be in the way of the next attempt.
                let _ = std::fs::remove_file(options.path);
            })?;
        }
        if !options.read_only {
            check_refcounts(&opened.file).map_err(unusable)?;
        }
        let storage = storage(opened.file, options)?;
        let image =
            survive(|| open_image(storage, options, allow_backing, 0)).map_err(unusable)??;
        let size = image.size();
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(unusable(io::Error::other(format!(
                "its disk has {size} bytes, which is not a positive multiple of {SECTOR}"
            ))));
        }
        Ok(Self {
            image: RwLock::new(Some(image)),
            damaged: AtomicBool::new(false),
            size,
            read_only: options.read_only,
            buffer: Mutex::new(Vec::new()),
            flushes: Flushes::default(),
        })
    }

    fn with_image<T>(
        &self,
        work: impl FnOnce(&FormatAccess<File>) -> io::Result<T>,
    ) -> io::Result<T> {
        let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
        self.guard(|| work(image.as_ref().ok_or(io::ErrorKind::NotFound)?))
    }

    /// For what moves data about inside the image: nobody else has it meanwhile.
    fn with_image_alone<T>(
        &self,
        work: impl FnOnce(&mut FormatAccess<File>) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        self.guard(|| work(image.as_mut().ok_or(io::ErrorKind::NotFound)?))
    }

    /// After a panic the image is not touched any more.
    fn guard<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.damaged.load(Ordering::SeqCst) {
            return Err(io::Error::other("the image is damaged"));
        }
        survive(work).unwrap_or_else(|err| {
            self.damaged.store(true, Ordering::SeqCst);
            Err(err)
        })
    }

    /// Goes over a request by pieces that fit the buffer and lie in one cluster of the usual size.
    fn in_chunks(
        &self,
        data: &[VolatileSlice<'_>],
        offset: u64,
        mut work: impl FnMut(&mut [u8], u64, &mut Cursor<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let len: u64 = data.iter().map(|piece| piece.len() as u64).sum();
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = len.min(CHUNK) as usize;
        if buffer.len() < needed {
            buffer.resize(needed, 0);
        }
        let mut memory = Cursor {
            data,
            piece: 0,
            done: 0,
        };
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let stop = ((at / CHUNK + 1) * CHUNK).min(end);
            work(&mut buffer[..(stop - at) as usize], at, &mut memory)?;
            at = stop;
        }
        Ok(())
    }
}

/// A place in a request's memory.
struct Cursor<'a> {
    data: &'a [VolatileSlice<'a>],
    piece: usize,
    done: usize,
}

impl Cursor<'_> {
    /// Calls `copy` with the next `len` bytes, piece by piece, and with where each is among them.
    fn next(&mut self, len: usize, mut copy: impl FnMut(&VolatileSlice<'_>, usize)) {
        let mut at = 0;
        while at < len
            && let Some(piece) = self.data.get(self.piece)
        {
            let now = (piece.len() - self.done).min(len - at);
            if let Ok(part) = piece.subslice(self.done, now) {
                copy(&part, at);
            }
            at += now;
            self.done += now;
            if self.done == piece.len() {
                self.piece += 1;
                self.done = 0;
            }
        }
    }
}

impl BlockBackend for Qcow2Disk {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, data: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        self.with_image(|image| {
            self.in_chunks(data, offset, |buffer, at, memory| {
                image.read(&mut *buffer, at)?;
                memory.next(buffer.len(), |part, from| {
                    part.copy_from(&buffer[from..from + part.len()]);
                });
                Ok(())
            })
        })
    }

    fn write_at(&self, data: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        self.with_image(|image| {
            self.in_chunks(data, offset, |buffer, at, memory| {
                memory.next(buffer.len(), |part, to| {
                    part.copy_to(&mut buffer[to..to + part.len()]);
                });
                image.write(&*buffer, at)
            })
        })
    }

    fn flush(&self) -> io::Result<()> {
        // Metadata first: what it says must be there when the data is.
        self.flushed(self.with_image(|image| image.flush().and_then(|()| image.sync())))
    }

    fn flushed(&self, result: io::Result<()>) -> io::Result<()> {
        self.flushes.judge(result)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.with_image_alone(|image| image.discard_to_any(offset, len)) {
            Err(err) if err.kind() == io::ErrorKind::Unsupported => Ok(()),
            result => result,
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        match unmap {
            true => self.with_image_alone(|image| image.discard_to_zero(offset, len)),
            false => self.with_image(|image| image.write_zeroes(offset, len)),
        }
    }
}

impl Drop for Qcow2Disk {
    fn drop(&mut self) {
        let image = self.image.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some(image) = image.take() else {
            return;
        };
        if self.damaged.load(Ordering::SeqCst) {
            // Its drop would write what nobody knows to be right.
            std::mem::forget(image);
        } else if let Err(err) = survive(|| drop(image)) {
            log::error!("a disk's image was not closed in good order: {err}");
        }
    }
}

/// Imago is well-tested, but a hostile image may still run it into an assertion.
fn survive<T>(work: impl FnOnce() -> T) -> io::Result<T> {
    // The hook has printed where and why.
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| io::Error::other("the image is damaged"))
}

fn storage(file: std::fs::File, options: &OpenDisk<'_>) -> Result<File, DiskError> {
    let how = StorageOpenOptions::new()
        .filename(options.path)
        .write(!options.read_only)
        .direct(options.direct);
    File::from_open_file(file, how).map_err(|source| DiskError::Open {
        path: options.path.to_owned(),
        source,
    })
}

/// Looks whether the header itself is counted, as by a refcount block that covers it. Imago (0.2.6) takes that for granted, and
/// would look for room for such a block without end.
fn check_refcounts(file: &std::fs::File) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let word = |at| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at)?;
        io::Result::Ok(u64::from_be_bytes(bytes))
    };
    let table = word(REFCOUNT_TABLE_OFFSET)?;
    let clusters = word(REFCOUNT_TABLE_OFFSET + 8)? >> 32;
    // Of an entry, the bits of a cluster's place.
    if clusters == 0 || word(table)? & 0x00ff_ffff_ffff_fe00 == 0 {
        return Err(io::Error::other("its refcounts are missing"));
    }
    Ok(())
}

/// Makes an empty image of a new file.
fn create(file: &std::fs::File, size: u64, options: &OpenDisk<'_>) -> Result<(), DiskError> {
    let failed = |source| DiskError::Create {
        path: options.path.to_owned(),
        source,
    };
    // Another descriptor of the same open file, so that the lock is not let go.
    let storage = storage(file.try_clone().map_err(failed)?, options)?;
    let builder = Qcow2::<File>::create_builder(storage);
    builder.size(size).create().map_err(failed)
}

fn open_image(
    storage: File,
    options: &OpenDisk<'_>,
    allow_backing: bool,
    depth: usize,
) -> Result<FormatAccess<File>, DiskError> {
    let path = options.path;
    let unusable = |source| DiskError::Format {
        path: path.to_owned(),
        source,
    };
    let mut image = Qcow2::<File>::open_image(storage, !options.read_only).map_err(unusable)?;
    let data = match image.requires_external_data_file() {
        true => Some(
            image
                .implicit_external_data_file()
                .cloned()
                .unwrap_or_default(),
        ),
        false => None,
    };
    let backing = image.implicit_backing_file().cloned();
    let named = [("data file", &data), ("backing file", &backing)];
    for (what, name) in named {
        if let Some(name) = name.as_ref().filter(|_| !allow_backing) {
            return Err(DiskError::Backing {
                path: path.to_owned(),
                what,
                name: name.clone(),
            });
        }
    }
    if let Some(name) = data {
        let path = beside(path, &name);
        let data = OpenDisk {
            path: &path,
            create_size: None,
            ..*options
        };
        let file = open_file(&data)?;
        image.set_data_file(Some(self::storage(file.file, &data)?));
    }
    if let Some(name) = backing {
        let format = image.implicit_backing_format().cloned();
        let path = beside(path, &name);
        let backing = OpenDisk {
            path: &path,
            read_only: true,
            create_size: None,
            ..*options
        };
        image.set_backing(Some(open_backing(
            &backing,
            options.path,
            format.as_deref(),
            depth + 1,
        )?));
    }
    image
        .open_implicit_dependencies_gated(DenyImplicitOpenGate::default())
        .map_err(unusable)?;
    Ok(FormatAccess::new(image))
}

fn open_backing(
    options: &OpenDisk<'_>,
    of: &Path,
    format: Option<&str>,
    depth: usize,
) -> Result<FormatAccess<File>, DiskError> {
    let of = || of.to_owned();
    if depth > MAX_CHAIN {
        return Err(DiskError::Chain { path: of() });
    }
    let storage = storage(open_file(options)?.file, options)?;
    match format {
        Some("qcow2") => open_image(storage, options, true, depth),
        Some("raw") => {
            let raw = Raw::open_image(storage, false).map_err(|source| DiskError::Open {
                path: options.path.to_owned(),
                source,
            })?;
            Ok(FormatAccess::new(raw))
        }
        format => Err(DiskError::BackingFormat {
            path: of(),
            name: options.path.to_owned(),
            format: format.unwrap_or_default().to_owned(),
        }),
    }
}

/// A file that an image names: beside it, unless it says where.
fn beside(image: &Path, name: &str) -> PathBuf {
    image.parent().unwrap_or(Path::new("")).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const SIZE: u64 = 1 << 20;

    fn options(path: &Path) -> OpenDisk<'_> {
        OpenDisk {
            path,
            read_only: false,
            create_size: None,
            direct: false,
            lock: true,
        }
    }

    fn new(path: &Path) -> Qcow2Disk {
        let options = OpenDisk {
            create_size: Some(SIZE),
            ..options(path)
        };
        Qcow2Disk::open(&options, false).unwrap()
    }

    /// An image that names another one.
    fn overlay(path: &Path, backing: &str, format: &str) {
        let file = fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .unwrap();
        let storage = storage(file, &options(path)).unwrap();
        Qcow2::<File>::create_builder(storage)
            .size(SIZE)
            .backing(backing.to_owned(), format.to_owned())
            .create()
            .unwrap();
    }

    fn read(disk: &Qcow2Disk, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0xee; len];
        let (first, second) = bytes.split_at_mut(len / 3);
        disk.read_at(
            &[VolatileSlice::from(first), VolatileSlice::from(second)],
            offset,
        )?;
        Ok(bytes)
    }

    fn write(disk: &Qcow2Disk, offset: u64, bytes: &[u8]) {
        let mut bytes = bytes.to_vec();
        let third = bytes.len() / 3;
        let (first, second) = bytes.split_at_mut(third);
        disk.write_at(
            &[VolatileSlice::from(first), VolatileSlice::from(second)],
            offset,
        )
        .unwrap();
    }

    #[test]
    fn what_is_written_and_flushed_is_there_for_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let disk = new(&path);
        assert_eq!(disk.size(), SIZE);
        assert!(fs::metadata(&path).unwrap().len() < SIZE);
        let bytes: Vec<u8> = (0..200_000_u32).map(|at| (at / 7) as u8).collect();
        write(&disk, 65_024, &bytes);
        disk.flush().unwrap();
        // What is flushed needs no good end.
        let copy = folder.path().join("copy");
        fs::copy(&path, &copy).unwrap();
        for path in [&path, &copy] {
            let locked = Qcow2Disk::open(&options(&folder.path().join("image")), false);
            assert!(matches!(locked, Err(DiskError::Locked { .. })));
            if path == &copy {
                let copy = Qcow2Disk::open(&options(path), false).unwrap();
                assert!(read(&copy, 65_024, bytes.len()).unwrap() == bytes);
                assert!(
                    read(&copy, 0, 65_024)
                        .unwrap()
                        .iter()
                        .all(|byte| *byte == 0)
                );
            }
        }
        drop(disk);
        let disk = Qcow2Disk::open(&options(&path), false).unwrap();
        assert!(read(&disk, 65_024, bytes.len()).unwrap() == bytes);
        disk.write_zeroes(65_536, 1024, false).unwrap();
        disk.write_zeroes(131_072, 65_536 + 512, true).unwrap();
        disk.discard(0, SIZE / 2).unwrap();
        assert!(
            read(&disk, 131_072, 65_536)
                .unwrap()
                .iter()
                .all(|byte| *byte == 0)
        );
    }

    #[test]
    fn a_raw_image_whose_guest_writes_a_header_stays_raw_and_a_qcow2_one_is_not_guessed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let header = folder.path().join("header");
        drop(new(&header));
        let header = fs::read(&header).unwrap();
        fs::write(&path, vec![0; SIZE as usize]).unwrap();
        let raw = super::super::disk::RawDisk::open(&options(&path)).unwrap();
        let mut bytes = header.clone();
        raw.write_at(&[VolatileSlice::from(&mut bytes[..])], 0)
            .unwrap();
        drop(raw);
        let raw = super::super::disk::RawDisk::open(&options(&path)).unwrap();
        assert_eq!(raw.size(), SIZE);
        let mut bytes = vec![0; header.len()];
        raw.read_at(&[VolatileSlice::from(&mut bytes[..])], 0)
            .unwrap();
        assert!(bytes == header);
        drop(raw);
        // And one that is no qcow2 is not taken for raw.
        fs::write(&path, vec![0; SIZE as usize]).unwrap();
        let err = Qcow2Disk::open(&options(&path), false).err().unwrap();
        assert!(matches!(err, DiskError::Format { .. }), "{err}");
        assert!(err.to_string().contains("image\" is no qcow2"), "{err}");
    }

    #[test]
    fn other_files_are_opened_only_where_that_is_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("base.raw"), vec![7; SIZE as usize]).unwrap();
        overlay(&at("middle"), "base.raw", "raw");
        overlay(&at("top"), "middle", "qcow2");
        let err = Qcow2Disk::open(&options(&at("top")), false).err().unwrap();
        assert!(
            err.to_string().contains("\"middle\" as its backing file"),
            "{err}"
        );
        assert!(err.remedy().unwrap().contains("backing=allow"));

        let top = Qcow2Disk::open(&options(&at("top")), true).unwrap();
        assert!(read(&top, 0, 4096).unwrap().iter().all(|byte| *byte == 7));
        write(&top, 512, &[1; 512]);
        top.flush().unwrap();
        assert_eq!(read(&top, 511, 2).unwrap(), [7, 1]);
        assert!(
            fs::read(at("base.raw"))
                .unwrap()
                .iter()
                .all(|byte| *byte == 7)
        );
        // The chain is in use for reading.
        let writer = Qcow2Disk::open(&options(&at("middle")), true);
        assert!(matches!(writer, Err(DiskError::Locked { .. })));
        let base = super::super::disk::RawDisk::open(&options(&at("base.raw")));
        assert!(matches!(base, Err(DiskError::Locked { .. })));
        drop(top);

        overlay(&at("gone"), "no-such-file", "raw");
        let err = Qcow2Disk::open(&options(&at("gone")), true).err().unwrap();
        assert!(err.to_string().contains("no-such-file"), "{err}");
        overlay(&at("vague"), "base.raw", "");
        let err = Qcow2Disk::open(&options(&at("vague")), true).err().unwrap();
        assert!(matches!(err, DiskError::BackingFormat { .. }), "{err}");
        overlay(&at("loop"), "loop", "qcow2");
        let unlocked = OpenDisk {
            lock: false,
            path: &at("loop"),
            ..options(&at("loop"))
        };
        let err = Qcow2Disk::open(&unlocked, true).err().unwrap();
        assert!(matches!(err, DiskError::Chain { .. }), "{err}");
    }

    #[test]
    fn a_damaged_image_is_an_error_and_no_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let disk = new(&path);
        for cluster in 0..8 {
            write(&disk, cluster * 65_536 + 512, &[cluster as u8; 3000]);
        }
        drop(disk);
        let good = fs::read(&path).unwrap();
        let unlocked = OpenDisk {
            lock: false,
            ..options(&path)
        };
        let mut refused = 0;
        let mut seed = 1_u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed >> 33
        };
        for round in 0..600 {
            let mut bad = good.clone();
            for _ in 0..=random() % 3 {
                // The header, or wherever there is something.
                let at = match round % 2 {
                    0 => (random() % 112) as usize,
                    _ => (random() % good.len() as u64) as usize & !7,
                };
                bad[at] = match random() % 3 {
                    0 => 0xff,
                    1 => 0,
                    _ => random() as u8,
                };
            }
            if round % 50 == 0 {
                bad.truncate((random() % good.len() as u64) as usize);
            }
            fs::write(&path, bad).unwrap();
            let Ok(disk) = Qcow2Disk::open(&unlocked, false) else {
                refused += 1;
                continue;
            };
            let mut bytes = vec![round as u8; 70_000];
            let data = [VolatileSlice::from(&mut bytes[..])];
            for offset in [0, 65_536, disk.size().saturating_sub(70_000) & !511] {
                let _ = disk.read_at(&data, offset);
                let _ = disk.write_at(&data, offset);
                let _ = disk.discard(offset, 65_536);
                let _ = disk.flush();
            }
        }
        assert!(refused > 100, "{refused}");
    }
}
