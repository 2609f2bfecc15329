/*
 * The driver of virtio_hostile.c as long as it behaves: finds the devices, sets them up, proves that each does its work. A new
 * device is one row in `kinds` and what proves it.
 */
#define SIZE 16
#include "virtio.h"

#define QUEUES 3
/* Polls after which something counts as not happening. */
#define PATIENCE 8000000

struct rings {
    struct desc descs[SIZE];
    struct avail avail;
    volatile struct used used __attribute__((aligned(4)));
} __attribute__((aligned(4096)));

struct device {
    u64 base, features;
    const struct kind *kind;
    u32 number, queues;
    u16 index[QUEUES], seen[QUEUES];
    struct rings *rings;
    /* What the device itself needs of memory: a page for what it is given, a page for what it gives. */
    volatile u8 *out, *in;
};

struct kind {
    u32 id;
    const char *name;
    u32 queues;
    /* Those of which the device takes chains at once, whatever the host does: a bit for each. */
    u32 busy_queues;
    u64 features;
    /* Has the device do its work; whether it did. */
    int (*prove)(struct device *);
};

/* What the host put on the disk: each byte of sector n is n + 1. This one is written to, to see that it works. */
#define WRITTEN_SECTOR 2
#define SECTOR 512

#define BLOCK_IN 0
#define BLOCK_OUT 1
#define BLOCK_RO (1 << 5)

struct net_header {
    u8 flags, gso_type;
    u16 hdr_len, gso_size, csum_start, csum_offset, num_buffers;
} __attribute__((packed));

#define NET_MRG_RXBUF (1 << 15)
#define RX 0
#define TX 1
#define FRAME 60

struct vsock_header {
    u64 src_cid, dst_cid;
    u32 src_port, dst_port, len;
    u16 type, op;
    u32 flags, buf_alloc, fwd_cnt;
} __attribute__((packed));

#define VSOCK_REQUEST 1
#define VSOCK_RST 3
#define VSOCK_BUFFERS 8
#define VSOCK_BUFFER 256
#define NOBODYS_PORT 9

static struct rings all_rings[MAX_SLOTS][QUEUES];
static u8 pages[MAX_SLOTS][2][4096] __attribute__((aligned(4096)));
static struct device devices[MAX_SLOTS];
static u32 device_count;

static void print_number(u64 value)
{
    char text[24];
    u32 at = sizeof text;
    text[--at] = 0;
    do
        text[--at] = '0' + value % 10;
    while (value /= 10);
    print(text + at);
}

/* By eight bytes where it can be: a KVM in software may take a microsecond for an instruction. */
static __attribute__((noinline)) void fill(volatile u8 *at, u8 byte, u64 len)
{
    u64 i = 0;
    for (; (u64)at % 8 == 0 && i + 8 <= len; i += 8)
        *(volatile u64 *)(at + i) = byte * 0x0101010101010101UL;
    for (; i < len; i++)
        at[i] = byte;
}

static int all_are(const volatile u8 *at, u8 byte, u64 len)
{
    u64 i = 0;
    for (; (u64)at % 8 == 0 && i + 8 <= len; i += 8)
        if (*(volatile u64 *)(at + i) != byte * 0x0101010101010101UL)
            return 0;
    for (; i < len; i++)
        if (at[i] != byte)
            return 0;
    return 1;
}

static void put(struct device *d, u32 queue, u16 index, u64 address, u32 len, u16 flags, u16 next)
{
    d->rings[queue].descs[index] = (struct desc){ address, len, flags, next };
}

/* Makes a chain available. */
static void offer(struct device *d, u32 queue, u16 head)
{
    struct rings *rings = &d->rings[queue];
    *(volatile u16 *)&rings->avail.ring[d->index[queue]++ % SIZE] = head;
    *(volatile u16 *)&rings->avail.idx = d->index[queue];
    barrier();
}

static void notify(struct device *d, u32 queue)
{
    REGISTER(d->base, QUEUE_NOTIFY) = queue;
}

static int has_used(struct device *d, u32 queue)
{
    return d->rings[queue].used.idx != d->seen[queue];
}

