//! Port I/O and memory-mapped I/O: which device answers at an address.
//!
//! One [`Bus`] models one address space of the guest (the 64 KiB of ports, or guest-physical
//! memory where no RAM is). Lookups happen on every exit of every vCPU thread, changes hardly ever:
//! the table is a sorted list behind a read-write lock that is released before a device is called,
//! so that a device may take its time, or change the bus, without stopping other vCPUs.
//!
//! What no device claims behaves like a bus that nothing drives: reads are all ones, writes go
//! nowhere, and both are counted. There is no log line for them; a guest could print without end.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use serde::Serialize;
use thiserror::Error;

use crate::metrics::Counter;

/// A device that answers at a range of addresses.
///
/// Called on vCPU threads, concurrently. `offset` counts from the start of the range under which
/// the device was inserted, and `offset + data.len()` does not go beyond its end. `data` is as long
/// as the guest's access, 1 to 8 bytes in practice, in guest (little-endian) order, and never empty.
///
/// A device answers whatever it is asked: a width or an offset it does not know reads all ones, and
/// is ignored when written.
pub trait BusDevice: Send + Sync {
    /// Fills `data` with what the guest reads at `offset`.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes what the guest writes at `offset`.
    fn write(&self, offset: u64, data: &[u8]);

    /// The machine is reset: back to the state at power-on. Not called while a guest runs.
    fn reset(&self) {}
}

/// A non-empty range of addresses that does not wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusRange {
    base: u64,
    last: u64,
}

impl BusRange {
    /// The range of `len` addresses from `base` on.
    ///
    /// # Errors
    /// [`BusError::BadRange`] where it is empty, or ends beyond the last 64-bit address.
    pub fn new(base: u64, len: u64) -> Result<Self, BusError> {
        let last = len.checked_sub(1).and_then(|span| base.checked_add(span));
        match last {
            Some(last) => Ok(Self { base, last }),
            None => Err(BusError::BadRange { base, len }),
        }
    }

    /// The first address.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// The last address, which belongs to the range.
    pub fn last(&self) -> u64 {
        self.last
    }
}

impl fmt::Display for BusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..={:#x}", self.base, self.last)
    }
}

/// Why a range cannot be inserted or removed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BusError {
    /// The range is empty or wraps around the end of the address space.
    #[error("a range of {len:#x} addresses cannot start at {base:#x}")]
    BadRange {
        /// First address asked for.
        base: u64,
        /// Number of addresses asked for.
        len: u64,
    },
    /// Another device has some of the addresses.
    #[error("the range {new} overlaps {existing}, which another device has")]
    Overlap {
        /// The range asked for.
        new: BusRange,
        /// The range that is in the way.
        existing: BusRange,
    },
    /// No device was inserted under exactly this range.
    #[error("no device has the range {range}")]
    NotFound {
        /// The range asked for.
        range: BusRange,
    },
}

/// How many accesses found no device, since the bus was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Unclaimed {
    /// Reads, answered with all ones.
    pub reads: u64,
    /// Writes, dropped.
    pub writes: u64,
}

/// Counts them; may outlive the bus.
#[derive(Debug, Default)]
pub struct UnclaimedCounters {
    reads: Counter,
    writes: Counter,
}

impl UnclaimedCounters {
    /// How many there were.
    pub fn get(&self) -> Unclaimed {
        Unclaimed {
            reads: self.reads.get(),
            writes: self.writes.get(),
        }
    }
}

struct Entry {
    range: BusRange,
    device: Arc<dyn BusDevice>,
}

/// One address space and the devices in it.
#[derive(Default)]
pub struct Bus {
    /// Sorted by base; no two ranges overlap.
    entries: RwLock<Vec<Entry>>,
    unclaimed: Arc<UnclaimedCounters>,
}

impl Bus {
    /// A bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a device at `len` addresses from `base` on. Takes effect with the next access.
    ///
    /// # Errors
    /// [`BusError::BadRange`], or [`BusError::Overlap`] naming both ranges; the bus is unchanged.
    pub fn insert(&self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let range = BusRange::new(base, len)?;
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        // Ranges are disjoint and sorted, so that only the first one that ends at or after our base
        // can be in the way.
        let at = entries.partition_point(|entry| entry.range.last < range.base);
        if let Some(next) = entries.get(at).filter(|next| next.range.base <= range.last) {
            return Err(BusError::Overlap {
                new: range,
                existing: next.range,
            });
        }
        entries.insert(at, Entry { range, device });
        Ok(())
    }

