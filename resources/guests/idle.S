/* Says "ready" and sleeps for ever: what a VM costs that does nothing. */
#include "guest.h"

    pvh_start
    print "ready\n"
    cli
1:  hlt
    jmp 1b
