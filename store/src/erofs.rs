//! Writes EROFS images: uncompressed, blocks of 4 KiB, extended inodes, inline attributes; the same tree makes the same bytes.
//!
//! An image, in the order it is written: files' data, each from a block of its own on, while it is read from wherever it comes;
//! then the blocks of directories; then all inodes with what is inline after them (attributes, the maps of sparse files, targets of
//! symbolic links, ends of directories); the superblock last, so that nothing unfinished is ever taken for an image. In memory are
//! names and numbers only.
//!
//! Specification: Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h of Linux. What is used of it Linux 5.15 knows.
//!
//! Why not a crate: `composefs` 0.9 writes images of metadata only, whose files' data is in a store of its own beside them, and comes
//! with tokio and OpenSSL; `erofs` 0.0.2 does not write; `backhand` 0.25 writes SquashFS without extended attributes and hard
//! links.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};

use rustix::fs::FallocateFlags;

use crate::archive::Piece;
use crate::error::EntryError;
use crate::tree::{Data, HOLE, Kind, Metadata, Node, NodeId, Place, ROOT, Tree, Xattrs};

pub(crate) const BLOCK: u64 = 4096;
pub(crate) const MAGIC: u32 = 0xe0f5_e1e2;
pub(crate) const SUPER_OFFSET: u64 = 1024;
const SUPER_SIZE: usize = 128;
const COMPAT_CHECKSUM: u32 = 1;
const COMPAT_MTIME: u32 = 2;
const INCOMPAT_CHUNKED_FILE: u32 = 4;

/// Node numbers count in these.
const SLOT: u64 = 32;
const INODE: u64 = 64;
const DIRENT: usize = 12;
const XATTR_HEADER: usize = 12;
/// `i_xattr_icount` has 16 bits and counts words.
const XATTR_MAX: usize = (u16::MAX as usize - 1) * 4;

/// The first inode's place in its area: node number 0 would become inode number 0, which programs take for none.
const FIRST: u64 = 2 * SLOT;

/// More chunks than these are made larger ones.
const MAX_CHUNKS: u64 = 1 << 14;

/// Files below it are copied through a buffer, others by the kernel where it can.
const LARGE: u64 = 256 << 10;
const BUFFER: usize = 1 << 20;

/// What went wrong where.
#[derive(Debug)]
pub(crate) enum CopyError {
    Read(io::Error),
    Write(io::Error),
    /// There is no room in the image for it.
    Full,
}

/// The inode's data layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Plain = 0,
    Inline = 2,
    Chunks = 4,
}

/// Where a node's inode is, and what it says that the tree does not.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// In the area of inodes.
    position: u64,
    layout: Layout,
    links: u32,
    size: u64,
    block: u32,
    parent: NodeId,
}

/// An image while it is made.
pub(crate) struct ImageWriter<'a> {
    out: BufWriter<&'a File>,
    /// Bytes are only appended: everything below is written.
    position: u64,
    max: u64,
}

impl<'a> ImageWriter<'a> {
    /// To an empty file; of `max` bytes at most.
    pub(crate) fn new(file: &'a File, max: u64) -> io::Result<Self> {
        let mut out = BufWriter::with_capacity(BUFFER, file);
        // The first block, with the superblock, is written last.
        out.seek(SeekFrom::Start(BLOCK))?;
        // Block addresses have 32 bits, and one of them is a hole.
        let max = max.min(BLOCK * u64::from(u32::MAX - 1));
        Ok(Self {
            out,
            position: BLOCK,
            max,
        })
    }