    /// Takes out the device that was inserted under exactly this range, and returns it.
    ///
    /// No access that starts after the return reaches the device; one that started before may still
    /// be inside it.
    ///
    /// # Errors
    /// [`BusError::BadRange`], [`BusError::NotFound`].
    pub fn remove(&self, base: u64, len: u64) -> Result<Arc<dyn BusDevice>, BusError> {
        let range = BusRange::new(base, len)?;
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        match entries.iter().position(|entry| entry.range == range) {
            Some(at) => Ok(entries.remove(at).device),
            None => Err(BusError::NotFound { range }),
        }
    }

    /// A guest's read at `address`.
    ///
    /// An access that begins in a device and ends beyond it belongs to nobody: all of it is
    /// unclaimed, and the device does not see it.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => {
                data.fill(0xff);
                self.unclaimed.reads.add(1);
            }
        }
    }

    /// A guest's write at `address`. What straddles a device's end is unclaimed, as for reads.
    pub fn write(&self, address: u64, data: &[u8]) {
        match self.find(address, data.len()) {
            Some((device, offset)) => device.write(offset, data),
            None => {
                self.unclaimed.writes.add(1);
            }
        }
    }

    /// How many accesses found no device.
    pub fn unclaimed(&self) -> Unclaimed {
        self.unclaimed.get()
    }

    /// The counters of [`Self::unclaimed`].
    pub fn unclaimed_counters(&self) -> Arc<UnclaimedCounters> {
        self.unclaimed.clone()
    }

    /// The device that has all of an access, and the access's offset in it.
    fn find(&self, address: u64, len: usize) -> Option<(Arc<dyn BusDevice>, u64)> {
        let last = address.checked_add(u64::try_from(len).ok()?.checked_sub(1)?)?;
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let after = entries.partition_point(|entry| entry.range.base <= address);
        let entry = entries.get(after.checked_sub(1)?)?;
        (last <= entry.range.last).then(|| (entry.device.clone(), address - entry.range.base))
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_list()
            .entries(entries.iter().map(|entry| entry.range.to_string()))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Mutex;

    /// Reads as its own number; remembers what was written where.
    struct Probe {
        id: u8,
        writes: Mutex<Vec<(u64, Vec<u8>)>>,
        reads: Mutex<Vec<(u64, usize)>>,
    }

    impl Probe {
        fn new(id: u8) -> Arc<Self> {
            Arc::new(Self {
                id,
                writes: Mutex::default(),
                reads: Mutex::default(),
            })
        }
    }

    impl BusDevice for Probe {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(self.id);
            self.reads.lock().unwrap().push((offset, data.len()));
        }

        fn write(&self, offset: u64, data: &[u8]) {
            self.writes.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn an_access_reaches_its_device_with_an_offset_from_its_base() {
        let bus = Bus::new();
        let (low, high) = (Probe::new(1), Probe::new(2));
        bus.insert(0x600, 4, high.clone()).unwrap();
        bus.insert(0x3f8, 8, low.clone()).unwrap();
        bus.write(0x3fd, &[7]);
        let mut data = [0; 2];
        bus.read(0x602, &mut data);
        assert_eq!(data, [2, 2]);
        assert_eq!(*low.writes.lock().unwrap(), [(5, vec![7])]);
        assert_eq!(*high.reads.lock().unwrap(), [(2, 2)]);
        assert_eq!(bus.unclaimed(), Unclaimed::default());
    }

    #[test]
    fn holes_and_accesses_across_an_end_read_all_ones_and_are_counted() {
        let bus = Bus::new();
        let device = Probe::new(1);
        bus.insert(0x60, 5, device.clone()).unwrap();
        for (address, len) in [
            (0x5f, 1),
            (0x65, 1),
            (0x64, 2),
            (0x60, 8),
            (0x5f, 2),
            (0x62, 4),
        ] {
            let mut data = vec![0x55; len];
            bus.read(address, &mut data);
            assert_eq!(data, vec![0xff; len], "{address:#x} x {len}");
            bus.write(address, &data);
        }
        assert!(device.reads.lock().unwrap().is_empty());
        assert!(device.writes.lock().unwrap().is_empty());
        assert_eq!(
            bus.unclaimed(),
            Unclaimed {
                reads: 6,
                writes: 6
            }
        );
    }

    #[test]
    fn the_ends_of_the_address_space_are_addresses_like_others() {
        let bus = Bus::new();
        let device = Probe::new(9);
        bus.insert(u64::MAX, 1, device.clone()).unwrap();
        bus.insert(0, 1, device.clone()).unwrap();
        let mut byte = [0];
        for address in [0, u64::MAX] {
            bus.read(address, &mut byte);
            assert_eq!(byte, [9]);
        }
        let mut pair = [0; 2];
        bus.read(u64::MAX, &mut pair);
        assert_eq!(pair, [0xff; 2]);
        bus.read(0, &mut []);
        bus.write(0, &[]);
        assert_eq!(
            bus.unclaimed(),
            Unclaimed {
                reads: 2,
                writes: 1
            }
        );
    }

    #[test]
    fn an_overlap_names_both_ranges_and_changes_nothing() {
        let bus = Bus::new();
        bus.insert(0x100, 0x10, Probe::new(1)).unwrap();
        for (base, len) in [
            (0x100, 0x10),
            (0xf8, 9),
            (0x10f, 1),
            (0x104, 2),
            (0, 0x1000),
        ] {
            let error = bus.insert(base, len, Probe::new(2)).unwrap_err();
            let BusError::Overlap { new, existing } = error.clone() else {
                panic!("{error}")
            };
            assert_eq!((new.base(), existing.base()), (base, 0x100));
            assert!(error.to_string().contains("0x100..=0x10f"), "{error}");
        }
        bus.insert(0xff, 1, Probe::new(2)).unwrap();
        bus.insert(0x110, 1, Probe::new(2)).unwrap();
    }

    #[test]
    fn a_range_that_is_empty_or_wraps_is_refused() {
        let bus = Bus::new();
        for (base, len) in [(0, 0), (u64::MAX, 2), (2, u64::MAX)] {
            let expected = Err(BusError::BadRange { base, len });
            assert_eq!(
                bus.insert(base, len, Probe::new(1)),
                expected.clone().map(|_: ()| ())
            );
        }
    }

    #[test]
    fn a_removed_device_is_gone_and_its_place_free() {
        let bus = Bus::new();
        bus.insert(0x10, 4, Probe::new(1)).unwrap();
        assert!(matches!(
            bus.remove(0x10, 3),
            Err(BusError::NotFound { .. })
        ));
        bus.remove(0x10, 4).unwrap();
        let mut byte = [0];
        bus.read(0x10, &mut byte);
        assert_eq!(byte, [0xff]);
        bus.insert(0x12, 4, Probe::new(2)).unwrap();
    }

    /// Changes the bus from inside an access: only possible when its lock is not held meanwhile.
    struct Unplug(Arc<Bus>);

    impl BusDevice for Unplug {
        fn read(&self, _: u64, data: &mut [u8]) {
            self.0.remove(0, 1).unwrap();
            data.fill(3);
        }

        fn write(&self, _: u64, _: &[u8]) {}
    }

    #[test]
    fn a_device_may_change_the_bus_while_it_is_called() {
        let bus = Arc::new(Bus::new());
        bus.insert(0, 1, Arc::new(Unplug(bus.clone()))).unwrap();
        let mut byte = [0];
        bus.read(0, &mut byte);
        assert_eq!(byte, [3]);
        bus.read(0, &mut byte);
        assert_eq!(byte, [0xff]);
    }

    proptest! {
        #[test]
        fn lookups_agree_with_a_list_searched_from_end_to_end(
            ranges in prop::collection::vec((0_u64..64, 0_u64..12), 0..12),
            accesses in prop::collection::vec((0_u64..80, 0_usize..10), 0..64),
        ) {
            let bus = Bus::new();
            let mut model: Vec<(u64, u64, u8)> = Vec::new();
            for (id, (base, len)) in ranges.into_iter().enumerate() {
                let free = model.iter().all(|&(b, l, _)| base + len <= b || b + l <= base);
                let accepted = bus.insert(base, len, Probe::new(id as u8)).is_ok();
                prop_assert_eq!(accepted, free && len > 0);
                if accepted {
                    model.push((base, len, id as u8));
                }
            }
            for (address, len) in accesses {
                let mut data = vec![0x55; len];
                bus.read(address, &mut data);
                let hit = model.iter().find(|&&(b, l, _)| {
                    len > 0 && b <= address && address + len as u64 <= b + l
                });
                prop_assert_eq!(data, vec![hit.map_or(0xff, |&(_, _, id)| id); len]);
            }
        }
    }
}
