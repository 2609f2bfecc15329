//! What a VM is to be: one tree of typed, serialisable structs.
//!
//! The command line, a TOML or JSON file and an embedding program all build a [`VmConfig`]; a field has the same name in
//! all three (kebab-case outside Rust). [`VmConfig::validate`] is the only judge of it.

mod disk;
mod forward;
mod fs;
mod limits;
mod net;
mod rate;
mod units;
mod validate;
mod vsock;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::kernel::KernelEntry;
pub use disk::{BackingFiles, CacheMode, DiskConfig, DiskEngine, DiskFormat};
pub use forward::{Forward, ForwardError, Protocol};
pub use fs::FsConfig;
pub use limits::VmLimits;
pub use net::{MacAddress, MacError, NetConfig};
pub use units::{MemorySize, Span, UnitError};
pub use validate::ConfigError;
pub use vsock::VsockConfig;

/// The most vCPUs a VM may have: their x2APIC ids fit the 8-bit ids that an IOAPIC can address.
pub const MAX_CPUS: u32 = ampoule_arch::cpuid::MAX_VCPUS;

/// The kernel command line where none is given: the console that every VM has.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0";

/// The same for a VM that has a virtio console besides. The kernel prints on both; `/dev/console` is the last.
pub const DEFAULT_CMDLINE_WITH_CONSOLE: &str = "console=ttyS0 console=hvc0";

/// A virtual machine, as its owner describes it.
///
/// ```
/// use ampoule_vmm::config::{MemorySize, VmConfig};
///
/// let config = VmConfig {
///     kernel: Some("/boot/vmlinuz".into()),
///     memory: MemorySize::mib(256),
///     cpus: 2,
///     ..VmConfig::default()
/// };
/// assert!(config.validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct VmConfig {
    /// The kernel: an ELF `vmlinux` or a bzImage (`vmlinuz`). Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// An initial RAM disk, handed to the kernel as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line; [`VmConfig::effective_cmdline`] where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// More words for the command line, after those of `cmdline`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub append: Option<String>,
    /// How the kernel is entered.
    pub entry: KernelEntry,
    /// Number of vCPUs, 1 to [`MAX_CPUS`]: one socket, one thread a core.
    pub cpus: u32,
    /// Guest RAM, a multiple of 4 KiB, 16 MiB or more.
    pub memory: MemorySize,
    /// Pages that back guest RAM.
    pub hugepages: HugePages,
    /// Whether guest RAM is private to the VMM or a file that other processes can map. With `fs`, it is such a file in any case.
    pub memory_backing: MemoryBacking,
    /// Where the first serial port (COM1, `ttyS0`) leads. Where it is not given, into the program that runs the VM, by
    /// [`VmHandle::console`](crate::VmHandle::console); `ampoule` leads it to its standard streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<ConsoleConfig>,
    /// Where the virtio console (`hvc0`) leads, if the guest has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console: Option<ConsoleConfig>,
    /// What happens when the guest resets itself.
    pub on_reboot: OnReboot,
    /// How long a guest may take after its power button was pressed, before it is stopped.
    pub grace: Span,
    /// The VM is stopped when it has run for this long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// Whether the guest has an entropy device.
    pub rng: bool,
    /// The disks, in the order in which the guest sees them: `/dev/vda`, `/dev/vdb` and so on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disk: Vec<DiskConfig>,
    /// The network interfaces, in the order in which the guest sees them: `eth0`, `eth1` and so on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub net: Vec<NetConfig>,
    /// The file systems that the guest shares with its host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fs: Vec<FsConfig>,
    /// The socket device, if the guest has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// What a guest can make its host spend.
    #[serde(skip_serializing_if = "is_usual")]
    pub limits: VmLimits,
}

fn is_usual(limits: &VmLimits) -> bool {
    *limits == VmLimits::default()
}

fn one() -> u16 {
    1
}

