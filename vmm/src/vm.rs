//! A virtual machine: built, then run to its end.

use std::sync::Arc;
use std::thread;

use vmm_sys_util::eventfd::EventFd;

use ampoule_devices::console::ConsoleOutput;

use crate::config::VmConfig;
use crate::console::{ConsoleHost, SerialEnds};
use crate::control::{Control, ControlSource, EventLoop};
use crate::error::Error;
use crate::exit::ExitReason;
use crate::handle::{Shared, VmHandle};
use crate::io_thread::WorkerLoop;
use crate::kvm::Kvm;
use crate::machine::{Blueprint, Machine};
use crate::timeline::Timeline;
use crate::virtio::{self, Placement};

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
    serial: Option<SerialEnds>,
    sources: Vec<Box<dyn ControlSource>>,
}

impl VmBuilder {
    /// A VM as `config` describes it.
    pub fn new(config: VmConfig) -> Self {
        Self {
            config,
            timeline: None,
            serial: None,
            sources: Vec::new(),
        }
    }

    /// Uses a timeline that the program has begun already.
    pub fn timeline(mut self, timeline: Timeline) -> Self {
        self.timeline = Some(timeline);
        self
    }

    /// Connects the serial port to these ends, instead of to what the configuration's `serial` says.
    pub fn serial(mut self, ends: SerialEnds) -> Self {
        self.serial = Some(ends);
        self
    }

    /// Lets the control thread wait on one thing more.
    pub fn control_source(mut self, source: impl ControlSource + 'static) -> Self {
        self.sources.push(Box::new(source));
        self
    }

    /// Builds the VM up to the instant before its first instruction. No thread is started.
    ///
    /// # Errors
    /// What is wrong with the configuration, the guest's files or the host; nothing of the VM is left then.
    pub fn build(self) -> Result<Vm, Error> {
        self.config.validate()?;
        let timeline = Arc::new(self.timeline.unwrap_or_default());
        let kvm = Kvm::open()?;
        timeline.host("kvm-open");
        let output = Arc::new(ConsoleOutput::new().map_err(Error::host("console"))?);
        let consoles = vec![("serial", output.clone())];
        let shared = Shared::new(timeline, consoles).map_err(Error::host("event"))?;
        let shared = Arc::new(shared);
        let console = match self.serial {
            Some(ends) => ConsoleHost::fixed(ends),
            None => ConsoleHost::open(&self.config.serial)?,
        };
        output.set_observer(shared.watch.clone());
        let workers = match virtio::placement(&self.config) {
            Placement::ControlThread => {
                let workers = WorkerLoop::new().map_err(Error::host("event loop"))?;
                Some(Arc::new(workers))
            }
            Placement::Nowhere | Placement::IoThread => None,
        };
        let blueprint = Blueprint {
            workers,
            config: self.config,
            kvm,
            shared,
            output,
            input_space: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
                .map_err(Error::host("event"))?,
        };
        let events = EventLoop::new().map_err(Error::host("event loop"))?;
        let machine = Machine::build(&blueprint)?;
        Ok(Vm {
            events,
            blueprint,
            machine,
            console,
            sources: self.sources,
        })
    }
}

/// A VM that has not started yet.
pub struct Vm {
    events: EventLoop,
    blueprint: Blueprint,
    machine: Machine,
    console: ConsoleHost,
    sources: Vec<Box<dyn ControlSource>>,
}

impl Vm {
    /// What reaches the VM from other threads; valid from now on.
    pub fn handle(&self) -> VmHandle {
        VmHandle::new(self.blueprint.shared.clone())
    }

    /// Runs the VM to its end with the calling thread as its control thread.
    ///
    /// For a program that has nothing else to do with its thread; it saves one. All others want [`Vm::start`].
    pub fn run(self) -> ExitReason {
        let handle = self.handle();
        Control::new(
            self.blueprint,
            self.machine,
            handle,
            self.console,
            self.sources,
        )
        .run(self.events)
    }

    /// Starts the VM, with a control thread of its own.
    ///
    /// # Errors
    /// [`Error::Host`] when the host refuses the thread.
    pub fn start(self) -> Result<VmHandle, Error> {
        let handle = self.handle();
        thread::Builder::new()
            .name("vm-control".into())
            .spawn(move || self.run())
            .map_err(Error::host("control thread"))?;
        Ok(handle)
    }
}
