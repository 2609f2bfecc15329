/*
 * A driver that breaks every rule of virtio-mmio, against each device that it finds. Each case prints a line, `case 4 block
 * hole: ok` or `FAIL` and why; after each the device is reset, proves that it does its work, and so do all the others. Ends with
 * `PASS`, or `FAIL` and how many, and powers off. The numbers are those of the list of what must not break the VMM
 * (docs/hostile.md); on a second vCPU, if there is one, runs what rewrites memory while a device reads it (case 10).
 *
 * On the command line: `memory=MIB`, so that the end of RAM is known.
 */
#include "virtio_hostile.h"

#define HOLE 0xd0000000UL
#define LAPIC 0xfee00000UL
#define CANARY 0xee
#define TABLE_ENTRIES 1025

/* An indirect table. */
static struct desc table[TABLE_ENTRIES] __attribute__((aligned(4096)));
static volatile u8 buffer[4096] __attribute__((aligned(4096)));
/* Where rings lie that overlap: what a used index makes of their addresses are addresses below 1 MiB, too. */
#define SHARED_RING ((u8 *)0x30000)
#define SHARED_RING_SIZE 4096
static u64 ram_end;
static u32 failures;

/* The compiler may call these. */
void *memset(void *to, int byte, u64 len)
{
    fill(to, byte, len);
    return to;
}

void *memcpy(void *to, const void *from, u64 len)
{
    for (u64 i = 0; i < len; i++)
        ((volatile u8 *)to)[i] = ((const volatile u8 *)from)[i];
    return to;
}

/* Ends a case: says what came of it, and whether everything works. */
static void conclude(u32 number, struct device *d, int queue, const char *what, const char *wrong)
{
    if (!wrong && !others_work(d))
        wrong = "another device does not work";
    if (!set_up(d) || !works(d))
        wrong = "it does not work after a reset";
    print("case ");
    print_number(number);
    print(" ");
    print_device(d);
    if (queue >= 0) {
        print(".");
        print_number(queue);
    }
    print(" ");
    print(what);
    print(wrong ? ": FAIL " : ": ok");
    if (wrong)
        print(wrong);
    print("\n");
    failures += wrong != 0;
}

/* Has the device look at a queue. */
static void kick(struct device *d, u32 queue)
{
    /* The socket device takes a buffer when it has a packet: a reset that answers this. */
    if (d->kind->id == ID_VSOCK && queue == RX) {
        vsock_packet(d, VSOCK_REQUEST);
        offer(d, TX, 0);
        notify(d, TX);
    }
    notify(d, queue);
}

static int breaks(struct device *d)
{
    for (u64 i = 0; i < PATIENCE / 64; i++)
        if (needs_reset(d))
            return 1;
    return 0;
}

/* Chains: each lays out what is wrong with one whose head is 0. */
#define W F_WRITE
static struct desc *descs(struct device *d, u32 queue)
{
    return d->rings[queue].descs;
}

#define CHAIN(name) static void name(struct device *d, struct desc *at)
#define BUFFER (u64) buffer

