//! ACPI tables of a hardware-reduced platform. ACPI 6.5, chapter 5 (tables) and 4.1
//! (hardware-reduced ACPI).
//!
//! The tables are made of plain descriptions: which devices there are, where they are, and which
//! interrupt line they have. All tables go into one buffer, one after the other, which is written
//! to [`layout::ACPI_RSDP`]: this is on the way to the guest's first instruction.

mod dsdt;
mod tables;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use vm_memory::GuestAddress;

use crate::cpuid::MAX_VCPUS;
use crate::layout;

const OEM_ID: [u8; 6] = *b"AMPOUL";
const OEM_TABLE_ID: [u8; 8] = *b"AMPOULE ";
const OEM_REVISION: u32 = 1;
/// How tables are aligned; the RSDP must be, because operating systems search for it in such steps.
const ALIGNMENT: usize = 16;

/// Why the tables could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcpiError {
    /// The number of vCPUs is 0 or beyond what the MADT can name.
    #[error("{count} vCPUs are not between 1 and {max}", max = MAX_VCPUS)]
    VcpuCount {
        /// How many vCPUs were described.
        count: u32,
    },
    /// A device of which there is one at most was described twice.
    #[error("the device {device} was described twice")]
    Duplicate {
        /// The device's name.
        device: &'static str,
    },
    /// There are more devices of a kind than there are names for them.
    #[error("the device {device} was described more than {max} times")]
    TooManyDevices {
        /// The device's name.
        device: &'static str,
        /// How many there may be.
        max: usize,
    },
    /// A device's range is of the wrong kind or length, or its addresses are beyond what its
    /// resource can hold.
    #[error("the device {device} cannot be at {range:x?}")]
    Range {
        /// The device's name.
        device: &'static str,
        /// The range as it was described.
        range: AddressRange,
    },
    /// A device that interrupts has no interrupt line, or one beyond the I/O APIC's.
    #[error("the device {device} cannot have the interrupt line {gsi:?}")]
    Gsi {
        /// The device's name.
        device: &'static str,
        /// The line as it was described.
        gsi: Option<u32>,
    },
    /// A device's name is not one of ACPI's.
    #[error("\"{name}\" is not four upper-case letters, digits or underscores")]
    Name {
        /// The name.
        name: String,
    },
    /// The tables do not fit into the memory reserved for them.
    #[error("the tables take {size} bytes of {max}")]
    TooLarge {
        /// What they take, in bytes.
        size: usize,
        /// What there is, in bytes.
        max: usize,
    },
}

/// What a device is, as far as ACPI has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A 16550 serial port; eight ports and an interrupt line. The first is COM1, and there are
    /// four at most.
    Serial,
    /// The real-time clock; two ports.
    Rtc,
    /// The keyboard controller. ACPI keeps silent about it: ours can reset the machine and nothing
    /// else, and a guest that looks for a keyboard loses time.
    I8042,
    /// The pvpanic device; one port.
    PvPanic,
    /// Sleep control, sleep status, reset and event register in this order, one port each, and an
    /// interrupt line for the event register: power-off, reset and the power button.
    Power,
    /// The debug port. ACPI keeps silent about it.
    DebugPort,
    /// A virtio device with MMIO transport; below 4 GiB, with an interrupt line.
    VirtioMmio,
    /// AML to put into the scope `\_SB`, as it is. The range and the interrupt line are not looked
    /// at.
    Custom(Vec<u8>),
}

/// Where a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressRange {
    /// Guest-physical addresses.
    Mmio {
        /// The first address.
        base: u64,
        /// The length in bytes.
        size: u64,
    },
    /// I/O ports.
    Port {
        /// The first port.
        base: u16,
        /// How many ports.
        len: u16,
    },
}

/// A device as ACPI sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// What it is.
    pub kind: DeviceKind,
    /// Where it is.
    pub range: AddressRange,
    /// Its interrupt line, edge-triggered and active high.
    pub gsi: Option<u32>,
}

/// What the tables describe.
#[derive(Clone, Copy, Debug)]
pub struct AcpiConfig<'a> {
    /// How many vCPUs; the APIC id of each is its index.
    pub vcpus: u32,
    /// The devices. Where there are several of a kind, their order is that of their names.
    pub devices: &'a [DeviceInfo],
}

/// The tables, ready to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiTables {
    /// Where ACPI begins, for the boot protocol.
    pub rsdp: GuestAddress,
    /// What goes where in guest memory.
    pub blobs: Vec<(GuestAddress, Vec<u8>)>,
}

