/* The shortest life: its first instructions print a `!`, the next ones end it. */
#include "bench.h"

    bench_entry
    bench_out COM1, '!'
    bench_end
