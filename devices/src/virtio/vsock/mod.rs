//! The socket device. Virtio 1.2, section 5.10: stream sockets between guest and host, without a network.
//!
//! On the host they are Unix sockets, by the convention of other VMMs. The device may listen at PATH: a program that connects
//! there writes `CONNECT <port>\n`, reads `OK <host port>\n` when the guest has accepted, and then talks to the guest's port.
//! A guest that connects to port P of the host (CID 2) reaches the socket at `PATH_P`. The program that runs the VM has its own end
//! of them, a [`VsockEndpoint`], which needs no path; a port that is listened on there is not looked for elsewhere.
//!
//! `packet` is the header, `connection` one stream with its credit, `muxer` all of them; here are the rings.
//!
//! # Why not the virtio-vsock crate
//! Its `VsockPacket` (0.12) is a chain and its header in one, and wants a header that is whole in the first descriptor and a payload that is
//! whole in the same or in the second: `from_tx_virtq_chain` reads no third descriptor and fails with `DescriptorLengthTooSmall` or
//! `FragmentedMemory`. A device may not assume that (virtio 1.2, 2.7.4.1), and Linux since 6.7 sends MSG_ZEROCOPY as up to 18
//! descriptors. It takes chains only as `virtio-queue` walks them, which does not tell a malformed one from a good one (see
//! [`super::queue`]). The header by itself, the one part that is left, has no safe constructor there.
//!
//! Everything but the control half runs on the device's I/O thread.

mod connection;
mod counters;
mod endpoint;
mod muxer;
mod packet;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use vmm_sys_util::epoll::EventSet;

use super::device::{
    ActivateError, ActivationContext, EventSource, GuestMemory, VirtioDevice, VirtioDeviceType,
    VirtioWorker, WorkerError,
};
use super::queue::{ActiveQueue, Chain, slices};
use crate::backend::unix_socket::{ListeningSocket, MAX_PATH, SocketError};
use connection::BUF_ALLOC;
use counters::Counters;
pub use endpoint::{
    EndpointLife, MAX_VSOCK_BACKLOG, VsockEndpoint, VsockIncoming, VsockListener, VsockStream,
};
use muxer::{DEFAULT_SPACE, HostSide, Muxer};
use packet::{HEADER_SIZE, Header, op};

/// The lowest context id of a guest: those below are the hypervisor's, the loopback's and the host's.
pub const MIN_GUEST_CID: u32 = 3;
/// The longest path of the socket: that of a port has `_` and up to ten digits more.
pub const MAX_SOCKET_PATH: usize = MAX_PATH - 11;

/// Feature bits (5.10.3).
pub mod features {
    /// Stream sockets.
    pub const STREAM: u64 = 1 << 0;
}

const RX: u16 = 0;
const TX: u16 = 1;
const QUEUE_SIZE: u16 = 256;
const QUEUE_SIZES: &[u16] = &[QUEUE_SIZE; 3];
/// The most bytes behind the header of a packet to the guest, as its own drivers send them.
const MAX_PAYLOAD: usize = 64 << 10;

/// The socket device.
pub struct Vsock {
    cid: u32,
    host: Arc<HostSide>,
    space: u32,
}

impl Vsock {
    /// The device of the guest with this context id, which this program reaches by `endpoint`, and others by the socket at
    /// `path`, if there is to be one.
    ///
    /// # Errors
    /// The socket cannot be listened on.
    pub fn open(
        cid: u32,
        path: Option<&Path>,
        endpoint: &VsockEndpoint,
    ) -> Result<Self, SocketError> {
        let listener = path.map(|path| ListeningSocket::open(path, MAX_SOCKET_PATH));
        let host = HostSide::new(listener.transpose()?, endpoint.clone());
        Ok(Self {
            cid,
            host: Arc::new(host.map_err(SocketError::Wait)?),
            space: DEFAULT_SPACE,
        })
    }

