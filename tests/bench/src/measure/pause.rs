//! How long a pause takes, by the number of vCPUs, which all sleep or all spin; how long a VM of the library takes to come and to
//! go. Ampoule alone: the others are no libraries.

use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use ampoule_tests::guests;
use ampoule_vmm::config::{MemorySize, VmConfig};
use ampoule_vmm::{VmBuilder, VmHandle};
use anyhow::{Context, Result};

use super::PART;
use crate::bench::{Bench, millis};
use crate::results::{AMPOULE, Results, Role, Target, less};
use crate::rounds::{Entrant, Rounds};

const GROUP: &str = "pause";
const ROUNDS: usize = 100;
/// How long a guest runs before it is paused: all its vCPUs are back in it by then.
const BETWEEN: Duration = Duration::from_millis(10);

pub(crate) fn measure(bench: &Bench, results: &mut Results) -> Result<()> {
    let rounds = Rounds {
        count: bench.rounds(ROUNDS).count,
        ..bench.rounds(1)
    };
    for (how, guest) in [("sleep", guests::IDLE), ("spin", guests::SMP_SPIN)] {
        for cpus in [1, 4, 16] {
            let vm = start(guest, cpus)?;
            if guest == guests::SMP_SPIN {
                read_until(&vm, b'+', cpus as usize - 1)?;
            }
            let pause = Entrant::new(AMPOULE, Role::Ours, || {
                thread::sleep(BETWEEN);
                let begin = Instant::now();
                vm.pause()?;
                let paused = begin.elapsed();
                let begin = Instant::now();
                vm.resume()?;
                Ok(vec![millis(paused), millis(begin.elapsed())])
            });
            let at = f64::from(cpus);
            let kinds = vec![
                less(format!("pause, vCPUs {how}"), "ms")
                    .over("vCPUs", at)
                    .target(Target::AtMost(5.0)),
                less(format!("resume, vCPUs {how}"), "ms").over("vCPUs", at),
            ];
            results.measure(PART, GROUP, rounds, kinds, vec![pause]);
        }
    }
    let life = Entrant::new(AMPOULE, Role::Ours, || {
        let begin = Instant::now();
        let vm = start(guests::IDLE, 1)?;
        let started = begin.elapsed();
        let begin = Instant::now();
        drop(vm);
        Ok(vec![millis(started), millis(begin.elapsed())])
    });
    let kinds = vec![
        less(
            "the library: from a configuration to the guest's first output",
            "ms",
        ),
        less("the library: drop of a running VM", "ms"),
    ];
    results.measure(PART, GROUP, rounds, kinds, vec![life]);
    Ok(())
}

/// A VM whose guest has begun.
fn start(guest: &str, cpus: u32) -> Result<VmHandle> {
    let config = VmConfig {
        kernel: Some(guest.into()),
        memory: MemorySize::mib(32),
        cpus,
        ..VmConfig::default()
    };
    let vm = VmBuilder::new(config).build()?.start()?;
    read_until(&vm, b'\n', 1)?;
    Ok(vm)
}

fn read_until(vm: &VmHandle, byte: u8, mut times: usize) -> Result<()> {
    let mut console = vm.console().context("no console")?;
    let mut one = [0];
    while times > 0 {
        console.read_exact(&mut one)?;
        times -= usize::from(one[0] == byte);
    }
    Ok(())
}
