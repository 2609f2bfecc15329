//! What a VMM holds in memory while its guest sleeps, and on disk.

use std::fs;
use std::thread;
use std::time::Duration;

use ampoule_tests::guests;
use anyhow::{Result, ensure};

use super::{PART, growth};
use crate::bench::Bench;
use crate::machine::Machine;
use crate::peer::Vmm;
use crate::results::{Results, Target, less};
use crate::rounds::Rounds;
use crate::smaps;

const GROUP: &str = "memory";
const ROUNDS: usize = 5;
/// How long an idle VM is left alone before its memory is measured.
const SETTLE: Duration = Duration::from_millis(500);

pub(crate) fn measure(bench: &Bench, results: &mut Results) -> Result<()> {
    let rounds = bench.slow_rounds(ROUNDS, 1);
    for (what, at, machine) in growth::machines(bench, guests::BENCH_IDLE)? {
        let at = f64::from(at);
        let mut pss = less("PSS without guest RAM", "MB")
            .over(what, at)
            .target(Target::Peers(1.0));
        if what == "disks" && at == 0.0 {
            pss = pss.target(Target::AtMost(2.0));
        }
        let kinds = vec![
            pss,
            less("private dirty without guest RAM", "MB").over(what, at),
        ];
        let entrants = bench.entrants(results, GROUP, &machine, idle);
        results.measure(PART, GROUP, rounds, kinds, entrants);
    }
    let once = Rounds { count: 1, ..rounds };
    let machine = Machine::new(guests::BENCH_IDLE);
    let kinds = vec![
        less("the program", "MB").target(Target::AtMost(10.0)),
        less("the program and the libraries it loads", "MB").target(Target::Peers(1.0)),
    ];
    let entrants = bench.entrants(results, GROUP, &machine, sizes);
    results.measure(PART, GROUP, once, kinds, entrants);
    Ok(())
}

fn idle(bench: &Bench, vmm: &dyn Vmm, machine: &Machine) -> Result<Vec<f64>> {
    let mut running = bench.start(vmm, machine)?;
    running.until("ready")?;
    thread::sleep(SETTLE);
    let smaps = running.proc("smaps")?;
    running.kill()?;
    let memory = smaps::without_guest(&smaps, machine.memory_mib.into())?;
    Ok(vec![memory.pss, memory.private_dirty])
}

fn sizes(bench: &Bench, vmm: &dyn Vmm, machine: &Machine) -> Result<Vec<f64>> {
    let mut running = bench.start(vmm, machine)?;
    running.until("ready")?;
    let files = smaps::programs(&running.proc("smaps")?)?;
    running.kill()?;
    ensure!(!files.is_empty(), "it runs no file");
    let megabytes = |path| fs::metadata(path).map(|metadata| metadata.len() as f64 / 1e6);
    let all: f64 = files.iter().map(megabytes).sum::<std::io::Result<f64>>()?;
    Ok(vec![megabytes(&vmm.binary().to_owned())?, all])
}
