//! What a hostile guest sends: it is answered with RST or not at all, and the device goes on.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

use vm_memory::{Bytes, GuestAddress};

use super::packet::{HEADER_SIZE, HOST_CID, Header, TYPE_STREAM, op};
use super::*;
use crate::virtio::status::features;
use crate::virtio::testing::*;
use crate::virtio::transport::mmio::register;

const CID: u32 = 3;
/// The rings of the transmit queue.
const TX_BASE: u64 = 0x4000;
const PACKET: u64 = BUFFERS;
const ANSWERS: u64 = BUFFERS + 0x10_0000;
const ANSWER_SIZE: u64 = 4096;

struct Guest {
    driver: Driver,
    life: Option<EndpointLife>,
    folder: tempfile::TempDir,
    sent: u16,
    seen: u16,
}

impl Guest {
    fn new() -> Self {
        Self::with_memory(64 << 20)
    }

    fn with_memory(bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let life = EndpointLife::new().unwrap();
        let path = folder.path().join("v");
        let mut device = Vsock::open(CID, Some(&path), life.endpoint()).unwrap();
        device.limit_memory(bytes);
        let guest = Self {
            driver: Driver::new(device),
            life: Some(life),
            folder,
            sent: 0,
            seen: 0,
        };
        guest.set_up();
        guest
    }

    /// From reset to work.
    fn set_up(&self) {
        let driver = &self.driver;
        driver.set_up(3, features::VERSION_1);
        // Sixteen buffers for answers.
        for index in 0..16_u16 {
            let at = ANSWERS + u64::from(index) * ANSWER_SIZE;
            driver.put_desc(DESCRIPTORS, index, writable(at, ANSWER_SIZE as u32, None));
            driver.make_available(index);
        }
        driver.kick();
    }

    /// The driver goes, and comes back.
    fn reset(&mut self) {
        (self.sent, self.seen) = (0, 0);
        self.set_up();
    }

    fn endpoint(&self) -> VsockEndpoint {
        self.life.as_ref().unwrap().endpoint().clone()
    }

    /// Sends bytes on a connection that a packet with this header is of.
    fn send_data(&mut self, of: Header, bytes: &[u8]) -> Header {
        let data = Header {
            op: op::RW,
            len: bytes.len() as u32,
            ..of
        };
        self.send(data, bytes);
        data
    }

    /// Sends a packet with `payload`, whatever its header says of it.
    fn send(&mut self, header: Header, payload: &[u8]) {
        let driver = &self.driver;
        let bytes = [&header.to_bytes(), payload].concat();
        driver
            .memory
            .write_slice(&bytes, GuestAddress(PACKET))
            .unwrap();
        let len = HEADER_SIZE + payload.len();
        self.send_raw(len as u32);
    }

    fn send_raw(&mut self, len: u32) {
        let driver = &self.driver;
        driver.put_desc(TX_BASE + DESCRIPTORS, 0, readable(PACKET, len, None));
        self.send_chain();
    }

    /// Makes the chain at the table's start available.
    fn send_chain(&mut self) {
        let driver = &self.driver;
        let ring = TX_BASE + AVAILABLE;
        driver.put(ring + 4 + u64::from(self.sent % 16) * 2, 0_u16);
        self.sent += 1;
        driver.put(ring + 2, self.sent);
        driver.write(register::QUEUE_NOTIFY, 1);
        driver.host.run(1000);
        assert!(!driver.needs_reset());
        assert_eq!(
            driver.get::<u16>(TX_BASE + USED + 2),
            self.sent,
            "not taken"
        );
    }

    /// What the device has answered since the last time.
    fn answers(&mut self) -> Vec<Header> {
        let mut answers = Vec::new();
        while self.seen != self.driver.used_index() {
            let entry = USED + 4 + u64::from(self.seen % 16) * 8;
            let head: u32 = self.driver.get(entry);
            let at = GuestAddress(ANSWERS + u64::from(head) * ANSWER_SIZE);
            let mut bytes = [0; HEADER_SIZE];
            self.driver.memory.read_slice(&mut bytes, at).unwrap();
            answers.push(Header::parse(&bytes));
            self.driver.make_available(head as u16);
            self.seen += 1;
        }
        answers
    }

    fn request(&self, port: u32) -> Header {
        Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID,
            src_port: 1000,
            dst_port: port,
            kind: TYPE_STREAM,
            op: op::REQUEST,
            buf_alloc: 1 << 16,
            ..Header::default()
        }
    }

    #[track_caller]
    fn assert_reset(&mut self, of: Header) {
        let answers = self.answers();
        assert_eq!(answers.len(), 1, "{answers:?}");
        assert_eq!(answers[0], of.reset_of());
    }
}

mod endpoint;

