/*
 * Drives the first virtio device, a disk, by polled rings: `op=r|w size=BYTES depth=N batches=N` on the command line asks for
 * that many half-rings of requests, each of which goes to its own place on the disk; `whole=1` for whole rings, one after the
 * other, for a device that does not answer in order. Prints `begin`, then `end`, then `PASS`, or
 * `FAIL` and why, and powers off. What it writes are bytes 0x5a.
 *
 * `op=n first=N slots=N` writes numbered blocks of 4096 bytes for ever, each to its place (its number modulo the slots), all
 * eight-byte words of it its number, flushes the disk after each, and then prints the number on a line, in hexadecimal.
 *
 * Entered by the 64-bit Linux protocol. Compiled for general registers only: a KVM in software has no others. The rings are
 * filled before the first request, so that a batch costs the guest a handful of instructions. Virtio 1.2, 2.7, 4.2 and 5.2.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

/* The first slot of the guest's virtio-mmio devices. */
#define REGISTER(offset) (*(volatile u32 *)(0xc0000000UL + (offset)))
#define MAGIC 0x000
#define DEVICE_ID 0x008
#define DRIVER_FEATURES 0x020
#define DRIVER_FEATURES_SEL 0x024
#define QUEUE_SEL 0x030
#define QUEUE_NUM 0x038
#define QUEUE_READY 0x044
#define QUEUE_NOTIFY 0x050
#define STATUS 0x070
#define QUEUE_DESC 0x080
#define QUEUE_DRIVER 0x090
#define QUEUE_DEVICE 0x0a0

#define SIZE 256
#define MAX_DEPTH 64
#define BLOCK 4096
#define T_FLUSH 4
#define F_NEXT 1
#define F_WRITE 2
#define NO_NOTIFY 1
#define NO_INTERRUPT 1

struct desc {
    u64 address;
    u32 len;
    u16 flags, next;
};

struct avail {
    u16 flags, idx, ring[SIZE];
};

struct used {
    u16 flags, idx;
    struct { u32 id, len; } ring[SIZE];
};

struct header {
    u32 type, reserved;
    u64 sector;
};

static struct desc descs[SIZE] __attribute__((aligned(4096)));
static struct avail avail __attribute__((aligned(4096)));
static volatile struct used used __attribute__((aligned(4096)));
static struct header headers[MAX_DEPTH];
static volatile u8 status[MAX_DEPTH];
static u8 stack[16384] __attribute__((aligned(16), used));
#define DATA 0x1000000UL

asm(".section .text.start, \"ax\"\n"
    ".globl _start\n"
    "_start: mov $stack + 16384, %rsp\n"
    "mov %rsi, %rdi\n"
    "call guest\n");

