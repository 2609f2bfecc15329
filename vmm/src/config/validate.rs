//! The judge of a configuration: everything that can be said without asking the host.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use ampoule_arch::layout;
use ampoule_devices::backend::disk::SECTOR;
use ampoule_devices::backend::tap;
use ampoule_devices::virtio::block::MAX_QUEUES;
use ampoule_devices::virtio::fs::MAX_TAG;
use ampoule_devices::virtio::net::MAX_PAIRS;
use ampoule_devices::virtio::vsock::MIN_GUEST_CID;

use crate::passt::MAX_MTU;
use crate::resource_allocator::MAX_DEVICES;

use super::{
    BackingFiles, ConsoleConfig, DiskConfig, DiskEngine, DiskFormat, Forward, HugePages, MAX_CPUS,
    MacAddress, MemoryBacking, MemorySize, NetConfig, Span, VmConfig,
};

/// Why a configuration cannot be a VM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// There is nothing to boot.
    #[error("no kernel is given")]
    NoKernel,
    /// vCPUs out of range.
    #[error("a VM has 1 to {MAX_CPUS} vCPUs, not {cpus}")]
    Cpus {
        /// What was asked for.
        cpus: u32,
    },
    /// Too little memory for any guest, or more than the address space holds.
    #[error("{size} of memory is out of range ({min} to {max})")]
    MemoryRange {
        /// What was asked for.
        size: MemorySize,
        /// The least.
        min: MemorySize,
        /// The most.
        max: MemorySize,
    },
    /// Memory that does not consist of whole pages.
    #[error("{size} of memory is not a multiple of its page size, {page}")]
    MemoryAlignment {
        /// What was asked for.
        size: MemorySize,
        /// The page size in use.
        page: MemorySize,
    },
    /// The command line is longer than kernels take.
    #[error("the kernel command line has {length} bytes, and {max} is the limit")]
    CmdlineTooLong {
        /// Its length, without the final NUL.
        length: usize,
        /// The most that fits.
        max: usize,
    },
    /// A disk's queues out of range.
    #[error("a disk has 1 to {max} queues, and {name} asks for {queues}")]
    DiskQueues {
        /// The disk.
        name: String,
        /// What was asked for.
        queues: u16,
        /// The most.
        max: u16,
    },
    /// Two settings of a disk that exclude each other.
    #[error("{name} cannot have {first} with {second}")]
    DiskContradiction {
        /// The disk.
        name: String,
        /// A key and its value.
        first: &'static str,
        /// Another.
        second: &'static str,
    },
    /// A disk's queue would be watched for too long.
    #[error("{name} would be watched for {poll}, and 1ms is the limit")]
    DiskPoll {
        /// The disk.
        name: String,
        /// What was asked for.
        poll: Span,
    },
    /// A new disk's size that is none.
    #[error("{name} would have {size}, which is not a positive multiple of 512 bytes")]
    DiskSize {
        /// The disk.
        name: String,
        /// What was asked for.
        size: MemorySize,
    },
    /// A disk's requests under way out of range.
    #[error("a disk has a power of two of requests under way, {max} at most, not {requests}")]
    Requests {
        /// What was asked for.
        requests: u16,
        /// The most.
        max: u16,
    },
    /// A console that would keep too little or too much.
    #[error("a console keeps {min} to {max} of output, not {buffer}")]
    ConsoleBuffer {
        /// What was asked for.
        buffer: MemorySize,
        /// The least.
        min: MemorySize,
        /// The most.
        max: MemorySize,
    },
    /// Two disks with one name.
    #[error("there are two disks named {name}")]
    DiskName {
        /// The name.
        name: String,
    },
    /// Two network interfaces with one name.
    #[error("there are two network interfaces named {name}")]
    NetName {
        /// The name.
        name: String,
    },
    /// A network interface that leads nowhere, or to two places.
    #[error("{name} needs a tap, a descriptor or user networking, and one of them")]
    NetBackend {
        /// The interface.
        name: String,
    },
    /// A key that user networking knows nothing of.
    #[error("{name} has user networking, which has no {key}")]
    NetUser {
        /// The interface.
        name: String,
        /// The key.
        key: &'static str,
    },
    /// A maximum transmission unit above that of user networking.
    #[error("{name} has an MTU of {mtu}, and {max} is the most with user networking")]
    NetUserMtu {
        /// The interface.
        name: String,
        /// What was asked for.
        mtu: u16,
        /// The most.
        max: u16,
    },
    /// Forwarded ports without user networking.
    #[error("{name} forwards ports, which only user networking does")]
    NetForward {
        /// The interface.
        name: String,
    },
    /// A port of the host that leads to two places.
    #[error("{name} forwards {forward}, and that port of the host is forwarded already")]
    NetForwardTwice {
        /// The interface.
        name: String,
        /// The second one.
        forward: Forward,
    },
    /// A tap that two interfaces use.
    #[error("{tap} is the tap of two network interfaces")]
    NetTapTwice {
        /// The tap, or `fd N`.
        tap: String,
    },
    /// What cannot be the name of an interface of the host's.
    #[error("{name} has the tap \"{tap}\", which cannot be the name of one")]
    NetTapName {
        /// The interface.
        name: String,
        /// What was asked for.
        tap: String,
    },
    /// An address that no single interface can have.
    #[error("{name} has the address {mac}, which is not that of one station")]
    NetMac {
        /// The interface.
        name: String,
        /// What was asked for.
        mac: MacAddress,
    },
    /// A maximum transmission unit below that of IPv4.
    #[error("{name} has an MTU of {mtu}, and {min} is the least")]
    NetMtu {
        /// The interface.
        name: String,
        /// What was asked for.
        mtu: u16,
        /// The least.
        min: u16,
    },
    /// A network interface's queues out of range.
    #[error("a network interface has 1 to {max} queues, and {name} asks for {queues}")]
    NetQueues {
        /// The interface.
        name: String,
        /// What was asked for.
        queues: u16,
        /// The most.
        max: u16,
    },
    /// Several queues over one descriptor.
    #[error("{name} has {queues} queues over one descriptor, which is one queue")]
    NetFdQueues {
        /// The interface.
        name: String,
        /// What was asked for.
        queues: u16,
    },
    /// A rate limit on what the kernel moves.
    #[error("{name} has a rate limit, which vhost knows nothing of")]
    NetVhostLimit {
        /// The interface.
        name: String,
    },
    /// A rate limit that nothing could pass.
    #[error("{name} has a limit of 0 for {key}")]
    RateZero {
        /// The device.
        name: String,
        /// The limit's key.
        key: &'static str,
    },
    /// A burst of what is not limited.
    #[error("{name} has {key}-burst without the limit {key}")]
    BurstAlone {
        /// The device.
        name: String,
        /// The limit's key.
        key: &'static str,
    },
    /// A tag that is none.
    #[error("{name} has the tag \"{}\", and a tag has 1 to {max} bytes", tag.escape_default())]
    FsTag {
        /// The device.
        name: String,
        /// What was asked for.
        tag: String,
        /// The most bytes.
        max: usize,
    },
    /// Two file systems that the guest could not tell apart.
    #[error("there are two shared file systems with the tag \"{tag}\"")]
    FsTagTwice {
        /// The tag.
        tag: String,
    },
    /// A file system without files, or with two kinds of them.
    #[error("{name} has neither a directory nor a socket, or both")]
    FsBackend {
        /// The device.
        name: String,
    },
    /// Read-only by somebody else's back end.
    #[error("{name} is to be read-only, which its back end at a socket knows nothing of")]
    FsReadonly {
        /// The device.
        name: String,
    },
    /// A context id that no guest may have.
    #[error("a guest's CID is {min} to {max}, not {cid}")]
    VsockCid {
        /// What was asked for.
        cid: u32,
        /// The least.
        min: u32,
        /// The most.
        max: u32,
    },
    /// Nowhere to listen.
    #[error("the socket device has no path to listen at")]
    VsockPath,
    /// Two consoles on the standard streams.
    #[error("the serial port and the console cannot both be on standard input and output")]
    ConsolesOnStdio,
    /// Two consoles in one place.
    #[error("the serial port and the console both lead to {place}")]
    ConsolesInOnePlace {
        /// The place.
        place: String,
    },
    /// Two devices of different kinds with one name.
    #[error("there are two devices named {name}")]
    DeviceName {
        /// The name.
        name: String,
    },
    /// More virtio devices than a machine has places for.
    #[error("{count} virtio devices are more than the {max} that a VM has places for")]
    TooManyDevices {
        /// How many.
        count: usize,
        /// The most.
        max: usize,
    },
    /// A byte that cannot be in a command line.
    #[error("the kernel command line holds a NUL byte at offset {offset}")]
    CmdlineNul {
        /// Where.
        offset: usize,
    },
}

