/*
 * The part of virtio_hostile.c that knows what devices do: requests, frames and packets that are wrong, and a second vCPU that
 * rewrites them while they are read.
 */
#define BLOCK_FLUSH 4
#define BLOCK_DISCARD 11
#define BLOCK_WRITE_ZEROES 13
#define IOERR 1
#define UNSUPP 2
#define LAST_SECTORS 0x7fffffffffffffUL

/* A request of the disk's; its status, or 0x100 where there is none. */
static u32 status_of(struct device *d, u32 type, u64 sector, u32 readable, u32 writable)
{
    u32 len;
    block_request(d, type, sector, readable, writable);
    if (!send_and_take(d, 0, 0, &len) || len > writable + 1)
        return 0x100;
    return d->in[writable];
}

static void segment(struct device *d, u32 index, u64 sector, u32 sectors, u32 flags)
{
    volatile u32 *at = (volatile u32 *)(d->out + sizeof(struct block_header) + index * 16);
    at[0] = sector;
    at[1] = sector >> 32;
    at[2] = sectors;
    at[3] = flags;
}

static void check_block(struct device *d, const char *what, u32 status, u32 expected)
{
    conclude(15, d, -1, what, status == expected && !needs_reset(d) ? 0 : "its status is another one");
}

/* 15. Where the disk is read-only, all that writes fails, whatever else is wrong with it. */
static void requests(struct device *d)
{
    u32 len, read_only = is_read_only(d);
    u64 capacity = *(volatile u32 *)(d->base + CONFIG) | (u64) * (volatile u32 *)(d->base + CONFIG + 4) << 32;
    check_block(d, "sector-overflows", status_of(d, BLOCK_IN, ~0UL, 0, SECTOR), IOERR);
    check_block(d, "sector-overflows-in-bytes", status_of(d, BLOCK_IN, LAST_SECTORS, 0, SECTOR), IOERR);
    check_block(d, "read-past-the-end", status_of(d, BLOCK_IN, capacity - 1, 0, 2 * SECTOR), IOERR);
    check_block(d, "write-past-the-end", status_of(d, BLOCK_OUT, capacity - 1, 2 * SECTOR, 0), IOERR);
    check_block(d, "read-far-past-the-end", status_of(d, BLOCK_IN, capacity + 1000, 0, SECTOR), IOERR);
    check_block(d, "read-of-half-a-sector", status_of(d, BLOCK_IN, 0, 0, 100), IOERR);
    check_block(d, "write-of-half-a-sector", status_of(d, BLOCK_OUT, 0, 100, 0), IOERR);
    check_block(d, "unknown-type", status_of(d, 77, 0, 0, SECTOR), UNSUPP);
    check_block(d, "type-of-all-ones", status_of(d, ~0U, 0, SECTOR, 0), UNSUPP);
    check_block(d, "flush-with-data", status_of(d, BLOCK_FLUSH, 0, SECTOR, SECTOR), 0);
    if (read_only)
        check_block(d, "write-to-a-read-only-disk", status_of(d, BLOCK_OUT, 0, SECTOR, 0), IOERR);

    segment(d, 0, capacity - 1, 2, 0);
    check_block(d, "discard-past-the-end", status_of(d, BLOCK_DISCARD, 0, 16, 0), IOERR);
    segment(d, 0, ~0UL, ~0U, 0);
    check_block(d, "discard-overflows", status_of(d, BLOCK_DISCARD, 0, 16, 0), IOERR);
    /* The first segment is good, and must not be carried out for the second's sake. */
    segment(d, 0, 0, 1, 0);
    segment(d, 1, capacity, 1, 0);
    check_block(d, "zeroes-past-the-end", status_of(d, BLOCK_WRITE_ZEROES, 0, 32, 0), IOERR);
    for (u32 i = 0; i < 17; i++)
        segment(d, i, 0, 1, 0);
    check_block(d, "zeroes-of-too-many-segments", status_of(d, BLOCK_WRITE_ZEROES, 0, 17 * 16, 0), IOERR);
    check_block(d, "zeroes-of-half-a-segment", status_of(d, BLOCK_WRITE_ZEROES, 0, 15, 0), IOERR);
    check_block(d, "zeroes-of-nothing", status_of(d, BLOCK_WRITE_ZEROES, 0, 0, 0), IOERR);
    segment(d, 0, 0, 1, ~0U);
    check_block(d, "discard-with-unknown-flags", status_of(d, BLOCK_DISCARD, 0, 16, 0), read_only ? IOERR : UNSUPP);

    /* No byte for the status: all that there is can be read, a good write included; and half a header. */
    block_request(d, BLOCK_IN, 0, 0, 0);
    put(d, 0, 0, (u64)d->out, sizeof(struct block_header), 0, 0);
    int given = send_and_take(d, 0, 0, &len) && len == 0 && !needs_reset(d);
    conclude(15, d, -1, "no-status-byte", given ? 0 : "it is not given back");
    block_request(d, BLOCK_IN, 0, 0, 0);
    put(d, 0, 0, (u64)d->out, 5, F_NEXT, 1);
    given = send_and_take(d, 0, 0, &len) && d->in[0] == IOERR;
    conclude(15, d, -1, "half-a-header", given ? 0 : "its status is another one");
}

