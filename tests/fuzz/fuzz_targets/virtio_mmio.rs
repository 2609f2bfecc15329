//! The registers of every device, and its rings: whatever a driver does in whatever order, a reset brings the device back,
//! and it can be set up again.

#![no_main]

use ampoule_devices::bus::BusDevice;
use ampoule_devices::virtio::status::bits;
use ampoule_devices::virtio::testing::{AVAILABLE, DESCRIPTORS, Desc, Driver};
use ampoule_devices::virtio::transport::mmio::{REGION_SIZE, register};
use ampoule_fuzz::devices;
use ampoule_fuzz::guest::{self, Address, Length, RING_STEP, SIZE, some};
use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

/// Queues whose rings fit below the buffers.
const MAX_QUEUES: u8 = 4;

#[derive(Debug, Arbitrary)]
enum Op {
    Read {
        offset: u16,
        log_width: u8,
    },
    Write {
        offset: u16,
        log_width: u8,
        value: u64,
    },
    /// A register, by a whole number of words.
    Register {
        word: u8,
        value: u32,
    },
    Status(u8),
    SetUp {
        queues: u8,
        features: u64,
    },
    Descriptor {
        queue: u8,
        index: u8,
        address: Address,
        len: Length,
        flags: u8,
        next: u8,
    },
    Available {
        queue: u8,
        head: u8,
    },
    Poke {
        address: Address,
        value: u64,
    },
    Notify(u8),
    Run(u8),
    Events,
}

#[derive(Debug)]
struct Input {
    device: u8,
    ops: Vec<Op>,
}

impl<'a> Arbitrary<'a> for Input {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self {
            device: input.arbitrary()?,
            ops: some(input, 64)?,
        })
    }
}

fuzz_target!(|input: Input| {
    let device = devices::pick(input.device);
    let queues = device.queue_max_sizes().len() as u8;
    let driver = Driver::with_memory(device, guest::memory());
    for op in input.ops {
        carry_out(&driver, queues, op);
        assert!(driver.host.workers() <= 1, "a worker was forgotten");
    }
    driver.write(register::STATUS, 0);
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 0);
    assert_eq!(driver.host.workers(), 0);
    driver.set_up(queues.min(MAX_QUEUES).into(), u64::MAX);
    assert_eq!(driver.status() & bits::DRIVER_OK, bits::DRIVER_OK);
    assert_eq!(driver.status() & bits::DEVICE_NEEDS_RESET, 0);
});

fn carry_out(driver: &Driver, queues: u8, op: Op) {
    match op {
        Op::Read { offset, log_width } => {
            let mut data = [0xaa; 8];
            let data = &mut data[..1 << (log_width % 4)];
            driver.transport.read(u64::from(offset) % REGION_SIZE, data);
        }
        Op::Write {
            offset,
            log_width,
            value,
        } => {
            let data = &value.to_le_bytes()[..1 << (log_width % 4)];
            driver
                .transport
                .write(u64::from(offset) % REGION_SIZE, data);
        }
        Op::Register { word, value } => {
            driver.write(u64::from(word % 64) * 4, value);
            driver.read(u64::from(word % 64) * 4);
        }
        Op::Status(bits) => driver.write(register::STATUS, bits.into()),
        Op::SetUp {
            queues: count,
            features,
        } => {
            driver.set_up(
                (count % (queues.min(MAX_QUEUES) + 1)).into(),
                features | 1 << 32,
            );
        }
        Op::Descriptor {
            queue,
            index,
            address,
            len,
            flags,
            next,
        } => {
            let table = u64::from(queue % MAX_QUEUES) * RING_STEP + DESCRIPTORS;
            let desc = Desc {
                address: address.get(),
                len: len.get(),
                flags: (flags % 8).into(),
                next: u16::from(next) % (SIZE + 2),
            };
            driver.put_desc(table, u16::from(index) % SIZE, desc);
        }
        Op::Available { queue, head } => {
            let ring = u64::from(queue % MAX_QUEUES) * RING_STEP + AVAILABLE;
            let index: u16 = driver.get(ring + 2);
            let slot = ring + 4 + u64::from(index % SIZE) * 2;
            driver.put(slot, u16::from(head) % (SIZE + 1));
            driver.put(ring + 2, index.wrapping_add(1));
            driver.write(register::QUEUE_NOTIFY, (queue % MAX_QUEUES).into());
        }
        Op::Poke { address, value } => {
            // Elsewhere than in memory there is nothing to write to.
            let _ = driver
                .memory
                .write_slice(&value.to_le_bytes(), GuestAddress(address.get()));
        }
        Op::Notify(queue) => driver.write(register::QUEUE_NOTIFY, queue.into()),
        Op::Run(turns) => {
            driver.host.run(turns.into());
        }
        Op::Events => driver.host.run_events(),
    }
}
