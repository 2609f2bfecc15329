//! What a hostile guest sends: it is answered with RST or not at all, and the device goes on.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

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
    folder: tempfile::TempDir,
    sent: u16,
    seen: u16,
}

impl Guest {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let device = Vsock::open(CID, &folder.path().join("v")).unwrap();
        let driver = Driver::new(device);
        driver.set_up(3, features::VERSION_1);
        // Sixteen buffers for answers.
        for index in 0..16_u16 {
            let at = ANSWERS + u64::from(index) * ANSWER_SIZE;
            driver.put_desc(DESCRIPTORS, index, writable(at, ANSWER_SIZE as u32, None));
            driver.make_available(index);
        }
        driver.kick();
        Self {
            driver,
            folder,
            sent: 0,
            seen: 0,
        }
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
    let data = Header {
        op: op::RW,
        len: 5,
        ..request
    };
    guest.send(data, b"hello");
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

/// A connection to a listener of the host's, whose end is returned.
fn connected(guest: &mut Guest, listener: &UnixListener, request: Header) -> UnixStream {
    guest.send(request, &[]);
    assert_eq!(guest.answers()[0].op, op::RESPONSE);
    listener.accept().unwrap().0
}

#[test]
fn a_guest_that_sends_beyond_its_credit_loses_its_connection_only() {
    let mut guest = Guest::new();
    let listener = UnixListener::bind(guest.folder.path().join("v_7")).unwrap();
    let request = guest.request(7);
    // Its program reads nothing.
    let mut stalled = connected(&mut guest, &listener, request);
    let piece = vec![1; 64 << 10];
    let data = Header {
        op: op::RW,
        len: piece.len() as u32,
        ..request
    };
    let mut packets = 0;
    loop {
        guest.send(data, &piece);
        if guest.answers().iter().any(|header| header.op == op::RST) {
            break;
        }
        packets += 1;
        assert!(packets < 100, "all of it is kept");
    }
    assert!(packets * piece.len() >= BUF_ALLOC as usize, "{packets}");
    // What had been taken by then is the program's, and nothing else.
    let mut taken = Vec::new();
    stalled.read_to_end(&mut taken).unwrap();
    assert!(taken.len() <= packets * piece.len());
    let other = Header {
        src_port: 1001,
        ..request
    };
    connected(&mut guest, &listener, other);
}

#[test]
fn a_guest_gets_no_more_than_it_has_space_for() {
    let mut guest = Guest::new();
    let listener = UnixListener::bind(guest.folder.path().join("v_7")).unwrap();
    let request = Header {
        buf_alloc: 100,
        ..guest.request(7)
    };
    let mut stream = connected(&mut guest, &listener, request);
    stream.write_all(&[7; 1000]).unwrap();
    let update = |buf_alloc, fwd_cnt| Header {
        op: op::CREDIT_UPDATE,
        buf_alloc,
        fwd_cnt,
        ..request
    };
    let received = |guest: &mut Guest| -> u32 {
        guest.driver.host.run_events();
        guest.driver.host.run(1000);
        let answers = guest.answers();
        answers.iter().map(|header| header.len).sum()
    };
    assert_eq!(received(&mut guest), 100);
    assert_eq!(received(&mut guest), 0, "there is no space");
    guest.send(update(100, 60), &[]);
    assert_eq!(received(&mut guest), 60);
    // It takes back space that is in use, and says that it has freed more than it got.
    guest.send(update(10, 60), &[]);
    assert_eq!(received(&mut guest), 0);
    guest.send(update(100, 100_000), &[]);
    assert_eq!(received(&mut guest), 0);
    guest.send(update(u32::MAX, 160), &[]);
    assert_eq!(received(&mut guest), 840);
}

#[test]
fn connections_are_bounded() {
    const ENOUGH: u64 = 2 * muxer::MAX_CONNECTIONS as u64 + 200;
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both pointers are to a live structure.
    let raised = unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = limit.rlim_max.min(ENOUGH.max(limit.rlim_cur));
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur >= ENOUGH
    };
    if !raised {
        let name = concat!(module_path!(), "::connections_are_bounded");
        let name = name.trim_start_matches("ampoule_devices::");
        let line = format!("skipped {name}: there may be {} files\n", limit.rlim_max);
        return std::io::stdout().write_all(line.as_bytes()).unwrap();
    }
    let mut guest = Guest::new();
    let listener = UnixListener::bind(guest.folder.path().join("v_7")).unwrap();
    let request = |guest: &Guest, src_port| Header {
        src_port,
        ..guest.request(7)
    };
    let mut streams = Vec::new();
    for port in 0..muxer::MAX_CONNECTIONS as u32 {
        let request = request(&guest, port);
        streams.push(connected(&mut guest, &listener, request));
    }
    let one_more = request(&guest, u32::MAX);
    guest.send(one_more, &[]);
    guest.assert_reset(one_more);
    // Where one has ended there is room again.
    let first = Header {
        op: op::RST,
        ..request(&guest, 0)
    };
    guest.send(first, &[]);
    connected(&mut guest, &listener, one_more);
}
