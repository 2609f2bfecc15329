//! Reads EROFS images as the specification has them, independently of what writes them; anything unusual is a panic.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

const BLOCK: usize = 4096;

/// A file of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// With the type.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) links: u32,
    /// The same for all names of a file.
    pub(crate) number: u64,
    pub(crate) size: u64,
    pub(crate) device: u32,
    /// Of files and symbolic links.
    pub(crate) data: Vec<u8>,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    /// How many of a sparse file's chunks are holes.
    pub(crate) holes: usize,
}

impl Node {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.data).unwrap()
    }
}

/// All files of an image by their paths; the root is "".
pub(crate) type Files = BTreeMap<String, Node>;

pub(crate) fn read(path: &Path) -> Files {
    let image = Image(std::fs::read(path).unwrap());
    let mut files = Files::new();
    image.check_super();
    let root = u64::from(image.u16(1024 + 14));
    image.walk(root, root, String::new(), &mut files);
    let numbers: HashSet<u64> = files.values().map(|node| node.number).collect();
    assert_eq!(image.u64(1024 + 16), numbers.len() as u64, "inos");
    files
}

struct Image(Vec<u8>);

impl Image {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0[at..at + N].try_into().unwrap()
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    fn check_super(&self) {
        assert_eq!(self.u32(1024), 0xe0f5_e1e2);
        assert_eq!(self.0[1024 + 12], 12, "blocks of 4 KiB");
        assert_eq!(self.u32(1024 + 36) as usize * BLOCK, self.0.len());
        assert_eq!(self.u32(1024 + 80) & !4, 0, "incompatible features");
    }

    fn inode_at(&self, number: u64) -> usize {
        self.u32(1024 + 40) as usize * BLOCK + number as usize * 32
    }

    fn walk(&self, number: u64, parent: u64, path: String, files: &mut Files) {
        let node = self.node(number);
        let data = match node.mode >> 12 {
            4 => self.data(number, &node).0,
            _ => Vec::new(),
        };
        let is_directory = node.mode >> 12 == 4;
        files.insert(path.clone(), node);
        if !is_directory {
            return;
        }
        let mut last: Option<Vec<u8>> = None;
        let mut dots = 0;
        for block in data.chunks(BLOCK) {
            let count = usize::from(u16::from_le_bytes([block[8], block[9]])) / 12;
            for index in 0..count {
                let entry = &block[index * 12..][..12];
                let child = u64::from_le_bytes(entry[..8].try_into().unwrap());
                let start = usize::from(u16::from_le_bytes([entry[8], entry[9]]));
                let end = match index + 1 < count {
                    true => {
                        let next = &block[(index + 1) * 12..];
                        usize::from(u16::from_le_bytes([next[8], next[9]]))
                    }
                    false => {
                        let rest = &block[start..];
                        start + rest.iter().position(|b| *b == 0).unwrap_or(rest.len())
                    }
                };
                let name = block[start..end].to_vec();
                assert!(last.as_ref().is_none_or(|last| *last < name), "order");
                let kind = [0, 5, 3, 0, 2, 0, 4, 0, 1, 0, 7, 0, 6];
                let mode = self.u16(self.inode_at(child) + 4);
                assert_eq!(entry[10], kind[usize::from(mode >> 12)], "type of {name:?}");
                match &name[..] {
                    b"." => (dots += 1, assert_eq!(child, number)).1,
                    b".." => (dots += 1, assert_eq!(child, parent)).1,
                    name => {
                        let name = String::from_utf8(name.to_vec()).unwrap();
                        let below = if path.is_empty() {
                            name
                        } else {
                            format!("{path}/{name}")
                        };
                        self.walk(child, number, below, files);
                    }
                }
                last = Some(name);
            }
        }
        assert_eq!(dots, 2);
    }

    fn node(&self, number: u64) -> Node {
        let at = self.inode_at(number);
        assert!(at % BLOCK + 64 <= BLOCK, "an inode over two blocks");
        assert_eq!(self.u16(at) & 1, 1, "extended inodes");
        let mut node = Node {
            mode: self.u16(at + 4),
            uid: self.u32(at + 24),
            gid: self.u32(at + 28),
            mtime: (self.u64(at + 32) as i64, self.u32(at + 40)),
            links: self.u32(at + 44),
            number,
            size: self.u64(at + 8),
            device: 0,
            data: Vec::new(),
            xattrs: self.xattrs(at).1,
            holes: 0,
        };
        match node.mode >> 12 {
            2 | 6 => node.device = self.u32(at + 16),
            8 | 10 => (node.data, node.holes) = self.data(number, &node),
            _ => {}
        }
        node
    }

    fn xattrs(&self, at: usize) -> (usize, BTreeMap<String, Vec<u8>>) {
        let mut xattrs = BTreeMap::new();
        let size = match usize::from(self.u16(at + 2)) {
            0 => return (0, xattrs),
            count => 12 + (count - 1) * 4,
        };
        let (mut next, end) = (at + 64 + 12, at + 64 + size);
        while next < end {
            let length = usize::from(self.0[next]);
            let value = usize::from(self.u16(next + 2));
            let prefix = match self.0[next + 1] {
                1 => "user.",
                2 => "system.posix_acl_access",
                3 => "system.posix_acl_default",
                4 => "trusted.",
                6 => "security.",
                other => panic!("attribute prefix {other}"),
            };
            let name = std::str::from_utf8(&self.0[next + 4..][..length]).unwrap();
            let value = self.0[next + 4 + length..][..value].to_vec();
            next = (next + 4 + length + value.len()).next_multiple_of(4);
            xattrs.insert(format!("{prefix}{name}"), value);
        }
        assert_eq!(next, end);
        (size, xattrs)
    }

    fn data(&self, number: u64, node: &Node) -> (Vec<u8>, usize) {
        let at = self.inode_at(number);
        let (size, block) = (node.size as usize, self.u32(at + 16) as usize);
        let after = at + 64 + self.xattrs(at).0;
        match self.u16(at) >> 1 & 7 {
            0 => (self.0[block * BLOCK..][..size].to_vec(), 0),
            2 => {
                let whole = size / BLOCK * BLOCK;
                let tail = size - whole;
                assert!(after % BLOCK + tail <= BLOCK, "inline data over two blocks");
                let blocks = &self.0[block * BLOCK * usize::from(whole > 0)..][..whole];
                ([blocks, &self.0[after..][..tail]].concat(), 0)
            }
            4 => {
                let chunk = BLOCK << (block & 31);
                let (mut data, mut holes) = (Vec::new(), 0);
                for index in 0..size.div_ceil(chunk) {
                    let wanted = chunk.min(size - index * chunk);
                    match self.u32(after + index * 4) {
                        u32::MAX => {
                            holes += 1;
                            data.resize(data.len() + wanted, 0);
                        }
                        block => data.extend(&self.0[block as usize * BLOCK..][..wanted]),
                    }
                }
                (data, holes)
            }
            other => panic!("data layout {other}"),
        }
    }
}
