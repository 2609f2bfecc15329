//! One stream: a connection of the guest's on one side, a Unix socket on the other.
//!
//! Bytes for the guest stay in the host's socket until there is credit and a buffer for them. Bytes from the guest that the
//! host's program does not take are kept, up to the space that the guest is told of: it breaks the rules if it sends
//! more.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use vmm_sys_util::epoll::EventSet;

use super::packet::{Header, SHUTDOWN_BOTH, SHUTDOWN_RCV, SHUTDOWN_SEND, op};

/// Space for bytes from the guest on a connection, where there are not too many of them.
pub(super) const BUF_ALLOC: u32 = 256 << 10;
/// The guest is told of freed space by such a part of it at once, unless a packet goes its way anyhow.
const UPDATE_PART: u32 = 4;
/// A buffer that has grown beyond this is given back when it is empty.
const KEPT_CAPACITY: usize = 16 << 10;
/// The longest greeting is "CONNECT 4294967295\n".
const MAX_GREETING: usize = 19;

/// Packets that are to be sent, as a set.
mod pending {
    pub(super) const RST: u8 = 1 << 0;
    pub(super) const REQUEST: u8 = 1 << 1;
    pub(super) const RESPONSE: u8 = 1 << 2;
    pub(super) const SHUTDOWN: u8 = 1 << 3;
    pub(super) const CREDIT_UPDATE: u8 = 1 << 4;
    pub(super) const CREDIT_REQUEST: u8 = 1 << 5;
}

/// By what the guest tells its connections apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// How far a connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// The host's program has yet to say which port it wants; this much it has said.
    Greeting(Vec<u8>),
    /// The guest has yet to answer.
    Requested,
    /// Bytes may flow.
    Open,
    /// The guest has closed it, and its last bytes are still here.
    Draining,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on.
    Keep,
    /// It ends, and the guest knows.
    Close,
    /// It ends, and the guest is to be told with RST.
    Reset,
    /// The guest is told that it has ended, but its last bytes have to be delivered.
    Drain,
    /// The host's program wants this port of the guest.
    Connect(u32),
}

/// A packet to the guest but for its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outgoing {
    op: u16,
    flags: u32,
    len: u32,
}

impl Outgoing {
    fn control(op: u16) -> Self {
        Self {
            op,
            flags: 0,
            len: 0,
        }
    }
}

/// One stream.
#[derive(Debug)]
pub(super) struct Connection {
    state: State,
    /// None once the host's program is gone.
    stream: Option<UnixStream>,
    pub(super) ports: Ports,
    pending: u8,
    /// In the list of those that have something for the guest.
    pub(super) queued: bool,

    /// Reading might give something: set by an edge of epoll, cleared when there was nothing.
    readable: bool,
    /// The host's program has closed its end.
    hung_up: bool,
    host_sends: bool,
    host_receives: bool,
    guest_sends: bool,
    guest_receives: bool,

    /// Space for bytes from the guest.
    buf_alloc: u32,
    /// From the guest, not yet taken by the host's program.
    buffer: VecDeque<u8>,
    fwd_cnt: u32,
    told_fwd_cnt: u32,
    sent: u32,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    /// CREDIT_REQUEST has been sent, and no credit came since.
    asked: bool,
}

impl Connection {
    fn new(state: State, stream: UnixStream, ports: Ports, buf_alloc: u32) -> Self {
        Self {
            state,
            stream: Some(stream),
            ports,
            pending: 0,
            queued: false,
            readable: false,
            hung_up: false,
            host_sends: true,
            host_receives: true,
            guest_sends: true,
            guest_receives: true,
            buf_alloc,
            buffer: VecDeque::new(),
            fwd_cnt: 0,
            told_fwd_cnt: 0,
            sent: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            asked: false,
        }
    }

    /// A program of the host has connected. The guest will have `buf_alloc` bytes of space.
    pub(super) fn from_host(stream: UnixStream, buf_alloc: u32) -> Self {
        let state = State::Greeting(Vec::new());
        Self::new(state, stream, Ports::default(), buf_alloc)
    }

    /// The guest has asked for it with `request`, and the host's program listens.
    pub(super) fn from_guest(
        stream: UnixStream,
        ports: Ports,
        request: &Header,
        buf_alloc: u32,
    ) -> Self {
        let mut connection = Self::new(State::Open, stream, ports, buf_alloc);
        connection.take_credit(request);
        connection.pending = pending::RESPONSE;
        connection
    }

    /// The host's program is to be connected with these ports.
    pub(super) fn request(&mut self, ports: Ports) {
        self.ports = ports;
        self.state = State::Requested;
        self.pending = pending::REQUEST;
    }

    /// Its space for bytes from the guest.
    pub(super) fn buf_alloc(&self) -> u32 {
        self.buf_alloc
    }

