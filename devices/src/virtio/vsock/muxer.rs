//! All connections of a guest: which packet belongs to which, whose turn it is, and what the host's sockets have to say.
//!
//! Sockets are waited for with an epoll instance of the device's own, edge-triggered: a connection remembers that it could
//! be read until reading gave nothing, so that neither a guest without buffers nor one without credit makes the thread spin.
//!
//! Bounds: [`MAX_CONNECTIONS`], with at most [`DEFAULT_SPACE`] bytes from the guest together, unless told otherwise, and [`LEAST_SPACE`] for each beyond that; [`MAX_RESETS`]
//! answers to packets that belong to no connection, beyond which the guest's packets wait; one entry per connection in
//! the list of those that have something for the guest.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::{BUF_ALLOC, Connection, Ports, Verdict};
use super::counters::Counters;
use super::endpoint::VsockEndpoint;
use super::packet::{HOST_CID, Header, TYPE_STREAM, op};
use crate::backend::unix_socket::{self, ListeningSocket};

/// The most connections at a time.
pub(super) const MAX_CONNECTIONS: usize = 4096;
/// Space for bytes from the guest that is shared out; a new connection gets an eighth of what is left, and [`BUF_ALLOC`] at most.
pub(super) const DEFAULT_SPACE: u32 = 64 << 20;
/// What each gets at least.
const LEAST_SPACE: u32 = 16 << 10;
/// The most resets that wait for a buffer.
pub(super) const MAX_RESETS: usize = 256;
/// Events taken at a time; the rest come with the next call.
const EVENT_BATCH: usize = 64;
/// Clients taken at a time.
const ACCEPT_BATCH: usize = 16;
/// Host ports of connections that the host asked for, as other VMMs choose them.
const FIRST_PORT: u32 = 1 << 30;
/// The listening socket's token; connections have others.
const LISTENER: u64 = 0;
/// That of the program that runs the VM. No connection ever has that number.
const ENDPOINT: u64 = u64::MAX;

/// The sockets of the host, kept while the guest's driver comes and goes.
pub(super) struct HostSide {
    listener: Option<ListeningSocket>,
    /// The program that runs the VM.
    endpoint: VsockEndpoint,
    pub(super) epoll: Epoll,
}

impl HostSide {
    pub(super) fn new(
        listener: Option<ListeningSocket>,
        endpoint: VsockEndpoint,
    ) -> io::Result<Self> {
        let side = Self {
            listener,
            endpoint,
            epoll: Epoll::new()?,
        };
        side.listen(ControlOperation::Add)?;
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, ENDPOINT);
        let (add, asked) = (ControlOperation::Add, side.endpoint.asked());
        side.epoll.ctl(add, asked, event)?;
        Ok(side)
    }

    /// Has the listener's readiness told, even where it was told before.
    fn listen(&self, operation: ControlOperation) -> io::Result<()> {
        let Some(listener) = &self.listener else {
            return Ok(());
        };
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(events, LISTENER);
        self.epoll.ctl(operation, listener.as_raw_fd(), event)
    }

    fn watch(&self, fd: RawFd, id: u64) -> io::Result<()> {
        let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP;
        let event = EpollEvent::new(events | EventSet::EDGE_TRIGGERED, id);
        self.epoll.ctl(ControlOperation::Add, fd, event)
    }
}

/// All connections of a guest.
pub(super) struct Muxer {
    guest_cid: u64,
    host: Arc<HostSide>,
    connections: HashMap<u64, Connection>,
    /// Those that the guest knows.
    by_ports: HashMap<Ports, u64>,
    /// Those that have something for the guest, in turn.
    ready: VecDeque<u64>,
    resets: VecDeque<Header>,
    /// Space that is shared out.
    most_space: u32,
    /// Space that connections have.
    space: u32,
    last_id: u64,
    next_port: u32,
    /// Clients wait that could not be accepted for want of descriptors.
    accept_later: bool,
    counters: Arc<Counters>,
}

