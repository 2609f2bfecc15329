//! The probe: does this host's KVM execute what Linux needs?
//!
//! Some KVMs work without the processor's virtualisation and run a guest's kernel in an instruction emulator that was
//! written for device access. They offer the same ioctls, and stop at the first instruction that the emulator lacks. The
//! only way to know is to try: each probe is a VM of 64 KiB that executes one thing Linux cannot do without, and says so
//! at an I/O port (see `guest`). Reference: the kernel's Documentation/virt/kvm/api.rst, sections 4.10 (KVM_RUN) and 5.
//!
//! [`probe_kvm`] runs all of them on a thread of its own, and interrupts one that does not come back. It needs no signal
//! handler for that: the thread has the signal blocked, and only KVM_RUN lets it through (KVM_SET_SIGNAL_MASK).

mod guest;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::mem::size_of;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVMIO, Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_signal_mask,
    kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use serde::Serialize;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;
use vmm_sys_util::signal::{Killable, SIGRTMIN, block_signal};

use crate::kvm::{KvmError, software_module};
use guest::{FAULT_PORT, GUESTS, Guest, KERNEL_CODE, KERNEL_DATA, LAYOUT, VERDICT_PORT};

/// How long one probe may take. It needs less than a millisecond; but to make and to end a VM waits for grace periods of the
/// host's kernel, which on a machine that is short of processors were seen to take seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long the thread of an interrupted probe may take to come back, before it is left behind.
const LAST_PATIENCE: Duration = Duration::from_secs(20);

/// Why the host's KVM could not be probed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// KVM is missing, closed to this user, or lacks what every VM needs.
    #[error("cannot use KVM")]
    Kvm(#[from] KvmError),
    /// KVM refused a probe's VM.
    #[error("KVM refused to {what} for a probe")]
    Refused {
        /// What was wanted, as a verb phrase.
        what: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// The host has no memory for a probe.
    #[error("cannot allocate 64 KiB for a probe")]
    Memory(#[source] io::Error),
    /// The host refused the probe's thread.
    #[error("cannot start a thread for the probe")]
    Thread(#[source] io::Error),
    /// The probe's thread ended without a result.
    #[error("the thread of the probe ended early")]
    Aborted,
}

impl ProbeError {
    /// What a person can do about it.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Kvm(err) => err.remedy(),
            Self::Refused { .. } | Self::Memory(_) | Self::Thread(_) | Self::Aborted => None,
        }
    }
}

/// What a host's KVM is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "backend")]
pub enum KvmKind {
    /// The processor's own virtualisation.
    Hardware {
        /// "AMD-V" or "VT-x"; `None` where the processor does not say.
        extension: Option<&'static str>,
    },
    /// A software back end.
    Software {
        /// The kernel module that brings it; `None` where only the probes gave it away.
        module: Option<&'static str>,
    },
}

impl fmt::Display for KvmKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hardware {
                extension: Some(extension),
            } => write!(f, "hardware ({extension})"),
            Self::Hardware { extension: None } => f.write_str("hardware"),
            Self::Software {
                module: Some(module),
            } => write!(f, "software ({module})"),
            Self::Software { module: None } => f.write_str("software"),
        }
    }
}

/// How a probe ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "result")]
pub enum Outcome {
    /// It works.
    Ok,
    /// The processor does not offer it, so that no guest will use it.
    NotOffered,
    /// KVM's emulator does not know an instruction (KVM_EXIT_INTERNAL_ERROR, suberror 1).
    NotEmulated {
        /// The bytes at the instruction pointer, up to 15; the instruction is at their start.
        bytes: Vec<u8>,
    },
    /// Another internal error of KVM.
    InternalError {
        /// KVM's number for it (KVM_INTERNAL_ERROR_*).
        suberror: u32,
    },
    /// It ran, and did the wrong thing.
    WrongResult,
    /// An exception that it should not raise.
    Exception {
        /// Its vector.
        vector: u8,
    },
    /// Another exit than the expected one.
    OtherExit {
        /// What KVM returned.
        exit: String,
    },
    /// It did not come to an end, and was interrupted.
    Hung,
}