    /// Takes a packet of the guest's.
    pub(super) fn on_packet(&mut self, header: &Header, payload: &[u8]) -> Verdict {
        self.take_credit(header);
        match (&self.state, header.op) {
            (_, op::RST) => Verdict::Close,
            (State::Requested, op::RESPONSE) => self.accepted(header),
            (State::Open, op::RW) => self.on_data(payload),
            (State::Open, op::SHUTDOWN) => self.on_shutdown(header.flags),
            (State::Open, op::CREDIT_UPDATE) => Verdict::Keep,
            (State::Open, op::CREDIT_REQUEST) => {
                self.pending |= pending::CREDIT_UPDATE;
                Verdict::Keep
            }
            _ => Verdict::Reset,
        }
    }

    fn take_credit(&mut self, header: &Header) {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = header.fwd_cnt;
        if self.credit() > 0 {
            self.asked = false;
        }
    }

    /// How many bytes the guest has space for.
    fn credit(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.saturating_sub(in_flight)
    }

    fn accepted(&mut self, header: &Header) -> Verdict {
        let greeting = format!("OK {}\n", header.dst_port);
        // Nothing has been written to it before, so that there is space, unless the program is gone.
        let written = self.stream.as_mut().map(|stream| {
            stream
                .write(greeting.as_bytes())
                .is_ok_and(|count| count == greeting.len())
        });
        if written != Some(true) {
            return Verdict::Reset;
        }
        self.state = State::Open;
        Verdict::Keep
    }

    fn on_data(&mut self, payload: &[u8]) -> Verdict {
        if !self.guest_sends || self.buffer.len() + payload.len() > self.buf_alloc as usize {
            return Verdict::Reset;
        }
        if !self.host_receives {
            // The guest is told; this was on its way. A reset would overtake what tells it, and be another error to its program.
            self.fwd_cnt = self.fwd_cnt.wrapping_add(payload.len() as u32);
            return Verdict::Keep;
        }
        let mut rest = payload;
        while self.buffer.is_empty() && !rest.is_empty() {
            match self.write(rest) {
                0 => break,
                count => rest = &rest[count..],
            }
        }
        if self.host_receives {
            self.buffer.extend(rest);
        } else {
            self.fwd_cnt = self.fwd_cnt.wrapping_add(rest.len() as u32);
        }
        Verdict::Keep
    }

    fn on_shutdown(&mut self, flags: u32) -> Verdict {
        self.guest_receives &= flags & SHUTDOWN_RCV == 0;
        self.guest_sends &= flags & SHUTDOWN_SEND == 0;
        self.pass_shutdown();
        if self.guest_receives || self.guest_sends {
            return Verdict::Keep;
        }
        if self.buffer.is_empty() {
            return Verdict::Reset;
        }
        self.state = State::Draining;
        self.pending = 0;
        Verdict::Drain
    }

    /// Tells the host's program that nothing more comes, when it has all that came.
    fn pass_shutdown(&mut self) {
        if !self.guest_sends
            && self.buffer.is_empty()
            && let Some(stream) = &self.stream
        {
            // Fails only where the program is gone.
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    /// Something happened to the Unix socket.
    pub(super) fn on_host(&mut self, events: EventSet) -> Verdict {
        let hang_up = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        self.hung_up |= hang_up;
        self.readable |= hang_up || events.intersects(EventSet::IN | EventSet::READ_HANG_UP);
        match self.state {
            State::Greeting(_) => return self.read_greeting(),
            State::Requested if hang_up && self.pending & pending::REQUEST != 0 => {
                return Verdict::Close;
            }
            State::Requested if hang_up => {
                self.pending = pending::RST;
                return Verdict::Keep;
            }
            State::Requested => return Verdict::Keep,
            State::Draining if hang_up => return Verdict::Close,
            State::Draining | State::Open => {}
        }
        if events.contains(EventSet::OUT) {
            self.flush();
        }
        if self.state == State::Draining {
            let done = self.buffer.is_empty() || !self.host_receives;
            return if done { Verdict::Close } else { Verdict::Keep };
        }
        // What the program wrote before it went is still the guest's, if it wants it.
        if self.hung_up && (!self.host_sends || !self.guest_receives) {
            self.host_is_gone();
        }
        Verdict::Keep
    }

    fn read_greeting(&mut self) -> Verdict {
        let (State::Greeting(said), Some(stream)) = (&mut self.state, &mut self.stream) else {
            return Verdict::Close;
        };
        // Byte by byte: what follows the line is for the guest.
        while said.len() < MAX_GREETING {
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(1) if byte == *b"\n" => {
                    return match wanted_port(said) {
                        Some(port) => Verdict::Connect(port),
                        None => Verdict::Close,
                    };
                }
                Ok(1) => said.push(byte[0]),
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Verdict::Keep,
                _ => return Verdict::Close,
            }
        }
        Verdict::Close
    }

    /// Writes what is buffered, until the host's program has no more space.
    fn flush(&mut self) {
        while !self.buffer.is_empty() {
            // Taken out for the call, as it is a part of what is called.
            let mut buffer = std::mem::take(&mut self.buffer);
            let count = self.write(buffer.as_slices().0);
            buffer.drain(..count);
            if !self.host_receives {
                self.fwd_cnt = self.fwd_cnt.wrapping_add(buffer.len() as u32);
                return;
            }
            self.buffer = buffer;
            if count == 0 {
                return;
            }
        }
        if self.buffer.capacity() > KEPT_CAPACITY {
            self.buffer = VecDeque::new();
        }
        self.pass_shutdown();
    }

    /// How much the host's program took.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let Some(stream) = &mut self.stream else {
            return 0;
        };
        loop {
            match stream.write(bytes) {
                Ok(count) => {
                    self.fwd_cnt = self.fwd_cnt.wrapping_add(count as u32);
                    return count;
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return 0,
                Err(_) => {
                    self.host_stops_receiving();
                    return 0;
                }
            }
        }
    }

