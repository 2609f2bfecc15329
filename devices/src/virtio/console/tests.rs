//! The console by its rings, with a host end that reads when the test says so.

use std::io;
use std::os::fd::RawFd;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::console::{ConsoleOutput, ConsoleSink, DEFAULT_CAPACITY, DrainState};
use crate::virtio::status::features as ring;
use crate::virtio::testing::*;
use crate::virtio::transport::mmio::register;

/// The rings of the transmit queue.
const TX_BASE: u64 = 0x4000;
const TYPED: u64 = BUFFERS;
const PRINTED: u64 = BUFFERS + 0x1000;

/// Takes so many bytes and no more.
struct Reader {
    got: Vec<u8>,
    room: usize,
}

impl ConsoleSink for Reader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.room);
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.room -= count;
        self.got.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn poll_fd(&self) -> Option<RawFd> {
        None
    }
}

struct Guest {
    driver: Driver,
    link: Arc<ConsoleLink>,
    reader: Reader,
    sent: u16,
}

impl Guest {
    fn new(size: Option<(u16, u16)>) -> Self {
        let output = Arc::new(ConsoleOutput::for_offers(DEFAULT_CAPACITY).unwrap());
        let link = Arc::new(ConsoleLink::new(output, size).unwrap());
        let driver = Driver::new(Console::new(link.clone()));
        let reader = Reader {
            got: Vec::new(),
            room: usize::MAX,
        };
        Self {
            driver,
            link,
            reader,
            sent: 0,
        }
    }

    fn ready() -> Self {
        let guest = Self::new(None);
        guest.driver.set_up(2, ring::VERSION_1);
        guest
    }

    /// Makes a chain available for printing, and lets the device work.
    fn print(&mut self, chain: &[Desc]) {
        for (index, desc) in (0..).zip(chain) {
            self.driver.put_desc(TX_BASE + DESCRIPTORS, index, *desc);
        }
        let ring = TX_BASE + AVAILABLE;
        let at = ring + 4 + u64::from(self.sent % 16) * 2;
        self.driver.put(at, 0_u16);
        self.sent += 1;
        self.driver.put(ring + 2, self.sent);
        self.driver.write(register::QUEUE_NOTIFY, 1);
        self.driver.host.run(1000);
        assert!(!self.driver.needs_reset());
    }

    fn printed(&self) -> u16 {
        self.driver.get(TX_BASE + USED + 2)
    }

    fn drain(&mut self) -> DrainState {
        self.link.output().drain(&mut self.reader)
    }

    /// What the last buffer was filled with.
    fn typed(&self) -> Vec<u8> {
        let (_, len) = self.driver.last_used();
        let mut bytes = vec![0; len as usize];
        self.driver
            .memory
            .read_slice(&mut bytes, GuestAddress(TYPED))
            .unwrap();
        bytes
    }

    fn metrics(&self) -> crate::virtio::metrics::DeviceCounts {
        self.driver.transport.metrics().counts()
    }
}

#[test]
fn what_is_printed_arrives_in_order_however_it_is_cut() {
    let mut guest = Guest::ready();
    let memory = guest.driver.memory.clone();
    memory
        .write_slice(b"hello, world\n", GuestAddress(PRINTED))
        .unwrap();
    guest.print(&[
        readable(PRINTED, 5, Some(1)),
        readable(PRINTED + 5, 0, Some(2)),
        readable(PRINTED + 5, 2, Some(3)),
        readable(PRINTED + 7, 6, None),
    ]);
    assert_eq!(guest.drain(), DrainState::Empty);
    assert_eq!(guest.reader.got, b"hello, world\n");
    assert_eq!(guest.printed(), 1);
    // Nothing to read at all, and something to write to: given back.
    guest.print(&[writable(PRINTED, 4, None)]);
    assert_eq!(guest.printed(), 2);
    assert_eq!(guest.metrics().bytes_written, 13);
}

#[test]
fn what_is_typed_waits_for_the_guest_and_no_more_than_fits_is_taken() {
    let guest = Guest::new(None);
    let text: Vec<u8> = (0..6000).map(|at| (at % 251) as u8).collect();
    assert_eq!(guest.link.receive(&text), 4096);
    assert_eq!(guest.link.receive(&text[4096..]), 0);
    guest.driver.set_up(2, ring::VERSION_1);
    guest.driver.kick();
    assert_eq!(guest.driver.used_index(), 0, "there is no buffer yet");
    assert!(guest.link.input_space().read().is_err());

    guest.driver.send(&[writable(TYPED, 1000, None)]);
    assert_eq!(guest.typed(), text[..1000]);
    assert!(guest.link.input_space().read().is_ok());
    assert_eq!(guest.link.receive(&text[4096..]), 1000);
    // In two pieces, and more than there is.
    guest
        .driver
        .send(&[writable(TYPED, 5, Some(1)), writable(TYPED + 5, 8000, None)]);
    assert_eq!(guest.typed(), text[1000..5096]);
    guest.driver.send(&[writable(TYPED, 8000, None)]);
    assert_eq!(guest.driver.used_index(), 2, "nothing was typed");
    assert_eq!(guest.link.receive(&text[5096..]), 904);
    guest.driver.host.event(token::INPUT);
    assert_eq!(guest.typed(), text[5096..]);
    assert_eq!(guest.metrics().bytes_read, 6000);
}

