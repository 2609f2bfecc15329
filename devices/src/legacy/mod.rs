//! The devices of a PC that a microVM still has, and the small paravirtual ones at fixed ports.
//!
//! All of them are port I/O devices with registers of one byte. An access of another width is one
//! that no driver makes: it reads all ones, and is ignored when written.

pub mod debug_port;
pub mod i8042;
pub mod power;
pub mod pvpanic;
pub mod rtc;
pub mod serial;

/// The register and value of a one-byte write; `None` for any other.
fn byte_write(offset: u64, data: &[u8]) -> Option<(u8, u8)> {
    match data {
        &[value] => Some((u8::try_from(offset).ok()?, value)),
        _ => None,
    }
}

/// Answers a read: `register` for one byte (`None` where there is no such register), all ones for
/// the rest.
fn byte_read(offset: u64, data: &mut [u8], register: impl FnOnce(u8) -> Option<u8>) {
    match (data, u8::try_from(offset)) {
        ([value], Ok(offset)) => *value = register(offset).unwrap_or(0xff),
        (data, _) => data.fill(0xff),
    }
}

/// One-byte accesses through the devices' only door, and the widths that none of them knows.
#[cfg(test)]
pub(crate) mod testing {
    use crate::bus::BusDevice;

    pub(crate) fn inb(device: &dyn BusDevice, offset: u64) -> u8 {
        let mut data = [0x5a];
        device.read(offset, &mut data);
        data[0]
    }

    pub(crate) fn outb(device: &dyn BusDevice, offset: u64, value: u8) {
        device.write(offset, &[value]);
    }

    /// Reads in every width but one byte are all ones.
    pub(crate) fn assert_wide_reads_are_all_ones(device: &dyn BusDevice, len: u64) {
        for offset in (0..len).chain([len, 255, 256, u64::MAX]) {
            for width in [2, 3, 4, 5, 8, 16] {
                let mut data = vec![0x5a; width];
                device.read(offset, &mut data);
                assert_eq!(data, vec![0xff; width], "offset {offset:#x}, {width} bytes");
            }
        }
    }
}