#[test]
fn what_leads_nowhere_is_reset() {
    let mut guest = Guest::new();
    let request = guest.request(7);
    guest.send(request, &[]);
    guest.assert_reset(request);
    for op in [
        0,
        op::RESPONSE,
        op::SHUTDOWN,
        op::RW,
        op::CREDIT_UPDATE,
        op::CREDIT_REQUEST,
        8,
        u16::MAX,
    ] {
        let header = Header { op, ..request };
        guest.send(header, &[]);
        guest.assert_reset(header);
    }
    let datagram = Header { kind: 3, ..request };
    guest.send(datagram, &[]);
    guest.assert_reset(datagram);
}

#[test]
fn a_wrong_address_half_a_header_and_a_reset_are_not_answered() {
    let mut guest = Guest::new();
    let request = guest.request(7);
    for header in [
        Header {
            src_cid: 4,
            ..request
        },
        Header {
            dst_cid: 1,
            ..request
        },
        Header {
            dst_cid: CID.into(),
            ..request
        },
        Header {
            src_cid: u64::MAX,
            ..request
        },
        Header {
            op: op::RST,
            ..request
        },
    ] {
        guest.send(header, &[]);
        assert_eq!(guest.answers(), [], "{header:?}");
    }
    guest.send_raw(HEADER_SIZE as u32 - 1);
    assert_eq!(guest.answers(), []);
    guest.send(request, &[]);
    guest.assert_reset(request);
}

#[test]
fn bytes_go_to_the_host_and_a_packet_that_lies_ends_its_connection_only() {
    let mut guest = Guest::new();
    let listener = UnixListener::bind(guest.folder.path().join("v_7")).unwrap();
    let request = guest.request(7);
    guest.send(request, &[]);
    let answers = guest.answers();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].op, op::RESPONSE);
    assert!(answers[0].buf_alloc > 0);
    let (mut stream, _) = listener.accept().unwrap();
    let data = guest.send_data(request, b"hello");
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    guest.answers();

    // It says that it has more bytes than it has; another is longer than all credit.
    guest.send(Header { len: 6, ..data }, b"short");
    assert!(guest.answers().iter().any(|header| header.op == op::RST));
    assert_eq!(stream.read(&mut bytes).unwrap(), 0, "still open");
    guest.send(
        Header {
            len: u32::MAX,
            ..data
        },
        b"",
    );
    guest.assert_reset(Header {
        len: u32::MAX,
        ..data
    });

    let again = Header {
        src_port: 1001,
        ..request
    };
    guest.send(again, &[]);
    assert_eq!(guest.answers()[0].op, op::RESPONSE);
}

#[test]
fn a_packet_may_be_in_any_number_of_pieces() {
    let mut guest = Guest::new();
    let listener = UnixListener::bind(guest.folder.path().join("v_7")).unwrap();
    let request = guest.request(7);
    guest.send(request, &[]);
    let (mut stream, _) = listener.accept().unwrap();
    let data = Header {
        op: op::RW,
        len: 10,
        ..request
    };
    let bytes = [&data.to_bytes()[..], b"0123456789"].concat();
    guest
        .driver
        .memory
        .write_slice(&bytes, GuestAddress(PACKET))
        .unwrap();
    // The header's in two, the payload's in four, one of which begins in a piece of the header's.
    let mut at = PACKET;
    let lens = [20, 25, 3, 3, 0, 3];
    for (index, len) in (0..).zip(lens) {
        let next = (usize::from(index) + 1 < lens.len()).then_some(index + 1);
        let table = TX_BASE + DESCRIPTORS;
        guest.driver.put_desc(table, index, readable(at, len, next));
        at += u64::from(len);
    }
    guest.send_chain();
    let mut got = [0; 10];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"0123456789");
}

#[test]
fn little_memory_is_little_credit() {
    let credit = |bytes, port| {
        let mut guest = Guest::with_memory(bytes);
        let path = guest.folder.path().join(format!("v_{port}"));
        let _listener = UnixListener::bind(path).unwrap();
        let request = guest.request(port);
        guest.send(request, &[]);
        guest.answers()[0].buf_alloc
    };
    assert_eq!(credit(1 << 20, 7), 128 << 10, "an eighth of it");
    assert_eq!(credit(0, 7), 16 << 10, "the least");
}

