/* Compares the CPU's state at entry with what the PVH boot protocol promises. Prints PASS, or a line for each difference. */
#include "guest.h"

/* Prints FAIL and `what` unless (value & mask) == expected. */
.macro expect what, value, mask, expected
    mov \value, %eax
    and $\mask, %eax
    cmp $\expected, %eax
    je .Lsame\@
    print "FAIL \what "
    call put_hex
    print "\n"
    incl failures
.Lsame\@:
.endm

    pvh_start
    pushf
    pop %edi
    expect "EFLAGS.VM/TF/IF/DF", %edi, 0x00020700, 0
    expect "CR0.PE/PG", %cr0, 0x80000001, 1
    expect "CR4", %cr4, 0xffffffff, 0
    mov $0xc0000080, %ecx
    rdmsr
    mov %eax, %edi
    expect "EFER.LME/LMA", %edi, 0x500, 0
    mov start_info, %ebx
    expect "start info magic", SI_MAGIC(%ebx), 0xffffffff, START_INFO_MAGIC
    expect "start info version", SI_VERSION(%ebx), 0xffffffff, 1
    cmpl $0, failures
    jne 1f
    print "PASS\n"
1:  power_off

    .data
failures:
    .long 0
