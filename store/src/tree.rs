//! The tree of an image: an index in memory of everything but the files' data, which is in the image file already.
//!
//! Names are resolved in here and nowhere else, so that no name can lead out of it. As containerd has it, a component of an entry's
//! name that is a symbolic link is followed inside the root (a layer may put `bin/x` where a lower one has made `bin` a link to
//! `usr/bin`); the last component never is. An absolute name starts at the image's root, as the relative one does: real builders write
//! such ones, `/` itself among them. Names with a component `..` are refused.

use std::collections::{BTreeMap, VecDeque};

use crate::error::{EntryError, Error};

/// The longest name of a file.
const NAME_MAX: usize = 255;
/// The longest path, and target of a symbolic link.
const PATH_MAX: usize = 4095;
/// As many symbolic links as Linux follows.
const MAX_LINKS: usize = 40;
/// More than PATH_MAX lets a program reach.
const MAX_DEPTH: usize = 2048;

/// What a node costs in memory besides what is of variable length: its own fields, its entry, their allocations.
const NODE_COST: u64 = 320;

/// How often whiteouts may look at as many nodes as there may be.
const VISITS: u64 = 16;

/// Where a node is in its tree.
pub(crate) type NodeId = usize;

/// The root directory.
pub(crate) const ROOT: NodeId = 0;

/// Extended attributes by their full names.
pub(crate) type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// What every file has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metadata {
    /// Permissions, set-user-ID, set-group-ID and sticky bits; no type.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
    pub(crate) mtime_nsec: u32,
    pub(crate) xattrs: Xattrs,
}

/// Of directories that an archive has no entry for.
fn implicit() -> Metadata {
    Metadata {
        mode: 0o755,
        ..Metadata::default()
    }
}

/// Where a file's data is in the image.
#[derive(Debug, Clone, Default)]
pub(crate) struct Data {
    pub(crate) size: u64,
    pub(crate) place: Place,
}

/// The blocks of a file.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// All of them, from this one.
    Contiguous(u32),
    /// Chunks of `1 << bits` blocks: the first block of each, or [`HOLE`].
    Chunks { bits: u8, blocks: Box<[u32]> },
}

impl Default for Place {
    fn default() -> Self {
        Self::Contiguous(0)
    }
}

/// A chunk that is not in the image.
pub(crate) const HOLE: u32 = u32::MAX;

/// What a node is.
#[derive(Debug)]
pub(crate) enum Kind {
    Directory(BTreeMap<Box<[u8]>, Entry>),
    File(Data),
    Symlink(Box<[u8]>),
    CharDevice(u32),
    BlockDevice(u32),
    Fifo,
    Socket,
}

impl Kind {
    /// A device's number as Linux encodes it on disks.
    pub(crate) fn device_number(major: u32, minor: u32) -> Result<u32, EntryError> {
        if major >= 1 << 12 || minor >= 1 << 20 {
            return Err(EntryError::Device);
        }
        Ok((minor & 0xff) | major << 8 | (minor & !0xff) << 12)
    }
}

/// A name's meaning, and the layer that gave it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) node: NodeId,
    layer: u32,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) metadata: Metadata,
    pub(crate) kind: Kind,
}

/// What an image may be at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of the image, and of all layers when decompressed, those that later ones replace included.
    pub max_image_size: u64,
    /// Files, directories and so on, those that later layers replace included.
    pub max_entries: u64,
    /// Bytes of memory for names, attributes and maps.
    pub max_metadata: u64,
}

impl Default for Limits {
    /// 16 GiB, 4 million, 1 GiB.
    fn default() -> Self {
        Self {
            max_image_size: 16 << 30,
            max_entries: 4_000_000,
            max_metadata: 1 << 30,
        }
    }
}

/// All nodes, those that are replaced included.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    layer: u32,
    limits: Limits,
    entries: u64,
    metadata: u64,
    /// How many nodes whiteouts have looked at.
    visits: u64,
}

