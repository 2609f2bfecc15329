//! A shared file system, as configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Files that the guest shares with its host, live: a file system device (virtio-fs). The guest mounts it by its tag:
/// `mount -t virtiofs TAG /mnt`. Exactly one of `path` and `socket` is given. Guest RAM is a memfd, mapped shared, in a VM that
/// has one, whatever `memory_backing` says.
///
/// ```
/// use ampoule_vmm::config::{FsConfig, VmConfig};
///
/// let config = VmConfig {
///     kernel: Some("vmlinuz".into()),
///     fs: vec![FsConfig::path("src", "/home/me/src"), FsConfig::socket("data", "/run/data.sock")],
///     ..VmConfig::default()
/// };
/// assert!(config.validate().is_ok());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FsConfig {
    /// By what the guest knows it: 1 to 36 bytes.
    pub tag: String,
    /// A directory of the host's: the helper process `virtiofsd` is started for it, and ends with the VM. Without root's rights,
    /// the user's files are root's in the guest, and only root can create any there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// A Unix socket at which somebody's own vhost-user back end listens. It is connected to when the VM is built, and again when
    /// the guest restarts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// Nothing below `path` can be written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub readonly: bool,
    /// Its name in messages, counters and events; `fs0` and so on where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl FsConfig {
    /// A directory of the host's.
    pub fn path(tag: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self {
            tag: tag.into(),
            path: Some(path.into()),
            ..Self::default()
        }
    }

    /// What a vhost-user back end at this socket has.
    pub fn socket(tag: impl Into<String>, socket: impl Into<PathBuf>) -> Self {
        Self {
            tag: tag.into(),
            socket: Some(socket.into()),
            ..Self::default()
        }
    }

    /// Its name, as the `index`-th one.
    pub(crate) fn name(&self, index: usize) -> String {
        self.id.clone().unwrap_or_else(|| format!("fs{index}"))
    }
}
