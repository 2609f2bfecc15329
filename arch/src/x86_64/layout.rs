//! Where things are in a guest: the memory map, the I/O ports and the interrupt lines.
//!
//! The low megabyte follows the PC's conventions (what lies from the EBDA to 1 MiB is no RAM for an
//! operating system), because Linux's own early code still assumes them. RAM above the MMIO hole
//! continues at 4 GiB.

use vm_memory::GuestAddress;

/// The Global Descriptor Table that [`regs::boot_blobs`](super::regs::boot_blobs) writes.
pub const GDT: GuestAddress = GuestAddress(0x500);

/// `hvm_start_info` of the PVH boot protocol.
pub const PVH_START_INFO: GuestAddress = GuestAddress(0x6000);
/// The PVH list of modules, which has one entry: the initrd.
pub const PVH_MODLIST: GuestAddress = GuestAddress(0x6040);
/// The PVH memory map.
pub const PVH_MEMMAP: GuestAddress = GuestAddress(0x6060);

/// `boot_params`, the "zero page" of the Linux boot protocol; one page.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// What the stack pointer holds at the Linux 64-bit entry. The stack grows down from here to the
/// end of the zero page.
pub const BOOT_STACK_TOP: GuestAddress = GuestAddress(0x8ff0);
/// The page tables of the Linux 64-bit entry; six pages, see [`paging`](super::paging).
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);

/// The kernel command line.
pub const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// The longest command line in bytes, its NUL included: `COMMAND_LINE_SIZE` of Linux on x86.
pub const CMDLINE_MAX: usize = 2048;

/// The end of low RAM, where a PC keeps its Extended BIOS Data Area.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// The ACPI Root System Description Pointer. It is in the range that an operating system searches
/// if nobody tells it.
pub const ACPI_RSDP: GuestAddress = GuestAddress(0xe_0000);
/// The end of the space for ACPI tables, which starts at [`ACPI_RSDP`].
pub const ACPI_END: GuestAddress = RESET_VECTOR;
/// Where a processor in real mode begins after a reset (F000:FFF0), the last 16 bytes below 1 MiB.
pub const RESET_VECTOR: GuestAddress = GuestAddress(0xf_fff0);
/// Where RAM continues above the legacy hole, and the lowest address for a kernel.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// The start of the hole below 4 GiB that holds MMIO; RAM ends here at the latest.
pub const MMIO_HOLE_START: u64 = 0xc000_0000;
/// The end of the MMIO hole; RAM that did not fit below the hole goes on here.
pub const MMIO_HOLE_END: u64 = 1 << 32;
/// The first virtio-mmio device's registers.
pub const VIRTIO_MMIO_START: u64 = MMIO_HOLE_START;
/// The distance between two virtio-mmio devices, in bytes.
pub const VIRTIO_MMIO_SLOT_SIZE: u64 = 0x1000;
/// Where devices go that the owner of a VM brings, up to [`IOAPIC`]; unless they have a place of their own in the hole.
pub const OWN_MMIO_START: u64 = 0xd000_0000;
/// The I/O APIC's registers, inside KVM.
pub const IOAPIC: u64 = 0xfec0_0000;
/// The local APICs' registers, inside KVM.
pub const LAPIC: u64 = 0xfee0_0000;
/// One page that KVM uses on Intel processors without unrestricted guest mode, for
/// `KVM_SET_IDENTITY_MAP_ADDR`.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM uses on such processors, for `KVM_SET_TSS_ADDR`.
pub const KVM_TSS_ADDRESS: u64 = 0xfffb_d000;

/// The smallest memory of a guest, in bytes: the ELF kernels of today are linked to 16 MiB, so less
/// holds none.
pub const MIN_MEMORY: u64 = 16 << 20;
/// The largest memory of a guest, in bytes: with the hole it fills the 46 bits of physical address
/// that Linux with four-level page tables can use. The processor may bear less.
pub const MAX_MEMORY: u64 = (1 << 46) - (MMIO_HOLE_END - MMIO_HOLE_START);

/// COM1's first port.
pub const COM1_PORT: u16 = 0x3f8;
/// How many ports COM1 has.
pub const COM1_LEN: u16 = 8;
/// COM1's interrupt line.
pub const COM1_GSI: u32 = 4;
/// The keyboard controller's first port. Only the reset through it exists.
pub const I8042_PORT: u16 = 0x60;
/// How many ports the keyboard controller has: data at offset 0, command and status at offset 4.
pub const I8042_LEN: u16 = 5;
/// The real-time clock's index port; its data port follows.
pub const RTC_PORT: u16 = 0x70;
/// How many ports the real-time clock has.
pub const RTC_LEN: u16 = 2;
/// The debug port: a byte written to it is a mark in the timeline.
pub const DEBUG_PORT: u16 = 0x504;
/// The pvpanic device's port.
pub const PVPANIC_PORT: u16 = 0x505;

