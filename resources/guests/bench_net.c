/*
 * Sends or receives frames by a network interface and a polled ring. On the command line:
 *
 *   op=s size=BYTES depth=N batches=N   sends that many half-rings of frames (whole ones with a depth of 1), to nobody
 *   op=r depth=N batches=N              waits for that many half-rings of frames of at most 2 KiB, whoever sends them
 *
 * Prints `begin` (for op=r when it is ready for the first frame), `end`, and `PASS` or `FAIL` and why, and ends.
 *
 * The rings are filled before the first frame, so that a batch costs the guest a handful of instructions. Half a ring goes back to
 * the device when all of it has been used, which is right as long as the device uses a ring in order; the last of each half is
 * looked at. Virtio 1.2, 5.1.
 */
#include "bench.h"
#include "bench_virtio.h"

#define RX 0
#define TX 1
/* Before each frame, without VIRTIO_NET_F_HASH_REPORT. */
#define HEADER 12
#define DATA 0x1000000UL
/* The room of a frame. */
#define SEND_PLACE 0x10000UL
#define RECEIVE_PLACE 0x800UL
#define MAX_DEPTH 256

static struct queue rx, tx;

static void fill(struct queue *queue, u32 depth, u64 place, u32 len, u16 flags)
{
    if (depth > queue->size)
        fail("the device's queue is too short for this depth");
    for (u32 i = 0; i < depth; i++)
        queue->descs[i] = (struct desc){ DATA + i * place, len, flags, 0 };
    for (u32 i = 0; i < queue->size; i++)
        queue->avail.ring[i] = i % depth;
}

static void write_frames(u32 depth, u32 size)
{
    for (u32 i = 0; i < depth; i++) {
        u8 *frame = (u8 *)(DATA + i * SEND_PLACE) + HEADER;
        /* Memory that nobody has written to is one page of zeroes, which the host copies out of its first cache. */
        for (u32 byte = 0; byte < size; byte += 4096)
            *(volatile u8 *)(frame + byte) = 0x5a;
        for (u32 byte = 0; byte < 6; byte++) {
            frame[byte] = 0xff;
            frame[6 + byte] = byte ? byte : 2;
        }
        /* For experiments on one's own network: nobody listens. */
        frame[12] = 0x88;
        frame[13] = 0xb5;
    }
}

__attribute__((used)) void guest(const u8 *start_info)
{
    const char *line = command_line(start_info);
    u64 op = option(line, "op="), batches = option(line, "batches=");
    u32 size = option(line, "size="), depth = option(line, "depth=");
    int sends = op == 's';
    if (!sends && op != 'r')
        fail("op= is none of s, r");
    if (!depth || depth > MAX_DEPTH || depth & (depth - 1) || !batches)
        fail("the command line has no depth or batches");
    if (sends && (size < 14 || size > SEND_PLACE - HEADER))
        fail("a frame has no such size");

    struct device device = find_device(ID_NET);
    negotiate(&device, 0);
    set_up_queue(&device, &rx, RX);
    set_up_queue(&device, &tx, TX);
    struct queue *queue = sends ? &tx : &rx;
    if (sends) {
        fill(queue, depth, SEND_PLACE, HEADER + size, 0);
        write_frames(depth, size);
    } else {
        fill(queue, depth, RECEIVE_PLACE, RECEIVE_PLACE, F_WRITE);
    }
    start(&device);

    /* Two halves take turns, so that the device always has one; a ring of one has one. */
    u16 half = depth > 1 ? depth / 2 : 1, done = 0;
    u64 ahead = depth > 1 ? 2 : 1;
    if (!sends)
        submit(queue, depth);
    print("begin\n");
    for (u64 i = 0; sends && i < ahead && i < batches; i++)
        submit(queue, half);
    for (u64 i = 0; i < batches; i++) {
        done += half;
        wait_for(queue, done);
        if (queue->used.ring[(done - 1) & (queue->size - 1)].id != ((done - 1) & (depth - 1)))
            fail("the device does not use the ring in order");
        if (!sends || i + ahead < batches)
            submit(queue, half);
    }
    print("end\n");
    pass();
}
