/*
 * Walks the ACPI tables from the RSDP of the start info: RSDP, XSDT, all it names, and the DSDT; prints each signature with
 * its address and length and checks each checksum. Prints PASS at the end, or a line for each wrong sum.
 */
#include "guest.h"

    pvh_start
    mov start_info, %ebx
    mov SI_RSDP(%ebx), %ebx
    cmpl $0x20445352, (%ebx)    /* "RSD " */
    jne bad_rsdp
    cmpl $0x20525450, 4(%ebx)   /* "PTR " */
    jne bad_rsdp
    print "RSD PTR at "
    mov %ebx, %eax
    call put_hex
    print " revision "
    movzbl 15(%ebx), %eax
    call put_dec
    print "\n"
    mov %ebx, %esi
    mov $20, %ecx               /* the sum of ACPI 1.0 */
    call sum
    mov $36, %ecx
    call sum

    mov 24(%ebx), %esi          /* the XSDT */
    call table
    mov 4(%esi), %ebp
    sub $36, %ebp
    shr $3, %ebp
    lea 36(%esi), %ebx
1:  mov (%ebx), %esi
    call table
    cmpl $0x50434146, (%esi)    /* "FACP": X_DSDT at 140 */
    jne 2f
    mov 140(%esi), %esi
    call table
2:  add $8, %ebx
    dec %ebp
    jnz 1b

    cmpl $0, failures
    jne 1f
    print "PASS\n"
1:  power_off

bad_rsdp:
    print "FAIL no RSDP\n"
    power_off

    /* Prints and sums the table at ESI. */
table:
    push %eax
    push %ecx
    mov $4, %ecx
    push %esi
1:  mov (%esi), %al
    call putc
    inc %esi
    dec %ecx
    jnz 1b
    pop %esi
    print " at "
    mov %esi, %eax
    call put_hex
    print " length "
    mov 4(%esi), %eax
    call put_dec
    print "\n"
    mov %eax, %ecx
    call sum
    pop %ecx
    pop %eax
    ret

    /* Complains unless the ECX bytes at ESI add up to 0. */
sum:
    push %eax
    push %esi
    xor %eax, %eax
1:  add (%esi), %al
    inc %esi
    dec %ecx
    jnz 1b
    pop %esi
    test %al, %al
    jz 1f
    print "FAIL checksum\n"
    incl failures
1:  pop %eax
    ret

    .data
failures:
    .long 0
