//! What the owner of a VM holds while it runs, and the state behind it.

use std::io;
use std::iter;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use ampoule_devices::console::ConsoleOutput;
use ampoule_devices::legacy::power::AcpiPower;
use ampoule_devices::virtio::block::{Resized, Resizer};
use ampoule_devices::virtio::console::ConsoleLink;
use ampoule_devices::virtio::vsock::VsockEndpoint;

use crate::console_stream::ConsoleStream;
use crate::events::{EventBus, Events, VmEvent};
use crate::exit::{ExitLatch, ExitReason};
use crate::guest_watch::GuestWatch;
use crate::lifecycle::{Lifecycle, OwnThread, PausedMemory, StateError, VmState};
use crate::metrics::{Metrics, Registry};
use crate::sync::lock;
use crate::timeline::Timeline;
use crate::vcpu::Registers;

/// A VM, as its owner sees it: cheap to clone, and safe to use from any thread, before the start, during the run and after
/// the end.
///
/// Clones of the handle that [`Vm::start`](crate::Vm::start) returned own the VM together: when the last of them is dropped, the
/// VM is stopped, and the drop returns when no thread, mapping or descriptor of it is left.
///
/// ```no_run
/// use std::time::Duration;
/// use ampoule_vmm::{VmBuilder, config::VmConfig};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = VmConfig { kernel: Some("/boot/vmlinuz".into()), ..VmConfig::default() };
/// let vm = VmBuilder::new(config).build()?.start()?;
/// if vm.wait_timeout(Duration::from_secs(10)).is_none() {
///     // The guest may save what it has; five seconds later it is stopped.
///     vm.shut_down(Duration::from_secs(5))?;
/// }
/// println!("{}", vm.wait());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct VmHandle {
    shared: Arc<Shared>,
    /// None in handles that do not own the VM.
    owner: Option<Arc<Owner>>,
}

