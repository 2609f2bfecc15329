//! The device, driven by a hand-written ring over a back end in memory.

mod limits;
mod pairs;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::backend::net::{HEADER_SIZE, MAX_FRAME};
use crate::virtio::Notification;
use crate::virtio::device::{GuestMemory, InterruptSource, VirtioInterrupt};

/// More than a batch.
const SIZE: u16 = 128;
const RX: u16 = 0;
const TX: u16 = 1;
const BUFFERS: u64 = 0x10_0000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const HEADER: usize = HEADER_SIZE;

/// Where a queue's rings are.
fn rings(queue: u16) -> u64 {
    0x1000 + 0x4000 * u64::from(queue)
}

/// Keeps what is sent, gives what it is given.
struct Backend {
    event: EventFd,
    sent: Mutex<Vec<Vec<u8>>>,
    frames: Mutex<VecDeque<Vec<u8>>>,
    reads: AtomicU64,
    /// The error of all calls, where there is one.
    broken: Mutex<Option<i32>>,
    set: Mutex<Option<Offloads>>,
    enabled: AtomicBool,
    /// Frames for which it has room; it is asked to write when there is more.
    space: AtomicU64,
    takes: Offloads,
}

const MOST: Offloads = Offloads {
    csum: true,
    tso4: true,
    tso6: true,
    ufo: false,
};

impl Backend {
    fn fail(&self) -> io::Result<()> {
        match *self.broken.lock().unwrap() {
            Some(code) => Err(io::Error::from_raw_os_error(code)),
            None => Ok(()),
        }
    }

    fn new(broken: Option<i32>, takes: Offloads) -> Arc<Self> {
        Arc::new(Self {
            event: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
            sent: Mutex::default(),
            frames: Mutex::default(),
            reads: AtomicU64::new(0),
            broken: Mutex::new(broken),
            set: Mutex::default(),
            enabled: AtomicBool::new(false),
            space: AtomicU64::new(u64::MAX),
            takes,
        })
    }

    fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    fn give(&self, header: [u8; HEADER], frame: &[u8]) {
        let packet = [&header[..], frame].concat();
        self.frames.lock().unwrap().push_back(packet);
    }
}

impl NetBackend for Backend {
    fn send(&self, packet: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.fail()?;
        let space = self.space.load(Ordering::Relaxed);
        if space == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.space.store(space - 1, Ordering::Relaxed);
        let mut bytes = Vec::new();
        for slice in packet {
            let mut piece = vec![0; slice.len()];
            slice.copy_to(&mut piece[..]);
            bytes.extend(piece);
        }
        self.sent.lock().unwrap().push(bytes);
        Ok(())
    }

    fn receive(&self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.fail()?;
        let frame = self.frames.lock().unwrap().pop_front();
        let frame = frame.ok_or(io::ErrorKind::WouldBlock)?;
        let mut rest = &frame[..];
        for slice in room {
            let (now, later) = rest.split_at(slice.len().min(rest.len()));
            slice.copy_from(now);
            rest = later;
        }
        Ok(frame.len() - rest.len())
    }

    fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    fn takes(&self) -> Offloads {
        self.takes
    }

    fn offloads(&self) -> Offloads {
        self.takes
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.fail()?;
        *self.set.lock().unwrap() = Some(offloads);
        Ok(())
    }

    fn set_enabled(&self, enabled: bool) -> io::Result<()> {
        self.fail()?;
        self.enabled.store(enabled, Ordering::Relaxed);
        Ok(())
    }
}

#[derive(Default)]
struct Interrupts(AtomicU64);