impl Outcome {
    /// Whether Linux can live with it.
    pub fn is_good(&self) -> bool {
        matches!(self, Self::Ok | Self::NotOffered)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("works"),
            Self::NotOffered => f.write_str("not offered by the processor"),
            Self::NotEmulated { bytes } => {
                f.write_str("KVM cannot emulate it (internal error 1, bytes")?;
                // Enough to tell the instruction; most of the rest belongs to the next ones.
                bytes
                    .iter()
                    .take(4)
                    .try_for_each(|byte| write!(f, " {byte:02x}"))?;
                f.write_str(")")
            }
            Self::InternalError { suberror } => write!(f, "internal error {suberror} of KVM"),
            Self::WrongResult => f.write_str("gives a wrong result"),
            Self::Exception { vector } => write!(f, "raises exception {vector}"),
            Self::OtherExit { exit } => write!(f, "KVM returned {exit}"),
            Self::Hung => f.write_str("does not come to an end"),
        }
    }
}

/// One probe and its outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct InstructionProbe {
    /// The instructions, as people call them.
    pub name: &'static str,
    /// What Linux needs them for.
    pub purpose: &'static str,
    /// How it ended.
    pub outcome: Outcome,
}

/// What the probe found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ProbeReport {
    /// KVM's API version.
    pub api_version: i32,
    /// The most vCPUs of a VM.
    pub max_vcpus: usize,
    /// What this KVM is made of.
    pub kind: KvmKind,
    /// The probes in the order in which they ran, the least demanding first.
    pub instructions: Vec<InstructionProbe>,
}

impl ProbeReport {
    /// Whether this host's KVM executed everything that Linux guests need.
    pub fn linux_capable(&self) -> bool {
        self.failures().next().is_none()
    }

    /// The probes that failed.
    pub fn failures(&self) -> impl Iterator<Item = &InstructionProbe> {
        self.instructions
            .iter()
            .filter(|probe| !probe.outcome.is_good())
    }
}

/// Probes the host's KVM. Takes milliseconds; at most some seconds where KVM hangs.
///
/// ```no_run
/// use ampoule_vmm::probe::probe_kvm;
///
/// # fn main() -> Result<(), ampoule_vmm::probe::ProbeError> {
/// let report = probe_kvm()?;
/// println!("KVM in {}", report.kind);
/// for probe in report.failures() {
///     println!("no Linux guest here: {} {}", probe.name, probe.outcome);
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`ProbeError`] where it did not come to the first instruction.
pub fn probe_kvm() -> Result<ProbeReport, ProbeError> {
    // Its checks are those that every VM goes through.
    drop(crate::kvm::Kvm::open(None)?);
    let kvm = Kvm::new().map_err(refused("be opened"))?;
    let (api_version, max_vcpus) = (kvm.get_api_version(), kvm.get_max_vcpus());
    let instructions = run_on_thread(kvm)?;
    let all_good = instructions.iter().all(|probe| probe.outcome.is_good());
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let kind = classify(software_module(), cpu_extension(&cpuinfo), all_good);
    Ok(ProbeReport {
        api_version,
        max_vcpus,
        kind,
        instructions,
    })
}

fn classify(
    module: Option<&'static str>,
    extension: Option<&'static str>,
    all_good: bool,
) -> KvmKind {
    match (module, extension) {
        (Some(_), _) => KvmKind::Software { module },
        (None, Some(_)) => KvmKind::Hardware { extension },
        (None, None) if all_good => KvmKind::Hardware { extension },
        (None, None) => KvmKind::Software { module },
    }
}

