/* Starts all other CPUs, prints a "+" for each that comes, and has all of them spin for ever without an exit. */
#include "guest.h"

#define LAPIC               0xfee00000
#define LAPIC_SPURIOUS      (LAPIC + 0xf0)
#define LAPIC_ICR           (LAPIC + 0x300)
#define ICR_INIT_OTHERS     0x000c4500
#define ICR_SIPI_OTHERS     0x000c4600
#define ICR_PENDING         0x1000
#define TRAMPOLINE          0x8000
#define COUNT               0x8ff0

    pvh_start
    mov $trampoline, %esi
    mov $TRAMPOLINE, %edi
    mov $trampoline_end - trampoline, %ecx
1:  mov (%esi), %al
    mov %al, (%edi)
    inc %esi
    inc %edi
    dec %ecx
    jnz 1b
    movl $0, COUNT

    mov LAPIC_SPURIOUS, %eax
    or $0x100, %eax             /* switched on */
    mov %eax, LAPIC_SPURIOUS
    movl $ICR_INIT_OTHERS, LAPIC_ICR
    call sent
    movl $ICR_SIPI_OTHERS | (TRAMPOLINE >> 12), LAPIC_ICR
    call sent

    xor %esi, %esi
    print "ready\n"
1:  cmp %si, COUNT
    je 1b
    inc %esi
    print "+"
    jmp 1b

sent:
    testl $ICR_PENDING, LAPIC_ICR
    jnz sent
    ret

    /* Runs in real mode at TRAMPOLINE, on all the other CPUs at once. */
    .section .rodata
trampoline:
    .code16
    cli
    mov %cs, %ax
    mov %ax, %ds
    lock incw COUNT - TRAMPOLINE
1:  jmp 1b
trampoline_end:
