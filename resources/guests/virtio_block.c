/*
 * Drives the first virtio device, a disk, by polled rings: `op=r|w size=BYTES depth=N batches=N` on the command line asks for
 * that many half-rings of requests, each of which goes to its own place on the disk; `whole=1` for whole rings, one after the
 * other, for a device that does not answer in order. Prints `begin`, then `end`, then `PASS`, or
 * `FAIL` and why, and powers off. What it writes are bytes 0x5a.
 *
 * `op=n first=N slots=N` writes numbered blocks of 4096 bytes for ever, each to its place (its number modulo the slots), all
 * eight-byte words of it its number, flushes the disk after each, and then prints the number on a line, in hexadecimal.
 *
 * The rings are filled before the first request, so that a batch costs the guest a handful of instructions. Virtio 1.2, 5.2.
 */
#define SIZE 256
#include "virtio.h"

#define MAX_DEPTH 64
#define BLOCK 4096
#define T_FLUSH 4

static struct desc descs[SIZE] __attribute__((aligned(4096)));
static struct avail avail __attribute__((aligned(4096)));
static volatile struct used used __attribute__((aligned(4096)));
static struct block_header headers[MAX_DEPTH];
static volatile u8 status[MAX_DEPTH];
#define DATA 0x1000000UL

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

    if (REGISTER(FIRST_SLOT, MAGIC) != MAGIC_VALUE || REGISTER(FIRST_SLOT, DEVICE_ID) != ID_BLOCK)
        fail("the first virtio device is no disk");
    if (!negotiate(FIRST_SLOT, VERSION_1 | 1 << 9)) /* FLUSH */
        fail("the device does not agree to the features");
    set_up_queue(FIRST_SLOT, 0, descs, &avail, &used);
    if (!start(FIRST_SLOT))
        fail("the device does not start");
}

static void submit(u16 count)
{
    *(volatile u16 *)&avail.idx += count;
    /* The index must be there before the device's wish is read. */
    barrier();
    if (!(used.flags & NO_NOTIFY))
        REGISTER(FIRST_SLOT, QUEUE_NOTIFY) = 0;
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
    const char *line = command_line(zero_page);
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
