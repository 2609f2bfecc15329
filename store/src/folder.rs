//! A directory of the host's as a source.
//!
//! It is read below one open descriptor, without ever following a symbolic link. Directories on other file systems are empty in the
//! image, so that `/` can be a source. Owners stay what they are on the host.
//!
//! A directory has no digest; its image is called by what `stat` says of everything in it: names, types, sizes, inode numbers, times
//! of modification and of change. The last one no program can set: what is written to a file changes the name of the image.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat};

use crate::archive::Piece;
use crate::digest::{Digest, Hasher};
use crate::erofs::{self, HostFile};
use crate::error::Error;
use crate::layer::Builder;
use crate::tree::{Kind, Metadata, NodeId, ROOT, Slot, Xattrs, symlink_target};

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// A pipe that took a file's place is not waited for.
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// Each level holds a descriptor; a process has 1024 of them where nobody raised that.
const MAX_DEPTH: usize = 256;

/// A directory, open.
pub(crate) struct Folder {
    path: PathBuf,
    root: OwnedFd,
    device: u64,
}

/// What a directory's name and size are made of.
pub(crate) struct Manifest {
    pub(crate) digest: Digest,
    /// Of the files in it.
    pub(crate) bytes: u64,
}

/// What to do with the files of a directory, one after the other.
trait Visitor {
    /// What a directory is called by, for its entries.
    type Handle: Copy;

    fn entry(
        &mut self,
        parent: Self::Handle,
        at: &Place<'_>,
        stat: &Stat,
    ) -> Result<Self::Handle, Error>;
}

/// Where a file is.
struct Place<'a> {
    folder: BorrowedFd<'a>,
    name: &'a CStr,
    path: &'a Path,
}

impl Folder {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
        let root = rustix::fs::open(path, flags, Mode::empty());
        let root = root.map_err(|e| Error::io("open", path)(e.into()))?;
        let stat = rustix::fs::fstat(&root).map_err(|e| Error::io("read", path)(e.into()))?;
        Ok(Self {
            path: path.to_owned(),
            root,
            device: stat.st_dev,
        })
    }

    /// What is in it now.
    pub(crate) fn manifest(&self) -> Result<Manifest, Error> {
        let mut summary = Summary {
            hasher: Hasher::default(),
            bytes: 0,
        };
        let stat = self.stat()?;
        summary.add(b"", &stat, 0);
        self.walk(&self.root, &self.path, (0, 0), &mut summary)?;
        Ok(Manifest {
            digest: summary.hasher.finish(),
            bytes: summary.bytes,
        })
    }

    /// Puts all of it into an image.
    pub(crate) fn add_to(
        &self,
        builder: &mut Builder<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Error> {
        builder.tree.next_layer();
        let stat = self.stat()?;
        let xattrs = xattrs(&self.root, &self.path)?;
        let root = Slot {
            parent: ROOT,
            name: None,
        };
        let metadata = metadata(&stat, xattrs);
        let put = builder
            .tree
            .put(&root, metadata, Kind::Directory(Default::default()));
        put.map_err(|error| refused(&self.path, error))?;
        let mut adder = Adder {
            builder,
            progress,
            done: 0,
            links: HashMap::new(),
        };
        self.walk(&self.root, &self.path, (ROOT, 0), &mut adder)
    }

    fn stat(&self) -> Result<Stat, Error> {
        rustix::fs::fstat(&self.root).map_err(|e| Error::io("read", &self.path)(e.into()))
    }

    fn walk<V: Visitor>(
        &self,
        folder: &OwnedFd,
        path: &Path,
        (handle, depth): (V::Handle, usize),
        visitor: &mut V,
    ) -> Result<(), Error> {
        let error = |action| move |e: rustix::io::Errno, at: &Path| Error::io(action, at)(e.into());
        if depth >= MAX_DEPTH {
            return Err(refused(path, crate::error::EntryError::TooDeep));
        }
        let mut names = Vec::new();
        let entries = Dir::read_from(folder).map_err(|e| error("read")(e, path))?;
        for entry in entries {
            let entry = entry.map_err(|e| error("read")(e, path))?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        names.sort_unstable();
        for name in names {
            let path = path.join(
                <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name.to_bytes()),
            );
            let stat = rustix::fs::statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| error("read")(e, &path))?;
            let place = Place {
                folder: folder.as_fd(),
                name: &name,
                path: &path,
            };
            let handle = visitor.entry(handle, &place, &stat)?;
            let is_directory = FileType::from_raw_mode(stat.st_mode).is_dir();
            if is_directory && stat.st_dev == self.device {
                let below = rustix::fs::openat(folder, &name, DIRECTORY, Mode::empty())
                    .map_err(|e| error("open")(e, &path))?;
                self.walk(&below, &path, (handle, depth + 1), visitor)?;
            }
        }
        Ok(())
    }
}

