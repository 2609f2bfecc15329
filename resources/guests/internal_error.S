/*
 * Executes int3, which a KVM in software cannot: there KVM_RUN ends in KVM_EXIT_INTERNAL_ERROR. Where the instruction
 * works it finds no interrupt table, and the guest dies of a triple fault.
 */
#define BITS 64
#include "guest.h"

    pvh_start
    lidt no_idt
    int3
    halt_forever

    .section .rodata
no_idt:
    .word 0
    .quad 0