/// The first port of the ACPI power device: the four `ACPI_…` registers, one byte each.
pub const ACPI_POWER_PORT: u16 = ACPI_SLEEP_CONTROL;
/// How many ports the ACPI power device has.
pub const ACPI_POWER_LEN: u16 = 4;
/// The sleep control register (ACPI 6.5, 4.8.3.7): `SLP_EN` with [`SLEEP_TYPE_S5`] powers the
/// machine off.
pub const ACPI_SLEEP_CONTROL: u16 = 0x600;
/// The sleep status register (ACPI 6.5, 4.8.3.7).
pub const ACPI_SLEEP_STATUS: u16 = 0x601;
/// The reset register (ACPI 6.5, 4.8.3.6): [`ACPI_RESET_VALUE`] resets the machine.
pub const ACPI_RESET: u16 = 0x602;
/// What a guest writes to [`ACPI_RESET`].
pub const ACPI_RESET_VALUE: u8 = 1;
/// The register of pending ACPI events, cleared by reading it; see [`ACPI_EVENT_POWER_BUTTON`].
pub const ACPI_EVENT: u16 = 0x603;
/// The bit of [`ACPI_EVENT`] that says: somebody pressed the power button.
pub const ACPI_EVENT_POWER_BUTTON: u8 = 1 << 0;
/// The interrupt line that says: [`ACPI_EVENT`] is worth reading.
pub const ACPI_EVENT_GSI: u32 = 5;
/// The sleep type of the S5 state, "soft off", in [`ACPI_SLEEP_CONTROL`].
pub const SLEEP_TYPE_S5: u8 = 5;

/// The first interrupt line that no fixed device has.
pub const FIRST_FREE_GSI: u32 = 6;
/// The last interrupt line: KVM's I/O APIC has 24 pins.
pub const LAST_GSI: u32 = 23;

/// What a range of guest memory is for; the numbers are those of the BIOS call "E820", which the
/// Linux and the PVH boot protocol share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// RAM that the operating system may use.
    Ram = 1,
    /// Neither RAM to use nor space for a device.
    Reserved = 2,
}

/// One line of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryMapEntry {
    /// The first address.
    pub addr: u64,
    /// The length in bytes, never 0.
    pub size: u64,
    /// What the range is for.
    pub kind: MemoryKind,
}

/// The ranges of guest-physical addresses that `size` bytes of RAM take, in ascending order.
///
/// One range, or two where the RAM reaches the MMIO hole. `size` is used as it is: whether it lies
/// between [`MIN_MEMORY`] and [`MAX_MEMORY`] and is a multiple of a page is for the caller to
/// judge.
pub fn ram_ranges(size: u64) -> Vec<(GuestAddress, u64)> {
    let low = size.min(MMIO_HOLE_START);
    let mut ranges = vec![(GuestAddress(0), low)];
    if size > low {
        ranges.push((GuestAddress(MMIO_HOLE_END), size - low));
    }
    ranges
}

/// The memory map of a guest with `size` bytes of RAM, in ascending order and without overlaps.
///
/// From the end of low RAM to 1 MiB everything is reserved: the ACPI tables are there. RAM is under
/// that range too, so the map sums up to `size`.
pub fn e820(size: u64) -> Vec<MemoryMapEntry> {
    let mut map = Vec::with_capacity(4);
    let mut add = |start: u64, end: u64, kind| {
        if end > start {
            map.push(MemoryMapEntry {
                addr: start,
                size: end - start,
                kind,
            });
        }
    };
    for (start, length) in ram_ranges(size) {
        let end = start.0 + length;
        if start.0 == 0 {
            add(0, end.min(LOW_RAM_END), MemoryKind::Ram);
            add(LOW_RAM_END, end.min(HIGH_RAM_START), MemoryKind::Reserved);
            add(HIGH_RAM_START, end, MemoryKind::Ram);
        } else {
            add(start.0, end, MemoryKind::Ram);
        }
    }
    map
}

