/*
 * Counts for ever, in ESI and, an instruction later, at 2 MiB, and reads a port at every turn: a host that stops it may do so in
 * the middle of that. Says "ready" first.
 */
#include "guest.h"

#define COUNT               0x200000

    pvh_start
    print "ready\n"
    xor %esi, %esi
    mov $COM1_LSR, %edx
1:  inc %esi
    mov %esi, COUNT
    in %dx, %al
    jmp 1b
