//! Raw disk images: a file or a block device of the host, byte for byte what the guest sees.
//!
//! An image is opened once, locked against other VMs, and read and written by offset, so that threads may share it. The
//! format is what the configuration says, never what the content looks like: a guest can write any header it likes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use thiserror::Error;
use vm_memory::VolatileSlice;

use super::direct::{self, Direct};

/// Bytes in a sector, the unit of every disk's size.
pub const SECTOR: u64 = 512;

/// The most pieces that one system call takes (IOV_MAX).
const MAX_PIECES: usize = 1024;

/// What a guest's disk is kept in. Any thread may call it, several at once.
pub trait BlockBackend: Send + Sync {
    /// Its size in bytes, a multiple of [`SECTOR`].
    fn size(&self) -> u64;

    /// Looks how large the image is by now, and takes what it has grown by; returns what it found. One that has shrunk keeps
    /// its size: what lies beyond the end fails.
    ///
    /// # Errors
    /// The host's.
    fn refresh_size(&self) -> io::Result<u64> {
        Ok(self.size())
    }

    /// Whether it may not be written.
    fn is_read_only(&self) -> bool;

    /// Fills all of `data` from `offset` on.
    ///
    /// # Errors
    /// The host's; `data` may have been filled in part.
    fn read_at(&self, data: &[VolatileSlice<'_>], offset: u64) -> io::Result<()>;

    /// Writes all of `data` at `offset`.
    ///
    /// # Errors
    /// The host's; a part may have been written.
    fn write_at(&self, data: &[VolatileSlice<'_>], offset: u64) -> io::Result<()>;

    /// Returns when all that was written is on stable storage.
    ///
    /// # Errors
    /// The host's. Once it has failed it always will: the host forgets what it lost, and a later success would be a lie.
    fn flush(&self) -> io::Result<()>;

    /// Says that the content of a range is not needed; it may read as anything then.
    ///
    /// # Errors
    /// The host's. A host that cannot give the space back is no error.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes a range read as zeroes, giving its space back if `unmap` and the host can.
    ///
    /// # Errors
    /// The host's.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;

    /// Whether requests that follow one another on the disk may be made by one call; else each has its own.
    fn joins_requests(&self) -> bool {
        true
    }

    /// The file that has every byte of the disk at its own offset, for an engine that reads and writes it by itself; none
    /// where the bytes are elsewhere.
    fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// How these bytes can get from memory to [`Self::file`], or (not `write`) the other way.
    fn route(&self, data: &[VolatileSlice<'_>], offset: u64, write: bool) -> Route {
        let _ = (data, offset, write);
        Route::Straight
    }

    /// Takes note of how a flush of [`Self::file`] ended that was not made by [`Self::flush`]; returns what it is worth.
    ///
    /// # Errors
    /// As for [`Self::flush`].
    fn flushed(&self, result: io::Result<()>) -> io::Result<()> {
        result
    }
}

/// How a request can be served by an engine that knows [`BlockBackend::file`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// By the file, as it is.
    Straight,
    /// By the back end only.
    Here,
    /// By the back end only, and only while no other write is under way.
    Alone,
}

/// How to open an image.
#[derive(Debug, Clone, Copy)]
pub struct OpenDisk<'a> {
    /// The file or block device.
    pub path: &'a Path,
    /// Whether the guest may not write.
    pub read_only: bool,
    /// Creates a sparse file of this many bytes, where there is none yet.
    pub create_size: Option<u64>,
    /// Goes past the host's page cache.
    pub direct: bool,
    /// Takes a lock: exclusive for a disk that is written, shared for one that is read.
    pub lock: bool,
}

/// Why a disk image cannot be used.
#[derive(Debug, Error)]
pub enum DiskError {
    /// The host does not open it.
    #[error("cannot open disk \"{}\"", path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is a directory, a FIFO or the like.
    #[error("disk \"{}\" is {what}, not a file or a block device", path.display())]
    NotADisk {
        /// The image.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Another VM has it.
    #[error("disk \"{}\" is in use by another process", path.display())]
    Locked {
        /// The image.
        path: PathBuf,
    },
    /// Its file system has no direct I/O.
    #[error("disk \"{}\" cannot be used with direct: its file system has no direct I/O", path.display())]
    NoDirect {
        /// The image.
        path: PathBuf,
    },
    /// It does not consist of whole blocks of the host's.
    #[error("disk \"{}\" has {size} bytes, and direct I/O needs a multiple of {block} there", path.display())]
    Blocks {
        /// The image.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// The host's block.
        block: u64,
    },
    /// It cannot be made.
    #[error("cannot create disk \"{}\"", path.display())]
    Create {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not of the format that it is said to have.
    #[error("disk \"{}\" is no qcow2 image that can be used", path.display())]
    Format {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It consists of other files, too, and nobody allowed that.
    #[error("disk \"{}\" names \"{name}\" as its {what}, which is not allowed", path.display())]
    Backing {
        /// The image.
        path: PathBuf,
        /// "backing file" or "data file".
        what: &'static str,
        /// The file, as the image has it.
        name: String,
    },
    /// It does not say of which format its backing file is, or that has another than raw and qcow2.
    #[error("disk \"{}\" says that its backing file \"{}\" has the format \"{format}\", not raw or qcow2", path.display(), name.display())]
    BackingFormat {
        /// The image.
        path: PathBuf,
        /// The backing file.
        name: PathBuf,
        /// What it says; empty for nothing.
        format: String,
    },
    /// There are too many backing files behind one another, or the last of them is the first.
    #[error("disk \"{}\" has too long a chain of backing files before it", path.display())]
    Chain {
        /// The last one.
        path: PathBuf,
    },
    /// The host has no io_uring, or keeps it from us.
    #[error("cannot set up io_uring for disk \"{}\"", path.display())]
    Ring {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is empty, or does not consist of whole sectors.
    #[error("disk \"{}\" has {size} bytes, which is not a positive multiple of {SECTOR}", path.display())]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
}

impl DiskError {
    /// What a person can do about it.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Open { path, source } => match source.kind() {
                io::ErrorKind::NotFound => Some(format!(
                    "--disk size=10G,path={} creates one",
                    path.display()
                )),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    Some("a disk that is only read needs ,readonly".into())
                }
                _ => None,
            },
            Self::Locked { .. } => Some(
                "end the other VM, open it ,readonly in both, or share it at your own risk with ,lock=off"
                    .into(),
            ),
            Self::Size { path, size } => {
                let up = size.next_multiple_of(SECTOR).max(SECTOR);
                Some(format!("truncate -s {up} {}", path.display()))
            }
            Self::Blocks { path, size, block } => {
                let up = size.next_multiple_of(*block);
                Some(format!("truncate -s {up} {}", path.display()))
            }
            Self::Format { .. } => Some(
                "look at it with qemu-img info; if it is a raw image, leave format=qcow2 out".into(),
            ),
            Self::Backing { .. } => Some("if you trust the image: backing=allow".into()),
            Self::BackingFormat { path, name, .. } => Some(format!(
                "say it in the image: qemu-img rebase -u -b {} -F raw|qcow2 {}",
                name.display(),
                path.display()
            )),
            Self::Create { .. } | Self::Chain { .. } => None,
            Self::NoDirect { .. } => Some("leave direct out, or move the image".into()),
            Self::Ring { source, .. } => Some(match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => "io_uring is forbidden here (see sysctl kernel.io_uring_disabled, or the \
                     container's seccomp profile): allow it, or use engine=sync"
                    .into(),
                Some(libc::ENOMEM) => {
                    "the limit of locked memory is reached: raise it with ulimit -l, or use engine=sync"
                        .into()
                }
                _ => "use engine=sync".into(),
            }),
            Self::NotADisk { .. } => None,
        }
    }
}

/// The flushes of an image. One that failed is never forgotten: the host's kernel tells of what it could not write once, and drops it.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    failed: AtomicBool,
}

impl Flushes {
    /// What a flush came to, in the light of those before it.
    pub(super) fn judge(&self, result: io::Result<()>) -> io::Result<()> {
        if result.is_err() {
            self.failed.store(true, Ordering::SeqCst);
        } else if self.failed.load(Ordering::SeqCst) {
            return Err(io::Error::other("an earlier flush failed"));
        }
        result
    }
}

/// A raw image.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    size: AtomicU64,
    is_device: bool,
    read_only: bool,
    direct: Option<Direct>,
    flushes: Flushes,
}

