//! Disks, as configuration.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use ampoule_devices::rate_limiter::RateLimit;
use serde::{Deserialize, Serialize};

use super::rate::{self, RateKeys};
use super::{MemorySize, Span, is_one, one};

/// The longest request that drivers usually make. A longer one goes, too.
const LARGEST: NonZeroU64 = NonZeroU64::new(1 << 20).unwrap();

/// A disk of the guest: an image or a block device of the host.
///
/// ```
/// use ampoule_vmm::config::{DiskConfig, MemorySize};
///
/// let root = DiskConfig { readonly: true, ..DiskConfig::new("root.img") };
/// // Created where it is not there yet; at most 100 requests a second.
/// let data = DiskConfig {
///     size: Some(MemorySize::mib(10 << 10)),
///     iops: Some(100),
///     ..DiskConfig::new("data.img")
/// };
/// assert_eq!(data.size.unwrap().to_string(), "10G");
/// # assert_ne!(root, data);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DiskConfig {
    /// The image.
    pub path: PathBuf,
    /// What the image is, whatever it looks like.
    #[serde(default, skip_serializing_if = "is_default")]
    pub format: DiskFormat,
    /// Whether the image may name other files: a backing file, an external data file.
    #[serde(default, skip_serializing_if = "is_default")]
    pub backing: BackingFiles,
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
    /// Requests in a second: the most that go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
    /// Requests that go at once after a rest; a tenth of `iops`, unless it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops_burst: Option<u64>,
    /// Bytes in a second, read and written: the most that go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<MemorySize>,
    /// Bytes that go at once after a rest; a tenth of `bandwidth` and 1 MiB at least, unless it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_burst: Option<MemorySize>,
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
    /// Creates an image of this size, where there is none, that takes no space before it is written to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<MemorySize>,
}

impl DiskConfig {
    /// The image at `path`, with nothing special about it.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            format: DiskFormat::default(),
            backing: BackingFiles::default(),
            readonly: false,
            id: None,
            serial: None,
            engine: None,
            direct: false,
            iops: None,
            iops_burst: None,
            bandwidth: None,
            bandwidth_burst: None,
            cache: CacheMode::default(),
            queues: 1,
            poll: poll(),
            lock: true,
            size: None,
        }
    }

    /// Its limits, by their keys.
    pub(crate) fn rates(&self) -> [RateKeys; 2] {
        [
            RateKeys::ops("iops", self.iops, self.iops_burst),
            RateKeys::bytes("bandwidth", self.bandwidth, self.bandwidth_burst),
        ]
    }

    /// What goes to and from it.
    pub(crate) fn limit(&self) -> RateLimit {
        let [requests, bytes] = self.rates();
        rate::limit(requests, bytes, LARGEST)
    }

    /// Its name in messages, where it is the disk with this index.
    pub(crate) fn name(&self, index: usize) -> String {
        self.id.clone().unwrap_or_else(|| format!("disk{index}"))
    }
}

/// How an image is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// Byte for byte what the guest sees.
    #[default]
    Raw,
    /// As QEMU's qcow2.
    Qcow2,
}

/// Whether an image may name other files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum BackingFiles {
    /// One that does is refused.
    #[default]
    Deny,
    /// They are opened, and locked.
    Allow,
}

/// What moves a disk's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DiskEngine {
    /// The I/O thread, one request after the other.
    Sync,
    /// The host's io_uring, many requests at once.
    IoUring,
}

/// When data that a guest wrote is on stable storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
