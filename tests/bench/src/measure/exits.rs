//! What an exit to the VMM costs: a guest's loop of them, less the same loop without.

use std::time::{Duration, Instant};

use ampoule_tests::guests;
use anyhow::{Context, Result};

use super::PART;
use crate::bench::Bench;
use crate::machine::Machine;
use crate::peer::Vmm;
use crate::results::{Kind, Results, Target, less};

const GROUP: &str = "exits";
const ROUNDS: usize = 9;
const COUNT: u32 = 20_000;
/// As the guest knows them.
const EXITS: [(char, &str); 4] = [
    ('o', "port write"),
    ('i', "port read"),
    ('w', "MMIO write"),
    ('r', "MMIO read"),
];
const EMPTY: char = 'e';

pub(crate) fn measure(bench: &Bench, results: &mut Results) -> Result<()> {
    let kinds = EXITS.iter().flat_map(|(_, name)| -> [Kind; 2] {
        [
            less(format!("{name}, nobody there"), "ns").target(Target::Peers(1.0)),
            less(
                format!("{name}, nobody there, in cycles of the guest's TSC"),
                "cycles",
            ),
        ]
    });
    let machine = Machine::new(guests::BENCH_EXITS);
    let entrants = bench.entrants(results, GROUP, &machine, all);
    results.measure(PART, GROUP, bench.rounds(ROUNDS), kinds.collect(), entrants);
    Ok(())
}

/// Nanoseconds and cycles of each exit.
fn all(bench: &Bench, vmm: &dyn Vmm, machine: &Machine) -> Result<Vec<f64>> {
    let (empty, empty_cycles) = one(bench, vmm, machine, EMPTY)?;
    let mut values = Vec::new();
    for (what, _) in EXITS {
        let (time, cycles) = one(bench, vmm, machine, what)?;
        let count = f64::from(COUNT);
        values.push((time.as_secs_f64() - empty.as_secs_f64()) * 1e9 / count);
        values.push((cycles - empty_cycles) / count);
    }
    Ok(values)
}

/// How long a loop took by the host's clock and by the guest's.
fn one(bench: &Bench, vmm: &dyn Vmm, machine: &Machine, what: char) -> Result<(Duration, f64)> {
    let cmdline = format!("what={what} count={COUNT}");
    let machine = Machine {
        cmdline,
        ..machine.clone()
    };
    let mut running = bench.start(vmm, &machine)?;
    running.until("begin")?;
    let begin = Instant::now();
    running.until("end")?;
    let time = begin.elapsed();
    let line = running.line()?.unwrap_or_default();
    let cycles = line
        .strip_prefix("tsc ")
        .and_then(|hex| u64::from_str_radix(hex, 16).ok());
    let cycles = cycles.with_context(|| format!("the guest tells no cycles: {line:?}"))?;
    running.end()?;
    Ok((time, cycles as f64))
}