impl VirtioInterrupt for Interrupts {
    fn trigger(&self, _source: InterruptSource) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// What a driver and its device are to be.
struct Setup {
    accepted: u64,
    broken: Option<i32>,
    limit: RateLimit,
    pairs: usize,
    /// The queues that the driver sets up.
    queues: Vec<u16>,
    takes: Offloads,
}

impl Setup {
    fn new(accepted: u64) -> Self {
        Self {
            accepted,
            broken: None,
            limit: RateLimit::default(),
            pairs: 1,
            queues: vec![RX, TX],
            takes: MOST,
        }
    }
}

/// A driver with its queues, and its device.
struct Driver {
    memory: GuestMemory,
    /// The first pair's.
    backend: Arc<Backend>,
    backends: Vec<Arc<Backend>>,
    interrupts: Arc<Interrupts>,
    notifications: Vec<(u16, Arc<Notification>)>,
    metrics: Arc<DeviceMetrics>,
    device: Net,
    worker: Option<Box<dyn VirtioWorker>>,
    next: [u16; 17],
    free: u64,
}

/// A buffer for a frame with this many bytes.
fn room(len: u32) -> Vec<(u32, u16)> {
    vec![(len, WRITE)]
}

impl Driver {
    fn new(accepted: u64) -> Self {
        Self::try_new(accepted, None).unwrap()
    }

    fn try_new(accepted: u64, broken: Option<i32>) -> Result<Self, ActivateError> {
        Self::with(Setup {
            broken,
            ..Setup::new(accepted)
        })
    }

    fn with(setup: Setup) -> Result<Self, ActivateError> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap();
        let backends: Vec<_> = (0..setup.pairs)
            .map(|_| Backend::new(setup.broken, setup.takes))
            .collect();
        let interrupts = Arc::new(Interrupts::default());
        let mut notifications = Vec::new();
        let queues = setup
            .queues
            .into_iter()
            .map(|index| {
                let at = rings(index);
                let mut queue = Queue::new(SIZE).unwrap();
                let part = |offset| GuestAddress(at + offset);
                queue.try_set_desc_table_address(part(0)).unwrap();
                queue.try_set_avail_ring_address(part(0x1000)).unwrap();
                queue.try_set_used_ring_address(part(0x2000)).unwrap();
                queue.set_ready(true);
                let event = Arc::new(Notification::new().unwrap());
                notifications.push((index, event.clone()));
                ActiveQueue::new(index, queue, memory.clone(), interrupts.clone(), event).unwrap()
            })
            .collect();
        let config = NetConfig {
            name: "net0".into(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: None,
            limit: setup.limit,
        };
        let of_pairs = backends
            .iter()
            .map(|backend| backend.clone() as _)
            .collect();
        let mut device = Net::new(config, of_pairs).unwrap();
        let metrics = Arc::new(DeviceMetrics::new("net0", device.device_type(), Vec::new()));
        let worker = device.activate(ActivationContext {
            features: setup.accepted,
            queues,
            interrupt: interrupts.clone(),
            metrics: metrics.clone(),
        })?;
        Ok(Self {
            memory,
            backend: backends[0].clone(),
            backends,
            interrupts,
            notifications,
            metrics,
            device,
            worker: Some(worker),
            next: [0; 17],
            free: BUFFERS,
        })
    }

    fn worker(&mut self) -> &mut dyn VirtioWorker {
        &mut **self.worker.as_mut().unwrap()
    }

    fn avail(&self, queue: u16) -> u64 {
        rings(queue) + 0x1000
    }

    /// Makes a chain available; where its buffers are. Descriptors are used by turns: a head is the number of its first.
    fn add(&mut self, queue: u16, buffers: &[(u32, u16)]) -> Vec<u64> {
        let table = rings(queue);
        let head = self.next[usize::from(queue)];
        let mut places = Vec::new();
        for (at, (len, flags)) in (0..).zip(buffers) {
            let index = (head + at) % SIZE;
            let last = usize::from(at) + 1 == buffers.len();
            let flags = flags | if last { 0 } else { NEXT };
            let base = table + u64::from(index) * 16;
            let write = |offset, bytes: &[u8]| {
                let address = GuestAddress(base + offset);
                self.memory.write_slice(bytes, address).unwrap();
            };
            write(0, &self.free.to_le_bytes());
            write(8, &len.to_le_bytes());
            write(12, &flags.to_le_bytes());
            write(14, &((index + 1) % SIZE).to_le_bytes());
            places.push(self.free);
            self.free += u64::from(*len).max(1);
        }
        self.next[usize::from(queue)] = (head + buffers.len() as u16) % SIZE;
        self.publish(queue, head);
        places
    }

