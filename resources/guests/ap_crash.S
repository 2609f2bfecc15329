/*
 * Has another CPU crash: the command line is what it does, `t`riple fault or `i`nt3, and its APIC ID, one digit. The CPU is
 * started by INIT and SIPI, goes from real to protected mode, and meets its end there, without an interrupt table. The first CPU
 * spins.
 */
#include "guest.h"

#define LAPIC               0xfee00000
#define LAPIC_SPURIOUS      (LAPIC + 0xf0)
#define LAPIC_ICR           (LAPIC + 0x300)
#define LAPIC_ICR_HIGH      (LAPIC + 0x310)
#define ICR_INIT            0x00004500
#define ICR_SIPI            0x00004600
#define ICR_PENDING         0x1000
#define TRAMPOLINE          0x8000

    pvh_start
    mov start_info, %ebx
    mov SI_CMDLINE(%ebx), %ebx
    mov (%ebx), %al
    mov %al, what
    movzbl 1(%ebx), %ebx
    sub $'0', %ebx
    shl $24, %ebx

    mov $trampoline, %esi
    mov $TRAMPOLINE, %edi
    mov $trampoline_end - trampoline, %ecx
1:  mov (%esi), %al
    mov %al, (%edi)
    inc %esi
    inc %edi
    dec %ecx
    jnz 1b

    mov LAPIC_SPURIOUS, %eax
    or $0x100, %eax             /* switched on */
    mov %eax, LAPIC_SPURIOUS
    mov $ICR_INIT, %eax
    call send
    mov $ICR_SIPI | (TRAMPOLINE >> 12), %eax
    call send
    mov $ICR_SIPI | (TRAMPOLINE >> 12), %eax
    call send
1:  jmp 1b

    /* Sends the interrupt in EAX to the CPU in EBX. */
send:
    mov %ebx, LAPIC_ICR_HIGH
    mov %eax, LAPIC_ICR
1:  testl $ICR_PENDING, LAPIC_ICR
    jnz 1b
    ret

crash:
    mov $16, %ax
    mov %ax, %ds
    lidt no_idt
    cmpb $'t', what
    je 1f
    int3
1:  ud2
    halt_forever

    .section .rodata
trampoline:
    .code16
    cli
    mov %cs, %ax
    mov %ax, %ds
    lgdtl gdt_register - trampoline
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $8, $crash
gdt_register:
    .word 3 * 8 - 1
    .long gdt
trampoline_end:

    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff    /* 32-bit code */
    .quad 0x00cf93000000ffff    /* data */
no_idt:
    .word 0
    .long 0

    .data
what:
    .byte 0
