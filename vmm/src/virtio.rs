//! From configuration to virtio devices: the table of those that are built in.

use std::sync::Arc;

use ampoule_devices::backend::disk::{BlockBackend, DiskError, OpenDisk, RawDisk};
#[cfg(feature = "qcow2")]
use ampoule_devices::backend::qcow2::Qcow2Disk;
use ampoule_devices::backend::tap::Tap;
use ampoule_devices::virtio::VirtioDevice;
use ampoule_devices::virtio::block::{self, Block, BlockConfig, Engine, Resizer};
use ampoule_devices::virtio::net::{self, Net};
use ampoule_devices::virtio::rng::Rng;
use ampoule_devices::virtio::vsock::Vsock;

use crate::config::{
    BackingFiles, CacheMode, DiskConfig, DiskEngine, DiskFormat, NetConfig, VmConfig,
};
use crate::error::Error;

/// A device with its name in messages.
pub(crate) type NamedDevice = (String, Box<dyn VirtioDevice>);

/// The virtio devices of a machine.
#[derive(Default)]
pub(crate) struct Devices {
    /// In the order in which the guest sees them.
    pub(crate) all: Vec<NamedDevice>,
    /// What changes disks' sizes.
    pub(crate) resizers: Vec<Resizer>,
}

/// The virtio devices that a configuration asks for.
///
/// # Errors
/// What a device stands on cannot be opened.
pub(crate) fn devices(config: &VmConfig) -> Result<Devices, Error> {
    let mut devices: Vec<NamedDevice> = Vec::new();
    let mut resizers = Vec::new();
    for (index, disk) in config.disk.iter().enumerate() {
        let name = disk.name(index);
        let disk = open_disk(disk, name.clone())?;
        resizers.push(disk.resizer());
        devices.push((name, Box::new(disk)));
    }
    for (index, interface) in config.net.iter().enumerate() {
        let name = interface.name(index);
        devices.push((name.clone(), Box::new(open_net(interface, name)?)));
    }
    if config.rng {
        devices.push(("rng".into(), Box::new(Rng::new())));
    }
    if let Some(vsock) = &config.vsock {
        let device = Vsock::open(vsock.cid, &vsock.socket)?;
        devices.push(("vsock".into(), Box::new(device)));
    }
    Ok(Devices {
        all: devices,
        resizers,
    })
}

/// Which thread does a machine's virtio devices' work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// There are none.
    Nowhere,
    /// The control thread, which gives random bytes, too: a request is answered at once, and a thread for it would cost every VM
    /// that has nothing else a twentieth of its start.
    ControlThread,
    /// An I/O thread.
    IoThread,
}

/// Where the work of a configuration's devices is done.
pub(crate) fn placement(config: &VmConfig) -> Placement {
    if !config.disk.is_empty() || !config.net.is_empty() || config.vsock.is_some() {
        Placement::IoThread
    } else if config.rng {
        Placement::ControlThread
    } else {
        Placement::Nowhere
    }
}

fn open_disk(disk: &DiskConfig, name: String) -> Result<Block, Error> {
    let options = OpenDisk {
        path: &disk.path,
        read_only: disk.readonly,
        create_size: disk.size.map(|size| size.as_bytes()),
        direct: disk.direct,
        lock: disk.lock,
    };
    let image: Arc<dyn BlockBackend> = match disk.format {
        DiskFormat::Raw => Arc::new(RawDisk::open(&options)?),
        DiskFormat::Qcow2 => open_qcow2(&options, disk.backing == BackingFiles::Allow)?,
    };
    let config = BlockConfig {
        serial: disk.serial.clone().unwrap_or_else(|| name.clone()),
        name,
        cache: match disk.cache {
            CacheMode::Writeback => block::CacheMode::Writeback,
            CacheMode::Writethrough => block::CacheMode::Writethrough,
            CacheMode::Unsafe => block::CacheMode::Unsafe,
        },
        queues: disk.queues,
        limiter: None,
        poll: disk.poll.as_duration(),
    };
    let engine = engine(disk, &*image)?;
    Ok(Block::new(config, image, engine))
}

#[cfg(feature = "qcow2")]
fn open_qcow2(
    options: &OpenDisk<'_>,
    allow_backing: bool,
) -> Result<Arc<dyn BlockBackend>, DiskError> {
    Ok(Arc::new(Qcow2Disk::open(options, allow_backing)?))
}

#[cfg(not(feature = "qcow2"))]
fn open_qcow2(options: &OpenDisk<'_>, _: bool) -> Result<Arc<dyn BlockBackend>, DiskError> {
    Err(DiskError::Format {
        path: options.path.to_owned(),
        source: std::io::Error::other("this build is without qcow2"),
    })
}

/// The engine that was asked for, or the one that measures best (docs/performance.md).
fn engine(disk: &DiskConfig, image: &dyn BlockBackend) -> Result<Engine, DiskError> {
    match disk.engine {
        None | Some(DiskEngine::Sync) => Ok(Engine::sync()),
        Some(DiskEngine::IoUring) => Engine::io_uring(image).map_err(|source| DiskError::Ring {
            path: disk.path.clone(),
            source,
        }),
    }
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