static int needs_reset(struct device *d)
{
    return REGISTER(d->base, STATUS) & NEEDS_RESET;
}

/* Between two polls: 0 once they were enough. Now and then it leaves the guest, or the device might wait for a processor. */
static int patience(struct device *d, u64 *polls)
{
    if (*polls % 64 == 0)
        needs_reset(d);
    return ++*polls < PATIENCE;
}

/* Waits until a chain has been given back; its length written is put to `len`. */
static int take(struct device *d, u32 queue, u32 *len)
{
    u64 polls = 0;
    while (!has_used(d, queue))
        if (!patience(d, &polls))
            return 0;
    *len = d->rings[queue].used.ring[d->seen[queue]++ % SIZE].len;
    return 1;
}

static int send_and_take(struct device *d, u32 queue, u16 head, u32 *len)
{
    offer(d, queue, head);
    notify(d, queue);
    return take(d, queue, len);
}

static int is_read_only(struct device *d)
{
    return d->kind->id == ID_BLOCK && offered(d->base) & BLOCK_RO;
}

/* Lays out a request of one readable and one writable buffer; its status is the byte behind the latter. */
static void block_request(struct device *d, u32 type, u64 sector, u32 readable, u32 writable)
{
    volatile struct block_header *header = (volatile void *)d->out;
    header->type = type;
    header->reserved = 0;
    header->sector = sector;
    put(d, 0, 0, (u64)d->out, sizeof *header + readable, F_NEXT, 1);
    put(d, 0, 1, (u64)d->in, writable + 1, F_WRITE, 0);
    d->in[writable] = 0xff;
}

static int prove_block(struct device *d)
{
    u32 len;
    fill(d->in, 0xff, SECTOR);
    block_request(d, BLOCK_IN, 0, 0, SECTOR);
    if (!send_and_take(d, 0, 0, &len) || len != SECTOR + 1 || d->in[SECTOR] || !all_are(d->in, 1, SECTOR))
        return 0;
    if (is_read_only(d))
        return 1;
    static u8 mark;
    fill(d->out + sizeof(struct block_header), ++mark, SECTOR);
    block_request(d, BLOCK_OUT, WRITTEN_SECTOR, SECTOR, 0);
    if (!send_and_take(d, 0, 0, &len) || d->in[0])
        return 0;
    block_request(d, BLOCK_IN, WRITTEN_SECTOR, 0, SECTOR);
    return send_and_take(d, 0, 0, &len) && !d->in[SECTOR] && all_are(d->in, mark, SECTOR);
}

static int prove_rng(struct device *d)
{
    u32 len;
    fill(d->in, 0, 64);
    put(d, 0, 0, (u64)d->in, 64, F_WRITE, 0);
    return send_and_take(d, 0, 0, &len) && len == 64 && !all_are(d->in, 0, 64);
}

/* A frame of `len` bytes, its header aside, from the station itself to all. */
static void net_frame(struct device *d, u32 len)
{
    fill(d->out, 0, sizeof(struct net_header));
    fill(d->out + sizeof(struct net_header), 0xff, 6);
    fill(d->out + sizeof(struct net_header) + 6, 2, 6);
    put(d, TX, 0, (u64)d->out, sizeof(struct net_header) + len, 0, 0);
}

static int prove_net(struct device *d)
{
    u32 len;
    net_frame(d, FRAME);
    return send_and_take(d, TX, 0, &len) && len == 0;
}

static int prove_console(struct device *d)
{
    u32 len;
    d->out[0] = '.';
    put(d, TX, 0, (u64)d->out, 1, 0, 0);
    return send_and_take(d, TX, 0, &len) && len == 0;
}

static volatile struct vsock_header *vsock_packet(struct device *d, u16 op)
{
    volatile struct vsock_header *header = (volatile void *)d->out;
    fill(d->out, 0, sizeof *header);
    header->src_cid = *(volatile u32 *)(d->base + CONFIG);
    header->dst_cid = 2;
    header->src_port = 1000;
    header->dst_port = NOBODYS_PORT;
    header->type = 1;
    header->op = op;
    header->buf_alloc = 1 << 16;
    put(d, TX, 0, (u64)d->out, sizeof *header, 0, 0);
    return header;
}

