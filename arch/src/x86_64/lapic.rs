//! The local APIC's interrupt pins at power-on. Intel SDM volume 3, 12.5.1 "Local Vector Table".

use kvm_bindings::kvm_lapic_state;

/// Offset of the LVT LINT0 register.
const LVT_LINT0: usize = 0x350;
/// Offset of the LVT LINT1 register.
const LVT_LINT1: usize = 0x360;
const DELIVERY_MODE_NMI: u32 = 0b100 << 8;
const DELIVERY_MODE_EXTINT: u32 = 0b111 << 8;
const MASKED: u32 = 1 << 16;

/// Sets LINT0 to external interrupts, masked, and LINT1 to NMI, as firmware leaves them on a
/// machine without a PIC.
///
/// LINT0 is where the PIC inside KVM would interrupt. The platform says that there is no PIC, so no
/// guest ever masks its lines, and Linux keeps an LINT0 that it finds unmasked: a serial interrupt
/// would arrive a second time, as the exception of its number.
///
/// An INIT resets the register, so only the vCPU that boots the guest gains from this.
pub fn set_lint(state: &mut kvm_lapic_state) {
    write(state, LVT_LINT0, DELIVERY_MODE_EXTINT | MASKED);
    write(state, LVT_LINT1, DELIVERY_MODE_NMI);
}

fn write(state: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (register, byte) in state.regs[offset..].iter_mut().zip(value.to_le_bytes()) {
        *register = byte as std::os::raw::c_char;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_set_and_nothing_else() {
        let mut state = kvm_lapic_state { regs: [0x55; 1024] };
        set_lint(&mut state);
        assert_eq!(
            state.regs[0x350..0x354]
                .iter()
                .map(|b| *b as u8)
                .collect::<Vec<_>>(),
            [0, 7, 1, 0]
        );
        assert_eq!(
            state.regs[0x360..0x364]
                .iter()
                .map(|b| *b as u8)
                .collect::<Vec<_>>(),
            [0, 4, 0, 0]
        );
        let changed = state.regs.iter().filter(|byte| **byte != 0x55).count();
        assert_eq!(changed, 8);
    }
}
