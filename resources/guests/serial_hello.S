/* Says hello on COM1 and powers off. */
#include "guest.h"

    pvh_start
    print "Hello from a bare guest.\r\n"
    power_off
