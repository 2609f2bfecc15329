//! Places for virtio devices: a slot of the MMIO hole and an interrupt line each, given out in order and never taken back.

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
#[derive(Debug, Default)]
pub(crate) struct ResourceAllocator {
    given: u32,
}

impl ResourceAllocator {
    /// The next slot.
    ///
    /// # Errors
    /// [`Error::TooManyDevices`].
    pub(crate) fn slot(&mut self) -> Result<Slot, Error> {
        let gsi = layout::FIRST_FREE_GSI + self.given;
        if gsi > layout::LAST_GSI {
            return Err(Error::TooManyDevices { max: MAX_DEVICES });
        }
        let base =
            layout::VIRTIO_MMIO_START + u64::from(self.given) * layout::VIRTIO_MMIO_SLOT_SIZE;
        self.given += 1;
        Ok(Slot { base, gsi })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
