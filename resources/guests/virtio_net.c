/*
 * Sends frames by the first virtio device, a network interface, from a polled ring: `size=BYTES depth=N batches=N` on the command
 * line asks for that many half-rings of frames. Prints `begin`, then `end`, then `PASS`, or `FAIL` and why, and powers off.
 *
 * Entered by the 64-bit Linux protocol. Compiled for general registers only: a KVM in software has no others. The ring is filled
 * before the first frame, so that a batch costs the guest a handful of instructions. Virtio 1.2, 2.7, 4.2 and 5.1.
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

static struct desc descs[SIZE] __attribute__((aligned(4096)));
static struct avail avail __attribute__((aligned(4096)));
static volatile struct used used __attribute__((aligned(4096)));
static struct avail no_buffers __attribute__((aligned(4096)));
static struct used no_frames __attribute__((aligned(4096)));
static u8 stack[16384] __attribute__((aligned(16), used));
#define DATA 0x1000000UL
/* The room of a frame. */
#define PLACE 0x10000UL
#define HEADER 12
#define TX 1

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

/* The number behind `name` on the command line. */
static u64 option(const char *line, const char *name)
{
    for (; *line; line++) {
        const char *at = line, *want = name;
        while (*want && *at == *want)
            at++, want++;
        if (*want)
            continue;
        u64 value = 0;
        for (; *at >= '0' && *at <= '9'; at++)
            value = value * 10 + (*at - '0');
        return value;
    }
    return 0;
}

static void set_up_queue(u32 index, struct avail *driver, volatile struct used *device)
{
    REGISTER(QUEUE_SEL) = index;
    REGISTER(QUEUE_NUM) = SIZE;
    REGISTER(QUEUE_DESC) = (u64)descs;
    REGISTER(QUEUE_DRIVER) = (u64)driver;
    REGISTER(QUEUE_DEVICE) = (u64)device;
    REGISTER(QUEUE_READY) = 1;
}

static void set_up(u32 depth, u32 size)
{
    for (u32 i = 0; i < depth; i++) {
        u8 *frame = (u8 *)(DATA + (u64)i * PLACE) + HEADER;
        for (u32 byte = 0; byte < 6; byte++) {
            frame[byte] = 0xff;
            frame[6 + byte] = byte ? byte : 2;
        }
        /* For experiments on one's own network: nobody listens. */
        frame[12] = 0x88;
        frame[13] = 0xb5;
        descs[i] = (struct desc){ (u64)frame - HEADER, HEADER + size, 0, 0 };
    }
    for (u32 i = 0; i < SIZE; i++)
        avail.ring[i] = i % depth;
    avail.flags = NO_INTERRUPT;

    if (REGISTER(MAGIC) != 0x74726976 || REGISTER(DEVICE_ID) != 1)
        fail("the first virtio device is no network");
    REGISTER(STATUS) = 0;
    REGISTER(STATUS) = 1;
    REGISTER(STATUS) = 3;
    REGISTER(DRIVER_FEATURES_SEL) = 0;
    REGISTER(DRIVER_FEATURES) = 0;
    REGISTER(DRIVER_FEATURES_SEL) = 1;
    REGISTER(DRIVER_FEATURES) = 1; /* VERSION_1 */
    REGISTER(STATUS) = 11;
    if (REGISTER(STATUS) != 11)
        fail("the device does not agree to the features");
    set_up_queue(0, &no_buffers, &no_frames);
    set_up_queue(TX, &avail, &used);
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
        REGISTER(QUEUE_NOTIFY) = TX;
}

__attribute__((used)) void guest(u8 *zero_page)
{
    const char *line = (const char *)(u64)*(u32 *)(zero_page + 0x228);
    u32 size = option(line, "size="), depth = option(line, "depth=");
    u64 batches = option(line, "batches=");
    if (size < 14 || size > PLACE - HEADER || !depth || depth > MAX_DEPTH || depth & (depth - 1) || !batches)
        fail("the command line has no size, depth or batches");
    set_up(depth, size);

    /* Two halves take turns, so that the device always has one; a ring of one has one. */
    u16 half = depth > 1 ? depth / 2 : 1, done = 0;
    print("begin\n");
    submit(half);
    for (u64 i = 1; i < batches; i++) {
        if (depth > 1)
            submit(half);
        done += half;
        while ((u16)(used.idx - done) >= 0x8000)
            ;
        if (depth == 1)
            submit(half);
    }
    done += half;
    while ((u16)(used.idx - done) >= 0x8000)
        ;
    print("end\n");
    print("PASS\n");
    power_off();
}
