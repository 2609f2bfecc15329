//! The device between a driver and a back end: who has the queues when, and what comes of it when the back end goes.

mod backend;

use std::fs::File;

use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::*;
use crate::backend::vhost_user::VhostUserError;
use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;
use crate::virtio::testing::*;
use crate::virtio::transport::mmio::register;
use backend::{Backend, State};

/// The rings of the queue of requests, and where requests lie.
const REQUESTS: u64 = 0x4000;
const LEN: u32 = 40;

fn shared_memory() -> GuestMemory {
    let file = tempfile::tempfile().unwrap();
    file.set_len(HIGH_END).unwrap();
    let part = |start: u64, end: u64| {
        let file: File = file.try_clone().unwrap();
        let offset = Some(FileOffset::new(file, start));
        (GuestAddress(start), (end - start) as usize, offset)
    };
    GuestMemoryMmap::from_ranges_with_files([part(0, LOW_END), part(HIGH, HIGH_END)]).unwrap()
}

fn open(state: State, memory: GuestMemory) -> (Backend, Result<VhostUser, VhostUserError>) {
    let (backend, socket) = Backend::start(state);
    let opened = VhostUser::open(socket, memory, QUEUES, Fs::needed_features());
    (backend, opened)
}

struct Guest {
    driver: Driver,
    backend: Option<Backend>,
}

impl Guest {
    /// A driver that has its device.
    fn new(state: State) -> Self {
        let memory = shared_memory();
        let (backend, opened) = open(state, memory.clone());
        let device = Fs::new("files", opened.unwrap()).unwrap();
        let driver = Driver::with_memory(Box::new(device), memory);
        Self {
            driver,
            backend: Some(backend),
        }
    }

    fn ready() -> Self {
        let guest = Self::new(State::default());
        guest.set_up();
        guest.backend().wait_for_queues();
        guest
    }

    fn set_up(&self) {
        self.driver.set_up(QUEUES.into(), features::VERSION_1);
    }

    fn backend(&self) -> &Backend {
        self.backend.as_ref().unwrap()
    }

    /// Makes a request available: its number, by which its answer is known.
    fn ask(&self, head: u16, unique: u64) {
        let driver = &self.driver;
        let at = BUFFERS + u64::from(head) * 0x1000;
        driver.put(at + 8, unique);
        let table = REQUESTS + DESCRIPTORS;
        driver.put_desc(table, head, readable(at, LEN, Some(head + 1)));
        driver.put_desc(table, head + 1, writable(at + 0x800, LEN, None));
        let index: u16 = driver.get(REQUESTS + AVAILABLE + 2);
        driver.put(REQUESTS + AVAILABLE + 4 + u64::from(index % 16) * 2, head);
        driver.put(REQUESTS + AVAILABLE + 2, index.wrapping_add(1));
        driver.write(register::QUEUE_NOTIFY, 1);
    }

    /// Gives a chain back in the back end's place.
    fn answer(&self, head: u16) {
        let driver = &self.driver;
        let index: u16 = driver.get(REQUESTS + USED + 2);
        let entry = REQUESTS + USED + 4 + u64::from(index % 16) * 8;
        driver.put(entry, u32::from(head));
        driver.put(REQUESTS + USED + 2, index.wrapping_add(1));
    }

    /// How many chains of requests came back.
    fn used(&self) -> u16 {
        self.driver.get(REQUESTS + USED + 2)
    }

    /// The error that a request was answered by, and its number.
    fn error(&self, head: u16) -> (i32, u64) {
        let at = BUFFERS + u64::from(head) * 0x1000 + 0x800;
        assert_eq!(self.driver.get::<u32>(at), 16, "the answer's length");
        (self.driver.get(at + 4), self.driver.get(at + 8))
    }

    fn lose_backend(&mut self) {
        self.backend = None;
        self.driver.host.run_events();
    }
}

const GONE: i32 = -libc::ENOTCONN;

#[test]
fn the_driver_learns_the_tag_and_how_many_queues_there_are() {
    let guest = Guest::new(State::default());
    let driver = &guest.driver;
    assert_eq!(driver.read(register::DEVICE_ID), 26);
    assert_eq!(driver.offered(), features::COMMON);
    let mut space = [0xff; 44];
    driver.transport.read(register::CONFIG, &mut space);
    assert_eq!(&space[..6], b"files\0");
    assert_eq!(space[6..36], [0; 30]);
    assert_eq!(space[36..], [1, 0, 0, 0, 0, 0, 0, 0]);
    guest.backend().with(|state| {
        let memory = [(0, LOW_END), (HIGH, HIGH_END - HIGH)];
        assert_eq!(state.memory, memory);
    });
}

#[test]
fn the_back_end_has_the_queues_their_events_and_their_interrupt() {
    let guest = Guest::ready();
    guest.backend().with(|state| {
        let own = 1 << 30;
        assert_eq!(state.accepted, features::VERSION_1 | own);
        for (index, ring) in (0..).zip(&state.rings) {
            assert_eq!((ring.size, ring.base), (16, 0));
            let places = [DESCRIPTORS, AVAILABLE, USED].map(|place| {
                let address = GuestAddress(place + index * 0x4000);
                guest.driver.memory.get_host_address(address).unwrap() as u64
            });
            assert_eq!(ring.places, places);
        }
    });
    guest.ask(0, 1);
    assert!(guest.backend().notifications(1) > 0);
    let event = guest.driver.line.irqfd().unwrap().try_clone().unwrap();
    assert!(event.read().is_err());
    guest.backend().interrupt(1);
    assert_eq!(event.read().unwrap(), 1);
}

