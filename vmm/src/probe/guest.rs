//! The probe guests: a few instructions each, in a 64-bit guest with page tables, GDT and IDT of its own.
//!
//! All of a guest lies in its first 64 KiB, mapped one to one by one 2 MiB page that user mode may use as well, so that an
//! address means the same to the code, to the tables and to the host. References: Intel SDM volume 3, sections 3.4.5
//! (segment descriptors), 4.5 (4-level paging) and 6.14.1 (64-bit interrupt gates); the code is Intel syntax in the
//! comments beside it.

/// Size in bytes of a guest's memory.
pub(super) const MEMORY_SIZE: usize = 0x1_0000;

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PAGE_DIRECTORY: u64 = 0x3000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const STACK_TOP: u64 = 0x7000;
/// Operands: zero, but for 16 bytes of [`PATTERN`] at offset 0x10.
const DATA: u64 = 0x7000;
const CODE: u64 = 0x8000;
const HANDLERS: u64 = 0x9000;

const PATTERN: u8 = 0x5a;

/// A guest writes its verdict to this port: 1 is success, 0 a wrong result.
pub(super) const VERDICT_PORT: u16 = 0x10;
/// A guest that takes an exception which it does not expect writes the vector to this port.
pub(super) const FAULT_PORT: u16 = 0x11;

/// Exception vectors of the architecture; all of them have a gate.
const VECTORS: u8 = 32;
/// Bytes between two handlers.
const HANDLER_STRIDE: u64 = 16;

pub(super) const KERNEL_CODE: u16 = 0x08;
pub(super) const KERNEL_DATA: u16 = 0x10;
const TASK_STATE: u16 = 0x28;

/// Where the page tables, the stack and the code of a guest are, for its registers.
pub(super) struct Layout {
    pub(super) page_tables: u64,
    pub(super) gdt: (u64, u16),
    pub(super) idt: (u64, u16),
    pub(super) task_state: (u16, u64),
    pub(super) stack: u64,
    pub(super) entry: u64,
    /// IA32_STAR: SYSCALL takes 0x08 and 0x10 for the kernel, SYSRET 0x20 and 0x18 for the user.
    pub(super) star: u64,
    /// IA32_LSTAR: only the guest that makes a system call depends on it.
    pub(super) syscall_entry: u64,
}

pub(super) const LAYOUT: Layout = Layout {
    page_tables: PML4,
    gdt: (GDT, 8 * 8 - 1),
    idt: (IDT, VECTORS as u16 * 16 - 1),
    task_state: (TASK_STATE, DATA + 0x800),
    stack: STACK_TOP,
    entry: CODE,
    star: (0x10 << 48) | (0x08 << 32),
    syscall_entry: CODE + SYSCALL_ENTRY_OFFSET,
};

