//! Registers of the vCPU that boots the guest, and the tables in memory that they point to.
//!
//! - PVH: the Xen document "x86/HVM direct boot ABI": 32-bit protected mode, flat segments, paging
//!   off.
//! - Linux: Documentation/arch/x86/boot.rst, "64-bit Boot Protocol": long mode, flat segments,
//!   identity-mapped page tables.

use kvm_bindings::{kvm_dtable, kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::GuestAddress;

use super::{layout, paging};

const RFLAGS_RESERVED: u64 = 1 << 1;
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// `__BOOT_CS` of the Linux boot protocol.
const BOOT_CS: u16 = 0x10;
/// `__BOOT_DS` of the Linux boot protocol.
const BOOT_DS: u16 = 0x18;
const BOOT_TSS: u16 = 0x20;
/// Null, null (Linux leaves it unused), code, data, task state.
const GDT_ENTRIES: usize = 5;

/// How, and where, the guest's first instruction is entered. All addresses are guest-physical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryPoint {
    /// By the PVH boot protocol, in 32-bit mode.
    Pvh {
        /// The entry point that the kernel's ELF note names.
        entry: u64,
        /// Where `hvm_start_info` is; goes to EBX.
        start_info: u64,
    },
    /// By the Linux boot protocol, in 64-bit mode.
    Linux64 {
        /// The first instruction.
        entry: u64,
        /// Where `boot_params` is; goes to RSI.
        zero_page: u64,
    },
}

/// The general-purpose registers at the entry.
pub fn regs(entry: &EntryPoint) -> kvm_regs {
    let zero = kvm_regs {
        rflags: RFLAGS_RESERVED,
        ..kvm_regs::default()
    };
    match *entry {
        EntryPoint::Pvh { entry, start_info } => kvm_regs {
            rip: entry,
            rbx: start_info,
            ..zero
        },
        EntryPoint::Linux64 { entry, zero_page } => kvm_regs {
            rip: entry,
            rsi: zero_page,
            rsp: layout::BOOT_STACK_TOP.0,
            rbp: layout::BOOT_STACK_TOP.0,
            ..zero
        },
    }
}

/// The segment and control registers at the entry; `base` is what KVM reset them to, and what is
/// not named here is kept.
pub fn sregs(base: kvm_sregs, entry: &EntryPoint) -> kvm_sregs {
    let long = matches!(entry, EntryPoint::Linux64 { .. });
    let data = data_segment();
    let mut sregs = kvm_sregs {
        cs: code_segment(long),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: task_segment(),
        idt: kvm_dtable::default(),
        ..base
    };
    if long {
        sregs.gdt = kvm_dtable {
            base: layout::GDT.0,
            limit: (GDT_ENTRIES * 8 - 1) as u16,
            ..kvm_dtable::default()
        };
        sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
        sregs.cr3 = layout::PAGE_TABLES.0;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LME | EFER_LMA;
    } else {
        // The protocol leaves the selectors undefined: a guest loads its own table before it loads
        // a segment.
        sregs.gdt = kvm_dtable::default();
        sregs.cr0 = CR0_PE | CR0_ET;
        sregs.cr3 = 0;
        sregs.cr4 = 0;
        sregs.efer = 0;
    }
    sregs
}

/// The floating-point state after `FNINIT`, with all SSE exceptions masked. Intel SDM volume 1,
/// 8.1.5 and 10.2.3.
pub fn fpu() -> kvm_fpu {
    kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..kvm_fpu::default()
    }
}

/// What must be in guest memory for the registers to make sense. PVH needs nothing; Linux's 64-bit
/// entry needs a descriptor table and page tables.
pub fn boot_blobs(entry: &EntryPoint) -> Vec<(GuestAddress, Vec<u8>)> {
    match entry {
        EntryPoint::Pvh { .. } => Vec::new(),
        EntryPoint::Linux64 { .. } => vec![
            (layout::GDT, gdt()),
            (
                layout::PAGE_TABLES,
                paging::identity_map(layout::PAGE_TABLES),
            ),
        ],
    }
}

fn gdt() -> Vec<u8> {
    let entries: [u64; GDT_ENTRIES] = [
        0,
        0,
        descriptor(&code_segment(true)),
        descriptor(&data_segment()),
        descriptor(&task_segment()),
    ];
    entries
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect()
}

fn flat_segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    }
}

/// Executable, readable, accessed.
fn code_segment(long: bool) -> kvm_segment {
    kvm_segment {
        l: long.into(),
        db: (!long).into(),
        ..flat_segment(BOOT_CS, 0xb)
    }
}

/// Readable, writable, accessed.
fn data_segment() -> kvm_segment {
    kvm_segment {
        db: 1,
        ..flat_segment(BOOT_DS, 0x3)
    }
}

