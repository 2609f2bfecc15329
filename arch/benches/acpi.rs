//! What the ACPI tables cost, which each start makes anew: `cargo bench -p ampoule-arch --bench acpi`.

use std::time::Duration;

use ampoule_arch::acpi::{AcpiConfig, AddressRange, DeviceInfo, DeviceKind, build};
use ampoule_arch::layout;
use criterion::{BenchmarkId, Criterion};

/// The devices that every VM has, and `slots` virtio devices.
fn devices(slots: u32) -> Vec<DeviceInfo> {
    let port = |kind, base, len, gsi| DeviceInfo {
        kind,
        range: AddressRange::Port { base, len },
        gsi,
    };
    let mut devices = vec![
        port(
            DeviceKind::Serial,
            layout::COM1_PORT,
            layout::COM1_LEN,
            Some(layout::COM1_GSI),
        ),
        port(
            DeviceKind::Power,
            layout::ACPI_POWER_PORT,
            layout::ACPI_POWER_LEN,
            Some(layout::ACPI_EVENT_GSI),
        ),
        port(DeviceKind::Rtc, layout::RTC_PORT, layout::RTC_LEN, None),
        port(DeviceKind::PvPanic, layout::PVPANIC_PORT, 1, None),
    ];
    devices.extend((0..slots).map(|slot| {
        let size = layout::VIRTIO_MMIO_SLOT_SIZE;
        let base = layout::VIRTIO_MMIO_START + u64::from(slot) * size;
        DeviceInfo {
            kind: DeviceKind::VirtioMmio,
            range: AddressRange::Mmio { base, size },
            gsi: Some(layout::FIRST_FREE_GSI + slot),
        }
    }));
    devices
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let mut group = criterion.benchmark_group("acpi, vCPUs and virtio devices");
    for (vcpus, slots) in [(1, 0), (1, 16), (16, 16)] {
        let devices = devices(slots);
        let config = AcpiConfig {
            vcpus,
            devices: &devices,
        };
        let name = format!("{vcpus} and {slots}");
        group.bench_with_input(BenchmarkId::from_parameter(name), &config, |bench, it| {
            bench.iter(|| build(it).expect("the tables can be made"));
        });
    }
    group.finish();
    criterion.final_summary();
}
