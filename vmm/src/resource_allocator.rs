//! Places for devices: slots and windows of the MMIO hole, and interrupt lines, given out in order and never taken back.

use ampoule_arch::layout;

use crate::error::Error;

/// A device's registers and its interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Guest-physical address of the registers; [`layout::VIRTIO_MMIO_SLOT_SIZE`] bytes of them.
    pub(crate) base: u64,
    /// The line, an input of the I/O APIC that nobody shares: the lines are edge-triggered.
    pub(crate) gsi: u32,
}

/// The most devices that there is an interrupt line for.
pub(crate) const MAX_DEVICES: usize = (layout::LAST_GSI - layout::FIRST_FREE_GSI + 1) as usize;

/// What is left to give.
#[derive(Debug)]
pub(crate) struct ResourceAllocator {
    slots: u32,
    lines: u32,
    /// The first free address for devices of the owner's.
    window: u64,
}

impl Default for ResourceAllocator {
    fn default() -> Self {
        Self {
            slots: 0,
            lines: 0,
            window: layout::OWN_MMIO_START,
        }
    }
}

impl ResourceAllocator {
    /// The next slot.
    ///
    /// # Errors
    /// [`Error::TooManyDevices`].
    pub(crate) fn slot(&mut self) -> Result<Slot, Error> {
        let gsi = self.line();
        let gsi = gsi.ok_or(Error::TooManyDevices { max: MAX_DEVICES })?;
        let base =
            layout::VIRTIO_MMIO_START + u64::from(self.slots) * layout::VIRTIO_MMIO_SLOT_SIZE;
        self.slots += 1;
        Ok(Slot { base, gsi })
    }

    /// The next interrupt line.
    pub(crate) fn line(&mut self) -> Option<u32> {
        let gsi = layout::FIRST_FREE_GSI + self.lines;
        (gsi <= layout::LAST_GSI).then(|| {
            self.lines += 1;
            gsi
        })
    }

    /// So many bytes of the hole for a device of the owner's: those it wants, or the next that are free. None where there are
    /// none, or where they are not a device's to have.
    pub(crate) fn window(&mut self, wanted: Option<u64>, size: u64) -> Option<u64> {
        const ALIGNMENT: u64 = 0x1000;
        let base = wanted.unwrap_or(self.window);
        let end = base.checked_add(size)?;
        let in_the_hole = base >= layout::MMIO_HOLE_START && end <= layout::IOAPIC;
        if size == 0 || !base.is_multiple_of(ALIGNMENT) || !in_the_hole {
            return None;
        }
        if wanted.is_none() {
            self.window = end.next_multiple_of(ALIGNMENT);
        }
        Some(base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_in_the_hole_and_apart() {
        let mut resources = ResourceAllocator::default();
        assert_eq!(resources.window(None, 8), Some(0xd000_0000));
        assert_eq!(resources.window(None, 0x1001), Some(0xd000_1000));
        assert_eq!(resources.window(None, 1), Some(0xd000_3000));
        assert_eq!(resources.window(Some(0xc100_0000), 8), Some(0xc100_0000));
        for (wanted, size) in [
            (Some(0xbfff_f000), 0x1000),
            (Some(0xfebf_f000), 0x1001),
            (Some(0xd100_0001), 8),
            (Some(!0xfff), 0x1000),
            (None, 0),
            (None, 1 << 31),
        ] {
            assert_eq!(
                resources.window(wanted, size),
                None,
                "{wanted:x?} {size:#x}"
            );
        }
    }

    #[test]
    fn slots_are_apart_and_end_with_the_lines() {
        let mut resources = ResourceAllocator::default();
        let slots: Vec<Slot> = (0..MAX_DEVICES)
            .map(|_| resources.slot().unwrap())
            .collect();
        for pair in slots.windows(2) {
            assert_eq!(pair[1].base - pair[0].base, layout::VIRTIO_MMIO_SLOT_SIZE);
            assert_eq!(pair[1].gsi - pair[0].gsi, 1);
        }
        assert_eq!(slots.last().unwrap().gsi, layout::LAST_GSI);
        assert!(matches!(
            resources.slot(),
            Err(Error::TooManyDevices { max: 18 })
        ));
    }
}