impl ConfigError {
    /// What a person can do about it, in the terms of the command line.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::NoKernel => Some("name one: --kernel /boot/vmlinuz-$(uname -r)".into()),
            Self::Cpus { .. } => Some(format!("use --cpus 1 to --cpus {MAX_CPUS}")),
            Self::MemoryRange { .. } => Some("use for instance --memory 512M".into()),
            Self::MemoryAlignment { size, page } => {
                let down = size.as_bytes() - size.as_bytes() % page.as_bytes();
                let rounded = MemorySize::bytes(down.max(page.as_bytes()));
                Some(format!("use for instance --memory {rounded}"))
            }
            Self::ConsolesOnStdio => {
                Some("send one of them elsewhere: --serial null, for instance".into())
            }
            Self::ConsolesInOnePlace { .. } => Some("give each its own".into()),
            Self::DiskName { .. } | Self::NetName { .. } | Self::DeviceName { .. } => {
                Some("give each its own, with id=NAME".into())
            }
            Self::NetVhostLimit { .. } => {
                Some("leave out vhost=on, or limit the tap on the host: tc-tbf(8)".into())
            }
            Self::NetFdQueues { .. } => {
                Some("name the tap instead: --net tap=NAME,queues=N".into())
            }
            Self::DiskQueues { .. } | Self::NetQueues { .. } => {
                Some("more queues than vCPUs are of no use".into())
            }
            Self::NetBackend { .. } => Some("--net user, --net tap=NAME or --net fd=N".into()),
            Self::NetForward { .. } => Some("use --net user,forward=8080:80".into()),
            Self::NetUser { key, .. } => {
                Some(format!("leave out {key}, or use a tap: --net tap=NAME"))
            }
            Self::NetMac { .. } => {
                Some("the first byte of an address is even, 02 for instance".into())
            }
            Self::NetTapName { .. } => Some(format!(
                "a name has 1 to {} bytes, and no space, slash, colon or percent sign",
                tap::MAX_NAME
            )),
            Self::VsockCid { min, .. } => Some(format!(
                "use for instance --vsock cid={min},socket=PATH; 0 to 2 are the host's, and the highest is anybody's"
            )),
            Self::FsBackend { .. } => {
                Some("--fs tag=NAME,path=DIR or --fs tag=NAME,socket=PATH".into())
            }
            Self::FsReadonly { .. } => {
                Some("start that back end so that it writes nothing, or use path=DIR".into())
            }
            Self::FsTagTwice { .. } => Some("give each its own, with tag=NAME".into()),
            Self::VsockPath => Some("name one: --vsock cid=3,socket=PATH".into()),
            Self::RateZero { key, .. } => Some(format!("without {key}, there is no limit")),
            Self::BurstAlone { key, .. } => Some(format!("give {key}, the rate in a second, too")),
            Self::Requests { .. }
            | Self::ConsoleBuffer { .. }
            | Self::NetTapTwice { .. }
            | Self::NetForwardTwice { .. }
            | Self::NetUserMtu { .. }
            | Self::NetMtu { .. }
            | Self::FsTag { .. }
            | Self::CmdlineTooLong { .. }
            | Self::CmdlineNul { .. }
            | Self::DiskContradiction { .. }
            | Self::DiskPoll { .. }
            | Self::DiskSize { .. }
            | Self::TooManyDevices { .. } => None,
        }
    }
}