    fn publish(&self, queue: u16, head: u16) {
        let avail = self.avail(queue);
        let index: u16 = self.memory.read_obj(GuestAddress(avail + 2)).unwrap();
        let entry = avail + 4 + u64::from(index % SIZE) * 2;
        self.memory.write_obj(head, GuestAddress(entry)).unwrap();
        let index = index.wrapping_add(1);
        self.memory
            .write_obj(index, GuestAddress(avail + 2))
            .unwrap();
    }

    /// Makes a packet available, in one piece.
    fn send(&mut self, header: &[u8], frame: &[u8]) {
        self.send_on(TX, header, frame);
    }

    fn send_on(&mut self, queue: u16, header: &[u8], frame: &[u8]) {
        let packet = [header, frame].concat();
        let at = self.add(queue, &[(packet.len() as u32, 0)])[0];
        self.memory.write_slice(&packet, GuestAddress(at)).unwrap();
    }

    /// All that was given back: heads and lengths.
    fn used(&self, queue: u16) -> Vec<(u32, u32)> {
        let used = rings(queue) + 0x2000;
        let count: u16 = self.memory.read_obj(GuestAddress(used + 2)).unwrap();
        (0..u64::from(count))
            .map(|at| {
                let entry = used + 4 + at % u64::from(SIZE) * 8;
                let read = |at| self.memory.read_obj(GuestAddress(at)).unwrap();
                (read(entry), read(entry + 4))
            })
            .collect()
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }

    /// The tap has a frame.
    fn edge(&mut self) {
        self.worker().process_event(0, EventSet::IN).unwrap();
    }

    fn notify(&mut self, queue: u16) {
        self.worker().process_queue(queue).unwrap();
    }

    fn dropped(&self) -> u64 {
        self.metrics.counts().guest_faults["dropped-frame"]
    }

    fn sent(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut *self.backend.sent.lock().unwrap())
    }

    /// Whether the device asked to be called again.
    fn comes_back(&self, queue: u16) -> bool {
        let mut events = self.notifications.iter();
        let event = events.find(|(index, _)| *index == queue);
        event.unwrap().1.take()
    }
}

const ALL: u64 = features::CSUM
    | features::GUEST_CSUM
    | features::HOST_TSO4
    | features::GUEST_TSO4
    | features::MRG_RXBUF;

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ at >> 8) as u8).collect()
}

/// A header by its fields: flags, type, header length, segment, checksum's start and offset.
fn header(flags: u8, kind: u8, fields: [u16; 4]) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[0] = flags;
    bytes[1] = kind;
    for (at, field) in [2, 4, 6, 8].into_iter().zip(fields) {
        super::header::put(&mut bytes, at, field);
    }
    bytes
}

const PLAIN: [u8; HEADER] = [0; HEADER];

#[test]
fn features_are_those_of_back_end_and_configuration() {
    let driver = Driver::new(0);
    let device = |mtu| {
        let config = NetConfig {
            name: "n".into(),
            mac: [2, 3, 4, 5, 6, 7],
            mtu,
            limit: RateLimit::default(),
        };
        Net::new(config, vec![driver.backend.clone()]).unwrap()
    };
    let offered = device(None).device_features();
    assert_eq!(offered & ALL, ALL);
    let absent = features::GUEST_UFO | features::HOST_UFO | features::MTU;
    assert_eq!(offered & absent, 0);
    let device = device(Some(1400));
    assert_ne!(device.device_features() & features::MTU, 0);
    let mut space = [0xff; 16];
    device.read_config(0, &mut space);
    let expected = [2, 3, 4, 5, 6, 7, 1, 0, 1, 0, 0x78, 5, 0, 0, 0, 0];
    assert_eq!(space, expected);
    for offset in [12, u64::MAX] {
        device.read_config(offset, &mut space);
        assert_eq!(space, [0; 16]);
    }
}

#[test]
fn the_back_end_is_told_what_the_driver_takes() {
    let set = |accepted| {
        Driver::new(accepted)
            .backend
            .set
            .lock()
            .unwrap()
            .take()
            .unwrap()
    };
    assert_eq!(set(0), Offloads::default());
    // Segmentation without checksums is refused by hosts, and not negotiable.
    assert_eq!(set(features::GUEST_TSO4), Offloads::default());
    let all = set(ALL);
    assert!(all.csum && all.tso4 && !all.tso6 && !all.ufo);
}

