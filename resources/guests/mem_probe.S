/*
 * Prints the memory map of the start info, then writes a pattern of its own to the first and the last eight bytes of every
 * RAM region and, when all are written, reads them back: RAM that is missing or that appears twice is found out. In long mode,
 * for the regions above 4 GiB (up to 16 GiB). Restores what it wrote over. Prints PASS, or FAIL and the address.
 */
#define BITS 64
#include "guest.h"

    pvh_start
    mov start_info, %ebx
    mov SI_MEMMAP_ENTRIES(%rbx), %r9d
    mov SI_MEMMAP(%rbx), %r8
    mov $saved, %edi
    mov %r8, %rbx
    mov %r9d, %ecx
region:
    print_hex64 MEMMAP_ADDRESS, %rbx
    print " "
    print_hex64 MEMMAP_SIZE, %rbx
    print " "
    mov MEMMAP_TYPE(%rbx), %eax
    call put_dec
    print "\n"
    cmp $MEMMAP_RAM, %eax
    jne 1f
    mov MEMMAP_ADDRESS(%rbx), %rsi
    call mark
    add MEMMAP_SIZE(%rbx), %rsi
    sub $8, %rsi
    call mark
1:  add $MEMMAP_ENTRY_LEN, %rbx
    dec %ecx
    jnz region

    /* `saved` holds pairs of an address and what was there. */
    mov %rdi, %rbp
    mov $saved, %edi
verify:
    cmp %rbp, %rdi
    je pass
    mov (%rdi), %rsi
    mov $0x5a5aa5a50f0ff0f0, %rax
    xor %rsi, %rax
    cmp %rax, (%rsi)
    jne fail
    not %rax
    mov %rax, (%rsi)
    cmp %rax, (%rsi)
    jne fail
    mov 8(%rdi), %rax
    mov %rax, (%rsi)
    add $16, %rdi
    jmp verify
fail:
    print "FAIL at "
    print_hex64 0, %rdi
    print "\n"
    power_off
pass:
    mov %rbp, %rax
    sub $saved, %rax
    shr $4, %rax
    call put_dec
    print " places PASS\n"
    power_off

    /* Saves what is at RSI and writes a pattern there. */
mark:
    push %rax
    mov %rsi, (%rdi)
    mov (%rsi), %rax
    mov %rax, 8(%rdi)
    mov $0x5a5aa5a50f0ff0f0, %rax
    xor %rsi, %rax
    mov %rax, (%rsi)
    add $16, %rdi
    pop %rax
    ret

    .bss
    .balign 16
saved:
    .skip 128 * 16
