/*
 * Uses devices that a program brings which embeds the library. `gsi=N what=b` on the command line: those of the buses, at port 0x900
 * and at 0xd0000000, whose interrupt line N is; `what=v`: the first virtio device, an entropy source. Prints what it finds, a line for
 * each step, then `done`, and spins.
 */
#define SIZE 16
#include "virtio.h"

#define PORT 0x900
#define WINDOW 0xd0000000UL
#define IOAPIC 0xfec00000UL
#define LAPIC 0xfee00000UL
#define VECTOR 0x40

static struct desc descs[SIZE] __attribute__((aligned(4096)));
static struct avail avail __attribute__((aligned(4096)));
static volatile struct used used __attribute__((aligned(4096)));
static char room[64];

static void hex(const char *what, u32 value)
{
    print(what);
    for (int shift = 28; shift >= 0; shift -= 4) {
        u8 digit = value >> shift & 15;
        out(0x3f8, digit < 10 ? '0' + digit : 'a' + digit - 10);
    }
    print("\n");
}

static u8 in(u16 port)
{
    u8 value;
    asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

/* Interrupts stay off: the local APIC shows what has come (Intel SDM 3, 11.8.4). */
static void route(u32 gsi)
{
    REGISTER(LAPIC, 0xf0) = 0x1ff;
    REGISTER(IOAPIC, 0) = 0x10 + 2 * gsi + 1;
    REGISTER(IOAPIC, 0x10) = 0;
    REGISTER(IOAPIC, 0) = 0x10 + 2 * gsi;
    REGISTER(IOAPIC, 0x10) = VECTOR;
}

static int pending(void)
{
    return REGISTER(LAPIC, 0x200 + VECTOR / 32 * 0x10) >> VECTOR % 32 & 1;
}

static void buses(u32 gsi)
{
    route(gsi);
    out(PORT, 0x5a);
    hex("port ", in(PORT));
    hex("window ", REGISTER(WINDOW, 0));
    hex("pending ", pending());
    /* The device raises its line. */
    REGISTER(WINDOW, 0xc) = 1;
    while (!pending())
        ;
    hex("pending ", pending());
    /* An event, which the device does not see; another value, which it does. */
    REGISTER(WINDOW, 8) = 7;
    REGISTER(WINDOW, 8) = 8;
    /* The device panics, and answers no more. */
    REGISTER(WINDOW, 4) = 1;
    hex("window ", REGISTER(WINDOW, 0));
    out(PORT, 0xf0);
    hex("port ", in(PORT));
}

static void set_up(void)
{
    avail.idx = 0;
    used.idx = 0;
    if (!negotiate(FIRST_SLOT, VERSION_1))
        fail("the device does not agree to the features");
    set_up_queue(FIRST_SLOT, 0, descs, &avail, &used);
    if (!start(FIRST_SLOT))
        fail("the device does not start");
}

/* Asks the device; what it says, or that it needs a reset. */
static void ask(void)
{
    u16 before = used.idx;
    descs[0] = (struct desc){ (u64)room, sizeof(room) - 1, F_WRITE, 0 };
    avail.ring[avail.idx % SIZE] = 0;
    barrier();
    *(volatile u16 *)&avail.idx += 1;
    barrier();
    REGISTER(FIRST_SLOT, QUEUE_NOTIFY) = 0;
    while (used.idx == before)
        if (REGISTER(FIRST_SLOT, STATUS) & NEEDS_RESET) {
            print("needs reset\n");
            return;
        }
    room[used.ring[before % SIZE].len] = 0;
    print(room);
    print("\n");
}

__attribute__((used)) void guest(u8 *zero_page)
{
    const char *line = command_line(zero_page);

    if (option(line, "what=") == 'b') {
        buses(option(line, "gsi="));
    } else {
        if (REGISTER(FIRST_SLOT, MAGIC) != MAGIC_VALUE || REGISTER(FIRST_SLOT, DEVICE_ID) != ID_RNG)
            fail("the first virtio device is no entropy source");
        set_up();
        ask();
        /* The second time it panics. */
        ask();
        set_up();
        ask();
        /* Its control half panics. */
        REGISTER(FIRST_SLOT, CONFIG) = 1;
        print(REGISTER(FIRST_SLOT, STATUS) & NEEDS_RESET ? "needs reset\n" : "goes on\n");
        set_up();
        ask();
    }
    print("done\n");
    for (;;)
        ;
}
