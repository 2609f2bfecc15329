//! One incarnation of a VM, from power-on to power-off. A restart builds the next one afresh, so that nothing of a guest,
//! nor of KVM's state for it, outlives its reset.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vm_memory::{ByteValued, Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use ampoule_arch::acpi::{self, AcpiConfig};
use ampoule_arch::boot::{linux, pvh, reset};
use ampoule_arch::layout;
use ampoule_arch::regs::{self, EntryPoint};
use ampoule_devices::console::ConsoleOutput;
use ampoule_devices::metrics::LogBudget;
use ampoule_devices::virtio::console::ConsoleLink;
use ampoule_devices::virtio::vsock::EndpointLife;

use crate::config::VmConfig;
use crate::device_manager::{DeviceManager, VirtioHost};
use crate::error::Error;
use crate::handle::Shared;
use crate::helper::{Helper, HelperWatch};
use crate::io_thread::{IoThread, WorkerLoop};
use crate::kernel::{self, KernelEntryPoint, LoadedKernel};
use crate::kvm::{Kvm, VmFd};
use crate::lifecycle::Controls;
use crate::memory::{self, GuestRam};
use crate::metrics::{MachineMetrics, VcpuMetrics};
use crate::own_devices::OwnDevices;
use crate::threads::{Muster, ThreadHooks};
use crate::vcpu::{PauseGate, Vcpu, VcpuContext, VcpuTemplate, VcpuThread};
use crate::virtio::{self, Placement};

/// What a machine is built from, and what outlives it.
pub(crate) struct Blueprint {
    pub(crate) config: VmConfig,
    /// Where unpacked kernels are kept.
    pub(crate) kernel_cache: Option<PathBuf>,
    pub(crate) kvm: Kvm,
    pub(crate) shared: Arc<Shared>,
    /// Where the serial port prints.
    pub(crate) output: Arc<ConsoleOutput>,
    /// Tells that the serial port can take more input.
    pub(crate) input_space: Arc<EventFd>,
    /// The virtio console's host half, where there is one.
    pub(crate) console: Option<Arc<ConsoleLink>>,
    /// The program's end of the guest's sockets, where there are some. It goes with the VM.
    pub(crate) sockets: Option<EndpointLife>,
    /// What the control thread does for virtio devices, in VMs that need no I/O thread for them.
    pub(crate) workers: Option<Arc<WorkerLoop>>,
    /// What may be logged of its devices.
    pub(crate) log: Arc<LogBudget>,
    /// What its owner brings.
    pub(crate) own: OwnDevices,
    /// What its threads do first.
    pub(crate) hooks: ThreadHooks,
    /// What the control thread waits on for helper processes, in VMs that have some.
    pub(crate) helpers: Option<HelperWatch>,
}

/// A machine with its power on.
///
/// The order of the fields is the order in which they go: vCPUs before the VM's descriptor, and that before the RAM which
/// KVM maps.
pub(crate) struct Machine {
    threads: Vec<VcpuThread>,
    vcpus: Vec<Vcpu>,
    pub(crate) devices: DeviceManager,
    /// Where virtio devices work, unless the control thread does it.
    io: Option<IoThread>,
    /// The loop that has their workers.
    workers: Option<Arc<WorkerLoop>>,
    gate: Arc<PauseGate>,
    /// Where its threads meet, if they have something to do there.
    muster: Option<Arc<Muster>>,
    shared: Arc<Shared>,
    /// The processes behind some of its devices. They go after those, whose connections they end with.
    pub(crate) helpers: Vec<Helper>,
    _vm: VmFd,
    ram: GuestRam,
}

