//! From configuration to virtio devices: the table of those that are built in.

use std::sync::Arc;
use std::time::Instant;

use ampoule_devices::backend::disk::{BlockBackend, DiskError, OpenDisk, RawDisk};
use ampoule_devices::backend::frame_stream::FrameStream;
#[cfg(feature = "qcow2")]
use ampoule_devices::backend::qcow2::Qcow2Disk;
use ampoule_devices::backend::tap::Tap;
use ampoule_devices::backend::vhost_net::VhostNet;
use ampoule_devices::backend::vhost_user::{VhostUser, VhostUserError};
use ampoule_devices::rate_limiter::RateLimiter;
use ampoule_devices::virtio::VirtioDevice;
use ampoule_devices::virtio::block::{self, Block, BlockConfig, Engine, Resizer};
use ampoule_devices::virtio::console::{Console, ConsoleLink};
use ampoule_devices::virtio::fs::{self, Fs};
use ampoule_devices::virtio::net::{self, Net};
use ampoule_devices::virtio::rng::{self, Rng};
use ampoule_devices::virtio::vsock::{Vsock, VsockEndpoint};

use crate::config::{
    BackingFiles, CacheMode, DiskConfig, DiskEngine, DiskFormat, FsConfig, NetConfig, VmConfig,
};
use crate::error::Error;
use crate::helper::Helper;
use crate::memory::GuestRam;
use crate::own_backends::OwnBackends;
use crate::own_devices::OwnDevices;
use crate::passt::{self, PasstConfig};
use crate::virtiofsd::{Virtiofsd, VirtiofsdConfig};

/// A device with its name in messages.
pub(crate) type NamedDevice = (String, Box<dyn VirtioDevice>);

/// The virtio devices of a machine.
#[derive(Default)]
pub(crate) struct Devices {
    /// In the order in which the guest sees them.
    pub(crate) all: Vec<NamedDevice>,
    /// What changes disks' sizes.
    pub(crate) resizers: Vec<Resizer>,
    /// The processes that some of them need.
    pub(crate) helpers: Vec<Helper>,
}

