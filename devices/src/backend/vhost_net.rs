//! vhost-net: the host's kernel moves frames between a pair of queues and a tap, without a thread of ours.
//!
//! Opened before the guest runs. A queue is given to the kernel as it is and taken back where the kernel left it; in between
//! nothing else may touch its rings.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;
use vhost::net::VhostNet as _;
use vhost::vhost_kern::net::Net;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::QueueT;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::net::NetBackend;
use super::tap::Tap;
use crate::virtio::device::GuestMemory;
use crate::virtio::queue::ActiveQueue;

/// Why vhost-net cannot be used.
#[derive(Debug, Error)]
pub enum VhostNetError {
    /// The host has none for us.
    #[error("cannot open /dev/vhost-net")]
    Open(#[source] io::Error),
    /// A setting was refused.
    #[error("cannot set up vhost-net")]
    SetUp(#[source] io::Error),
    /// The host's kernel is too old.
    #[error("vhost-net lacks the features {missing:#x}")]
    Features {
        /// Their bits.
        missing: u64,
    },
}

impl VhostNetError {
    /// What a person can do about it.
    pub fn remedy(&self) -> Option<String> {
        let without = "leave out vhost=on";
        match self {
            Self::Open(source) => match source.kind() {
                io::ErrorKind::NotFound => {
                    Some(format!("load the driver: modprobe vhost_net; or {without}"))
                }
                io::ErrorKind::PermissionDenied => Some(format!(
                    "give this user read and write access to /dev/vhost-net, or {without}"
                )),
                _ => None,
            },
            Self::Features { .. } | Self::SetUp(_) => Some(without.into()),
        }
    }
}

/// The two queues of a pair, as the kernel counts them.
pub const RX: usize = 0;
/// The second.
pub const TX: usize = 1;

/// The kernel's end of a pair of queues.
pub struct VhostNet {
    kernel: Net<Arc<GuestMemory>>,
    tap: Arc<Tap>,
    /// Rung when the driver has broken a queue, or the tap has not taken a frame.
    errors: EventFd,
    running: AtomicBool,
}

impl VhostNet {
    /// Opens it for a guest with this memory and a queue of this tap. `needed` are features that it must have.
    ///
    /// # Errors
    /// [`VhostNetError`].
    pub fn open(memory: GuestMemory, tap: Tap, needed: u64) -> Result<Self, VhostNetError> {
        let kernel = Net::new(Arc::new(memory.clone())).map_err(|err| match err {
            vhost::Error::VhostOpen(source) => VhostNetError::Open(source),
            other => VhostNetError::SetUp(io::Error::other(other)),
        })?;
        let failed = |err| VhostNetError::SetUp(to_io(err));
        kernel.set_owner().map_err(failed)?;
        let missing = needed & !kernel.get_features().map_err(failed)?;
        if missing != 0 {
            return Err(VhostNetError::Features { missing });
        }
        let regions: Vec<_> = memory
            .iter()
            .map(|region| VhostUserMemoryRegionInfo {
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
                ..VhostUserMemoryRegionInfo::default()
            })
            .collect();
        kernel.set_mem_table(&regions).map_err(failed)?;
        let errors = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        Ok(Self {
            kernel,
            tap: Arc::new(tap),
            errors: errors.map_err(VhostNetError::SetUp)?,
            running: AtomicBool::new(false),
        })
    }

    /// Its tap.
    pub fn tap(&self) -> &Arc<Tap> {
        &self.tap
    }

    /// Becomes readable when the kernel has met an error, of the driver's (it leaves the queue alone until the next notification)
    /// or of the tap's (the frame is lost); valid for as long as this lives.
    pub fn errors(&self) -> RawFd {
        self.errors.as_raw_fd()
    }

    /// How many errors there were since the last time.
    pub fn take_errors(&self) -> u64 {
        self.errors.read().unwrap_or_default()
    }

    /// What the driver accepted, before it gives queues.
    ///
    /// # Errors
    /// The host's.
    pub fn set_features(&self, accepted: u64) -> io::Result<()> {
        // Of an earlier driver.
        self.take_errors();
        self.kernel.set_features(accepted).map_err(to_io)
    }

    /// Gives a queue to the kernel, which lets it lie until [`Self::start`]. Its interrupt is `call`.
    ///
    /// # Errors
    /// The host's.
    pub fn give(&self, index: usize, queue: &ActiveQueue, call: &EventFd) -> io::Result<()> {
        let ring = queue.ring();
        let place = VringConfigData {
            queue_max_size: ring.max_size(),
            queue_size: ring.size(),
            flags: 0,
            desc_table_addr: ring.desc_table(),
            used_ring_addr: ring.used_ring(),
            avail_ring_addr: ring.avail_ring(),
            log_addr: None,
        };
        let kernel = &self.kernel;
        kernel
            .set_vring_num(index, ring.size())
            .and_then(|()| kernel.set_vring_addr(index, &place))
            .and_then(|()| kernel.set_vring_base(index, ring.next_avail()))
            .and_then(|()| kernel.set_vring_err(index, &self.errors))
            .and_then(|()| kernel.set_vring_call(index, call))
            .and_then(|()| kernel.set_vring_kick(index, queue.notification().event()))
            .map_err(to_io)
    }

    /// Has the kernel work on both queues, or stop. After it has stopped, it touches nothing of the driver's memory.
    ///
    /// # Errors
    /// The host's.
    pub fn set_running(&self, running: bool) -> io::Result<()> {
        let file = running.then(|| self.tap.file());
        self.running.store(running, Ordering::Release);
        // Stopping is to go as far as it can.
        let rx = self.kernel.set_backend(RX, file);
        let tx = self.kernel.set_backend(TX, file);
        rx.and(tx).map_err(to_io)
    }

    /// Whether the kernel works on the queues.
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    /// Takes back a queue on which the kernel does not work any more.
    ///
    /// # Errors
    /// The host's.
    pub fn take_back(&self, index: usize, queue: &mut ActiveQueue) -> io::Result<()> {
        let base = self.kernel.get_vring_base(index).map_err(to_io)?;
        // The kernel's index is of 16 bits, as the ring's is.
        queue.set_next_avail(base as u16);
        Ok(())
    }

    /// Whether the tap's queue has a share of the frames.
    ///
    /// # Errors
    /// The host's.
    pub fn set_enabled(&self, enabled: bool) -> io::Result<()> {
        // The kernel takes no queue of a tap that has no share.
        if enabled {
            self.tap.set_enabled(true)?;
            self.set_running(true)
        } else {
            self.set_running(false)?;
            self.tap.set_enabled(false)
        }
    }
}

fn to_io(err: vhost::Error) -> io::Error {
    match err {
        vhost::Error::IoctlError(source) | vhost::Error::IOError(source) => source,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_of_the_host_has_a_remedy() {
        let open = |code| VhostNetError::Open(io::Error::from_raw_os_error(code)).remedy();
        let missing = open(libc::ENOENT).unwrap();
        assert!(missing.contains("modprobe vhost_net"), "{missing}");
        assert!(open(libc::EACCES).unwrap().contains("access"));
        let old = VhostNetError::Features { missing: 1 << 32 };
        assert_eq!(old.to_string(), "vhost-net lacks the features 0x100000000");
        assert!(old.remedy().unwrap().contains("vhost=on"));
    }
}
