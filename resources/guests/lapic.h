/*
 * How the first CPU starts others: by INIT and SIPI through its local APIC (Intel SDM 3, 9.4.4). What they begin with lies between
 * `trampoline` and `trampoline_end`, and runs in real mode at TRAMPOLINE. To be included after guest.h.
 */
#define LAPIC               0xfee00000
#define LAPIC_SPURIOUS      (LAPIC + 0xf0)
#define LAPIC_ICR           (LAPIC + 0x300)
#define LAPIC_ICR_HIGH      (LAPIC + 0x310)
#define ICR_INIT            0x00004500
#define ICR_SIPI            0x00004600
#define ICR_TO_OTHERS       0x000c0000
#define ICR_PENDING         0x1000
#define TRAMPOLINE          0x8000

/* Puts the trampoline where the others begin. Takes ESI, EDI, ECX and AL. */
    .macro put_trampoline
    mov $trampoline, %esi
    mov $TRAMPOLINE, %edi
    mov $trampoline_end - trampoline, %ecx
1:  mov (%esi), %al
    mov %al, (%edi)
    inc %esi
    inc %edi
    dec %ecx
    jnz 1b
    .endm

/* Switches the local APIC on. Takes EAX. */
    .macro switch_lapic_on
    mov LAPIC_SPURIOUS, %eax
    or $0x100, %eax
    mov %eax, LAPIC_SPURIOUS
    .endm

/* Sends the interrupt in EAX, and waits until it has been sent. */
    .macro send_interrupt
    mov %eax, LAPIC_ICR
1:  testl $ICR_PENDING, LAPIC_ICR
    jnz 1b
    .endm

/* Starts all other CPUs. Takes EAX. */
    .macro start_others
    switch_lapic_on
    mov $(ICR_INIT | ICR_TO_OTHERS), %eax
    send_interrupt
    mov $(ICR_SIPI | ICR_TO_OTHERS | (TRAMPOLINE >> 12)), %eax
    send_interrupt
    mov $(ICR_SIPI | ICR_TO_OTHERS | (TRAMPOLINE >> 12)), %eax
    send_interrupt
    .endm