/// The virtio devices that a configuration asks for.
///
/// # Errors
/// What a device stands on cannot be opened or started.
pub(crate) fn devices(
    config: &VmConfig,
    own: &OwnBackends,
    ram: &GuestRam,
    console: Option<&Arc<ConsoleLink>>,
    sockets: Option<&VsockEndpoint>,
) -> Result<Devices, Error> {
    let mut devices: Vec<NamedDevice> = Vec::new();
    let (mut resizers, mut helpers) = (Vec::new(), Vec::new());
    for (index, disk) in config.disk.iter().enumerate() {
        let name = disk.name(index);
        let disk = open_disk(disk, name.clone(), own, config.limits.requests)?;
        resizers.push(disk.resizer());
        devices.push((name, Box::new(disk)));
    }
    for disk in &own.disks {
        let config = block_config(&disk.config, disk.id.clone())?;
        let device = Block::new(config, disk.backend.clone(), Engine::sync());
        resizers.push(device.resizer());
        devices.push((disk.id.clone(), Box::new(device)));
    }
    for (index, interface) in config.net.iter().enumerate() {
        let name = interface.name(index);
        let device = match interface.user {
            true => {
                let (device, helper) = open_user_net(interface, name.clone(), own)?;
                helpers.push(helper);
                device
            }
            false => open_net(interface, name.clone(), own, ram)?,
        };
        devices.push((name, Box::new(device)));
    }
    for net in &own.nets {
        let config = net_config(&net.config, net.id.clone());
        let device = Net::new(config, net.backends.clone());
        let device = device.map_err(Error::host("timer of a rate limit"))?;
        devices.push((net.id.clone(), Box::new(device)));
    }
    for (index, share) in config.fs.iter().enumerate() {
        let name = share.name(index);
        let (backend, helper) = open_fs(share, &name, ram)?;
        helpers.extend(helper);
        let device = Fs::new(&share.tag, backend).map_err(Error::host("file system device"))?;
        devices.push((name, Box::new(device)));
    }
    if let Some(link) = console {
        devices.push(("console".into(), Box::new(Console::new(link.clone()))));
    }
    if config.rng {
        let rng = Rng::limited(rng::limit()).map_err(Error::host("entropy device"))?;
        devices.push(("rng".into(), Box::new(rng)));
    }
    if let (Some(vsock), Some(endpoint)) = (&config.vsock, sockets) {
        let mut device = Vsock::open(vsock.cid, vsock.socket.as_deref(), endpoint)?;
        device.limit_memory(config.limits.memory.as_bytes());
        devices.push(("vsock".into(), Box::new(device)));
    }
    Ok(Devices {
        all: devices,
        resizers,
        helpers,
    })
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

/// Where the work of a configuration's devices, and of those that its owner brings, is done.
pub(crate) fn placement(config: &VmConfig, own: &OwnDevices) -> Placement {
    let busy = !config.disk.is_empty() || !config.net.is_empty() || config.vsock.is_some();
    if busy || !config.fs.is_empty() || !own.virtio.is_empty() || own.backends.has_devices() {
        Placement::IoThread
    } else if config.rng || config.console.is_some() {
        Placement::ControlThread
    } else {
        Placement::Nowhere
    }
}

fn open_disk(
    disk: &DiskConfig,
    name: String,
    own: &OwnBackends,
    requests: u16,
) -> Result<Block, Error> {
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
    let (image, wrapped) = own.around_disk(&name, image)?;
    let engine = match wrapped && image.file().is_none() {
        true => Engine::sync(),
        false => engine(disk, &*image, requests)?,
    };
    Ok(Block::new(block_config(disk, name)?, image, engine))
}

fn block_config(disk: &DiskConfig, name: String) -> Result<BlockConfig, Error> {
    let limit = disk.limit();
    let limiter = match limit.is_some() {
        true => {
            let limiter = RateLimiter::new(limit, Instant::now());
            Some(Arc::new(limiter.map_err(Error::host("disk's timer"))?))
        }
        false => None,
    };
    Ok(BlockConfig {
        serial: disk.serial.clone().unwrap_or_else(|| name.clone()),
        name,
        cache: match disk.cache {
            CacheMode::Writeback => block::CacheMode::Writeback,
            CacheMode::Writethrough => block::CacheMode::Writethrough,
            CacheMode::Unsafe => block::CacheMode::Unsafe,
        },
        queues: disk.queues,
        limiter,
        poll: disk.poll.as_duration(),
    })
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

/// The engine that was asked for, or the one that measures best (docs/performance.md): what the host's page cache answers is there
/// before a ring could be asked for it; what it does not answer can be under way many at once.
fn engine(disk: &DiskConfig, image: &dyn BlockBackend, requests: u16) -> Result<Engine, DiskError> {
    match disk.engine {
        Some(DiskEngine::IoUring) => {
            Engine::io_uring(image, requests).map_err(|source| DiskError::Ring {
                path: disk.path.clone(),
                source,
            })
        }
        None if disk.direct && disk.format == DiskFormat::Raw => {
            Ok(Engine::io_uring(image, requests).unwrap_or_else(|err| {
                log::info!("{}: no io_uring: {err}", disk.path.display());
                Engine::sync()
            }))
        }
        None | Some(DiskEngine::Sync) => Ok(Engine::sync()),
    }
}

fn open_net(
    interface: &NetConfig,
    name: String,
    own: &OwnBackends,
    ram: &GuestRam,
) -> Result<Net, Error> {
    let taps = match interface.fd {
        Some(fd) => vec![Tap::inherit(fd)?],
        None => Tap::open(
            interface.tap.as_deref().unwrap_or_default(),
            interface.queues,
        )?,
    };
    let config = net_config(interface, name);
    if interface.vhost {
        let kernels = taps
            .into_iter()
            .map(|tap| VhostNet::open(ram.clone(), tap, Net::vhost_features()))
            .collect::<Result<_, _>>()?;
        return Net::with_vhost(config, kernels).map_err(Error::host("vhost device"));
    }
    let backends = taps
        .into_iter()
        .map(|tap| own.around_net(&config.name, Arc::new(tap)))
        .collect::<Result<_, _>>()?;
    Net::new(config, backends).map_err(Error::host("timer of a rate limit"))
}

fn open_user_net(
    interface: &NetConfig,
    name: String,
    own: &OwnBackends,
) -> Result<(Net, Helper), Error> {
    let config = net_config(interface, name);
    let (passt, socket) = passt::start(&PasstConfig {
        name: &config.name,
        mac: config.mac,
        mtu: config.mtu,
        forward: &interface.forward,
    })?;
    let stream = FrameStream::new(socket).map_err(Error::host("connection with passt"))?;
    let backend = own.around_net(&config.name, Arc::new(stream))?;
    let net = Net::new(config, vec![backend]).map_err(Error::host("timer of a rate limit"))?;
    Ok((net, passt))
}

/// Whoever has the files, and the process that was started for that.
fn open_fs(
    share: &FsConfig,
    name: &str,
    ram: &GuestRam,
) -> Result<(VhostUser, Option<Helper>), Error> {
    let needed = Fs::needed_features();
    let path = match (&share.socket, &share.path) {
        (Some(socket), _) => {
            let backend = VhostUser::connect(socket, ram.clone(), fs::QUEUES, needed)?;
            return Ok((backend, None));
        }
        // `validate` has seen to it that there is one of them.
        (None, path) => path.as_deref().unwrap_or_else(|| "".as_ref()),
    };
    let virtiofsd = Virtiofsd::find()?;
    let config = VirtiofsdConfig {
        name,
        path,
        read_only: share.readonly,
    };
    let mut why = None;
    for sandbox in virtiofsd.sandboxes(path) {
        let (mut helper, socket) = virtiofsd.start(&config, *sandbox)?;
        match VhostUser::open(socket, ram.clone(), fs::QUEUES, needed) {
            Ok(backend) => {
                helper.answers().map_err(Error::host("pipe"))?;
                return Ok((backend, Some(helper)));
            }
            Err(VhostUserError::SetUp(_)) => {
                // What the first has to say is what is wrong.
                let err = virtiofsd.ended(helper);
                log::debug!("{name}: {err}");
                why.get_or_insert(err);
            }
            Err(err) => return Err(err.into()),
        }
    }
    Err(why.map_or_else(
        || Error::host("virtiofsd")(std::io::ErrorKind::NotFound.into()),
        Error::from,
    ))
}

fn net_config(interface: &NetConfig, name: String) -> net::NetConfig {
    net::NetConfig {
        mac: interface.effective_mac(&name).octets(),
        name,
        mtu: interface.mtu,
        limit: interface.limit(),
    }
}