/// An image that is open, and locked.
pub(super) struct OpenedFile {
    pub(super) file: File,
    pub(super) is_device: bool,
    /// It has been created, and is empty.
    pub(super) is_new: bool,
}

/// Opens and locks an image, whatever it holds.
pub(super) fn open_file(options: &OpenDisk<'_>) -> Result<OpenedFile, DiskError> {
    let path = options.path;
    let failed = |source| DiskError::Open {
        path: path.to_owned(),
        source,
    };
    let direct_flag = if options.direct { libc::O_DIRECT } else { 0 };
    let mut open = OpenOptions::new();
    // O_NONBLOCK: a FIFO is to be refused, not waited for.
    open.read(true)
        .write(!options.read_only)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | direct_flag);
    let mut fresh = false;
    let file = match (options.create_size, open.open(path)) {
        (Some(_), Err(err)) if err.kind() == io::ErrorKind::NotFound => {
            fresh = true;
            open.create_new(true).open(path)
        }
        (_, result) => result,
    }
    .map_err(|err| match err.raw_os_error() {
        Some(libc::EINVAL) if options.direct => DiskError::NoDirect {
            path: path.to_owned(),
        },
        _ => failed(err),
    })?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(DiskError::NotADisk {
            path: path.to_owned(),
            what: what_it_is(kind),
        });
    }
    if options.lock {
        lock(&file, options.read_only).map_err(|err| match is_locked(&err) {
            true => DiskError::Locked {
                path: path.to_owned(),
            },
            false => failed(err),
        })?;
    }
    Ok(OpenedFile {
        file,
        is_device: kind.is_block_device(),
        is_new: fresh,
    })
}

