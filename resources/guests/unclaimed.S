/*
 * Reads ports and memory that belong to nobody, in every width, and expects all ones; writes there and expects nothing. Then
 * reads every port there is in every width, and writes zeroes of the wrong width to the devices: nothing of it may do harm.
 * Prints PASS, or a line for each address that answered.
 */
#define BITS 64
#include "guest.h"

    pvh_start
    mov $ports, %ebx
port:
    movzwl (%rbx), %edx
    mov %edx, %edi
    mov $-1, %eax
    out %eax, %dx
    out %ax, %dx
    out %al, %dx
    xor %eax, %eax
    in %dx, %eax
    mov $0xffffffff, %esi
    call compare
    xor %eax, %eax
    in %dx, %ax
    mov $0xffff, %esi
    call compare
    xor %eax, %eax
    in %dx, %al
    mov $0xff, %esi
    call compare
    add $2, %rbx
    cmp $ports_end, %rbx
    jne port
    print "ports done\n"

    mov $holes, %ebx
hole:
    mov (%rbx), %rbp
    mov %rbp, %rdi
    xor %eax, %eax
    mov %rax, (%rbp)
    mov %eax, (%rbp)
    mov %ax, (%rbp)
    mov %al, (%rbp)
    mov (%rbp), %rax
    mov $-1, %rsi
    call compare
    mov 1(%rbp), %rax
    call compare
    xor %eax, %eax
    mov (%rbp), %eax
    mov $0xffffffff, %esi
    call compare
    movzwl (%rbp), %eax
    mov $0xffff, %esi
    call compare
    movzbl (%rbp), %eax
    mov $0xff, %esi
    call compare
    add $8, %rbx
    cmp $holes_end, %rbx
    jne hole
    print "memory done\n"

    xor %edx, %edx
1:  in %dx, %al
    in %dx, %ax
    in %dx, %eax
    inc %edx
    cmp $0x1000, %edx
    jne 1b
    mov $devices, %ebx
1:  movzwl (%rbx), %edx
    xor %eax, %eax
    out %ax, %dx
    out %eax, %dx
    add $2, %rbx
    cmp $devices_end, %rbx
    jne 1b
    /* COM1 may have been left with its divisor latch open. */
    mov $0x3fb, %edx
    mov $3, %al
    out %al, %dx
    print "devices done\n"

    cmpl $0, failures
    jne 1f
    print "PASS\n"
1:  power_off

    /* Complains about the address EDI if RAX is not RSI. */
compare:
    cmp %rsi, %rax
    je 1f
    print "FAIL at "
    push %rax
    mov %edi, %eax
    call put_hex
    pop %rax
    print " read "
    call put_hex
    print "\n"
    incl failures
1:  ret

    .section .rodata
    /* VGA, COM2, PCI configuration, an odd one, and the last: a wider access runs over the end. */
ports:
    .word 0x3c0, 0x2f8, 0xcf8, 0xcfc, 0x1235, 0xffff
ports_end:
    /* All that answers; the reset and sleep registers, too, which zeroes must not trigger. */
devices:
    .word 0x60, 0x64, 0x70, 0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff, 0x505, 0x600, 0x601, 0x602, 0x603
devices_end:
    .balign 8
    /* In the hole below 4 GiB; the byte beyond a page; above all RAM that a test gives this guest. */
holes:
    .quad 0xd0000000, 0xe0000ffd, 0x300000000
holes_end:

    .data
failures:
    .long 0