fn refused(path: &Path, source: crate::error::EntryError) -> Error {
    Error::Entry {
        what: "the directory".into(),
        entry: path.display().to_string(),
        source,
    }
}

/// Makes a manifest.
struct Summary {
    hasher: Hasher,
    bytes: u64,
}

impl Summary {
    fn add(&mut self, name: &[u8], stat: &Stat, depth: u64) {
        self.hasher.update(name);
        // Names have no zeros: what follows cannot be taken for one.
        self.hasher.update(&[0]);
        for number in [
            depth,
            u64::from(stat.st_mode),
            u64::from(stat.st_uid),
            u64::from(stat.st_gid),
            stat.st_dev,
            stat.st_ino,
            stat.st_nlink,
            stat.st_rdev,
            stat.st_size as u64,
            stat.st_mtime as u64,
            stat.st_mtime_nsec,
            stat.st_ctime as u64,
            stat.st_ctime_nsec,
        ] {
            self.hasher.update(&number.to_le_bytes());
        }
        if FileType::from_raw_mode(stat.st_mode).is_file() {
            self.bytes += stat.st_size as u64;
        }
    }
}

impl Visitor for Summary {
    type Handle = u64;

    fn entry(&mut self, depth: u64, at: &Place<'_>, stat: &Stat) -> Result<u64, Error> {
        self.add(at.name.to_bytes(), stat, depth);
        Ok(depth + 1)
    }
}

/// Puts files into an image.
struct Adder<'a, 'b> {
    builder: &'a mut Builder<'b>,
    progress: &'a mut dyn FnMut(u64),
    done: u64,
    /// Files with several names, by device and inode number.
    links: HashMap<(u64, u64), NodeId>,
}

impl Visitor for Adder<'_, '_> {
    type Handle = NodeId;

