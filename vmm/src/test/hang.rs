//! What a guest does of which nothing is heard: it waits, it computes, its VMM does not answer, or the host does not let it run.
//!
//! The host's scheduler knows how long the vCPU threads ran and how long they waited for a CPU (/proc/self/task/TID/schedstat); a vCPU
//! in HLT does neither. Where they ran, the VM is paused some times for their registers.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::symbols::Symbols;
use crate::handle::VmHandle;
use crate::lifecycle::{StateError, VmState};
use crate::vcpu::Registers;

/// How long the threads are watched.
const WATCH: Duration = Duration::from_millis(400);

/// In how many steps: if they take far longer, this thread did not get to run either.
const STEPS: u32 = 8;

/// How long a pause may take before the VMM counts as stuck.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often the registers of a vCPU are looked at.
const LOOKS: usize = 5;

/// What a VM does that does not do what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HangKind {
    /// All its vCPUs wait for interrupts.
    Idle,
    /// A vCPU computes.
    Spinning,
    /// It does not stop when it is told to.
    VmmStuck,
    /// The host does not let it run.
    HostStarved,
    /// It was paused.
    Paused,
    /// It has ended.
    Ended,
}

/// A look at a VM of which nothing is heard.
#[derive(Debug, Clone)]
pub struct Hang {
    /// What it does.
    pub kind: HangKind,
    /// Each of its vCPUs.
    pub vcpus: Vec<VcpuLook>,
}

/// A look at a vCPU.
#[derive(Debug, Clone)]
pub struct VcpuLook {
    /// Its index.
    pub index: u32,
    /// The part of the time in which its thread ran, from 0 to 1.
    pub busy: f64,
    /// The part in which it could have run, but had no CPU of the host's.
    pub waited: f64,
    /// Its registers, when it was looked at last.
    pub registers: Option<Registers>,
    /// Where it was, each time that it was looked at: the name of the place, or its address.
    pub places: Vec<String>,
}

impl fmt::Display for Hang {
    /// A clause, without a line feed: what the guest does, and where.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            HangKind::Idle => {
                f.write_str("the guest is idle: its vCPUs wait for interrupts")?;
                match self.vcpus.first().and_then(|vcpu| vcpu.places.last()) {
                    Some(place) => write!(f, " (at {place})"),
                    None => Ok(()),
                }
            }
            HangKind::Spinning => {
                f.write_str("the guest is busy")?;
                let busy = |vcpu: &&VcpuLook| vcpu.busy + vcpu.waited >= 0.5;
                for vcpu in self.vcpus.iter().filter(busy) {
                    let mode = match &vcpu.registers {
                        Some(registers) if registers.cs & 3 == 3 => " in a program",
                        Some(_) => " in the kernel",
                        None => "",
                    };
                    write!(f, ": vCPU {} computes{mode}", vcpu.index)?;
                    let mut places = vcpu.places.clone();
                    places.dedup();
                    if !places.is_empty() {
                        write!(f, " at {}", places.join(", "))?;
                    }
                }
                Ok(())
            }
            HangKind::VmmStuck => write!(
                f,
                "the VMM is stuck: it could not be paused in {} s",
                PATIENCE.as_secs()
            ),
            HangKind::HostStarved => {
                let waited = self.vcpus.iter().map(|vcpu| vcpu.waited);
                let most = waited.fold(0.0, f64::max);
                write!(
                    f,
                    "the host is overloaded: the guest wanted to run and waited for a CPU in {:.0} % of the time",
                    most * 100.0
                )
            }
            HangKind::Paused => f.write_str("the VM is paused"),
            HangKind::Ended => f.write_str("the VM has ended"),
        }
    }
}

impl VcpuLook {
    /// Where it was, each place once, in the order in which they were seen.
    pub fn distinct_places(&self) -> Vec<&str> {
        let mut distinct: Vec<&str> = Vec::new();
        for place in &self.places {
            if !distinct.contains(&place.as_str()) {
                distinct.push(place);
            }
        }
        distinct
    }
}

/// What the scheduler says of a thread, in nanoseconds.
#[derive(Clone, Copy, Default)]
struct Sample {
    ran: u64,
    waited: u64,
}

impl Sample {
    fn of(thread: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
        let mut numbers = text
            .split_ascii_whitespace()
            .map_while(|word| word.parse().ok());
        Some(Self {
            ran: numbers.next()?,
            waited: numbers.next()?,
        })
    }
}

