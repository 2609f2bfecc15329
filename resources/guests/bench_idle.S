/* Says "ready" and sleeps for ever, with interrupts off: what a VM costs that does nothing. */
#include "bench.h"

    bench_entry
    bench_out COM1, 'r'
    bench_out COM1, 'e'
    bench_out COM1, 'a'
    bench_out COM1, 'd'
    bench_out COM1, 'y'
    bench_out COM1, '\n'
    cli
1:  hlt
    jmp 1b