#[test]
fn credit_that_was_not_given_ends_the_connection_and_what_was_given_is_kept() {
    let mut guest = Guest::new();
    let listener = UnixListener::bind(guest.folder.path().join("v_7")).unwrap();
    let request = guest.request(7);
    guest.send(request, &[]);
    let credit = guest.answers()[0].buf_alloc;
    let (mut stream, _) = listener.accept().unwrap();
    // The host's program reads nothing: what its socket does not take is kept, up to the credit.
    let piece = vec![b'x'; 32 << 10];
    let data = Header {
        op: op::RW,
        len: piece.len() as u32,
        ..request
    };
    let (mut sent, mut forwarded) = (0_u32, 0_u32);
    let reset = loop {
        guest.send(data, &piece);
        sent += data.len;
        let answers = guest.answers();
        if answers.iter().any(|header| header.op == op::RST) {
            break sent;
        }
        if let Some(last) = answers.last() {
            forwarded = last.fwd_cnt;
        }
        assert!(sent < 64 << 20, "there is no limit");
    };
    assert!(reset > forwarded + credit, "{reset} {forwarded} {credit}");
    assert!(reset <= forwarded + 2 * credit, "{reset} {forwarded}");
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert!(got.iter().all(|byte| *byte == b'x'));
    // No more than the credit is sent to the guest, and nothing more before it has space again.
    let small = Header {
        src_port: 1001,
        buf_alloc: 100,
        ..request
    };
    guest.send(small, &[]);
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(&[b'y'; 1000]).unwrap();
    guest.driver.host.wait();
    let count = |answers: &[Header], kind| answers.iter().filter(|it| it.op == kind).count();
    let bytes = |answers: &[Header]| answers.iter().map(|header| header.len).sum::<u32>();
    let answers = guest.answers();
    assert_eq!(bytes(&answers), 100, "{answers:?}");
    assert_eq!(count(&answers, op::CREDIT_REQUEST), 1, "{answers:?}");
    let update = Header {
        op: op::CREDIT_UPDATE,
        fwd_cnt: 60,
        ..small
    };
    guest.send(update, &[]);
    assert_eq!(bytes(&guest.answers()), 60);
    // A window that wraps, and a count of what was never sent, are the guest's own trouble.
    for (buf_alloc, fwd_cnt) in [(u32::MAX, u32::MAX), (0, 0), (u32::MAX, 0)] {
        let odd = Header {
            buf_alloc,
            fwd_cnt,
            ..update
        };
        guest.send(odd, &[]);
        guest.answers();
    }
}

#[test]
fn bytes_for_a_program_that_is_gone_are_dropped_and_the_guest_is_told() {
    let mut guest = Guest::new();
    let listener = UnixListener::bind(guest.folder.path().join("v_7")).unwrap();
    let request = guest.request(7);
    guest.send(request, &[]);
    guest.answers();
    drop(listener.accept().unwrap());
    let data = Header {
        op: op::RW,
        len: 1000,
        ..request
    };
    // It comes before the device has seen that the program is gone, and after.
    for _ in 0..3 {
        guest.send(data, &[0; 1000]);
    }
    guest.driver.host.wait();
    guest.send(data, &[0; 1000]);
    let answers = guest.answers();
    let is = |kind| move |header: &&Header| header.op == kind;
    assert_eq!(answers.iter().filter(is(op::RST)).count(), 0, "{answers:?}");
    let last = answers.iter().rfind(is(op::SHUTDOWN)).expect("not told");
    assert_eq!(last.flags, 3);
    guest.send(
        Header {
            op: op::SHUTDOWN,
            flags: 3,
            ..request
        },
        &[],
    );
    assert!(guest.answers().iter().any(|header| header.op == op::RST));
}

#[test]
fn there_are_so_many_connections_and_their_memory_is_bounded() {
    let counters = Arc::new(Counters::new(Arc::new(crate::virtio::DeviceMetrics::new(
        "vsock",
        VirtioDeviceType::VSOCK,
        Vec::new(),
    ))));
    let folder = tempfile::tempdir().unwrap();
    let socket = ListeningSocket::open(&folder.path().join("v"), MAX_SOCKET_PATH).unwrap();
    let life = EndpointLife::new().unwrap();
    let host = HostSide::new(Some(socket), life.endpoint().clone());
    let host = Arc::new(host.unwrap());
    let mut muxer = Muxer::new(CID, host, counters);
    let listener = UnixListener::bind(folder.path().join("v_7")).unwrap();
    let mut taken = Vec::new();
    let (mut space, mut refused) = (0, 0);
    let mut payload = [0; 4096];
    for port in 0..5000 {
        let request = Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID,
            src_port: port,
            dst_port: 7,
            kind: TYPE_STREAM,
            op: op::REQUEST,
            ..Header::default()
        };
        muxer.on_packet(&request, &[]);
        let answer = muxer.next_packet(&mut payload).unwrap();
        match answer.op {
            op::RESPONSE => {
                space += u64::from(answer.buf_alloc);
                assert!(answer.buf_alloc >= 16 << 10);
                taken.push(listener.accept().unwrap());
            }
            _ => refused += 1,
        }
        // As many as this process may have descriptors for; the rest is refused as well.
        if refused == 10 {
            break;
        }
    }
    assert!(refused == 10 && taken.len() <= 4096, "{}", taken.len());
    assert!(space <= 192 << 20, "{space}");
    // A connection that goes makes room.
    muxer.on_packet(
        &Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID,
            src_port: 0,
            dst_port: 7,
            kind: TYPE_STREAM,
            op: op::RST,
            ..Header::default()
        },
        &[],
    );
    assert!(muxer.next_packet(&mut payload).is_none());
}
