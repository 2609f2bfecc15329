/* Resets the machine as Linux does with `reboot=k`: the keyboard controller pulses the CPU's reset line. */
#include "guest.h"

    pvh_start
    outb_const I8042_COMMAND, I8042_RESET
    halt_forever
