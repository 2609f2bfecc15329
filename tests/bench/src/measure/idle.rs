//! What a VM costs that does nothing: how often its threads leave a processor.

use std::thread;
use std::time::Duration;

use ampoule_tests::guests;
use anyhow::Result;

use super::PART;
use crate::bench::Bench;
use crate::machine::Machine;
use crate::peer::Vmm;
use crate::results::{Results, Target, less};

const GROUP: &str = "idle";
const ROUNDS: usize = 3;
/// What a VMM does once, after its start, is over by then.
const SETTLE: Duration = Duration::from_secs(2);

/// As `perf stat -e context-switches -p PID` counts them: what the kernel counts for each thread, over the time.
pub(crate) fn measure(bench: &Bench, results: &mut Results) -> Result<()> {
    let machine = Machine {
        rng: true,
        ..Machine::new(guests::BENCH_IDLE)
    };
    let seconds = if bench.plan.quick { 2 } else { 10 };
    let kinds = vec![
        less(
            format!("context switches of all threads in {seconds} s"),
            "",
        )
        .target(Target::AtMost(0.0)),
        less(format!("CPU in {seconds} s"), "ms"),
    ];
    let watch = move |bench: &Bench, vmm: &dyn Vmm, machine: &Machine| -> Result<Vec<f64>> {
        let mut running = bench.start(vmm, machine)?;
        running.until("ready")?;
        thread::sleep(SETTLE);
        let (switches, cpu) = (running.switches()?, running.cpu()?);
        thread::sleep(Duration::from_secs(seconds));
        let switches = running.switches()?.saturating_sub(switches);
        let cpu = running.cpu()? - cpu;
        running.kill()?;
        Ok(vec![switches as f64, crate::bench::millis(cpu)])
    };
    let entrants = bench.entrants(results, GROUP, &machine, watch);
    let rounds = bench.slow_rounds(ROUNDS, 1);
    results.measure(PART, GROUP, rounds, kinds, entrants);
    Ok(())
}
