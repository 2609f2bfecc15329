//! fio(1) in the guest, on a disk in the host's memory.

use std::fs::File;
use std::os::unix::fs::FileExt;

use ampoule_tests::harness::tools;
use anyhow::Result;

use super::{PART, machine};
use crate::bench::Bench;
use crate::machine::{Disk, Machine};
use crate::peer::Vmm;
use crate::results::{Results, Target, more};

const GROUP: &str = "fio";
const ROUNDS: usize = 5;
const DISK: u64 = 64 << 20;
/// As the guest's init is told of them; those that one asks for first come first.
const LOADS: [(&str, &str); 5] = [
    ("randread:4k:32", "4 KiB random reads, depth 32"),
    ("randwrite:4k:32", "4 KiB random writes, depth 32"),
    ("randread:4k:1", "4 KiB random reads, depth 1"),
    ("randwrite:4k:1", "4 KiB random writes, depth 1"),
    ("read:64k:32", "64 KiB reads, depth 32"),
];

pub(crate) fn measure(bench: &Bench, results: &mut Results) -> Result<()> {
    let path = bench.memory().join("fio.img");
    let file = File::create(&path)?;
    let chunk = vec![0x11; 1 << 20];
    for at in (0..DISK).step_by(chunk.len()) {
        file.write_all_at(&chunk, at)?;
    }
    let seconds = if bench.plan.quick { 1 } else { 4 };
    let loads = match bench.plan.quick {
        true => &LOADS[..2],
        false => &LOADS[..],
    };
    let names: Vec<&str> = loads.iter().map(|(name, _)| *name).collect();
    let names = names.join(",");
    let words = format!("bench.what=disk bench.seconds={seconds} bench.loads={names}");
    let programs = Disk {
        read_only: true,
        ..Disk::new(tools())
    };
    let machine = Machine {
        disks: vec![Disk::new(path), programs],
        ..machine(bench, "vmlinux", &words)?
    };
    let kinds = loads
        .iter()
        .map(|(_, name)| more(*name, "1/s").target(Target::Peers(1.0)));
    let entrants = bench.entrants(results, GROUP, &machine, |bench, vmm, machine| {
        fio(bench, vmm, machine, loads)
    });
    let rounds = bench.slow_rounds(ROUNDS, 1);
    results.measure(PART, GROUP, rounds, kinds.collect(), entrants);
    Ok(())
}

fn fio(
    bench: &Bench,
    vmm: &dyn Vmm,
    machine: &Machine,
    loads: &[(&str, &str)],
) -> Result<Vec<f64>> {
    let mut running = bench.start(vmm, machine)?;
    let mut values = Vec::new();
    while values.len() < loads.len() {
        let Some(line) = running.line()? else {
            return Err(running.complaint("it ended before its guest's fio"));
        };
        let (name, _) = loads[values.len()];
        let figure = line
            .split_once(&format!("bench {name} "))
            .map(|(_, figure)| figure);
        if let Some(figure) = figure {
            values.push(figure.parse()?);
        }
    }
    running.end()?;
    Ok(values)
}
