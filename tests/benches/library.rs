//! What an embedding program waits for: VMs of bare guests in this process, on this machine's own `/dev/kvm`.
//!
//! `cargo bench -p ampoule-tests --bench library [-- --runs N]`: how long a pause takes by the number of vCPUs, which all sleep or all
//! spin; how long a VM takes from its configuration to its guest's first output, and from the drop of its handle to its end. Medians,
//! least and most. Nothing fails on a missed target: figures are for people to judge.

#![allow(clippy::print_stdout, reason = "the figures are this program's output")]

use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use ampoule_tests::guests;
use ampoule_vmm::config::{MemorySize, VmConfig};
use ampoule_vmm::{VmBuilder, VmHandle};
use anyhow::{Context, Result};

#[path = "common/options.rs"]
mod options;

use options::Options;

const RUNS: usize = 200;
/// How long a guest runs before it is paused.
const BETWEEN: Duration = Duration::from_millis(10);

fn main() -> Result<()> {
    let Some(options) = Options::of_bench() else {
        return Ok(());
    };
    let runs = options.number("--runs", RUNS)?;
    println!("{runs} times each");
    for cpus in [1, 4, 16] {
        for (how, guest) in [("sleep", guests::IDLE), ("spin", guests::SMP_SPIN)] {
            let vm = start(guest, cpus)?;
            if guest == guests::SMP_SPIN {
                read_until(&vm, b'+', cpus as usize - 1)?;
            }
            let (mut pauses, mut resumes) = (Vec::new(), Vec::new());
            for _ in 0..runs {
                // All of them are back in the guest by then.
                thread::sleep(BETWEEN);
                let start = Instant::now();
                vm.pause()?;
                pauses.push(start.elapsed());
                let start = Instant::now();
                vm.resume()?;
                resumes.push(start.elapsed());
            }
            tell(&format!("pause, {cpus} vCPUs that {how}"), pauses);
            tell(&format!("resume, {cpus} vCPUs that {how}"), resumes);
        }
    }
    let (mut starts, mut drops) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let begin = Instant::now();
        let vm = start(guests::IDLE, 1)?;
        starts.push(begin.elapsed());
        let begin = Instant::now();
        drop(vm);
        drops.push(begin.elapsed());
    }
    tell("from configuration to first output", starts);
    tell("drop of a running VM", drops);
    Ok(())
}

fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort();
    println!(
        "{what:36} {:>10.1?} ({:.1?} to {:.1?})",
        times[times.len() / 2],
        times[0],
        times[times.len() - 1]
    );
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