    /// Bytes up to here.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    fn block(&self) -> u32 {
        debug_assert!(self.position.is_multiple_of(BLOCK));
        (self.position / BLOCK) as u32
    }

    /// Whether this much may follow.
    fn has_room(&self, bytes: u64) -> Result<(), CopyError> {
        let end = self.position.checked_add(bytes);
        match end.and_then(|end| end.checked_next_multiple_of(BLOCK)) {
            Some(end) if end <= self.max => Ok(()),
            _ => Err(CopyError::Full),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Zeros; many of them as a hole of the image file.
    fn zeros(&mut self, count: u64) -> io::Result<()> {
        if count >= BUFFER as u64 {
            self.position += count;
            self.out.seek(SeekFrom::Start(self.position))?;
            return Ok(());
        }
        io::copy(&mut io::repeat(0).take(count), &mut self.out)?;
        self.position += count;
        Ok(())
    }

    fn align(&mut self) -> io::Result<()> {
        self.zeros(self.position.next_multiple_of(BLOCK) - self.position)
    }

    /// Appends what a source has, all `size` bytes or the `pieces` of them in order.
    pub(crate) fn append(
        &mut self,
        source: &mut impl Source,
        size: u64,
        pieces: Option<&[Piece]>,
    ) -> Result<Data, CopyError> {
        match pieces {
            Some(pieces) if pieces != [(0, size)] => self.append_pieces(source, size, pieces),
            _ => {
                self.has_room(size)?;
                let place = Place::Contiguous(self.block());
                self.copy(source, 0, size)?;
                self.align().map_err(CopyError::Write)?;
                Ok(Data { size, place })
            }
        }
    }

    fn append_pieces(
        &mut self,
        source: &mut impl Source,
        size: u64,
        pieces: &[Piece],
    ) -> Result<Data, CopyError> {
        let bits = chunk_bits(size);
        let chunk_size = BLOCK << bits;
        let mut blocks = vec![HOLE; size.div_ceil(chunk_size) as usize];
        let length = |chunk: u64| {
            chunk_size
                .min(size - chunk * chunk_size)
                .next_multiple_of(BLOCK)
        };
        let mut current = None;
        // Of the current chunk.
        let mut done = 0;
        for &(mut offset, mut left) in pieces {
            while left > 0 {
                let (chunk, within) = (offset / chunk_size, offset % chunk_size);
                if current != Some(chunk) {
                    if let Some(before) = current {
                        self.zeros(length(before) - done)
                            .map_err(CopyError::Write)?;
                    }
                    self.has_room(length(chunk))?;
                    blocks[chunk as usize] = self.block();
                    (current, done) = (Some(chunk), 0);
                }
                self.zeros(within - done).map_err(CopyError::Write)?;
                let count = left.min(chunk_size - within);
                self.copy(source, offset, count)?;
                done = within + count;
                (offset, left) = (offset + count, left - count);
            }
        }
        if let Some(last) = current {
            self.zeros(length(last) - done).map_err(CopyError::Write)?;
        }
        Ok(Data {
            size,
            place: Place::Chunks {
                bits,
                blocks: blocks.into(),
            },
        })
    }

    fn copy(&mut self, source: &mut impl Source, offset: u64, count: u64) -> Result<(), CopyError> {
        source.copy(offset, count, &mut self.out)?;
        self.position += count;
        Ok(())
    }

    /// Appends directories and inodes, and writes the superblock. The size of the image.
    pub(crate) fn finish(mut self, tree: &Tree, uuid: [u8; 16]) -> Result<u64, CopyError> {
        self.discard_replaced(tree).map_err(CopyError::Write)?;
        let mut layout = Planner::new(tree, self.block()).plan();
        let metadata = u64::from(layout.directory_blocks) * BLOCK + layout.position;
        self.has_room(metadata)?;
        self.write_directories(tree, &layout)
            .map_err(CopyError::Write)?;
        let inodes = self.block();
        self.write_inodes(tree, &mut layout)
            .map_err(CopyError::Write)?;
        self.write_super(&layout, inodes, uuid)
            .map_err(CopyError::Write)?;
        Ok(self.position)
    }

    /// Gives back the blocks of files that later layers have replaced or removed.
    fn discard_replaced(&mut self, tree: &Tree) -> io::Result<()> {
        self.out.flush()?;
        let reached = tree.reachable();
        for (id, _) in reached.iter().enumerate().filter(|(_, reached)| !**reached) {
            let Kind::File(data) = &tree.node(id).kind else {
                continue;
            };
            match &data.place {
                Place::Contiguous(block) => self.discard(*block, data.size)?,
                Place::Chunks { bits, blocks } => {
                    let chunk_size = BLOCK << bits;
                    for (chunk, &block) in blocks.iter().enumerate() {
                        let left = data.size - chunk as u64 * chunk_size;
                        if block != HOLE {
                            self.discard(block, left.min(chunk_size))?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn discard(&mut self, block: u32, size: u64) -> io::Result<()> {
        let size = size.next_multiple_of(BLOCK);
        if size == 0 {
            return Ok(());
        }
        let offset = u64::from(block) * BLOCK;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if rustix::fs::fallocate(self.out.get_ref(), flags, offset, size).is_ok() {
            return Ok(());
        }
        // A file system without holes: the same bytes at least.
        self.out.seek(SeekFrom::Start(offset))?;
        io::copy(&mut io::repeat(0).take(size), &mut self.out)?;
        self.out.seek(SeekFrom::Start(self.position))?;
        Ok(())
    }

    fn write_directories(&mut self, tree: &Tree, layout: &Plans) -> io::Result<()> {
        for &id in &layout.order {
            let plan = layout.of(id);
            match &tree.node(id).kind {
                Kind::Directory(_) => {
                    let content = directory(tree, layout, id);
                    let whole = match plan.layout {
                        Layout::Inline => content.len() / BLOCK as usize * BLOCK as usize,
                        _ => content.len(),
                    };
                    self.write(&content[..whole])?;
                }
                Kind::Symlink(target) if plan.layout == Layout::Plain => self.write(target)?,
                _ => {}
            }
            self.align()?;
        }
        Ok(())
    }

    fn write_inodes(&mut self, tree: &Tree, layout: &mut Plans) -> io::Result<()> {
        let start = self.position;
        for (number, &id) in layout.order.iter().enumerate() {
            let (plan, node) = (layout.of(id), tree.node(id));
            self.zeros(start + plan.position - self.position)?;
            let mut bytes = inode(node, plan, number as u32 + 1);
            xattrs(&node.metadata.xattrs, &mut bytes);
            match &node.kind {
                Kind::File(Data {
                    place: Place::Chunks { blocks, .. },
                    ..
                }) => {
                    layout.has_chunks = true;
                    bytes.extend(blocks.iter().flat_map(|block| block.to_le_bytes()));
                }
                Kind::Symlink(target) if plan.layout == Layout::Inline => bytes.extend(&**target),
                Kind::Directory(_) if plan.layout == Layout::Inline => {
                    let content = directory(tree, layout, id);
                    bytes.extend(&content[content.len() / BLOCK as usize * BLOCK as usize..]);
                }
                _ => {}
            }
            self.write(&bytes)?;
        }
        self.zeros(start + layout.position - self.position)?;
        self.align()
    }

    fn write_super(&mut self, layout: &Plans, inodes: u32, uuid: [u8; 16]) -> io::Result<()> {
        let mut bytes = [0; (BLOCK - SUPER_OFFSET) as usize];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        let incompatible = if layout.has_chunks {
            INCOMPAT_CHUNKED_FILE
        } else {
            0
        };
        let root = layout.of(ROOT).position / SLOT;
        put(0, &MAGIC.to_le_bytes());
        put(8, &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        put(12, &[BLOCK.trailing_zeros() as u8]);
        put(14, &(root as u16).to_le_bytes());
        put(16, &(layout.order.len() as u64).to_le_bytes());
        put(36, &self.block().to_le_bytes());
        put(40, &inodes.to_le_bytes());
        put(48, &uuid);
        put(80, &incompatible.to_le_bytes());
        debug_assert!(bytes[SUPER_SIZE..].iter().all(|byte| *byte == 0));
        let sum = crc32c(&bytes);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        self.out.seek(SeekFrom::Start(SUPER_OFFSET))?;
        self.out.write_all(&bytes)?;
        self.out.flush()?;
        // What ends with zeros may have been skipped over.
        self.out.get_ref().set_len(self.position)
    }
}

/// What has a file's data.
pub(crate) trait Source {
    /// Copies `count` bytes, which a file has at `offset`; a stream comes to them by itself.
    fn copy(
        &mut self,
        offset: u64,
        count: u64,
        out: &mut BufWriter<&File>,
    ) -> Result<(), CopyError>;
}

/// A stream that has the data, or its pieces one after the other.
pub(crate) struct Stream<R>(pub(crate) R);

impl<R: Read> Source for Stream<R> {
    fn copy(&mut self, _: u64, count: u64, out: &mut BufWriter<&File>) -> Result<(), CopyError> {
        copy_through(&mut self.0, count, out)
    }
}

/// A file of the host's.
pub(crate) struct HostFile<'a>(pub(crate) &'a File);

impl Source for HostFile<'_> {
    fn copy(
        &mut self,
        offset: u64,
        count: u64,
        out: &mut BufWriter<&File>,
    ) -> Result<(), CopyError> {
        let mut file = self.0;
        file.seek(SeekFrom::Start(offset))
            .map_err(CopyError::Read)?;
        if count < LARGE {
            return copy_through(&mut file, count, out);
        }
        out.flush().map_err(CopyError::Write)?;
        // By copy_file_range where the file systems can.
        let copied = io::copy(&mut file.take(count), out.get_mut()).map_err(CopyError::Write)?;
        if copied < count {
            return Err(CopyError::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }
}

fn copy_through(
    source: &mut impl Read,
    mut count: u64,
    out: &mut impl Write,
) -> Result<(), CopyError> {
    let mut buffer = [0; 32 << 10];
    while count > 0 {
        let wanted = count.min(buffer.len() as u64) as usize;
        let got = match source.read(&mut buffer[..wanted]) {
            Ok(0) => return Err(CopyError::Read(io::ErrorKind::UnexpectedEof.into())),
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyError::Read(error)),
        };
        out.write_all(&buffer[..got]).map_err(CopyError::Write)?;
        count -= got as u64;
    }
    Ok(())
}

/// The size of a sparse file's chunks, in blocks, as a power of two.
fn chunk_bits(size: u64) -> u8 {
    let mut bits = 0;
    while size.div_ceil(BLOCK << bits) > MAX_CHUNKS {
        bits += 1;
    }
    bits
}

/// The memory that the map of a sparse file takes.
pub(crate) fn map_size(size: u64) -> usize {
    size.div_ceil(BLOCK << chunk_bits(size)) as usize * 4
}

/// All inodes, in their order.
struct Plans {
    order: Vec<NodeId>,
    plans: Vec<Option<Plan>>,
    /// Behind the last of them.
    position: u64,
    directory_blocks: u32,
    has_chunks: bool,
}

impl Plans {
    /// Only for nodes that are reached from the root.
    fn of(&self, id: NodeId) -> &Plan {
        self.plans[id]
            .as_ref()
            .expect("every node in order has a plan")
    }
}

/// Gives the inodes their places: a directory's children together, directories level by level.
struct Planner<'a> {
    tree: &'a Tree,
    block: u32,
    plans: Plans,
}

impl<'a> Planner<'a> {
    fn new(tree: &'a Tree, block: u32) -> Self {
        Self {
            tree,
            block,
            plans: Plans {
                order: Vec::new(),
                plans: vec![None; tree.len()],
                position: FIRST,
                directory_blocks: 0,
                has_chunks: false,
            },
        }
    }

    fn plan(mut self) -> Plans {
        self.place(ROOT, ROOT);
        let mut next = 0;
        while let Some(&id) = self.plans.order.get(next) {
            next += 1;
            let Kind::Directory(entries) = &self.tree.node(id).kind else {
                continue;
            };
            for entry in entries.values() {
                match &mut self.plans.plans[entry.node] {
                    Some(known) => known.links += 1,
                    None => self.place(entry.node, id),
                }
            }
        }
        // fsck.erofs reads a header behind every inode, also where there are no attributes; behind the last one too.
        self.plans.position += XATTR_HEADER as u64;
        self.plans
    }

    fn place(&mut self, id: NodeId, parent: NodeId) {
        let node = self.tree.node(id);
        let head = INODE + xattrs_size(&node.metadata.xattrs) as u64;
        let (mut block, mut links, mut array) = (0, 1, 0);
        let (size, mut layout) = match &node.kind {
            Kind::Directory(entries) => {
                let names = entries.keys().map(|name| &**name);
                let is_directory =
                    |id: NodeId| matches!(self.tree.node(id).kind, Kind::Directory(_));
                let below = entries.values().filter(|entry| is_directory(entry.node));
                links = 2 + below.count() as u32;
                (directory_size(names), Layout::Inline)
            }
            Kind::Symlink(target) => (target.len() as u64, Layout::Inline),
            Kind::File(data) => match &data.place {
                Place::Contiguous(first) => {
                    block = *first;
                    (data.size, Layout::Plain)
                }
                Place::Chunks { bits, blocks } => {
                    block = u32::from(*bits);
                    array = blocks.len() as u64 * 4;
                    (data.size, Layout::Chunks)
                }
            },
            Kind::CharDevice(number) | Kind::BlockDevice(number) => {
                block = *number;
                (0, Layout::Plain)
            }
            Kind::Fifo | Kind::Socket => (0, Layout::Plain),
        };
        let mut inline = 0;
        if layout == Layout::Inline {
            inline = size % BLOCK;
            let mut blocks = size / BLOCK;
            // What is inline ends in the block that the inode begins in, or it is not inline.
            if inline == 0 || head + inline > BLOCK {
                (layout, inline) = (Layout::Plain, 0);
                blocks = size.div_ceil(BLOCK);
            }
            if blocks > 0 {
                block = self.block;
                self.block += blocks as u32;
                self.plans.directory_blocks += blocks as u32;
            }
        }
        let together = if inline > 0 { head + inline } else { INODE };
        let mut position = self.plans.position.next_multiple_of(SLOT);
        if position % BLOCK + together > BLOCK {
            position = position.next_multiple_of(BLOCK);
        }
        self.plans.position = position + head + inline + array;
        self.plans.order.push(id);
        self.plans.plans[id] = Some(Plan {
            position,
            layout,
            links,
            size,
            block,
            parent,
        });
    }
}

/// A directory's entries in the order of their names' bytes, `.` and `..` among them.
fn sorted<'a>(names: impl Iterator<Item = &'a [u8]>) -> Vec<&'a [u8]> {
    let mut names: Vec<&[u8]> = names.chain([&b"."[..], b".."]).collect();
    names.sort_unstable();
    names
}

/// Splits a directory into blocks: how many entries each has.
fn directory_blocks(names: &[&[u8]]) -> Vec<usize> {
    let mut blocks = Vec::new();
    let (mut count, mut used) = (0, 0);
    for name in names {
        let size = DIRENT + name.len();
        if used + size > BLOCK as usize {
            blocks.push(count);
            (count, used) = (0, 0);
        }
        count += 1;
        used += size;
    }
    blocks.push(count);
    blocks
}

fn directory_size<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let names = sorted(names);
    let blocks = directory_blocks(&names);
    let last = &names[names.len() - blocks[blocks.len() - 1]..];
    let last: usize = last.iter().map(|name| DIRENT + name.len()).sum();
    (blocks.len() as u64 - 1) * BLOCK + last as u64
}

/// A directory's data.
fn directory(tree: &Tree, layout: &Plans, id: NodeId) -> Vec<u8> {
    let Kind::Directory(entries) = &tree.node(id).kind else {
        return Vec::new();
    };
    let names = sorted(entries.keys().map(|name| &**name));
    let mut bytes = Vec::new();
    let mut rest = &names[..];
    for count in directory_blocks(&names) {
        let (block, after) = rest.split_at(count);
        rest = after;
        bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        let mut name_offset = count * DIRENT;
        for name in block {
            let node = match *name {
                b"." => id,
                b".." => layout.of(id).parent,
                name => entries[name].node,
            };
            bytes.extend((layout.of(node).position / SLOT).to_le_bytes());
            bytes.extend((name_offset as u16).to_le_bytes());
            bytes.extend([file_type(&tree.node(node).kind), 0]);
            name_offset += name.len();
        }
        for name in block {
            bytes.extend(*name);
        }
    }
    bytes
}

/// The type in a directory's entry.
fn file_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File(_) => 1,
        Kind::Directory(_) => 2,
        Kind::CharDevice(_) => 3,
        Kind::BlockDevice(_) => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
        Kind::Symlink(_) => 7,
    }
}

/// The type in an inode's mode.
fn mode(kind: &Kind, metadata: &Metadata) -> u16 {
    let kind = match kind {
        Kind::Fifo => 0o1,
        Kind::CharDevice(_) => 0o2,
        Kind::Directory(_) => 0o4,
        Kind::BlockDevice(_) => 0o6,
        Kind::File(_) => 0o10,
        Kind::Symlink(_) => 0o12,
        Kind::Socket => 0o14,
    };
    kind << 12 | metadata.mode & 0o7777
}

fn inode(node: &Node, plan: &Plan, number: u32) -> Vec<u8> {
    let mut bytes = vec![0; INODE as usize];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let metadata = &node.metadata;
    let words = match xattrs_size(&metadata.xattrs) {
        0 => 0,
        size => (1 + (size - XATTR_HEADER) / 4) as u16,
    };
    put(0, &(1 | (plan.layout as u16) << 1).to_le_bytes());
    put(2, &words.to_le_bytes());
    put(4, &mode(&node.kind, metadata).to_le_bytes());
    put(8, &plan.size.to_le_bytes());
    put(16, &plan.block.to_le_bytes());
    put(20, &number.to_le_bytes());
    put(24, &metadata.uid.to_le_bytes());
    put(28, &metadata.gid.to_le_bytes());
    put(32, &metadata.mtime.to_le_bytes());
    put(40, &metadata.mtime_nsec.to_le_bytes());
    put(44, &plan.links.to_le_bytes());
    bytes
}

/// The number of an attribute's prefix, and what follows it.
fn xattr_name(name: &[u8]) -> Option<(u8, &[u8])> {
    match name {
        b"system.posix_acl_access" => return Some((2, b"")),
        b"system.posix_acl_default" => return Some((3, b"")),
        _ => {}
    }
    let prefixes: [(u8, &[u8]); 3] = [(1, b"user."), (4, b"trusted."), (6, b"security.")];
    prefixes.into_iter().find_map(|(index, prefix)| {
        let rest = name.strip_prefix(prefix)?;
        (!rest.is_empty()).then_some((index, rest))
    })
}

/// Attributes as an image can hold them: those of other name spaces, which Linux would not let be set either, and those by which
/// overlayfs would take a file for something else are left out.
pub(crate) fn checked_xattrs(xattrs: Xattrs) -> Result<Xattrs, EntryError> {
    let kept = xattrs.into_iter().filter(|(name, _)| {
        let of_overlay =
            name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
        xattr_name(name).is_some() && !of_overlay
    });
    let kept: Xattrs = kept.collect();
    let fits = kept.iter().all(|(name, value)| {
        let short = xattr_name(name).is_some_and(|(_, rest)| rest.len() <= 255);
        short && value.len() <= usize::from(u16::MAX) && !name.contains(&0)
    });
    if !fits || xattrs_size(&kept) > XATTR_MAX {
        return Err(EntryError::Xattrs);
    }
    Ok(kept)
}

fn xattrs_size(xattrs: &Xattrs) -> usize {
    if xattrs.is_empty() {
        return 0;
    }
    let entries = xattrs.iter().map(|(name, value)| {
        let rest = xattr_name(name).map_or(0, |(_, rest)| rest.len());
        (4 + rest + value.len()).next_multiple_of(4)
    });
    XATTR_HEADER + entries.sum::<usize>()
}

fn xattrs(xattrs: &Xattrs, bytes: &mut Vec<u8>) {
    if xattrs.is_empty() {
        return;
    }
    bytes.extend([0; XATTR_HEADER]);
    for (name, value) in xattrs {
        let (index, rest) = xattr_name(name).unwrap_or((0, b""));
        bytes.extend([rest.len() as u8, index]);
        bytes.extend((value.len() as u16).to_le_bytes());
        bytes.extend(rest);
        bytes.extend(&**value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
}

/// CRC-32C as the kernel's `crc32c(~0, …)` has it: not inverted at the end. Of one block, once.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc32c() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn chunks_grow_with_the_file() {
        assert_eq!(chunk_bits(0), 0);
        assert_eq!(chunk_bits(MAX_CHUNKS * BLOCK), 0);
        assert_eq!(chunk_bits(MAX_CHUNKS * BLOCK + 1), 1);
        assert_eq!(chunk_bits(1 << 44), 18);
        assert_eq!(map_size(1 << 44), MAX_CHUNKS as usize * 4);
    }

    #[test]
    fn directories_fill_their_blocks() {
        let name = [b'x'; 255];
        let mut names = vec![&name[..]; 16];
        // 12 entries and their names of 255 bytes leave no room for a 16th.
        assert_eq!(directory_blocks(&names), [15, 1]);
        names.truncate(15);
        assert_eq!(directory_size(names.into_iter()), 12 * 17 + 15 * 255 + 3);
    }

    #[test]
    fn attributes_that_an_image_cannot_hold_are_refused_or_left_out() {
        let one = |name: &[u8], size: usize| Xattrs::from([(name.into(), vec![7; size].into())]);
        for kept in [
            &b"user.a"[..],
            b"security.capability",
            b"system.posix_acl_access",
        ] {
            assert_eq!(checked_xattrs(one(kept, 3)).unwrap().len(), 1);
        }
        for left in [
            &b"system.nfs4_acl"[..],
            b"user.",
            b"x",
            b"trusted.overlay.redirect",
        ] {
            assert_eq!(checked_xattrs(one(left, 3)).unwrap().len(), 0);
        }
        assert!(checked_xattrs(one(b"user.a", 65535)).is_ok());
        assert_eq!(
            checked_xattrs(one(b"user.a", 65536)),
            Err(EntryError::Xattrs)
        );
        let long = [&b"user."[..], &[b'n'; 256]].concat();
        assert_eq!(checked_xattrs(one(&long, 0)), Err(EntryError::Xattrs));
        let many = (0..5u8).map(|n| {
            (
                vec![b'u', b's', b'e', b'r', b'.', b'a' + n].into(),
                vec![0; 60000].into(),
            )
        });
        assert_eq!(checked_xattrs(many.collect()), Err(EntryError::Xattrs));
    }
}
