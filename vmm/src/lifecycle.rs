//! The life of a VM, as its owner drives it.
//!
//! ```text
//!  Created --start--> Running <--pause/resume--> Paused
//!                        |                          |
//!                        +-------- reset -----------+--> Running, by a machine of its own
//!                        +---- stop, or its end ----+--> Ended
//! ```
//!
//! # The contract
//! - **pause** returns when every vCPU is out of the guest, with its last instruction complete, and every worker of a virtio
//!   device has ended what it was doing: from then on nothing changes the guest's memory or registers. What the host's side
//!   has for the guest waits where it is: frames in the tap, bytes in the terminal, interrupts in KVM. The control thread goes
//!   on: output that the guest had printed arrives, and the VM's time limit counts.
//! - **resume** lets the workers go on, then the vCPUs. The guest's clocks have gone on meanwhile; its watchdogs are told that it
//!   was not running (KVM_KVMCLOCK_CTRL).
//! - **reset** is a reset by its owner: the machine goes, whatever it was doing, and one like it is built from the same files. It is
//!   carried out by the control thread, after the return.
//! - **stop** ends the VM from any state, and may come at any time. A pause under way ends with an error.
//!
//! # Threads and locks
//! Any thread may call these, several at once: one after the other they take the lifecycle's lock, and each finds the state in
//! which the one before it left the VM. The VM's own vCPU and I/O threads may not: they would wait for themselves, and get
//! [`StateError::OwnThread`]. The lock comes before the gate's, a kick's and a worker's; the control thread takes it to put a
//! machine in and to take it out.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::events::{EventBus, VmEvent};
use crate::io_thread::WorkerLoop;
use crate::memory::GuestRam;
use crate::vcpu::{Kick, PauseGate, Registers};

/// Where a VM is in its life.
///
/// ```
/// use ampoule_vmm::{VmHandle, VmState};
///
/// fn is_over(vm: &VmHandle) -> bool {
///     vm.state() == VmState::Ended
/// }
/// assert_eq!(VmState::Paused.to_string(), "paused");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum VmState {
    /// Built, and not started.
    Created,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs and devices stand still.
    Paused,
    /// It came to its end.
    Ended,
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Ended => "ended",
        })
    }
}

/// Why something cannot be done with a VM now.
///
/// ```
/// use ampoule_vmm::{StateError, VmHandle, VmState};
///
/// /// Pauses a VM that may come to its end meanwhile.
/// fn pause_if_alive(vm: &VmHandle) -> Result<bool, StateError> {
///     match vm.pause() {
///         Ok(()) => Ok(true),
///         Err(StateError::State { state: VmState::Ended }) => Ok(false),
///         Err(err) => Err(err),
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The VM is not in a state for it.
    #[error("the VM is {state}")]
    State {
        /// The state.
        state: VmState,
    },
    /// The caller is one of the VM's own threads, for which this would wait.
    #[error("a vCPU or I/O thread cannot wait for itself")]
    OwnThread,
    /// There is no such vCPU.
    #[error("there is no vCPU {index}")]
    NoVcpu {
        /// Its index.
        index: u32,
    },
    /// KVM does not tell.
    #[error("KVM does not tell the registers of vCPU {index}")]
    NoRegisters {
        /// Its index.
        index: u32,
    },
    /// There is no RAM.
    #[error("{len:#x} bytes at {address:#x} are not guest memory")]
    NotMemory {
        /// Guest physical address.
        address: u64,
        /// Bytes.
        len: usize,
    },
}

thread_local! {
    static OWN_THREAD: Cell<bool> = const { Cell::new(false) };
}

/// For as long as it lives, its thread is at work for a VM.
pub(crate) struct OwnThread(bool);

impl OwnThread {
    pub(crate) fn enter() -> Self {
        Self(OWN_THREAD.replace(true))
    }

    /// Whether the calling thread is at work for a VM.
    pub(crate) fn is_current() -> bool {
        OWN_THREAD.get()
    }
}

impl Drop for OwnThread {
    fn drop(&mut self) {
        OWN_THREAD.set(self.0);
    }
}

/// What can be held still of a machine that runs.
pub(crate) struct Controls {
    pub(crate) gate: Arc<PauseGate>,
    pub(crate) vcpus: Vec<Arc<Kick>>,
    pub(crate) workers: Option<Arc<WorkerLoop>>,
    pub(crate) ram: GuestRam,
}

/// Where a VM is in its life, and the machine that it has then.
pub(crate) struct Lifecycle {
    state: AtomicU8,
    controls: Mutex<Option<Controls>>,
    /// Told under the lock, so that the order is the one in which things happened.
    events: Arc<EventBus>,
}

impl Lifecycle {
    pub(crate) fn new(events: Arc<EventBus>) -> Self {
        Self {
            state: AtomicU8::new(VmState::Created as u8),
            controls: Mutex::new(None),
            events,
        }
    }

    /// The state; takes no lock.
    pub(crate) fn state(&self) -> VmState {
        const STATES: [VmState; 4] = [
            VmState::Created,
            VmState::Running,
            VmState::Paused,
            VmState::Ended,
        ];
        STATES[usize::from(self.state.load(Ordering::Acquire)) % STATES.len()]
    }

