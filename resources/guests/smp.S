/*
 * Starts all other CPUs by INIT and SIPI through the local APIC and counts those that come, each of which notes its APIC ID.
 * How many should come is read from the MADT. Prints "started N of M", the IDs, and powers off; does not wait for ever.
 */
#include "guest.h"
#include "lapic.h"

#define COUNT               0x8ff0
#define STARTED             0x9000
#define ROUNDS              2000000

    pvh_start
    mov start_info, %ebx
    mov SI_RSDP(%ebx), %ebx
    mov 24(%ebx), %ebx          /* the XSDT */
    mov 4(%ebx), %ecx
    sub $36, %ecx
    shr $3, %ecx
    add $36, %ebx
1:  mov (%ebx), %esi
    cmpl $0x43495041, (%esi)    /* "APIC" */
    je madt
    add $8, %ebx
    dec %ecx
    jnz 1b
    print "FAIL no MADT\n"
    power_off

madt:
    mov 4(%esi), %edi
    add %esi, %edi
    add $44, %esi
    mov $-1, %ebp               /* this CPU is not to be started */
1:  cmp %edi, %esi
    jae 4f
    mov (%esi), %al
    cmp $0, %al                 /* local APIC, flags at 4 */
    jne 2f
    testb $1, 4(%esi)
    jz 3f
    inc %ebp
    jmp 3f
2:  cmp $9, %al                 /* local x2APIC, flags at 8 */
    jne 3f
    testb $1, 8(%esi)
    jz 3f
    inc %ebp
3:  movzbl 1(%esi), %eax
    add %eax, %esi
    jmp 1b

4:
    put_trampoline
    mov $STARTED, %edi
    mov $64, %ecx
    xor %eax, %eax
    mov %eax, COUNT
1:  mov %eax, (%edi)
    add $4, %edi
    dec %ecx
    jnz 1b

    start_others

    mov $ROUNDS, %ecx
1:  movzwl COUNT, %eax
    cmp %ebp, %eax
    jae 2f
    pause
    dec %ecx
    jnz 1b
2:  print "started "
    call put_dec
    print " of "
    mov %ebp, %eax
    call put_dec
    print "\nAPIC IDs"
    xor %ecx, %ecx
1:  cmpb $0, STARTED(%ecx)
    je 2f
    print " "
    mov %ecx, %eax
    call put_dec
2:  inc %ecx
    cmp $256, %ecx
    jne 1b
    print "\n"
    power_off

    /* Runs in real mode at TRAMPOLINE, on all the other CPUs at once. */
    .section .rodata
trampoline:
    .code16
    cli
    mov %cs, %ax
    mov %ax, %ds
    mov $1, %eax
    cpuid
    shr $24, %ebx
    movb $1, STARTED - TRAMPOLINE(%bx)
    lock incw COUNT - TRAMPOLINE
1:  hlt
    jmp 1b
trampoline_end:
