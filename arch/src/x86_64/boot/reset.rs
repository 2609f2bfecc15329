//! The reset vector: the one piece of firmware that this platform has.
//!
//! Linux, told by the FADT that the hardware is reduced, asks EFI for a reset rather than the FADT's reset register. Where
//! there is no EFI it falls back to what a BIOS offers: it returns to real mode and jumps to F000:FFF0 (`BOOT_EFI`, then
//! `BOOT_BIOS`, in arch/x86/kernel/reboot.c). A machine without code there would run off into zeroes, and hang.

use vm_memory::GuestAddress;

use crate::layout;

const OUT_DX_AL: u8 = 0xee;
const MOV_DX_IMM16: u8 = 0xba;
const MOV_AL_IMM8: u8 = 0xb0;
const HLT: u8 = 0xf4;
const JMP_BACK: [u8; 2] = [0xeb, 0xfd];

/// Real-mode code for the reset vector: it writes the ACPI reset register, and halts.
pub fn vector() -> (GuestAddress, [u8; 9]) {
    let [port_low, port_high] = layout::ACPI_RESET.to_le_bytes();
    let [back, distance] = JMP_BACK;
    let code = [
        MOV_DX_IMM16,
        port_low,
        port_high,
        MOV_AL_IMM8,
        layout::ACPI_RESET_VALUE,
        OUT_DX_AL,
        HLT,
        back,
        distance,
    ];
    (layout::RESET_VECTOR, code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vector_is_where_real_mode_begins_and_writes_the_reset_register() {
        let (address, code) = vector();
        assert_eq!(address.0, (0xf000 << 4) + 0xfff0);
        assert!(address.0 + code.len() as u64 <= layout::HIGH_RAM_START);
        // As an assembler has it: mov $0x602, %dx; mov $1, %al; out %al, (%dx); hlt; jmp to the hlt.
        assert_eq!(code, [0xba, 0x02, 0x06, 0xb0, 0x01, 0xee, 0xf4, 0xeb, 0xfd]);
    }
}