impl RawDisk {
    /// Opens, locks and measures an image.
    ///
    /// # Errors
    /// [`DiskError`], naming the image.
    pub fn open(options: &OpenDisk<'_>) -> Result<Self, DiskError> {
        let path = options.path;
        let failed = |source| DiskError::Open {
            path: path.to_owned(),
            source,
        };
        let OpenedFile {
            file,
            is_device,
            is_new,
        } = open_file(options)?;
        if let Some(size) = options.create_size.filter(|_| is_new) {
            file.set_len(size).map_err(failed)?;
        }
        let size = measure(&file, is_device).map_err(failed)?;
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(DiskError::Size {
                path: path.to_owned(),
                size,
            });
        }
        let direct = match options.direct {
            true => Some(open_direct(&file, path, size)?),
            false => None,
        };
        Ok(Self {
            file,
            size: AtomicU64::new(size),
            is_device,
            read_only: options.read_only,
            direct,
            flushes: Flushes::default(),
        })
    }

    /// The same image as if the host wanted direct I/O in blocks of this size.
    #[cfg(test)]
    pub(crate) fn in_blocks(mut self, block: u64) -> Self {
        self.direct = Some(Direct::new(direct::Alignment {
            offset: block,
            memory: 512,
        }));
        self
    }

    /// Moves the one piece that most requests have; what is left of it, where the host moved less.
    fn transfer_one<'a>(
        &self,
        piece: &VolatileSlice<'a>,
        offset: u64,
        write: bool,
    ) -> io::Result<VolatileSlice<'a>> {
        let (fd, len) = (self.file.as_raw_fd(), piece.len());
        let at = libc::off_t::try_from(offset)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let memory = piece.ptr_guard_mut();
        let moved = if write {
            // SAFETY: guest memory of that length, which `piece` borrows for the time of the call; see `transfer`.
            unsafe { libc::pwrite(fd, memory.as_ptr().cast(), len, at) }
        } else {
            // SAFETY: as above.
            unsafe { libc::pread(fd, memory.as_ptr().cast(), len, at) }
        };
        match usize::try_from(moved) {
            // Nothing was moved, or the call was interrupted: the slow way tells the one from the other.
            Ok(moved) => piece.offset(moved).map_err(io::Error::other),
            Err(_) => Ok(*piece),
        }
    }

    fn read_straight(&self, data: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        match data {
            [piece] => {
                let rest = self.transfer_one(piece, offset, false)?;
                let offset = offset + (piece.len() - rest.len()) as u64;
                self.transfer(&[rest], offset, libc::preadv)
            }
            data => self.transfer(data, offset, libc::preadv),
        }
    }

    fn write_straight(&self, data: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        match data {
            [piece] => {
                let rest = self.transfer_one(piece, offset, true)?;
                let offset = offset + (piece.len() - rest.len()) as u64;
                self.transfer(&[rest], offset, libc::pwritev)
            }
            data => self.transfer(data, offset, libc::pwritev),
        }
    }

    fn transfer(
        &self,
        data: &[VolatileSlice<'_>],
        mut offset: u64,
        call: unsafe extern "C" fn(i32, *const libc::iovec, i32, libc::off_t) -> isize,
    ) -> io::Result<()> {
        let mut pieces: Vec<libc::iovec> = data
            .iter()
            .filter(|slice| !slice.is_empty())
            .map(|slice| libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            })
            .collect();
        let mut rest = &mut pieces[..];
        while !rest.is_empty() {
            let count = rest.len().min(MAX_PIECES);
            let at = libc::off_t::try_from(offset)
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            // SAFETY: each piece is guest memory that `data` borrows for the time of the call. The guest may change it
            // meanwhile, which is its own affair: no reference to it exists here.
            let moved = unsafe { call(self.file.as_raw_fd(), rest.as_ptr(), count as i32, at) };
            match usize::try_from(moved) {
                // The file is shorter than it was.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(moved) => {
                    offset += moved as u64;
                    rest = advance(rest, moved);
                }
                Err(_) => {
                    let err = io::Error::last_os_error();
                    if err.kind() != io::ErrorKind::Interrupted {
                        return Err(err);
                    }
                }
            }
        }
        Ok(())
    }

    fn allocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        let range = |value: u64| {
            libc::off_t::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
        };
        let (offset, len) = (range(offset)?, range(len)?);
        loop {
            // SAFETY: takes no pointer.
            let result = unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, len) };
            if result == 0 {
                return Ok(());
            }
            let err = io::Error::last_os_error();
            if err.kind() != io::ErrorKind::Interrupted {
                return Err(err);
            }
        }
    }

    fn write_zero_bytes(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        let mut zeroes = vec![0; 64 << 10];
        while len > 0 {
            let now = len.min(zeroes.len() as u64);
            let data = VolatileSlice::from(&mut zeroes[..now as usize]);
            self.write_at(&[data], offset)?;
            offset += now;
            len -= now;
        }
        Ok(())
    }
}

