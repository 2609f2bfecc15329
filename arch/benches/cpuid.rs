//! What CPUID of a VM's vCPUs costs, from what a host's KVM supports: `cargo bench -p ampoule-arch --bench cpuid`.

use std::hint::black_box;
use std::time::Duration;

use ampoule_arch::cpuid::{CpuidFeatures, CpuidTemplate};
use criterion::{BenchmarkId, Criterion};
use kvm_bindings::kvm_cpuid_entry2;

fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = registers;
    kvm_cpuid_entry2 {
        function,
        index,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

/// A list as long as KVM's is on a server with Intel's processors: the leaves that are looked at have values, the others are there.
fn supported() -> Vec<kvm_cpuid_entry2> {
    let mut entries = vec![
        entry(0x0, 0, [0x1f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
        entry(0x1, 0, [0x906ed, 0x0710_0800, 0xfffa_b203, 0x1f8b_fbff]),
        entry(0x2, 0, [0x00fe_ff01, 0xf0, 0, 0]),
        entry(0x4, 0, [0x1c00_4121, 0x01c0_003f, 0x3f, 0]),
        entry(0x4, 1, [0x1c00_4122, 0x01c0_003f, 0x3f, 0]),
        entry(0x4, 2, [0x1c00_4143, 0x00c0_003f, 0x3ff, 0]),
        entry(0x4, 3, [0x1c03_c163, 0x03c0_003f, 0x3fff, 6]),
        entry(0x6, 0, [0x4, 0, 0, 0]),
        entry(0xb, 0, [0, 0, 0, 0xff]),
        entry(0x1f, 0, [0, 0, 0, 0xff]),
        entry(
            0x4000_0000,
            0,
            [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d],
        ),
        entry(0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
        entry(0x8000_0000, 0, [0x8000_0008, 0, 0, 0]),
        entry(0x8000_0001, 0, [0, 0, 0x121, 0x2c10_0800]),
        entry(0x8000_0008, 0, [0x3027, 0, 0, 0]),
    ];
    // The state components of XSAVE, AMX's tiles, and leaves that are all zeroes.
    entries.extend((0..12).map(|index| entry(0xd, index, [0x100, 0x240, 0, 0])));
    let others = [0x3, 0x5, 0x7, 0x8, 0x9, 0xa, 0xc, 0x12, 0x14, 0x1d, 0x1e];
    entries.extend(others.map(|function| entry(function, 0, [0; 4])));
    entries.extend((2..8).map(|leaf| entry(0x8000_0000 + leaf, 0, [0; 4])));
    entries
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let supported = supported();
    let mut group = criterion.benchmark_group("cpuid, vCPUs");
    for count in [1, 16] {
        group.bench_with_input(
            BenchmarkId::from_parameter(count),
            &count,
            |bench, &count| {
                bench.iter(|| {
                    let features = CpuidFeatures { tsc_deadline: true };
                    let template = CpuidTemplate::new(&supported, count, features);
                    let template = template.expect("the list is not too long");
                    for index in 0..count {
                        black_box(template.for_vcpu(index));
                    }
                });
            },
        );
    }
    group.finish();
    criterion.final_summary();
}
