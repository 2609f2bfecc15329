//! What a start costs by the machine's size: processors, disks, memory.

use std::fs::File;
use std::path::PathBuf;

use ampoule_tests::guests;
use anyhow::Result;

use super::{PART, start};
use crate::bench::Bench;
use crate::machine::{Disk, Machine};
use crate::results::{Results, less};

const GROUP: &str = "growth";
const ROUNDS: usize = 12;

/// Machines of several sizes of each kind: what grows, how far, and the machine.
pub(crate) fn machines(bench: &Bench, guest: &str) -> Result<Vec<(&'static str, u32, Machine)>> {
    let mut machines = Vec::new();
    let some = |all: &'static [u32], few: &'static [u32]| match bench.plan.quick {
        true => few,
        false => all,
    };
    for &cpus in some(&[1, 4, 16], &[1, 4]) {
        machines.push((
            "vCPUs",
            cpus,
            Machine {
                cpus,
                ..Machine::new(guest)
            },
        ));
    }
    for &count in some(&[0, 1, 4, 16], &[0, 4]) {
        let disks = (0..count)
            .map(|number| small_disk(bench, number))
            .collect::<Result<_>>()?;
        machines.push((
            "disks",
            count,
            Machine {
                disks,
                ..Machine::new(guest)
            },
        ));
    }
    for &memory_mib in some(&[128, 1024, 4096], &[128, 1024]) {
        machines.push((
            "MiB of memory",
            memory_mib,
            Machine {
                memory_mib,
                ..Machine::new(guest)
            },
        ));
    }
    Ok(machines)
}

fn small_disk(bench: &Bench, number: u32) -> Result<Disk> {
    let path: PathBuf = bench.memory().join(format!("small-{number}.img"));
    File::create(&path)?.set_len(1 << 20)?;
    Ok(Disk::new(path))
}

pub(crate) fn measure(bench: &Bench, results: &mut Results) -> Result<()> {
    for (what, at, machine) in machines(bench, guests::BENCH_START)? {
        let at = f64::from(at);
        let kinds = vec![
            less("CPU, process start to exit", "ms").over(what, at),
            less("wall, process start to exit", "ms").over(what, at),
            less("first byte of the guest's", "ms").over(what, at),
        ];
        let entrants = bench.entrants(results, GROUP, &machine, start::start_to_exit);
        results.measure(PART, GROUP, bench.rounds(ROUNDS), kinds, entrants);
    }
    Ok(())
}
