//! The configuration space of every device: read and written at any place, by any width, ready or not. What is read in one
//! piece is what is read byte by byte, and beyond the end there are zeroes.

#![no_main]

use ampoule_devices::bus::BusDevice;
use ampoule_devices::virtio::testing::Driver;
use ampoule_devices::virtio::transport::mmio::{REGION_SIZE, register};
use ampoule_fuzz::devices;
use ampoule_fuzz::guest::{self, some};
use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;

/// No device has as many bytes.
const END: u64 = 256;

#[derive(Debug, Arbitrary)]
enum Op {
    Read {
        offset: u16,
        len: u8,
    },
    Write {
        offset: u16,
        log_width: u8,
        value: u64,
    },
    /// As a transport may that has more space.
    Far {
        offset: u64,
        len: u8,
    },
    SetUp,
    Reset,
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
            ops: some(input, 32)?,
        })
    }
}

fuzz_target!(|input: Input| {
    let bare = devices::pick(input.device);
    let space: Vec<u8> = (0..END)
        .map(|offset| {
            let mut byte = [0xaa];
            bare.read_config(offset, &mut byte);
            byte[0]
        })
        .collect();
    let far = |offset: u64, len: u8| {
        let mut data = vec![0xaa; len.into()];
        bare.read_config(offset, &mut data);
        for (at, byte) in (offset..).zip(&data) {
            let expected = space.get(at as usize).copied().unwrap_or(0);
            assert_eq!(*byte, expected, "at {at:#x} of {offset:#x}");
        }
    };
    for op in &input.ops {
        if let Op::Far { offset, len } = op {
            // What is behind the last byte still has an address of 64 bits.
            far((*offset).min(u64::MAX - 256), *len);
        }
    }
    // There is one device with this socket at a time.
    drop(bare);
    let device = devices::pick(input.device);
    let queues = device.queue_max_sizes().len() as u32;
    let driver = Driver::with_memory(device, guest::memory());
    for op in input.ops {
        match op {
            Op::Read { offset, len } => {
                let offset = u64::from(offset) % (REGION_SIZE - register::CONFIG);
                let mut data = vec![0xaa; usize::from(len % 17)];
                driver.transport.read(register::CONFIG + offset, &mut data);
                for (at, byte) in (offset..).zip(&data) {
                    let mut single = [0xaa];
                    driver.transport.read(register::CONFIG + at, &mut single);
                    assert_eq!(*byte, single[0], "at {at:#x} of {offset:#x}");
                    assert!(at < END || *byte == 0, "{byte:#x} at {at:#x}");
                }
            }
            Op::Write {
                offset,
                log_width,
                value,
            } => {
                let offset = u64::from(offset) % (REGION_SIZE - register::CONFIG);
                let data = &value.to_le_bytes()[..1 << (log_width % 4)];
                driver.transport.write(register::CONFIG + offset, data);
            }
            Op::Far { .. } => {}
            Op::SetUp => driver.set_up(queues.min(4), u64::MAX),
            Op::Reset => driver.write(register::STATUS, 0),
        }
        driver.host.run(100);
    }
});
