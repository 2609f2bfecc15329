/* Faults with no interrupt table, so that delivering the fault faults, and that again. */
#include "guest.h"

    pvh_start
    lidt no_idt
    ud2
    halt_forever

    .section .rodata
no_idt:
    .word 0
    .long 0
