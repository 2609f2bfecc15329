//! The network device. Virtio 1.2, section 5.1: one receive queue (0) and one transmit queue (1).
//!
//! `rx` fills the driver's buffers with frames of a [`NetBackend`], `tx` sends what the driver has; here is what
//! surrounds them: features, configuration space, fairness. A frame that cannot be delivered or sent is dropped and
//! counted; no frame's content is a reason for the device to fail. The data half lives on an I/O thread. It waits for the
//! back end by its edges, so that frames for which there is no buffer wake nobody.

mod rx;
#[cfg(test)]
mod tests;
mod tx;

use std::sync::Arc;

use vmm_sys_util::epoll::EventSet;

use super::DeviceMetrics;
use super::device::{
    ActivateError, ActivationContext, EventSource, VirtioDevice, VirtioDeviceType, VirtioWorker,
    WorkerError, read_space,
};
use super::queue::ActiveQueue;
use crate::backend::tap::{NetBackend, Offloads};
use crate::metrics::Tally;

/// Feature bits (5.1.3).
pub mod features {
    /// The driver may leave checksums to the device.
    pub const CSUM: u64 = 1 << 0;
    /// The device may leave checksums to the driver.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// `mtu` is valid.
    pub const MTU: u64 = 1 << 3;
    /// `mac` is valid.
    pub const MAC: u64 = 1 << 5;
    /// The driver takes TCP over IPv4 unsegmented.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The driver takes TCP over IPv6 unsegmented.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The driver takes UDP unfragmented.
    pub const GUEST_UFO: u64 = 1 << 10;
    /// The device takes TCP over IPv4 unsegmented.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The device takes TCP over IPv6 unsegmented.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// The device takes UDP unfragmented.
    pub const HOST_UFO: u64 = 1 << 14;
    /// A received frame may be spread over several buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// `status` is valid.
    pub const STATUS: u64 = 1 << 16;
}

/// The header before each frame (5.1.6), `virtio_net_hdr_v1`, by its offsets and values.
mod header {
    pub(super) const NEEDS_CSUM: u8 = 1;
    pub(super) const GSO_NONE: u8 = 0;
    pub(super) const GSO_TCPV4: u8 = 1;
    pub(super) const GSO_UDP: u8 = 3;
    pub(super) const GSO_TCPV6: u8 = 4;
    pub(super) const FLAGS: usize = 0;
    pub(super) const GSO_TYPE: usize = 1;
    pub(super) const HDR_LEN: usize = 2;
    pub(super) const GSO_SIZE: usize = 4;
    pub(super) const CSUM_START: usize = 6;
    pub(super) const CSUM_OFFSET: usize = 8;
    pub(super) const NUM_BUFFERS: usize = 10;

    pub(super) type Bytes = [u8; crate::backend::tap::HEADER_SIZE];

    pub(super) fn get(header: &Bytes, at: usize) -> u16 {
        u16::from_le_bytes([header[at], header[at + 1]])
    }

    pub(super) fn put(header: &mut Bytes, at: usize, value: u16) {
        header[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
}

/// An Ethernet header, without which nothing is a frame.
const MIN_FRAME: u32 = 14;

/// Frames that one call moves in one direction, before the other direction and other devices have their turn.
const BATCH: u32 = 64;

const QUEUE_SIZES: &[u16] = &[256, 256];
const RX: u16 = 0;
const TX: u16 = 1;
const CONFIG_SIZE: usize = 12;
const LINK_UP: u16 = 1;

/// An address that is this name's for ever: locally administered, for one station.
pub fn mac_of(name: &str) -> [u8; 6] {
    // FNV-1a, 64 bits.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    // The upper bits depend on all of the name.
    let [a, b, c, d, e, f, _, _] = hash.to_be_bytes();
    [a & 0xfc | 0x02, b, c, d, e, f]
}

/// A network interface, as its driver sees it.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// For messages.
    pub name: String,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// The largest packet that the network takes, where the driver is to be told.
    pub mtu: Option<u16>,
}

/// The network device.
pub struct Net {
    config: NetConfig,
    backend: Arc<dyn NetBackend>,
}

impl Net {
    /// An interface whose frames go to and come from `backend`.
    pub fn new(config: NetConfig, backend: Arc<dyn NetBackend>) -> Self {
        Self { config, backend }
    }