    fn entry(&mut self, parent: NodeId, at: &Place<'_>, stat: &Stat) -> Result<NodeId, Error> {
        let io = |action| move |e: rustix::io::Errno| Error::io(action, at.path)(e.into());
        let refuse = |error| refused(at.path, error);
        let name = at.name.to_bytes();
        self.builder.tree.charge(name.len())?;
        let key = (stat.st_dev, stat.st_ino);
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !kind.is_dir()
            && stat.st_nlink > 1
            && let Some(&node) = self.links.get(&key)
        {
            let name = Some(name);
            let link = self.builder.tree.link(&Slot { parent, name }, node);
            link.map_err(refuse)?;
            return Ok(node);
        }
        let (major, minor) = (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        );
        let mut attributes = Xattrs::new();
        let kind = match kind {
            FileType::RegularFile => {
                let file = rustix::fs::openat(at.folder, at.name, FILE, Mode::empty());
                let file = File::from(file.map_err(io("open"))?);
                let now = rustix::fs::fstat(&file).map_err(io("read"))?;
                if (now.st_dev, now.st_ino, now.st_size) != (key.0, key.1, stat.st_size) {
                    return Err(Error::Changed {
                        path: at.path.into(),
                    });
                }
                attributes = xattrs(&file, at.path)?;
                Kind::File(self.data(&file, stat, at.path)?)
            }
            FileType::Directory => {
                let folder = rustix::fs::openat(at.folder, at.name, DIRECTORY, Mode::empty());
                attributes = xattrs(&folder.map_err(io("open"))?, at.path)?;
                Kind::Directory(Default::default())
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(at.folder, at.name, Vec::new());
                symlink_target(target.map_err(io("read"))?.to_bytes()).map_err(refuse)?
            }
            FileType::CharacterDevice => {
                Kind::CharDevice(Kind::device_number(major, minor).map_err(refuse)?)
            }
            FileType::BlockDevice => {
                Kind::BlockDevice(Kind::device_number(major, minor).map_err(refuse)?)
            }
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::Unknown => {
                return Err(refuse(crate::error::EntryError::UnknownType(0)));
            }
        };
        let size: usize = attributes.iter().map(|(n, v)| 64 + n.len() + v.len()).sum();
        self.builder.tree.charge(size)?;
        let attributes = erofs::checked_xattrs(attributes).map_err(refuse)?;
        let metadata = metadata(stat, attributes);
        let node = self.builder.tree.put_child(parent, name, metadata, kind);
        let node = node.map_err(refuse)?;
        if stat.st_nlink > 1 {
            self.links.insert(key, node);
        }
        Ok(node)
    }
}

impl Adder<'_, '_> {
    fn data(&mut self, file: &File, stat: &Stat, path: &Path) -> Result<crate::tree::Data, Error> {
        let size = stat.st_size as u64;
        // Blocks of 512 bytes, whatever the file system's are.
        let is_sparse = (stat.st_blocks as u64).saturating_mul(512) < size;
        let pieces = match is_sparse {
            true => Some(pieces(file, size).map_err(|e| Error::io("read", path)(e.into()))?),
            false => None,
        };
        if pieces.is_some() {
            self.builder.tree.charge(erofs::map_size(size))?;
        }
        let appended = self
            .builder
            .image
            .append(&mut HostFile(file), size, pieces.as_deref());
        let data = appended.map_err(|error| {
            self.builder.copy_error(error, |error| match error.kind() {
                io::ErrorKind::UnexpectedEof => Error::Changed { path: path.into() },
                _ => Error::io("read", path)(error),
            })
        })?;
        self.done += size;
        (self.progress)(self.done);
        Ok(data)
    }
}

/// What of a file is not a hole.
fn pieces(file: &File, size: u64) -> rustix::io::Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            Ok(_) | Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size);
        if end <= start {
            break;
        }
        pieces.push((start, end - start));
        at = end;
    }
    Ok(pieces)
}

fn metadata(stat: &Stat, xattrs: Xattrs) -> Metadata {
    Metadata {
        mode: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: stat.st_mtime,
        mtime_nsec: stat.st_mtime_nsec as u32,
        xattrs,
    }
}

fn xattrs(file: &impl AsFd, path: &Path) -> Result<Xattrs, Error> {
    let error = |e: rustix::io::Errno| Error::io("read the attributes of", path)(e.into());
    let mut names = vec![0; 64 << 10];
    let count = match rustix::fs::flistxattr(file, &mut names[..]) {
        Ok(count) => count,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Xattrs::new()),
        Err(e) => return Err(error(e)),
    };
    let mut attributes = Xattrs::new();
    let mut value = vec![0; 64 << 10];
    for name in names[..count].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        match rustix::fs::fgetxattr(file, name, &mut value[..]) {
            Ok(size) => {
                attributes.insert(name.to_bytes().into(), value[..size].into());
            }
            // Gone since, or of a name space that is closed to us.
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => {}
            Err(e) => return Err(error(e)),
        }
    }
    Ok(attributes)
}
