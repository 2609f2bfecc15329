//! The socket device: packets of the guest's, good and bad, against programs of the host that connect, write, stall and go.
//! The rings are good, so that nothing of it is a reason for the device to stop; what it sends is well-formed, and never more
//! than the guest has space for.

#![no_main]

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use ampoule_devices::virtio::status::features as ring;
use ampoule_fuzz::devices::{self, CID};
use ampoule_fuzz::guest::{Guest, SIZE, some};
use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;

const RX: u16 = 0;
const TX: u16 = 1;
const HEADER: usize = 44;
const HOST_CID: u64 = 2;
const REQUEST: u16 = 1;
const RW: u16 = 5;
/// Ports of the host that programs listen at.
const PORTS: u32 = 2;
const MAX_CLIENTS: usize = 4;

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Cid {
    Guest,
    Host,
    Any(u64),
}

impl Cid {
    fn get(self) -> u64 {
        match self {
            Self::Guest => CID.into(),
            Self::Host => HOST_CID,
            Self::Any(cid) => cid,
        }
    }
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Port {
    Small(u8),
    /// As the device chooses them.
    Chosen(u8),
    Any(u32),
}

impl Port {
    fn get(self) -> u32 {
        match self {
            Self::Small(port) => u32::from(port % 4),
            Self::Chosen(port) => (1 << 30) + u32::from(port % 4),
            Self::Any(port) => port,
        }
    }
}

#[derive(Debug, Arbitrary)]
struct Packet {
    /// None for the usual ones.
    cids: Option<(Cid, Cid)>,
    src_port: Port,
    dst_port: Port,
    op: u8,
    /// None for a stream's.
    kind: Option<u16>,
    flags: u8,
    buf_alloc: u32,
    fwd_cnt: u32,
    payload: u16,
    /// What the header says, where that is not so.
    len: Option<u32>,
    cut: Option<u8>,
    divide: u8,
}

#[derive(Debug, Arbitrary)]
enum Op {
    Send(Packet),
    Buffers { count: u8, len: u16 },
    Connect,
    Greet { client: u8, port: Port },
    Say { client: u8, bytes: [u8; 4] },
    Write { client: u8, len: u16 },
    Read { client: u8, len: u16 },
    Close { client: u8, how: u8 },
    Accept(u8),
    Run(u8),
    Events,
    Reset,
}

#[derive(Debug)]
struct Input {
    ops: Vec<Op>,
}

impl<'a> Arbitrary<'a> for Input {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self {
            ops: some(input, 48)?,
        })
    }
}

thread_local! {
    static LISTENERS: RefCell<Vec<UnixListener>> = RefCell::new((0..PORTS).map(listen).collect());
}

fn listen(port: u32) -> UnixListener {
    let mut path = devices::vsock_path().into_os_string();
    path.push(format!("_{port}"));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(path).expect("no socket");
    listener.set_nonblocking(true).expect("no socket");
    listener
}

fn accept(port: u8) -> Option<UnixStream> {
    LISTENERS.with_borrow(|listeners| {
        let (stream, _) = listeners[usize::from(port) % listeners.len()]
            .accept()
            .ok()?;
        stream.set_nonblocking(true).ok()?;
        Some(stream)
    })
}

#[derive(Default)]
struct Credit {
    /// What the guest last said.
    buf_alloc: u32,
    fwd_cnt: u32,
    sent: u32,
}

struct Case {
    guest: Guest,
    clients: Vec<UnixStream>,
    next_tx: u16,
    /// Buffers for the guest, by their heads.
    rooms: HashMap<u16, (u64, u32)>,
    /// By the ports of host and guest.
    credit: HashMap<(u32, u32), Credit>,
}

fuzz_target!(|input: Input| {
    LISTENERS.with(|_| ());
    let mut case = Case {
        guest: guest(),
        clients: Vec::new(),
        next_tx: 0,
        rooms: HashMap::new(),
        credit: HashMap::new(),
    };
    for op in input.ops {
        case.carry_out(op);
        assert!(
            !case.guest.driver.needs_reset(),
            "good rings break the device"
        );
        case.collect();
    }
    drop(case);
    // What was not accepted must not fill the backlog for the next run.
    for port in 0..PORTS {
        while accept(port as u8).is_some() {}
    }
});

fn guest() -> Guest {
    Guest::new(Box::new(devices::vsock()), 3, !ring::RING_EVENT_IDX)
}