/// The last component of a name in its directory.
pub(crate) struct Slot<'a> {
    pub(crate) parent: NodeId,
    /// `None`: it is the root itself.
    pub(crate) name: Option<&'a [u8]>,
}

impl Tree {
    pub(crate) fn new(limits: Limits) -> Self {
        let root = Node {
            metadata: implicit(),
            kind: Kind::Directory(BTreeMap::new()),
        };
        Self {
            nodes: vec![root],
            layer: 0,
            limits,
            entries: 0,
            metadata: 0,
            visits: 0,
        }
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// What comes is of the next layer.
    pub(crate) fn next_layer(&mut self) {
        self.layer += 1;
    }

    /// Counts an entry, before memory is taken for it.
    pub(crate) fn charge(&mut self, bytes: usize) -> Result<(), Error> {
        self.entries += 1;
        self.metadata = self.metadata.saturating_add(NODE_COST + bytes as u64);
        if self.entries > self.limits.max_entries {
            return Err(Error::TooLarge {
                max: self.limits.max_entries,
                unit: "entries",
            });
        }
        if self.metadata > self.limits.max_metadata {
            return Err(Error::TooLarge {
                max: self.limits.max_metadata,
                unit: "bytes of names and attributes",
            });
        }
        Ok(())
    }

    fn directory(&self, id: NodeId) -> Option<&BTreeMap<Box<[u8]>, Entry>> {
        match &self.nodes[id].kind {
            Kind::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    /// Only for nodes that are known to be directories.
    fn entries_mut(&mut self, id: NodeId) -> &mut BTreeMap<Box<[u8]>, Entry> {
        match &mut self.nodes[id].kind {
            Kind::Directory(entries) => entries,
            _ => unreachable!("only directories are parents"),
        }
    }

    fn add(&mut self, metadata: Metadata, kind: Kind) -> NodeId {
        self.nodes.push(Node { metadata, kind });
        self.nodes.len() - 1
    }

    /// The directory that an entry of this name goes to; missing ones are made where `create` says so.
    pub(crate) fn resolve<'a>(
        &mut self,
        name: &'a [u8],
        create: bool,
    ) -> Result<Option<Slot<'a>>, Refusal> {
        let mut components = components(name)?;
        let Some(last) = components.pop() else {
            return Ok(Some(Slot {
                parent: ROOT,
                name: None,
            }));
        };
        // Targets of links are copied: the tree changes below them.
        let mut ahead: VecDeque<(Vec<u8>, bool)> = components
            .into_iter()
            .map(|component| (component.to_vec(), false))
            .collect();
        let mut path = vec![ROOT];
        let mut links = 0;
        while let Some((component, of_link)) = ahead.pop_front() {
            let here = path[path.len() - 1];
            if component == b".." {
                // The root is its own parent.
                if path.len() > 1 {
                    path.pop();
                }
                continue;
            }
            let Some(entries) = self.directory(here) else {
                return Err(EntryError::NotADirectory.into());
            };
            let next = match entries.get(&component[..]) {
                Some(entry) => entry.node,
                None if of_link => return Err(EntryError::DanglingLink.into()),
                None if !create => return Ok(None),
                None => {
                    if path.len() >= MAX_DEPTH {
                        return Err(EntryError::TooDeep.into());
                    }
                    self.charge(component.len())?;
                    let node = self.add(implicit(), Kind::Directory(BTreeMap::new()));
                    let layer = self.layer;
                    let entry = Entry { node, layer };
                    self.entries_mut(here).insert(component.into(), entry);
                    node
                }
            };
            let Kind::Symlink(target) = &self.nodes[next].kind else {
                path.push(next);
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(EntryError::TooManyLinks.into());
            }
            if target.first() == Some(&b'/') {
                path.truncate(1);
            }
            let target = target.split(|byte| *byte == b'/');
            let target = target.filter(|part| !part.is_empty() && *part != b".");
            for part in target.collect::<Vec<_>>().into_iter().rev() {
                ahead.push_front((part.to_vec(), true));
            }
        }
        let parent = path[path.len() - 1];
        if path.len() >= MAX_DEPTH {
            return Err(EntryError::TooDeep.into());
        }
        if self.directory(parent).is_none() {
            return Err(EntryError::NotADirectory.into());
        }
        Ok(Some(Slot {
            parent,
            name: Some(last),
        }))
    }

    /// Whether an entry may come here: neither again in this layer, except directories, nor in place of the root.
    pub(crate) fn check(&self, slot: &Slot<'_>, is_directory: bool) -> Result<(), EntryError> {
        let Some(name) = slot.name else {
            return if is_directory {
                Ok(())
            } else {
                Err(EntryError::Duplicate)
            };
        };
        let entry = self.directory(slot.parent).and_then(|e| e.get(name));
        match entry {
            Some(entry) if entry.layer == self.layer => {
                let both = is_directory && self.directory(entry.node).is_some();
                if both {
                    Ok(())
                } else {
                    Err(EntryError::Duplicate)
                }
            }
            _ => Ok(()),
        }
    }

    /// Puts something in its place. A directory that is there already keeps what is in it.
    pub(crate) fn put(
        &mut self,
        slot: &Slot<'_>,
        metadata: Metadata,
        kind: Kind,
    ) -> Result<NodeId, EntryError> {
        let is_directory = matches!(kind, Kind::Directory(_));
        self.check(slot, is_directory)?;
        let Some(name) = slot.name else {
            self.nodes[ROOT].metadata = metadata;
            return Ok(ROOT);
        };
        let layer = self.layer;
        let known = self.entries_mut(slot.parent).get(name).copied();
        if let Some(Entry { node, .. }) = known
            && is_directory
            && self.directory(node).is_some()
        {
            self.nodes[node].metadata = metadata;
            self.entries_mut(slot.parent)
                .insert(name.into(), Entry { node, layer });
            return Ok(node);
        }
        let node = self.add(metadata, kind);
        self.entries_mut(slot.parent)
            .insert(name.into(), Entry { node, layer });
        Ok(node)
    }

    /// Gives a file one more name.
    pub(crate) fn link(&mut self, slot: &Slot<'_>, node: NodeId) -> Result<(), EntryError> {
        self.check(slot, false)?;
        let Some(name) = slot.name else {
            return Err(EntryError::Duplicate);
        };
        let layer = self.layer;
        self.entries_mut(slot.parent)
            .insert(name.into(), Entry { node, layer });
        Ok(())
    }

    /// The file that a hard link names; the last component is not followed.
    pub(crate) fn link_target(&mut self, name: &[u8]) -> Result<NodeId, Refusal> {
        let slot = self.resolve(name, false)?;
        let entry = slot.and_then(|slot| {
            let entries = self.directory(slot.parent)?;
            entries.get(slot.name?).copied()
        });
        match entry {
            Some(entry) if self.directory(entry.node).is_none() => Ok(entry.node),
            _ => Err(EntryError::LinkTarget(text(name)).into()),
        }
    }

    /// Takes away what lower layers have put here; what this layer has stays.
    pub(crate) fn whiteout(&mut self, parent: NodeId, name: &[u8]) -> Result<(), Error> {
        let Some(entry) = self.directory(parent).and_then(|e| e.get(name)).copied() else {
            return Ok(());
        };
        let keep = entry.layer == self.layer;
        if self.directory(entry.node).is_some() {
            self.make_opaque(entry.node)?;
            let is_empty = self.directory(entry.node).is_some_and(BTreeMap::is_empty);
            if keep || !is_empty {
                return Ok(());
            }
        }
        if !keep {
            self.entries_mut(parent).remove(name);
        }
        Ok(())
    }

    /// Empties a directory of what is of lower layers.
    pub(crate) fn make_opaque(&mut self, directory: NodeId) -> Result<(), Error> {
        // Not by recursion: a hostile tree is deep. Children come after their parents.
        let layer = self.layer;
        let mut order = vec![directory];
        let mut next = 0;
        while let Some(&id) = order.get(next) {
            next += 1;
            let Some(entries) = self.directory(id) else {
                continue;
            };
            let children = entries.values().map(|entry| entry.node);
            order.extend(children.filter(|&child| self.directory(child).is_some()));
            // Many of them over one large layer would take for ever.
            self.visits += 1 + entries.len() as u64;
            if self.visits > self.limits.max_entries.saturating_mul(VISITS) {
                return Err(Error::TooLarge {
                    max: self.limits.max_entries,
                    unit: "entries under whiteouts",
                });
            }
        }
        for id in order.into_iter().rev() {
            let nodes = &self.nodes;
            let doomed: Vec<Box<[u8]>> = self
                .directory(id)
                .into_iter()
                .flatten()
                .filter(|(_, entry)| {
                    let is_used = matches!(&nodes[entry.node].kind,
                        Kind::Directory(entries) if !entries.is_empty());
                    entry.layer != layer && !is_used
                })
                .map(|(name, _)| name.clone())
                .collect();
            let entries = self.entries_mut(id);
            for name in doomed {
                entries.remove(&name);
            }
        }
        Ok(())
    }

    /// A directory of the host: entries come one after the other, each once.
    pub(crate) fn put_child(
        &mut self,
        parent: NodeId,
        name: &[u8],
        metadata: Metadata,
        kind: Kind,
    ) -> Result<NodeId, EntryError> {
        check_component(name)?;
        let name = Some(name);
        self.put(&Slot { parent, name }, metadata, kind)
    }

    /// Marks what can be reached from the root.
    pub(crate) fn reachable(&self) -> Vec<bool> {
        let mut reached = vec![false; self.nodes.len()];
        reached[ROOT] = true;
        let mut ahead = vec![ROOT];
        while let Some(id) = ahead.pop() {
            for entry in self.directory(id).into_iter().flatten().map(|(_, e)| e) {
                if !reached[entry.node] {
                    reached[entry.node] = true;
                    ahead.push(entry.node);
                }
            }
        }
        reached
    }
}

/// An entry's fault, or one that has nothing to do with a single entry.
#[derive(Debug)]
pub(crate) enum Refusal {
    Entry(EntryError),
    Other(Error),
}

impl From<EntryError> for Refusal {
    fn from(error: EntryError) -> Self {
        Self::Entry(error)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl Refusal {
    /// With the entry named.
    pub(crate) fn of(self, what: &str, entry: &[u8]) -> Error {
        match self {
            Self::Other(error) => error,
            Self::Entry(source) => Error::Entry {
                what: what.into(),
                entry: text(entry),
                source,
            },
        }
    }
}

/// A name for an error: readable, and not longer than a person reads.
pub(crate) fn text(name: &[u8]) -> String {
    let name = &name[..name.len().min(300)];
    String::from_utf8_lossy(name)
        .chars()
        .flat_map(char::escape_debug)
        .collect()
}

fn check_component(component: &[u8]) -> Result<(), EntryError> {
    if component.len() > NAME_MAX {
        return Err(EntryError::NameTooLong);
    }
    if component.is_empty() || component.contains(&0) {
        return Err(EntryError::BadName);
    }
    Ok(())
}

/// The target of a symbolic link, if it can be one.
pub(crate) fn symlink_target(target: &[u8]) -> Result<Kind, EntryError> {
    if target.len() > PATH_MAX {
        return Err(EntryError::NameTooLong);
    }
    if target.is_empty() || target.contains(&0) {
        return Err(EntryError::BadName);
    }
    Ok(Kind::Symlink(target.into()))
}

/// The components of a name; none for the root.
fn components(name: &[u8]) -> Result<Vec<&[u8]>, EntryError> {
    if name.is_empty() {
        return Err(EntryError::BadName);
    }
    if name.len() > PATH_MAX {
        return Err(EntryError::NameTooLong);
    }
    let mut components = Vec::new();
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(EntryError::ParentComponent),
            component => {
                check_component(component)?;
                components.push(component);
            }
        }
    }
    Ok(components)
}
