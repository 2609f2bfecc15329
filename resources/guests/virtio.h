/*
 * What the guests that drive virtio-mmio devices by polled rings have in common: registers, rings, the steps of a driver, and
 * a handful of routines. Virtio 1.2, 2.7 and 4.2. A guest defines SIZE, the descriptors of its queues, and then includes this.
 *
 * Such a guest is entered by the 64-bit Linux protocol, at `guest`, with the zero page. It is compiled for general registers
 * only: a KVM in software has no others.
 */
#include "freestanding.h"

/* The slots of virtio-mmio devices, and as many as there can be. */
#define FIRST_SLOT 0xc0000000UL
#define SLOT_SIZE 0x1000UL
#define MAX_SLOTS 18

#define REGISTER(base, offset) (*(volatile u32 *)((base) + (offset)))

#include "ring.h"

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

static inline const char *command_line(const u8 *zero_page)
{
    return (const char *)(u64) * (const u32 *)(zero_page + 0x228);
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
