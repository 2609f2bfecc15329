//! The x86-64 guest platform: a PC without the legacy timer and interrupt controller, described by
//! hardware-reduced ACPI.

pub mod acpi;
pub mod boot;
pub mod cpuid;
pub mod lapic;
pub mod layout;
pub mod msr;
pub mod paging;
pub mod regs;
