/* Reports a panic through the pvpanic device, as a kernel with its driver does, prints nothing, and stays there. */
#include "guest.h"

    pvh_start
    outb_const PVPANIC, PVPANIC_PANICKED
1:  pause
    jmp 1b