impl Machine {
    /// Builds a machine up to the instant before its first instruction.
    pub(crate) fn build(blueprint: &Blueprint) -> Result<Self, Error> {
        let Blueprint {
            config,
            kernel_cache,
            kvm,
            shared,
            output,
            input_space,
            console,
            sockets,
            workers,
            helpers,
            hooks,
            own,
            log,
        } = blueprint;
        let timeline = &shared.timeline;

        let ram = memory::allocate(config)?;
        timeline.host("memory");
        let vm = kvm.create_vm(&ram, config.cpus)?;
        timeline.host("vm-created");
        let kernel = load_kernel(config, &ram, kernel_cache.as_deref())?;
        timeline.host("kernel-loaded");

        let mut devices = DeviceManager::new(&vm, shared, output, input_space)?;
        let sockets = sockets.as_ref().map(EndpointLife::endpoint);
        let virtio = virtio::devices(config, &own.backends, &ram, console.as_ref(), sockets)?;
        devices.resizers = virtio.resizers;
        if let Some(watch) = helpers {
            let waited = virtio
                .helpers
                .iter()
                .try_for_each(|helper| watch.add(helper));
            waited.map_err(Error::host("event"))?;
        }
        let mine = own.virtio.iter();
        let mine = mine.map(|(id, device)| (id.clone(), Box::new(device.clone()) as _));
        let mut all = virtio.all;
        all.extend(mine);
        let io = match virtio::placement(config, own) {
            Placement::IoThread => Some(IoThread::new().map_err(Error::host("I/O thread"))?),
            Placement::Nowhere | Placement::ControlThread => None,
        };
        let workers = workers.as_ref().or(io.as_ref().map(IoThread::workers));
        if let Some(host) = workers {
            let to = VirtioHost {
                ram: &ram,
                workers: host,
                shared,
                log,
            };
            devices.add_virtio(&vm, &to, all)?;
        }
        devices.add_own(&vm, shared, &own.bus)?;
        let entry = write_boot_data(config, &ram, &kernel, &devices)?;
        timeline.host("devices");

        let gate = Arc::<PauseGate>::default();
        let context = VcpuContext {
            gate: gate.clone(),
            ports: devices.ports.clone(),
            mmio: devices.mmio.clone(),
            latch: shared.latch.clone(),
            timeline: timeline.clone(),
            metrics: Arc::default(),
            ram: ram.clone(),
        };
        let counters: Vec<Arc<VcpuMetrics>> = (0..config.cpus).map(|_| Arc::default()).collect();
        let template = VcpuTemplate::new(kvm, config.cpus)?;
        let vcpus = (0..config.cpus)
            .zip(&counters)
            .map(|(index, counters)| {
                // The others wait for the first to start them (INIT, SIPI), and have no entry point.
                let entry = (index == 0).then_some(&entry);
                let context = VcpuContext {
                    metrics: counters.clone(),
                    ..context.clone()
                };
                template.create(vm.create_vcpu(index)?, index, entry, context)
            })
            .collect::<Result<Vec<_>, Error>>()?;
        timeline.host("vcpus");
        shared.metrics.add_machine(MachineMetrics {
            vcpus: counters,
            ports: devices.ports.unclaimed_counters(),
            mmio: devices.mmio.unclaimed_counters(),
            devices: devices.metrics.clone(),
        });
        Ok(Self {
            threads: Vec::new(),
            vcpus,
            devices,
            workers: workers.cloned(),
            muster: hooks.muster(
                config.cpus as usize + usize::from(io.is_some()),
                &shared.latch,
            ),
            io,
            gate,
            shared: shared.clone(),
            helpers: virtio.helpers,
            _vm: vm,
            ram,
        })
    }

