//! A virtual machine: built, then run to its end.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use vmm_sys_util::eventfd::EventFd;

use ampoule_devices::console::ConsoleOutput;
use ampoule_devices::virtio::console::ConsoleLink;

use crate::config::VmConfig;
use crate::console::{ConsoleEnds, ConsoleHost, Consoles};
use crate::control::{Control, ControlSource, EventLoop};
use crate::error::Error;
use crate::exit::ExitReason;
use crate::guest_watch::Watched;
use crate::handle::{Shared, VmHandle};
use crate::io_thread::WorkerLoop;
use crate::kvm::Kvm;
use crate::machine::{Blueprint, Machine};
use crate::passt::HelperWatch;
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
    serial: Option<ConsoleEnds>,
    console: Option<(ConsoleEnds, Option<(u16, u16)>)>,
    sources: Vec<Box<dyn ControlSource>>,
}

impl VmBuilder {
    /// A VM as `config` describes it.
    pub fn new(config: VmConfig) -> Self {
        Self {
            config,
            timeline: None,
            serial: None,
            console: None,
            sources: Vec::new(),
        }
    }

    /// Uses a timeline that the program has begun already.
    pub fn timeline(mut self, timeline: Timeline) -> Self {
        self.timeline = Some(timeline);
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
        let serial = match self.serial {
            Some(ends) => ConsoleHost::fixed(ends, None),
            None => ConsoleHost::open(self.config.effective_serial(), "serial port")?,
        };
        let console = match (&self.config.console, self.console) {
            (None, _) => None,
            (Some(_), Some((ends, size))) => Some(ConsoleHost::fixed(ends, size)),
            (Some(config), None) => Some(ConsoleHost::open(config, "console")?),
        };
        let link = console.as_ref().map(link).transpose();
        let link = link.map_err(Error::host("console"))?;
        let shared = Shared::new(timeline, output.clone(), link.clone());
        let shared = Arc::new(shared.map_err(Error::host("event"))?);
        output.set_observer(shared.watch.observer(Watched::Serial));
        if let Some(link) = &link {
            let observer = shared.watch.observer(Watched::Console);
            link.output().set_observer(observer);
        }
        let workers = match virtio::placement(&self.config) {
            Placement::ControlThread => {
                let workers = WorkerLoop::new().map_err(Error::host("event loop"))?;
                Some(Arc::new(workers))
            }
            Placement::Nowhere | Placement::IoThread => None,
        };
        let helpers = match self.config.net.iter().any(|net| net.user) {
            true => Some(HelperWatch::new().map_err(Error::host("event"))?),
            false => None,
        };
        let blueprint = Blueprint {
            helpers,
            workers,
            config: self.config,
            kvm,
            shared,
            output,
            console: link,
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
fn link(host: &ConsoleHost) -> io::Result<Arc<ConsoleLink>> {
    let output = Arc::new(ConsoleOutput::for_offers()?);
    Ok(Arc::new(ConsoleLink::new(output, host.size())?))
}

/// A VM that has not started yet.
pub struct Vm {
    events: EventLoop,
    blueprint: Blueprint,
    machine: Machine,
    consoles: Consoles,
    sources: Vec<Box<dyn ControlSource>>,
}

impl Vm {
    /// What reaches the VM from other threads; valid from now on.
    pub fn handle(&self) -> VmHandle {
        VmHandle::new(self.blueprint.shared.clone())
    }

    /// Where the consoles are that the configuration has on pseudo-terminals: `serial` or `console`, and the path.
    pub fn ptys(&self) -> Vec<(&'static str, PathBuf)> {
        self.consoles.ptys()
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
            self.consoles,
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