    /// Keeps at most so many bytes of the guest's that its peers have yet to read, besides the 16 KiB that each connection has in
    /// any case.
    pub fn limit_memory(&mut self, bytes: u64) {
        self.space = u32::try_from(bytes).unwrap_or(u32::MAX);
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> VirtioDeviceType {
        VirtioDeviceType::VSOCK
    }

    fn device_features(&self) -> u64 {
        features::STREAM
    }

    fn queue_max_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = u64::from(self.cid).to_le_bytes();
        let known = usize::try_from(offset).ok();
        let mut rest = known
            .and_then(|offset| space.get(offset..))
            .unwrap_or_default()
            .iter();
        data.fill_with(|| rest.next().copied().unwrap_or(0));
    }

    fn activate(
        &mut self,
        context: ActivationContext,
    ) -> Result<Box<dyn VirtioWorker>, ActivateError> {
        let (mut rx, mut tx, mut others) = (None, None, Vec::new());
        for queue in context.queues {
            match queue.index() {
                RX => rx = Some(queue),
                TX => tx = Some(queue),
                _ => others.push(queue),
            }
        }
        let counters = Arc::new(Counters::new(context.metrics));
        let mut muxer = Muxer::new(self.cid, self.host.clone(), counters.clone());
        muxer.set_space(self.space);
        Ok(Box::new(VsockWorker {
            rx: rx.ok_or(ActivateError::MissingQueue { index: RX })?,
            tx: tx.ok_or(ActivateError::MissingQueue { index: TX })?,
            others,
            rx_chain: Chain::new(),
            rx_held: false,
            tx_chain: Chain::new(),
            tx_stalled: false,
            payload: Vec::new(),
            muxer,
            host: self.host.clone(),
            counters,
        }))
    }
}

struct VsockWorker {
    rx: ActiveQueue,
    tx: ActiveQueue,
    /// The event queue: its buffers wait for a migration.
    others: Vec<ActiveQueue>,
    rx_chain: Chain,
    /// `rx_chain` has been taken and not been filled.
    rx_held: bool,
    tx_chain: Chain,
    /// The guest's packets wait until it has taken answers.
    tx_stalled: bool,
    /// A packet's bytes on their way.
    payload: Vec<u8>,
    muxer: Muxer,
    host: Arc<HostSide>,
    counters: Arc<Counters>,
}

impl VirtioWorker for VsockWorker {
    fn event_sources(&self) -> Vec<EventSource> {
        vec![EventSource {
            fd: self.host.epoll.as_raw_fd(),
            token: 0,
            events: EventSet::IN,
        }]
    }

    fn process_queue(&mut self, index: u16) -> Result<(), WorkerError> {
        match index {
            RX => self.send(),
            TX => {
                self.receive()?;
                self.send()
            }
            _ => Ok(()),
        }
    }

    fn process_event(&mut self, _token: u32, _events: EventSet) -> Result<(), WorkerError> {
        self.muxer.on_host();
        self.send()
    }

    fn stop(mut self: Box<Self>) -> Vec<ActiveQueue> {
        if self.rx_held {
            // Without a header the driver takes it for nothing. A ring that cannot be written is of no use to it either way.
            let _ = self.rx.push(self.rx_chain.head(), 0);
        }
        let mut queues = vec![self.rx, self.tx];
        queues.append(&mut self.others);
        queues
    }
}

impl VsockWorker {
    /// Takes packets from the guest: at most as many as the queue has, so that others on the thread have their turn.
    fn receive(&mut self) -> Result<(), WorkerError> {
        let mut budget = QUEUE_SIZE;
        self.tx.disable_notification()?;
        loop {
            while budget > 0 && self.muxer.has_room() && self.tx.pop(&mut self.tx_chain)? {
                budget -= 1;
                self.take_packet();
                self.tx.push(self.tx_chain.head(), 0)?;
            }
            self.tx.notify()?;
            if !self.muxer.has_room() {
                self.tx_stalled = true;
                return Ok(());
            }
            if budget == 0 {
                return self.tx.come_back();
            }
            if !self.tx.enable_notification()? {
                return Ok(());
            }
            self.tx.disable_notification()?;
        }
    }

