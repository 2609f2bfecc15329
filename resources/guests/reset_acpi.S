/* Resets the machine by the register that ACPI's FADT names. */
#include "guest.h"

    pvh_start
    outb_const ACPI_RESET, ACPI_RESET_VALUE
    halt_forever