/* 16: frames that are none, and headers that ask for what cannot be. All of them are dropped. */
static void frames(struct device *d)
{
    static const struct {
        const char *what;
        struct net_header header;
    } headers[] = {
        { "checksum-beyond-the-frame", { .flags = 1, .csum_start = 0xffff, .csum_offset = 0xffff } },
        { "unknown-segmentation", { .gso_type = 0x7f, .gso_size = 100 } },
        { "segments-of-nothing", { .flags = 1, .gso_type = 1 } },
        { "headers-longer-than-the-frame", { .flags = 1, .gso_type = 1, .gso_size = 1, .hdr_len = 0xffff } },
        { "not-negotiated-segmentation", { .gso_type = 3, .gso_size = 0xffff } },
        { "header-of-all-ones", { 0xff, 0xff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff } },
    };
    u32 len;
    for (u32 i = 0; i < sizeof headers / sizeof headers[0]; i++) {
        net_frame(d, FRAME);
        *(struct net_header *)d->out = headers[i].header;
        int given = send_and_take(d, TX, 0, &len) && len == 0 && !needs_reset(d);
        conclude(16, d, -1, headers[i].what, given ? 0 : "it is not given back");
    }
    static const u32 lens[] = { 0, 1, 13 };
    static const char *const names[] = { "header-without-a-frame", "frame-of-one-byte", "frame-shorter-than-its-header" };
    for (u32 i = 0; i < 3; i++) {
        net_frame(d, lens[i]);
        int given = send_and_take(d, TX, 0, &len) && len == 0 && !needs_reset(d);
        conclude(16, d, -1, names[i], given ? 0 : "it is not given back");
    }
    put(d, TX, 0, (u64)d->out, 5, 0, 0);
    int given = send_and_take(d, TX, 0, &len) && len == 0 && !needs_reset(d);
    conclude(16, d, -1, "half-a-header", given ? 0 : "it is not given back");

    /* 64 KiB and more in pieces of a page, and in pieces of a byte. */
    static const struct {
        const char *what;
        u32 pieces, len;
    } chains[] = { { "sixty-four-kib", 16, 4096 }, { "more-than-any-frame", 20, 4096 }, { "pieces-of-a-byte", 1000, 1 } };
    for (u32 i = 0; i < 3; i++) {
        net_frame(d, FRAME);
        for (u32 j = 0; j < chains[i].pieces; j++)
            table[j] = (struct desc){ (u64)d->out, chains[i].len, j + 1 < chains[i].pieces ? F_NEXT : 0, j + 1 };
        put(d, TX, 0, (u64)table, chains[i].pieces * 16, F_INDIRECT, 0);
        given = send_and_take(d, TX, 0, &len) && len == 0 && !needs_reset(d);
        conclude(16, d, -1, chains[i].what, given ? 0 : "it is not given back");
    }
}

