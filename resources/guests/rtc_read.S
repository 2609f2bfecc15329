/* Prints the date and time of the CMOS clock as YYYY-MM-DD HH:MM:SS, whether it counts in binary or in BCD. */
#include "guest.h"

/* The clock's register `index` as two digits. */
.macro print_field index
    mov $\index, %al
    call rtc_read
    call put_two
.endm

    pvh_start
    /* Not while it updates: register A, bit 7. */
1:  mov $0x0a, %al
    call rtc_read
    test $0x80, %al
    jnz 1b
    mov $0x0b, %al
    call rtc_read
    and $0x04, %al              /* register B, DM: binary, else BCD */
    mov %al, binary
    print_field 0x32
    print_field 0x09
    print "-"
    print_field 0x08
    print "-"
    print_field 0x07
    print " "
    print_field 0x04
    print ":"
    print_field 0x02
    print ":"
    print_field 0x00
    print "\n"
    power_off

rtc_read:
    out %al, $RTC_INDEX
    in $RTC_DATA, %al
    ret

put_two:
    movzbl %al, %eax
    cmpb $0, binary
    jne 1f
    mov %eax, %edx
    shr $4, %eax
    and $0xf, %edx
    jmp 2f
1:  xor %edx, %edx
    mov $10, %ecx
    div %ecx
2:  add $'0', %al
    call putc
    mov %edx, %eax
    add $'0', %al
    jmp putc

    .data
binary:
    .byte 0