#[test]
fn an_address_is_a_name_s_for_ever() {
    // These are in guests' configurations by now: they must not change.
    assert_eq!(mac_of("net0"), mac_of("net0"));
    assert_ne!(mac_of("net0"), mac_of("net1"));
    assert_eq!(mac_of(""), [0xca, 0xf2, 0x9c, 0xe4, 0x84, 0x22]);
    for name in ["a", "b", "tap0", "tap1", "lan"] {
        assert_eq!(mac_of(name)[0] & 3, 2, "{name}");
    }
}

#[test]
fn frames_are_sent_from_any_pieces() {
    let mut driver = Driver::new(ALL);
    let packet = [&PLAIN[..], &frame(100)].concat();
    driver.send(&packet[..12], &packet[12..]);
    // The header itself in pieces.
    let places = driver.add(TX, &[(5, 0), (10, 0), (97, 0)]);
    for (place, (from, to)) in places.into_iter().zip([(0, 5), (5, 15), (15, 112)]) {
        let piece = &packet[from..to];
        driver
            .memory
            .write_slice(piece, GuestAddress(place))
            .unwrap();
    }
    driver.notify(TX);
    assert_eq!(driver.sent(), [packet.clone(), packet]);
    assert_eq!(driver.used(TX), [(0, 0), (1, 0)]);
    assert_eq!(driver.interrupts.0.load(Ordering::Relaxed), 1);
    assert_eq!(driver.dropped(), 0);
}

#[test]
fn a_header_is_passed_on_as_far_as_it_was_negotiated() {
    let tso = header(1, 1, [54, 1460, 34, 16]);
    let mut driver = Driver::new(ALL);
    driver.send(&tso, &frame(3000));
    // Flags that are the device's alone, and fields that nothing makes use of.
    driver.send(&header(0xfe, 0, [9, 9, 9, 9]), &frame(60));
    driver.notify(TX);
    let sent = driver.sent();
    assert_eq!(sent[0][..HEADER], tso);
    assert_eq!(sent[1][..HEADER], PLAIN);
    let mut driver = Driver::new(0);
    driver.send(&tso, &frame(3000));
    driver.send(&header(1, 0, [0, 0, 34, 16]), &frame(60));
    driver.notify(TX);
    assert_eq!(driver.dropped(), 1);
    assert_eq!(driver.sent()[0][..HEADER], PLAIN);
}

#[test]
fn hostile_packets_are_dropped_and_given_back() {
    let cases: [(&str, Vec<u8>, usize); 12] = [
        ("no header", vec![], 0),
        ("half a header", vec![0; 11], 0),
        ("no frame", PLAIN.to_vec(), 0),
        ("less than Ethernet", PLAIN.to_vec(), 13),
        ("too long", PLAIN.to_vec(), MAX_FRAME + 1),
        ("sum beyond", header(1, 0, [0, 0, 50, 9]).to_vec(), 60),
        ("sum wraps", header(1, 0, [0, 0, !0, !0]).to_vec(), 60),
        ("no segment", header(1, 1, [54, 0, 34, 16]).to_vec(), 60),
        (
            "header beyond",
            header(1, 1, [!0, 1460, 34, 16]).to_vec(),
            60,
        ),
        ("no checksum", header(0, 1, [54, 1460, 34, 16]).to_vec(), 60),
        (
            "IPv6 not taken",
            header(1, 4, [54, 1460, 34, 16]).to_vec(),
            60,
        ),
        (
            "unknown type",
            header(1, 0x81, [54, 9, 34, 16]).to_vec(),
            60,
        ),
    ];
    for (what, header, len) in cases {
        let mut driver = Driver::new(ALL);
        driver.send(&header, &frame(len));
        driver.send(&PLAIN, &frame(60));
        driver.notify(TX);
        assert_eq!(driver.dropped(), 1, "{what}");
        assert_eq!(driver.used(TX), [(0, 0), (1, 0)], "{what}");
        assert_eq!(driver.sent().len(), 1, "{what}");
    }
    // Nothing but room to write, and the longest frame there is.
    let mut driver = Driver::new(ALL);
    driver.add(TX, &room(100));
    driver.send(&PLAIN, &frame(MAX_FRAME));
    driver.notify(TX);
    assert_eq!((driver.dropped(), driver.sent().len()), (1, 1));
}