/// The virtualisation extension that /proc/cpuinfo tells of.
fn cpu_extension(cpuinfo: &str) -> Option<&'static str> {
    let flags: BTreeSet<&str> = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("flags"))
        .map(|rest| rest.split_whitespace().collect())
        .unwrap_or_default();
    match (flags.contains("svm"), flags.contains("vmx")) {
        (true, _) => Some("AMD-V"),
        (_, true) => Some("VT-x"),
        _ => None,
    }
}

/// What the probe's thread tells: that it can be interrupted from now on, then one result a guest.
enum Progress {
    Ready,
    Done(Result<Outcome, ProbeError>),
}

fn run_on_thread(kvm: Kvm) -> Result<Vec<InstructionProbe>, ProbeError> {
    let (sender, progress) = mpsc::channel();
    let thread = thread::Builder::new()
        .name("kvm-probe".into())
        .spawn(move || run_guests(&kvm, &sender))
        .map_err(ProbeError::Thread)?;
    match progress.recv() {
        Ok(Progress::Ready) => {}
        Ok(Progress::Done(Err(err))) => return Err(err),
        Ok(Progress::Done(Ok(_))) | Err(_) => return Err(ProbeError::Aborted),
    }
    let mut probes = Vec::with_capacity(GUESTS.len());
    for guest in GUESTS {
        let (outcome, alive) = next_outcome(&thread, &progress)?;
        probes.push(InstructionProbe {
            name: guest.name,
            purpose: guest.purpose,
            outcome,
        });
        if !alive {
            break;
        }
    }
    Ok(probes)
}

/// Waits for one result, and interrupts the guest when it takes too long. The flag is false when not even that helped; the
/// thread, and the VM with it, is left behind then.
fn next_outcome(
    thread: &JoinHandle<()>,
    progress: &Receiver<Progress>,
) -> Result<(Outcome, bool), ProbeError> {
    let mut interrupted = false;
    loop {
        let patience = if interrupted { LAST_PATIENCE } else { PATIENCE };
        match progress.recv_timeout(patience) {
            Ok(Progress::Done(outcome)) => return Ok((outcome?, true)),
            Ok(Progress::Ready) => {}
            Err(RecvTimeoutError::Timeout) if interrupted => return Ok((Outcome::Hung, false)),
            Err(RecvTimeoutError::Timeout) => {
                interrupted = true;
                // A thread that has ended needs no interruption: the channel will say so.
                let _ = thread.kill(interrupt_signal());
            }
            Err(RecvTimeoutError::Disconnected) => return Err(ProbeError::Aborted),
        }
    }
}

/// The body of the probe's thread.
fn run_guests(kvm: &Kvm, sender: &Sender<Progress>) {
    // A send fails only when the other end has given up, and then there is nobody to tell.
    if let Err(err) = block_signal(interrupt_signal()) {
        let source = io::Error::other(err.to_string());
        let _ = sender.send(Progress::Done(Err(ProbeError::Thread(source))));
        return;
    }
    let _ = sender.send(Progress::Ready);
    for guest in GUESTS {
        let result = ProbeVm::new(kvm, guest).and_then(|vm| match vm {
            Some(mut vm) => vm.run(),
            None => Ok(Outcome::NotOffered),
        });
        let failed = result.is_err();
        if sender.send(Progress::Done(result)).is_err() || failed {
            return;
        }
    }
}

/// The signal that interrupts the probe's thread. Blocked there outside of KVM_RUN, and sent to that thread alone.
fn interrupt_signal() -> libc::c_int {
    SIGRTMIN()
}