/// What the owning handles of a VM have in common.
struct Owner {
    shared: Arc<Shared>,
    /// The control thread, until somebody has joined it.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Owner {
    /// Waits until the control thread is gone, which has written the VM's end down or is about to.
    fn join(&self) {
        let mut slot = lock(&self.thread);
        // A VM's own thread may hold the last handle: a device, or what the control thread waits on.
        let own = |thread: &JoinHandle<()>| thread.thread().id() == thread::current().id();
        if OwnThread::is_current() || slot.as_ref().is_some_and(own) {
            return;
        }
        if let Some(thread) = slot.take()
            && thread.join().is_err()
        {
            log::error!("a control thread panicked");
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.latch.set(ExitReason::Stopped);
        self.join();
    }
}

/// Why a disk's size could not be looked at again.
///
/// ```
/// use ampoule_vmm::{ResizeError, Resized, VmHandle};
///
/// /// For a program that has made a disk's image larger.
/// fn tell_the_guest(vm: &VmHandle) -> Result<(), ResizeError> {
///     match vm.resize_disk("disk0")? {
///         Resized::Grown(bytes) => println!("{bytes} bytes now, and the guest knows"),
///         other => println!("nothing to tell: {other:?}"),
///     }
///     Ok(())
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResizeError {
    /// There is no such disk.
    #[error("there is no disk \"{id}\"")]
    NoDisk {
        /// What was asked for.
        id: String,
    },
    /// The host does not say, or could not interrupt the guest.
    #[error("cannot resize disk \"{id}\"")]
    Host {
        /// The disk.
        id: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What of a VM leads into the program that runs it.
pub(crate) struct Inside {
    /// The serial port.
    pub(crate) console: Option<ConsoleStream>,
    /// The guest's sockets.
    pub(crate) vsock: Option<VsockEndpoint>,
}

/// What all threads of a VM share. Its locks are leaves, but for the lifecycle's: nobody who holds one takes another.
pub(crate) struct Shared {
    /// The end of the present run.
    pub(crate) latch: Arc<ExitLatch>,
    /// When things happened.
    pub(crate) timeline: Arc<Timeline>,
    /// What the guest's console gave away.
    pub(crate) watch: Arc<GuestWatch>,
    /// What is counted.
    pub(crate) metrics: Registry,
    /// What is told to whoever wants to know.
    pub(crate) events: Arc<EventBus>,
    /// The virtio console, where there is one.
    console: Option<Arc<ConsoleLink>>,
    /// What leads into this program.
    inside: Inside,
    /// Wakes the control thread, when it should look at its deadlines again.
    pub(crate) wake: EventFd,
    /// The present machine's power button; a restart brings another.
    power: Mutex<Option<Arc<AcpiPower>>>,
    /// What changes the sizes of the present machine's disks.
    resizers: Mutex<Vec<Resizer>>,
    /// When a guest that was asked to power off is stopped.
    stop_at: Mutex<Option<Instant>>,
    /// Where the VM is in its life.
    pub(crate) lifecycle: Lifecycle,
    /// Its owner wants a reset.
    reset_asked: AtomicBool,
    /// The end of the VM.
    outcome: Mutex<Option<ExitReason>>,
    ended: Condvar,
}

impl Shared {
    pub(crate) fn new(
        timeline: Arc<Timeline>,
        serial: Arc<ConsoleOutput>,
        console: Option<Arc<ConsoleLink>>,
        inside: Inside,
    ) -> io::Result<Self> {
        let hvc = console
            .as_ref()
            .map(|link| ("console", link.output().clone()));
        let consoles = iter::once(("serial", serial)).chain(hvc).collect();
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let events = Arc::<EventBus>::default();
        let watch = GuestWatch::new(timeline.clone(), wake.try_clone()?, events.clone());
        let watch = Arc::new(watch);
        Ok(Self {
            latch: Arc::new(ExitLatch::new()?),
            timeline,
            watch,
            metrics: Registry::new(consoles),
            lifecycle: Lifecycle::new(events.clone()),
            events,
            console,
            inside,
            wake,
            power: Mutex::new(None),
            resizers: Mutex::new(Vec::new()),
            stop_at: Mutex::new(None),
            reset_asked: AtomicBool::new(false),
            outcome: Mutex::new(None),
            ended: Condvar::new(),
        })
    }

    pub(crate) fn set_power(&self, power: Option<Arc<AcpiPower>>) {
        *lock(&self.power) = power;
    }

    pub(crate) fn set_resizers(&self, resizers: Vec<Resizer>) {
        *lock(&self.resizers) = resizers;
    }

    pub(crate) fn stop_at(&self) -> Option<Instant> {
        *lock(&self.stop_at)
    }

    /// Whether the reset at hand is the owner's; asked once for each.
    pub(crate) fn take_reset(&self) -> bool {
        self.reset_asked.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn finish(&self, reason: ExitReason) {
        self.lifecycle.end();
        *lock(&self.outcome) = Some(reason.clone());
        self.ended.notify_all();
        self.events.tell(VmEvent::Exited(reason));
    }
}

impl VmHandle {
    /// A handle that does not own the VM.
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            owner: None,
        }
    }

    /// A handle that owns the VM, whose control thread is this one.
    pub(crate) fn owning(shared: Arc<Shared>, thread: JoinHandle<()>) -> Self {
        Self {
            owner: Some(Arc::new(Owner {
                shared: shared.clone(),
                thread: Mutex::new(Some(thread)),
            })),
            shared,
        }
    }

    /// Presses the guest's ACPI power button. A guest without a driver for it takes no notice.
    ///
    /// # Errors
    /// The host's, on raising the interrupt.
    pub fn press_power_button(&self) -> io::Result<()> {
        let power = lock(&self.shared.power).clone();
        power.map_or(Ok(()), |power| power.press_power_button())
    }

    /// Looks how large the image of the disk `id` is by now (disks without an id are `disk0` and so on), and tells the guest if
    /// it has grown. One that has shrunk is left as it was, for the guest may be using what is gone.
    ///
    /// # Errors
    /// [`ResizeError`].
    pub fn resize_disk(&self, id: &str) -> Result<Resized, ResizeError> {
        let named = |resizer: &&Resizer| resizer.name() == id;
        let resizer = lock(&self.shared.resizers).iter().find(named).cloned();
        let resizer = resizer.ok_or_else(|| ResizeError::NoDisk { id: id.to_owned() })?;
        resizer.resize().map_err(|source| ResizeError::Host {
            id: id.to_owned(),
            source,
        })
    }

    /// The ids of its disks, in the order in which the guest sees them. None before its start and after
    /// its end.
    pub fn disk_ids(&self) -> Vec<String> {
        let resizers = lock(&self.shared.resizers);
        resizers.iter().map(|it| it.name().to_owned()).collect()
    }

    /// Asks the guest to power off, and stops the VM when it has not done so within `grace`.
    ///
    /// # Errors
    /// The host's, on raising the interrupt; the VM is stopped after `grace` all the same.
    pub fn shut_down(&self, grace: Duration) -> io::Result<()> {
        let now = Instant::now();
        *lock(&self.shared.stop_at) = Some(now.checked_add(grace).unwrap_or(now));
        let _ = self.shared.wake.write(1);
        self.press_power_button()
    }

    /// Ends the VM now, as if its plug were pulled. [`ExitReason::Stopped`] is its reason.
    pub fn stop(&self) {
        self.shared.latch.set(ExitReason::Stopped);
    }

    /// Where the VM is in its life. While a pause is under way it is still running.
    pub fn state(&self) -> VmState {
        self.shared.lifecycle.state()
    }

    /// Holds the VM still: on the return, no vCPU is in the guest and no device touches its memory. Of a paused VM it does
    /// nothing.
    ///
    /// # Errors
    /// [`StateError::State`] of a VM that is not started, or ends; [`StateError::OwnThread`].
    pub fn pause(&self) -> Result<(), StateError> {
        self.shared.lifecycle.pause()
    }

    /// Lets a paused VM go on. Of a running one it does nothing.
    ///
    /// # Errors
    /// As for [`Self::pause`].
    pub fn resume(&self) -> Result<(), StateError> {
        self.shared.lifecycle.resume()
    }

    /// Resets the VM, running or paused: it boots again from the files that its configuration names, as if its reset button
    /// were pressed. Carried out by the control thread, after the return. [`ExitReason::HostFailed`] is the VM's end, where it
    /// cannot be built again.
    ///
    /// # Errors
    /// [`StateError::State`] of a VM that is not started, or has ended.
    pub fn reset(&self) -> Result<(), StateError> {
        match self.state() {
            VmState::Running | VmState::Paused => {
                self.shared.reset_asked.store(true, Ordering::Release);
                self.shared.latch.set(ExitReason::Reset);
                Ok(())
            }
            state => Err(StateError::State { state }),
        }
    }

    /// A paused VM's memory; as long as it is held, the VM stays paused.
    ///
    /// # Errors
    /// [`StateError::State`] of a VM that is not paused; [`StateError::OwnThread`].
    pub fn memory(&self) -> Result<PausedMemory<'_>, StateError> {
        self.shared.lifecycle.memory()
    }

    /// The registers of a paused VM's vCPU.
    ///
    /// # Errors
    /// As for [`Self::memory`], and [`StateError::NoVcpu`] or [`StateError::NoRegisters`].
    pub fn vcpu_registers(&self, index: u32) -> Result<Registers, StateError> {
        self.shared.lifecycle.registers(index)
    }

    /// Waits for the VM's end. Of a VM that was never started, there is none. When an owner's handle has waited, no thread of
    /// the VM is left.
    pub fn wait(&self) -> ExitReason {
        let mut outcome = lock(&self.shared.outcome);
        let reason = loop {
            if let Some(reason) = &*outcome {
                break reason.clone();
            }
            outcome = self
                .shared
                .ended
                .wait(outcome)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        };
        drop(outcome);
        self.join();
        reason
    }

    /// Waits for the VM's end as [`Self::wait`] does, at most for `timeout`.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<ExitReason> {
        let outcome = lock(&self.shared.outcome);
        let (outcome, _) = self
            .shared
            .ended
            .wait_timeout_while(outcome, timeout, |outcome| outcome.is_none())
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let reason = outcome.clone();
        drop(outcome);
        if reason.is_some() {
            self.join();
        }
        reason
    }

