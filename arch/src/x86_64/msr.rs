//! Model-specific registers that firmware sets before an operating system runs. Intel SDM volume 4,
//! chapter 2.
//!
//! Everything else is as KVM resets it, which is as the processor does: the `SYSENTER` and
//! `SYSCALL` registers are 0, and the time-stamp counters of all vCPUs start together.

use kvm_bindings::kvm_msr_entry;

const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;

const MISC_ENABLE_FAST_STRING: u64 = 1 << 0;
const MISC_ENABLE_BTS_UNAVAILABLE: u64 = 1 << 11;
const MISC_ENABLE_PEBS_UNAVAILABLE: u64 = 1 << 12;

const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_TYPE_WRITE_BACK: u64 = 6;

/// The registers to set on every vCPU, with `KVM_SET_MSRS`.
///
/// - `IA32_MISC_ENABLE`: Linux on Intel does without fast string operations where firmware left
///   them off. Both sampling facilities stay unavailable, as KVM has them.
/// - `IA32_MTRR_DEF_TYPE`: memory is write-back. Linux takes disabled MTRRs for a reason to leave
///   the PAT alone.
pub fn boot_msrs() -> Vec<kvm_msr_entry> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    };
    vec![
        entry(
            IA32_MISC_ENABLE,
            MISC_ENABLE_FAST_STRING | MISC_ENABLE_BTS_UNAVAILABLE | MISC_ENABLE_PEBS_UNAVAILABLE,
        ),
        entry(IA32_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_TYPE_WRITE_BACK),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_manual() {
        let values: Vec<_> = boot_msrs()
            .iter()
            .map(|entry| (entry.index, entry.data))
            .collect();
        assert_eq!(values, [(0x1a0, 0x1801), (0x2ff, 0x806)]);
    }
}
