//! A debug port: one register, one byte, for a guest to say "I am here".
//!
//! It costs the guest one instruction and needs no driver, so that it works from the first
//! instruction on; what a byte means is between the guest and whoever listens. Reads return
//! [`ID`], by which a guest can tell the port from one that nothing drives. Called on vCPU threads.

use crate::bus::BusDevice;

use super::{byte_read, byte_write};

/// What the port reads as. (The debug port of Bochs and QEMU reads as the same.)
pub const ID: u8 = 0xe9;

/// The debug port. One port long.
pub struct DebugPort {
    mark: Box<dyn Fn(u8) + Send + Sync>,
}

impl DebugPort {
    /// A port that hands every byte written to `mark`, on the vCPU thread that wrote it.
    ///
    /// A guest can write without end: `mark` has to bound what it keeps.
    pub fn new(mark: impl Fn(u8) + Send + Sync + 'static) -> Self {
        Self {
            mark: Box::new(mark),
        }
    }
}

impl BusDevice for DebugPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        byte_read(offset, data, |offset| (offset == 0).then_some(ID));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((0, value)) = byte_write(offset, data) {
            (self.mark)(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_wide_reads_are_all_ones, inb, outb};
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn bytes_are_marks_and_other_widths_are_not() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let port = DebugPort::new({
            let seen = seen.clone();
            move |value| seen.lock().unwrap().push(value)
        });
        outb(&port, 0, 1);
        port.write(0, &[2, 3]);
        port.write(0, &[2, 3, 4, 5]);
        outb(&port, 1, 6);
        outb(&port, 0, 0xff);
        assert_eq!(*seen.lock().unwrap(), [1, 0xff]);
        assert_eq!((inb(&port, 0), inb(&port, 1)), (ID, 0xff));
        assert_wide_reads_are_all_ones(&port, 1);
    }
}