impl BlockBackend for RawDisk {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn refresh_size(&self) -> io::Result<u64> {
        let found = measure(&self.file, self.is_device)?;
        let block = self.direct.as_ref().map_or(SECTOR, Direct::block);
        let whole = found - found % block;
        self.size.fetch_max(whole, Ordering::AcqRel);
        Ok(whole)
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, data: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        match &self.direct {
            Some(direct) if direct.route(data, offset, false) != Route::Straight => {
                direct.read(&self.file, data, offset)
            }
            _ => self.read_straight(data, offset),
        }
    }

    fn write_at(&self, data: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        match &self.direct {
            Some(direct) if direct.route(data, offset, true) != Route::Straight => {
                direct.write(&self.file, data, offset)
            }
            Some(direct) => direct.beside_others(|| self.write_straight(data, offset)),
            None => self.write_straight(data, offset),
        }
    }

    fn route(&self, data: &[VolatileSlice<'_>], offset: u64, write: bool) -> Route {
        let direct = self.direct.as_ref();
        direct.map_or(Route::Straight, |direct| direct.route(data, offset, write))
    }

    fn flush(&self) -> io::Result<()> {
        self.flushed(self.file.sync_data())
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn flushed(&self, result: io::Result<()>) -> io::Result<()> {
        self.flushes.judge(result)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        match self.allocate(punch, offset, len) {
            Err(err) if is_unsupported(&err) => Ok(()),
            result => result,
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let mode = if unmap {
            libc::FALLOC_FL_PUNCH_HOLE
        } else {
            libc::FALLOC_FL_ZERO_RANGE
        };
        match self.allocate(mode | libc::FALLOC_FL_KEEP_SIZE, offset, len) {
            Err(err) if is_unsupported(&err) => self.write_zero_bytes(offset, len),
            result => result,
        }
    }
}

fn is_unsupported(err: &io::Error) -> bool {
    matches!(
        err.raw_os_error(),
        // EINVAL: a block device whose blocks are larger than the range.
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::EINVAL)
    )
}

fn measure(mut file: &File, is_device: bool) -> io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    match is_device {
        true => file.seek(SeekFrom::End(0)),
        false => Ok(file.metadata()?.len()),
    }
}

fn open_direct(file: &File, path: &Path, size: u64) -> Result<Direct, DiskError> {
    let alignment = direct::alignment(file).map_err(|source| match source.kind() {
        io::ErrorKind::Unsupported => DiskError::NoDirect {
            path: path.to_owned(),
        },
        _ => DiskError::Open {
            path: path.to_owned(),
            source,
        },
    })?;
    direct_in(alignment, path, size)
}

fn direct_in(alignment: direct::Alignment, path: &Path, size: u64) -> Result<Direct, DiskError> {
    let direct = Direct::new(alignment);
    if !size.is_multiple_of(direct.block()) {
        return Err(DiskError::Blocks {
            path: path.to_owned(),
            size,
            block: direct.block(),
        });
    }
    Ok(direct)
}

/// The pieces that are left after `moved` bytes.
fn advance(mut pieces: &mut [libc::iovec], mut moved: usize) -> &mut [libc::iovec] {
    while let Some(first) = pieces.first_mut() {
        if moved < first.iov_len {
            // Still inside the piece.
            first.iov_base = first.iov_base.wrapping_byte_add(moved);
            first.iov_len -= moved;
            break;
        }
        moved -= first.iov_len;
        pieces = &mut pieces[1..];
    }
    pieces
}

/// How long a lock may be somebody's who is gone: the host ends the requests of a VM that was killed, and only then lets go of
/// their file.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// Locks the open file: the lock goes with the descriptor, whatever way the process ends.
fn lock(file: &File, shared: bool) -> io::Result<()> {
    let start = Instant::now();
    loop {
        match try_lock(file, shared) {
            Err(err) if is_locked(&err) && start.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

fn is_locked(err: &io::Error) -> bool {
    matches!(err.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
}

fn try_lock(file: &File, shared: bool) -> io::Result<()> {
    let kind = if shared { libc::F_RDLCK } else { libc::F_WRLCK };
    let range = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the pointer is to a valid `flock`, which is only read.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn what_it_is(kind: std::fs::FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a character device"
    }
}

#[cfg(test)]
mod tests;
