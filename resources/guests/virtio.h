/*
 * What the guests that drive virtio-mmio devices by polled rings have in common: registers, rings, the steps of a driver, and
 * a handful of routines. Virtio 1.2, 2.7 and 4.2. A guest defines SIZE, the descriptors of its queues, and then includes this.
 *
 * Such a guest is entered by the 64-bit Linux protocol, at `guest`, with the zero page. It is compiled for general registers
 * only: a KVM in software has no others.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

/* The slots of virtio-mmio devices, and as many as there can be. */
#define FIRST_SLOT 0xc0000000UL
#define SLOT_SIZE 0x1000UL
#define MAX_SLOTS 18

#define REGISTER(base, offset) (*(volatile u32 *)((base) + (offset)))
#define MAGIC 0x000
#define MAGIC_VALUE 0x74726976
#define DEVICE_ID 0x008
#define DEVICE_FEATURES 0x010
#define DEVICE_FEATURES_SEL 0x014
#define DRIVER_FEATURES 0x020
#define DRIVER_FEATURES_SEL 0x024
#define QUEUE_SEL 0x030
#define QUEUE_NUM_MAX 0x034
#define QUEUE_NUM 0x038
#define QUEUE_READY 0x044
#define QUEUE_NOTIFY 0x050
#define INTERRUPT_STATUS 0x060
#define STATUS 0x070
#define QUEUE_DESC 0x080
#define QUEUE_DRIVER 0x090
#define QUEUE_DEVICE 0x0a0
#define CONFIG 0x100

#define ID_NET 1
#define ID_BLOCK 2
#define ID_CONSOLE 3
#define ID_RNG 4
#define ID_VSOCK 19

#define ACKNOWLEDGE 1
#define DRIVER 2
#define DRIVER_OK 4
#define FEATURES_OK 8
#define NEEDS_RESET 64

#define VERSION_1 (1UL << 32)
#define INDIRECT_DESC (1UL << 28)

#define F_NEXT 1
#define F_WRITE 2
#define F_INDIRECT 4
#define NO_NOTIFY 1
#define NO_INTERRUPT 1

struct desc {
    u64 address;
    u32 len;
    u16 flags, next;
};

struct avail {
    u16 flags, idx, ring[SIZE], used_event;
};

struct used {
    u16 flags, idx;
    struct { u32 id, len; } ring[SIZE];
    u16 avail_event;
};

/* The header of a disk's request, 5.2.6. */
struct block_header {
    u32 type, reserved;
    u64 sector;
};

static u8 stack[16384] __attribute__((aligned(16), used));

asm(".section .text.start, \"ax\"\n"
    ".globl _start\n"
    "_start: mov $stack + 16384, %rsp\n"
    "mov %rsi, %rdi\n"
    "call guest\n"
    ".text\n");

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

static inline void fail(const char *why)
{
    print("FAIL ");
    print(why);
    print("\n");
    power_off();
}

/* What was written is there before what follows is read. */
static inline void barrier(void)
{
    asm volatile("lock orl $0, (%%rsp)" : : : "memory");
}

static inline const char *command_line(const u8 *zero_page)
{
    return (const char *)(u64) * (const u32 *)(zero_page + 0x228);
}

/* The number behind `name` on the command line; letters count as themselves. */
static inline u64 option(const char *line, const char *name)
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

static inline u64 offered(u64 base)
{
    REGISTER(base, DEVICE_FEATURES_SEL) = 0;
    u64 low = REGISTER(base, DEVICE_FEATURES);
    REGISTER(base, DEVICE_FEATURES_SEL) = 1;
    return low | (u64)REGISTER(base, DEVICE_FEATURES) << 32;
}

static inline void accept(u64 base, u64 features)
{
    REGISTER(base, DRIVER_FEATURES_SEL) = 0;
    REGISTER(base, DRIVER_FEATURES) = features;
    REGISTER(base, DRIVER_FEATURES_SEL) = 1;
    REGISTER(base, DRIVER_FEATURES) = features >> 32;
}

/* From reset to FEATURES_OK; whether the device agrees. */
static inline int negotiate(u64 base, u64 features)
{
    REGISTER(base, STATUS) = 0;
    REGISTER(base, STATUS) = ACKNOWLEDGE;
    REGISTER(base, STATUS) = ACKNOWLEDGE | DRIVER;
    accept(base, features);
    REGISTER(base, STATUS) = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    return REGISTER(base, STATUS) == (ACKNOWLEDGE | DRIVER | FEATURES_OK);
}

static inline void set_up_queue(u64 base, u32 queue, const void *descs, const void *avail, const volatile void *used)
{
    REGISTER(base, QUEUE_SEL) = queue;
    REGISTER(base, QUEUE_NUM) = SIZE;
    REGISTER(base, QUEUE_DESC) = (u64)descs;
    REGISTER(base, QUEUE_DESC + 4) = 0;
    REGISTER(base, QUEUE_DRIVER) = (u64)avail;
    REGISTER(base, QUEUE_DRIVER + 4) = 0;
    REGISTER(base, QUEUE_DEVICE) = (u64)used;
    REGISTER(base, QUEUE_DEVICE + 4) = 0;
    REGISTER(base, QUEUE_READY) = 1;
}

/* DRIVER_OK; whether the device works. */
static inline int start(u64 base)
{
    u32 all = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    REGISTER(base, STATUS) = all;
    return REGISTER(base, STATUS) == all;
}
