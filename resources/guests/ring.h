/*
 * Virtio's split rings, and the numbers that its devices and drivers say to each other. Virtio 1.2, 2.1, 2.7, 4.2.2 and 5. Whoever
 * includes this has defined SIZE before, the descriptors of a queue.
 */

/* Registers of virtio-mmio. */
#define MAGIC 0x000
#define MAGIC_VALUE 0x74726976
#define VERSION 0x004
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
