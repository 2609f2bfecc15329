//! How far the making of an image is.

/// How far the making of an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// How much of it, in bytes.
    pub done: u64,
    /// Of how much, where that is known.
    pub total: Option<u64>,
}

/// What is being done for an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Another process makes the same image.
    Waiting,
    /// Its blobs come from a registry.
    Fetching,
    /// An archive that is packed as a whole is unpacked, to a file that has no name.
    Unpacking,
    /// The source is read, and its files written to the image.
    Reading,
    /// The image is completed, and brought to the disk.
    Writing,
}