CHAIN(cycle) { at[0] = (struct desc){ BUFFER, 8, W | F_NEXT, 0 }; }
CHAIN(cycle_of_two)
{
    at[0] = (struct desc){ BUFFER, 8, W | F_NEXT, 1 };
    at[1] = (struct desc){ BUFFER, 8, W | F_NEXT, 0 };
}
CHAIN(cycle_in_a_table)
{
    at[0] = (struct desc){ (u64)table, 32, F_INDIRECT, 0 };
    table[0] = (struct desc){ BUFFER, 1, W | F_NEXT, 1 };
    table[1] = (struct desc){ BUFFER, 1, W | F_NEXT, 0 };
}
CHAIN(longer_than_any_queue)
{
    at[0] = (struct desc){ (u64)table, sizeof table, F_INDIRECT, 0 };
    for (u32 i = 0; i < TABLE_ENTRIES; i++)
        table[i] = (struct desc){ BUFFER, 1, W | (i + 1 < TABLE_ENTRIES ? F_NEXT : 0), i + 1 };
}
CHAIN(next_beyond) { at[0] = (struct desc){ BUFFER, 8, W | F_NEXT, SIZE }; }
CHAIN(next_far_beyond) { at[0] = (struct desc){ BUFFER, 8, W | F_NEXT, 0xffff }; }
static void behind_a_good_one(struct desc *at, u64 address, u32 len)
{
    at[0] = (struct desc){ BUFFER, 8, W | F_NEXT, 1 };
    at[1] = (struct desc){ address, len, W, 0 };
}
CHAIN(wraps) { behind_a_good_one(at, ~0UL - 15, 32); }
CHAIN(last_byte) { behind_a_good_one(at, ~0UL, 1); }
CHAIN(end_of_ram) { behind_a_good_one(at, ram_end - 16, 32); }
CHAIN(hole) { behind_a_good_one(at, HOLE, 64); }
CHAIN(own_registers) { behind_a_good_one(at, d->base, 64); }
CHAIN(local_apic) { behind_a_good_one(at, LAPIC, 64); }
CHAIN(all_memory) { behind_a_good_one(at, 0, ~0U); }
CHAIN(four_gib_in_all)
{
    at[0] = (struct desc){ (u64)table, 600 * 16, F_INDIRECT, 0 };
    for (u32 i = 0; i < 600; i++)
        table[i] = (struct desc){ 0, 8 << 20, W | (i + 1 < 600 ? F_NEXT : 0), i + 1 };
}
CHAIN(empty) { at[0] = (struct desc){ BUFFER, 0, W, 0 }; }
CHAIN(table_in_a_table)
{
    at[0] = (struct desc){ (u64)table, 16, F_INDIRECT, 0 };
    table[0] = (struct desc){ (u64)(table + 1), 16, F_INDIRECT, 0 };
    table[1] = (struct desc){ BUFFER, 8, W, 0 };
}
CHAIN(table_with_next)
{
    at[0] = (struct desc){ (u64)table, 16, F_INDIRECT | F_NEXT, 1 };
    at[1] = table[0] = (struct desc){ BUFFER, 8, W, 0 };
}
CHAIN(half_a_table) { table_in_a_table(d, at), at[0].len = 24; }
CHAIN(empty_table) { at[0] = (struct desc){ (u64)table, 0, F_INDIRECT, 0 }; }
CHAIN(table_outside) { at[0] = (struct desc){ HOLE, 16, F_INDIRECT, 0 }; }
CHAIN(readable_behind_writable)
{
    at[0] = (struct desc){ BUFFER, 8, W | F_NEXT, 1 };
    at[1] = (struct desc){ BUFFER, 8, 0, 0 };
}

static const struct {
    u32 number;
    const char *what;
    void (*lay)(struct device *, struct desc *);
} bad_chains[] = {
    { 1, "cycle", cycle },
    { 1, "cycle-of-two", cycle_of_two },
    { 1, "cycle-in-a-table", cycle_in_a_table },
    { 1, "longer-than-any-queue", longer_than_any_queue },
    { 2, "next-beyond-the-table", next_beyond },
    { 2, "next-far-beyond-the-table", next_far_beyond },
    { 4, "address-wraps", wraps },
    { 4, "last-byte", last_byte },
    { 4, "end-of-ram", end_of_ram },
    { 4, "hole", hole },
    { 4, "own-registers", own_registers },
    { 4, "local-apic", local_apic },
    { 5, "all-memory", all_memory },
    { 5, "four-gib-in-all", four_gib_in_all },
    { 6, "table-in-a-table", table_in_a_table },
    { 6, "table-with-next", table_with_next },
    { 6, "half-a-table", half_a_table },
    { 6, "empty-table", empty_table },
    { 6, "table-outside-of-memory", table_outside },
    { 6, "readable-behind-writable", readable_behind_writable },
};

/* 1, 2, 4, 5, 6: the device wants a reset, and has written nothing. */
static void chains(struct device *d, u32 queue)
{
    for (u32 i = 0; i < sizeof bad_chains / sizeof bad_chains[0]; i++) {
        const char *wrong = 0;
        set_up(d);
        fill(buffer, CANARY, sizeof buffer);
        bad_chains[i].lay(d, descs(d, queue));
        offer(d, queue, 0);
        kick(d, queue);
        if (!breaks(d))
            wrong = "no reset is needed";
        else if (!all_are(buffer, CANARY, sizeof buffer))
            wrong = "something was written";
        else if (has_used(d, queue))
            wrong = "the chain was given back";
        conclude(bad_chains[i].number, d, queue, bad_chains[i].what, wrong);
    }
}

