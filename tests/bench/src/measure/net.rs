//! What a network interface is worth: a bare guest that sends from a polled ring over a tap, of whose frames nobody wants any, beside
//! one thread's plain loop of write(2) on the same tap.

use std::io::Write;
use std::time::Instant;

use ampoule_tests::guests;
use anyhow::{Result, ensure};

use super::PART;
use super::block;
use super::tap::{HEADER, Tap};
use crate::bench::Bench;
use crate::machine::Machine;
use crate::peer::Vmm;
use crate::results::{Results, Role, Target, less, more};
use crate::rounds::Entrant;

const GROUP: &str = "net";
const ROUNDS: usize = 5;
const DEPTH: usize = 64;
/// Bytes of a frame, and how many a good VMM sends in a fifth of a second.
const LOADS: [(usize, usize); 3] = [(60, 64_000), (1514, 64_000), (65_000, 8_000)];

pub(crate) fn measure(bench: &Bench, results: &mut Results) -> Result<()> {
    let tap = Tap::new()?;
    for (size, frames) in LOADS {
        let machine = machine(&tap, size, frames);
        let mut entrants = vec![Entrant::new("plain loop", Role::Floor, || {
            let rate = plain_loop(&tap, size, frames)?;
            Ok(vec![rate, gigabits(rate, size), f64::NAN])
        })];
        let rate = move |bench: &Bench, vmm: &dyn Vmm, machine: &Machine| {
            guest(bench, vmm, machine, size, frames)
        };
        entrants.extend(bench.entrants(results, GROUP, &machine, rate));
        let kinds = vec![
            more(format!("frames of {size} bytes"), "1/s").target(Target::Peers(1.0)),
            more(format!("frames of {size} bytes, rate"), "Gbit/s"),
            less(
                format!("frames of {size} bytes: CPU of the process"),
                "us a frame",
            ),
        ];
        results.measure(PART, GROUP, bench.rounds(ROUNDS), kinds, entrants);

        let (few, many) = (3200, 16_000);
        let [short, long] = [few, many].map(|frames| self::machine(&tap, size, frames));
        let count = |bench: &Bench, vmm: &dyn Vmm, long: &Machine| {
            let calls = block::calls(bench, vmm, long)? - block::calls(bench, vmm, &short)?;
            Ok(vec![calls / (many - few) as f64])
        };
        let count = &count;
        let entrants = bench.entrants(results, GROUP, &long, |bench, vmm, machine| {
            count(bench, vmm, machine)
        });
        let kinds = vec![
            less(format!("system calls a frame of {size} bytes"), "").target(Target::Peers(1.0)),
        ];
        results.measure(PART, GROUP, bench.slow_rounds(3, 1), kinds, entrants);
    }
    Ok(())
}

fn machine(tap: &Tap, size: usize, frames: usize) -> Machine {
    Machine {
        cmdline: format!(
            "op=s size={size} depth={DEPTH} batches={}",
            frames / (DEPTH / 2)
        ),
        tap: Some(tap.name().into()),
        ..Machine::new(guests::BENCH_NET)
    }
}

fn gigabits(frames: f64, size: usize) -> f64 {
    frames * size as f64 * 8e-9
}

/// Frames and Gbit a second of a guest, from its `begin` to its `end`, and microseconds of CPU for a frame.
fn guest(
    bench: &Bench,
    vmm: &dyn Vmm,
    machine: &Machine,
    size: usize,
    frames: usize,
) -> Result<Vec<f64>> {
    let (time, used) = bench.start(vmm, machine)?.work()?;
    let rate = frames as f64 / time.as_secs_f64();
    Ok(vec![
        rate,
        gigabits(rate, size),
        used.as_secs_f64() * 1e6 / frames as f64,
    ])
}

/// Frames a second of one thread without a VM.
fn plain_loop(tap: &Tap, size: usize, frames: usize) -> Result<f64> {
    let mut tap = tap.open()?;
    let mut packet = vec![0; HEADER + size];
    packet[HEADER..HEADER + 14].copy_from_slice(&[
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 1, 2, 3, 4, 5, 0x88, 0xb5,
    ]);
    // As many places as the guest has.
    let packets = packet.repeat(DEPTH);
    let begin = Instant::now();
    for frame in 0..frames {
        let at = frame % DEPTH * packet.len();
        let sent = tap.write(&packets[at..at + packet.len()])?;
        ensure!(sent == packet.len(), "the tap takes half a frame");
    }
    Ok(frames as f64 / begin.elapsed().as_secs_f64())
}
