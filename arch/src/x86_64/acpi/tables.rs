//! The tables of fixed form: FADT (ACPI 6.5, 5.2.9), MADT (5.2.12) and XSDT (5.2.8).

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::GuestAddress;

use super::{AcpiError, DeviceInfo, DeviceKind, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout;

/// ACPI 6.5, table 5.10 "IA-PC boot architecture flags".
const BOOT_ARCH_NO_VGA: u16 = 1 << 2;
const BOOT_ARCH_NO_RTC: u16 = 1 << 5;
/// Who runs this machine, as the FADT has it.
const HYPERVISOR_VENDOR: u64 = u64::from_le_bytes(*b"Ampoule\0");

/// ACPI 6.5's MADT.
const MADT_REVISION: u8 = 5;
const SDT_HEADER_LEN: usize = 36;
const MADT_LOCAL_APIC_LEN: usize = 8;
/// "Local APIC NMI" (5.2.12.7) for all processors, flags as the bus has them, pin LINT1.
const MADT_NMI_ON_LINT1: [u8; 6] = [4, 6, 0xff, 0, 0, 1];

/// The table that describes the platform: no legacy hardware, and where the sleep and reset
/// registers are if there are any.
pub(super) fn fadt(devices: &[DeviceInfo], dsdt: GuestAddress) -> Result<Vec<u8>, AcpiError> {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt.0)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        // These say that neither button is one of the fixed kind.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    let mut boot_arch = BOOT_ARCH_NO_VGA;
    if !devices.iter().any(|device| device.kind == DeviceKind::Rtc) {
        boot_arch |= BOOT_ARCH_NO_RTC;
    }
    fadt.iapc_boot_arch = boot_arch.into();
    fadt.hypervisor_vendor_identity = HYPERVISOR_VENDOR.into();
    if let Some(power) = devices
        .iter()
        .find(|device| device.kind == DeviceKind::Power)
    {
        let base = power.ports(layout::ACPI_POWER_LEN)?;
        let register = |port: u16| {
            let port = base + (port - layout::ACPI_POWER_PORT);
            GAS::new(
                AddressSpace::SystemIo,
                8,
                0,
                AccessSize::ByteAccess,
                port.into(),
            )
        };
        fadt = fadt.flag(Flags::ResetRegSup);
        fadt.reset_reg = register(layout::ACPI_RESET);
        fadt.reset_value = layout::ACPI_RESET_VALUE;
        fadt.sleep_control_reg = register(layout::ACPI_SLEEP_CONTROL);
        fadt.sleep_status_reg = register(layout::ACPI_SLEEP_STATUS);
    }
    Ok(to_bytes(&fadt.finalize()))
}

/// The table of interrupt controllers: a local APIC for each vCPU, and the I/O APIC. No PIC:
/// `PCAT_COMPAT` is clear.
pub(super) fn madt(vcpus: u32) -> Vec<u8> {
    let mut body = Vec::with_capacity(32 + vcpus as usize * MADT_LOCAL_APIC_LEN);
    body.extend_from_slice(&(layout::LAPIC as u32).to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes());
    // `build` has checked that the index is a byte.
    for index in (0..vcpus).map(|index| index as u8) {
        ProcessorLocalApic::new(index, index, EnabledStatus::Enabled).to_aml_bytes(&mut body);
    }
    IoApic::new(0, layout::IOAPIC as u32, 0).to_aml_bytes(&mut body);
    body.extend_from_slice(&MADT_NMI_ON_LINT1);
    table(*b"APIC", MADT_REVISION, &body)
}

/// The table of tables.
pub(super) fn xsdt(entries: &[GuestAddress]) -> Vec<u8> {
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for entry in entries {
        xsdt.add_entry(entry.0);
    }
    to_bytes(&xsdt)
}

/// A table with the standard header (5.2.6).
pub(super) fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let header = SDT_HEADER_LEN as u32;
    let mut table = Sdt::new(
        signature,
        header,
        revision,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.append_slice(body);
    table.as_slice().to_vec()
}

fn to_bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    table.to_aml_bytes(&mut bytes);
    bytes
}