/* 17: packets that are none; answers that nobody takes. */
static void packets(struct device *d)
{
    u32 len;
    static const u16 operations[] = { 0, 2, 4, 5, 6, 7, 8, 0xffff };
    const char *wrong = 0;
    for (u32 i = 0; i < sizeof operations / sizeof operations[0]; i++) {
        vsock_packet(d, operations[i]);
        if (!send_and_take(d, TX, 0, &len) || vsock_take(d) != VSOCK_RST)
            wrong = "there is no reset";
    }
    conclude(17, d, -1, "packets-of-no-connection", wrong);

    static const u64 cids[][2] = { { 0, 2 }, { ~0UL, 2 }, { 3, 3 }, { 3, ~0UL }, { 2, 3 }, { 4, 2 } };
    wrong = 0;
    for (u32 i = 0; i < sizeof cids / sizeof cids[0]; i++) {
        volatile struct vsock_header *header = vsock_packet(d, VSOCK_REQUEST);
        header->src_cid = cids[i][0];
        header->dst_cid = cids[i][1];
        if (!send_and_take(d, TX, 0, &len) || needs_reset(d))
            wrong = "it is not given back";
    }
    if (has_used(d, RX))
        wrong = "it is answered";
    conclude(17, d, -1, "wrong-addresses", wrong);

    static const u32 lens[] = { 1, 1 << 20, ~0U };
    wrong = 0;
    for (u32 i = 0; i < 3; i++) {
        vsock_packet(d, 5)->len = lens[i];
        if (!send_and_take(d, TX, 0, &len) || vsock_take(d) != VSOCK_RST)
            wrong = "there is no reset";
    }
    put(d, TX, 0, (u64)d->out, 43, 0, 0);
    if (!send_and_take(d, TX, 0, &len) || needs_reset(d))
        wrong = "it is not given back";
    conclude(17, d, -1, "lengths-that-lie", wrong);

    /* More than it keeps answers for: the rest waits until some are taken, and none is lost. */
    const u32 all = 300;
    set_up(d);
    wrong = 0;
    vsock_packet(d, VSOCK_REQUEST);
    u32 sent = 0, taken = 0, answers = 0;
    u64 polls = 0;
    while (answers < all && patience(d, &polls)) {
        while (has_used(d, TX)) {
            d->seen[TX]++;
            taken++;
        }
        if (sent < all && sent - taken < SIZE) {
            offer(d, TX, 0);
            notify(d, TX);
            sent++;
        } else if (taken >= 256 && d->index[RX] == 0) {
            if (taken == all)
                wrong = "it keeps answers without end";
            for (u16 index = 0; index < VSOCK_BUFFERS; index++)
                give_buffer(d, index);
            notify(d, RX);
        } else if (has_used(d, RX)) {
            answers += vsock_take(d) == VSOCK_RST;
            notify(d, RX);
        }
    }
    if (answers != all)
        wrong = "answers are missing";
    conclude(17, d, -1, "answers-not-taken", wrong);
}

/* 18: a request for all memory. */
static void entropy(struct device *d)
{
    const u64 at = 0x1000000, most = 4096;
    u32 len;
    fill((volatile u8 *)at, CANARY, 2 * most);
    put(d, 0, 0, at, ram_end - at, F_WRITE, 0);
    const char *wrong = 0;
    if (!send_and_take(d, 0, 0, &len) || len == 0 || len > most)
        wrong = "it is not capped";
    else if (!all_are((volatile u8 *)at + len, CANARY, most))
        wrong = "more is written than is said";
    conclude(18, d, -1, "all-of-memory", wrong);
}

