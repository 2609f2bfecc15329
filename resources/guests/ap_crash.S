/*
 * Has another CPU crash: the command line is what it does, `t`riple fault or `i`nt3, and its APIC ID, one digit. The CPU is
 * started by INIT and SIPI, goes from real to protected mode, and meets its end there, without an interrupt table. The first CPU
 * spins.
 */
#include "guest.h"
#include "lapic.h"

    pvh_start
    mov start_info, %ebx
    mov SI_CMDLINE(%ebx), %ebx
    mov (%ebx), %al
    mov %al, what
    movzbl 1(%ebx), %ebx
    sub $'0', %ebx
    shl $24, %ebx

    put_trampoline

    switch_lapic_on
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
    send_interrupt
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
