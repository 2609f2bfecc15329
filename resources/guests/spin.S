/* Runs without ever leaving the guest by itself: nothing but the VMM can end it. */
#include "guest.h"

    pvh_start
1:  jmp 1b