#[test]
fn a_ring_kept_full_does_not_keep_the_thread() {
    let mut driver = Driver::new(ALL);
    for _ in 0..SIZE {
        driver.send(&PLAIN, &frame(60));
    }
    for sent in 1..5 {
        driver.notify(TX);
        assert!(driver.comes_back(TX), "{sent}");
        assert_eq!(driver.sent().len(), BATCH as usize, "{sent}");
        // What was sent is there again at once.
        let first = (sent - 1) * BATCH as u16;
        (first..first + BATCH as u16).for_each(|head| driver.publish(TX, head % SIZE));
    }
    // A tap that always has frames, and room for all of them: one call delivers a batch at most.
    let mut driver = Driver::new(0);
    for _ in 0..2 * BATCH {
        driver.backend.give(PLAIN, &frame(10));
    }
    driver.add(RX, &room(2000));
    driver.edge();
    assert_eq!(driver.dropped(), u64::from(BATCH));
    assert!(driver.comes_back(RX));
    driver.notify(RX);
    assert!(driver.comes_back(RX));
    driver.notify(RX);
    assert!(!driver.comes_back(RX));
}

#[test]
fn a_frame_fills_as_many_buffers_as_it_needs() {
    let mut driver = Driver::new(ALL);
    let places: Vec<u64> = (0..4).map(|_| driver.add(RX, &room(100))[0]).collect();
    let sent = frame(238);
    driver.backend.give(header(1, 1, [54, 50, 34, 16]), &sent);
    driver.edge();
    assert_eq!(driver.used(RX), [(0, 100), (1, 100), (2, 50)]);
    let header = driver.bytes(places[0], HEADER);
    assert_eq!(
        header[..10],
        super::tests::header(1, 1, [54, 50, 34, 16])[..10]
    );
    assert_eq!(header[10..], [3, 0]);
    let mut got = driver.bytes(places[0] + 12, 88);
    got.extend(driver.bytes(places[1], 100));
    got.extend(driver.bytes(places[2], 50));
    assert_eq!(got, sent);
    // The fourth buffer was taken ahead, and is there for the next frame.
    driver.backend.give(PLAIN, &frame(60));
    driver.edge();
    assert_eq!(driver.used(RX)[3], (3, 72));
    assert_eq!(driver.bytes(places[3] + 10, 2), [1, 0]);
}

#[test]
fn without_buffers_frames_stay_where_they_are() {
    let mut driver = Driver::new(ALL);
    driver.backend.give(PLAIN, &frame(60));
    for _ in 0..3 {
        driver.edge();
    }
    assert_eq!(driver.backend.reads.load(Ordering::Relaxed), 0);
    assert!(!driver.comes_back(RX));
    let place = driver.add(RX, &room(2000))[0];
    driver.notify(RX);
    assert_eq!(driver.bytes(place + 12, 60), frame(60));
    assert_eq!(driver.dropped(), 0);
}

#[test]
fn a_frame_that_was_read_waits_for_more_buffers() {
    let mut driver = Driver::new(ALL);
    let sent = frame(5000);
    let first = driver.add(RX, &room(1000))[0];
    driver.backend.give(PLAIN, &sent);
    driver.edge();
    assert_eq!(driver.used(RX), []);
    let second = driver.add(RX, &room(1000))[0];
    driver.notify(RX);
    assert_eq!(driver.used(RX), []);
    let third = driver.add(RX, &[(1, WRITE), (3999, WRITE)])[0];
    driver.notify(RX);
    assert_eq!(driver.used(RX), [(0, 1000), (1, 1000), (2, 3012)]);
    let mut got = driver.bytes(first + 12, 988);
    got.extend(driver.bytes(second, 1000));
    got.extend(driver.bytes(third, 3012));
    assert_eq!(got, sent);
    assert_eq!(driver.bytes(first + 10, 2), [3, 0]);
}

