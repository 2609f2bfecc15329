/*
 * Entered by the 64-bit Linux boot protocol: prints what the zero page says (command line, initrd, memory map) and checks
 * the fields that a kernel relies on. Prints PASS, or a line for each difference.
 */
#define BITS 64
#include "guest.h"

/* struct boot_params: Linux, Documentation/arch/x86/zero-page.rst and boot.rst. */
#define ZP_RSDP             0x070
#define ZP_E820_ENTRIES     0x1e8
#define ZP_BOOT_FLAG        0x1fe
#define ZP_HEADER           0x202
#define ZP_LOADER           0x210
#define ZP_INITRD           0x218
#define ZP_INITRD_SIZE      0x21c
#define ZP_CMDLINE          0x228
#define ZP_E820             0x2d0
#define E820_ADDRESS        0
#define E820_SIZE           8
#define E820_TYPE           16
#define E820_ENTRY_LEN      20

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

    linux64_start
    pushf
    pop %rdi
    expect "EFLAGS.TF/IF/DF", %edi, 0x700, 0
    mov %cr0, %rdi
    expect "CR0.PE/PG", %edi, 0x80000001, 0x80000001
    mov %cr4, %rdi
    expect "CR4.PAE", %edi, 0x20, 0x20
    mov start_info, %rbx
    expect "boot flag", ZP_BOOT_FLAG(%rbx), 0xffff, 0xaa55
    expect "header magic", ZP_HEADER(%rbx), 0xffffffff, 0x53726448
    expect "loader type", ZP_LOADER(%rbx), 0xff, 0xff
    mov ZP_RSDP(%rbx), %rsi
    expect "RSDP", (%rsi), 0xffffffff, 0x20445352
    print "cmdline: "
    mov ZP_CMDLINE(%rbx), %esi
    call puts
    print "\ninitrd size "
    mov ZP_INITRD_SIZE(%rbx), %eax
    call put_dec
    print "\n"
    movzbl ZP_E820_ENTRIES(%rbx), %ecx
    add $ZP_E820, %rbx
1:  test %ecx, %ecx
    jz 2f
    print_hex64 E820_ADDRESS, %rbx
    print " "
    print_hex64 E820_SIZE, %rbx
    print " "
    mov E820_TYPE(%rbx), %eax
    call put_dec
    print "\n"
    add $E820_ENTRY_LEN, %rbx
    dec %ecx
    jmp 1b
2:  cmpl $0, failures
    jne 3f
    print "PASS\n"
3:  power_off

    .data
failures:
    .long 0
