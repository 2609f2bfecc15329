//! The tables as a guest reads them, against the numbers of the specification.

use super::*;

fn port(kind: DeviceKind, base: u16, len: u16, gsi: Option<u32>) -> DeviceInfo {
    DeviceInfo {
        kind,
        range: AddressRange::Port { base, len },
        gsi,
    }
}

fn virtio(base: u64, gsi: u32) -> DeviceInfo {
    let range = AddressRange::Mmio { base, size: 0x1000 };
    DeviceInfo {
        kind: DeviceKind::VirtioMmio,
        range,
        gsi: Some(gsi),
    }
}

fn platform() -> Vec<DeviceInfo> {
    vec![
        port(DeviceKind::Serial, 0x3f8, 8, Some(4)),
        port(DeviceKind::Power, 0x600, 4, Some(5)),
        port(DeviceKind::I8042, 0x60, 5, None),
        port(DeviceKind::Rtc, 0x70, 2, None),
        port(DeviceKind::PvPanic, 0x505, 1, None),
        port(DeviceKind::DebugPort, 0x504, 1, None),
        virtio(0xc000_0000, 6),
        virtio(0xc000_1000, 7),
    ]
}

/// The tables in memory, found as an operating system does.
struct Memory {
    bytes: Vec<u8>,
}

impl Memory {
    fn new(vcpus: u32, devices: &[DeviceInfo]) -> Self {
        let mut tables = build(&AcpiConfig { vcpus, devices }).unwrap();
        assert_eq!(tables.rsdp, GuestAddress(0xe_0000));
        assert_eq!(tables.blobs.len(), 1);
        let (address, bytes) = tables.blobs.remove(0);
        assert_eq!(address, GuestAddress(0xe_0000));
        Self { bytes }
    }

    fn at(&self, address: u64) -> &[u8] {
        &self.bytes[(address - 0xe_0000) as usize..]
    }

    /// A table whose length and checksum are right.
    fn table(&self, address: u64) -> &[u8] {
        assert_eq!(address % 16, 0);
        let table = self.at(address);
        let table = &table[..u32_at(table, 4) as usize];
        assert_eq!(
            sum(table),
            0,
            "checksum of {:?}",
            std::str::from_utf8(&table[..4])
        );
        assert_eq!(&table[10..16], b"AMPOUL");
        assert_eq!(&table[16..24], b"AMPOULE ");
        table
    }

    fn xsdt(&self) -> &[u8] {
        self.table(u64_at(self.at(0xe_0000), 24))
    }

    fn find(&self, signature: &[u8; 4]) -> &[u8] {
        self.xsdt()[36..]
            .chunks(8)
            .map(|entry| self.table(u64_at(entry, 0)))
            .find(|table| &table[..4] == signature)
            .unwrap()
    }

    fn dsdt(&self) -> &[u8] {
        self.table(u64_at(self.find(b"FACP"), 140))
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    position(haystack, needle).is_some()
}

/// The body of a device whose name is `name`: from the name to the end that its length says.
fn device<'a>(dsdt: &'a [u8], name: &[u8; 4]) -> Option<&'a [u8]> {
    (0..dsdt.len() - 8).find_map(|start| {
        if dsdt[start..start + 2] != [0x5b, 0x82] {
            return None;
        }
        let lead = usize::from(dsdt[start + 2]);
        let (length, length_bytes) = match lead >> 6 {
            0 => (lead & 0x3f, 1),
            1 => (lead & 0xf | usize::from(dsdt[start + 3]) << 4, 2),
            more => panic!("a device of {more} length bytes"),
        };
        let body = &dsdt[start + 2 + length_bytes..start + 2 + length];
        body.starts_with(name).then_some(body)
    })
}

#[test]
fn rsdp_has_both_checksums_and_points_to_the_xsdt() {
    let memory = Memory::new(1, &platform());
    let rsdp = &memory.at(0xe_0000)[..36];
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
    assert_eq!(&rsdp[9..15], b"AMPOUL");
    assert_eq!((rsdp[15], u32_at(rsdp, 16), u32_at(rsdp, 20)), (2, 0, 36));
    let xsdt = memory.xsdt();
    assert_eq!(&xsdt[..4], b"XSDT");
    assert_eq!((xsdt[8], xsdt.len()), (1, 36 + 2 * 8));
}

