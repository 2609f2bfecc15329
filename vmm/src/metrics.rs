//! What is counted while a VM runs, and the picture of it that its owner may ask for at any time.
//!
//! A machine brings new counters; those of the machines before it, in the same VM, are added up here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use ampoule_devices::bus::UnclaimedCounters;
use ampoule_devices::console::ConsoleOutput;
use ampoule_devices::metrics::Counter;
use ampoule_devices::virtio::DeviceMetrics;

pub use ampoule_devices::bus::Unclaimed;
pub use ampoule_devices::virtio::metrics::DeviceCounts;

/// What was counted, from the VM's first start to the moment of asking.
///
/// ```
/// use ampoule_vmm::VmHandle;
///
/// fn print(vm: &VmHandle) {
///     let metrics = vm.metrics();
///     for (id, counts) in &metrics.devices {
///         println!("{id}: {} requests, {} B read", counts.requests, counts.bytes_read);
///     }
///     let exits: u64 = metrics.vcpus.iter().map(|vcpu| vcpu.port + vcpu.mmio).sum();
///     println!("{exits} accesses to devices");
/// }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Metrics {
    /// Exits of each vCPU.
    pub vcpus: Vec<ExitCounts>,
    /// Accesses that no device answered.
    pub unclaimed: UnclaimedCounts,
    /// What the guest printed, by console: `serial` is the first serial port.
    pub consoles: BTreeMap<&'static str, ConsoleCounts>,
    /// virtio devices, by their ids.
    pub devices: BTreeMap<String, DeviceCounts>,
}

/// How often a vCPU left the guest, and what for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ExitCounts {
    /// Accesses to ports.
    pub port: u64,
    /// Accesses to memory where there is none, but for notifications, which KVM takes by itself.
    pub mmio: u64,
    /// All else.
    pub other: u64,
}

/// Accesses that no device answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct UnclaimedCounts {
    /// To ports.
    pub port: Unclaimed,
    /// To memory.
    pub mmio: Unclaimed,
}

/// A console's output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ConsoleCounts {
    /// Bytes that the guest printed.
    pub bytes: u64,
    /// Bytes of these that were dropped, because nobody read them.
    pub dropped_bytes: u64,
}

impl Metrics {
    /// Adds what another machine of the same VM counted. Consoles belong to the VM.
    fn add(&mut self, other: &Self) {
        let vcpus = self.vcpus.len().max(other.vcpus.len());
        self.vcpus.resize(vcpus, ExitCounts::default());
        for (sum, counts) in self.vcpus.iter_mut().zip(&other.vcpus) {
            sum.port += counts.port;
            sum.mmio += counts.mmio;
            sum.other += counts.other;
        }
        for (sum, counts) in [
            (&mut self.unclaimed.port, &other.unclaimed.port),
            (&mut self.unclaimed.mmio, &other.unclaimed.mmio),
        ] {
            sum.reads += counts.reads;
            sum.writes += counts.writes;
        }
        for (id, counts) in &other.devices {
            self.devices.entry(id.clone()).or_default().add(counts);
        }
    }
}

/// The counters of a vCPU; only its thread adds to them.
#[derive(Debug, Default)]
pub(crate) struct VcpuMetrics {
    pub(crate) port: Counter,
    pub(crate) mmio: Counter,
    pub(crate) other: Counter,
}

/// The counters of a machine. Nothing else of it is kept alive by them.
#[derive(Debug, Default)]
pub(crate) struct MachineMetrics {
    pub(crate) vcpus: Vec<Arc<VcpuMetrics>>,
    pub(crate) ports: Arc<UnclaimedCounters>,
    pub(crate) mmio: Arc<UnclaimedCounters>,
    pub(crate) devices: Vec<Arc<DeviceMetrics>>,
}

impl MachineMetrics {
    fn counts(&self) -> Metrics {
        let vcpus = self.vcpus.iter().map(|vcpu| ExitCounts {
            port: vcpu.port.get(),
            mmio: vcpu.mmio.get(),
            other: vcpu.other.get(),
        });
        let devices = self.devices.iter();
        Metrics {
            vcpus: vcpus.collect(),
            unclaimed: UnclaimedCounts {
                port: self.ports.get(),
                mmio: self.mmio.get(),
            },
            consoles: BTreeMap::new(),
            devices: devices
                .map(|device| (device.name().to_owned(), device.counts()))
                .collect(),
        }
    }
}

/// All counters of a VM.
pub(crate) struct Registry {
    consoles: Vec<(&'static str, Arc<ConsoleOutput>)>,
    machines: Mutex<Machines>,
}

#[derive(Default)]
struct Machines {
    past: Metrics,
    present: MachineMetrics,
}

impl Registry {
    pub(crate) fn new(consoles: Vec<(&'static str, Arc<ConsoleOutput>)>) -> Self {
        Self {
            consoles,
            machines: Mutex::default(),
        }
    }

    /// A machine was built, the first or one more.
    pub(crate) fn add_machine(&self, machine: MachineMetrics) {
        let mut machines = self.machines();
        let counts = machines.present.counts();
        machines.past.add(&counts);
        machines.present = machine;
    }

    pub(crate) fn metrics(&self) -> Metrics {
        let mut metrics = {
            let machines = self.machines();
            let mut metrics = machines.past.clone();
            metrics.add(&machines.present.counts());
            metrics
        };
        let consoles = self.consoles.iter().map(|(name, output)| {
            let counts = ConsoleCounts {
                bytes: output.printed(),
                dropped_bytes: output.dropped(),
            };
            (*name, counts)
        });
        metrics.consoles = consoles.collect();
        metrics
    }

    fn machines(&self) -> MutexGuard<'_, Machines> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ampoule_devices::virtio::VirtioDeviceType;

    fn machine(requests: u64) -> MachineMetrics {
        let device = DeviceMetrics::new("disk0", VirtioDeviceType::BLOCK, Vec::new());
        device.bytes_read.add(requests);
        let vcpu = VcpuMetrics::default();
        vcpu.mmio.add_owned(2);
        MachineMetrics {
            vcpus: vec![Arc::new(vcpu)],
            devices: vec![Arc::new(device)],
            ..MachineMetrics::default()
        }
    }

    #[test]
    fn machines_of_a_vm_add_up_and_consoles_stay() {
        let output = Arc::new(ConsoleOutput::new().unwrap());
        let registry = Registry::new(vec![("serial", output.clone())]);
        assert_eq!(registry.metrics().devices, BTreeMap::new());
        registry.add_machine(machine(5));
        output.write(b"hello");
        registry.add_machine(machine(7));
        let metrics = registry.metrics();
        assert_eq!(metrics.devices["disk0"].bytes_read, 12);
        assert_eq!(metrics.vcpus.len(), 1);
        assert_eq!(metrics.vcpus[0].mmio, 4);
        assert_eq!(metrics.consoles["serial"].bytes, 5);
        let text = serde_json::to_string(&metrics).unwrap();
        assert!(
            text.contains(r#""disk0":{"type":"block","requests":0,"bytes-read":12"#),
            "{text}"
        );
        assert!(
            text.contains(r#""unclaimed":{"port":{"reads":0,"#),
            "{text}"
        );
    }
}