/* 18: a megabyte at once, more than the host keeps. */
static void output(struct device *d)
{
    const u64 at = 0x1000000, size = 1 << 20;
    u32 len;
    fill((volatile u8 *)at, '#', size);
    put(d, TX, 0, at, size, 0, 0);
    const char *wrong = send_and_take(d, TX, 0, &len) && len == 0 ? 0 : "it is not given back";
    conclude(18, d, -1, "a-megabyte-of-output", wrong);
}

static void of_its_kind(struct device *d)
{
    switch (d->kind->id) {
    case ID_BLOCK:
        return requests(d);
    case ID_CONSOLE:
        return output(d);
    case ID_NET:
        return frames(d);
    case ID_RNG:
        return entropy(d);
    case ID_VSOCK:
        return packets(d);
    }
}

/*
 * 10: another vCPU, in real mode, writes one of two values after the other to sixteen bytes for as long as it is let.
 */
#define ICR 0x300
#define SPURIOUS 0xf0
#define ICR_INIT_OTHERS 0x000c4500
#define ICR_SIPI_OTHERS 0x000c4600
#define ICR_PENDING 0x1000
#define TRAMPOLINE 0x10000UL
#define RACE_ALIVE 0x7f0
#define RACE_GO 0x7f4
#define RACE_AT 0x800
#define RACE_VALUES 0x820
#define RACES 300
#define LOW(offset) (*(volatile u32 *)(TRAMPOLINE + (offset)))

asm(".section .rodata\n"
    ".globl racer, racer_end\n"
    "racer:\n"
    ".code16\n"
    "cli\n"
    "mov %cs, %ax\n"
    "mov %ax, %ds\n"
    "movl $1, 0x7f0\n"
    "1: cmpl $0, 0x7f4\n"
    "je 1b\n"
    ".irp value, 0x820, 0x830\n"
    "mov \\value, %eax; mov \\value + 4, %ebx; mov \\value + 8, %ecx; mov \\value + 12, %edx\n"
    "mov %eax, 0x800; mov %ebx, 0x804; mov %ecx, 0x808; mov %edx, 0x80c\n"
    ".endr\n"
    "jmp 1b\n"
    "racer_end:\n"
    ".code64\n"
    ".text\n");
extern const u8 racer[], racer_end[];

static void to_others(u32 command)
{
    REGISTER(LAPIC, ICR) = command;
    while (REGISTER(LAPIC, ICR) & ICR_PENDING)
        ;
}

static int start_racer(void)
{
    memcpy((void *)TRAMPOLINE, racer, racer_end - racer);
    LOW(RACE_ALIVE) = LOW(RACE_GO) = 0;
    REGISTER(LAPIC, SPURIOUS) = REGISTER(LAPIC, SPURIOUS) | 0x100;
    to_others(ICR_INIT_OTHERS);
    to_others(ICR_SIPI_OTHERS | TRAMPOLINE >> 12);
    to_others(ICR_SIPI_OTHERS | TRAMPOLINE >> 12);
    u64 polls = 0;
    while (!LOW(RACE_ALIVE))
        if (!patience(&devices[0], &polls))
            return 0;
    return 1;
}

static void race_between(const void *one, const void *other)
{
    memcpy((void *)(TRAMPOLINE + RACE_VALUES), one, 16);
    memcpy((void *)(TRAMPOLINE + RACE_VALUES + 16), other, 16);
    memcpy((void *)(TRAMPOLINE + RACE_AT), one, 16);
    LOW(RACE_GO) = 1;
}

static void lay_request(struct device *d)
{
    d->in[SECTOR] = 0xff;
    put(d, 0, 0, TRAMPOLINE + RACE_AT, 16, F_NEXT, 1);
    put(d, 0, 1, (u64)d->in, SECTOR + 1, F_WRITE, 0);
}

static void lay_frame(struct device *d)
{
    put(d, TX, 0, TRAMPOLINE + RACE_AT, sizeof(struct net_header), F_NEXT, 1);
    put(d, TX, 1, (u64)d->out, FRAME, 0, 0);
}

