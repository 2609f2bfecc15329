/*
 * What an exit to the VMM costs: `what=e|o|i|r|w count=N` on the command line has it go N times round a loop with nothing in it,
 * an `out` to a port, an `in` from it, or a read or write of four bytes at an address, both claimed by nobody. Prints `begin`,
 * `end`, and `tsc ` with the loop's time in hexadecimal, and ends. What the loop itself costs, an empty one tells.
 */
#include "bench.h"

/* Not 0x80, which Cloud Hypervisor logs. */
#define PORT 0xed
/* Below the I/O APIC, above everything that one of the VMMs places below 4 GiB: devices, PCI windows, ECAM. */
#define NOWHERE ((volatile u32 *)0xfeb80000UL)

__attribute__((used)) void guest(const u8 *start)
{
    const char *line = command_line(start);
    u64 count = option(line, "count="), what = option(line, "what=");
    if (!count)
        fail("the command line has no count");
    print("begin\n");
    u64 before = tsc();
    switch (what) {
    case 'e':
        for (u64 i = count; i; i--)
            asm volatile("");
        break;
    case 'o':
        for (u64 i = count; i; i--)
            asm volatile("outb %%al, %0" : : "i"(PORT));
        break;
    case 'i':
        for (u64 i = count; i; i--)
            asm volatile("inb %0, %%al" : : "i"(PORT) : "eax");
        break;
    case 'r':
        for (u64 i = count; i; i--)
            asm volatile("movl (%0), %%eax" : : "r"(NOWHERE) : "eax");
        break;
    case 'w':
        for (u64 i = count; i; i--)
            asm volatile("movl %%eax, (%0)" : : "r"(NOWHERE));
        break;
    default:
        fail("what= is none of e, o, i, r, w");
    }
    u64 after = tsc();
    print("end\ntsc ");
    print_hex(after - before);
    print("\n");
    end_of_guest();
}