#[test]
fn fadt_is_hardware_reduced_with_sleep_and_reset_registers() {
    let memory = Memory::new(1, &platform());
    let fadt = memory.find(b"FACP");
    assert_eq!((fadt.len(), fadt[8], fadt[131] & 0xf), (276, 6, 5));
    let flags = u32_at(fadt, 112);
    assert_eq!(flags, 1 << 20 | 1 << 10 | 1 << 5 | 1 << 4 | 1);
    assert_eq!(
        (u32_at(fadt, 36), u32_at(fadt, 40)),
        (0, 0),
        "no FACS, no 32-bit DSDT"
    );
    assert_eq!(fadt[109..111], [1 << 2, 0], "no VGA, no 8042; an RTC");
    // Generic addresses: I/O space, 8 bits wide, byte access.
    assert_eq!(fadt[116..128], [1, 8, 0, 1, 0x02, 0x06, 0, 0, 0, 0, 0, 0]);
    assert_eq!(fadt[128], 1);
    assert_eq!(u64_at(fadt, 132), 0);
    assert_eq!(fadt[244..256], [1, 8, 0, 1, 0x00, 0x06, 0, 0, 0, 0, 0, 0]);
    assert_eq!(fadt[256..268], [1, 8, 0, 1, 0x01, 0x06, 0, 0, 0, 0, 0, 0]);
    assert_eq!(&fadt[268..276], b"Ampoule\0");
    // Of the hardware that a reduced platform has not, nothing is described.
    assert!(
        fadt[46..109]
            .iter()
            .chain(&fadt[148..244])
            .all(|byte| *byte == 0)
    );
}

#[test]
fn fadt_without_power_and_clock_promises_neither() {
    let memory = Memory::new(1, &[]);
    let fadt = memory.find(b"FACP");
    assert_eq!(u32_at(fadt, 112) & 1 << 10, 0);
    assert_eq!(fadt[109..111], [1 << 2 | 1 << 5, 0]);
    assert!(
        fadt[116..129]
            .iter()
            .chain(&fadt[244..268])
            .all(|byte| *byte == 0)
    );
    assert!(!contains(memory.dsdt(), b"_S5_"));
}