/// Looks at a VM whose vCPU threads are these (by index). `handle` is one that does not own it.
pub(super) fn look(handle: &VmHandle, threads: &BTreeMap<u32, i32>, symbols: &Symbols) -> Hang {
    match handle.state() {
        VmState::Ended => {
            return Hang {
                kind: HangKind::Ended,
                vcpus: Vec::new(),
            };
        }
        VmState::Paused => {
            let mut vcpus: Vec<VcpuLook> =
                threads.keys().map(|&index| VcpuLook::new(index)).collect();
            registers(handle, &mut vcpus, symbols);
            return Hang {
                kind: HangKind::Paused,
                vcpus,
            };
        }
        VmState::Created | VmState::Running => {}
    }
    let begun = Instant::now();
    let samples = |threads: &BTreeMap<u32, i32>| -> BTreeMap<u32, Sample> {
        let sample = |(&index, &thread): (&u32, &i32)| Some((index, Sample::of(thread)?));
        threads.iter().filter_map(sample).collect()
    };
    let before = samples(threads);
    for _ in 0..STEPS {
        thread::sleep(WATCH / STEPS);
    }
    let after = samples(threads);
    let took = begun.elapsed();
    let part = |nanoseconds: u64| (nanoseconds as f64 / took.as_nanos() as f64).min(1.0);
    let mut vcpus: Vec<VcpuLook> = threads
        .keys()
        .map(|index| {
            let mut look = VcpuLook::new(*index);
            if let (Some(before), Some(after)) = (before.get(index), after.get(index)) {
                look.busy = part(after.ran.saturating_sub(before.ran));
                look.waited = part(after.waited.saturating_sub(before.waited));
            }
            look
        })
        .collect();
    let kind = judge(&vcpus, took);
    let vcpus = match pauses(handle, vcpus.clone(), symbols) {
        Some(looked) => looked,
        None if handle.state() == VmState::Ended => {
            return Hang {
                kind: HangKind::Ended,
                vcpus,
            };
        }
        None => {
            vcpus.iter_mut().for_each(|vcpu| vcpu.places.clear());
            return Hang {
                kind: HangKind::VmmStuck,
                vcpus,
            };
        }
    };
    Hang { kind, vcpus }
}

fn judge(vcpus: &[VcpuLook], took: Duration) -> HangKind {
    let wants = |vcpu: &&VcpuLook| vcpu.busy + vcpu.waited >= 0.5;
    let mut wanting = vcpus.iter().filter(wants).peekable();
    if wanting.peek().is_some() {
        return match wanting.all(|vcpu| vcpu.busy < 0.2) {
            true => HangKind::HostStarved,
            false => HangKind::Spinning,
        };
    }
    // This thread only slept, and was woken that late.
    match took > WATCH * 3 {
        true => HangKind::HostStarved,
        false => HangKind::Idle,
    }
}

/// Pauses the VM some times to see where its vCPUs are. None, if it cannot be paused in time.
fn pauses(handle: &VmHandle, mut vcpus: Vec<VcpuLook>, symbols: &Symbols) -> Option<Vec<VcpuLook>> {
    let (sender, receiver) = mpsc::channel();
    let (own, symbols) = (handle.clone(), symbols.clone());
    // A VMM that is stuck keeps this thread, and nothing else.
    thread::spawn(move || {
        for look in 0..LOOKS {
            if own.pause().is_err() {
                break;
            }
            registers(&own, &mut vcpus, &symbols);
            let is_over = own.resume().is_err() || look + 1 == LOOKS;
            if is_over {
                break;
            }
            thread::sleep(Duration::from_millis(7));
        }
        let _ = sender.send(vcpus);
    });
    receiver.recv_timeout(PATIENCE).ok()
}

/// The registers of a paused VM's vCPUs.
fn registers(handle: &VmHandle, vcpus: &mut [VcpuLook], symbols: &Symbols) {
    for vcpu in vcpus {
        match handle.vcpu_registers(vcpu.index) {
            Ok(registers) => {
                let place = symbols.name(registers.rip);
                let place = place.unwrap_or_else(|| format!("{:#x}", registers.rip));
                vcpu.places.push(place);
                vcpu.registers = Some(registers);
            }
            Err(StateError::NoVcpu { .. } | StateError::NoRegisters { .. }) => {}
            Err(_) => return,
        }
    }
}

impl VcpuLook {
    fn new(index: u32) -> Self {
        Self {
            index,
            busy: 0.0,
            waited: 0.0,
            registers: None,
            places: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vcpu(busy: f64, waited: f64) -> VcpuLook {
        VcpuLook {
            busy,
            waited,
            ..VcpuLook::new(0)
        }
    }

    #[test]
    fn who_computes_who_waits_and_who_may_not_run_are_told_apart() {
        let judge = |vcpus: &[VcpuLook]| judge(vcpus, WATCH);
        assert_eq!(judge(&[vcpu(0.01, 0.0), vcpu(0.0, 0.02)]), HangKind::Idle);
        assert_eq!(
            judge(&[vcpu(0.01, 0.0), vcpu(0.99, 0.0)]),
            HangKind::Spinning
        );
        assert_eq!(
            judge(&[vcpu(0.45, 0.5)]),
            HangKind::Spinning,
            "it shares a CPU"
        );
        assert_eq!(judge(&[vcpu(0.05, 0.9)]), HangKind::HostStarved);
        let late = super::judge(&[vcpu(0.01, 0.0)], WATCH * 4);
        assert_eq!(late, HangKind::HostStarved);
    }
}
