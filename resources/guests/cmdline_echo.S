/* Prints its command line, then address, size and the sum of all bytes of its first module, which is the initrd. */
#include "guest.h"

    pvh_start
    mov start_info, %ebx
    print "cmdline: "
    mov SI_CMDLINE(%ebx), %esi
    call puts
    print "\nmodules: "
    mov SI_NR_MODULES(%ebx), %eax
    call put_dec
    print "\n"
    test %eax, %eax
    jz done
    mov SI_MODLIST(%ebx), %ebx
    print "initrd at "
    print_hex64 MODULE_ADDRESS, %ebx
    print " size "
    mov MODULE_SIZE(%ebx), %ecx
    mov %ecx, %eax
    call put_dec
    mov MODULE_ADDRESS(%ebx), %esi
    xor %edx, %edx
    xor %eax, %eax
1:  test %ecx, %ecx
    jz 2f
    mov (%esi), %al
    add %eax, %edx
    inc %esi
    dec %ecx
    jmp 1b
2:  print " sum "
    mov %edx, %eax
    call put_dec
    print "\n"
done:
    power_off
