//! What a guest can make its host spend, as configuration.

use serde::{Deserialize, Serialize};

use super::{ConfigError, MemorySize, VmConfig};

/// The most requests that a ring of the host's holds.
const MAX_REQUESTS: u16 = 1024;

/// The most of the host that a guest can make its VM use, besides its own memory, its vCPUs and its disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct VmLimits {
    /// Memory of the VMM for what programs of the host have yet to read of the guest's sockets (vsock): shared out to its
    /// connections, each of which has 16 KiB in any case. 64 MiB.
    pub memory: MemorySize,
    /// Output that is kept of each console for a reader that is slow. 1 MiB.
    pub console_buffer: MemorySize,
    /// Output that goes to a console's file; what is beyond is dropped. 1 GiB.
    pub console_file: MemorySize,
    /// Bytes of log lines about what the guest's devices meet, over all its restarts. 1 MiB.
    pub log: MemorySize,
    /// Requests that a disk has under way at once with the io_uring engine: a power of two, 1024 at most. 128.
    pub requests: u16,
}

impl Default for VmLimits {
    fn default() -> Self {
        Self {
            memory: MemorySize::mib(64),
            console_buffer: MemorySize::mib(1),
            console_file: MemorySize::mib(1024),
            log: MemorySize::mib(1),
            requests: 128,
        }
    }
}

impl VmConfig {
    pub(super) fn validate_limits(&self) -> Result<(), ConfigError> {
        let requests = self.limits.requests;
        if !requests.is_power_of_two() || requests > MAX_REQUESTS {
            return Err(ConfigError::Requests {
                requests,
                max: MAX_REQUESTS,
            });
        }
        let buffer = self.limits.console_buffer;
        let (min, max) = (MemorySize::bytes(4096), MemorySize::mib(1024));
        if !(min..=max).contains(&buffer) {
            return Err(ConfigError::ConsoleBuffer { buffer, min, max });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_limits() {
        let of = |limits| {
            let config = VmConfig {
                kernel: Some("k".into()),
                limits,
                ..VmConfig::default()
            };
            config.validate()
        };
        let usual = VmLimits::default();
        assert_eq!(of(usual), Ok(()));
        for requests in [0, 3, 2048] {
            let complaint = of(VmLimits { requests, ..usual }).unwrap_err();
            assert!(
                matches!(complaint, ConfigError::Requests { .. }),
                "{requests}"
            );
        }
        for console_buffer in [MemorySize::bytes(0), MemorySize::mib(1025)] {
            let limits = VmLimits {
                console_buffer,
                ..usual
            };
            let complaint = of(limits).unwrap_err();
            assert!(matches!(complaint, ConfigError::ConsoleBuffer { .. }));
        }
    }
}
