//! A virtual machine that is built, on its way to its first instruction.

use std::path::PathBuf;
use std::thread;

use crate::console::Consoles;
use crate::control::{Control, ControlSource, EventLoop};
use crate::error::Error;
use crate::exit::ExitReason;
use crate::handle::VmHandle;
use crate::machine::{Blueprint, Machine};

/// A VM that has not started yet.
///
/// ```no_run
/// use ampoule_vmm::{ExitReason, VmBuilder, config::VmConfig};
///
/// # fn main() -> Result<(), ampoule_vmm::Error> {
/// let config = VmConfig { kernel: Some("/boot/vmlinuz".into()), ..VmConfig::default() };
/// let vm = VmBuilder::new(config).build()?;
/// // Valid before the start, for a thread that may want to end it.
/// let handle = vm.handle();
/// std::thread::spawn(move || handle.stop());
/// assert_eq!(vm.run(), ExitReason::Stopped);
/// # Ok(())
/// # }
/// ```
pub struct Vm {
    pub(crate) events: EventLoop,
    pub(crate) blueprint: Blueprint,
    pub(crate) machine: Machine,
    pub(crate) consoles: Consoles,
    pub(crate) sources: Vec<Box<dyn ControlSource>>,
}

impl Vm {
    /// What reaches the VM from other threads; valid from now on. This one does not keep the VM alive, nor end it when it is
    /// dropped: that is for the one of [`Self::start`].
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

    /// Starts the VM, with a control thread of its own. When the handle and all its clones are dropped, the VM is stopped,
    /// and the last drop returns when nothing is left of it.
    ///
    /// # Errors
    /// [`Error::Host`] when the host refuses the thread.
    pub fn start(self) -> Result<VmHandle, Error> {
        let shared = self.blueprint.shared.clone();
        let thread = thread::Builder::new()
            .name("vm-control".into())
            .stack_size(CONTROL_STACK)
            .spawn(move || {
                self.run();
            })
            .map_err(Error::host("control thread"))?;
        Ok(VmHandle::owning(shared, thread))
    }
}

/// A restart loads a kernel on this thread.
const CONTROL_STACK: usize = 1 << 20;
