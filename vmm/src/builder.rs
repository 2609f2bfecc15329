//! What puts a VM together: a configuration, and what its owner brings that cannot be written in one.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use ampoule_devices::backend::disk::BlockBackend;
use ampoule_devices::backend::net::NetBackend;
use ampoule_devices::console::{ConsoleOutput, STALL_LIMIT};
use ampoule_devices::metrics::LogBudget;
use ampoule_devices::virtio::VirtioDevice;
use ampoule_devices::virtio::console::ConsoleLink;
use ampoule_devices::virtio::vsock::EndpointLife;

use crate::config::VmConfig;
use crate::console::{ConsoleEnds, ConsoleHost, Consoles};
use crate::console_stream::ConsoleStream;
use crate::control::{ControlSource, EventLoop};
use crate::error::Error;
use crate::guest_watch::Watched;
use crate::handle::{Inside, Shared};
use crate::helper::HelperWatch;
use crate::io_thread::WorkerLoop;
use crate::kvm::Kvm;
use crate::machine::{Blueprint, Machine};
use crate::own_backends::{DiskOptions, NetOptions};
use crate::own_devices::{self, OwnBusDevice, OwnDevices, SharedVirtio};
use crate::threads::{ThreadHooks, VmThread};
use crate::timeline::Timeline;
use crate::virtio::{self, Placement};
use crate::vm::Vm;

/// Puts a VM together: a configuration, and what cannot be written in one.
///
/// ```no_run
/// use ampoule_vmm::{VmBuilder, config::VmConfig};
///
/// # fn main() -> Result<(), ampoule_vmm::Error> {
/// let config = VmConfig { kernel: Some("/boot/vmlinuz".into()), ..VmConfig::default() };
/// let vm = VmBuilder::new(config).build()?.start()?;
/// println!("{}", vm.wait());
/// # Ok(())
/// # }
/// ```
pub struct VmBuilder {
    config: VmConfig,
    timeline: Option<Timeline>,
    host_cache: Option<PathBuf>,
    kernel_cache: Option<PathBuf>,
    serial: Option<ConsoleEnds>,
    console: Option<(ConsoleEnds, Option<(u16, u16)>)>,
    sources: Vec<Box<dyn ControlSource>>,
    hooks: ThreadHooks,
    own: OwnDevices,
}

impl VmBuilder {
    /// A VM as `config` describes it.
    pub fn new(config: VmConfig) -> Self {
        Self {
            config,
            timeline: None,
            host_cache: None,
            kernel_cache: None,
            serial: None,
            console: None,
            sources: Vec::new(),
            hooks: ThreadHooks::default(),
            own: OwnDevices::default(),
        }
    }

    /// Uses a timeline that the program has begun already.
    pub fn timeline(mut self, timeline: Timeline) -> Self {
        self.timeline = Some(timeline);
        self
    }