/* What changes of a packet is its port, its length, its type, its operation and its flags. */
static void lay_packet(struct device *d)
{
    const u32 before = 20, after = sizeof(struct vsock_header) - before - 16;
    vsock_packet(d, VSOCK_REQUEST);
    put(d, TX, 0, (u64)d->out, before, F_NEXT, 1);
    put(d, TX, 1, TRAMPOLINE + RACE_AT, 16, F_NEXT, 2);
    put(d, TX, 2, (u64)d->out + before + 16, after, 0, 0);
}

/* Headers that change while they are read: each chain is given back, and the device goes on. */
static void race_header(struct device *d, void (*lay)(struct device *), const void *one, const void *other)
{
    u32 queue = d->kind->id == ID_BLOCK ? 0 : TX, len;
    const char *wrong = 0;
    race_between(one, other);
    for (u32 i = 0; i < RACES && !wrong; i++) {
        lay(d);
        if (!send_and_take(d, queue, 0, &len))
            wrong = "it is not given back";
        else if (d->kind->id == ID_BLOCK && d->in[SECTOR] > UNSUPP)
            wrong = "it has no status";
        while (d->kind->id == ID_VSOCK && has_used(d, RX))
            vsock_take(d);
    }
    if (needs_reset(d))
        wrong = "it needs a reset";
    LOW(RACE_GO) = 0;
    conclude(10, d, -1, "changing-header", wrong);
}

/* A table that changes while a chain is walked: the chain is served or refused. */
static void race_descriptor(struct device *d)
{
    struct desc good = { (u64)d->in, 64, F_WRITE, 0 }, bad = { ~0UL - 15, ~0U, F_WRITE | F_NEXT, 0xffff };
    const char *wrong = 0;
    u32 served = 0, refused = 0;
    race_between(&good, &bad);
    for (u32 i = 0; i < RACES && !wrong; i++) {
        u32 queue = d->queues > 1 ? TX : 0;
        put(d, queue, 0, TRAMPOLINE + RACE_AT, 16, F_INDIRECT, 0);
        offer(d, queue, 0);
        notify(d, queue);
        u64 polls = 0;
        while (!has_used(d, queue) && !needs_reset(d))
            if (++polls == PATIENCE / 64) {
                wrong = "it is neither served nor refused";
                break;
            }
        if (has_used(d, queue)) {
            d->seen[queue]++;
            served++;
        } else {
            refused++;
            set_up(d);
        }
    }
    LOW(RACE_GO) = 0;
    conclude(10, d, -1, "changing-descriptor", wrong);
    print("  served ");
    print_number(served);
    print(", refused ");
    print_number(refused);
    print("\n");
}

static void races(void)
{
    if (!start_racer()) {
        print("case 10 skipped: there is one vCPU only\n");
        return;
    }
    /* Sixteen bytes each. */
    static const struct block_header read = { BLOCK_IN, 0, 0 }, write = { BLOCK_OUT, 0, ~0UL };
    static const struct { struct net_header header; u32 rest; } plain = { { 0 }, 0 },
        segments = { { 1, 1, 0xffff, 0, 0xffff, 0xffff, 0 }, 0 };
    static const struct { u32 port, len; u16 type, op; u32 flags; } good = { NOBODYS_PORT, 0, 1, VSOCK_REQUEST, 0 },
        lies = { 1, ~0U, 1, 5, ~0U };
    for (u32 i = 0; i < device_count; i++) {
        struct device *d = &devices[i];
        race_descriptor(d);
        switch (d->kind->id) {
        case ID_BLOCK:
            race_header(d, lay_request, &read, &write);
            break;
        case ID_NET:
            race_header(d, lay_frame, &plain, &segments);
            break;
        case ID_VSOCK:
            race_header(d, lay_packet, &good, &lies);
            break;
        }
    }
}