/* 2, 3: what the available ring says. */
static void available_rings(struct device *d, u32 queue)
{
    static const u16 heads[] = { SIZE, 0xffff };
    for (u32 i = 0; i < 2; i++) {
        set_up(d);
        offer(d, queue, heads[i]);
        kick(d, queue);
        conclude(2, d, queue, i ? "head-far-beyond" : "head-beyond", breaks(d) ? 0 : "no reset is needed");
    }
    static const u16 jumps[] = { SIZE + 1, 0x8000 };
    for (u32 i = 0; i < 2; i++) {
        set_up(d);
        fill(buffer, CANARY, sizeof buffer);
        put(d, queue, 0, BUFFER, 64, W, 0);
        *(volatile u16 *)&d->rings[queue].avail.idx = jumps[i];
        kick(d, queue);
        const char *wrong = breaks(d) ? 0 : "no reset is needed";
        if (!all_are(buffer, CANARY, sizeof buffer))
            wrong = "something was written";
        conclude(3, d, queue, i ? "index-jumps-half-way-round" : "index-jumps", wrong);
    }
}

/* 5, 7: an empty chain is given back; the same head twice is served twice, or refused where the device has it still. */
static void empty_and_twice(struct device *d, u32 queue)
{
    u32 len;
    set_up(d);
    empty(d, descs(d, queue));
    offer(d, queue, 0);
    kick(d, queue);
    const char *wrong = take(d, queue, &len) && len <= 1 && !needs_reset(d) ? 0 : "it is not given back";
    conclude(5, d, queue, "empty", wrong);

    set_up(d);
    put(d, queue, 0, BUFFER, 64, W, 0);
    offer(d, queue, 0);
    offer(d, queue, 0);
    kick(d, queue);
    int held = d->kind->id == ID_NET && queue == RX;
    if (held)
        wrong = breaks(d) && !has_used(d, queue) ? 0 : "no reset is needed";
    else if (d->kind->id == ID_VSOCK && queue == RX)
        wrong = take(d, queue, &len) && !needs_reset(d) ? 0 : "the first is not given back";
    else
        wrong = take(d, queue, &len) && take(d, queue, &len) && !needs_reset(d) ? 0 : "they are not given back";
    conclude(7, d, queue, "same-head-twice", wrong);
}

/* 8: what is rewritten after DRIVER_OK. */
static void rewritten(struct device *d)
{
    const char *wrong = 0;
    set_up(d);
    for (u32 queue = 0; queue < d->queues; queue++) {
        REGISTER(d->base, QUEUE_SEL) = queue;
        REGISTER(d->base, QUEUE_READY) = 0;
        REGISTER(d->base, QUEUE_NUM) = 2;
        for (u32 reg = QUEUE_DESC; reg <= QUEUE_DEVICE + 4; reg += 4)
            REGISTER(d->base, reg) = 0xfffff000;
        if (REGISTER(d->base, QUEUE_READY) != 1)
            wrong = "a queue is not ready any more";
    }
    accept(d->base, 0);
    if (!works(d))
        wrong = "it does not go on";
    conclude(8, d, -1, "rewritten-after-driver-ok", wrong);
}

static u64 read_register(u64 address, u32 width)
{
    switch (width) {
    case 1:
        return *(volatile u8 *)address;
    case 2:
        return *(volatile u16 *)address;
    case 4:
        return *(volatile u32 *)address;
    default:
        return *(volatile u64 *)address;
    }
}

static void write_register(u64 address, u32 width)
{
    switch (width) {
    case 1:
        *(volatile u8 *)address = 0xff;
        break;
    case 2:
        *(volatile u16 *)address = 0xffff;
        break;
    case 4:
        *(volatile u32 *)address = ~0U;
        break;
    default:
        *(volatile u64 *)address = ~0UL;
    }
}