static void out(u16 port, u8 value)
{
    asm volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static void print(const char *text)
{
    for (; *text; text++)
        out(0x3f8, *text);
}

static void power_off(void)
{
    out(0x600, (5 << 2) | (1 << 5));
    for (;;)
        asm volatile("cli; hlt");
}

static void fail(const char *why)
{
    print("FAIL ");
    print(why);
    print("\n");
    power_off();
}

/* The number behind `name` on the command line; letters count as themselves. */
static u64 option(const char *line, const char *name)
{
    for (; *line; line++) {
        const char *at = line, *want = name;
        while (*want && *at == *want)
            at++, want++;
        if (*want)
            continue;
        u64 value = 0;
        if (*at >= 'a')
            return *at;
        for (; *at >= '0' && *at <= '9'; at++)
            value = value * 10 + (*at - '0');
        return value;
    }
    return 0;
}

static void print_number(u64 number)
{
    for (int shift = 60; shift >= 0; shift -= 4)
        out(0x3f8, "0123456789abcdef"[number >> shift & 15]);
    out(0x3f8, '\n');
}

static void set_up(u32 depth, u32 size, int writes)
{
    for (u32 i = 0; i < depth; i++) {
        struct desc *chain = &descs[i * 3];
        headers[i].type = writes;
        headers[i].sector = (u64)i * size / 512;
        chain[0] = (struct desc){ (u64)&headers[i], sizeof headers[i], F_NEXT, i * 3 + 1 };
        chain[1] = (struct desc){ DATA + (u64)i * size, size, F_NEXT | (writes ? 0 : F_WRITE), i * 3 + 2 };
        chain[2] = (struct desc){ (u64)&status[i], 1, F_WRITE, 0 };
        status[i] = 0xff;
    }
    for (u32 i = 0; i < SIZE; i++)
        avail.ring[i] = i % depth * 3;
    avail.flags = NO_INTERRUPT;

    if (REGISTER(MAGIC) != 0x74726976 || REGISTER(DEVICE_ID) != 2)
        fail("the first virtio device is no disk");
    REGISTER(STATUS) = 0;
    REGISTER(STATUS) = 1;
    REGISTER(STATUS) = 3;
    REGISTER(DRIVER_FEATURES_SEL) = 0;
    REGISTER(DRIVER_FEATURES) = 1 << 9; /* FLUSH */
    REGISTER(DRIVER_FEATURES_SEL) = 1;
    REGISTER(DRIVER_FEATURES) = 1; /* VERSION_1 */
    REGISTER(STATUS) = 11;
    if (REGISTER(STATUS) != 11)
        fail("the device does not agree to the features");
    REGISTER(QUEUE_SEL) = 0;
    REGISTER(QUEUE_NUM) = SIZE;
    REGISTER(QUEUE_DESC) = (u64)descs;
    REGISTER(QUEUE_DRIVER) = (u64)&avail;
    REGISTER(QUEUE_DEVICE) = (u64)&used;
    REGISTER(QUEUE_READY) = 1;
    REGISTER(STATUS) = 15;
    if (REGISTER(STATUS) != 15)
        fail("the device does not start");
}

static void submit(u16 count)
{
    *(volatile u16 *)&avail.idx += count;
    /* The index must be there before the device's wish is read. */
    asm volatile("lock orl $0, (%%rsp)" : : : "memory");
    if (!(used.flags & NO_NOTIFY))
        REGISTER(QUEUE_NOTIFY) = 0;
}

/* Has the device do the next request, and waits until it has. */
static void next_request(u32 chain)
{
    u16 done = used.idx;
    submit(1);
    while (used.idx == done)
        ;
    if (status[chain])
        fail("a request has failed");
}

static void numbered(u64 number, u64 slots)
{
    /* The chains take turns: a write, a flush, which has no data. */
    set_up(2, BLOCK, 1);
    headers[1].type = T_FLUSH;
    descs[3].next = 5;
    for (;; number++) {
        for (u32 i = 0; i < BLOCK; i += 8)
            *(volatile u64 *)(DATA + i) = number;
        headers[0].sector = number % slots * (BLOCK / 512);
        next_request(0);
        next_request(1);
        print_number(number);
    }
}

__attribute__((used)) void guest(u8 *zero_page)
{
    const char *line = (const char *)(u64)*(u32 *)(zero_page + 0x228);
    u32 size = option(line, "size="), depth = option(line, "depth=");
    u64 batches = option(line, "batches="), slots = option(line, "slots=");
    if (option(line, "op=") == 'n' && slots)
        numbered(option(line, "first="), slots);
    int writes = option(line, "op=") == 'w';
    if (!size || !depth || depth > MAX_DEPTH || depth & (depth - 1) || !batches)
        fail("the command line has no size, depth or batches");
    set_up(depth, size, writes);
    if (writes)
        for (u64 i = 0; i < (u64)depth * size; i += 8)
            *(u64 *)(DATA + i) = 0x5a5a5a5a5a5a5a5a;

    /* Two halves take turns, so that the device always has one; a ring of one has one. */
    int halves = depth > 1 && !option(line, "whole=");
    u16 half = halves ? depth / 2 : depth, done = 0;
    print("begin\n");
    submit(half);
    for (u64 i = 1; i < batches; i++) {
        if (halves)
            submit(half);
        done += half;
        while ((u16)(used.idx - done) >= 0x8000)
            ;
        if (!halves)
            submit(half);
    }
    done += half;
    while ((u16)(used.idx - done) >= 0x8000)
        ;
    print("end\n");
    for (u32 i = 0; i < depth && i < batches * half; i++)
        if (status[i])
            fail("a request has failed");
    print("PASS\n");
    power_off();
}