/// A busy task state segment: the type is that of 32-bit mode and of long mode alike.
fn task_segment() -> kvm_segment {
    kvm_segment {
        limit: 0x67,
        selector: BOOT_TSS,
        type_: 0xb,
        present: 1,
        ..kvm_segment::default()
    }
}

/// The segment as the processor finds it in a descriptor table. Intel SDM volume 3, 3.4.5 "Segment
/// Descriptors".
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.avl)
        | u64::from(segment.l) << 1
        | u64::from(segment.db) << 2
        | u64::from(segment.g) << 3;
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (segment.base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::*;

    const PVH: EntryPoint = EntryPoint::Pvh {
        entry: 0x100_0000,
        start_info: 0x6000,
    };
    const LINUX: EntryPoint = EntryPoint::Linux64 {
        entry: 0x100_0200,
        zero_page: 0x7000,
    };

    fn after_reset() -> kvm_sregs {
        kvm_sregs {
            cr0: 0x6000_0010,
            cr8: 3,
            apic_base: 0xfee0_0900,
            ldt: kvm_segment {
                type_: 2,
                present: 1,
                limit: 0xffff,
                ..kvm_segment::default()
            },
            ..kvm_sregs::default()
        }
    }

    #[test]
    fn pvh_enters_flat_32_bit_mode_without_paging() {
        let regs = regs(&PVH);
        assert_eq!((regs.rip, regs.rbx, regs.rflags), (0x100_0000, 0x6000, 2));
        let sregs = sregs(after_reset(), &PVH);
        assert_eq!(
            (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer),
            (0x11, 0, 0, 0)
        );
        assert_eq!(
            (sregs.cs.base, sregs.cs.limit, sregs.cs.type_),
            (0, u32::MAX, 0xb)
        );
        assert_eq!(
            (sregs.cs.db, sregs.cs.l, sregs.cs.g, sregs.cs.dpl),
            (1, 0, 1, 0)
        );
        for segment in [sregs.ds, sregs.es, sregs.ss] {
            assert_eq!(
                (segment.base, segment.limit, segment.type_),
                (0, u32::MAX, 3)
            );
        }
        assert_eq!(
            (sregs.tr.base, sregs.tr.limit, sregs.tr.type_),
            (0, 0x67, 0xb)
        );
        assert!(boot_blobs(&PVH).is_empty());
    }

    #[test]
    fn linux_enters_long_mode_on_its_page_tables() {
        let regs = regs(&LINUX);
        assert_eq!((regs.rip, regs.rsi, regs.rflags), (0x100_0200, 0x7000, 2));
        let sregs = sregs(after_reset(), &LINUX);
        assert_eq!(
            (sregs.cr0, sregs.cr3, sregs.cr4),
            (0x8000_0011, 0x9000, 0x20)
        );
        assert_eq!(sregs.efer, 0x500);
        assert_eq!((sregs.cs.selector, sregs.cs.l, sregs.cs.db), (0x10, 1, 0));
        assert_eq!((sregs.ds.selector, sregs.ss.selector), (0x18, 0x18));
        assert_eq!((sregs.gdt.base, sregs.gdt.limit), (0x500, 39));
    }

    #[test]
    fn what_a_boot_protocol_does_not_name_is_kept() {
        for entry in [PVH, LINUX] {
            let sregs = sregs(after_reset(), &entry);
            assert_eq!((sregs.cr8, sregs.apic_base), (3, 0xfee0_0900));
            assert_eq!(sregs.ldt.limit, 0xffff);
        }
    }

    #[test]
    fn descriptor_table_agrees_with_the_segment_registers() {
        let blobs = boot_blobs(&LINUX);
        assert_eq!(blobs[0].0, layout::GDT);
        let entries: Vec<_> = blobs[0]
            .1
            .chunks(8)
            .map(|entry| u64::from_le_bytes(entry.try_into().unwrap()))
            .collect();
        // Code 64-bit, data 32-bit, busy TSS, as the manual draws them.
        assert_eq!(
            entries,
            [
                0,
                0,
                0x00af_9b00_0000_ffff,
                0x00cf_9300_0000_ffff,
                0x0000_8b00_0000_0067
            ]
        );
        assert_eq!(blobs[1].0, layout::PAGE_TABLES);
        assert_eq!(blobs[1].1.len(), 6 * 4096);
    }

    #[test]
    fn descriptors_spread_base_and_limit() {
        let segment = kvm_segment {
            base: 0x1234_5678,
            limit: 0xa_bcde,
            type_: 9,
            dpl: 3,
            avl: 1,
            ..kvm_segment::default()
        };
        assert_eq!(descriptor(&segment), 0x121a_6934_5678_bcde);
    }

    #[test]
    fn floating_point_starts_as_after_fninit() {
        let fpu = fpu();
        assert_eq!(
            (fpu.fcw, fpu.mxcsr, fpu.fsw, fpu.ftwx),
            (0x37f, 0x1f80, 0, 0)
        );
    }
}