impl DiskConfig {
    /// Judges the device, whatever its data is kept in.
    pub(crate) fn check_device(&self, name: &str) -> Result<(), ConfigError> {
        let (queues, max) = (self.queues, MAX_QUEUES);
        if !(1..=max).contains(&queues) {
            let name = name.to_owned();
            return Err(ConfigError::DiskQueues { name, queues, max });
        }
        for rate in self.rates() {
            rate.check(name)?;
        }
        if self.poll.as_duration() > Duration::from_millis(1) {
            let (name, poll) = (name.to_owned(), self.poll);
            return Err(ConfigError::DiskPoll { name, poll });
        }
        Ok(())
    }
}

impl NetConfig {
    /// Judges the device, wherever its frames go.
    pub(crate) fn check_device(&self, name: &str) -> Result<(), ConfigError> {
        const MIN_MTU: u16 = 68;
        if let Some(mac) = self.mac.filter(|mac| !mac.is_station()) {
            let name = name.to_owned();
            return Err(ConfigError::NetMac { name, mac });
        }
        if let Some(mtu) = self.mtu.filter(|mtu| *mtu < MIN_MTU) {
            let (name, min) = (name.to_owned(), MIN_MTU);
            return Err(ConfigError::NetMtu { name, mtu, min });
        }
        for rate in self.rates() {
            rate.check(name)?;
        }
        Ok(())
    }
}

