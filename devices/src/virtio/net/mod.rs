//! The network device. Virtio 1.2, section 5.1: pairs of a receive queue and a transmit queue, and where there are several, a
//! control queue behind them.
//!
//! `rx` fills the driver's buffers with frames of a [`NetBackend`], `tx` sends what the driver has; here is what
//! surrounds them: features, configuration space, fairness. A frame that cannot be delivered or sent is dropped and
//! counted; no frame's content is a reason for the device to fail. The data half lives on an I/O thread. It waits for the
//! back end by its edges, so that frames for which there is no buffer wake nobody.
//!
//! A rate limit holds for each direction by itself. Frames that it holds back wait where they are, in the driver's queue or in
//! the back end, and the other direction goes on.

mod control;
mod gate;
mod rx;
#[cfg(test)]
mod tests;
mod tx;
mod vhost;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::epoll::EventSet;

use super::DeviceMetrics;
use super::device::{
    ActivateError, ActivationContext, EventSource, VirtioDevice, VirtioDeviceType, VirtioWorker,
    WorkerError, read_space,
};
use super::queue::ActiveQueue;
use crate::backend::net::{NetBackend, Offloads};
use crate::backend::vhost_net::VhostNet;
use crate::metrics::{Counter, Tally};
use crate::rate_limiter::{RateLimit, RateLimiter};
use control::Control;
use gate::Gate;
use vhost::VhostWorker;

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
    /// There is a control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// There are several pairs of queues; `max_virtqueue_pairs` is valid.
    pub const MQ: u64 = 1 << 22;
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

    pub(super) type Bytes = [u8; crate::backend::net::HEADER_SIZE];

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

/// The most pairs of queues.
pub const MAX_PAIRS: u16 = 8;

/// Sizes of the queues of all pairs, and of the control queue.
const QUEUE_SIZES: [u16; 2 * MAX_PAIRS as usize + 1] = [256; _];

/// What the worker waits for besides its queues. The back ends of the pairs come first.
mod token {
    pub(super) const RX_LIMIT: u32 = super::MAX_PAIRS as u32;
    pub(super) const TX_LIMIT: u32 = RX_LIMIT + 1;
}

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
    /// What goes in each direction.
    pub limit: RateLimit,
}

/// The network device.
pub struct Net {
    config: NetConfig,
    /// One for each pair of queues.
    backends: Vec<Arc<dyn NetBackend>>,
    /// The host's kernel, where that moves the frames: one for each pair.
    kernels: Vec<Arc<VhostNet>>,
    rx_limiter: Option<Arc<RateLimiter>>,
    tx_limiter: Option<Arc<RateLimiter>>,
}