    fn host_stops_receiving(&mut self) {
        if !self.host_receives {
            return;
        }
        self.host_receives = false;
        let lost = std::mem::take(&mut self.buffer).len();
        self.fwd_cnt = self.fwd_cnt.wrapping_add(lost as u32);
        self.pending |= pending::SHUTDOWN;
    }

    fn host_stops_sending(&mut self) {
        self.readable = false;
        if self.host_sends {
            self.host_sends = false;
            self.pending |= pending::SHUTDOWN;
        }
    }

    fn host_is_gone(&mut self) {
        self.host_stops_receiving();
        self.host_stops_sending();
        self.stream = None;
    }

    fn can_read(&self) -> bool {
        self.state == State::Open && self.readable && self.host_sends && self.guest_receives
    }

    /// Whether it has something for the guest, or might have.
    pub(super) fn wants_to_send(&mut self) -> bool {
        if self.state == State::Open {
            let freed = self.fwd_cnt.wrapping_sub(self.told_fwd_cnt);
            if freed >= self.buf_alloc / UPDATE_PART && self.guest_sends {
                self.pending |= pending::CREDIT_UPDATE;
            }
            if self.can_read() && self.credit() == 0 && !self.asked {
                self.pending |= pending::CREDIT_REQUEST;
                self.asked = true;
            }
        }
        self.pending != 0 || self.can_read() && self.credit() > 0
    }

    /// The next packet for the guest, if there is one. Its bytes are put to the start of `payload`, which is not empty.
    pub(super) fn next_packet(&mut self, payload: &mut [u8]) -> Option<Outgoing> {
        let urgent = self.take_pending(&[
            (pending::RST, op::RST),
            (pending::REQUEST, op::REQUEST),
            (pending::RESPONSE, op::RESPONSE),
        ]);
        urgent
            .or_else(|| self.read(payload))
            .or_else(|| self.take_pending(&[(pending::SHUTDOWN, op::SHUTDOWN)]))
            .or_else(|| {
                self.take_pending(&[
                    (pending::CREDIT_REQUEST, op::CREDIT_REQUEST),
                    (pending::CREDIT_UPDATE, op::CREDIT_UPDATE),
                ])
            })
    }

    fn take_pending(&mut self, order: &[(u8, u16)]) -> Option<Outgoing> {
        let (bit, op) = order.iter().find(|(bit, _)| self.pending & bit != 0)?;
        self.pending &= !bit;
        let mut packet = Outgoing::control(*op);
        if *op == op::SHUTDOWN {
            packet.flags = match (self.host_receives, self.host_sends) {
                (false, false) => SHUTDOWN_BOTH,
                (false, true) => SHUTDOWN_RCV,
                (true, _) => SHUTDOWN_SEND,
            };
        }
        Some(packet)
    }

    fn read(&mut self, payload: &mut [u8]) -> Option<Outgoing> {
        if !self.can_read() {
            return None;
        }
        let len = payload.len().min(self.credit() as usize);
        if len == 0 {
            return None;
        }
        let outcome = loop {
            match self.stream.as_mut()?.read(&mut payload[..len]) {
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        match outcome {
            Ok(0) if self.hung_up => self.host_is_gone(),
            Ok(0) => self.host_stops_sending(),
            Ok(count) => {
                self.sent = self.sent.wrapping_add(count as u32);
                return Some(Outgoing {
                    len: count as u32,
                    ..Outgoing::control(op::RW)
                });
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(_) => self.host_is_gone(),
        }
        None
    }

    /// Adds to a packet what every one of the connection carries.
    pub(super) fn header(&mut self, packet: Outgoing) -> Header {
        // Every packet tells of the space.
        self.told_fwd_cnt = self.fwd_cnt;
        self.pending &= !pending::CREDIT_UPDATE;
        Header {
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            op: packet.op,
            flags: packet.flags,
            len: packet.len,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
            ..Header::default()
        }
    }
}

fn wanted_port(line: &[u8]) -> Option<u32> {
    let port = line.strip_prefix(b"CONNECT ")?;
    // A sign is no part of a port.
    if !port.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(port).ok()?.parse().ok()
}