fn refused(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> ProbeError {
    move |err| ProbeError::Refused {
        what,
        source: err.into(),
    }
}

/// One guest in a VM of its own. Fields are dropped in this order, so that the memory goes last.
struct ProbeVm {
    vcpu: VcpuFd,
    _vm: VmFd,
    memory: GuestMemoryMmap,
}

impl ProbeVm {
    /// A VM at the guest's first instruction; `None` where the processor lacks what the guest is about.
    fn new(kvm: &Kvm, guest: &Guest) -> Result<Option<Self>, ProbeError> {
        let image = guest.image();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), image.len())])
            .map_err(|err| ProbeError::Memory(io::Error::other(err)))?;
        memory
            .write_slice(&image, GuestAddress(0))
            .map_err(|err| ProbeError::Memory(io::Error::other(err)))?;
        let base = memory
            .get_host_address(GuestAddress(0))
            .map_err(|err| ProbeError::Memory(io::Error::other(err)))?;

        let vm = create_vm(kvm)?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: image.len() as u64,
            userspace_addr: base as u64,
        };
        // SAFETY: the range is the whole of the mapping that `memory` owns, which outlives `vm` (field order of `ProbeVm`).
        unsafe { vm.set_user_memory_region(region) }.map_err(refused("take memory"))?;
        let vcpu = vm.create_vcpu(0).map_err(refused("create a vCPU"))?;

        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("tell its CPUID"))?;
        let has_xsave = cpuid
            .as_slice()
            .iter()
            .any(|leaf| leaf.function == 1 && leaf.ecx & (1 << 26) != 0);
        if guest.needs_xsave && !has_xsave {
            return Ok(None);
        }
        vcpu.set_cpuid2(&cpuid).map_err(refused("take a CPUID"))?;
        let sregs = vcpu
            .get_sregs()
            .map_err(refused("tell the segment registers"))?;
        let sregs = special_registers(sregs, guest.needs_xsave);
        vcpu.set_sregs(&sregs)
            .map_err(refused("take the segment registers"))?;
        let regs = kvm_regs {
            rip: LAYOUT.entry,
            rsp: LAYOUT.stack,
            rflags: 0x2,
            ..kvm_regs::default()
        };
        vcpu.set_regs(&regs)
            .map_err(refused("take the registers"))?;
        set_syscall_msrs(&vcpu)?;
        let_interrupt_through(&vcpu)?;
        Ok(Some(Self {
            vcpu,
            _vm: vm,
            memory,
        }))
    }

    fn run(&mut self) -> Result<Outcome, ProbeError> {
        let outcome = match self.vcpu.run() {
            Ok(VcpuExit::IoOut(VERDICT_PORT, [1])) => Outcome::Ok,
            Ok(VcpuExit::IoOut(VERDICT_PORT, [0])) => Outcome::WrongResult,
            Ok(VcpuExit::IoOut(FAULT_PORT, &[vector])) => Outcome::Exception { vector },
            Ok(VcpuExit::InternalError) => self.internal_error(),
            Ok(VcpuExit::Intr) => Outcome::Hung,
            Ok(other) => Outcome::OtherExit {
                exit: format!("{other:?}"),
            },
            Err(err) if err.errno() == libc::EINTR => Outcome::Hung,
            Err(err) => {
                return Err(ProbeError::Refused {
                    what: "run a vCPU",
                    source: err.into(),
                });
            }
        };
        Ok(outcome)
    }

    fn internal_error(&mut self) -> Outcome {
        // SAFETY: KVM_RUN has just returned with KVM_EXIT_INTERNAL_ERROR, so that `internal` is the union's live field; it
        // is plain integers, any value of which is valid.
        let suberror = unsafe { self.vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
        if suberror != kvm_bindings::KVM_INTERNAL_ERROR_EMULATION {
            return Outcome::InternalError { suberror };
        }
        // The guest is mapped one to one. KVM reports the bytes itself only since 5.15; they are these.
        let mut bytes = vec![0; 15];
        let read = self
            .vcpu
            .get_regs()
            .ok()
            .and_then(|regs| self.memory.read(&mut bytes, GuestAddress(regs.rip)).ok());
        bytes.truncate(read.unwrap_or(0));
        Outcome::NotEmulated { bytes }
    }
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, ProbeError> {
    loop {
        match kvm.create_vm() {
            // KVM_CREATE_VM gives way to a pending signal; the next attempt finds it gone.
            Err(err) if err.errno() == libc::EINTR => {}
            other => return other.map_err(refused("create a VM")),
        }
    }
}

/// A processor in 64-bit mode at privilege 0, with SSE and system calls on.
fn special_registers(mut sregs: kvm_sregs, xsave: bool) -> kvm_sregs {
    const CR0_PE_MP_ET_NE_WP_PG: u64 = 0x8001_0033;
    const CR4_PAE_OSFXSR_OSXMMEXCPT: u64 = 0x620;
    const CR4_OSXSAVE: u64 = 1 << 18;
    const EFER_SCE_LME_LMA: u64 = 0x501;

    let segment = |selector, type_, l, db| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db,
        s: 1,
        l,
        g: 1,
        ..kvm_segment::default()
    };
    let data = segment(KERNEL_DATA, 3, 0, 1);
    sregs.cs = segment(KERNEL_CODE, 11, 1, 0);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    let (selector, base) = LAYOUT.task_state;
    sregs.tr = kvm_segment {
        base,
        limit: 0x67,
        selector,
        type_: 11,
        present: 1,
        ..kvm_segment::default()
    };
    (sregs.gdt.base, sregs.gdt.limit) = LAYOUT.gdt;
    (sregs.idt.base, sregs.idt.limit) = LAYOUT.idt;
    sregs.cr0 = CR0_PE_MP_ET_NE_WP_PG;
    sregs.cr3 = LAYOUT.page_tables;
    sregs.cr4 = CR4_PAE_OSFXSR_OSXMMEXCPT | if xsave { CR4_OSXSAVE } else { 0 };
    sregs.efer = EFER_SCE_LME_LMA;
    sregs
}

