/* Its first instructions set the mark 1 on the debug port; then 2 and 3, and it powers off. */
#include "guest.h"

    pvh_start
    outb_const DEBUG_PORT, 1
    mov $2, %al
    out %al, %dx
    mov $3, %al
    out %al, %dx
    power_off
