//! The socket device, as configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A way for programs of the host and of the guest to talk by sockets, without a network.
///
/// ```
/// use ampoule_vmm::config::{VmConfig, VsockConfig};
///
/// let config = VmConfig {
///     kernel: Some("vmlinux".into()),
///     vsock: Some(VsockConfig { cid: 3, socket: Some("/run/vm/vsock".into()) }),
///     ..VmConfig::default()
/// };
/// assert!(config.validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id, 3 or more.
    pub cid: u32,
    /// A Unix socket that is listened on: a program that writes `CONNECT <port>` and a newline to it is connected with that
    /// port of the guest. A guest that connects to port P of the host is connected with the socket at this path, `_` and P.
    /// Without one, only the program that runs the VM reaches the guest, by
    /// [`VmHandle::vsock`](crate::VmHandle::vsock): the command line needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}
