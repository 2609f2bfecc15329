/*
 * Sends frames by the first virtio device, a network interface, from a polled ring: `size=BYTES depth=N batches=N` on the command
 * line asks for that many half-rings of frames. Prints `begin`, then `end`, then `PASS`, or `FAIL` and why, and powers off.
 *
 * The ring is filled before the first frame, so that a batch costs the guest a handful of instructions. Virtio 1.2, 5.1.
 */
#define SIZE 256
#include "virtio.h"

#define MAX_DEPTH 64

static struct desc descs[SIZE] __attribute__((aligned(4096)));
static struct avail avail __attribute__((aligned(4096)));
static volatile struct used used __attribute__((aligned(4096)));
static struct avail no_buffers __attribute__((aligned(4096)));
static struct used no_frames __attribute__((aligned(4096)));
#define DATA 0x1000000UL
/* The room of a frame. */
#define PLACE 0x10000UL
#define HEADER 12
#define TX 1

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

    if (REGISTER(FIRST_SLOT, MAGIC) != MAGIC_VALUE || REGISTER(FIRST_SLOT, DEVICE_ID) != ID_NET)
        fail("the first virtio device is no network");
    if (!negotiate(FIRST_SLOT, VERSION_1))
        fail("the device does not agree to the features");
    set_up_queue(FIRST_SLOT, 0, descs, &no_buffers, &no_frames);
    set_up_queue(FIRST_SLOT, TX, descs, &avail, &used);
    if (!start(FIRST_SLOT))
        fail("the device does not start");
}

static void submit(u16 count)
{
    *(volatile u16 *)&avail.idx += count;
    /* The index must be there before the device's wish is read. */
    barrier();
    if (!(used.flags & NO_NOTIFY))
        REGISTER(FIRST_SLOT, QUEUE_NOTIFY) = TX;
}

__attribute__((used)) void guest(u8 *zero_page)
{
    const char *line = command_line(zero_page);
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
