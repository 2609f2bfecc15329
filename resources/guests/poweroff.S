/* Powers off at once, by the ACPI sleep control register: the shortest life that a guest can have. */
#include "guest.h"

    pvh_start
    power_off
