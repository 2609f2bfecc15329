//! A 16550A serial port, at eight ports.
//!
//! The registers are vm-superio's (after the National Semiconductor PC16550D data sheet); this
//! module adds what it leaves open: where output goes, and how input waits for its guest. Registers
//! are called on vCPU threads, [`Serial::receive`] from the thread that has the input.
//!
//! # Input is never lost
//! On the wire of a real port, what arrives before the guest listens is gone: a driver that opens the
//! port clears the receive FIFO and reads once into the void. Here, the sender can wait. So the port
//! takes input only while the guest listens, which it does from the instant that it enables the
//! receive interrupt, or polls the line status over and over; it ends when a driver clears the
//! receive FIFO with that interrupt disabled. What was in the FIFO then is put back, not cleared.
//!
//! # Locks
//! Output is handed over with no lock held, since its receiver may make a vCPU wait: input, and other
//! vCPUs, still get at the registers then.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;

use super::{byte_read, byte_write};

/// Number of ports.
pub const LEN: u64 = 8;

const DATA: u8 = 0;
const INTERRUPT_ENABLE: u8 = 1;
const FIFO_CONTROL: u8 = 2;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;

const IER_RECEIVED_DATA: u8 = 1 << 0;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;
const LCR_DIVISOR_LATCH: u8 = 1 << 7;
const MCR_LOOPBACK: u8 = 1 << 4;

/// Size of vm-superio's receive FIFO, in bytes.
const FIFO_LEN: usize = 64;

/// So many reads of the line status without a write in between mean a guest that polls for input. A
/// driver's start-up reads it fewer than ten times.
const POLLS: u32 = 16;

/// Where a serial port's output goes.
pub trait SerialOutput: Send + Sync {
    /// Takes bytes that the guest sent, in order. Called on vCPU threads; the guest waits meanwhile,
    /// so that it has to return in bounded time whatever becomes of the bytes.
    fn write(&self, bytes: &[u8]);
}

/// A serial port. [`LEN`] ports long.
pub struct Serial {
    state: Mutex<State>,
    output: Arc<dyn SerialOutput>,
    input_space: EventFd,
    lost_interrupts: Arc<AtomicU64>,
}

struct State {
    uart: vm_superio::Serial<Line, NoEvents, io::Sink>,
    divisor_latch: bool,
    loopback: bool,
    receive_interrupt: bool,
    /// The guest wants input.
    listening: bool,
    /// Reads of the line status since the last write to any register.
    polls: u32,
    /// [`Serial::receive`] had more than there was room for, and waits for `input_space`.
    starved: bool,
    /// Input that was in the FIFO when the guest ceased to listen; at most a FIFO's worth.
    put_back: Vec<u8>,
}

impl Serial {
    /// A port that interrupts by `line` (IRQ 4 for COM1), sends to `output`, and rings
    /// `input_space`, a non-blocking event, when there is room again for input that
    /// [`receive`](Self::receive) did not take.
    pub fn new(
        line: Arc<dyn InterruptLine>,
        output: Arc<dyn SerialOutput>,
        input_space: EventFd,
    ) -> Self {
        let lost_interrupts = Arc::new(AtomicU64::new(0));
        let line = Line {
            line,
            lost: lost_interrupts.clone(),
        };
        let state = State {
            uart: vm_superio::Serial::new(line, io::sink()),
            divisor_latch: false,
            loopback: false,
            receive_interrupt: false,
            listening: false,
            polls: 0,
            starved: false,
            put_back: Vec::new(),
        };
        Self {
            state: Mutex::new(state),
            output,
            input_space,
            lost_interrupts,
        }
    }