#[test]
fn madt_names_every_vcpu_and_the_io_apic() {
    for vcpus in [1, 2, 64, 254] {
        let memory = Memory::new(vcpus, &platform());
        let madt = memory.find(b"APIC");
        assert_eq!(u32_at(madt, 36), 0xfee0_0000);
        assert_eq!(u32_at(madt, 40), 0, "no PIC");
        let (local_apics, rest) = madt[44..].split_at(8 * vcpus as usize);
        for (index, apic) in (0..).zip(local_apics.chunks(8)) {
            assert_eq!(apic, [0, 8, index, index, 1, 0, 0, 0]);
        }
        assert_eq!(rest[..12], [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        assert_eq!(rest[12..], [4, 6, 0xff, 0, 0, 1]);
    }
}

#[test]
fn dsdt_has_a_processor_for_every_vcpu() {
    let memory = Memory::new(254, &platform());
    let dsdt = memory.dsdt();
    assert_eq!((&dsdt[..4], dsdt[8]), (&b"DSDT"[..], 2));
    for index in 0u32..254 {
        let name: [u8; 4] = format!("C{index:03X}").into_bytes().try_into().unwrap();
        let body = device(dsdt, &name).unwrap();
        assert!(contains(body, b"\x08_HID\x0dACPI0007\0"));
        let uid = match index {
            0 => vec![0],
            1 => vec![1],
            _ => vec![0x0a, index as u8],
        };
        assert!(body.ends_with(&[&b"\x08_UID"[..], &uid].concat()));
    }
    assert!(device(dsdt, b"C0FE").is_none());
}

/// "IO Port Descriptor" (6.4.2.5), decoding 16 bits.
fn io_descriptor(base: u16, len: u8) -> Vec<u8> {
    let [low, high] = base.to_le_bytes();
    vec![0x47, 1, low, high, low, high, 1, len]
}

/// "Extended Interrupt Descriptor" (6.4.3.6): consumer, edge, active high, exclusive.
fn interrupt_descriptor(gsi: u8) -> Vec<u8> {
    vec![0x89, 6, 0, 0b0011, 1, gsi, 0, 0, 0]
}

#[test]
fn com1_has_its_ports_and_its_line() {
    let memory = Memory::new(1, &platform());
    let body = device(memory.dsdt(), b"COM1").unwrap();
    assert!(contains(body, b"\x08_HID\x0c\x41\xd0\x05\x01"), "PNP0501");
    assert!(contains(body, b"\x08_UID\x00"));
    let resources = [
        io_descriptor(0x3f8, 8),
        interrupt_descriptor(4),
        vec![0x79, 0],
    ]
    .concat();
    assert!(body.ends_with(&resources));
}

#[test]
fn clock_and_pvpanic_have_their_ports() {
    let memory = Memory::new(1, &platform());
    let rtc = device(memory.dsdt(), b"RTC_").unwrap();
    assert!(contains(rtc, b"\x08_HID\x0c\x41\xd0\x0b\x00"), "PNP0B00");
    assert!(contains(rtc, &io_descriptor(0x70, 2)));
    let pvpanic = device(memory.dsdt(), b"PEVT").unwrap();
    assert!(contains(pvpanic, b"\x08_HID\x0dQEMU0001\0"));
    assert!(contains(pvpanic, &io_descriptor(0x505, 1)));
}

#[test]
fn virtio_devices_have_registers_lines_and_distinct_names() {
    let memory = Memory::new(1, &platform());
    for (name, uid, base, gsi) in [
        (b"V000", 0, 0xc000_0000u32, 6),
        (b"V001", 1, 0xc000_1000, 7),
    ] {
        let body = device(memory.dsdt(), name).unwrap();
        assert!(contains(body, b"\x08_HID\x0dLNRO0005\0"));
        assert!(contains(body, &[&b"\x08_UID"[..], &[uid]].concat()));
        // "32-Bit Fixed Memory Range Descriptor" (6.4.3.4), writable.
        let memory = [
            &[0x86, 9, 0, 1][..],
            &base.to_le_bytes(),
            &0x1000u32.to_le_bytes(),
        ]
        .concat();
        let resources = [memory, interrupt_descriptor(gsi), vec![0x79, 0]].concat();
        assert!(body.ends_with(&resources));
    }
}

#[test]
fn power_button_is_told_by_the_event_device() {
    let memory = Memory::new(1, &platform());
    let dsdt = memory.dsdt();
    assert!(
        contains(
            device(dsdt, b"PWRB").unwrap(),
            b"\x08_HID\x0c\x41\xd0\x0c\x0c"
        ),
        "PNP0C0C"
    );
    let ged = device(dsdt, b"GED_").unwrap();
    assert!(contains(ged, b"\x08_HID\x0dACPI0013\0"));
    assert!(contains(ged, &interrupt_descriptor(5)));
    // OperationRegion (EREG, SystemIO, 0x603, 1); Field (EREG, ByteAcc, NoLock, Preserve) { EVTS, 8
    // }
    assert!(contains(ged, b"\x5b\x80EREG\x01\x0b\x03\x06\x01"));
    assert!(contains(ged, b"\x5b\x81\x0bEREG\x01EVTS\x08"));
    // Method (_EVT, 1, Serialized) { If (EVTS & 1) { Notify (PWRB, 0x80) } }
    assert!(contains(
        ged,
        b"_EVT\x09\xa0\x0f\x7bEVTS\x01\x00\x86PWRB\x0a\x80"
    ));
    // Name (_S5, Package () { 5, 0, 0, 0 })
    assert!(contains(dsdt, b"\x08_S5_\x12\x07\x04\x0a\x05\x00\x00\x00"));
}

#[test]
fn keyboard_controller_and_debug_port_are_not_mentioned() {
    let silent = [
        port(DeviceKind::I8042, 0x60, 5, None),
        port(DeviceKind::DebugPort, 0x504, 1, None),
    ];
    assert_eq!(Memory::new(1, &silent).dsdt(), Memory::new(1, &[]).dsdt());
}

#[test]
fn custom_aml_is_in_the_scope_of_the_system_bus() {
    let aml = b"\x08TEST\x0a\x2a".to_vec();
    let memory = Memory::new(1, &[port(DeviceKind::Custom(aml.clone()), 0, 0, None)]);
    let dsdt = memory.dsdt();
    assert!(contains(&dsdt[36..], b"\\_SB_"));
    assert!(dsdt.ends_with(&aml));
    // Scope's length covers all of it, from the length itself on.
    let lead = usize::from(dsdt[37]);
    assert_eq!(lead >> 6, 0);
    assert_eq!(37 + lead, dsdt.len());
}

#[test]
fn what_acpi_cannot_say_is_refused() {
    let refuse = |vcpus, devices: &[DeviceInfo]| build(&AcpiConfig { vcpus, devices }).unwrap_err();
    for count in [0, 255] {
        assert_eq!(refuse(count, &[]), AcpiError::VcpuCount { count });
    }
    let rtc = port(DeviceKind::Rtc, 0x70, 2, None);
    assert_eq!(
        refuse(1, &[rtc.clone(), rtc]),
        AcpiError::Duplicate {
            device: "real-time clock"
        }
    );
    let power = port(DeviceKind::Power, 0x600, 3, Some(5));
    let range = power.range;
    assert_eq!(
        refuse(1, &[power]),
        AcpiError::Range {
            device: "power",
            range
        }
    );
    let wraps = port(DeviceKind::Serial, 0xfff9, 8, Some(4));
    assert!(matches!(refuse(1, &[wraps]), AcpiError::Range { .. }));
    for (base, size) in [
        (1 << 32, 0x1000),
        (0xffff_f000, 0x1001),
        (0xc000_0000, 0),
        (0, 1 << 32),
    ] {
        let range = AddressRange::Mmio { base, size };
        let device = DeviceInfo {
            kind: DeviceKind::VirtioMmio,
            range,
            gsi: Some(6),
        };
        assert_eq!(
            refuse(1, &[device]),
            AcpiError::Range {
                device: "virtio-mmio",
                range
            }
        );
    }
    for gsi in [None, Some(24)] {
        let serial = port(DeviceKind::Serial, 0x3f8, 8, gsi);
        assert_eq!(
            refuse(1, &[serial]),
            AcpiError::Gsi {
                device: "serial port",
                gsi
            }
        );
    }
    let many = vec![port(DeviceKind::Serial, 0x3f8, 8, Some(4)); 5];
    assert!(matches!(
        refuse(1, &many),
        AcpiError::TooManyDevices { max: 4, .. }
    ));
    let huge = port(DeviceKind::Custom(vec![0xa3; 0x2_0000]), 0, 0, None);
    assert!(matches!(
        refuse(1, &[huge]),
        AcpiError::TooLarge { max: 0x1_fff0, .. }
    ));
}

#[test]
fn a_device_may_end_at_4_gib() {
    Memory::new(1, &[virtio(0xffff_f000, 23)]);
}

#[test]
fn a_custom_device_has_its_name_id_and_resources() {
    let mmio = AddressRange::Mmio {
        base: 0xd000_0000,
        size: 0x1000,
    };
    let aml = custom_device("ACM0", "ACME0001", mmio, &[9, 10]).unwrap();
    // DeviceOp, then a length, then the name (ACPI 6.5, 20.2.5.2).
    assert_eq!(aml[..2], [0x5b, 0x82]);
    let has = |bytes: &[u8]| aml.windows(bytes.len()).any(|window| window == bytes);
    assert!(has(b"ACM0") && has(b"_HID\x0dACME0001\0") && has(b"_CRS"));
    // Memory32Fixed, writable; two extended interrupts: consumer, edge, active high, exclusive (6.4.3.4 and 6.4.3.6).
    assert!(has(&[0x86, 9, 0, 1, 0, 0, 0, 0xd0, 0, 0x10, 0, 0]));
    assert!(has(&[0x89, 6, 0, 3, 1, 9, 0, 0, 0]));
    assert!(has(&[0x89, 6, 0, 3, 1, 10, 0, 0, 0]));

    for name in ["ACM", "ACME0", "acm0", "0ACM", "AC M"] {
        let error = custom_device(name, "ACME0001", mmio, &[]).unwrap_err();
        assert_eq!(error, AcpiError::Name { name: name.into() });
    }
    for range in [
        AddressRange::Mmio {
            base: 1 << 32,
            size: 1,
        },
        AddressRange::Port { base: 0, len: 256 },
    ] {
        let error = custom_device("ACM0", "ACME0001", range, &[]).unwrap_err();
        assert!(matches!(error, AcpiError::Range { .. }), "{error}");
    }
}
