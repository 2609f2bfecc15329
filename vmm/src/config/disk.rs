//! Disks, as configuration.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{MemorySize, Span, is_one, one};

/// A disk of the guest: a raw image or a block device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DiskConfig {
    /// The image.
    pub path: PathBuf,
    /// Whether the guest may only read.
    #[serde(default, skip_serializing_if = "is_default")]
    pub readonly: bool,
    /// Its name in messages; `disk0` and so on, unless it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its serial number in the guest (`/dev/disk/by-id/virtio-…`), of which 20 bytes count; its name, unless it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// What moves its data; what is best for the image, unless it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<DiskEngine>,
    /// Whether to go past the host's page cache.
    #[serde(default, skip_serializing_if = "is_default")]
    pub direct: bool,
    /// When data that was written is safe.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cache: CacheMode,
    /// Number of request queues, 1 to 16.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub queues: u16,
    /// How long to watch a busy queue for its next request, instead of waiting to be told of it; at most 1 ms. Zero is never.
    #[serde(default = "poll", skip_serializing_if = "is_poll")]
    pub poll: Span,
    /// Whether other VMs are kept from a disk that this one writes.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub lock: bool,
    /// Creates a sparse image of this size, where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<MemorySize>,
}

impl DiskConfig {
    /// The image at `path`, with nothing special about it.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            readonly: false,
            id: None,
            serial: None,
            engine: None,
            direct: false,
            cache: CacheMode::default(),
            queues: 1,
            poll: poll(),
            lock: true,
            size: None,
        }
    }

    /// Its name in messages, where it is the disk with this index.
    pub(crate) fn name(&self, index: usize) -> String {
        self.id.clone().unwrap_or_else(|| format!("disk{index}"))
    }
}

/// What moves a disk's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskEngine {
    /// The I/O thread, one request after the other.
    Sync,
    /// The host's io_uring, many requests at once.
    IoUring,
}

/// When data that a guest wrote is on stable storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheMode {
    /// When the guest has flushed it, as on a disk with a cache.
    #[default]
    Writeback,
    /// When it is written.
    Writethrough,
    /// Some time later: flushes do nothing.
    Unsafe,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn poll() -> Span {
    Span::from(Duration::from_micros(20))
}

fn is_poll(value: &Span) -> bool {
    *value == poll()
}

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}
