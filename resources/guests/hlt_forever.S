/* Sleeps with interrupts off: nothing but the VMM can end it. */
#include "guest.h"

    pvh_start
    halt_forever