/* 9: registers by widths and at places that they do not have. The device is at work meanwhile. */
static void registers(struct device *d)
{
    const char *wrong = 0;
    set_up(d);
    REGISTER(d->base, QUEUE_SEL) = ~0U;
    if (REGISTER(d->base, QUEUE_NUM_MAX) || REGISTER(d->base, QUEUE_READY))
        wrong = "there is a queue beyond the last";
    REGISTER(d->base, QUEUE_READY) = 1;
    REGISTER(d->base, QUEUE_NOTIFY) = ~0U;
    REGISTER(d->base, DEVICE_FEATURES_SEL) = 2;
    if (REGISTER(d->base, DEVICE_FEATURES))
        wrong = "there are features beyond the last";
    for (u32 width = 1; width <= 8; width *= 2)
        for (u64 at = 0; at + width <= CONFIG; at += width == 4 ? 2 : 1) {
            if (width == 4 && at % 4 == 0)
                continue;
            if (read_register(d->base + at, width))
                wrong = "a register reads by another width than its own";
            write_register(d->base + at, width);
        }
    if (!works(d))
        wrong = "it does not go on";
    conclude(9, d, -1, "registers-by-wrong-widths", wrong);

    set_up(d);
    wrong = 0;
    for (u32 width = 1; width <= 8; width *= 2)
        for (u64 at = CONFIG; at + width <= SLOT_SIZE; at += at < CONFIG + 128 ? 1 : 61) {
            u64 value = read_register(d->base + at, width);
            if (at >= CONFIG + 128 && value)
                wrong = "the configuration space reads beyond its end";
            write_register(d->base + at, width);
        }
    if (!works(d))
        wrong = "it does not go on";
    conclude(9, d, -1, "configuration-space", wrong);
}

/* As many chains as the queue has, each of which the device has to do with. */
static void fill_queue(struct device *d, u32 queue)
{
    u16 step = d->kind->id == ID_BLOCK ? 2 : 1;
    for (u16 head = 0; head < SIZE; head += step) {
        if (d->kind->id == ID_BLOCK) {
            struct block_header *header = (struct block_header *)d->out;
            *header = (struct block_header){ BLOCK_IN, 0, 0 };
            put(d, 0, head, (u64)header, sizeof *header, F_NEXT, head + 1);
            put(d, 0, head + 1, BUFFER, SECTOR + 1, W, 0);
        } else {
            put(d, queue, head, BUFFER, 256, d->kind->id == ID_RNG || queue == RX ? W : 0, 0);
        }
        offer(d, queue, head);
    }
}

/* 11: a reset at every stage, and with a full queue: nothing is touched after it. */
static void resets(struct device *d, u32 queue)
{
    static const u8 stages[] = { 1, 3, 11, 15, 15 | 128 };
    const char *wrong = 0;
    for (u32 i = 0; i < sizeof stages; i++) {
        features_agreed(d);
        REGISTER(d->base, STATUS) = stages[i];
        REGISTER(d->base, STATUS) = 0;
        if (REGISTER(d->base, STATUS) || REGISTER(d->base, INTERRUPT_STATUS))
            wrong = "something is left";
    }
    for (u32 round = 0; round < 20 && !wrong; round++) {
        set_up(d);
        fill(buffer, 0, 256);
        fill_queue(d, queue);
        kick(d, queue);
        REGISTER(d->base, STATUS) = 0;
        fill(buffer, CANARY, sizeof buffer);
        u16 index = d->rings[queue].used.idx;
        if (!others_work(d))
            wrong = "another device does not work";
        if (!all_are(buffer, CANARY, sizeof buffer) || index != d->rings[queue].used.idx)
            wrong = "memory is touched after the reset";
    }
    conclude(11, d, queue, "reset-in-flight", wrong);
}

/* 12: the bits of the status, in the wrong order, with features that there are not. */
static void statuses(struct device *d)
{
    const char *wrong = 0;
    u64 base = d->base;
    static const u8 early[] = { DRIVER, FEATURES_OK, DRIVER_OK, DRIVER | DRIVER_OK };
    for (u32 i = 0; i < sizeof early; i++) {
        REGISTER(base, STATUS) = 0;
        REGISTER(base, STATUS) = early[i];
        if (REGISTER(base, STATUS))
            wrong = "bits are taken without those before them";
    }
    static const u64 features[] = { 0, INDIRECT_DESC, VERSION_1 | 1UL << 27, VERSION_1 | 1UL << 50 };
    for (u32 i = 0; i < 4; i++)
        if (negotiate(base, features[i]))
            wrong = "features are agreed to that there are not";
    if (!features_agreed(d))
        wrong = "features are not agreed to that there are";
    REGISTER(base, STATUS) = ACKNOWLEDGE;
    if (REGISTER(base, STATUS) != (ACKNOWLEDGE | DRIVER | FEATURES_OK))
        wrong = "bits go away";
    /* Ready, and without a queue. */
    REGISTER(base, STATUS) = 15;
    if (!needs_reset(d))
        wrong = "it works without a queue";
    conclude(12, d, -1, "status-bits", wrong);
}