static void give_buffer(struct device *d, u16 index)
{
    put(d, RX, index, (u64)d->in + index * VSOCK_BUFFER, VSOCK_BUFFER, F_WRITE, 0);
    offer(d, RX, index);
}

/* Takes a packet of the host's; its operation, or 0. */
static u32 vsock_take(struct device *d)
{
    struct rings *rings = &d->rings[RX];
    u32 len, entry = d->seen[RX] % SIZE;
    if (!take(d, RX, &len))
        return 0;
    u16 index = rings->used.ring[entry].id;
    if (len < sizeof(struct vsock_header) || index >= VSOCK_BUFFERS)
        return 0;
    u32 op = ((volatile struct vsock_header *)(d->in + index * VSOCK_BUFFER))->op;
    give_buffer(d, index);
    return op;
}

static int prove_vsock(struct device *d)
{
    u32 len;
    if (d->index[RX] == 0)
        for (u16 i = 0; i < VSOCK_BUFFERS; i++)
            give_buffer(d, i);
    vsock_packet(d, VSOCK_REQUEST);
    return send_and_take(d, TX, 0, &len) && vsock_take(d) == VSOCK_RST;
}

static const struct kind kinds[] = {
    { ID_NET, "net", 2, 1 << RX | 1 << TX, NET_MRG_RXBUF, prove_net },
    { ID_BLOCK, "block", 1, 1, 1 << 9 /* FLUSH */, prove_block },
    { ID_RNG, "rng", 1, 1, 0, prove_rng },
    { ID_CONSOLE, "console", 2, 1 << TX, 0, prove_console },
    { ID_VSOCK, "vsock", 3, 1 << RX | 1 << TX, 0, prove_vsock },
};

static int features_agreed(struct device *d)
{
    return negotiate(d->base, (d->kind->features | INDIRECT_DESC | VERSION_1) & d->features);
}

static void clear_rings(struct device *d)
{
    for (u32 queue = 0; queue < d->queues; queue++) {
        struct rings *rings = &d->rings[queue];
        fill((volatile u8 *)rings, 0, (u64)(&rings->used + 1) - (u64)rings);
        d->index[queue] = d->seen[queue] = 0;
    }
}

/* From reset to DRIVER_OK. */
static int set_up(struct device *d)
{
    int agreed = features_agreed(d);
    clear_rings(d);
    for (u32 queue = 0; queue < d->queues; queue++) {
        struct rings *rings = &d->rings[queue];
        set_up_queue(d->base, queue, rings->descs, &rings->avail, &rings->used);
    }
    return agreed && start(d->base);
}

static int works(struct device *d)
{
    return d->kind->prove(d) && !needs_reset(d);
}

static int others_work(struct device *d)
{
    for (u32 i = 0; i < device_count; i++)
        if (&devices[i] != d && !works(&devices[i]))
            return 0;
    return 1;
}

static void print_device(struct device *d)
{
    print(d->kind->name);
    /* The second of a kind and those after it have a number. */
    if (d->number) {
        print("-");
        print_number(d->number);
    }
}

static void find_devices(void)
{
    for (u32 slot = 0; slot < MAX_SLOTS; slot++) {
        u64 base = FIRST_SLOT + slot * SLOT_SIZE;
        if (REGISTER(base, MAGIC) != MAGIC_VALUE)
            continue;
        for (u32 i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
            if (REGISTER(base, DEVICE_ID) != kinds[i].id)
                continue;
            struct device *d = &devices[device_count];
            *d = (struct device){ .base = base, .kind = &kinds[i], .queues = kinds[i].queues };
            d->features = offered(base);
            d->rings = all_rings[device_count];
            d->out = pages[device_count][0];
            d->in = pages[device_count][1];
            for (u32 other = 0; other < device_count; other++)
                d->number += devices[other].kind == d->kind;
            device_count++;
            print("found ");
            print_device(d);
            print("\n");
            if (!set_up(d) || !works(d))
                fail("a device does not work to begin with");
        }
    }
}