impl Muxer {
    pub(super) fn new(guest_cid: u32, host: Arc<HostSide>, counters: Arc<Counters>) -> Self {
        let mut muxer = Self {
            guest_cid: guest_cid.into(),
            host,
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            most_space: DEFAULT_SPACE,
            space: 0,
            last_id: LISTENER,
            next_port: FIRST_PORT,
            accept_later: false,
            counters,
        };
        // The muxer of the driver before this one may have been told of clients that it left.
        muxer.listen_again();
        muxer.host.endpoint.remind();
        muxer
    }

    /// Shares out so much space, instead of the usual.
    pub(super) fn set_space(&mut self, bytes: u32) {
        self.most_space = bytes;
    }

    /// Whether another packet of the guest's can be answered.
    pub(super) fn has_room(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Whether there is something for the guest, or might be.
    pub(super) fn has_packets(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Takes a packet of the guest's; `payload` is as long as its header says.
    pub(super) fn on_packet(&mut self, header: &Header, payload: &[u8]) {
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            return self.counters.bad_packet("a packet with a wrong address");
        }
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        let known = self.by_ports.get(&ports).copied();
        if header.kind != TYPE_STREAM {
            self.counters.bad_packet("a packet of an unknown type");
            return self.reset(header);
        }
        let Some(id) = known else {
            return match header.op {
                op::REQUEST => self.on_request(header, ports),
                op::RST => {}
                _ => self.reset(header),
            };
        };
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        match connection.on_packet(header, payload) {
            Verdict::Keep | Verdict::Connect(_) => self.schedule(id),
            Verdict::Close => self.remove(id),
            Verdict::Reset => {
                self.reset(header);
                self.remove(id);
            }
            Verdict::Drain => {
                self.reset(header);
                self.by_ports.remove(&ports);
            }
        }
    }

    fn on_request(&mut self, header: &Header, ports: Ports) {
        let stream = if self.connections.len() < MAX_CONNECTIONS {
            self.dial(ports)
        } else {
            self.counters.too_many();
            None
        };
        let id = stream.and_then(|stream| {
            self.insert(stream, |stream, space| {
                Connection::from_guest(stream, ports, header, space)
            })
        });
        match id {
            Some(id) => {
                self.by_ports.insert(ports, id);
                self.schedule(id);
            }
            None => self.reset(header),
        }
    }

    /// Connects to whoever listens on a port of the host: the program that runs the VM, or the socket that stands for the port.
    fn dial(&self, Ports { host: port, guest }: Ports) -> Option<UnixStream> {
        match self.host.endpoint.dial(port, guest) {
            Ok(None) => {}
            Ok(stream) => return stream,
            Err(err) => {
                self.counters.host("connecting to this program", &err);
                return None;
            }
        }
        let mut path = self.host.listener.as_ref()?.path().as_os_str().to_owned();
        path.push(format!("_{port}"));
        match unix_socket::connect(&PathBuf::from(path)) {
            Ok(stream) => Some(stream),
            Err(err) => {
                // Nobody listens: the guest's to know, not the host's.
                let usual = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
                if !usual.contains(&err.kind()) {
                    self.counters.host("connecting to a port's socket", &err);
                }
                None
            }
        }
    }

    fn insert(
        &mut self,
        stream: UnixStream,
        make: impl FnOnce(UnixStream, u32) -> Connection,
    ) -> Option<u64> {
        let id = self.last_id + 1;
        if let Err(err) = self.host.watch(stream.as_raw_fd(), id) {
            self.counters.host("waiting for a connection", &err);
            return None;
        }
        self.last_id = id;
        let left = self.most_space.saturating_sub(self.space);
        let space = (left / 8).clamp(LEAST_SPACE, BUF_ALLOC);
        self.space += space;
        self.connections.insert(id, make(stream, space));
        self.counters.connected();
        Some(id)
    }

    /// Answers a packet with RST; not one that is RST itself.
    fn reset(&mut self, header: &Header) {
        if header.op != op::RST {
            self.resets.push_back(header.reset_of());
        }
    }

    fn remove(&mut self, id: u64) {
        let Some(connection) = self.connections.remove(&id) else {
            return;
        };
        self.space -= connection.buf_alloc();
        if self.by_ports.get(&connection.ports) == Some(&id) {
            self.by_ports.remove(&connection.ports);
        }
        drop(connection);
        // Entries of connections that are no more must not add up while the guest takes no packets.
        if self.ready.len() > 2 * MAX_CONNECTIONS {
            let connections = &self.connections;
            self.ready.retain(|id| connections.contains_key(id));
        }
        if std::mem::take(&mut self.accept_later) {
            self.listen_again();
        }
    }

    fn schedule(&mut self, id: u64) {
        if let Some(connection) = self.connections.get_mut(&id)
            && connection.wants_to_send()
            && !connection.queued
        {
            connection.queued = true;
            self.ready.push_back(id);
        }
    }

    /// The next packet for the guest. Its bytes are put to the start of `payload`, which is not empty.
    pub(super) fn next_packet(&mut self, payload: &mut [u8]) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            self.counters.reset();
            return Some(reset);
        }
        while let Some(id) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            connection.queued = false;
            let packet = connection.next_packet(payload);
            let header = packet.map(|packet| connection.header(packet));
            match header {
                Some(header) if header.op == op::RST => {
                    self.counters.reset();
                    self.remove(id);
                }
                _ => self.schedule(id),
            }
            if let Some(header) = header {
                return Some(Header {
                    src_cid: HOST_CID,
                    dst_cid: self.guest_cid,
                    kind: TYPE_STREAM,
                    ..header
                });
            }
        }
        None
    }

    /// Takes what the host's sockets have to say: some of it, and the rest with the next call.
    pub(super) fn on_host(&mut self) {
        let mut events = [EpollEvent::default(); EVENT_BATCH];
        let count = match self.host.epoll.wait(0, &mut events) {
            Ok(count) => count,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => 0,
            Err(err) => {
                self.counters.host("waiting for sockets", &err);
                0
            }
        };
        for event in &events[..count] {
            match event.data() {
                LISTENER => self.accept(),
                ENDPOINT => self.take(),
                id => self.on_stream(id, event.event_set()),
            }
        }
    }

    fn on_stream(&mut self, id: u64, events: EventSet) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        match connection.on_host(events) {
            Verdict::Keep => {}
            Verdict::Connect(port) => {
                let ports = self.free_ports(port);
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.request(ports);
                    self.by_ports.insert(ports, id);
                }
            }
            Verdict::Close | Verdict::Reset | Verdict::Drain => return self.remove(id),
        }
        self.schedule(id);
    }

    /// A host port that is not in use with the guest's port.
    fn free_ports(&mut self, guest: u32) -> Ports {
        loop {
            let ports = Ports {
                host: self.next_port,
                guest,
            };
            self.next_port = FIRST_PORT | self.next_port.wrapping_add(1) & (FIRST_PORT - 1);
            // There are more ports than connections.
            if !self.by_ports.contains_key(&ports) {
                return ports;
            }
        }
    }

    fn listen_again(&mut self) {
        if let Err(err) = self.host.listen(ControlOperation::Modify) {
            self.counters.host("listening", &err);
        }
    }

    /// Takes what the program that runs the VM wants connected.
    fn take(&mut self) {
        self.host.endpoint.heard();
        for _ in 0..ACCEPT_BATCH {
            match self.host.endpoint.take() {
                Some(stream) if self.connections.len() < MAX_CONNECTIONS => {
                    self.insert(stream, Connection::from_host);
                }
                Some(_) => self.counters.too_many(),
                None => return,
            }
        }
        self.host.endpoint.remind();
    }

    fn accept(&mut self) {
        let host = self.host.clone();
        let Some(listener) = &host.listener else {
            return;
        };
        for _ in 0..ACCEPT_BATCH {
            match listener.accept() {
                Ok(Some(stream)) if self.connections.len() < MAX_CONNECTIONS => {
                    self.insert(stream, Connection::from_host);
                }
                // There are too many: this one is turned away by an end of file.
                Ok(Some(_)) => self.counters.too_many(),
                Ok(None) => return,
                Err(err) => {
                    self.counters.host("accepting a connection", &err);
                    self.accept_later = true;
                    return;
                }
            }
        }
        self.listen_again();
    }
}

impl Drop for Muxer {
    fn drop(&mut self) {
        // Before the streams are closed: who asked for one is to know why.
        self.host.endpoint.driver_goes();
    }
}
