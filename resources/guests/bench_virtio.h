/*
 * Virtio devices over the transport that the VMM at hand has, driven by polled rings: virtio-mmio (Ampoule, Firecracker, QEMU's
 * microvm) or virtio-pci (alioth, Cloud Hypervisor, crosvm). Virtio 1.2, 2.7, 4.1 and 4.2. It comes after bench.h.
 *
 * `find_device` looks for a PCI function first: reading the configuration ports is harmless where there is no PCI. Then it looks
 * at the places where these VMMs have windows of virtio-mmio. After that the transports differ in nothing that is hot: a
 * notification is one store to an address that `set_up_queue` has found.
 *
 * All queues have interrupts off, which is the ring's flag; MSI-X stays off.
 */
/* The most descriptors of a queue; a device may have fewer. */
#define SIZE 512
#include "ring.h"

/* A virtqueue in memory, and where its device wants to hear of it. */
struct queue {
    struct desc descs[SIZE] __attribute__((aligned(4096)));
    struct avail avail __attribute__((aligned(4096)));
    volatile struct used used __attribute__((aligned(4096)));
    /* As many descriptors as it has in fact, a power of two. */
    u16 size;
    u16 index;
    /* The transport's word width for a notification differs. */
    int short_notify;
    u64 notify;
};

struct device {
    int pci;
    /* The registers of virtio-mmio, or the common configuration of virtio-pci. */
    u64 base;
    u64 config;
    u64 notify;
    u32 notify_step;
};

#define R8(address) (*(volatile u8 *)(address))
#define R16(address) (*(volatile u16 *)(address))
#define R32(address) (*(volatile u32 *)(address))

/* The common configuration of virtio-pci. */
#define PCI_DEVICE_FEATURES_SEL 0x00
#define PCI_DEVICE_FEATURES 0x04
#define PCI_DRIVER_FEATURES_SEL 0x08
#define PCI_DRIVER_FEATURES 0x0c
#define PCI_STATUS 0x14
#define PCI_QUEUE_SEL 0x16
#define PCI_QUEUE_SIZE 0x18
#define PCI_QUEUE_ENABLE 0x1c
#define PCI_QUEUE_NOTIFY_OFF 0x1e
#define PCI_QUEUE_DESC 0x20
#define PCI_QUEUE_DRIVER 0x28
#define PCI_QUEUE_DEVICE 0x30

static inline u32 pci_read(u32 slot, u32 offset)
{
    u32 value;
    asm volatile("outl %0, %1" : : "a"(0x80000000 | slot << 11 | offset), "Nd"((u16)0xcf8));
    asm volatile("inl %1, %0" : "=a"(value) : "Nd"((u16)0xcfc));
    return value;
}

/* In its own width, two bytes: alioth takes no other. */
static inline void pci_command(u32 slot, u16 command)
{
    asm volatile("outl %0, %1" : : "a"(0x80000000 | slot << 11 | 4), "Nd"((u16)0xcf8));
    asm volatile("outw %0, %1" : : "a"(command), "Nd"((u16)0xcfc));
}

extern u64 pml4[512];

/* Adds the 2 MiB page with this address to the identity map. */
static inline void map(u64 address)
{
    static u64 tables[8][512] __attribute__((aligned(4096)));
    static u32 taken;
    u64 *table = pml4;
    for (int shift = 39; shift > 21; shift -= 9) {
        u64 *entry = &table[address >> shift & 511];
        if (!*entry) {
            if (taken == 8)
                fail("no room for page tables");
            *entry = (u64)tables[taken++] + 3;
        }
        table = (u64 *)(*entry & ~0xfffUL);
    }
    table[address >> 21 & 511] = (address & ~0x1fffffUL) | 0x83;
}

/* Where a BAR lies; the VMM, or its firmware, has given it a place. */
static inline u64 bar(u32 slot, u32 number)
{
    u32 low = pci_read(slot, 0x10 + number * 4);
    u64 address = low & ~0xfU;
    if ((low & 6) == 4)
        address |= (u64)pci_read(slot, 0x14 + number * 4) << 32;
    if (!address || low & 1)
        fail("a BAR of the device is not in memory");
    return address;
}

/* Walks the capabilities of a virtio function. */
static inline void pci_device(u32 slot, struct device *device)
{
    device->pci = 1;
    pci_command(slot, pci_read(slot, 4) | 6); /* memory space, bus master */
    for (u32 at = pci_read(slot, 0x34) & 0xfc; at; ) {
        u32 head = pci_read(slot, at);
        if ((head & 0xff) == 9) {
            u32 type = head >> 24;
            u64 place = 0;
            if (type == 1 || type == 2 || type == 4) {
                place = bar(slot, pci_read(slot, at + 4) & 7) + pci_read(slot, at + 8);
                map(place);
            }
            if (type == 1) {
                device->base = place;
            } else if (type == 2) {
                device->notify = place;
                device->notify_step = pci_read(slot, at + 16);
            } else if (type == 4) {
                device->config = place;
            }
        }
        at = head >> 8 & 0xfc;
    }
    if (!device->base || !device->notify)
        fail("the device lacks a capability of virtio 1");
}

