//! What the serial port's registers cost, without the exits by which a guest gets at them:
//! `cargo bench -p ampoule-devices --bench serial`.

use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ampoule_devices::bus::BusDevice;
use ampoule_devices::interrupt::InterruptLine;
use ampoule_devices::legacy::serial::{Serial, SerialOutput};
use criterion::{Criterion, Throughput};
use vmm_sys_util::eventfd::EventFd;

const DATA: u64 = 0;
const INTERRUPT_ENABLE: u64 = 1;
const LINE_STATUS: u64 = 5;

/// Takes output and interrupts, and does nothing with them.
struct Nobody;

impl SerialOutput for Nobody {
    fn write(&self, bytes: &[u8]) {
        black_box(bytes);
    }
}

impl InterruptLine for Nobody {
    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let space = EventFd::new(libc::EFD_NONBLOCK).expect("the host has an event left");
    let port = Serial::new(Arc::new(Nobody), Arc::new(Nobody), space);
    let read = |offset| {
        let mut data = [0];
        port.read(offset, &mut data);
        data[0]
    };
    let mut group = criterion.benchmark_group("serial");
    group.throughput(Throughput::Bytes(1));
    // As a driver prints: it waits until there is room, then writes.
    group.bench_function("a byte sent", |bench| {
        bench.iter(|| {
            black_box(read(LINE_STATUS));
            port.write(DATA, b"a");
        });
    });
    // And as it takes input, from the interrupt on: reads while there is something.
    port.write(INTERRUPT_ENABLE, &[1]);
    let typed = [b'a'; 16];
    group.throughput(Throughput::Bytes(typed.len() as u64));
    group.bench_function("16 bytes received", |bench| {
        bench.iter(|| {
            assert_eq!(port.receive(&typed), typed.len());
            while read(LINE_STATUS) & 1 != 0 {
                black_box(read(DATA));
            }
        });
    });
    group.finish();
    criterion.final_summary();
}
