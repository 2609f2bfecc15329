/* Starts all other CPUs, prints a "+" for each that comes, and has all of them spin for ever without an exit. */
#include "guest.h"
#include "lapic.h"

#define COUNT               0x8ff0

    pvh_start
    put_trampoline
    movl $0, COUNT

    start_others

    xor %esi, %esi
    print "ready\n"
1:  cmp %si, COUNT
    je 1b
    inc %esi
    print "+"
    jmp 1b

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