#[test]
fn a_pause_takes_the_queues_and_a_resume_gives_them_where_they_were() {
    let guest = Guest::ready();
    guest.backend().with(|state| state.rings[1].base = 3);
    guest.driver.host.pause();
    guest
        .backend()
        .with(|state| assert!(state.rings.iter().all(|ring| !ring.enabled)));
    guest.backend().with(|state| state.rings[1].base = 0);
    let interrupts = guest.driver.line.count();
    guest.driver.host.resume();
    assert!(guest.driver.line.count() > interrupts, "the driver looks");
    guest.backend().wait_for_queues();
    guest
        .backend()
        .with(|state| assert_eq!([state.rings[0].base, state.rings[1].base], [0, 3]));
    // It said where it was, and then answered two more.
    guest.driver.put(REQUESTS + USED + 2, 5_u16);
    guest.driver.host.pause();
    guest.driver.host.resume();
    guest.backend().wait_for_queues();
    guest
        .backend()
        .with(|state| assert_eq!(state.rings[1].base, 5));
}

#[test]
fn a_reset_takes_the_queues_and_the_next_driver_begins_anew() {
    let guest = Guest::ready();
    guest.backend().with(|state| state.rings[1].base = 7);
    guest.driver.write(register::STATUS, 0);
    guest
        .backend()
        .with(|state| assert!(state.rings.iter().all(|ring| !ring.enabled)));
    guest.set_up();
    guest.backend().wait_for_queues();
    guest
        .backend()
        .with(|state| assert_eq!(state.rings[1].base, 0));
}

#[test]
fn when_the_back_end_goes_every_request_fails() {
    let mut guest = Guest::ready();
    // One that waits, one that overtakes it, and one that nobody has looked at.
    guest.ask(0, 100);
    guest.ask(2, 200);
    guest.answer(2);
    guest.ask(4, 400);
    guest.lose_backend();
    assert_eq!(guest.used(), 3);
    assert_eq!(guest.error(0), (GONE, 100));
    assert_eq!(guest.error(4), (GONE, 400));
    assert!(guest.driver.line.count() > 0);
    // And so it goes on.
    guest.ask(2, 201);
    guest.driver.host.run_events();
    assert_eq!(guest.error(2), (GONE, 201));
    guest.driver.host.pause();
    guest.driver.host.resume();
    guest.ask(0, 101);
    guest.driver.host.run_events();
    assert_eq!(guest.error(0), (GONE, 101));
    assert!(!guest.driver.needs_reset());
    let counts = guest.driver.transport.metrics().counts();
    assert_eq!((counts.host_errors, counts.events["unanswered"]), (1, 4));
}

#[test]
fn a_driver_that_comes_too_late_is_told_so() {
    let mut guest = Guest::new(State::default());
    guest.backend = None;
    guest.set_up();
    guest.ask(0, 5);
    guest.driver.host.run_events();
    assert_eq!(guest.error(0), (GONE, 5));
    // Again.
    guest.set_up();
    guest.ask(2, 6);
    guest.driver.host.run_events();
    assert_eq!(guest.error(2), (GONE, 6));
}

#[test]
fn a_back_end_that_keeps_its_queues_is_left_alone() {
    let guest = Guest::new(State {
        hangs: true,
        ..State::default()
    });
    guest.set_up();
    guest.backend().wait_for_queues();
    guest.driver.write(register::STATUS, 0);
    assert_eq!(guest.driver.transport.metrics().counts().host_errors, 1);
    guest.set_up();
    guest.ask(0, 9);
    guest.driver.host.run_events();
    assert_eq!(guest.error(0), (GONE, 9));
    guest.backend().with(|state| state.hangs = false);
    guest.backend().unpark();
}

#[test]
fn rings_of_nonsense_need_a_reset() {
    let mut guest = Guest::ready();
    guest.driver.put(REQUESTS + AVAILABLE + 2, 1000_u16);
    guest.lose_backend();
    assert!(guest.driver.needs_reset());
}

#[test]
fn a_back_end_that_cannot_be_one_is_refused() {
    let fails = |state: State| open(state, shared_memory()).1.err().unwrap();
    let old = fails(State {
        offered: 1 << 30 | features::VERSION_1,
        ..State::default()
    });
    assert!(matches!(old, VhostUserError::Features { .. }), "{old}");
    let other = fails(State {
        queues: 1,
        ..State::default()
    });
    assert!(
        matches!(
            other,
            VhostUserError::Queues {
                there: 1,
                wanted: 2
            }
        ),
        "{other}"
    );
    let private = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let private = open(State::default(), private).1.err().unwrap();
    assert!(
        matches!(private, VhostUserError::PrivateMemory),
        "{private}"
    );
}

#[test]
fn a_tag_has_36_bytes_at_most() {
    for (tag, good) in [
        ("", false),
        (&"t".repeat(36), true),
        (&"t".repeat(37), false),
    ] {
        let (_backend, opened) = open(State::default(), shared_memory());
        assert_eq!(Fs::new(tag, opened.unwrap()).is_ok(), good, "{tag:?}");
    }
}

#[test]
fn both_queues_are_needed() {
    let guest = Guest::new(State::default());
    guest.driver.set_up(1, features::VERSION_1);
    assert!(guest.driver.needs_reset());
}