impl Net {
    /// An interface whose frames go to and come from `backends`: as many pairs of queues, [`MAX_PAIRS`] at most, of which the
    /// first is enabled. All of them leave and take the same.
    ///
    /// # Errors
    /// The host has no timer for a limit; `InvalidInput` where there are no back ends, or too many.
    pub fn new(config: NetConfig, backends: Vec<Arc<dyn NetBackend>>) -> io::Result<Self> {
        if !(1..=usize::from(MAX_PAIRS)).contains(&backends.len()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let limiter = || match config.limit {
            limit if limit.is_some() => {
                RateLimiter::new(limit, Instant::now()).map(|limiter| Some(Arc::new(limiter)))
            }
            _ => Ok(None),
        };
        Ok(Self {
            rx_limiter: limiter()?,
            tx_limiter: limiter()?,
            config,
            backends,
            kernels: Vec::new(),
        })
    }

    /// An interface whose frames the host's kernel moves. There is no limit for them.
    ///
    /// # Errors
    /// `InvalidInput` where there are no pairs, or too many, or a limit.
    pub fn with_vhost(config: NetConfig, kernels: Vec<VhostNet>) -> io::Result<Self> {
        if config.limit.is_some() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let taps = kernels.iter().map(|kernel| kernel.tap().clone() as _);
        let mut net = Self::new(config, taps.collect())?;
        net.kernels = kernels.into_iter().map(Arc::new).collect();
        Ok(net)
    }

    /// The features that vhost-net must have.
    pub fn vhost_features() -> u64 {
        vhost::OF_THE_KERNEL
    }

    fn max_pairs(&self) -> u16 {
        self.backends.len() as u16
    }

    fn config_space(&self) -> [u8; CONFIG_SIZE] {
        let mut space = [0; CONFIG_SIZE];
        space[..6].copy_from_slice(&self.config.mac);
        space[6..8].copy_from_slice(&LINK_UP.to_le_bytes());
        space[8..10].copy_from_slice(&self.max_pairs().to_le_bytes());
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
        let mut offered = MAC | STATUS | MRG_RXBUF;
        let (takes, gives) = (self.backends[0].takes(), self.backends[0].offloads());
        for (there, bits) in [
            (self.config.mtu.is_some(), MTU),
            (self.max_pairs() > 1, CTRL_VQ | MQ),
            (takes.csum, CSUM),
            (takes.csum && takes.tso4, HOST_TSO4),
            (takes.csum && takes.tso6, HOST_TSO6),
            (takes.csum && takes.ufo, HOST_UFO),
            (gives.csum, GUEST_CSUM),
            (gives.csum && gives.tso4, GUEST_TSO4),
            (gives.csum && gives.tso6, GUEST_TSO6),
            (gives.csum && gives.ufo, GUEST_UFO),
        ] {
            if there {
                offered |= bits;
            }
        }
        offered
    }

    fn queue_max_sizes(&self) -> &[u16] {
        match self.backends.len() {
            1 => &QUEUE_SIZES[..2],
            pairs => &QUEUE_SIZES[..2 * pairs + 1],
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = self.config_space();
        read_space(&space, offset, data);
    }

    fn activate(
        &mut self,
        context: ActivationContext,
    ) -> Result<Box<dyn VirtioWorker>, ActivateError> {
        let features = context.features;
        let Queues { pairs, control } = Queues::sort(context.queues, features, self.max_pairs())?;
        let taken = offloads(features);
        let log = Arc::new(Log::new(context.metrics));
        let control = control.map(|queue| Control::new(queue, log.clone()));
        for (index, backend) in self.backends.iter().enumerate() {
            backend.set_enabled(index == 0)?;
        }
        self.backends[0].set_offloads(taken)?;
        if !self.kernels.is_empty() {
            let worker = VhostWorker::start(
                &self.kernels,
                pairs,
                control,
                (features, &*context.interrupt),
                log.clone(),
            )?;
            return Ok(Box::new(worker));
        }
        let pairs = pairs
            .into_iter()
            .zip(&self.backends)
            .enumerate()
            .map(|(index, ((rx, tx), backend))| Pair {
                enabled: index == 0,
                rx: rx::Receiver::new(rx, features, taken, log.clone()),
                tx: tx::Sender::new(tx, features, log.clone()),
                backend: backend.clone(),
            })
            .collect();
        Ok(Box::new(NetWorker {
            pairs,
            control,
            rx_gate: Gate::new(self.rx_limiter.clone()),
            tx_gate: Gate::new(self.tx_limiter.clone()),
            log,
            turn: 0,
        }))
    }
}

/// The queues of a driver, by what they are for.
struct Queues {
    /// Without a gap: pairs behind one that is missing, or half there, cannot be used.
    pairs: Vec<(ActiveQueue, ActiveQueue)>,
    control: Option<ActiveQueue>,
}

impl Queues {
    /// The control queue is behind all pairs where several were negotiated, else behind the first (5.1.2).
    fn sort(queues: Vec<ActiveQueue>, features: u64, max: u16) -> Result<Self, ActivateError> {
        let max = if features & features::MQ != 0 { max } else { 1 };
        let mut queues = queues.into_iter().peekable();
        let mut next = |index| {
            while queues.next_if(|queue| queue.index() < index).is_some() {}
            queues.next_if(|queue| queue.index() == index)
        };
        let mut pairs = Vec::new();
        for pair in 0..max {
            match (next(2 * pair), next(2 * pair + 1)) {
                (Some(rx), Some(tx)) => pairs.push((rx, tx)),
                (None, _) if pair == 0 => return Err(ActivateError::MissingQueue { index: 0 }),
                (_, None) if pair == 0 => return Err(ActivateError::MissingQueue { index: 1 }),
                _ => break,
            }
        }
        let control = match features & features::CTRL_VQ {
            0 => None,
            _ => next(2 * max),
        };
        Ok(Self { pairs, control })
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

/// A pair of queues, and where its frames go and come from.
struct Pair {
    rx: rx::Receiver,
    tx: tx::Sender,
    backend: Arc<dyn NetBackend>,
    enabled: bool,
}

struct NetWorker {
    pairs: Vec<Pair>,
    control: Option<Control>,
    rx_gate: Gate,
    tx_gate: Gate,
    log: Arc<Log>,
    /// The pair that comes first when a gate opens; each in its turn.
    turn: usize,
}

impl NetWorker {
    fn receive(&mut self, pair: usize) -> Result<(), WorkerError> {
        match self.pairs.get_mut(pair) {
            Some(pair) if pair.enabled => pair.rx.receive(&*pair.backend, &mut self.rx_gate),
            _ => Ok(()),
        }
    }

    fn send(&mut self, pair: usize) -> Result<(), WorkerError> {
        match self.pairs.get_mut(pair) {
            Some(pair) if pair.enabled => pair.tx.send(&*pair.backend, &mut self.tx_gate),
            _ => Ok(()),
        }
    }

    /// All pairs, each time beginning with another.
    fn in_turn(&mut self) -> impl Iterator<Item = usize> + use<> {
        let (count, first) = (self.pairs.len(), self.turn);
        self.turn = (first + 1) % count;
        (0..count).map(move |at| (first + at) % count)
    }

    fn obey(&mut self) -> Result<(), WorkerError> {
        let Some(control) = &mut self.control else {
            return Ok(());
        };
        let (pairs, log) = (&mut self.pairs, &self.log);
        control.answer(|wanted| {
            enable(pairs.len(), wanted, log, |index, enabled| {
                let pair = &mut pairs[index];
                pair.backend.set_enabled(enabled)?;
                pair.enabled = enabled;
                Ok(())
            })
        })?;
        // What came before they were enabled has been notified.
        for pair in 0..self.pairs.len() {
            self.receive(pair)?;
            self.send(pair)?;
        }
        Ok(())
    }
}

/// Enables the first `wanted` of `count` pairs, and no other, by `set`.
fn enable(
    count: usize,
    wanted: u16,
    log: &Log,
    mut set: impl FnMut(usize, bool) -> io::Result<()>,
) -> Result<(), &'static str> {
    let wanted = usize::from(wanted);
    if !(1..=count).contains(&wanted) {
        return Err("the driver wants pairs of queues that there are not");
    }
    for pair in 0..count {
        if let Err(err) = set(pair, pair < wanted) {
            log.failed("enabling a pair of queues", &err);
            return Err("the host does not enable or disable a pair of queues");
        }
    }
    Ok(())
}

impl VirtioWorker for NetWorker {
    fn event_sources(&self) -> Vec<EventSource> {
        let backends = (0..).zip(&self.pairs).map(|(token, pair)| EventSource {
            fd: pair.backend.fd(),
            token,
            events: EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED,
        });
        backends
            .chain(self.rx_gate.event_source(token::RX_LIMIT))
            .chain(self.tx_gate.event_source(token::TX_LIMIT))
            .collect()
    }

    fn process_queue(&mut self, index: u16) -> Result<(), WorkerError> {
        let pair = usize::from(index / 2);
        match index % 2 {
            _ if pair >= self.pairs.len() => self.obey(),
            0 => self.receive(pair),
            _ => self.send(pair),
        }
    }

    fn process_event(&mut self, token: u32, _events: EventSet) -> Result<(), WorkerError> {
        match token {
            token::TX_LIMIT => {
                self.tx_gate.open();
                self.in_turn().try_for_each(|pair| self.send(pair))
            }
            token::RX_LIMIT => {
                self.rx_gate.open();
                self.in_turn().try_for_each(|pair| self.receive(pair))
            }
            pair => {
                let pair = pair as usize;
                if let Some(it) = self.pairs.get(pair)
                    && let Err(err) = it.backend.flush()
                {
                    self.log.failed("sending", &err);
                }
                self.receive(pair)?;
                // Room is told of by an edge, as frames are, and both edges may be one.
                match self.pairs.get(pair) {
                    Some(it) if it.tx.is_blocked() => self.send(pair),
                    _ => Ok(()),
                }
            }
        }
    }

    fn stop(self: Box<Self>) -> Vec<ActiveQueue> {
        let pairs = self.pairs.into_iter();
        let mut queues: Vec<_> = pairs
            .flat_map(|pair| [pair.rx.stop(), pair.tx.stop()])
            .collect();
        queues.extend(self.control.map(Control::stop));
        queues
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
    /// Frames for a peer that has gone.
    unconnected: Arc<Counter>,
}

impl Log {
    fn new(metrics: Arc<DeviceMetrics>) -> Self {
        Self {
            dropped: metrics.guest_fault("dropped-frame"),
            errors: metrics.host_error(),
            unconnected: metrics.event("unconnected-frame"),
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
        // What the end of a connection makes fail is not worth a word more than that end.
        if err.kind() == io::ErrorKind::NotConnected {
            self.unconnected.add(1);
            return;
        }
        self.errors.add(format_args!("{what} failed: {err}"));
    }
}