    /// Gives the guest input, and returns how many bytes of it were taken: as many as the FIFO has
    /// room for, none while the guest does not listen.
    ///
    /// When it is fewer than there were, the event `input_space` rings once there is room again;
    /// then is the time to offer the rest. Called from any thread; does not block.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        let mut state = self.state();
        let taken = state.receive(bytes);
        state.starved = taken < bytes.len();
        taken
    }

    /// How many interrupts the host failed to pass on.
    pub fn lost_interrupts(&self) -> u64 {
        self.lost_interrupts.load(Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rings for more input where some is waiting and half of the FIFO is free.
    fn ask_for_input(&self, state: &mut State) {
        if state.starved && state.accepts() && state.uart.fifo_capacity() >= FIFO_LEN / 2 {
            state.starved = false;
            // It can only fail by being full, and then it is ringing.
            let _ = self.input_space.write(1);
        }
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        byte_read(offset, data, |offset| {
            if u64::from(offset) >= LEN {
                return None;
            }
            let mut state = self.state();
            let value = state.read(offset);
            self.ask_for_input(&mut state);
            Some(value)
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some((offset, value)) = byte_write(offset, data) else {
            return;
        };
        if u64::from(offset) >= LEN {
            return;
        }
        if offset == DATA && self.state().transmits() {
            // Before its interrupt: the guest may send the next byte from another vCPU after that.
            self.output.write(&[value]);
        }
        let mut state = self.state();
        state.write(offset, value);
        self.ask_for_input(&mut state);
    }
}

impl State {
    fn accepts(&self) -> bool {
        self.listening && !self.loopback
    }

    fn transmits(&self) -> bool {
        !self.divisor_latch && !self.loopback
    }

    fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.uart.fifo_capacity());
        if !self.accepts() || taken == 0 {
            return 0;
        }
        self.uart.enqueue_raw_bytes(&bytes[..taken]).unwrap_or(0)
    }

    fn read(&mut self, offset: u8) -> u8 {
        if offset == LINE_STATUS {
            self.polls = self.polls.saturating_add(1);
            if self.polls >= POLLS {
                self.listen();
            }
        }
        self.uart.read(offset)
    }

    fn write(&mut self, offset: u8, value: u8) {
        self.polls = 0;
        match offset {
            INTERRUPT_ENABLE if !self.divisor_latch => {
                self.receive_interrupt = value & IER_RECEIVED_DATA != 0;
                if self.receive_interrupt {
                    self.listen();
                }
            }
            FIFO_CONTROL if value & FCR_CLEAR_RECEIVER != 0 => self.clear_receiver(),
            LINE_CONTROL => self.divisor_latch = value & LCR_DIVISOR_LATCH != 0,
            MODEM_CONTROL => self.set_loopback(value & MCR_LOOPBACK != 0, value),
            _ => {}
        }
        // No error is possible: the output is a sink, interrupts do not fail, and a full FIFO in
        // loopback mode drops the byte, as an overrun does.
        let _ = self.uart.write(offset, value);
    }

    fn listen(&mut self) {
        self.listening = true;
        self.restore();
    }

    fn clear_receiver(&mut self) {
        if self.loopback {
            self.drain();
        } else if self.listening && !self.receive_interrupt {
            self.listening = false;
            self.put_back = self.drain();
        }
    }

    /// The bytes that loop back and those of the host never mix: each side's are out of the FIFO
    /// while the other's turn is.
    fn set_loopback(&mut self, on: bool, modem_control: u8) {
        if on == self.loopback {
            return;
        }
        let bytes = self.drain();
        if on {
            self.put_back.extend(bytes);
        }
        self.loopback = on;
        // The mode has to be in force before bytes can be put back.
        let _ = self.uart.write(MODEM_CONTROL, modem_control);
        self.restore();
    }

    /// Puts back what was taken out of the FIFO, where the guest can take it.
    fn restore(&mut self) {
        if self.accepts() && !self.put_back.is_empty() {
            let bytes = std::mem::take(&mut self.put_back);
            let taken = self.receive(&bytes);
            debug_assert_eq!(
                taken,
                bytes.len(),
                "the FIFO is empty while bytes are put back"
            );
        }
    }

    /// Empties the FIFO.
    fn drain(&mut self) -> Vec<u8> {
        let line_control = self.uart.read(LINE_CONTROL);
        let _ = self
            .uart
            .write(LINE_CONTROL, line_control & !LCR_DIVISOR_LATCH);
        let count = FIFO_LEN.saturating_sub(self.uart.fifo_capacity());
        let bytes = (0..count).map(|_| self.uart.read(DATA)).collect();
        let _ = self.uart.write(LINE_CONTROL, line_control);
        bytes
    }
}

/// The port's interrupt, to vm-superio: one that does not fail, since a byte counts as received
/// whether or not the guest was told.
struct Line {
    line: Arc<dyn InterruptLine>,
    lost: Arc<AtomicU64>,
}

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        if self.line.trigger().is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_wide_reads_are_all_ones, inb, outb};
    use super::*;
    use crate::interrupt::CountingLine;
    use proptest::prelude::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<u8>>);

    impl SerialOutput for Recorder {
        fn write(&self, bytes: &[u8]) {
            self.0.lock().unwrap().extend_from_slice(bytes);
        }
    }

    struct Port {
        serial: Serial,
        line: Arc<CountingLine>,
        output: Arc<Recorder>,
        space: EventFd,
    }

    impl Port {
        fn new() -> Self {
            let line = Arc::new(CountingLine::default());
            let output = Arc::new(Recorder::default());
            let space = EventFd::new(libc::EFD_NONBLOCK).unwrap();
            let serial = Serial::new(line.clone(), output.clone(), space.try_clone().unwrap());
            Self {
                serial,
                line,
                output,
                space,
            }
        }

        /// A port whose guest has enabled the receive interrupt.
        fn listening() -> Self {
            let port = Self::new();
            port.outb(1, 1);
            port
        }

        fn inb(&self, offset: u64) -> u8 {
            inb(&self.serial, offset)
        }

        fn outb(&self, offset: u64, value: u8) {
            outb(&self.serial, offset, value);
        }

        fn has_data(&self) -> bool {
            self.inb(5) & 1 != 0
        }

        /// What the guest finds in the FIFO.
        fn read_all(&self) -> Vec<u8> {
            std::iter::from_fn(|| self.has_data().then(|| self.inb(0))).collect()
        }

        fn space_rang(&self) -> bool {
            self.space.read().is_ok()
        }

        fn sent(&self) -> Vec<u8> {
            std::mem::take(&mut *self.output.0.lock().unwrap())
        }
    }

    /// What Linux's 8250 driver does to a port that it opens, up to the receive interrupt.
    fn linux_startup(port: &Port) {
        port.outb(1, 0);
        for value in [0x01, 0x07, 0x00] {
            port.outb(2, value);
        }
        for _ in 0..2 {
            for offset in [5, 0, 2, 6] {
                port.inb(offset);
            }
            port.outb(3, 0x03);
            port.outb(1, 0x02);
            port.inb(2);
            port.outb(1, 0x00);
        }
        port.outb(1, 0x05);
    }

    #[test]
    fn output_arrives_in_order_unless_it_is_a_divisor_or_loops_back() {
        let port = Port::new();
        for &byte in b"hello" {
            assert_eq!(port.inb(5) & 0x60, 0x60);
            port.outb(0, byte);
        }
        port.outb(3, 0x83);
        port.outb(0, 1);
        port.outb(1, 0);
        assert_eq!((port.inb(0), port.inb(1)), (1, 0));
        port.outb(3, 0x03);
        port.outb(4, 0x10);
        port.outb(0, b'L');
        assert_eq!(port.read_all(), b"L");
        port.outb(4, 0x0b);
        port.outb(0, b'!');
        assert_eq!(port.sent(), b"hello!");
    }

    #[test]
    fn the_port_looks_like_a_16550a() {
        let port = Port::new();
        port.outb(2, 0x01);
        assert_eq!(port.inb(2) & 0xcf, 0xc1);
        port.outb(7, 0x5a);
        assert_eq!(port.inb(7), 0x5a);
        port.outb(1, 0xff);
        assert_eq!(port.inb(1), 0x0f);
        // Loopback: the modem outputs are its inputs. Linux probes a port by this.
        port.outb(4, 0x1a);
        assert_eq!(port.inb(6) & 0xf0, 0x90);
    }

    #[test]
    fn a_transmitted_byte_and_a_received_one_interrupt() {
        let port = Port::listening();
        assert_eq!(port.serial.receive(b"x"), 1);
        assert_eq!(port.line.count(), 1);
        assert_eq!(port.inb(2) & 0x0f, 0x04);
        assert_eq!(port.inb(0), b'x');
        assert_eq!(port.inb(2) & 0x0f, 0x01);
        port.outb(1, 0x02);
        assert_eq!(port.line.count(), 2);
        assert_eq!(port.inb(2) & 0x0f, 0x02);
        port.outb(0, b'y');
        assert_eq!(port.line.count(), 3);
        assert_eq!(port.inb(2) & 0x0f, 0x02);
    }

    #[test]
    fn input_that_came_while_interrupts_were_masked_interrupts_when_they_are_not() {
        let port = Port::listening();
        port.outb(1, 0);
        assert_eq!(port.serial.receive(b"x"), 1);
        assert_eq!(port.line.count(), 0);
        port.outb(1, 1);
        assert_eq!(port.line.count(), 1);
    }

    #[test]
    fn input_waits_for_a_driver_to_open_the_port_and_none_of_it_is_lost() {
        let port = Port::new();
        assert_eq!(port.serial.receive(b"poweroff\n"), 0);
        assert!(!port.space_rang());
        linux_startup(&port);
        assert!(port.space_rang());
        assert_eq!(port.serial.receive(b"poweroff\n"), 9);
        assert!(port.line.count() > 0);
        assert_eq!(port.read_all(), b"poweroff\n");
    }

    #[test]
    fn input_that_a_driver_clears_is_there_when_the_port_is_opened_again() {
        let port = Port::listening();
        assert_eq!(port.serial.receive(b"abc"), 3);
        assert_eq!(port.inb(0), b'a');
        // A driver closes the port, with the divisor latch open to make it harder.
        port.outb(1, 0);
        port.outb(3, 0x83);
        port.outb(2, 0x07);
        assert_eq!(port.inb(3), 0x83);
        port.outb(3, 0x03);
        assert!(!port.has_data());
        assert_eq!(port.inb(0), 0);
        assert_eq!(port.serial.receive(b"def"), 0);
        let interrupts = port.line.count();
        linux_startup(&port);
        assert!(port.line.count() > interrupts);
        assert!(port.space_rang());
        assert_eq!(port.serial.receive(b"def"), 3);
        assert_eq!(port.read_all(), b"bcdef");
    }

    #[test]
    fn a_guest_that_clears_the_fifo_with_its_interrupt_enabled_still_listens() {
        let port = Port::listening();
        port.outb(2, 0x07);
        assert_eq!(port.serial.receive(b"x"), 1);
        assert_eq!(port.read_all(), b"x");
    }

    #[test]
    fn a_guest_that_polls_listens() {
        let port = Port::new();
        assert_eq!(port.serial.receive(b"x"), 0);
        let polls = (0..1000)
            .take_while(|_| !port.space_rang() && !port.has_data())
            .count();
        assert!(polls < 1000);
        assert_eq!(port.serial.receive(b"x"), 1);
        assert_eq!(port.read_all(), b"x");
    }

    #[test]
    fn a_guest_that_prints_does_not_listen() {
        let port = Port::new();
        for _ in 0..1000 {
            port.inb(5);
            port.outb(0, b'.');
        }
        assert_eq!(port.serial.receive(b"x"), 0);
    }

    #[test]
    fn loopback_bytes_and_input_do_not_mix() {
        let port = Port::listening();
        assert_eq!(port.serial.receive(b"ab"), 2);
        port.outb(4, 0x10);
        assert_eq!(port.read_all(), b"");
        assert_eq!(port.serial.receive(b"c"), 0);
        for byte in 0..100 {
            port.outb(0, byte);
        }
        assert_eq!(port.inb(0), 0);
        port.outb(2, 0x07);
        assert_eq!(port.read_all(), b"");
        port.outb(0, b'Z');
        port.outb(4, 0x08);
        assert!(port.space_rang());
        assert_eq!(port.serial.receive(b"c"), 1);
        assert_eq!(port.read_all(), b"abc");
        assert_eq!(port.sent(), b"");
    }

    #[test]
    fn only_input_that_did_not_fit_is_asked_for() {
        let port = Port::listening();
        assert_eq!(port.serial.receive(&[1; 40]), 40);
        port.read_all();
        assert!(!port.space_rang());
        assert_eq!(port.serial.receive(&[1; 100]), 64);
        for _ in 0..31 {
            port.inb(0);
        }
        assert!(!port.space_rang());
        port.inb(0);
        assert!(port.space_rang());
        assert_eq!(port.serial.receive(&[1; 36]), 32);
        port.read_all();
        assert!(port.space_rang());
        assert_eq!(port.serial.receive(&[1; 4]), 4);
    }

    #[test]
    fn a_failing_interrupt_loses_no_byte() {
        let port = Port::listening();
        port.line.break_it();
        assert_eq!(port.serial.receive(b"abc"), 3);
        port.outb(1, 0x03);
        port.outb(0, b'x');
        assert_eq!(port.sent(), b"x");
        assert_eq!(port.read_all(), b"abc");
        assert!(port.serial.lost_interrupts() > 0);
    }

    #[test]
    fn other_widths_and_offsets_are_nobody_s() {
        let port = Port::new();
        assert_wide_reads_are_all_ones(&port.serial, LEN);
        for width in [0, 2, 4, 8] {
            port.serial.write(0, &vec![b'x'; width]);
        }
        for offset in [8, 255, 256, u64::MAX] {
            assert_eq!(port.inb(offset), 0xff);
            port.outb(offset, b'x');
        }
        assert_eq!(port.sent(), b"");
    }

    /// Takes the port's lock while it takes a byte, as a reader of the guest's input would.
    struct Reentrant(std::sync::OnceLock<std::sync::Weak<Serial>>, Mutex<usize>);

    impl SerialOutput for Reentrant {
        fn write(&self, _: &[u8]) {
            let serial = self.0.get().unwrap().upgrade().unwrap();
            *self.1.lock().unwrap() += serial.receive(b"echo");
        }
    }

    #[test]
    fn input_gets_in_while_output_waits() {
        let output = Arc::new(Reentrant(std::sync::OnceLock::new(), Mutex::new(0)));
        let space = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let line = Arc::new(CountingLine::default());
        let serial = Arc::new(Serial::new(line, output.clone(), space));
        output.0.set(Arc::downgrade(&serial)).unwrap();
        outb(&*serial, 1, 1);
        outb(&*serial, 0, b'x');
        assert_eq!(*output.1.lock().unwrap(), 4);
    }

    proptest! {
        /// However a guest opens, closes, masks and reads, it gets all of a paste, in order.
        #[test]
        fn a_paste_arrives_whole(
            actions in prop::collection::vec((0_u8..6, 1_usize..80), 0..60),
            len in 1_usize..2000,
        ) {
            let port = Port::new();
            let paste: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
            let mut sent = port.serial.receive(&paste);
            let mut got = Vec::new();
            let feed = |sent: &mut usize| {
                while *sent < paste.len() && port.space_rang() {
                    *sent += port.serial.receive(&paste[*sent..]);
                }
            };
            for (action, count) in actions {
                match action {
                    0 => linux_startup(&port),
                    1 => { port.outb(1, 0); port.outb(2, 0x07); port.inb(0); }
                    2 => {
                        let enabled = port.inb(1);
                        port.outb(1, 0);
                        port.outb(0, b'#');
                        port.outb(1, enabled);
                    }
                    3 => { port.outb(4, 0x10); port.outb(0, 1); port.outb(4, 0x0b); }
                    _ => for _ in 0..count {
                        if port.has_data() { got.push(port.inb(0)); }
                    }
                }
                feed(&mut sent);
            }
            linux_startup(&port);
            loop {
                feed(&mut sent);
                let more = port.read_all();
                if more.is_empty() { break; }
                got.extend(more);
            }
            prop_assert_eq!(got, paste);
        }
    }
}
