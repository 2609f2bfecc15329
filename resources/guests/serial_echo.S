/*
 * Sends back what COM1 receives, in upper case, and powers off when it receives a `q`. Says "ready" first.
 *
 * A megabyte passes through here byte by byte, and an instruction may cost a microsecond. So it looks for room in the
 * transmitter once for each FIFO's worth, by a loop that is unrolled as often, and translates by a table.
 */
#include "guest.h"

    pvh_start
    outb_const COM1_FCR, 0x07   /* FIFOs on and empty */
    print "ready\n"
    xor %eax, %eax
    mov $COM1_LSR, %esi
    mov $COM1, %edi
next_fifo:
    mov %esi, %edx
1:  in %dx, %al
    test $LSR_THR_EMPTY, %al
    jz 1b
    .rept FIFO_DEPTH
    mov %esi, %edx
1:  in %dx, %al
    test $LSR_DATA_READY, %al
    jz 1b
    mov %edi, %edx
    in %dx, %al
    cmp $'q', %al
    je quit
    mov upper_case(%eax), %al
    out %al, %dx
    .endr
    jmp next_fifo
quit:
    power_off

    .section .rodata
upper_case:
    .set .Lbyte, 0
    .rept 256
    .if .Lbyte >= 'a' && .Lbyte <= 'z'
    .byte .Lbyte - 'a' + 'A'
    .else
    .byte .Lbyte
    .endif
    .set .Lbyte, .Lbyte + 1
    .endr