fn is_one(value: &u16) -> bool {
    *value == 1
}

impl Default for VmConfig {
    fn default() -> Self {
        Self {
            kernel: None,
            initrd: None,
            cmdline: None,
            append: None,
            entry: KernelEntry::default(),
            cpus: 1,
            memory: MemorySize::mib(512),
            hugepages: HugePages::default(),
            memory_backing: MemoryBacking::default(),
            serial: None,
            console: None,
            on_reboot: OnReboot::default(),
            grace: Span::from(Duration::from_secs(5)),
            timeout: None,
            rng: true,
            disk: Vec::new(),
            net: Vec::new(),
            fs: Vec::new(),
            vsock: None,
            limits: VmLimits::default(),
        }
    }
}

impl VmConfig {
    /// `cmdline`, or where it is not given one that names the consoles.
    pub fn effective_cmdline(&self) -> &str {
        match (&self.cmdline, &self.console) {
            (Some(cmdline), _) => cmdline.trim(),
            (None, Some(_)) => DEFAULT_CMDLINE_WITH_CONSOLE,
            (None, None) => DEFAULT_CMDLINE,
        }
    }

    /// The ids of its virtio devices, in the order in which the guest sees them: what is written, or `disk0`, `net0` and so on.
    pub fn device_ids(&self) -> impl Iterator<Item = String> {
        let disks = self.disk.iter().enumerate();
        disks
            .map(|(index, disk)| disk.name(index))
            .chain(self.ids_behind_disks())
    }

    /// The same without those of the disks.
    fn ids_behind_disks(&self) -> impl Iterator<Item = String> {
        let nets = self.net.iter().enumerate();
        let shares = self.fs.iter().enumerate();
        nets.map(|(index, interface)| interface.name(index))
            .chain(shares.map(|(index, fs)| fs.name(index)))
            .chain(self.singles().map(ToOwned::to_owned))
    }

    /// The ids of devices of which there is one at most.
    fn singles(&self) -> impl Iterator<Item = &'static str> {
        let singles = [
            (self.console.is_some(), "console"),
            (self.rng, "rng"),
            (self.vsock.is_some(), "vsock"),
        ];
        let there = singles.into_iter().filter(|(there, _)| *there);
        there.map(|(_, name)| name)
    }

    /// The whole command line: that of [`Self::effective_cmdline`], then `append`.
    pub fn full_cmdline(&self) -> String {
        let cmdline = self.effective_cmdline();
        match self.append.as_deref().map(str::trim) {
            None | Some("") => cmdline.to_owned(),
            Some(append) => format!("{cmdline} {append}").trim_start().to_owned(),
        }
    }
}

/// Pages that back guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum HugePages {
    /// Pages of 4 KiB only.
    #[serde(rename = "off")]
    Off,
    /// Transparent huge pages, as the host kernel finds them (`madvise(2)`, `MADV_HUGEPAGE`).
    #[default]
    #[serde(rename = "transparent")]
    Transparent,
    /// Pages of 2 MiB from the host's hugetlb pool, reserved at start.
    #[serde(rename = "2M")]
    Huge2M,
    /// Pages of 1 GiB from the host's hugetlb pool, reserved at start.
    #[serde(rename = "1G")]
    Huge1G,
}

impl HugePages {
    /// The size in bytes of a page from the hugetlb pool; `None` for the kinds that need no pool.
    pub const fn pool_page_size(self) -> Option<u64> {
        match self {
            Self::Off | Self::Transparent => None,
            Self::Huge2M => Some(2 << 20),
            Self::Huge1G => Some(1 << 30),
        }
    }
}

/// Whether guest RAM is private to the VMM or a file that other processes can map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MemoryBacking {
    /// Anonymous memory.
    #[default]
    Private,
    /// A `memfd_create(2)` file, mapped shared: what vhost-user back ends need.
    Shared,
}