    fn join(&self) {
        if let Some(owner) = &self.owner {
            owner.join();
        }
    }

    /// The reason of its end, once there is one.
    pub fn exit_reason(&self) -> Option<ExitReason> {
        lock(&self.shared.outcome).clone()
    }

    /// The guest's serial port, to read and to write: from its first byte on, whether it has started yet or not. None where the
    /// configuration's `serial`, or [`VmBuilder::serial`](crate::VmBuilder::serial), leads it elsewhere.
    pub fn console(&self) -> Option<ConsoleStream> {
        self.shared.inside.console.clone()
    }

    /// The guest's sockets (AF_VSOCK), without a network and without a path on the host: the program connects to ports of the
    /// guest's, and listens on ports that the guest connects to (CID 2). Valid before the start; what is asked for then waits for
    /// the guest's driver. None where the configuration has no `vsock`.
    ///
    /// ```no_run
    /// use std::io::{Read, Write};
    /// use std::time::Duration;
    /// use ampoule_vmm::VmBuilder;
    /// use ampoule_vmm::config::{VmConfig, VsockConfig};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let config = VmConfig {
    ///     kernel: Some("/boot/vmlinuz".into()),
    ///     initrd: Some("agent.cpio".into()),
    ///     vsock: Some(VsockConfig { cid: 3, socket: None }),
    ///     ..VmConfig::default()
    /// };
    /// let vm = VmBuilder::new(config).build()?;
    /// let vsock = vm.handle().vsock().expect("the configuration has one");
    /// // The agent in the guest connects to this port when it is ready, before anybody connects to the agent.
    /// let ready = vsock.listen(1024)?;
    /// let vm = vm.start()?;
    /// ready.accept_timeout(Duration::from_secs(10))?;
    /// let mut agent = vsock.connect_timeout(1025, Duration::from_secs(1))?;
    /// agent.write_all(b"uname -a\n")?;
    /// let mut answer = String::new();
    /// agent.read_to_string(&mut answer)?;
    /// # vm.stop();
    /// # Ok(())
    /// # }
    /// ```
    pub fn vsock(&self) -> Option<VsockEndpoint> {
        self.shared.inside.vsock.clone()
    }

    /// What happens to the VM from now on, and its end in any case.
    pub fn events(&self) -> Events {
        self.shared.events.subscribe()
    }

    /// The terminal of the virtio console has another size now, in columns and rows; the guest is told. Nothing happens where the
    /// VM has no such console, or started without a size.
    ///
    /// # Errors
    /// The host's, on raising the interrupt.
    pub fn resize_console(&self, cols: u16, rows: u16) -> io::Result<()> {
        let console = self.shared.console.as_ref();
        console.map_or(Ok(()), |console| console.resize((cols, rows)))
    }

    /// What has been counted since the VM's first start.
    pub fn metrics(&self) -> Metrics {
        self.shared.metrics.metrics()
    }

    /// When things happened.
    pub fn timeline(&self) -> &Timeline {
        &self.shared.timeline
    }
}