#[test]
fn a_frame_that_never_fits_is_dropped() {
    // With all buffers that a queue has.
    let mut driver = Driver::new(ALL);
    for _ in 0..SIZE {
        driver.add(RX, &room(20));
    }
    driver.backend.give(PLAIN, &frame(4000));
    driver.backend.give(PLAIN, &frame(20));
    driver.edge();
    assert_eq!(driver.dropped(), 1);
    assert_eq!(driver.used(RX), [(0, 20), (1, 12)]);
    // With one buffer for a frame, which then serves the next.
    let mut driver = Driver::new(0);
    let place = driver.add(RX, &room(100))[0];
    driver.add(RX, &room(2000));
    driver.backend.give(PLAIN, &frame(1000));
    driver.backend.give(PLAIN, &frame(88));
    driver.edge();
    assert_eq!(driver.dropped(), 1);
    assert_eq!(driver.used(RX), [(0, 100)]);
    assert_eq!(driver.bytes(place + 12, 88), frame(88));
}

#[test]
fn frames_that_the_driver_does_not_take_are_dropped() {
    let mut driver = Driver::new(features::GUEST_CSUM | features::MRG_RXBUF);
    driver.add(RX, &room(2000));
    // Segmented by a driver that was there before, no frame, less than a header, more than there can be.
    driver
        .backend
        .give(header(1, 1, [54, 50, 34, 16]), &frame(100));
    driver.backend.give(PLAIN, &[]);
    let frames = || driver.backend.frames.lock().unwrap();
    frames().push_back(vec![0; 5]);
    frames().push_back(vec![0; 100_000]);
    driver
        .backend
        .give(header(1, 0, [0, 0, 34, 16]), &frame(100));
    driver.edge();
    assert_eq!(driver.dropped(), 4);
    assert_eq!(driver.used(RX), [(0, 112)]);
    let mut driver = Driver::new(0);
    driver.add(RX, &room(2000));
    driver
        .backend
        .give(header(1, 0, [0, 0, 34, 16]), &frame(100));
    driver.edge();
    assert_eq!(driver.dropped(), 1);
}

#[test]
fn buffers_without_room_are_given_back() {
    let mut driver = Driver::new(ALL);
    driver.add(RX, &[(50, 0)]);
    driver.add(RX, &room(0));
    driver.add(RX, &room(100));
    driver.backend.give(PLAIN, &frame(60));
    driver.edge();
    assert_eq!(driver.used(RX), [(0, 0), (1, 0), (2, 72)]);
    assert_eq!(driver.dropped(), 2);
}

#[test]
fn a_back_end_that_fails_leaves_the_device_alone() {
    let mut driver = Driver::new(ALL);
    *driver.backend.broken.lock().unwrap() = Some(libc::EBADFD);
    driver.add(RX, &room(2000));
    driver.send(&PLAIN, &frame(60));
    driver.edge();
    driver.notify(RX);
    driver.notify(TX);
    assert_eq!(driver.used(TX), [(0, 0)]);
    assert_eq!(driver.metrics.counts().host_errors, 3);
    // Each call tried once, and none asks for another.
    assert_eq!(driver.backend.reads.load(Ordering::Relaxed), 2);
    assert!(!driver.comes_back(RX) && !driver.comes_back(TX));
    *driver.backend.broken.lock().unwrap() = None;
    driver.backend.give(PLAIN, &frame(60));
    driver.edge();
    assert_eq!(driver.used(RX), [(0, 72)]);
}

#[test]
fn a_stopped_device_leaves_what_it_took_ahead() {
    let mut driver = Driver::new(ALL);
    for _ in 0..3 {
        driver.add(RX, &room(100));
    }
    driver.backend.give(PLAIN, &frame(60));
    driver.edge();
    let mut queues = driver.worker.take().unwrap().stop();
    assert_eq!(queues.len(), 2);
    let mut chain = crate::virtio::queue::Chain::new();
    for head in [1, 2] {
        assert!(queues[0].pop(&mut chain).unwrap());
        assert_eq!(chain.head(), head);
    }
    assert!(!queues[0].pop(&mut chain).unwrap());
}
