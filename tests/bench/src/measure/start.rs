//! From a process's start to its exit, with a guest that powers off at once, beside the floor program, which does no more than KVM
//! asks of anybody.

use std::fs::File;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use ampoule_tests::guests;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::PART;
use crate::bench::{Bench, millis};
use crate::machine::Machine;
use crate::peer::Vmm;
use crate::process::Running;
use crate::results::{Results, Role, Target, less};
use crate::rounds::Entrant;

const GROUP: &str = "start";
const ROUNDS: usize = 40;

pub(crate) fn measure(bench: &Bench, results: &mut Results) -> Result<()> {
    let machine = Machine::new(guests::BENCH_START);
    let mut entrants = vec![Entrant::new("floor", Role::Floor, || {
        any_moment();
        let ended = Running::start(Command::new(guests::FLOOR))?.end()?;
        Ok(vec![millis(ended.cpu), millis(ended.wall), f64::NAN])
    })];
    entrants.extend(bench.entrants(results, GROUP, &machine, start_to_exit));
    let ours = bench.ampoule()?;
    // Without a place to keep what KVM says, each start is as the first after the host's.
    entrants.push(Entrant::new(
        "Ampoule, first start of a boot",
        Role::Variant,
        || {
            any_moment();
            let started = bench.start_by(ours, &machine, |mut command| {
                for folder in ["HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"] {
                    command.env_remove(folder);
                }
                command
            })?;
            times(started)
        },
    ));
    let kinds = vec![
        less("CPU, process start to exit", "ms")
            .target(Target::FloorsAtMost(1.3))
            .target(Target::Peers(1.0)),
        less("wall, process start to exit", "ms"),
        less("first byte of the guest's, after the process's start", "ms")
            .target(Target::Peers(1.0)),
    ];
    results.measure(PART, GROUP, bench.rounds(ROUNDS), kinds, entrants);

    let marks = vec![
        Entrant::new("floor", Role::Floor, || Ok(vec![floor_instruction()?])),
        Entrant::new(ours.name(), Role::Ours, || {
            Ok(vec![first_mark(bench, ours)?])
        }),
    ];
    // The floor counts from `main`, the mark from the process's start.
    let kinds = vec![less("first instruction, by own clock", "ms").target(Target::AtMost(2.0))];
    results.measure(PART, GROUP, bench.rounds(ROUNDS), kinds, marks);
    Ok(())
}

/// A moment of any length up to two of the kernel's ticks: what ends a VM may wait for a tick, and runs that follow at once begin
/// just behind one.
fn any_moment() {
    thread::sleep(Duration::from_micros(fastrand::u64(..8000)));
}

/// CPU, wall and first byte of a guest that says `!` and ends, in milliseconds.
pub(crate) fn start_to_exit(bench: &Bench, vmm: &dyn Vmm, machine: &Machine) -> Result<Vec<f64>> {
    any_moment();
    times(bench.start(vmm, machine)?)
}

fn times(mut running: Running) -> Result<Vec<f64>> {
    let byte = running.first_byte()?;
    let ended = running.end()?;
    Ok(vec![millis(ended.cpu), millis(ended.wall), millis(byte)])
}

/// Milliseconds from the floor's `main` until its guest's first instruction has been run, as it says itself.
fn floor_instruction() -> Result<f64> {
    let output = Command::new(guests::FLOOR).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "the floor failed: {output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    let words = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let micros = words
        .filter(|words| words.first() == Some(&"run"))
        .find_map(|words| words.get(1)?.parse::<f64>().ok());
    Ok(micros.with_context(|| format!("no first instruction in {text:?}"))? / 1e3)
}

/// Milliseconds from the process's start to its guest's first mark, by Ampoule's own timeline.
fn first_mark(bench: &Bench, ours: &dyn Vmm) -> Result<f64> {
    let file = bench.memory().join("timeline.json");
    let machine = Machine::new(guests::DEBUG_MARKS);
    let started = bench.start_by(ours, &machine, |mut command| {
        command.arg("--timeline").arg(&file);
        command
    })?;
    started.end()?;
    let timeline: Value = serde_json::from_reader(File::open(&file)?)?;
    let mut marks = timeline["marks"].as_array().into_iter().flatten();
    let mark = marks.find(|mark| mark["name"] == "debug-port-1");
    let micros = mark.and_then(|mark| mark["at_us"].as_f64());
    Ok(micros.with_context(|| format!("no first mark in {timeline}"))? / 1e3)
}