/// What happens when the guest resets itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OnReboot {
    /// The VM ends, as a success.
    #[default]
    Exit,
    /// The VM boots again, in the same process.
    Restart,
}

/// Where a console of the guest's leads: the first serial port, or the virtio console.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
pub enum ConsoleConfig {
    /// Standard input and output of the process.
    #[default]
    Stdio,
    /// Nowhere: output is dropped, there is no input.
    Null,
    /// Output goes to a file, which is created or truncated, and takes 1 GiB at most.
    File(PathBuf),
    /// A Unix stream socket is listened on here; output waits for the first client.
    Socket(PathBuf),
    /// A new pseudo-terminal, for screen(1) and the like.
    Pty,
}

impl fmt::Display for ConsoleConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::Null => f.write_str("null"),
            Self::Pty => f.write_str("pty"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Socket(path) => write!(f, "socket:{}", path.display()),
        }
    }
}

impl FromStr for ConsoleConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = |path: &str| (!path.is_empty()).then(|| Path::new(path).to_path_buf());
        let parsed = match text.split_once(':') {
            None if text == "stdio" => Some(Self::Stdio),
            None if text == "null" => Some(Self::Null),
            None if text == "pty" => Some(Self::Pty),
            Some(("file", rest)) => path(rest).map(Self::File),
            Some(("socket", rest)) => path(rest).map(Self::Socket),
            _ => None,
        };
        parsed.ok_or_else(|| {
            format!(
                "\"{text}\" is no place for a console (write stdio, null, file:PATH, socket:PATH or pty)"
            )
        })
    }
}

impl TryFrom<String> for ConsoleConfig {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ConsoleConfig> for String {
    fn from(serial: ConsoleConfig) -> Self {
        serial.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_survives_its_text() {
        let config = VmConfig {
            kernel: Some("vmlinux".into()),
            serial: Some(ConsoleConfig::Socket("/run/vm.sock".into())),
            console: Some(ConsoleConfig::Pty),
            hugepages: HugePages::Huge2M,
            on_reboot: OnReboot::Restart,
            timeout: Some(Span::from(Duration::from_secs(60))),
            disk: vec![DiskConfig::new("root.img")],
            net: vec![NetConfig::tap("tap0")],
            ..VmConfig::default()
        };
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains(r#""on-reboot":"restart""#), "{text}");
        assert!(text.contains(r#""memory":"512M""#), "{text}");
        assert_eq!(serde_json::from_str::<VmConfig>(&text).unwrap(), config);
    }

    #[test]
    fn an_unknown_key_is_refused() {
        assert!(serde_json::from_str::<VmConfig>(r#"{"kernal": "x"}"#).is_err());
    }

    #[test]
    fn consoles_read_as_documented() {
        assert_eq!("file:a:b".parse(), Ok(ConsoleConfig::File("a:b".into())));
        for bad in ["", "stdout", "file:", "socket:", "null:", "pty:x"] {
            let err = bad.parse::<ConsoleConfig>().unwrap_err();
            assert!(err.contains("socket:PATH"), "{bad}: {err}");
        }
    }

    #[test]
    fn the_command_line_is_joined_once() {
        let mut config = VmConfig::default();
        assert_eq!(config.full_cmdline(), "console=ttyS0");
        config.append = Some(" quiet ".into());
        assert_eq!(config.full_cmdline(), "console=ttyS0 quiet");
        config.cmdline = Some(String::new());
        assert_eq!(config.full_cmdline(), "quiet");
    }

    #[test]
    fn a_console_changes_what_is_not_given_and_nothing_else() {
        let mut config = VmConfig {
            console: Some(ConsoleConfig::Stdio),
            ..VmConfig::default()
        };
        assert_eq!(config.full_cmdline(), "console=ttyS0 console=hvc0");
        config.cmdline = Some(DEFAULT_CMDLINE.into());
        assert_eq!(config.full_cmdline(), DEFAULT_CMDLINE);
    }
}
