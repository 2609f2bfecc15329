//! Disks for what a command writes over its image: sparse files with an ext4 file system, which mkfs.ext4 of the host makes.
//!
//! A disk that is kept belongs to the image that it was made for: its file system's UUID is made of the image's digest, and its
//! label says that it is one of these. What a guest did to the rest of it is the guest's, which no host mounts.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};
use tempfile::Builder;
use thiserror::Error;

/// Bytes of a disk that is made without a size.
pub const DEFAULT_SIZE: u64 = 10 << 30;

/// Smaller ones have no room for ext4's own data.
pub const MIN_SIZE: u64 = 16 << 20;

const PROGRAM: &str = "mkfs.ext4";

/// Where it is, if PATH does not say: distributions have it for root.
const FOLDERS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// ext4's label of these disks. `fs/ext4/ext4.h` has the superblock: at byte 1024, magic at 0x38, UUID at 0x68, label at 0x78.
const LABEL: &[u8; 16] = b"ampoule-overlay\0";
const SUPERBLOCK: u64 = 1024;
const MAGIC: [u8; 2] = 0xef53u16.to_le_bytes();

/// Changes when disks of before are of no use any more.
const LAYOUT: &[u8] = b"ampoule-overlay-1";

/// Why there is no disk for what is written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OverlayError {
    /// The file cannot be made, opened or read.
    #[error("cannot use \"{}\" for what is written", path.display())]
    File {
        /// Which; or the folder that it was to be in.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The host has no mkfs.ext4.
    #[error("a disk for what is written needs {PROGRAM}, which is not there")]
    NoProgram,
    /// It failed.
    #[error("{PROGRAM} failed, saying \"{message}\"")]
    Format {
        /// Its last line.
        message: String,
    },
    /// There is something else in the file.
    #[error("\"{}\" has something else in it than an overlay that Ampoule has made", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// It was made for another image, or for this one before it changed.
    #[error("\"{}\" belongs to another image, or to this one as it was", path.display())]
    OtherImage {
        /// The file.
        path: PathBuf,
    },
    /// Its size is not the one asked for.
    #[error("\"{}\" has {size} bytes, and not {asked}", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
        /// What was asked for.
        asked: u64,
    },
    /// A size that is too small.
    #[error("a disk of {0} bytes for what is written is smaller than the {MIN_SIZE} that it takes")]
    Small(u64),
}

impl OverlayError {
    /// What a person can do about it.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::NoProgram => "install it: apt install e2fsprogs".into(),
            Self::Foreign { .. } => {
                "name a file that is not there yet: it is made, and never one that is there overwritten".into()
            }
            Self::OtherImage { .. } => {
                "use the image that it was made for, or another file: what is in it fits no other".into()
            }
            Self::Size { .. } => "leave the size out: it counts where the file is made".into(),
            Self::File { .. } | Self::Format { .. } | Self::Small(_) => return None,
        })
    }
}

/// A disk. One that is temporary is gone with this.
#[derive(Debug)]
pub struct Overlay {
    path: PathBuf,
    is_temporary: bool,
    /// What a temporary one, which has no name, is reached by.
    _file: Option<File>,
}

impl Overlay {
    /// One without a name: nothing of it is left when this process has ended, however it does.
    ///
    /// # Errors
    /// [`OverlayError`].
    pub fn temporary(folder: &Path, size: u64) -> Result<Self, OverlayError> {
        let failed = |source| OverlayError::File {
            path: folder.to_owned(),
            source,
        };
        fs::create_dir_all(folder).map_err(failed)?;
        let file = tempfile::tempfile_in(folder).map_err(failed)?;
        // Nobody looks into it again after a crash.
        format(&file, size, &[0; 16], &["-O", "^has_journal"]).map_err(|err| named(err, folder))?;
        Ok(Self {
            path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
            is_temporary: true,
            _file: Some(file),
        })
    }