/// One guest: what it executes, and why that matters.
pub(super) struct Guest {
    /// The instructions, as people call them.
    pub(super) name: &'static str,
    /// What Linux needs them for.
    pub(super) purpose: &'static str,
    /// Whether it needs XSAVE in CPUID and in CR4.
    pub(super) needs_xsave: bool,
    code: &'static [u8],
    /// The handler of one exception that the guest causes on purpose.
    handler: Option<(u8, &'static [u8])>,
}

/// Offset of the instruction after `syscall` in the code of that guest.
const SYSCALL_ENTRY_OFFSET: u64 = 0x12;

/// All guests, the least demanding first.
pub(super) const GUESTS: &[Guest] = &[
    Guest {
        name: "long mode",
        purpose: "everything",
        needs_xsave: false,
        code: &[
            0xb0, 0x01, // mov al, 1
            0xe6, 0x10, // out 0x10, al
        ],
        handler: None,
    },
    Guest {
        name: "system registers",
        purpose: "its start-up (rdmsr, wrmsr, swapgs, cpuid, invlpg)",
        needs_xsave: false,
        code: &[
            0xb9, 0x02, 0x01, 0x00, 0xc0, // mov ecx, 0xc0000102 (IA32_KERNEL_GS_BASE)
            0x0f, 0x32, // rdmsr
            0x0f, 0x30, // wrmsr
            0x0f, 0x01, 0xf8, // swapgs
            0x31, 0xc0, // xor eax, eax
            0x0f, 0xa2, // cpuid
            0x0f, 0x01, 0x3c, 0x25, 0x00, 0x70, 0x00, 0x00, // invlpg [0x7000]
            0xb0, 0x01, // mov al, 1
            0xe6, 0x10, // out 0x10, al
        ],
        handler: None,
    },
    Guest {
        name: "int3",
        purpose: "patching its own code, which it tests when it boots",
        needs_xsave: false,
        code: &[
            0x31, 0xdb, // xor ebx, ebx
            0xcc, // int3
            0x81, 0xfb, 0x37, 0x13, 0x00, 0x00, // cmp ebx, 0x1337
            0x0f, 0x94, 0xc0, // sete al
            0xe6, 0x10, // out 0x10, al
        ],
        handler: Some((
            3,
            &[
                0xbb, 0x37, 0x13, 0x00, 0x00, // mov ebx, 0x1337
                0x48, 0xcf, // iretq
            ],
        )),
    },
    Guest {
        name: "iretq",
        purpose: "returning from interrupts",
        needs_xsave: false,
        code: &[
            0x8c, 0xd0, // mov eax, ss
            0x50, // push rax
            0x54, // push rsp
            0x9c, // pushfq
            0x8c, 0xc8, // mov eax, cs
            0x50, // push rax
            0x48, 0x8d, 0x05, 0x03, 0x00, 0x00, 0x00, // lea rax, [rip + 3]
            0x50, // push rax
            0x48, 0xcf, // iretq
            0xb0, 0x01, // mov al, 1
            0xe6, 0x10, // out 0x10, al
        ],
        handler: None,
    },
    Guest {
        name: "page fault",
        purpose: "virtual memory",
        needs_xsave: false,
        code: &[
            0x31, 0xdb, // xor ebx, ebx
            0x48, 0x8b, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, // mov rax, [0x200000]
            0x48, 0x81, 0xfb, 0x00, 0x00, 0x20, 0x00, // cmp rbx, 0x200000
            0x0f, 0x94, 0xc0, // sete al
            0xe6, 0x10, // out 0x10, al
        ],
        handler: Some((
            14,
            &[
                0x48, 0x83, 0xc4, 0x08, // add rsp, 8 (the error code)
                0x48, 0x83, 0x04, 0x24, 0x08, // add qword [rsp], 8 (past the load)
                0x0f, 0x20, 0xd3, // mov rbx, cr2
                0x48, 0xcf, // iretq
            ],
        )),
    },
    Guest {
        name: "sysret and syscall",
        purpose: "running programs",
        needs_xsave: false,
        code: &[
            0x48, 0x8d, 0x0d, 0x09, 0x00, 0x00, 0x00, // lea rcx, [rip + 9]
            0x41, 0xbb, 0x02, 0x00, 0x00, 0x00, // mov r11d, 2 (RFLAGS of the user)
            0x48, 0x0f, 0x07, // sysretq
            0x0f, 0x05, // syscall, in user mode
            0xb0, 0x01, // mov al, 1
            0xe6, 0x10, // out 0x10, al
        ],
        handler: None,
    },
    Guest {
        name: "cmpxchg16b",
        purpose: "its memory allocator",
        needs_xsave: false,
        code: &[
            0x31, 0xc0, // xor eax, eax
            0x31, 0xd2, // xor edx, edx
            0x31, 0xc9, // xor ecx, ecx
            0xbb, 0x01, 0x00, 0x00, 0x00, // mov ebx, 1
            0xf0, 0x48, 0x0f, 0xc7, 0x0c, 0x25, 0x00, 0x70, 0x00,
            0x00, // lock cmpxchg16b [0x7000]
            0x80, 0x3c, 0x25, 0x00, 0x70, 0x00, 0x00, 0x01, // cmp byte [0x7000], 1
            0x0f, 0x94, 0xc0, // sete al
            0xe6, 0x10, // out 0x10, al
        ],
        handler: None,
    },
    Guest {
        name: "movaps",
        purpose: "the C library of programs",
        needs_xsave: false,
        code: &[
            0x0f, 0x28, 0x04, 0x25, 0x10, 0x70, 0x00, 0x00, // movaps xmm0, [0x7010]
            0x0f, 0x29, 0x04, 0x25, 0x20, 0x70, 0x00, 0x00, // movaps [0x7020], xmm0
            0x80, 0x3c, 0x25, 0x2f, 0x70, 0x00, 0x00, PATTERN, // cmp byte [0x702f], 0x5a
            0x0f, 0x94, 0xc0, // sete al
            0xe6, 0x10, // out 0x10, al
        ],
        handler: None,
    },
    Guest {
        name: "xsave and xrstor",
        purpose: "switching between programs",
        needs_xsave: true,
        code: &[
            0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, 1 (the x87 state)
            0x31, 0xd2, // xor edx, edx
            0x0f, 0xae, 0x24, 0x25, 0x40, 0x70, 0x00, 0x00, // xsave [0x7040]
            0x0f, 0xae, 0x2c, 0x25, 0x40, 0x70, 0x00, 0x00, // xrstor [0x7040]
            0xb0, 0x01, // mov al, 1
            0xe6, 0x10, // out 0x10, al
        ],
        handler: None,
    },
];

impl Guest {
    /// The guest's memory at its start: [`MEMORY_SIZE`] bytes from address 0.
    pub(super) fn image(&self) -> Vec<u8> {
        let mut image = vec![0; MEMORY_SIZE];
        let mut put = |at: u64, bytes: &[u8]| {
            let at = at as usize;
            image[at..at + bytes.len()].copy_from_slice(bytes);
        };
        // Present, writable, user; the directory's entry maps 2 MiB (bit 7).
        put(PML4, &(PDPT | 0x7).to_le_bytes());
        put(PDPT, &(PAGE_DIRECTORY | 0x7).to_le_bytes());
        put(PAGE_DIRECTORY, &0x87u64.to_le_bytes());
        for (slot, descriptor) in (0..).zip(gdt()) {
            put(GDT + 8 * slot, &descriptor.to_le_bytes());
        }
        for vector in 0..VECTORS {
            let handler = HANDLERS + u64::from(vector) * HANDLER_STRIDE;
            put(IDT + 16 * u64::from(vector), &interrupt_gate(handler));
            put(
                handler,
                &[
                    0xb0, vector, // mov al, vector
                    0xe6, 0x11, // out 0x11, al
                    0xf4, // hlt
                ],
            );
        }
        if let Some((vector, code)) = self.handler {
            put(HANDLERS + u64::from(vector) * HANDLER_STRIDE, code);
        }
        put(DATA + 0x10, &[PATTERN; 16]);
        put(CODE, self.code);
        image
    }
}

/// Null, kernel code and data, user data and code (in the order that SYSRET wants), and a task state of two slots.
fn gdt() -> [u64; 8] {
    let (_, task_state) = LAYOUT.task_state;
    [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        // Present, busy 64-bit task state of 0x68 bytes; its base is below 64 KiB.
        0x0000_8b00_0000_0067 | (task_state << 16),
        0,
        0,
    ]
}

/// A present 64-bit interrupt gate of privilege 0 into the kernel's code segment.
fn interrupt_gate(handler: u64) -> [u8; 16] {
    let gate = u128::from(handler & 0xffff)
        | u128::from(KERNEL_CODE) << 16
        | 0x8e00 << 32
        | u128::from(handler >> 16) << 48;
    gate.to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u64_at(image: &[u8], at: u64) -> u64 {
        let at = at as usize;
        u64::from_le_bytes(image[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn page_tables_map_the_guest_one_to_one() {
        let image = GUESTS[0].image();
        let mut table = LAYOUT.page_tables;
        for _ in 0..2 {
            let entry = u64_at(&image, table);
            assert_eq!(entry & 0x87, 0x07, "a table that everybody may use");
            table = entry & !0xfff;
        }
        assert_eq!(u64_at(&image, table), 0x87, "a page of 2 MiB at 0");
        assert_eq!(u64_at(&image, table + 8), 0, "0x200000 is not mapped");
    }

    #[test]
    fn gates_lead_to_their_handlers() {
        let int3 = GUESTS.iter().find(|guest| guest.name == "int3").unwrap();
        let image = int3.image();
        for vector in 0..u64::from(VECTORS) {
            let gate = u64_at(&image, IDT + 16 * vector);
            let handler = (gate & 0xffff) | ((gate >> 48) << 16);
            assert_eq!((gate >> 16) & 0xffff, u64::from(KERNEL_CODE));
            assert_eq!((gate >> 40) & 0xff, 0x8e);
            let first = image[handler as usize];
            assert_eq!(
                first,
                if vector == 3 { 0xbb } else { 0xb0 },
                "vector {vector}"
            );
        }
    }

    #[test]
    fn nothing_overlaps() {
        for guest in GUESTS {
            assert!(guest.code.len() < 0x1000, "{}", guest.name);
            let handler = guest.handler.map_or(0, |(_, code)| code.len() as u64);
            assert!(handler <= HANDLER_STRIDE, "{}", guest.name);
            assert!(
                guest.code.ends_with(&[0xe6, VERDICT_PORT as u8]),
                "{}",
                guest.name
            );
        }
        let idt_end = IDT + u64::from(LAYOUT.idt.1) + 1;
        assert!(idt_end <= STACK_TOP - 0x1000, "the stack has a page");
    }

    #[test]
    fn system_call_returns_to_where_lstar_points() {
        let guest = GUESTS
            .iter()
            .find(|guest| guest.name.contains("syscall"))
            .unwrap();
        let entry = SYSCALL_ENTRY_OFFSET as usize;
        assert_eq!(guest.code[entry - 2..entry], [0x0f, 0x05]);
        // SYSRET: code = STAR[63:48] + 16, stack = STAR[63:48] + 8; both descriptors have privilege 3.
        let base = LAYOUT.star >> 48;
        for slot in [base + 8, base + 16] {
            assert_eq!((gdt()[slot as usize / 8] >> 45) & 3, 3);
        }
        assert_eq!((LAYOUT.star >> 32) & 0xffff, u64::from(KERNEL_CODE));
    }
}
