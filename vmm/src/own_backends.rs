//! Back ends that the owner of a VM brings: disks and networks of its own behind the built-in virtio devices, and what it puts
//! around those that the configuration has.
//!
//! They outlive the machines of their VM: a restart of the guest gives its new devices the same back ends. One of the
//! configuration's is opened anew then, and wrapped anew.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ampoule_devices::backend::disk::BlockBackend;
use ampoule_devices::backend::net::NetBackend;
use ampoule_devices::virtio::net::MAX_PAIRS;

use crate::config::{CacheMode, DiskConfig, MacAddress, MemorySize, NetConfig, Span, VmConfig};
use crate::error::Error;
use crate::own_devices::OwnDeviceError;

/// A disk of the program's own ([`VmBuilder::disk`](crate::VmBuilder::disk)), as its guest sees it. The fields are those of
/// [`DiskConfig`] with the same names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskOptions {
    /// Its serial number; its id, unless it has one.
    pub serial: Option<String>,
    /// When data that was written is safe.
    pub cache: CacheMode,
    /// Number of request queues, 1 to 16.
    pub queues: u16,
    /// How long to watch a busy queue for its next request; at most 1 ms.
    pub poll: Duration,
    /// Requests in a second: the most that go.
    pub iops: Option<u64>,
    /// Requests that go at once after a rest.
    pub iops_burst: Option<u64>,
    /// Bytes in a second: the most that go.
    pub bandwidth: Option<MemorySize>,
    /// Bytes that go at once after a rest.
    pub bandwidth_burst: Option<MemorySize>,
}

impl Default for DiskOptions {
    fn default() -> Self {
        let config = DiskConfig::new("");
        Self {
            serial: config.serial,
            cache: config.cache,
            queues: config.queues,
            poll: config.poll.as_duration(),
            iops: config.iops,
            iops_burst: config.iops_burst,
            bandwidth: config.bandwidth,
            bandwidth_burst: config.bandwidth_burst,
        }
    }
}

impl DiskOptions {
    /// The same, as the configuration of a disk that has no image.
    fn into_config(self, id: &str) -> DiskConfig {
        DiskConfig {
            id: Some(id.to_owned()),
            serial: self.serial,
            cache: self.cache,
            queues: self.queues,
            poll: Span::from(self.poll),
            iops: self.iops,
            iops_burst: self.iops_burst,
            bandwidth: self.bandwidth,
            bandwidth_burst: self.bandwidth_burst,
            ..DiskConfig::new("")
        }
    }
}

/// A network of the program's own ([`VmBuilder::net`](crate::VmBuilder::net)), as its guest sees it. The fields are those of
/// [`NetConfig`] with the same names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetOptions {
    /// The guest's Ethernet address. Made of its id where none is given: the same for ever.
    pub mac: Option<MacAddress>,
    /// The MTU that the guest is told, 68 or more.
    pub mtu: Option<u16>,
    /// Frames in a second, in each direction: the most that go.
    pub pps: Option<u64>,
    /// Frames that go at once after a rest.
    pub pps_burst: Option<u64>,
    /// Bytes in a second, in each direction: the most that go.
    pub bandwidth: Option<MemorySize>,
    /// Bytes that go at once after a rest.
    pub bandwidth_burst: Option<MemorySize>,
}

impl NetOptions {
    /// The same, as the configuration of an interface that has no place.
    fn into_config(self, id: &str) -> NetConfig {
        NetConfig {
            id: Some(id.to_owned()),
            mac: self.mac,
            mtu: self.mtu,
            pps: self.pps,
            pps_burst: self.pps_burst,
            bandwidth: self.bandwidth,
            bandwidth_burst: self.bandwidth_burst,
            ..NetConfig::nothing()
        }
    }
}

/// Why the back end of a configured device cannot be wrapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WrapError {
    /// No device of the kind has this id.
    #[error("the configuration has no {kind} of that id")]
    Unknown {
        /// "disk" or "network".
        kind: &'static str,
        /// The ids that there are.
        known: Vec<String>,
    },
    /// Its frames do not come this way.
    #[error("the host's kernel moves its frames (vhost)")]
    Vhost,
    /// The wrapper itself failed.
    #[error("its wrapper failed")]
    Wrapper(#[source] io::Error),
}

impl WrapError {
    pub(crate) fn remedy(&self) -> Option<String> {
        match self {
            Self::Unknown { kind, known } if !known.is_empty() => {
                Some(format!("the {kind}s are: {}", known.join(", ")))
            }
            Self::Vhost => Some("leave vhost out for it".into()),
            Self::Unknown { .. } | Self::Wrapper(_) => None,
        }
    }
}

type Wrapper<T> = Box<dyn Fn(Arc<T>) -> io::Result<Arc<T>> + Send + Sync>;

/// A disk of the owner's.
pub(crate) struct OwnDisk {
    pub(crate) id: String,
    pub(crate) backend: Arc<dyn BlockBackend>,
    pub(crate) config: DiskConfig,
}

/// A network of the owner's.
pub(crate) struct OwnNet {
    pub(crate) id: String,
    /// One for each pair of queues.
    pub(crate) backends: Vec<Arc<dyn NetBackend>>,
    pub(crate) config: NetConfig,
}

