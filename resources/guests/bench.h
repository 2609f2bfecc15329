/*
 * What the guests of `cargo lab bench` have in common. They run unchanged under several VMMs, which differ in where they enter
 * a kernel, where its devices lie and what ends a VM:
 *
 * - Entry: by PVH (32-bit) where the VMM reads the note, else at the ELF file's entry point by the 64-bit Linux protocol.
 * - End: every way out, one after the other, until one works. All end the VMM with status 0, but for crosvm, whose status says
 *   that the guest has reset itself.
 * - Output: COM1, a byte at a time.
 *
 * For assembly, `bench_entry` and `bench_end` assemble to the same bytes in 32-bit and in long mode, so that such a guest needs
 * neither page tables nor to know how it was entered. A guest in C runs in long mode, on its own page tables, from `guest`, with
 * the start info of PVH or the zero page of Linux.
 *
 * Those in C lie at 2 MiB, because crosvm loads nothing below; those that are started or kept by the hundreds at 1 MiB, where a page that
 * they touch is not a huge one. Nothing that an interrupt could reach is set up: all is polled.
 */
#define COM1 0x3f8
/* ACPI's sleep control register in Ampoule, Cloud Hypervisor and alioth: SLP_TYP 5 in bits 4:2, SLP_EN in bit 5. */
#define SLEEP_CONTROL 0x600
#define SLEEP_S5 0x34
/* The keyboard controller's reset line, which is how a guest of Firecracker or crosvm ends. */
#define I8042_COMMAND 0x64
#define I8042_RESET 0xfe
/*
 * QEMU's microvm has neither, and with -no-reboot it ends when the processor is reset, as it is by a triple fault. Where there is a
 * keyboard controller, the guest waits for what it does: Firecracker, seeing the triple fault first, would call it an error.
 */
#define NOBODY 0xff

#ifdef __ASSEMBLER__

.macro bench_out port, value
    mov $\port, %edx
    mov $\value, %al
    out %al, %dx
.endm

.macro bench_entry
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 8, 18          /* sizes of name and value; XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad _start

    .section .text.start, "ax"
    .code32
    .globl _start
_start:
.endm

.macro bench_end
    bench_out SLEEP_CONTROL, SLEEP_S5
    bench_out I8042_COMMAND, I8042_RESET
    in %dx, %al
    cmp $NOBODY, %al
    jne 1f
    mov $no_idt, %eax
    lidt (%eax)
    ud2
1:  hlt
    jmp 1b

    .section .rodata
no_idt:
    .word 0
    .quad 0
.endm

#else

#include "freestanding.h"

static u8 stack[16384] __attribute__((aligned(16), used));

/* An identity map of 4 GiB in 2 MiB pages, made here because a guest may pay a microsecond for an instruction; `map` adds to it. */
asm(".globl load_address\n"
    ".set load_address, 0x200000\n"
    ".section .note.Xen, \"a\", @note\n"
    ".balign 4\n"
    ".long 4, 8, 18\n"
    ".asciz \"Xen\"\n"
    ".quad pvh_start\n"

    ".section .text.start, \"ax\"\n"
    ".code32\n"
    "pvh_start:\n"
    "mov $pml4, %eax\n"
    "mov %eax, %cr3\n"
    "mov %cr4, %eax\n"
    "or $0x20, %eax\n" /* PAE */
    "mov %eax, %cr4\n"
    "mov $0xc0000080, %ecx\n" /* EFER */
    "rdmsr\n"
    "or $0x100, %eax\n" /* LME */
    "wrmsr\n"
    "lgdt gdt_register\n"
    "mov %cr0, %eax\n"
    "or $0x80000000, %eax\n" /* PG */
    "mov %eax, %cr0\n"
    "mov %ebx, %edi\n"
    "ljmp $8, $1f\n"
    ".code64\n"
    "1: xor %eax, %eax\n"
    "mov %eax, %ds\n"
    "mov %eax, %es\n"
    "mov %eax, %ss\n"
    "jmp 2f\n"
    ".globl _start\n"
    "_start: mov $pml4, %eax\n"
    "mov %rax, %cr3\n"
    "mov %rsi, %rdi\n"
    "2: mov $stack + 16384, %rsp\n"
    "call guest\n"

    ".section .data\n"
    ".balign 8\n"
    "gdt: .quad 0, 0x00af9b000000ffff\n" /* 64-bit code */
    "gdt_register: .word gdt_register - gdt - 1\n"
    ".long gdt\n"
    "no_idt: .word 0\n"
    ".quad 0\n"
    ".balign 4096\n"
    ".globl pml4\n"
    "pml4: .quad pdpt + 3\n"
    ".balign 4096\n"
    "pdpt: .quad pds + 3, pds + 0x1003, pds + 0x2003, pds + 0x3003\n"
    ".balign 4096\n"
    "pds:\n"
    ".set page, 0x83\n"
    ".rept 4 * 512\n"
    ".quad page\n"
    ".set page, page + 0x200000\n"
    ".endr\n"
    ".text\n");

static inline void out8(u16 port, u8 value)
{
    asm volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void print(const char *text)
{
    for (; *text; text++)
        out8(COM1, *text);
}

/* As 16 hexadecimal digits. */
static inline void print_hex(u64 number)
{
    for (int shift = 60; shift >= 0; shift -= 4)
        out8(COM1, "0123456789abcdef"[number >> shift & 15]);
}

static inline void __attribute__((noreturn)) end_of_guest(void)
{
    out8(SLEEP_CONTROL, SLEEP_S5);
    out8(I8042_COMMAND, I8042_RESET);
    u8 status;
    asm volatile("inb %1, %0" : "=a"(status) : "Nd"((u16)I8042_COMMAND));
    if (status == NOBODY)
        asm volatile("lidt no_idt\n ud2");
    for (;;)
        asm volatile("cli; hlt");
}

static inline void __attribute__((noreturn)) fail(const char *why)
{
    print("FAIL ");
    print(why);
    print("\n");
    end_of_guest();
}

static inline void __attribute__((noreturn)) pass(void)
{
    print("PASS\n");
    end_of_guest();
}

/* By what `guest` was given: struct hvm_start_info, which begins with a magic number, or the zero page. */
static inline const char *command_line(const u8 *start)
{
    if (*(const u32 *)start == 0x336ec578)
        return (const char *)*(const u64 *)(start + 24);
    return (const char *)(u64) * (const u32 *)(start + 0x228);
}

static inline u64 tsc(void)
{
    u32 low, high;
    asm volatile("rdtsc" : "=a"(low), "=d"(high));
    return low | (u64)high << 32;
}

#endif