    /// Starts the vCPU threads. The first vCPU's comes last: until it runs, the others wait inside KVM, so that every
    /// thread exists before the guest's first instruction.
    pub(crate) fn start(&mut self) -> Result<(), Error> {
        if let Some(io) = &mut self.io {
            io.start(self.muster.clone())
                .map_err(Error::host("I/O thread"))?;
        }
        while let Some(vcpu) = self.vcpus.pop() {
            self.threads.push(
                vcpu.spawn(self.muster.clone())
                    .map_err(Error::host("vCPU thread"))?,
            );
        }
        self.shared.lifecycle.begin(Controls {
            gate: self.gate.clone(),
            vcpus: self.threads.iter().map(|it| it.kick().clone()).collect(),
            workers: self.workers.clone(),
            ram: self.ram.clone(),
        });
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.shared.lifecycle.end_machine();
        for thread in &self.threads {
            thread.stop();
        }
        for thread in self.threads.drain(..) {
            thread.join();
        }
    }
}

/// The kernel in guest memory, and the initrd beside it.
struct LoadedGuest {
    kernel: LoadedKernel,
    initrd: Option<(GuestAddress, u64)>,
}

fn load_kernel(
    config: &VmConfig,
    ram: &GuestRam,
    cache: Option<&Path>,
) -> Result<LoadedGuest, Error> {
    // `validate` has seen to it that there is one.
    let path = config.kernel.as_deref().unwrap_or_else(|| "".as_ref());
    let kernel = match cache {
        Some(folder) => kernel::load_cached(path, config.entry, ram, folder)?,
        None => kernel::load(path, config.entry, ram)?,
    };
    log::info!("kernel {}: {}", path.display(), kernel.path_taken);
    kernel::check_cmdline(&kernel, path, &config.full_cmdline())?;
    let initrd = match &config.initrd {
        Some(path) => Some(kernel::initrd::load(path, ram, &kernel)?),
        None => None,
    };
    Ok(LoadedGuest { kernel, initrd })
}

/// Writes what the guest finds in memory when it wakes; returns where it does.
fn write_boot_data(
    config: &VmConfig,
    ram: &GuestRam,
    guest: &LoadedGuest,
    devices: &DeviceManager,
) -> Result<EntryPoint, Error> {
    let mut cmdline = config.full_cmdline().into_bytes();
    cmdline.push(0);
    write(ram, layout::CMDLINE, &cmdline, "command line")?;

    let tables = acpi::build(&AcpiConfig {
        vcpus: config.cpus,
        devices: &devices.descriptions,
    })
    .map_err(Error::platform("ACPI tables"))?;
    for (address, bytes) in &tables.blobs {
        write(ram, *address, bytes, "ACPI tables")?;
    }

    let (address, code) = reset::vector();
    write(ram, address, &code, "reset vector")?;

    let e820 = layout::e820(config.memory.as_bytes());
    let entry = match guest.kernel.entry {
        KernelEntryPoint::Pvh { entry } => {
            let blobs = pvh::start_info(layout::CMDLINE, guest.initrd, &e820, tables.rsdp);
            for (address, bytes) in &blobs {
                write(ram, *address, bytes, "PVH start info")?;
            }
            EntryPoint::Pvh {
                entry,
                start_info: layout::PVH_START_INFO.0,
            }
        }
        KernelEntryPoint::Linux64 { entry } => {
            let page = linux::zero_page(&linux::ZeroPageConfig {
                setup_header: guest
                    .kernel
                    .setup_header
                    .as_deref()
                    .map(ByteValued::as_slice),
                cmdline: layout::CMDLINE,
                cmdline_size: cmdline.len() as u32,
                initrd: guest.initrd,
                e820: &e820,
                rsdp: tables.rsdp,
            });
            write(ram, layout::ZERO_PAGE, &page, "zero page")?;
            EntryPoint::Linux64 {
                entry,
                zero_page: layout::ZERO_PAGE.0,
            }
        }
    };
    for (address, bytes) in regs::boot_blobs(&entry) {
        write(ram, address, &bytes, "page tables")?;
    }
    Ok(entry)
}

fn write(
    ram: &GuestRam,
    address: GuestAddress,
    bytes: &[u8],
    what: &'static str,
) -> Result<(), Error> {
    ram.write_slice(bytes, address)
        .map_err(Error::platform(what))
}