// What is fixed must not overlap; checked by the compiler, because nothing here depends on a
// configuration.
const _: () = {
    assert!(GDT.0 + 40 <= PVH_START_INFO.0);
    assert!(PVH_MEMMAP.0 + 24 * 4 <= ZERO_PAGE.0);
    assert!(ZERO_PAGE.0 + 0x1000 < BOOT_STACK_TOP.0 && BOOT_STACK_TOP.0 <= PAGE_TABLES.0);
    assert!(PAGE_TABLES.0 + 6 * 0x1000 <= CMDLINE.0);
    assert!(CMDLINE.0 + CMDLINE_MAX as u64 <= LOW_RAM_END);
    assert!(LOW_RAM_END < ACPI_RSDP.0 && ACPI_RSDP.0.is_multiple_of(16));
    assert!(MIN_MEMORY > HIGH_RAM_START);
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use MemoryKind::{Ram, Reserved};

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn ranges(size: u64) -> Vec<(u64, u64)> {
        ram_ranges(size)
            .into_iter()
            .map(|(start, size)| (start.0, size))
            .collect()
    }

    fn map(size: u64) -> Vec<(u64, u64, MemoryKind)> {
        e820(size)
            .into_iter()
            .map(|entry| (entry.addr, entry.addr + entry.size, entry.kind))
            .collect()
    }

    #[test]
    fn ram_goes_around_the_hole() {
        assert_eq!(ranges(16 * MIB), [(0, 16 * MIB)]);
        assert_eq!(ranges(3 * GIB), [(0, 3 * GIB)]);
        assert_eq!(ranges(3 * GIB + 4096), [(0, 3 * GIB), (4 * GIB, 4096)]);
        assert_eq!(ranges(5 * GIB), [(0, 3 * GIB), (4 * GIB, 2 * GIB)]);
        let (start, size) = ranges(MAX_MEMORY)[1];
        assert_eq!(start + size, 1 << 46);
    }

    #[test]
    fn the_memory_map_reserves_the_legacy_hole_and_omits_the_mmio_hole() {
        let low = [(0, 0x9_fc00, Ram), (0x9_fc00, MIB, Reserved)];
        assert_eq!(map(16 * MIB), [low[0], low[1], (MIB, 16 * MIB, Ram)]);
        assert_eq!(map(3 * GIB), [low[0], low[1], (MIB, 3 * GIB, Ram)]);
        assert_eq!(
            map(3 * GIB + 4096),
            [
                low[0],
                low[1],
                (MIB, 3 * GIB, Ram),
                (4 * GIB, 4 * GIB + 4096, Ram)
            ]
        );
        assert_eq!(
            map(5 * GIB),
            [low[0], low[1], (MIB, 3 * GIB, Ram), (4 * GIB, 6 * GIB, Ram)]
        );
    }

    #[test]
    fn ports_of_fixed_devices_do_not_overlap() {
        let mut ports = [
            (COM1_PORT, COM1_LEN),
            (I8042_PORT, I8042_LEN),
            (RTC_PORT, RTC_LEN),
            (DEBUG_PORT, 1),
            (PVPANIC_PORT, 1),
            (ACPI_POWER_PORT, ACPI_POWER_LEN),
        ];
        ports.sort_unstable();
        assert!(
            ports
                .windows(2)
                .all(|pair| pair[0].0 + pair[0].1 <= pair[1].0),
            "{ports:x?}"
        );
        for register in [
            ACPI_SLEEP_CONTROL,
            ACPI_SLEEP_STATUS,
            ACPI_RESET,
            ACPI_EVENT,
        ] {
            assert!((ACPI_POWER_PORT..ACPI_POWER_PORT + ACPI_POWER_LEN).contains(&register));
        }
    }

    proptest! {
        #[test]
        fn maps_are_ordered_disjoint_and_complete(pages in MIN_MEMORY / 4096..=MAX_MEMORY / 4096) {
            let size = pages * 4096;
            let map = map(size);
            prop_assert!(map.windows(2).all(|pair| pair[0].1 <= pair[1].0));
            prop_assert_eq!(map.iter().map(|(start, end, _)| end - start).sum::<u64>(), size);
            let in_hole = |start, end| end > MMIO_HOLE_START && start < MMIO_HOLE_END;
            prop_assert!(!map.iter().any(|&(start, end, _)| in_hole(start, end)));
            prop_assert_eq!(ranges(size).iter().map(|(_, size)| size).sum::<u64>(), size);
            let reserved: Vec<_> = map.iter().filter(|entry| entry.2 == Reserved).collect();
            prop_assert_eq!(reserved, [&(LOW_RAM_END, HIGH_RAM_START, Reserved)]);
        }
    }
}
