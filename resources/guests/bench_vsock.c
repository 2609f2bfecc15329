/*
 * Streams bytes between the guest and port 1234 of the host (CID 2), to which it connects. On the command line:
 *
 *   op=s bytes=N size=BYTES depth=N   sends them, in packets of that size, and waits until the host has closed the connection
 *   op=r bytes=N size=BYTES depth=N   receives them, into buffers of that size, and closes the connection
 *
 * Prints `begin` when the connection is there, `end`, and `PASS` or `FAIL` and why, and ends.
 *
 * The packets to be sent lie in the ring before the first, all alike, so that one costs the guest next to nothing; they go in halves
 * of the ring, or less where the host does not give credit for as much. The device is taken to use its rings in order: all of them
 * move a stream. Virtio 1.2, 5.10.
 */
#include "bench.h"
#include "bench_virtio.h"

#define RX 0
#define TX 1
#define EVENTS 2
#define HOST 2
#define HOST_PORT 1234
#define GUEST_PORT 1024
#define STREAM 1
#define OP_REQUEST 1
#define OP_RESPONSE 2
#define OP_RST 3
#define OP_SHUTDOWN 4
#define OP_RW 5
#define OP_CREDIT_UPDATE 6
#define OP_CREDIT_REQUEST 7

/* What the host may send before it hears of more room. The guest takes a packet as soon as it is there. */
#define ROOM 0x100000
#define TELL 0x40000
/* How often the guest looks for credit before it asks for it. */
#define PATIENCE 0x4000

#define MAX_DEPTH 64
/* Buffers for what the host says while the guest sends. */
#define FEW 16
#define SEND_DATA 0x1000000UL
#define RECEIVE_DATA 0x3000000UL
#define MAX_SIZE 0x10000UL

struct header {
    u64 src_cid, dst_cid;
    u32 src_port, dst_port, len;
    u16 type, op;
    u32 flags, buf_alloc, fwd_cnt;
} __attribute__((packed));

static struct queue rx, tx, events;
static struct header rx_headers[MAX_DEPTH], tx_headers[MAX_DEPTH], control_header;
static u64 guest_cid;
/* Chains of two descriptors in either ring; the control packet's descriptor comes after those of the tx ring. */
static u32 rx_depth, tx_depth;

/* What the packets from the host have said. */
static u16 rx_done, rx_owed;
static int connected, closed;
static u32 host_room, host_taken, told;
static u64 received;

static struct header packet(u16 op, u32 len)
{
    return (struct header){ guest_cid, HOST, GUEST_PORT, HOST_PORT, len, STREAM, op, 0, ROOM, received };
}

/* Sends a packet without data, when all before it are gone. */
static void control(u16 op)
{
    wait_for(&tx, tx.avail.idx);
    control_header = packet(op, 0);
    u16 at = tx.avail.idx & (tx.size - 1);
    tx.avail.ring[at] = tx_depth * 2;
    submit(&tx, 1);
    wait_for(&tx, tx.avail.idx);
    tx.avail.ring[at] = at % tx_depth * 2;
}

/* Looks at what has come. Buffers go back as soon as `batch` of them are free. */
static void receive(u16 batch)
{
    while (rx.used.idx != rx_done) {
        const struct header *header = &rx_headers[rx.used.ring[rx_done & (rx.size - 1)].id / 2];
        switch (header->op) {
        case OP_RESPONSE:
            connected = 1;
            break;
        case OP_RST:
        case OP_SHUTDOWN:
            closed = 1;
            break;
        case OP_RW:
            received += header->len;
            break;
        }
        host_room = header->buf_alloc;
        host_taken = header->fwd_cnt;
        int asked = header->op == OP_CREDIT_REQUEST;
        rx_done++;
        if (++rx_owed == batch) {
            submit(&rx, rx_owed);
            rx_owed = 0;
        }
        if (asked || (u32)received - told >= TELL) {
            told = received;
            control(OP_CREDIT_UPDATE);
        }
    }
}