#[test]
fn a_buffer_without_space_is_given_back_and_costs_no_input() {
    let guest = Guest::ready();
    guest.link.receive(b"x");
    guest.driver.send(&[readable(TYPED, 8, None)]);
    assert_eq!(guest.driver.last_used(), (0, 0));
    guest.driver.send(&[writable(TYPED, 8, None)]);
    assert_eq!(guest.typed(), b"x");
    assert_eq!(guest.metrics().guest_faults["bad-buffer"], 1);
}

/// More than the output's queue has room for, in one chain.
fn flood(guest: &mut Guest) -> u32 {
    let len = DEFAULT_CAPACITY as u32 + 100;
    guest.print(&[readable(PRINTED, len, None)]);
    assert_eq!(guest.printed(), 0, "there is no room for all of it");
    assert_eq!(guest.link.output().pending(), DEFAULT_CAPACITY);
    len
}

#[test]
fn a_slow_reader_is_waited_for() {
    let mut guest = Guest::ready();
    let len = flood(&mut guest);
    guest.driver.host.event(token::STALL);
    assert_eq!(guest.printed(), 0, "the timer has not expired");
    guest.reader.room = 99;
    guest.drain();
    guest.driver.host.event(token::ROOM);
    assert_eq!(guest.printed(), 0);
    guest.reader.room = 1;
    guest.drain();
    guest.driver.host.event(token::ROOM);
    assert_eq!(guest.printed(), 1);
    guest.reader.room = usize::MAX;
    guest.drain();
    assert_eq!(guest.reader.got.len(), len as usize);
    assert_eq!(guest.link.output().dropped(), 0);
}

#[test]
fn a_reader_that_stands_still_stops_nobody_until_it_reads_again() {
    let mut guest = Guest::ready();
    flood(&mut guest);
    let mut poll = libc::pollfd {
        fd: guest.link.stall_timer(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: `poll` is one valid pollfd, and the count says so.
    assert_eq!(unsafe { libc::poll(&mut poll, 1, -1) }, 1);
    guest.driver.host.event(token::STALL);
    assert_eq!(guest.printed(), 1);
    assert_eq!(guest.link.output().dropped(), 100);
    // No patience any more: this one goes at once.
    guest.print(&[readable(PRINTED, 7, None)]);
    assert_eq!((guest.printed(), guest.link.output().dropped()), (2, 107));
    guest.drain();
    guest.print(&[readable(PRINTED, 7, None)]);
    guest.drain();
    assert_eq!(guest.reader.got.len(), DEFAULT_CAPACITY + 7);
    assert_eq!(guest.link.output().dropped(), 107);
}

#[test]
fn a_reset_gives_up_what_has_no_room_and_the_next_driver_prints() {
    let mut guest = Guest::ready();
    flood(&mut guest);
    guest.driver.write(register::STATUS, 0);
    assert_eq!(guest.link.output().dropped(), 100);
    guest.driver.set_up(2, ring::VERSION_1);
    guest.sent = 0;
    guest.drain();
    guest.print(&[readable(PRINTED, 7, None)]);
    assert_eq!(guest.printed(), 1);
}

#[test]
fn the_size_is_shown_and_its_changes_are_told() {
    let guest = Guest::new(Some((80, 24)));
    let offered = guest.driver.offered();
    assert_ne!(offered & features::SIZE, 0);
    guest.driver.set_up(2, offered);
    let size = || guest.driver.read(register::CONFIG);
    assert_eq!(size(), 24 << 16 | 80);
    guest.link.resize((80, 24)).unwrap();
    assert_eq!(guest.driver.line.count(), 0, "it is the same");
    // When it prints it is told of the first one, too.
    guest.driver.write(register::QUEUE_NOTIFY, 1);
    guest.driver.host.run(1);
    assert_eq!(guest.driver.read(register::INTERRUPT_STATUS), 2);
    guest.driver.write(register::INTERRUPT_ACK, 2);
    let generation = guest.driver.read(register::CONFIG_GENERATION);
    guest.link.resize((132, 43)).unwrap();
    assert_eq!(size(), 43 << 16 | 132);
    assert_eq!(guest.driver.read(register::INTERRUPT_STATUS), 2);
    assert_ne!(guest.driver.read(register::CONFIG_GENERATION), generation);
    // Where there is no terminal, none comes.
    let guest = Guest::ready();
    assert_eq!(guest.driver.offered() & features::SIZE, 0);
    guest.link.resize((132, 43)).unwrap();
    assert_eq!(guest.driver.read(register::CONFIG), 0);
}

#[test]
fn a_driver_in_need_prints_without_a_queue() {
    let mut guest = Guest::new(None);
    guest.driver.add_status(1);
    guest.driver.add_status(2);
    for byte in *b"help" {
        guest.driver.write(register::CONFIG + EMERG_WR, byte.into());
    }
    guest.driver.write(register::CONFIG, u32::MAX);
    guest.drain();
    assert_eq!(guest.reader.got, b"help");
}
