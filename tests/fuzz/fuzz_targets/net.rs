//! The network interface: frames both ways over a back end that fails. What arrives is what was sent, in order; what cannot
//! be is dropped; and no byte is written outside of the buffers that the driver gave.

#![no_main]

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use ampoule_devices::virtio::net::features;
use ampoule_devices::virtio::status::features as ring;
use ampoule_devices::virtio::testing::readable;
use ampoule_fuzz::backends::MemoryNet;
use ampoule_fuzz::devices;
use ampoule_fuzz::guest::{Guest, SIZE, some};
use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;

const RX: u16 = 0;
const TX: u16 = 1;
const HEADER: usize = 12;
const MIN_FRAME: usize = 14;

#[derive(Debug)]
enum Op {
    /// A chain for a frame, all of it in an indirect table.
    Room(Vec<u16>),
    /// A frame of the guest's, cut into pieces; of header and bytes, the first `cut` may be all there is.
    Send {
        header: [u8; HEADER],
        len: u16,
        cut: Option<u8>,
        pieces: Vec<u16>,
        tail: Option<u8>,
    },
    /// A frame of the host's.
    Give {
        header: [u8; HEADER],
        len: u16,
        cut: Option<u8>,
    },
    Error(Option<u8>),
    Run(u8),
    Events,
}

impl<'a> Arbitrary<'a> for Op {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(match input.int_in_range(0..=7)? {
            0 | 1 => Self::Room(some(input, 6)?),
            2 => Self::Send {
                header: header(input)?,
                len: input.arbitrary()?,
                cut: input.arbitrary()?,
                pieces: some(input, 6)?,
                tail: input.arbitrary()?,
            },
            3 | 4 => Self::Give {
                header: header(input)?,
                len: input.arbitrary()?,
                cut: input.arbitrary()?,
            },
            5 => Self::Error(input.arbitrary()?),
            6 => Self::Run(input.arbitrary()?),
            _ => Self::Events,
        })
    }
}

/// Any header, or one of the kinds that are good.
fn header(input: &mut Unstructured<'_>) -> arbitrary::Result<[u8; HEADER]> {
    Ok(match input.int_in_range(0..=2)? {
        0 => [0; HEADER],
        1 => [
            1,
            input.int_in_range(0..=5)?,
            54,
            0,
            100,
            0,
            14,
            0,
            16,
            0,
            1,
            0,
        ],
        _ => input.arbitrary()?,
    })
}

#[derive(Debug)]
struct Input {
    accept: u64,
    offloads: bool,
    event_idx: bool,
    ops: Vec<Op>,
}

impl<'a> Arbitrary<'a> for Input {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self {
            accept: input.arbitrary()?,
            offloads: input.arbitrary()?,
            event_idx: input.arbitrary()?,
            ops: some(input, 40)?,
        })
    }
}

struct Case {
    guest: Guest,
    backend: std::sync::Arc<MemoryNet>,
    mergeable: bool,
    before: Vec<u8>,
    /// Where the device may write.
    writable: Vec<Range<u64>>,
    /// Chains for frames that the device has, by their heads.
    rooms: HashMap<u16, Vec<Range<u64>>>,
    /// Frames that the guest may still get.
    given: VecDeque<Vec<u8>>,
    next_tx: u16,
    /// A frame of the guest's waits for room on the host's side.
    waits: bool,
}

fuzz_target!(|input: Input| {
    let backend = MemoryNet::new(input.offloads);
    let device = Box::new(devices::net(vec![backend.clone()]));
    let event_idx = if input.event_idx {
        0
    } else {
        ring::RING_EVENT_IDX
    };
    let accepted = (input.accept | ring::VERSION_1 | ring::RING_INDIRECT_DESC) & !event_idx;
    let guest = Guest::new(device, 2, accepted);
    let mut case = Case {
        before: guest.buffers(),
        guest,
        backend,
        mergeable: accepted & features::MRG_RXBUF != 0,
        writable: Vec::new(),
        rooms: HashMap::new(),
        given: VecDeque::new(),
        next_tx: 0,
        waits: false,
    };
    for op in input.ops {
        case.carry_out(op);
        case.collect();
    }
    case.guest.driver.host.run(1000);
    case.collect();
    case.guest
        .assert_unchanged_but(&case.before, &mut case.writable);
});

impl Case {
    fn carry_out(&mut self, op: Op) {
        match op {
            Op::Room(lens) => self.offer_room(&lens),
            Op::Send {
                header,
                len,
                cut,
                pieces,
                tail,
            } => {
                let mut packet = [&header[..], &frame(len % 4096)].concat();
                if let Some(cut) = cut {
                    packet.truncate(cut.into());
                }
                self.send(&packet, &pieces, tail);
            }
            Op::Give { header, len, cut } => {
                let mut packet = [&header[..], &frame(len)].concat();
                if let Some(cut) = cut {
                    packet.truncate(cut.into());
                }
                if packet.len() >= HEADER + MIN_FRAME {
                    self.given.push_back(packet[HEADER..].to_vec());
                }
                self.backend.give(packet);
                self.guest.driver.host.run_events();
            }
            Op::Error(code) => {
                *self.backend.error.lock().unwrap() = code.map(i32::from);
            }
            Op::Run(turns) => {
                self.guest.driver.host.run(turns.into());
            }
            Op::Events => self.guest.driver.host.run_events(),
        }
        assert!(
            !self.guest.driver.needs_reset(),
            "good rings break the device"
        );
    }

