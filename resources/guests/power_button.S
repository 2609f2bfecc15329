/* Says "ready", waits for the power button in the event register, says so, and powers off: a guest that obeys. */
#include "guest.h"

    pvh_start
    print "ready\n"
    mov $ACPI_EVENT, %edx
1:  in %dx, %al
    test $EVENT_POWER_BUTTON, %al
    jz 1b
    print "power button\n"
    power_off
