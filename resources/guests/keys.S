/*
 * Does what it is told by single characters on COM1, to end in each of the ways that a guest can. Says "ready" first.
 *
 *   p power off   r reset by ACPI   k reset by the i8042   t triple fault   c panic by pvpanic   h sleep for ever
 *
 * Anything else is answered with a "?".
 */
#include "guest.h"

    pvh_start
    print "ready\n"
next:
    mov $COM1_LSR, %edx
1:  in %dx, %al
    test $LSR_DATA_READY, %al
    jz 1b
    mov $COM1, %edx
    in %dx, %al
    cmp $'p', %al
    je 1f
    cmp $'r', %al
    je 2f
    cmp $'k', %al
    je 3f
    cmp $'t', %al
    je 4f
    cmp $'c', %al
    je 5f
    cmp $'h', %al
    je 6f
    print "?\n"
    jmp next
1:  power_off
2:  outb_const ACPI_RESET, ACPI_RESET_VALUE
    halt_forever
3:  outb_const I8042_COMMAND, I8042_RESET
    halt_forever
4:  lidt no_idt
    ud2
    halt_forever
5:  outb_const PVPANIC, PVPANIC_PANICKED
    halt_forever
6:  halt_forever

    .section .rodata
no_idt:
    .word 0
    .long 0