static void set_up(u32 size)
{
    struct device device = find_device(ID_VSOCK);
    negotiate(&device, 0);
    guest_cid = R32(device.config) | (u64)R32(device.config + 4) << 32;
    set_up_queue(&device, &rx, RX);
    set_up_queue(&device, &tx, TX);
    set_up_queue(&device, &events, EVENTS);
    if (rx_depth * 2 > rx.size || tx_depth * 2 + 1 > tx.size)
        fail("the device's queues are too short for this depth");
    for (u32 i = 0; i < rx_depth; i++) {
        rx.descs[i * 2] = (struct desc){ (u64)&rx_headers[i], sizeof rx_headers[i], F_NEXT | F_WRITE, i * 2 + 1 };
        rx.descs[i * 2 + 1] = (struct desc){ RECEIVE_DATA + i * MAX_SIZE, size, F_WRITE, 0 };
    }
    for (u32 i = 0; i < tx_depth; i++) {
        tx_headers[i] = packet(OP_RW, size);
        tx.descs[i * 2] = (struct desc){ (u64)&tx_headers[i], sizeof tx_headers[i], F_NEXT, i * 2 + 1 };
        tx.descs[i * 2 + 1] = (struct desc){ SEND_DATA + i * MAX_SIZE, size, 0, 0 };
        /* Memory that nobody has written to is one page of zeroes, which the host copies out of its first cache. */
        for (u32 byte = 0; byte < size; byte += 4096)
            *(volatile u8 *)(SEND_DATA + i * MAX_SIZE + byte) = 0x5a;
    }
    tx.descs[tx_depth * 2] = (struct desc){ (u64)&control_header, sizeof control_header, 0, 0 };
    for (u32 i = 0; i < rx.size; i++)
        rx.avail.ring[i] = i % rx_depth * 2;
    for (u32 i = 0; i < tx.size; i++)
        tx.avail.ring[i] = i % tx_depth * 2;
    start(&device);
    submit(&rx, rx_depth);
}

static void send(u64 bytes, u32 size)
{
    u16 half = tx_depth > 1 ? tx_depth / 2 : 1;
    /* Who waits for the whole room, waits until the host tells of its last byte, and it need not do that by itself. */
    while (half > 1 && half * size > host_room / 2)
        half /= 2;
    if (size > host_room)
        fail("the host has no room for a packet of this size");
    u64 packets = (bytes + size - 1) / size;
    u32 sent = 0;
    while (packets) {
        u16 count = packets < half ? packets : half;
        wait_for(&tx, tx.avail.idx + count - tx_depth);
        for (u32 looks = 0; host_room - (sent - host_taken) < count * size; looks++) {
            receive(1);
            if (closed)
                fail("the host has closed the connection too soon");
            if (looks == PATIENCE) {
                control(OP_CREDIT_REQUEST);
                looks = 0;
            }
        }
        submit(&tx, count);
        sent += count * size;
        packets -= count;
    }
    while (!closed)
        receive(1);
}

__attribute__((used)) void guest(const u8 *start_info)
{
    const char *line = command_line(start_info);
    u64 op = option(line, "op="), bytes = option(line, "bytes=");
    u32 size = option(line, "size="), depth = option(line, "depth=");
    if (op != 's' && op != 'r')
        fail("op= is none of s, r");
    if (!bytes || !size || size > MAX_SIZE || !depth || depth > MAX_DEPTH || depth & (depth - 1))
        fail("the command line has no bytes, size or depth");
    rx_depth = op == 'r' ? depth : FEW;
    tx_depth = op == 's' ? depth : 1;
    set_up(size);

    control(OP_REQUEST);
    while (!connected && !closed)
        receive(1);
    if (!connected)
        fail("nobody listens at the host's port");
    print("begin\n");
    if (op == 's') {
        send(bytes, size);
    } else {
        while (received < bytes && !closed)
            receive(rx_depth > 1 ? rx_depth / 2 : 1);
        if (received < bytes)
            fail("the host has closed the connection too soon");
    }
    print("end\n");
    if (!closed)
        control(OP_RST);
    pass();
}