    fn offer_room(&mut self, lens: &[u16]) {
        let Some(head) = (0..SIZE).find(|head| !self.rooms.contains_key(head)) else {
            return;
        };
        let mut ranges = Vec::new();
        for len in lens {
            let len = u32::from(*len) % 2048;
            let Some(at) = self.guest.allocate(len) else {
                return;
            };
            ranges.push(at..at + u64::from(len));
        }
        let buffers: Vec<_> = ranges
            .iter()
            .map(|range| (range.start, (range.end - range.start) as u32, true))
            .collect();
        if buffers.is_empty() {
            // A table without entries would break the ring: one readable byte is a chain without room, too.
            self.guest
                .driver
                .put_desc(0x1000, head, readable(0, 1, None));
            self.guest.offer(RX, head, &[(0, 1, false)], false);
        } else {
            self.guest.offer(RX, head, &buffers, true);
        }
        self.writable.extend(ranges.iter().cloned());
        self.rooms.insert(head, ranges);
        self.guest.notify(RX);
    }

    fn send(&mut self, packet: &[u8], pieces: &[u16], tail: Option<u8>) {
        if self.waits {
            self.guest.driver.host.run_events();
            self.waits = self.guest.take_used(TX).is_none();
            if self.waits {
                return;
            }
        }
        let mut buffers = Vec::new();
        let mut rest = packet;
        for piece in pieces {
            let (now, later) = rest.split_at(usize::from(*piece).min(rest.len()));
            rest = later;
            buffers.push(now);
        }
        buffers.push(rest);
        let mut placed = Vec::new();
        for bytes in buffers {
            let len = bytes.len() as u32;
            let Some(at) = self.guest.allocate(len) else {
                return;
            };
            self.guest.write(at, bytes);
            // The guest's own writes are no mistake of the device's.
            let offset = (at - ampoule_fuzz::guest::BUFFERS) as usize;
            self.before[offset..][..bytes.len()].copy_from_slice(bytes);
            placed.push((at, len, false));
        }
        if let Some(len) = tail {
            // Nothing is to be written there: the device reads only.
            let Some(at) = self.guest.allocate(len.into()) else {
                return;
            };
            placed.push((at, len.into(), true));
        }
        let sent = self.backend.sent.lock().unwrap().len();
        self.guest.offer(TX, self.next_tx % SIZE, &placed, true);
        self.next_tx = self.next_tx.wrapping_add(1);
        self.guest.notify(TX);
        self.guest.driver.host.run(100);
        let Some((_, written)) = self.guest.take_used(TX) else {
            let error = *self.backend.error.lock().unwrap();
            assert_eq!(error, Some(libc::EAGAIN), "a frame is not given back");
            self.waits = true;
            return;
        };
        assert_eq!(written, 0);
        let sent = self.backend.sent.lock().unwrap().split_off(sent);
        assert!(sent.len() <= 1);
        for sent in sent {
            assert!(packet.len() >= HEADER + MIN_FRAME);
            assert!(sent[HEADER..] == packet[HEADER..], "the frame has changed");
        }
    }

    /// Takes the frames that have come.
    fn collect(&mut self) {
        while let Some((head, written)) = self.guest.take_used(RX) {
            let mut bytes = self.take_room(head, written);
            let mut taken = 1;
            if written == 0 {
                continue;
            }
            // A driver whose buffers are shorter than a header finds the count in one of the next.
            while bytes.len() < HEADER || taken < u16::from_le_bytes([bytes[10], bytes[11]]) {
                let (head, written) = self.guest.take_used(RX).expect("a part is missing");
                bytes.extend(self.take_room(head, written));
                taken += 1;
            }
            assert_eq!(taken, u16::from_le_bytes([bytes[10], bytes[11]]));
            assert!(taken == 1 || self.mergeable);
            let frame = &bytes[HEADER..];
            loop {
                let next = self.given.pop_front().expect("a frame that nobody sent");
                if next == frame {
                    break;
                }
            }
        }
    }

    fn take_room(&mut self, head: u16, written: u32) -> Vec<u8> {
        let ranges = self.rooms.remove(&head).expect("it had no such chain");
        let all: Vec<u8> = ranges
            .iter()
            .flat_map(|range| {
                self.guest
                    .read(range.start, (range.end - range.start) as u32)
            })
            .collect();
        all[..written as usize].to_vec()
    }
}

/// Bytes by which frames are told from one another.
fn frame(len: u16) -> Vec<u8> {
    let mut bytes = vec![len as u8; len.into()];
    for (byte, mark) in bytes.iter_mut().zip(len.to_le_bytes()) {
        *byte = mark;
    }
    if let Some(last) = bytes.last_mut() {
        *last = !(len as u8);
    }
    bytes
}