    /// One in a file, which is made where there is none. `base` says which image it is over; the size counts where it is made.
    ///
    /// # Errors
    /// The file is no such disk, or that of another image; as [`Self::temporary`].
    pub fn kept(path: &Path, size: Option<u64>, base: &[u8]) -> Result<Self, OverlayError> {
        let failed = |source| OverlayError::File {
            path: path.to_owned(),
            source,
        };
        let id = id(base);
        let open = || {
            // A pipe is to be refused, not waited for.
            let flags = OFlags::NONBLOCK.bits() as i32;
            OpenOptions::new().read(true).custom_flags(flags).open(path)
        };
        match open() {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                make(path, size.unwrap_or(DEFAULT_SIZE), &id).map_err(|err| named(err, path))?;
            }
            Err(err) => return Err(failed(err)),
            Ok(_) => {}
        }
        check(&open().map_err(failed)?, path, size, &id).map_err(|err| named(err, path))?;
        Ok(Self {
            path: path.to_owned(),
            is_temporary: false,
            _file: None,
        })
    }

    /// Where this process finds it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it ends with this.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        self.is_temporary
    }
}

/// What went wrong without a file's name.
enum Trouble {
    Host(io::Error),
    Known(OverlayError),
}

impl From<io::Error> for Trouble {
    fn from(err: io::Error) -> Self {
        Self::Host(err)
    }
}

impl From<OverlayError> for Trouble {
    fn from(err: OverlayError) -> Self {
        Self::Known(err)
    }
}

fn named(trouble: Trouble, path: &Path) -> OverlayError {
    match trouble {
        Trouble::Known(err) => err,
        Trouble::Host(source) => OverlayError::File {
            path: path.to_owned(),
            source,
        },
    }
}

/// A UUID of an image's: version 8 of RFC 9562, whose bits are its maker's.
fn id(base: &[u8]) -> [u8; 16] {
    let sum = Sha256::new().chain_update(LAYOUT).chain_update(base);
    let mut id = [0; 16];
    id.copy_from_slice(&sum.finalize()[..16]);
    id[6] = id[6] & 0x0f | 0x80;
    id[8] = id[8] & 0x3f | 0x80;
    id
}

/// The file has its name only when it is complete.
fn make(path: &Path, size: u64, id: &[u8; 16]) -> Result<(), Trouble> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let file = Builder::new()
        .prefix(".ampoule-overlay-")
        .tempfile_in(folder)?;
    format(file.as_file(), size, id, &[])?;
    match file.persist_noclobber(path) {
        // Somebody was faster; whether that one is right is seen next.
        Err(err) if err.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(err) => Err(err.error.into()),
        Ok(_) => Ok(()),
    }
}

fn format(file: &File, size: u64, id: &[u8; 16], options: &[&str]) -> Result<(), Trouble> {
    if size < MIN_SIZE {
        return Err(OverlayError::Small(size).into());
    }
    file.set_len(size)?;
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let uuid = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-");
    let label = String::from_utf8_lossy(&LABEL[..15]);
    let mut command = Command::new(program().ok_or(OverlayError::NoProgram)?);
    command
        .args([
            "-q", "-F", "-b", "4096", "-m", "0", "-L", &label, "-U", &uuid,
        ])
        // What is not written takes no room, and no time; the guest's kernel knows.
        .args([
            "-E",
            "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0",
        ])
        .args(options)
        // It may have no name.
        .arg("/proc/self/fd/0")
        .stdin(file.try_clone()?)
        .stdout(Stdio::null())
        .env("LC_ALL", "C");
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let message = said.lines().map(str::trim).rfind(|line| !line.is_empty());
    Err(Trouble::Known(OverlayError::Format {
        message: message.unwrap_or("nothing").to_owned(),
    }))
}

fn program() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(FOLDERS.map(PathBuf::from));
    folders
        .map(|folder| folder.join(PROGRAM))
        .find(|it| it.is_file())
}