/// Makes the tables: RSDP, XSDT, FADT, MADT, DSDT.
///
/// Refuses devices that ACPI cannot describe, and what does not fit between [`layout::ACPI_RSDP`]
/// and [`layout::ACPI_END`].
pub fn build(config: &AcpiConfig<'_>) -> Result<AcpiTables, AcpiError> {
    if !(1..=MAX_VCPUS).contains(&config.vcpus) {
        return Err(AcpiError::VcpuCount {
            count: config.vcpus,
        });
    }
    let mut space = Space {
        bytes: Vec::with_capacity(4096),
    };
    // The RSDP comes first and is known last.
    space.bytes.resize(Rsdp::len(), 0);
    let dsdt = space.add(&dsdt::dsdt(config)?);
    let fadt = space.add(&tables::fadt(config.devices, dsdt)?);
    let madt = space.add(&tables::madt(config.vcpus));
    let xsdt = space.add(&tables::xsdt(&[fadt, madt]));
    let mut rsdp = Vec::with_capacity(Rsdp::len());
    Rsdp::new(OEM_ID, xsdt.0).to_aml_bytes(&mut rsdp);
    space.bytes[..rsdp.len()].copy_from_slice(&rsdp);

    let size = space.bytes.len();
    let max = (layout::ACPI_END.0 - layout::ACPI_RSDP.0) as usize;
    if size > max {
        return Err(AcpiError::TooLarge { size, max });
    }
    Ok(AcpiTables {
        rsdp: layout::ACPI_RSDP,
        blobs: vec![(layout::ACPI_RSDP, space.bytes)],
    })
}

/// AML of a device for [`DeviceKind::Custom`]: `name` of four upper-case letters, digits or underscores, the first no digit
/// (ACPI 6.5, 5.3); `id` its `_HID`, by which a driver finds it; where it is, and its interrupt lines, edge-triggered.
///
/// # Errors
/// [`AcpiError::Name`]; [`AcpiError::Range`] above 4 GiB, or of more than 255 ports.
pub fn custom_device(
    name: &str,
    id: &str,
    range: AddressRange,
    gsis: &[u32],
) -> Result<Vec<u8>, AcpiError> {
    let upper = |byte: u8| byte.is_ascii_uppercase() || byte == b'_';
    let good = match name.as_bytes() {
        [first, rest @ ..] if rest.len() == 3 => {
            upper(*first)
                && rest
                    .iter()
                    .all(|byte| upper(*byte) || byte.is_ascii_digit())
        }
        _ => false,
    };
    if !good {
        return Err(AcpiError::Name { name: name.into() });
    }
    dsdt::custom(name, id, range, gsis)
}

/// The memory for tables, from [`layout::ACPI_RSDP`] on.
struct Space {
    bytes: Vec<u8>,
}

impl Space {
    /// Appends a table and says where it is.
    fn add(&mut self, table: &[u8]) -> GuestAddress {
        let offset = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(offset, 0);
        self.bytes.extend_from_slice(table);
        GuestAddress(layout::ACPI_RSDP.0 + offset as u64)
    }
}

impl DeviceKind {
    /// The name in errors.
    fn name(&self) -> &'static str {
        match self {
            Self::Serial => "serial port",
            Self::Rtc => "real-time clock",
            Self::I8042 => "keyboard controller",
            Self::PvPanic => "pvpanic",
            Self::Power => "power",
            Self::DebugPort => "debug port",
            Self::VirtioMmio => "virtio-mmio",
            Self::Custom(_) => "custom",
        }
    }
}

impl DeviceInfo {
    /// The first port of a device that must have `len` of them.
    fn ports(&self, len: u16) -> Result<u16, AcpiError> {
        match self.range {
            AddressRange::Port { base, len: actual }
                if actual == len && base.checked_add(len - 1).is_some() =>
            {
                Ok(base)
            }
            range => Err(AcpiError::Range {
                device: self.kind.name(),
                range,
            }),
        }
    }

    /// The interrupt line of a device that must have one.
    fn line(&self) -> Result<u32, AcpiError> {
        self.gsi
            .filter(|gsi| *gsi <= layout::LAST_GSI)
            .ok_or(AcpiError::Gsi {
                device: self.kind.name(),
                gsi: self.gsi,
            })
    }
}

#[cfg(test)]
mod tests;