    fn config_space(&self) -> [u8; CONFIG_SIZE] {
        let mut space = [0; CONFIG_SIZE];
        space[..6].copy_from_slice(&self.config.mac);
        space[6..8].copy_from_slice(&LINK_UP.to_le_bytes());
        space[8..10].copy_from_slice(&1_u16.to_le_bytes());
        space[10..].copy_from_slice(&self.config.mtu.unwrap_or_default().to_le_bytes());
        space
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> VirtioDeviceType {
        VirtioDeviceType::NET
    }

    fn device_features(&self) -> u64 {
        use features::*;
        let mut offered = MAC | STATUS | MRG_RXBUF | CSUM | HOST_TSO4 | HOST_TSO6;
        if self.config.mtu.is_some() {
            offered |= MTU;
        }
        let backend = self.backend.offloads();
        for (there, bits) in [
            (backend.csum, GUEST_CSUM),
            (backend.tso4, GUEST_TSO4),
            (backend.tso6, GUEST_TSO6),
            (backend.ufo, GUEST_UFO | HOST_UFO),
        ] {
            if there {
                offered |= bits;
            }
        }
        offered
    }

    fn queue_max_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = self.config_space();
        read_space(&space, offset, data);
    }

    fn activate(
        &mut self,
        context: ActivationContext,
    ) -> Result<Box<dyn VirtioWorker>, ActivateError> {
        let mut queues = context.queues.into_iter();
        let mut queue = |index| {
            queues
                .next()
                .filter(|queue| queue.index() == index)
                .ok_or(ActivateError::MissingQueue { index })
        };
        let (rx, tx) = (queue(RX)?, queue(TX)?);
        let taken = offloads(context.features);
        self.backend.set_offloads(taken)?;
        let log = Arc::new(Log::new(context.metrics));
        let mergeable = context.features & features::MRG_RXBUF != 0;
        Ok(Box::new(NetWorker {
            rx: rx::Receiver::new(rx, mergeable, taken, log.clone()),
            tx: tx::Sender::new(tx, context.features, log),
            backend: self.backend.clone(),
        }))
    }
}

/// What a driver takes that accepted these features. Nothing goes without checksums (5.1.3.1).
fn offloads(accepted: u64) -> Offloads {
    let csum = accepted & features::GUEST_CSUM != 0;
    let has = |bit| csum && accepted & bit != 0;
    Offloads {
        csum,
        tso4: has(features::GUEST_TSO4),
        tso6: has(features::GUEST_TSO6),
        ufo: has(features::GUEST_UFO),
    }
}

struct NetWorker {
    rx: rx::Receiver,
    tx: tx::Sender,
    backend: Arc<dyn NetBackend>,
}

impl VirtioWorker for NetWorker {
    fn event_sources(&self) -> Vec<EventSource> {
        vec![EventSource {
            fd: self.backend.fd(),
            token: 0,
            events: EventSet::IN | EventSet::EDGE_TRIGGERED,
        }]
    }

    fn process_queue(&mut self, index: u16) -> Result<(), WorkerError> {
        match index {
            RX => self.rx.receive(&*self.backend),
            TX => self.tx.send(&*self.backend),
            _ => Ok(()),
        }
    }

    fn process_event(&mut self, _token: u32, _events: EventSet) -> Result<(), WorkerError> {
        self.rx.receive(&*self.backend)
    }

    fn stop(self: Box<Self>) -> Vec<ActiveQueue> {
        vec![self.rx.stop(), self.tx.stop()]
    }
}

/// What was moved and what was lost: all is counted, less and less of the losses is logged.
#[derive(Debug)]
struct Log {
    metrics: Arc<DeviceMetrics>,
    /// Frames dropped for what they or their buffers are.
    dropped: Tally,
    /// Frames that the host refused or could not give.
    errors: Tally,
}

impl Log {
    fn new(metrics: Arc<DeviceMetrics>) -> Self {
        Self {
            dropped: metrics.guest_fault("dropped-frame"),
            errors: metrics.host_error(),
            metrics,
        }
    }

    /// A frame of so many bytes went to the driver.
    fn received(&self, len: u32) {
        self.metrics.bytes_read.add_owned(len.into());
    }

    /// A frame of so many bytes went to the host.
    fn sent(&self, len: u32) {
        self.metrics.bytes_written.add_owned(len.into());
    }

    fn dropped(&self, why: &str) {
        self.dropped.add(format_args!("a frame is dropped: {why}"));
    }

    fn failed(&self, what: &str, err: &std::io::Error) {
        self.errors.add(format_args!("{what} failed: {err}"));
    }
}