fn check(file: &File, path: &Path, size: Option<u64>, id: &[u8; 16]) -> Result<(), Trouble> {
    let foreign = || OverlayError::Foreign {
        path: path.to_owned(),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() < SUPERBLOCK * 2 {
        return Err(foreign().into());
    }
    let mut block = [0; 0x88];
    file.read_exact_at(&mut block, SUPERBLOCK)?;
    if block[0x38..0x3a] != MAGIC || block[0x78..0x88] != LABEL[..] {
        return Err(foreign().into());
    }
    if block[0x68..0x78] != id[..] {
        return Err(Trouble::Known(OverlayError::OtherImage {
            path: path.to_owned(),
        }));
    }
    match size {
        Some(asked) if asked != metadata.len() => Err(Trouble::Known(OverlayError::Size {
            path: path.to_owned(),
            size: metadata.len(),
            asked,
        })),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const SIZE: u64 = 256 << 20;

    /// Without the program, what is checked before is.
    fn has_program() -> bool {
        let found = program().is_some();
        if !found {
            #[allow(clippy::print_stdout, reason = "what could not run says so")]
            {
                println!("skipped: {PROGRAM} is not there");
            }
        }
        found
    }

    #[test]
    fn one_that_is_kept_is_of_one_image() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept.img");
        let kept =
            |size, base: &[u8]| Overlay::kept(&path, size, base).map(|it| it.path().to_owned());
        assert!(matches!(
            kept(Some(1 << 20), b"a"),
            Err(OverlayError::Small(_))
        ));
        if !has_program() {
            return;
        }
        assert_eq!(kept(Some(SIZE), b"a").unwrap(), path);
        // Sparse, and nothing else is there.
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), SIZE);
        assert!(metadata.blocks() * 512 < 4 << 20, "{}", metadata.blocks());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let content = || {
            let mut content = vec![0; 1 << 20];
            File::open(&path)
                .unwrap()
                .read_exact_at(&mut content, 0)
                .unwrap();
            content
        };
        let before = content();
        assert_eq!(kept(None, b"a").unwrap(), path);
        assert_eq!(kept(Some(SIZE), b"a").unwrap(), path);
        assert!(matches!(
            kept(None, b"b"),
            Err(OverlayError::OtherImage { .. })
        ));
        assert!(matches!(
            kept(Some(2 * SIZE), b"a"),
            Err(OverlayError::Size { .. })
        ));
        assert!(content() == before);
    }

    #[test]
    fn what_is_no_overlay_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let zeros = vec![0; 1 << 20];
        let mut other = zeros.clone();
        other[0x438..0x43a].copy_from_slice(&MAGIC);
        for content in [&b""[..], b"text", &zeros, &other] {
            fs::write(&path, content).unwrap();
            let error = Overlay::kept(&path, None, b"a").unwrap_err();
            assert!(matches!(error, OverlayError::Foreign { .. }), "{error}");
            assert!(error.remedy().is_some());
            assert_eq!(fs::read(&path).unwrap(), content);
        }
        let error = Overlay::kept(folder.path(), None, b"a").unwrap_err();
        assert!(matches!(error, OverlayError::Foreign { .. }), "{error}");
        let error = Overlay::kept(&folder.path().join("no/file"), None, b"a").unwrap_err();
        assert!(matches!(
            error,
            OverlayError::File { .. } | OverlayError::NoProgram
        ));
    }

    #[test]
    fn a_temporary_one_has_no_name() {
        if !has_program() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let overlay = Overlay::temporary(folder.path(), SIZE).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(overlay.path())
            .unwrap();
        assert_eq!(file.metadata().unwrap().len(), SIZE);
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        let mut magic = [0; 2];
        file.read_exact_at(&mut magic, SUPERBLOCK + 0x38).unwrap();
        assert_eq!(magic, MAGIC);
    }
}
