//! From configuration to virtio devices: the table of those that are built in.

use std::sync::Arc;

use ampoule_devices::backend::disk::{OpenDisk, RawDisk};
use ampoule_devices::backend::tap::Tap;
use ampoule_devices::virtio::VirtioDevice;
use ampoule_devices::virtio::block::{self, Block, BlockConfig};
use ampoule_devices::virtio::console::{Console, ConsoleLink};
use ampoule_devices::virtio::net::{self, Net};
use ampoule_devices::virtio::rng::Rng;
use ampoule_devices::virtio::vsock::Vsock;

use crate::config::{CacheMode, DiskConfig, NetConfig, VmConfig};
use crate::error::Error;

/// A device with its name in messages.
pub(crate) type NamedDevice = (String, Box<dyn VirtioDevice>);

/// The virtio devices that a configuration asks for, in the order in which the guest sees them.
///
/// # Errors
/// What a device stands on cannot be opened.
pub(crate) fn devices(
    config: &VmConfig,
    console: Option<&Arc<ConsoleLink>>,
) -> Result<Vec<NamedDevice>, Error> {
    let mut devices: Vec<NamedDevice> = Vec::new();
    for (index, disk) in config.disk.iter().enumerate() {
        let name = disk.name(index);
        devices.push((name.clone(), Box::new(open_disk(disk, name)?)));
    }
    for (index, interface) in config.net.iter().enumerate() {
        let name = interface.name(index);
        devices.push((name.clone(), Box::new(open_net(interface, name)?)));
    }
    if let Some(link) = console {
        devices.push(("console".into(), Box::new(Console::new(link.clone()))));
    }
    if config.rng {
        devices.push(("rng".into(), Box::new(Rng::new())));
    }
    if let Some(vsock) = &config.vsock {
        let device = Vsock::open(vsock.cid, &vsock.socket)?;
        devices.push(("vsock".into(), Box::new(device)));
    }
    Ok(devices)
}

/// Which thread does a machine's virtio devices' work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// There are none.
    Nowhere,
    /// The control thread, which has a console's other half anyhow, and gives random bytes, too: a request is answered at once, and a thread for it would cost every VM
    /// that has nothing else a twentieth of its start.
    ControlThread,
    /// An I/O thread.
    IoThread,
}

/// Where the work of a configuration's devices is done.
pub(crate) fn placement(config: &VmConfig) -> Placement {
    if !config.disk.is_empty() || !config.net.is_empty() || config.vsock.is_some() {
        Placement::IoThread
    } else if config.rng || config.console.is_some() {
        Placement::ControlThread
    } else {
        Placement::Nowhere
    }
}

fn open_disk(disk: &DiskConfig, name: String) -> Result<Block, Error> {
    let image = RawDisk::open(&OpenDisk {
        path: &disk.path,
        read_only: disk.readonly,
        create_size: disk.size.map(|size| size.as_bytes()),
        lock: disk.lock,
    })?;
    let config = BlockConfig {
        serial: disk.serial.clone().unwrap_or_else(|| name.clone()),
        name,
        cache: match disk.cache {
            CacheMode::Writeback => block::CacheMode::Writeback,
            CacheMode::Writethrough => block::CacheMode::Writethrough,
            CacheMode::Unsafe => block::CacheMode::Unsafe,
        },
        queues: disk.queues,
        poll: disk.poll.as_duration(),
    };
    Ok(Block::new(config, Arc::new(image)))
}

fn open_net(interface: &NetConfig, name: String) -> Result<Net, Error> {
    let tap = match interface.fd {
        Some(fd) => Tap::inherit(fd)?,
        None => Tap::open(interface.tap.as_deref().unwrap_or_default())?,
    };
    let config = net::NetConfig {
        mac: interface.effective_mac(&name).octets(),
        name,
        mtu: interface.mtu,
    };
    Ok(Net::new(config, Arc::new(tap)))
}