    fn take_packet(&mut self) {
        let (chain, memory) = (&self.tx_chain, self.tx.memory());
        let mut bytes = [0; HEADER_SIZE];
        if chain.read_start(memory, &mut bytes) < HEADER_SIZE {
            return self.counters.bad_packet("a packet without a whole header");
        }
        let header = Header::parse(&bytes);
        // Only RW has a payload; what another packet has behind its header says nothing.
        let len = if header.op == op::RW { header.len } else { 0 };
        if len > chain.readable_len() - HEADER_SIZE as u32 {
            self.counters.bad_packet("a packet shorter than it says");
            return self.refuse(&header);
        }
        if len > BUF_ALLOC {
            self.counters.bad_packet("a packet beyond its credit");
            return self.refuse(&header);
        }
        read_payload(chain, memory, len, &mut self.payload);
        self.counters.guest_sent(len);
        self.muxer.on_packet(&header, &self.payload);
    }

    /// Ends the connection that a malformed packet is of.
    fn refuse(&mut self, header: &Header) {
        // As an operation there is not, which has the same end whatever the connection's state.
        let header = Header { op: 0, ..*header };
        self.muxer.on_packet(&header, &[]);
    }

    /// Gives packets to the guest, as long as it has buffers: again at most as many as the queue has.
    fn send(&mut self) -> Result<(), WorkerError> {
        let mut budget = QUEUE_SIZE;
        self.rx.disable_notification()?;
        while self.muxer.has_packets() {
            if budget == 0 {
                self.rx.come_back()?;
                break;
            }
            if !self.rx_held && !self.rx.pop(&mut self.rx_chain)? {
                if self.rx.enable_notification()? {
                    self.rx.disable_notification()?;
                    continue;
                }
                break;
            }
            budget -= 1;
            self.rx_held = true;
            self.give_packet()?;
        }
        self.rx.notify()?;
        if self.tx_stalled && self.muxer.has_room() {
            self.tx_stalled = false;
            self.tx.come_back()?;
        }
        Ok(())
    }

    /// Fills the chain that is held, if there is a packet after all.
    fn give_packet(&mut self) -> Result<(), WorkerError> {
        let (chain, memory) = (&self.rx_chain, self.rx.memory());
        let space = (chain.writable_len() as usize).saturating_sub(HEADER_SIZE);
        let written = if space == 0 {
            self.counters.bad_buffer();
            0
        } else {
            self.payload.resize(space.min(MAX_PAYLOAD), 0);
            let Some(header) = self.muxer.next_packet(&mut self.payload) else {
                return Ok(());
            };
            let written = HEADER_SIZE as u32 + header.len;
            write_start(chain, memory, 0, &header.to_bytes())?;
            let payload = &self.payload[..header.len as usize];
            write_start(chain, memory, HEADER_SIZE as u32, payload)?;
            self.counters.guest_got(header.len);
            written
        };
        self.rx_held = false;
        self.rx.push(self.rx_chain.head(), written)
    }
}

/// Copies `len` bytes from behind the header.
fn read_payload(chain: &Chain, memory: &GuestMemory, len: u32, payload: &mut Vec<u8>) {
    payload.resize(len as usize, 0);
    let mut done = 0;
    for slice in slices(memory, chain.readable(), HEADER_SIZE as u32, len) {
        done += slice.copy_to(&mut payload[done..]);
    }
}

/// Copies `bytes` to the chain, `skip` bytes from its start.
fn write_start(
    chain: &Chain,
    memory: &GuestMemory,
    skip: u32,
    bytes: &[u8],
) -> Result<(), WorkerError> {
    let mut rest = bytes;
    for slice in slices(memory, chain.writable(), skip, bytes.len() as u32) {
        let (now, later) = rest.split_at(slice.len());
        slice.copy_from(now);
        rest = later;
    }
    if rest.is_empty() {
        Ok(())
    } else {
        // The chain's buffers have been checked to be memory, which never goes away.
        Err(WorkerError::Host(io::Error::other("guest memory is gone")))
    }
}