/* 13: notifications without end; a queue that is kept full, and whose used ring nobody reads. */
static void storms(struct device *d, u32 queue)
{
    const char *wrong = 0;
    set_up(d);
    for (u32 i = 0; i < 5000; i++) {
        notify(d, queue);
        if (i % 50 == 0)
            notify(d, 77);
        if (i % 1000 == 0 && !others_work(d))
            wrong = "another device does not work";
    }
    conclude(13, d, queue, "kicks", wrong);

    set_up(d);
    wrong = 0;
    fill_queue(d, queue);
    u16 in_ring = d->index[queue];
    for (u32 i = 0; i < 2000; i++) {
        /* Its index is read, so that the available ring has never more than the queue: that would be case 3. */
        u16 done = d->rings[queue].used.idx;
        *(volatile u16 *)&d->rings[queue].avail.idx = done + in_ring;
        kick(d, queue);
        if (i % 500 == 0 && !others_work(d))
            wrong = "another device does not work";
    }
    conclude(13, d, queue, "kept-full", wrong);
}

/* 14: rings on top of each other, and a buffer on top of the rings. What comes of it is the guest's own fault. */
#define OVERLAP_ROUNDS 13

static void overlaps(struct device *d, u32 queue)
{
    static const struct {
        const char *what;
        u32 avail, used;
    } places[] = {
        { "rings-overlap", 0, 0 },
        { "used-on-descriptors", 256, 0 },
        { "used-on-available", 256, 256 },
    };
    for (u32 i = 0; i < 3; i++) {
        features_agreed(d);
        clear_rings(d);
        fill(SHARED_RING, 0, SHARED_RING_SIZE);
        for (u32 other = 0; other < d->queues; other++) {
            struct rings *rings = &d->rings[other];
            if (other == queue)
                set_up_queue(d->base, other, SHARED_RING, SHARED_RING + places[i].avail, SHARED_RING + places[i].used);
            else
                set_up_queue(d->base, other, rings->descs, &rings->avail, &rings->used);
        }
        start(d->base);
        struct desc *at = (struct desc *)SHARED_RING;
        for (u16 head = 0; head < SIZE; head++)
            at[head] = (struct desc){ (u64)SHARED_RING, SHARED_RING_SIZE, W, 0 };
        for (u16 round = 1; round <= OVERLAP_ROUNDS; round++) {
            *(volatile u16 *)(SHARED_RING + places[i].avail + 2) = round;
            kick(d, queue);
        }
        conclude(14, d, queue, places[i].what, 0);
    }
    set_up(d);
    for (u16 round = 0; round < 2 * SIZE; round++) {
        put(d, queue, 0, (u64)&d->rings[queue], sizeof(struct rings), W, 0);
        offer(d, queue, 0);
        kick(d, queue);
    }
    conclude(14, d, queue, "buffer-on-rings", 0);
}

#include "virtio_hostile_devices.h"

__attribute__((used)) void guest(u8 *zero_page)
{
    const char *line = command_line(zero_page);
    for (; *line; line++)
        if (*line >= '0' && *line <= '9')
            ram_end = ram_end * 10 + (*line - '0');
    ram_end <<= 20;
    if (!ram_end)
        fail("the command line does not say how much memory there is");
    find_devices();
    if (!device_count)
        fail("there is no device");
    for (u32 i = 0; i < device_count; i++) {
        struct device *d = &devices[i];
        for (u32 queue = 0; queue < d->queues; queue++) {
            if (!(d->kind->busy_queues & 1 << queue))
                continue;
            chains(d, queue);
            available_rings(d, queue);
            empty_and_twice(d, queue);
            resets(d, queue);
            storms(d, queue);
            overlaps(d, queue);
        }
        rewritten(d);
        registers(d);
        statuses(d);
        of_its_kind(d);
    }
    races();
    if (failures) {
        print("FAIL ");
        print_number(failures);
        print(" cases\n");
    } else {
        print("PASS\n");
    }
    power_off();
}
