//! The DSDT: processors and devices in AML. ACPI 6.5, chapter 6 (devices), 5.6.9 (the Generic Event
//! Device) and 7.4.2 (`\_Sx`).

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO,
    If, Interrupt, Memory32Fixed, Method, Name, Notify, OpRegion, OpRegionSpace, Package, Path,
    ResourceTemplate, Scope, ZERO,
};

use super::tables::table;
use super::{AcpiConfig, AcpiError, AddressRange, DeviceInfo, DeviceKind};
use crate::layout;

/// Integers in AML have 64 bits from this revision on.
const DSDT_REVISION: u8 = 2;
/// `Notify` value of a pressed power button (ACPI 6.5, table 5.192).
const BUTTON_PRESSED: u8 = 0x80;
const MAX_SERIAL_PORTS: usize = 4;
/// Names have three hexadecimal digits for the number.
const MAX_VIRTIO_DEVICES: usize = 1 << 12;

/// How many devices of each kind have been described so far.
#[derive(Default)]
struct Counters {
    serial: usize,
    rtc: usize,
    pvpanic: usize,
    power: usize,
    virtio: usize,
}

/// The table, with its header.
pub(super) fn dsdt(config: &AcpiConfig<'_>) -> Result<Vec<u8>, AcpiError> {
    // The devices' AML is collected by itself, because a scope begins with its length.
    let mut devices = Vec::with_capacity(1024);
    for index in 0..config.vcpus {
        processor(&mut devices, index);
    }
    let mut counters = Counters::default();
    for info in config.devices {
        device(&mut devices, info, &mut counters)?;
    }
    let mut body = Scope::raw(Path::new("\\_SB_"), devices);
    if counters.power > 0 {
        let sleep_type = layout::SLEEP_TYPE_S5;
        Name::new(
            Path::new("_S5_"),
            &Package::new(vec![&sleep_type, &ZERO, &ZERO, &ZERO]),
        )
        .to_aml_bytes(&mut body);
    }
    Ok(table(*b"DSDT", DSDT_REVISION, &body))
}

fn device(aml: &mut Vec<u8>, info: &DeviceInfo, counters: &mut Counters) -> Result<(), AcpiError> {
    let name = info.kind.name();
    let once = |counter: &mut usize| match std::mem::replace(counter, 1) {
        0 => Ok(()),
        _ => Err(AcpiError::Duplicate { device: name }),
    };
    let next = |counter: &mut usize, max| {
        let number = *counter;
        if number == max {
            return Err(AcpiError::TooManyDevices { device: name, max });
        }
        *counter += 1;
        Ok(number)
    };
    match &info.kind {
        DeviceKind::Serial => serial(aml, info, next(&mut counters.serial, MAX_SERIAL_PORTS)?),
        DeviceKind::Rtc => once(&mut counters.rtc).and_then(|()| rtc(aml, info)),
        DeviceKind::PvPanic => once(&mut counters.pvpanic).and_then(|()| pvpanic(aml, info)),
        DeviceKind::Power => once(&mut counters.power).and_then(|()| power(aml, info)),
        DeviceKind::VirtioMmio => {
            virtio_mmio(aml, info, next(&mut counters.virtio, MAX_VIRTIO_DEVICES)?)
        }
        DeviceKind::I8042 | DeviceKind::DebugPort => Ok(()),
        DeviceKind::Custom(bytes) => {
            aml.extend_from_slice(bytes);
            Ok(())
        }
    }
}

/// A processor device (ACPI 6.5, 8.4); its `_UID` is the one that the MADT has.
fn processor(aml: &mut Vec<u8>, index: u32) {
    Device::new(
        Path::new(&format!("C{index:03X}")),
        vec![&hid(&"ACPI0007"), &Name::new(Path::new("_UID"), &index)],
    )
    .to_aml_bytes(aml);
}

fn serial(aml: &mut Vec<u8>, info: &DeviceInfo, number: usize) -> Result<(), AcpiError> {
    let ports = io(info.ports(layout::COM1_LEN)?, layout::COM1_LEN as u8);
    let interrupt = edge(info.line()?);
    Device::new(
        Path::new(&format!("COM{}", number + 1)),
        vec![
            &hid(&EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &number),
            &crs(vec![&ports, &interrupt]),
        ],
    )
    .to_aml_bytes(aml);
    Ok(())
}

fn rtc(aml: &mut Vec<u8>, info: &DeviceInfo) -> Result<(), AcpiError> {
    let ports = io(info.ports(layout::RTC_LEN)?, layout::RTC_LEN as u8);
    Device::new(
        Path::new("RTC_"),
        vec![&hid(&EISAName::new("PNP0B00")), &crs(vec![&ports])],
    )
    .to_aml_bytes(aml);
    Ok(())
}