    /// Keeps what the host's KVM answers alike until the host starts again in this folder, in a file `host-cpuid` that only its
    /// user may write. A later VM, of this or another process, does not ask again: that saves a start a fifth of its CPU time where
    /// the host is a virtual machine itself. The folder is made where it is missing; where it cannot be, KVM is asked each time,
    /// as it is without this.
    pub fn host_cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.host_cache = Some(folder.into());
        self
    }

    /// Keeps what bzImages unpack to in this folder, which is made where it is missing: the kernels used last, four of them, until
    /// the host starts again. Unpacking one takes longer than its boot.
    pub fn kernel_cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.kernel_cache = Some(folder.into());
        self
    }

    /// Connects the serial port to these ends, instead of to what the configuration's `serial` says.
    pub fn serial(mut self, ends: ConsoleEnds) -> Self {
        self.serial = Some(ends);
        self
    }

    /// Connects the virtio console to these ends, instead of to what the configuration's `console` says, which has to ask for
    /// one all the same. `size` is that of the terminal there, columns and rows; without one, none is shown to the guest.
    pub fn console(mut self, ends: ConsoleEnds, size: Option<(u16, u16)>) -> Self {
        self.console = Some((ends, size));
        self
    }

    /// Lets the control thread wait on one thing more.
    pub fn control_source(mut self, source: impl ControlSource + 'static) -> Self {
        self.sources.push(Box::new(source));
        self
    }

    /// Adds a virtio device of the program's own, behind the transport that the built-in ones have: a stock guest finds it by
    /// ACPI, after those of the configuration. `id` names it in messages, counters and events. Its data half runs on the VM's
    /// I/O thread.
    pub fn virtio_device(
        mut self,
        id: impl Into<String>,
        device: impl VirtioDevice + 'static,
    ) -> Self {
        self.own.virtio.push((id.into(), SharedVirtio::new(device)));
        self
    }

    /// Adds a disk of the program's own: `backend` behind the built-in virtio device, after the disks of the configuration.
    /// `id` names it in messages, counters and events. Its requests are made on the VM's I/O thread, one after the other.
    pub fn disk(
        mut self,
        id: impl Into<String>,
        backend: Arc<dyn BlockBackend>,
        options: DiskOptions,
    ) -> Self {
        self.own.backends.add_disk(id.into(), backend, options);
        self
    }

    /// Adds a network of the program's own behind the built-in virtio device, after the networks of the configuration: of as
    /// many pairs of queues as there are `backends`, 1 to 8, all of which take and leave the same.
    pub fn net(
        mut self,
        id: impl Into<String>,
        backends: Vec<Arc<dyn NetBackend>>,
        options: NetOptions,
    ) -> Self {
        self.own.backends.add_net(id.into(), backends, options);
        self
    }

    /// Puts something around the back end of the configuration's disk `id` (`disk0` and so on for those without one): to
    /// encrypt it, to count, to inject faults. `wrapper` is called for each machine of the VM, and so again when the guest
    /// restarts; of several for one disk, the first is the innermost. A wrapper whose
    /// [`file`](crate::backend::BlockBackend::file) is none does all requests itself, one after the other on the VM's I/O
    /// thread, whatever the disk's `engine` says. Who keeps the inner back end for longer than the machine keeps its image
    /// locked, and the next one cannot be built.
    pub fn wrap_disk(
        mut self,
        id: impl Into<String>,
        wrapper: impl Fn(Arc<dyn BlockBackend>) -> io::Result<Arc<dyn BlockBackend>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        let backends = &mut self.own.backends;
        backends.add_disk_wrapper(id.into(), Box::new(wrapper));
        self
    }

    /// Puts something around the back ends of the configuration's network `id` (`net0` and so on), as [`Self::wrap_disk`] does
    /// for disks. `wrapper` is called for each pair of its queues. A network whose frames the host's kernel moves (`vhost`) has
    /// nothing to wrap.
    pub fn wrap_net(
        mut self,
        id: impl Into<String>,
        wrapper: impl Fn(Arc<dyn NetBackend>) -> io::Result<Arc<dyn NetBackend>> + Send + Sync + 'static,
    ) -> Self {
        let backends = &mut self.own.backends;
        backends.add_net_wrapper(id.into(), Box::new(wrapper));
        self
    }

    /// Adds a device of the program's own at addresses of the guest's: an `Arc` of a [`BusDevice`](crate::devices::BusDevice), or
    /// an [`OwnBusDevice`] with interrupt lines, events and an entry in ACPI. `id` names it in messages and events.
    pub fn bus_device(
        mut self,
        id: impl Into<String>,
        placement: own_devices::Placement,
        device: impl Into<OwnBusDevice>,
    ) -> Self {
        self.own.bus.push((id.into(), placement, device.into()));
        self
    }

    /// Has every thread of the VM call `hook` first thing, on itself: to choose its CPUs, its scheduling or its cgroup, or to
    /// give it a seccomp filter of its own. A restart of the guest brings new threads. An error is the VM's end
    /// ([`ExitReason::HostFailed`](crate::ExitReason::HostFailed)), before the guest's first instruction.
    pub fn on_thread_start(
        mut self,
        hook: impl Fn(VmThread) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.hooks.on_start = Some(Arc::new(hook));
        self
    }

    /// Has `hook` called before the guest's first instruction, when all threads of the VM exist and have run their own hooks,
    /// on the thread of the first vCPU: the place for a seccomp filter over the whole process (`SECCOMP_FILTER_FLAG_TSYNC`).
    /// From then on the VM opens nothing and starts nothing, unless the guest restarts. An error is the VM's end.
    pub fn before_guest(
        mut self,
        hook: impl Fn() -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.hooks.before_guest = Some(Arc::new(hook));
        self
    }

    /// Builds the VM up to the instant before its first instruction. No thread is started.
    ///
    /// # Errors
    /// What is wrong with the configuration, the guest's files or the host; nothing of the VM is left then.
    pub fn build(self) -> Result<Vm, Error> {
        self.config.validate()?;
        self.own.check_ids(&self.config)?;
        self.own.backends.check(&self.config)?;
        let timeline = Arc::new(self.timeline.unwrap_or_default());
        let kvm = Kvm::open(self.host_cache)?;
        timeline.host("kvm-open");
        let limits = &self.config.limits;
        let file_limit = limits.console_file.as_bytes();
        let buffer = limits.console_buffer.as_bytes();
        let buffer = usize::try_from(buffer).unwrap_or(usize::MAX);
        let output = ConsoleOutput::with_limits(buffer, STALL_LIMIT);
        let output = Arc::new(output.map_err(Error::host("console"))?);
        let mut stream = None;
        let serial = match (self.serial, &self.config.serial) {
            (Some(ends), _) => ConsoleHost::fixed(ends, None),
            (None, Some(config)) => ConsoleHost::open(config, "serial port", file_limit)?,
            (None, None) => {
                let made = ConsoleStream::new(buffer);
                let (mine, ends) = made.map_err(Error::host("console"))?;
                stream = Some(mine);
                ConsoleHost::fixed(ends, None)
            }
        };
        let console = match (&self.config.console, self.console) {
            (None, _) => None,
            (Some(_), Some((ends, size))) => Some(ConsoleHost::fixed(ends, size)),
            (Some(config), None) => Some(ConsoleHost::open(config, "console", file_limit)?),
        };
        let link = console.as_ref().map(|host| link(host, buffer)).transpose();
        let link = link.map_err(Error::host("console"))?;
        let log = Arc::new(LogBudget::new(limits.log.as_bytes()));
        let sockets = self.config.vsock.as_ref().map(|_| EndpointLife::new());
        let sockets = sockets.transpose().map_err(Error::host("event"))?;
        let inside = Inside {
            console: stream,
            vsock: sockets.as_ref().map(|life| life.endpoint().clone()),
        };
        let shared = Shared::new(timeline, output.clone(), link.clone(), inside);
        let shared = Arc::new(shared.map_err(Error::host("event"))?);
        output.set_observer(shared.watch.observer(Watched::Serial));
        if let Some(link) = &link {
            let observer = shared.watch.observer(Watched::Console);
            link.output().set_observer(observer);
        }
        let workers = match virtio::placement(&self.config, &self.own) {
            Placement::ControlThread => {
                let workers = WorkerLoop::new().map_err(Error::host("event loop"))?;
                Some(Arc::new(workers))
            }
            Placement::Nowhere | Placement::IoThread => None,
        };
        let networks = self.config.net.iter().any(|net| net.user);
        let shares = self.config.fs.iter().any(|fs| fs.path.is_some());
        let helpers = match networks || shares {
            true => Some(HelperWatch::new().map_err(Error::host("event"))?),
            false => None,
        };
        let blueprint = Blueprint {
            log,
            hooks: self.hooks,
            own: self.own,
            helpers,
            workers,
            config: self.config,
            kernel_cache: self.kernel_cache,
            kvm,
            shared,
            output,
            console: link,
            sockets,
            input_space: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
                .map(Arc::new)
                .map_err(Error::host("event"))?,
        };
        let events = EventLoop::new().map_err(Error::host("event loop"))?;
        let machine = Machine::build(&blueprint)?;
        Ok(Vm {
            events,
            blueprint,
            machine,
            consoles: Consoles { serial, console },
            sources: self.sources,
        })
    }
}

/// What joins a virtio console's host end with the device.
fn link(host: &ConsoleHost, buffer: usize) -> io::Result<Arc<ConsoleLink>> {
    let output = Arc::new(ConsoleOutput::for_offers(buffer)?);
    Ok(Arc::new(ConsoleLink::new(output, host.size())?))
}
