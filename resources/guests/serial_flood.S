/*
 * Prints numbered lines of 32 bytes as fast as it can: as many as its command line says, a decimal number, and then it powers
 * off; without a number it never stops. A line is its number in 8 hexadecimal digits, fillers, and a line feed.
 */
#include "guest.h"

    pvh_start
    outb_const COM1_FCR, 0x07   /* FIFOs on and empty */
    mov start_info, %ebx
    mov SI_CMDLINE(%ebx), %esi
    xor %ebp, %ebp              /* how many lines; 0: without end */
1:  movzbl (%esi), %eax
    sub $'0', %eax
    cmp $9, %eax
    ja 2f
    imul $10, %ebp, %ebp
    add %eax, %ebp
    inc %esi
    jmp 1b

2:  xor %ebx, %ebx              /* the line's number */
next_line:
    mov $line, %edi
    mov $8, %ecx
    mov %ebx, %edx
1:  rol $4, %edx
    mov %edx, %eax
    and $0xf, %eax
    mov hex_digits(%eax), %al
    mov %al, (%edi)
    inc %edi
    dec %ecx
    jnz 1b

    mov $line, %esi
    mov $2, %edi                /* a FIFO's worth, twice */
wait:
    mov $COM1_LSR, %edx
1:  in %dx, %al
    test $LSR_THR_EMPTY, %al
    jz 1b
    mov $COM1, %edx
    mov $FIFO_DEPTH, %ecx
1:  mov (%esi), %al
    out %al, %dx
    inc %esi
    dec %ecx
    jnz 1b
    dec %edi
    jnz wait

    inc %ebx
    cmp %ebp, %ebx
    jne next_line
    power_off

    .data
line:
    .ascii "........ one line of the flood.\n"