fn pvpanic(aml: &mut Vec<u8>, info: &DeviceInfo) -> Result<(), AcpiError> {
    let port = io(info.ports(1)?, 1);
    Device::new(
        Path::new("PEVT"),
        vec![&hid(&"QEMU0001"), &crs(vec![&port])],
    )
    .to_aml_bytes(aml);
    Ok(())
}

/// The power button, and the Generic Event Device that tells of it: its method reads, and by that
/// clears, the event register.
fn power(aml: &mut Vec<u8>, info: &DeviceInfo) -> Result<(), AcpiError> {
    let base = info.ports(layout::ACPI_POWER_LEN)?;
    let event_port = base + (layout::ACPI_EVENT - layout::ACPI_POWER_PORT);
    let interrupt = edge(info.line()?);

    let button = Path::new("PWRB");
    Device::new(Path::new("PWRB"), vec![&hid(&EISAName::new("PNP0C0C"))]).to_aml_bytes(aml);

    let region = OpRegion::new(
        Path::new("EREG"),
        OpRegionSpace::SystemIO,
        &event_port,
        &1u8,
    );
    let field = Field::new(
        Path::new("EREG"),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::Preserve,
        vec![FieldEntry::Named(*b"EVTS", 8)],
    );
    let events = Path::new("EVTS");
    let pressed = And::new(&ZERO, &events, &layout::ACPI_EVENT_POWER_BUTTON);
    let notify = Notify::new(&button, &BUTTON_PRESSED);
    let when_pressed = If::new(&pressed, vec![&notify]);
    Device::new(
        Path::new("GED_"),
        vec![
            &hid(&"ACPI0013"),
            &crs(vec![&interrupt]),
            &region,
            &field,
            &Method::new(Path::new("_EVT"), 1, true, vec![&when_pressed]),
        ],
    )
    .to_aml_bytes(aml);
    Ok(())
}

fn virtio_mmio(aml: &mut Vec<u8>, info: &DeviceInfo, number: usize) -> Result<(), AcpiError> {
    let misplaced = AcpiError::Range {
        device: info.kind.name(),
        range: info.range,
    };
    let (base, size) = match info.range {
        AddressRange::Mmio { base, size } => (base, size),
        AddressRange::Port { .. } => return Err(misplaced),
    };
    let (Ok(base), Ok(size)) = (u32::try_from(base), u32::try_from(size)) else {
        return Err(misplaced);
    };
    if size == 0 || base.checked_add(size - 1).is_none() {
        return Err(misplaced);
    }
    let registers = Memory32Fixed::new(true, base, size);
    let interrupt = edge(info.line()?);
    Device::new(
        Path::new(&format!("V{number:03X}")),
        vec![
            &hid(&"LNRO0005"),
            &Name::new(Path::new("_UID"), &number),
            &crs(vec![&registers, &interrupt]),
        ],
    )
    .to_aml_bytes(aml);
    Ok(())
}

/// See [`super::custom_device`].
pub(super) fn custom(
    name: &str,
    id: &str,
    range: AddressRange,
    gsis: &[u32],
) -> Result<Vec<u8>, AcpiError> {
    let misplaced = AcpiError::Range {
        device: "custom",
        range,
    };
    let mut resources: Vec<Box<dyn Aml>> = Vec::new();
    match range {
        AddressRange::Mmio { base, size } => {
            let (Ok(base), Ok(size)) = (u32::try_from(base), u32::try_from(size)) else {
                return Err(misplaced);
            };
            resources.push(Box::new(Memory32Fixed::new(true, base, size)));
        }
        AddressRange::Port { base, len } => {
            let Ok(len) = u8::try_from(len) else {
                return Err(misplaced);
            };
            resources.push(Box::new(io(base, len)));
        }
    }
    for gsi in gsis {
        resources.push(Box::new(edge(*gsi)));
    }
    let mut aml = Vec::new();
    Device::new(
        Path::new(name),
        vec![
            &hid(&id.to_owned()),
            &crs(resources.iter().map(|it| &**it).collect()),
        ],
    )
    .to_aml_bytes(&mut aml);
    Ok(aml)
}

fn hid(id: &dyn Aml) -> Name {
    Name::new(Path::new("_HID"), id)
}

fn crs(resources: Vec<&dyn Aml>) -> Name {
    Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources))
}

fn io(base: u16, len: u8) -> IO {
    IO::new(base, base, 1, len)
}

/// An interrupt that the device consumes: edge-triggered, active high, exclusive. It suits an
/// irqfd, which has no level to hold.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}
