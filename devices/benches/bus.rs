//! What it costs to find the device at an address, which every exit for I/O pays: `cargo bench -p ampoule-devices --bench bus`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use ampoule_devices::bus::{Bus, BusDevice};
use criterion::{BenchmarkId, Criterion};

/// A device that costs nothing.
struct Nothing;

impl BusDevice for Nothing {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: u64, data: &[u8]) {
        black_box(data);
    }
}

const SIZE: u64 = 0x1000;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let mut group = criterion.benchmark_group("bus, ranges");
    for count in [1, 8, 32] {
        let bus = Bus::new();
        for slot in 0..count {
            bus.insert(slot * SIZE, SIZE, Arc::new(Nothing))
                .expect("the ranges are disjoint");
        }
        // Each access goes to another device than the one before.
        let mut address = 0;
        let mut next = move || {
            address = (address + 5 * SIZE) % (count * SIZE);
            address + 4
        };
        let id = |what| BenchmarkId::new(what, count);
        group.bench_function(id("write"), |bench| {
            bench.iter(|| bus.write(next(), &[1, 2, 3, 4]));
        });
        group.bench_function(id("read"), |bench| {
            bench.iter(|| {
                let mut data = [0; 4];
                bus.read(next(), &mut data);
                data
            });
        });
        group.bench_function(id("read of nobody's"), |bench| {
            bench.iter(|| {
                let mut data = [0; 4];
                bus.read(count * SIZE + next(), &mut data);
                data
            });
        });
    }
    group.finish();
    criterion.final_summary();
}