fn set_syscall_msrs(vcpu: &VcpuFd) -> Result<(), ProbeError> {
    const STAR: u32 = 0xc000_0081;
    const LSTAR: u32 = 0xc000_0082;
    const SFMASK: u32 = 0xc000_0084;
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    };
    let entries = [
        entry(STAR, LAYOUT.star),
        entry(LSTAR, LAYOUT.syscall_entry),
        entry(SFMASK, 0x200),
    ];
    let refuse = |source| ProbeError::Refused {
        what: "take its system call registers",
        source,
    };
    let msrs =
        Msrs::from_entries(&entries).map_err(|err| refuse(io::Error::other(format!("{err:?}"))))?;
    match vcpu.set_msrs(&msrs) {
        Ok(count) if count == entries.len() => Ok(()),
        Ok(count) => Err(refuse(io::Error::other(format!(
            "only {count} of {} taken",
            entries.len()
        )))),
        Err(err) => Err(refuse(err.into())),
    }
}

/// `struct kvm_signal_mask` with the 8 bytes of a kernel's signal set behind it.
#[repr(C)]
struct SignalMask {
    header: kvm_signal_mask,
    set: [u8; 8],
}

mod ioctls {
    #![allow(
        missing_docs,
        reason = "the macro makes a function that it cannot document"
    )]

    use super::{KVMIO, ioctl_iow_nr, kvm_signal_mask};

    ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, kvm_signal_mask);
}
use ioctls::KVM_SET_SIGNAL_MASK;

