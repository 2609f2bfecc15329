//! The reset line of an i8042 keyboard controller, and nothing else of it.
//!
//! Occupies ports 0x60 to 0x64 (IBM PC/AT Technical Reference, "Keyboard Controller"; port 0x61 is
//! the AT's system control port B). There is no keyboard. Kernels use the controller for one thing
//! only: command 0xfe at port 0x64 pulses the processor's reset line. Called on vCPU threads.
//!
//! What a guest reads is chosen so that its driver gives up soon:
//! - The status register says "output full" at all times. A driver flushes the output before it
//!   does anything else, finds no end of it after some tens of bytes, and concludes that there is
//!   no controller. (An empty output would have it wait half a second for an answer to its first
//!   command.) "Input full" is clear at all times: a kernel waits for that before it sends 0xfe.
//! - Port 0x61 has timer 2's output set and its refresh bit toggling, for loops that wait for
//!   either, and no error bit. Bits 0 and 1 are kept as written.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use crate::bus::BusDevice;

use super::{byte_read, byte_write};

const DATA: u8 = 0;
const PORT_B: u8 = 1;
const COMMAND: u8 = 4;

const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_SELF_TEST_PASSED: u8 = 1 << 2;

const COMMAND_PULSE_RESET: u8 = 0xfe;

const PORT_B_WRITABLE: u8 = 0b11;
const PORT_B_REFRESH: u8 = 1 << 4;
const PORT_B_TIMER2_OUT: u8 = 1 << 5;

/// The controller. Five ports long, from 0x60 on.
pub struct I8042 {
    reset: Box<dyn Fn() + Send + Sync>,
    port_b: AtomicU8,
    refresh: AtomicBool,
}

impl I8042 {
    /// A controller that calls `reset` when the guest pulses the reset line, on the vCPU thread that
    /// does. `reset` returns at once; the vCPU goes on until it is stopped.
    pub fn new(reset: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            reset: Box::new(reset),
            port_b: AtomicU8::new(0),
            refresh: AtomicBool::new(false),
        }
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        byte_read(offset, data, |offset| match offset {
            DATA => Some(0),
            PORT_B => {
                let refresh = self.refresh.fetch_xor(true, Ordering::Relaxed);
                let refresh = if refresh { PORT_B_REFRESH } else { 0 };
                Some(self.port_b.load(Ordering::Relaxed) | PORT_B_TIMER2_OUT | refresh)
            }
            COMMAND => Some(STATUS_OUTPUT_FULL | STATUS_SELF_TEST_PASSED),
            _ => None,
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match byte_write(offset, data) {
            Some((COMMAND, COMMAND_PULSE_RESET)) => (self.reset)(),
            Some((PORT_B, value)) => self
                .port_b
                .store(value & PORT_B_WRITABLE, Ordering::Relaxed),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_wide_reads_are_all_ones, inb, outb};
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    fn controller() -> (I8042, Arc<AtomicUsize>) {
        let resets = Arc::new(AtomicUsize::new(0));
        let count = resets.clone();
        let reset = move || {
            count.fetch_add(1, Ordering::SeqCst);
        };
        (I8042::new(reset), resets)
    }

    #[test]
    fn only_the_pulse_command_resets() {
        let (controller, resets) = controller();
        for value in 0..=255 {
            outb(&controller, 4, value);
        }
        for offset in [0, 1, 2, 3, 5, 0x104] {
            outb(&controller, offset, 0xfe);
        }
        controller.write(4, &[0xfe, 0]);
        assert_eq!(resets.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_driver_never_finds_the_output_empty_or_the_input_full() {
        let (controller, _) = controller();
        for _ in 0..100 {
            let status = inb(&controller, 4);
            assert_eq!((status & 1, status & 2), (1, 0));
            assert_eq!(inb(&controller, 0), 0);
        }
        assert_eq!((inb(&controller, 2), inb(&controller, 3)), (0xff, 0xff));
        assert_wide_reads_are_all_ones(&controller, 5);
    }

    #[test]
    fn loops_on_port_b_end() {
        let (controller, _) = controller();
        outb(&controller, 1, 0xfd);
        let reads = [0; 4].map(|_| inb(&controller, 1));
        assert_eq!(reads, [0x21, 0x31, 0x21, 0x31]);
    }
}
