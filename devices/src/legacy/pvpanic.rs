//! pvpanic: a guest kernel's way to say that it panicked.
//!
//! Models the ISA device of QEMU's specification (docs/specs/pvpanic): one port; a read tells which
//! events the device knows, a write reports events, both as the same bits. Linux drives it with
//! its `pvpanic-mmio` module, which finds the port as ACPI device QEMU0001. Called on vCPU threads.

use crate::bus::BusDevice;

use super::{byte_read, byte_write};

const PANICKED: u8 = 1 << 0;
const CRASH_LOADED: u8 = 1 << 1;

/// What a guest reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PvPanicEvent {
    /// It panicked, and has nothing left to run.
    Panicked,
    /// It panicked, and its crash kernel takes over now: not the end.
    CrashLoaded,
}

/// The pvpanic device. One port long.
pub struct PvPanic {
    report: Box<dyn Fn(PvPanicEvent) + Send + Sync>,
}

impl PvPanic {
    /// A device that hands what the guest reports to `report`, on the vCPU thread that wrote it.
    pub fn new(report: impl Fn(PvPanicEvent) + Send + Sync + 'static) -> Self {
        Self {
            report: Box::new(report),
        }
    }
}

impl BusDevice for PvPanic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        byte_read(offset, data, |offset| {
            (offset == 0).then_some(PANICKED | CRASH_LOADED)
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some((0, events)) = byte_write(offset, data) else {
            return;
        };
        // Both at once would contradict each other; the worse of the two is believed.
        if events & PANICKED != 0 {
            (self.report)(PvPanicEvent::Panicked);
        } else if events & CRASH_LOADED != 0 {
            (self.report)(PvPanicEvent::CrashLoaded);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_wide_reads_are_all_ones, inb, outb};
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn known_events_are_offered_and_reported() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let device = PvPanic::new({
            let seen = seen.clone();
            move |event| seen.lock().unwrap().push(event)
        });
        assert_eq!((inb(&device, 0), inb(&device, 1)), (0x03, 0xff));
        assert_wide_reads_are_all_ones(&device, 1);
        for events in [0, 0xfc, 2, 1, 3] {
            outb(&device, 0, events);
        }
        device.write(0, &[1, 0]);
        outb(&device, 1, 1);
        use PvPanicEvent::{CrashLoaded, Panicked};
        assert_eq!(*seen.lock().unwrap(), [CrashLoaded, Panicked, Panicked]);
    }
}