/* The first device of that kind. */
static inline struct device find_device(u32 id)
{
    struct device device = { 0 };
    for (u32 slot = 0; slot < 32; slot++) {
        if (pci_read(slot, 0) == (0x1af4 | (0x1040 + id) << 16)) {
            pci_device(slot, &device);
            return device;
        }
    }
    /* Ampoule's and Firecracker's; QEMU's microvm, which fills its windows from the last. */
    static const struct { u64 base; u32 step, count; } windows[] = {
        { 0xc0000000, 0x1000, 24 },
        { 0xfeb00000, 0x200, 32 },
    };
    for (int i = 0; i < 2; i++) {
        for (u32 window = 0; window < windows[i].count; window++) {
            u64 base = windows[i].base + window * windows[i].step;
            if (R32(base + MAGIC) != MAGIC_VALUE || R32(base + DEVICE_ID) != id)
                continue;
            if (R32(base + VERSION) != 2)
                fail("the device is a legacy one");
            device.base = base;
            device.config = base + CONFIG;
            return device;
        }
    }
    fail("there is no such device");
}

static inline u64 offered(const struct device *device)
{
    u64 features = 0;
    for (u32 half = 0; half < 2; half++) {
        R32(device->base + (device->pci ? PCI_DEVICE_FEATURES_SEL : DEVICE_FEATURES_SEL)) = half;
        features |= (u64)R32(device->base + (device->pci ? PCI_DEVICE_FEATURES : DEVICE_FEATURES)) << half * 32;
    }
    return features;
}

static inline void set_status(const struct device *device, u32 status)
{
    if (device->pci)
        R8(device->base + PCI_STATUS) = status;
    else
        R32(device->base + STATUS) = status;
}

static inline u32 get_status(const struct device *device)
{
    return device->pci ? R8(device->base + PCI_STATUS) : R32(device->base + STATUS);
}

/* From reset to FEATURES_OK, with VERSION_1 and those of `wanted` that the device has. Returns what was agreed to. */
static inline u64 negotiate(const struct device *device, u64 wanted)
{
    set_status(device, 0);
    set_status(device, ACKNOWLEDGE);
    set_status(device, ACKNOWLEDGE | DRIVER);
    u64 features = offered(device);
    if (!(features & VERSION_1))
        fail("the device does not offer VERSION_1");
    features &= wanted | VERSION_1;
    for (u32 half = 0; half < 2; half++) {
        R32(device->base + (device->pci ? PCI_DRIVER_FEATURES_SEL : DRIVER_FEATURES_SEL)) = half;
        R32(device->base + (device->pci ? PCI_DRIVER_FEATURES : DRIVER_FEATURES)) = features >> half * 32;
    }
    set_status(device, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    if (get_status(device) != (ACKNOWLEDGE | DRIVER | FEATURES_OK))
        fail("the device does not agree to the features");
    return features;
}

/* Gives the device a queue of as many descriptors as it takes, up to SIZE. */
static inline void set_up_queue(const struct device *device, struct queue *queue, u16 index)
{
    u64 base = device->base;
    u32 most;
    queue->index = index;
    queue->avail.flags = NO_INTERRUPT;
    if (device->pci) {
        R16(base + PCI_QUEUE_SEL) = index;
        most = R16(base + PCI_QUEUE_SIZE);
    } else {
        R32(base + QUEUE_SEL) = index;
        most = R32(base + QUEUE_NUM_MAX);
    }
    if (!most)
        fail("the device lacks a queue");
    queue->size = SIZE;
    while (queue->size > most)
        queue->size /= 2;
    u64 parts[3] = { (u64)queue->descs, (u64)&queue->avail, (u64)&queue->used };
    if (device->pci) {
        R16(base + PCI_QUEUE_SIZE) = queue->size;
        for (u32 i = 0; i < 3; i++) {
            R32(base + PCI_QUEUE_DESC + i * 8) = parts[i];
            R32(base + PCI_QUEUE_DESC + i * 8 + 4) = 0;
        }
        queue->notify = device->notify + (u64)R16(base + PCI_QUEUE_NOTIFY_OFF) * device->notify_step;
        queue->short_notify = 1;
        map(queue->notify);
        R16(base + PCI_QUEUE_ENABLE) = 1;
    } else {
        R32(base + QUEUE_NUM) = queue->size;
        for (u32 i = 0; i < 3; i++) {
            R32(base + QUEUE_DESC + i * 0x10) = parts[i];
            R32(base + QUEUE_DESC + i * 0x10 + 4) = 0;
        }
        queue->notify = base + QUEUE_NOTIFY;
        R32(base + QUEUE_READY) = 1;
    }
}

/* DRIVER_OK: from now on the device works. */
static inline void start(const struct device *device)
{
    u32 all = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    set_status(device, all);
    if (get_status(device) != all)
        fail("the device does not start");
}

/* Tells the device of `count` more entries of the available ring, which are there already. */
static inline __attribute__((always_inline)) void submit(struct queue *queue, u16 count)
{
    *(volatile u16 *)&queue->avail.idx += count;
    /* The index must be there before the device's wish is read. */
    barrier();
    if (queue->used.flags & NO_NOTIFY)
        return;
    if (queue->short_notify)
        R16(queue->notify) = queue->index;
    else
        R32(queue->notify) = queue->index;
}

/* Waits until the device has used as many as `done`, which counts like the ring's index. */
static inline __attribute__((always_inline)) void wait_for(struct queue *queue, u16 done)
{
    while ((u16)(queue->used.idx - done) >= 0x8000)
        ;
}