impl VmConfig {
    /// Checks every field, alone and against the others. Asks nothing of the host.
    ///
    /// # Errors
    /// The first field that cannot stand.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.kernel.is_none() {
            return Err(ConfigError::NoKernel);
        }
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(ConfigError::Cpus { cpus: self.cpus });
        }
        self.validate_memory()?;
        self.validate_devices()?;
        let cmdline = self.full_cmdline();
        let max = layout::CMDLINE_MAX - 1;
        if cmdline.len() > max {
            return Err(ConfigError::CmdlineTooLong {
                length: cmdline.len(),
                max,
            });
        }
        if let Some(offset) = cmdline.bytes().position(|byte| byte == 0) {
            return Err(ConfigError::CmdlineNul { offset });
        }
        Ok(())
    }

    fn validate_devices(&self) -> Result<(), ConfigError> {
        let count = self.disk.len() + self.net.len() + self.fs.len() + self.singles().count();
        if count > MAX_DEVICES {
            return Err(ConfigError::TooManyDevices {
                count,
                max: MAX_DEVICES,
            });
        }
        if let Some(vsock) = &self.vsock {
            // The highest one means "any" (VMADDR_CID_ANY).
            let (cid, min, max) = (vsock.cid, MIN_GUEST_CID, u32::MAX - 1);
            if !(min..=max).contains(&cid) {
                return Err(ConfigError::VsockCid { cid, min, max });
            }
            if vsock
                .socket
                .as_ref()
                .is_some_and(|path| path.as_os_str().is_empty())
            {
                return Err(ConfigError::VsockPath);
            }
        }
        let mut names = BTreeSet::new();
        for (index, disk) in self.disk.iter().enumerate() {
            let name = disk.name(index);
            disk.check_device(&name)?;
            let contradiction = match (disk.format, disk.engine, disk.backing) {
                (DiskFormat::Qcow2, Some(DiskEngine::IoUring), _) => {
                    Some(("engine=io_uring", "format=qcow2"))
                }
                (DiskFormat::Raw, _, BackingFiles::Allow) => Some(("backing=allow", "format=raw")),
                _ => None,
            };
            if let Some((first, second)) = contradiction {
                return Err(ConfigError::DiskContradiction {
                    name,
                    first,
                    second,
                });
            }
            if let Some(size) = disk.size
                && (size.as_bytes() == 0 || !size.as_bytes().is_multiple_of(SECTOR))
            {
                return Err(ConfigError::DiskSize { name, size });
            }
            if !names.insert(name.clone()) {
                return Err(ConfigError::DiskName { name });
            }
        }
        self.validate_net()?;
        self.validate_fs()?;
        self.validate_consoles()?;
        self.validate_limits()?;
        // Each kind's names are different already.
        for name in self.ids_behind_disks() {
            if !names.insert(name.clone()) {
                return Err(ConfigError::DeviceName { name });
            }
        }
        Ok(())
    }

    fn validate_consoles(&self) -> Result<(), ConfigError> {
        let (Some(serial), Some(console)) = (&self.serial, &self.console) else {
            return Ok(());
        };
        match (serial, console) {
            (ConsoleConfig::Stdio, ConsoleConfig::Stdio) => Err(ConfigError::ConsolesOnStdio),
            (
                ConsoleConfig::File(one) | ConsoleConfig::Socket(one),
                ConsoleConfig::File(other) | ConsoleConfig::Socket(other),
            ) if one == other => Err(ConfigError::ConsolesInOnePlace {
                place: one.display().to_string(),
            }),
            _ => Ok(()),
        }
    }

    fn validate_net(&self) -> Result<(), ConfigError> {
        let (mut names, mut taps) = (BTreeSet::new(), BTreeSet::new());
        let mut ports: Vec<Forward> = Vec::new();
        for (index, interface) in self.net.iter().enumerate() {
            let name = interface.name(index);
            let tap = match (&interface.tap, interface.fd, interface.user) {
                (Some(tap), None, false) if is_interface_name(tap) => Some(tap.clone()),
                (Some(tap), None, false) => {
                    let tap = tap.clone();
                    return Err(ConfigError::NetTapName { name, tap });
                }
                (None, Some(fd), false) => Some(format!("fd {fd}")),
                (None, None, true) => None,
                _ => return Err(ConfigError::NetBackend { name }),
            };
            if interface.user {
                for (there, key) in [(interface.vhost, "vhost"), (interface.queues > 1, "queues")] {
                    if there {
                        return Err(ConfigError::NetUser { name, key });
                    }
                }
                if let Some(mtu) = interface.mtu.filter(|mtu| *mtu > MAX_MTU) {
                    let max = MAX_MTU;
                    return Err(ConfigError::NetUserMtu { name, mtu, max });
                }
            } else if !interface.forward.is_empty() {
                return Err(ConfigError::NetForward { name });
            }
            for forward in &interface.forward {
                let clashes = |other: &Forward| {
                    let everywhere = other.address.is_none() || forward.address.is_none();
                    (other.protocol, other.host) == (forward.protocol, forward.host)
                        && (everywhere || other.address == forward.address)
                };
                if ports.iter().any(clashes) {
                    let forward = *forward;
                    return Err(ConfigError::NetForwardTwice { name, forward });
                }
                ports.push(*forward);
            }
            interface.check_device(&name)?;
            let (queues, max) = (interface.queues, MAX_PAIRS);
            if !(1..=max).contains(&queues) {
                return Err(ConfigError::NetQueues { name, queues, max });
            }
            if interface.fd.is_some() && queues > 1 {
                return Err(ConfigError::NetFdQueues { name, queues });
            }
            if interface.vhost && interface.limit().is_some() {
                return Err(ConfigError::NetVhostLimit { name });
            }
            if let Some(tap) = tap
                && !taps.insert(tap.clone())
            {
                return Err(ConfigError::NetTapTwice { tap });
            }
            if !names.insert(name.clone()) {
                return Err(ConfigError::NetName { name });
            }
        }
        Ok(())
    }

    fn validate_fs(&self) -> Result<(), ConfigError> {
        let (mut tags, mut names) = (BTreeSet::new(), BTreeSet::new());
        for (index, fs) in self.fs.iter().enumerate() {
            let (name, max) = (fs.name(index), MAX_TAG);
            if !(1..=max).contains(&fs.tag.len()) || fs.tag.contains('\0') {
                let tag = fs.tag.clone();
                return Err(ConfigError::FsTag { name, tag, max });
            }
            let is_place =
                |path: &Option<PathBuf>| path.as_ref().is_some_and(|it| !it.as_os_str().is_empty());
            match (&fs.path, &fs.socket) {
                (path @ Some(_), None) if is_place(path) => {}
                (None, socket @ Some(_)) if is_place(socket) => {
                    if fs.readonly {
                        return Err(ConfigError::FsReadonly { name });
                    }
                }
                _ => return Err(ConfigError::FsBackend { name }),
            }
            if !tags.insert(&fs.tag) {
                let tag = fs.tag.clone();
                return Err(ConfigError::FsTagTwice { tag });
            }
            if !names.insert(name.clone()) {
                return Err(ConfigError::DeviceName { name });
            }
        }
        Ok(())
    }

    /// Whether other processes map guest RAM: so it was asked for, or a device needs it.
    pub(crate) fn shares_memory(&self) -> bool {
        self.memory_backing == MemoryBacking::Shared || !self.fs.is_empty()
    }

    fn validate_memory(&self) -> Result<(), ConfigError> {
        let size = self.memory;
        let (min, max) = (
            MemorySize::bytes(layout::MIN_MEMORY),
            MemorySize::bytes(layout::MAX_MEMORY),
        );
        if size < min || size > max {
            return Err(ConfigError::MemoryRange { size, min, max });
        }
        let page = MemorySize::bytes(self.hugepages.pool_page_size().unwrap_or(4096));
        if !size.as_bytes().is_multiple_of(page.as_bytes()) {
            return Err(ConfigError::MemoryAlignment { size, page });
        }
        Ok(())
    }

    /// Whether guest RAM is backed by a file descriptor.
    pub(crate) fn needs_memfd(&self) -> bool {
        self.shares_memory() || matches!(self.hugepages, HugePages::Huge2M | HugePages::Huge1G)
    }
}

/// What the host's kernel takes for a name; a percent sign would be a pattern for it.
fn is_interface_name(name: &str) -> bool {
    let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%');
    (1..=tap::MAX_NAME).contains(&name.len()) && !matches!(name, "." | "..") && !name.contains(bad)
}

#[cfg(test)]
mod tests;