    fn set_state(&self, state: VmState) {
        self.state.store(state as u8, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Controls>> {
        self.controls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The control thread starts a machine.
    pub(crate) fn begin(&self, controls: Controls) {
        let mut slot = self.lock();
        *slot = Some(controls);
        let event = match self.state() {
            VmState::Created => VmEvent::Started,
            _ => VmEvent::Reset,
        };
        self.set_state(VmState::Running);
        self.events.tell(event);
    }

    /// The control thread takes the machine down; whoever waits for it does so no longer.
    pub(crate) fn end_machine(&self) {
        // A pause holds the lock, and waits at the gate for vCPUs that may never come now.
        if let Some(controls) = self.lock().take() {
            controls.gate.end();
        }
    }

    /// The VM has come to its end.
    pub(crate) fn end(&self) {
        self.set_state(VmState::Ended);
    }

    /// The machine, for one of this state, whose state nobody changes meanwhile.
    fn enter(&self, wanted: VmState) -> Result<Entered<'_>, StateError> {
        if OwnThread::is_current() {
            return Err(StateError::OwnThread);
        }
        let controls = self.lock();
        let state = self.state();
        if controls.is_none() || state != wanted {
            return Err(StateError::State { state });
        }
        Ok(Entered(controls))
    }

    /// See the module's contract. Of a paused VM it does nothing.
    pub(crate) fn pause(&self) -> Result<(), StateError> {
        let entered = match self.enter(VmState::Running) {
            Err(StateError::State {
                state: VmState::Paused,
            }) => return Ok(()),
            entered => entered?,
        };
        let Controls {
            gate,
            vcpus,
            workers,
            ..
        } = entered.controls();
        gate.close();
        for vcpu in vcpus {
            vcpu.kick();
        }
        if !gate.wait_for_all(vcpus.len() as u32) {
            gate.open();
            return Err(StateError::State {
                state: VmState::Ended,
            });
        }
        if let Some(workers) = workers {
            workers.pause();
        }
        self.set_state(VmState::Paused);
        self.events.tell(VmEvent::Paused);
        Ok(())
    }

    /// See the module's contract. Of a running VM it does nothing.
    pub(crate) fn resume(&self) -> Result<(), StateError> {
        let entered = match self.enter(VmState::Paused) {
            Err(StateError::State {
                state: VmState::Running,
            }) => return Ok(()),
            entered => entered?,
        };
        let Controls { gate, workers, .. } = entered.controls();
        if let Some(workers) = workers {
            workers.resume();
        }
        self.set_state(VmState::Running);
        self.events.tell(VmEvent::Resumed);
        gate.open();
        Ok(())
    }

    /// The guest's memory, for as long as the VM is paused.
    pub(crate) fn memory(&self) -> Result<PausedMemory<'_>, StateError> {
        self.enter(VmState::Paused).map(PausedMemory)
    }

    /// A vCPU's registers; the VM is paused.
    pub(crate) fn registers(&self, index: u32) -> Result<Registers, StateError> {
        let entered = self.enter(VmState::Paused)?;
        let Controls { gate, vcpus, .. } = entered.controls();
        if index as usize >= vcpus.len() {
            return Err(StateError::NoVcpu { index });
        }
        gate.registers(index)
            .ok_or(StateError::NoRegisters { index })
    }
}

/// A machine that stays as it is.
struct Entered<'a>(MutexGuard<'a, Option<Controls>>);

impl Entered<'_> {
    fn controls(&self) -> &Controls {
        // `Lifecycle::enter` has seen to it that there is one, and the lock has been held since.
        match &*self.0 {
            Some(controls) => controls,
            None => unreachable!("a VM was entered that has no machine"),
        }
    }
}

/// A paused VM's memory. The VM stays paused for as long as this is held: who resumes, resets or stops it waits.
///
/// ```
/// use ampoule_vmm::{StateError, VmHandle};
///
/// /// The first bytes of the guest's physical memory, and where its first vCPU is.
/// fn look(vm: &VmHandle) -> Result<([u8; 16], u64), StateError> {
///     vm.pause()?;
///     let mut bytes = [0; 16];
///     vm.memory()?.read(0x1000, &mut bytes)?;
///     let rip = vm.vcpu_registers(0)?.rip;
///     vm.resume()?;
///     Ok((bytes, rip))
/// }
/// ```
pub struct PausedMemory<'a>(Entered<'a>);

impl PausedMemory<'_> {
    fn ram(&self) -> &GuestRam {
        &self.0.controls().ram
    }

    fn check(&self, address: u64, len: usize) -> Result<GuestAddress, StateError> {
        let start = GuestAddress(address);
        match GuestMemoryBackend::check_range(self.ram(), start, len) {
            true => Ok(start),
            false => Err(StateError::NotMemory { address, len }),
        }
    }

    /// Fills `data` from guest physical memory at `address`.
    ///
    /// # Errors
    /// [`StateError::NotMemory`], where any of it is no RAM.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), StateError> {
        let len = data.len();
        let start = self.check(address, len)?;
        self.ram()
            .read_slice(data, start)
            .map_err(|_| StateError::NotMemory { address, len })
    }

    /// Writes `data` to guest physical memory at `address`.
    ///
    /// # Errors
    /// [`StateError::NotMemory`], where any of it is no RAM; nothing is written then.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), StateError> {
        let len = data.len();
        let start = self.check(address, len)?;
        self.ram()
            .write_slice(data, start)
            .map_err(|_| StateError::NotMemory { address, len })
    }

    /// The bytes of guest memory.
    pub fn size(&self) -> u64 {
        use vm_memory::GuestMemoryRegion;
        self.ram().iter().map(|region| region.len()).sum()
    }
}