impl Case {
    fn carry_out(&mut self, op: Op) {
        match op {
            Op::Send(packet) => self.send(&packet),
            Op::Buffers { count, len } => {
                for _ in 0..count % SIZE as u8 {
                    self.offer_room(u32::from(len) % 4096);
                }
                self.guest.kick(RX);
            }
            Op::Connect if self.clients.len() < MAX_CLIENTS => {
                let stream = UnixStream::connect(devices::vsock_path()).expect("nobody listens");
                stream.set_nonblocking(true).expect("no socket");
                self.clients.push(stream);
            }
            Op::Greet { client, port } => {
                let line = format!("CONNECT {}\n", port.get());
                self.write(client, line.as_bytes());
            }
            Op::Say { client, bytes } => self.write(client, &bytes),
            Op::Write { client, len } => {
                let bytes = vec![0x5a; len.into()];
                self.write(client, &bytes);
            }
            Op::Read { client, len } => {
                let mut bytes = vec![0; len.into()];
                if let Some(mut stream) = self.client(client) {
                    let _ = stream.read(&mut bytes);
                }
            }
            Op::Close { client, how } if !self.clients.is_empty() => {
                let index = usize::from(client) % self.clients.len();
                let how = match how % 4 {
                    0 => Shutdown::Read,
                    1 => Shutdown::Write,
                    2 => Shutdown::Both,
                    _ => return drop(self.clients.swap_remove(index)),
                };
                let _ = self.clients[index].shutdown(how);
            }
            Op::Accept(port) => {
                let room = self.clients.len() < MAX_CLIENTS;
                self.clients.extend(accept(port).filter(|_| room));
            }
            Op::Run(turns) => {
                self.guest.driver.host.run(turns.into());
            }
            Op::Events => self.guest.driver.host.run_events(),
            Op::Reset => {
                self.rooms.clear();
                self.credit.clear();
                self.next_tx = 0;
                self.guest.set_up_again(3, !ring::RING_EVENT_IDX);
            }
            Op::Connect | Op::Close { .. } => {}
        }
    }

    fn client(&self, index: u8) -> Option<&UnixStream> {
        self.clients
            .get(usize::from(index) % self.clients.len().max(1))
    }

    fn write(&self, client: u8, bytes: &[u8]) {
        if let Some(mut stream) = self.client(client) {
            // It does not block, and its other end may be gone.
            let _ = stream.write(bytes);
        }
    }

    fn offer_room(&mut self, len: u32) {
        let head = (0..SIZE).find(|head| !self.rooms.contains_key(head));
        let (Some(head), Some(at)) = (head, self.guest.allocate(len)) else {
            return;
        };
        self.guest.offer(RX, head, &[(at, len, true)], false);
        self.rooms.insert(head, (at, len));
    }

    fn send(&mut self, packet: &Packet) {
        // What was sent by the credit of before is not to be judged by this packet's.
        self.guest.driver.host.run(1000);
        self.collect();
        let (src_cid, dst_cid) = packet.cids.unwrap_or((Cid::Guest, Cid::Host));
        let (src_port, dst_port) = (packet.src_port.get(), packet.dst_port.get());
        let (op, kind) = (u16::from(packet.op % 9), packet.kind.unwrap_or(1));
        let payload = vec![0xc3; usize::from(packet.payload) % 5000];
        let mut bytes = Vec::new();
        bytes.extend(src_cid.get().to_le_bytes());
        bytes.extend(dst_cid.get().to_le_bytes());
        bytes.extend(src_port.to_le_bytes());
        bytes.extend(dst_port.to_le_bytes());
        bytes.extend(packet.len.unwrap_or(payload.len() as u32).to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(op.to_le_bytes());
        bytes.extend(u32::from(packet.flags).to_le_bytes());
        bytes.extend(packet.buf_alloc.to_le_bytes());
        bytes.extend(packet.fwd_cnt.to_le_bytes());
        bytes.extend(payload);
        if let Some(cut) = packet.cut {
            bytes.truncate(cut.into());
        }
        if bytes.len() >= HEADER
            && src_cid.get() == u64::from(CID)
            && dst_cid.get() == HOST_CID
            && kind == 1
        {
            let credit = self.credit.entry((dst_port, src_port)).or_default();
            if op == REQUEST {
                // It may be a new connection, or a packet that ends one.
                *credit = Credit::default();
            }
            credit.buf_alloc = packet.buf_alloc;
            credit.fwd_cnt = packet.fwd_cnt;
        }
        let divide = usize::from(packet.divide).min(bytes.len());
        let mut placed = Vec::new();
        for part in [&bytes[..divide], &bytes[divide..]] {
            let len = part.len() as u32;
            let Some(at) = self.guest.allocate(len) else {
                return;
            };
            self.guest.write(at, part);
            placed.push((at, len, false));
        }
        let head = self.next_tx % (SIZE / 2) * 2;
        self.next_tx = self.next_tx.wrapping_add(1);
        self.guest.offer(TX, head, &placed, false);
        self.guest.kick(TX);
        // There is a limit to answers that the guest does not take, which inputs do not reach.
        let (_, written) = self.guest.take_used(TX).expect("a packet is not taken");
        assert_eq!(written, 0);
    }

    /// Takes the packets that have come, and checks them.
    fn collect(&mut self) {
        while let Some((head, written)) = self.guest.take_used(RX) {
            let (at, len) = self.rooms.remove(&head).expect("it had no such chain");
            assert!(written <= len);
            if written == 0 {
                continue;
            }
            let bytes = self.guest.read(at, written);
            assert!(bytes.len() >= HEADER);
            let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let half = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
            let op = half(30);
            assert!((1..=7).contains(&op), "operation {op}");
            assert_eq!(word(24) as usize, bytes.len() - HEADER);
            assert_eq!((long(0), long(8)), (HOST_CID, CID.into()));
            assert!(op == RW || word(24) == 0);
            let credit = self.credit.entry((word(16), word(20))).or_default();
            match op {
                REQUEST => *credit = Credit::default(),
                RW => {
                    credit.sent = credit.sent.wrapping_add(word(24));
                    let in_flight = credit.sent.wrapping_sub(credit.fwd_cnt);
                    assert!(in_flight <= credit.buf_alloc, "{in_flight} bytes in flight");
                }
                _ => {}
            }
        }
    }
}
