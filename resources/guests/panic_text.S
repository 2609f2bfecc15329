/* Prints what a Linux kernel prints when it panics, and stays there: only the console gives it away. */
#include "guest.h"

    pvh_start
    print "[    0.100000] Run /init as init process\r\n"
    print "[    0.200000] Kernel panic - not syncing: test\r\n"
    print "[    0.200001] CPU: 0 PID: 1 Comm: init Not tainted 6.1.0 #1\r\n"
    print "[    0.200002] ---[ end Kernel panic - not syncing: test ]---\r\n"
1:  pause
    jmp 1b
