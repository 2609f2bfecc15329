/*
 * What the bare guests have in common: entry points, the platform's ports, and a handful of routines.
 *
 * A guest is one .S file. It includes this header, begins with `pvh_start` (or `linux64_start`), and says `BITS 64` before
 * the inclusion if it wants to run in long mode. Guests must run on a KVM that emulates ring 0 instruction by instruction
 * and lacks much: so no interrupts, no SSE, no string instruction that matters; everything is polled.
 *
 * Routines keep all registers but the flags. They take a value in EAX, or a pointer in ESI.
 */
#ifndef BITS
#define BITS 32
#endif

#if BITS == 64
#define AX %rax
#define BX %rbx
#define CX %rcx
#define DX %rdx
#define SI %rsi
#define DI %rdi
#define SP %rsp
#define CODE .code64
#else
#define AX %eax
#define BX %ebx
#define CX %ecx
#define DX %edx
#define SI %esi
#define DI %edi
#define SP %esp
#define CODE .code32
#endif

/* The platform. */
#define COM1                0x3f8
#define COM1_FCR            0x3fa
#define COM1_LSR            0x3fd
#define LSR_DATA_READY      0x01
#define LSR_THR_EMPTY       0x20
#define FIFO_DEPTH          16
#define I8042_COMMAND       0x64
#define I8042_RESET         0xfe
#define RTC_INDEX           0x70
#define RTC_DATA            0x71
#define DEBUG_PORT          0x504
#define PVPANIC             0x505
#define PVPANIC_PANICKED    0x01
#define ACPI_SLEEP_CONTROL  0x600
#define ACPI_RESET          0x602
#define ACPI_RESET_VALUE    0x01
#define ACPI_EVENT          0x603
#define EVENT_POWER_BUTTON  0x01
/* SLP_TYP 5 in bits 4:2, SLP_EN in bit 5: ACPI 6.5, 4.8.3.7. */
#define SLEEP_S5            ((5 << 2) | (1 << 5))

/* struct hvm_start_info and its tables: Xen's public/arch-x86/hvm/start_info.h. */
#define START_INFO_MAGIC    0x336ec578
#define SI_MAGIC            0
#define SI_VERSION          4
#define SI_NR_MODULES       12
#define SI_MODLIST          16
#define SI_CMDLINE          24
#define SI_RSDP             32
#define SI_MEMMAP           40
#define SI_MEMMAP_ENTRIES   48
#define MODULE_ADDRESS      0
#define MODULE_SIZE         8
#define MEMMAP_ADDRESS      0
#define MEMMAP_SIZE         8
#define MEMMAP_TYPE         16
#define MEMMAP_ENTRY_LEN    24
#define MEMMAP_RAM          1

/* `out` of a constant byte; changes EAX and EDX. */
.macro outb_const port, value
    mov $\port, %edx
    mov $\value, %al
    out %al, %dx
.endm

.macro power_off
    outb_const ACPI_SLEEP_CONTROL, SLEEP_S5
    halt_forever
.endm

.macro halt_forever
.Lhalt\@:
    cli
    hlt
    jmp .Lhalt\@
.endm

/* Prints a string constant. */
.macro print text:vararg
    .pushsection .rodata.strings, "a"
.Ltext\@:
    .asciz \text
    .popsection
    push SI
    mov $.Ltext\@, %esi
    call puts
    pop SI
.endm

/* Prints the 64-bit number at `where` as 16 hexadecimal digits. */
.macro print_hex64 where, register
    push AX
    mov \where + 4(\register), %eax
    call put_hex
    mov \where(\register), %eax
    call put_hex
    pop AX
.endm

/* A PVH entry: 32-bit protected mode, flat, no paging, EBX the start info, which is kept in `start_info`. */
.macro pvh_start
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 8, 18          /* sizes of name and value; XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad _start

    .section .text.start, "ax"
    .code32
    .globl _start
_start:
    mov $stack_top, %esp
    mov %ebx, start_info
#if BITS == 64
    enter_long_mode
#endif
.endm

/* An entry by the 64-bit Linux protocol: long mode, RSI the zero page. No note, or the VMM would take PVH. */
.macro linux64_start
    .section .text.start, "ax"
    .code64
    .globl _start
_start:
    mov $stack_top, %rsp
    mov %rsi, start_info
.endm

.macro enter_long_mode
    mov $pml4, %eax
    mov %eax, %cr3
    mov %cr4, %eax
    or $0x20, %eax              /* PAE */
    mov %eax, %cr4
    mov $0xc0000080, %ecx       /* EFER */
    rdmsr
    or $0x100, %eax             /* LME */
    wrmsr
    lgdt gdt_register
    mov %cr0, %eax
    or $0x80000000, %eax        /* PG */
    mov %eax, %cr0
    ljmp $8, $.Llong\@
    .code64
.Llong\@:
    xor %eax, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss

    .pushsection .data.long_mode, "aw"
    .balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    /* 64-bit code */
gdt_register:
    .word gdt_register - gdt - 1
    .long gdt
    /* An identity map of the first 16 GiB in 2 MiB pages, made here because a guest may pay 1 us for an instruction. */
    .balign 4096
pml4:
    .quad pdpt + 3
    .balign 4096
pdpt:
    .set .Lpage, 0
    .rept 16
    .quad pds + .Lpage + 3
    .set .Lpage, .Lpage + 4096
    .endr
    .balign 4096
pds:
    .set .Lpage, 0x83
    .rept 16 * 512
    .quad .Lpage
    .set .Lpage, .Lpage + 0x200000
    .endr
    .popsection
.endm

    /* The address of the start info (PVH) or of the zero page (Linux). */
    .section .bss.start_info, "aw", @nobits
    .balign 8
start_info:
    .skip 8

    .section .bss.stack, "aw", @nobits
    .balign 16
    .skip 4096
stack_top:

    CODE

    /* Prints the byte in AL. */
    .section .text.putc, "ax"
putc:
    push DX
    push AX
    mov $COM1_LSR, %edx
1:  in %dx, %al
    test $LSR_THR_EMPTY, %al
    jz 1b
    pop AX
    mov $COM1, %edx
    out %al, %dx
    pop DX
    ret

    /* Prints the string at ESI, up to its NUL. */
    .section .text.puts, "ax"
puts:
    push AX
    push SI
1:  mov (SI), %al
    test %al, %al
    jz 2f
    call putc
    inc SI
    jmp 1b
2:  pop SI
    pop AX
    ret

    /* Prints EAX as 8 hexadecimal digits. */
    .section .text.put_hex, "ax"
put_hex:
    push AX
    push BX
    push CX
    mov %eax, %ebx
    mov $8, %ecx
1:  rol $4, %ebx
    mov %ebx, %eax
    and $0xf, %eax
    mov hex_digits(AX), %al
    call putc
    dec %ecx
    jnz 1b
    pop CX
    pop BX
    pop AX
    ret

    .section .rodata.hex_digits, "a"
hex_digits:
    .ascii "0123456789abcdef"

    /* Prints EAX as a decimal number. */
    .section .text.put_dec, "ax"
put_dec:
    push AX
    push BX
    push CX
    push DX
    mov $10, %ebx
    xor %ecx, %ecx
1:  xor %edx, %edx
    div %ebx
    push DX
    inc %ecx
    test %eax, %eax
    jnz 1b
2:  pop AX
    add $'0', %al
    call putc
    dec %ecx
    jnz 2b
    pop DX
    pop CX
    pop BX
    pop AX
    ret

    .text