/// While KVM_RUN lasts, all signals are blocked but the one that interrupts it.
fn let_interrupt_through(vcpu: &VcpuFd) -> Result<(), ProbeError> {
    let bit = 1u64 << (interrupt_signal() - 1);
    let mut mask = SignalMask {
        header: kvm_signal_mask::default(),
        set: (!bit).to_le_bytes(),
    };
    mask.header.len = size_of::<u64>() as u32;
    // SAFETY: KVM reads the 4 bytes of the header and the `len` bytes behind it, which are all of `mask`; it keeps no
    // reference to it.
    match unsafe { ioctl_with_ref(vcpu, KVM_SET_SIGNAL_MASK(), &mask) } {
        0 => Ok(()),
        _ => Err(ProbeError::Refused {
            what: "take a signal mask",
            source: io::Error::last_os_error(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_read_from_cpuinfo() {
        let cpuinfo = "processor\t: 0\nflags\t\t: fpu vme svm sse\nprocessor\t: 1\n";
        assert_eq!(cpu_extension(cpuinfo), Some("AMD-V"));
        assert_eq!(cpu_extension("flags : fpu vmx\n"), Some("VT-x"));
        assert_eq!(cpu_extension("flags : fpu vmxoff svm_lock\n"), None);
        assert_eq!(cpu_extension(""), None);
    }

    #[test]
    fn a_software_module_outweighs_the_processor() {
        let software = KvmKind::Software {
            module: Some("kvm_pvm"),
        };
        assert_eq!(classify(Some("kvm_pvm"), Some("VT-x"), true), software);
        assert_eq!(
            classify(None, None, true),
            KvmKind::Hardware { extension: None }
        );
        assert_eq!(
            classify(None, None, false),
            KvmKind::Software { module: None }
        );
        assert_eq!(
            classify(None, Some("AMD-V"), false),
            KvmKind::Hardware {
                extension: Some("AMD-V")
            }
        );
    }

    #[test]
    fn an_outcome_reads_well() {
        let outcome = Outcome::NotEmulated {
            bytes: vec![0xcc, 0x81],
        };
        assert_eq!(
            outcome.to_string(),
            "KVM cannot emulate it (internal error 1, bytes cc 81)"
        );
        assert!(!outcome.is_good());
        assert!(Outcome::NotOffered.is_good());
    }

    /// Says that a test could not run, in the form that `cargo lab test` counts as skipped.
    #[allow(clippy::print_stdout, reason = "this is a test's report")]
    fn skipped(test: &str, reason: &dyn fmt::Display) {
        println!(
            "skipped {}::{test}: {reason}",
            module_path!().trim_start_matches("ampoule_vmm::")
        );
    }

    /// Runs where there is a usable /dev/kvm: 64-bit mode and integer code work on every kind of it.
    #[test]
    fn the_first_guest_runs_on_any_kvm() {
        let report = match probe_kvm() {
            Ok(report) => report,
            Err(ProbeError::Kvm(err)) => {
                skipped("the_first_guest_runs_on_any_kvm", &err);
                return;
            }
            Err(err) => panic!("{err}: {:?}", std::error::Error::source(&err)),
        };
        assert_eq!(report.instructions.len(), GUESTS.len());
        assert_eq!(report.instructions[0].outcome, Outcome::Ok);
        let software = matches!(report.kind, KvmKind::Software { .. });
        assert_eq!(report.linux_capable(), !software, "{report:?}");
    }

    /// A guest that never ends is interrupted without a signal handler, and the process lives on.
    #[test]
    fn a_guest_that_hangs_is_interrupted() {
        let kvm = match Kvm::new() {
            Ok(kvm) => kvm,
            Err(err) => {
                skipped("a_guest_that_hangs_is_interrupted", &err);
                return;
            }
        };
        let (ready, is_ready) = mpsc::channel();
        let thread = thread::spawn(move || {
            block_signal(interrupt_signal()).unwrap();
            let mut vm = ProbeVm::new(&kvm, &GUESTS[0]).unwrap().unwrap();
            // jmp to itself
            vm.memory
                .write_slice(&[0xeb, 0xfe], GuestAddress(LAYOUT.entry))
                .unwrap();
            ready.send(()).unwrap();
            vm.run().unwrap()
        });
        is_ready.recv().unwrap();
        thread.kill(interrupt_signal()).unwrap();
        assert_eq!(thread.join().unwrap(), Outcome::Hung);
    }
}
