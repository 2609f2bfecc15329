/*
 * Drives a disk by a polled ring. On the command line:
 *
 *   op=r|w|m      reads, writes, or both in turns
 *   size=BYTES    of a request; depth=N of them are with the device at most, a power of two; batches=N, see below
 *   whole=1       a batch is a whole ring, and the next one follows when all of it has come back
 *   any=1         half-rings, in whatever order the device answers
 *   random=1      the requests' places are scattered over the first span=BYTES of the disk (64 of them, if no more are in flight);
 *   random=2      and are others in each batch
 *
 * Prints `begin`, `end`, and `PASS` or `FAIL` and why, and ends. What it writes are bytes 0x5a.
 *
 * A batch is half the depth: two halves take turns, so that the device always has one. (With a depth of 1, or `whole`, it is all.)
 * The rings are filled before the first request, so that a batch costs the guest a handful of instructions; the guest looks at the
 * used ring's index alone. That is right only for a device that answers in order: another could still hold a chain of the first
 * half when the guest, having counted as many answers, hands it out again. So the last answer of each batch is checked, and the
 * guest fails on one that is out of order. For such devices there are two modes. `whole` costs the guest no more, and gives the
 * device a pause after each batch. `any` takes the chains that came back from the used ring, which costs a few instructions a
 * request: nothing on a processor, but microseconds on a KVM in software. To compare VMMs, use one mode for all: half-rings where
 * all answer in order, as they do where a thread does blocking reads, else `any`, or `whole` on a KVM in software.
 */
#include "bench.h"
#include "bench_virtio.h"

#define MAX_CHAINS 128
/* Chains of a scattered load with less in flight: more places. */
#define SCATTERED 64
/* Places for random=2. */
#define PLACES 4096
#define SECTOR 512
#define DATA 0x1000000UL

/* The header of a request, 5.2.6. */
struct header {
    u32 type, reserved;
    u64 sector;
};

static struct queue queue;
static struct header headers[MAX_CHAINS];
static volatile u8 status[MAX_CHAINS];
static u64 places[PLACES];
/* Where a ring has no room for the three descriptors of each chain, they lie here, and the ring has one for each. */
static struct desc tables[MAX_CHAINS][3] __attribute__((aligned(16)));
/* From one chain's head to the next one's. */
static u32 stride = 3;

static u64 random(void)
{
    static u64 state = 0x9e3779b97f4a7c15;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static void set_up(u32 chains, u32 size, u64 op, int scattered, u64 span)
{
    struct device device = find_device(ID_BLOCK);
    /* FLUSH, else the device may write through; RO, of a read-only one */
    u64 features = negotiate(&device, 1 << 9 | 1 << 5 | INDIRECT_DESC);
    set_up_queue(&device, &queue, 0);
    int indirect = chains * 3 > queue.size;
    if (indirect && (!(features & INDIRECT_DESC) || chains > queue.size))
        fail("the device's queue is too short for this depth");
    if (indirect)
        stride = 1;

    u64 fitting = span / size;
    if (scattered) {
        for (u32 i = 0; i < PLACES; i++)
            places[i] = random() % fitting * (size / SECTOR);
    }
    for (u32 i = 0; i < chains; i++) {
        struct desc *chain = indirect ? tables[i] : &queue.descs[i * 3];
        u16 first = indirect ? 0 : i * 3;
        int writes = op == 'w' || (op == 'm' && i & 1);
        headers[i].type = writes;
        headers[i].sector = scattered ? places[i] : (u64)i % fitting * (size / SECTOR);
        chain[0] = (struct desc){ (u64)&headers[i], sizeof headers[i], F_NEXT, first + 1 };
        chain[1] = (struct desc){ DATA + (u64)i * size, size, F_NEXT | (writes ? 0 : F_WRITE), first + 2 };
        chain[2] = (struct desc){ (u64)&status[i], 1, F_WRITE, 0 };
        status[i] = 0xff;
        if (indirect)
            queue.descs[i] = (struct desc){ (u64)tables[i], sizeof tables[i], F_INDIRECT, 0 };
    }
    for (u32 i = 0; i < queue.size; i++)
        queue.avail.ring[i] = i % chains * stride;
    if (op != 'r') {
        for (u64 i = 0; i < (u64)chains * size; i += 8)
            *(u64 *)(DATA + i) = 0x5a5a5a5a5a5a5a5a;
    }
    start(&device);
}

/* The next batch of chains, from `first`, goes to other places. */
static void scatter(u32 first, u32 count)
{
    static u32 next = MAX_CHAINS;
    for (u32 i = first; i < first + count; i++)
        headers[i].sector = places[next++ % PLACES];
}

/* Half-rings with a device that answers in any order: what has come back is handed out again. */
static void in_any_order(u16 half, u64 batches, int fresh)
{
    u16 done = 0, given = half;
    static u32 next = MAX_CHAINS;
    submit(&queue, half);
    if (batches > 1) {
        submit(&queue, half);
        given += half;
    }
    for (u64 i = 2; i < batches; i++) {
        wait_for(&queue, done + half);
        for (u16 end = done + half; done != end; done++, given++) {
            u32 chain = queue.used.ring[done & (queue.size - 1)].id;
            queue.avail.ring[given & (queue.size - 1)] = chain;
            if (fresh)
                headers[chain / stride].sector = places[next++ % PLACES];
        }
        submit(&queue, half);
    }
    wait_for(&queue, given);
}

static void in_order(u16 batch, u64 batches, u32 chains, int whole, int fresh)
{
    /* `ahead` batches are with the device while the guest waits. */
    u64 ahead = whole ? 1 : 2;
    u32 first = 0;
    u16 done = 0;
    for (u64 i = 0; i < ahead && i < batches; i++)
        submit(&queue, batch);
    for (u64 i = 0; i < batches; i++) {
        done += batch;
        wait_for(&queue, done);
        u32 last = first + batch - 1;
        if (!whole && queue.used.ring[(done - 1) & (queue.size - 1)].id != last * stride)
            fail("the device does not answer in order: it wants whole=1 or any=1");
        if (i + ahead < batches) {
            if (fresh)
                scatter((first + batch * ahead) & (chains - 1), batch);
            submit(&queue, batch);
        }
        first = (first + batch) & (chains - 1);
    }
}

__attribute__((used)) void guest(const u8 *start)
{
    const char *line = command_line(start);
    u32 size = option(line, "size="), depth = option(line, "depth=");
    u64 batches = option(line, "batches="), span = option(line, "span="), op = option(line, "op=");
    u64 scattered = option(line, "random=");
    int any = option(line, "any=") && depth > 1, whole = depth == 1 || option(line, "whole=");
    if (!size || size % SECTOR || !depth || depth > MAX_CHAINS || depth & (depth - 1) || !batches)
        fail("the command line has no size, depth or batches");
    if (op != 'r' && op != 'w' && op != 'm')
        fail("op= is none of r, w, m");
    if (!span)
        span = (u64)MAX_CHAINS * size;
    if (span < size)
        fail("span= is less than a request");
    u32 chains = scattered && depth < SCATTERED && !any ? SCATTERED : depth;
    set_up(chains, size, op, !!scattered, span);

    u16 batch = whole ? depth : depth / 2;
    print("begin\n");
    if (any && !whole)
        in_any_order(batch, batches, scattered == 2);
    else
        in_order(batch, batches, chains, whole, scattered == 2);
    print("end\n");
    for (u32 i = 0; i < chains && i < batches * batch; i++)
        if (status[i])
            fail("a request has failed");
    pass();
}