/// What the owner of a VM brings for built-in devices.
#[derive(Default)]
pub(crate) struct OwnBackends {
    pub(crate) disks: Vec<OwnDisk>,
    pub(crate) nets: Vec<OwnNet>,
    around_disks: Wrappers<dyn BlockBackend>,
    around_nets: Wrappers<dyn NetBackend>,
}

/// What is put around back ends, by the ids of their devices, the innermost first.
struct Wrappers<T: ?Sized>(Vec<(String, Wrapper<T>)>);

impl<T: ?Sized> Default for Wrappers<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: ?Sized> Wrappers<T> {
    fn of(&self, id: &str) -> impl Iterator<Item = &Wrapper<T>> {
        let wrappers = self.0.iter().filter(move |(of, _)| of == id);
        wrappers.map(|(_, wrapper)| wrapper)
    }

    fn wrap(&self, id: &str, backend: Arc<T>) -> Result<Arc<T>, Error> {
        let wrapped = self
            .of(id)
            .try_fold(backend, |inner, wrapper| wrapper(inner));
        wrapped.map_err(|err| failed(id, WrapError::Wrapper(err)))
    }

    /// Sees to it that each has something to wrap.
    fn check(&self, kind: &'static str, ids: impl Iterator<Item = String>) -> Result<(), Error> {
        if self.0.is_empty() {
            return Ok(());
        }
        let known: BTreeSet<String> = ids.collect();
        let mut wanted = self.0.iter().map(|(id, _)| id);
        match wanted.find(|id| !known.contains(*id)) {
            None => Ok(()),
            Some(id) => {
                let known = known.into_iter().collect();
                Err(failed(id, WrapError::Unknown { kind, known }))
            }
        }
    }
}

fn failed(id: &str, source: WrapError) -> Error {
    Error::Wrap {
        device: id.to_owned(),
        source,
    }
}

impl OwnBackends {
    pub(crate) fn add_disk(
        &mut self,
        id: String,
        backend: Arc<dyn BlockBackend>,
        options: DiskOptions,
    ) {
        let config = options.into_config(&id);
        self.disks.push(OwnDisk {
            id,
            backend,
            config,
        });
    }

    pub(crate) fn add_net(
        &mut self,
        id: String,
        backends: Vec<Arc<dyn NetBackend>>,
        options: NetOptions,
    ) {
        let config = options.into_config(&id);
        self.nets.push(OwnNet {
            id,
            backends,
            config,
        });
    }

    pub(crate) fn add_disk_wrapper(&mut self, id: String, wrapper: Wrapper<dyn BlockBackend>) {
        self.around_disks.0.push((id, wrapper));
    }

    pub(crate) fn add_net_wrapper(&mut self, id: String, wrapper: Wrapper<dyn NetBackend>) {
        self.around_nets.0.push((id, wrapper));
    }

    /// Whether there are devices of the owner's back ends.
    pub(crate) fn has_devices(&self) -> bool {
        !self.disks.is_empty() || !self.nets.is_empty()
    }

    /// The ids of the devices.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &String> {
        let disks = self.disks.iter().map(|disk| &disk.id);
        disks.chain(self.nets.iter().map(|net| &net.id))
    }

    /// What is around the back end of a configured disk, and whether there is something.
    pub(crate) fn around_disk(
        &self,
        id: &str,
        backend: Arc<dyn BlockBackend>,
    ) -> Result<(Arc<dyn BlockBackend>, bool), Error> {
        let wrapped = self.around_disks.of(id).next().is_some();
        Ok((self.around_disks.wrap(id, backend)?, wrapped))
    }

    /// What is around a back end of a configured network.
    pub(crate) fn around_net(
        &self,
        id: &str,
        backend: Arc<dyn NetBackend>,
    ) -> Result<Arc<dyn NetBackend>, Error> {
        self.around_nets.wrap(id, backend)
    }

    /// Judges what can be judged without the host.
    pub(crate) fn check(&self, config: &VmConfig) -> Result<(), Error> {
        for disk in &self.disks {
            disk.config.check_device(&disk.id)?;
        }
        for net in &self.nets {
            net.config.check_device(&net.id)?;
            let (pairs, max) = (net.backends.len(), MAX_PAIRS.into());
            if !(1..=max).contains(&pairs) {
                return Err(Error::OwnDevice {
                    device: net.id.clone(),
                    source: OwnDeviceError::Pairs { pairs, max },
                });
            }
        }
        let disks = config.disk.iter().enumerate();
        let disks = disks.map(|(index, disk)| disk.name(index));
        self.around_disks.check("disk", disks)?;
        let nets = config.net.iter().enumerate();
        let nets = nets.map(|(index, net)| (net.name(index), net.vhost));
        self.around_nets
            .check("network", nets.clone().map(|(id, _)| id))?;
        for (id, vhost) in nets {
            if vhost && self.around_nets.of(&id).next().is_some() {
                return Err(failed(&id, WrapError::Vhost));
            }
        }
        Ok(())
    }
}
