//! Tries the bare bench guests under each VMM found: `ampoule-bench try [KIND]`.

#![allow(
    clippy::print_stdout,
    reason = "what came of it is this program's output"
)]

mod machine;
mod peer;

use std::env;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use ampoule_tests::guests;
use anyhow::{Context, Result};

use machine::{Disk, Machine};
use peer::{Launch, Vmm};

fn main() -> Result<()> {
    let kind = env::args().nth(2).unwrap_or_default();
    let folder = tempfile::tempdir_in("/dev/shm")?;
    let image = folder.path().join("disk.img");
    File::create(&image)?.set_len(64 << 20)?;
    let (found, absent) = peer::find();
    for absent in absent {
        println!("{}: {}", absent.name, absent.why);
    }
    for vmm in &found {
        println!(
            "{}: {:?} at {}",
            vmm.name(),
            vmm.version(),
            vmm.binary().display()
        );
        for (name, machine) in machines(&image) {
            if !name.starts_with(&kind) {
                continue;
            }
            match attempt(vmm.as_ref(), &machine) {
                Ok(said) => println!("  {name}: {said}"),
                Err(err) => println!("  {name}: {err:#}"),
            }
        }
    }
    Ok(())
}

fn machines(image: &Path) -> Vec<(&'static str, Machine)> {
    let with = |kernel, cmdline: &str| Machine {
        cmdline: cmdline.into(),
        ..Machine::new(kernel)
    };
    let mut machines = vec![("start", with(guests::BENCH_START, ""))];
    for (name, what) in [
        ("exits e", "e"),
        ("exits o", "o"),
        ("exits i", "i"),
        ("exits r", "r"),
        ("exits w", "w"),
    ] {
        let line = format!("what={what} count=10000");
        machines.push((name, with(guests::BENCH_EXITS, &line)));
    }
    for (name, line) in [
        ("block read", "op=r size=4096 depth=64 batches=5000"),
        (
            "block write whole",
            "op=w size=4096 depth=64 batches=2500 whole=1",
        ),
        (
            "block mixed random",
            "op=m size=4096 depth=64 batches=2500 whole=1 random=1 span=67108864",
        ),
        (
            "block fresh any",
            "op=r size=4096 depth=64 batches=500 any=1 random=2 span=67108864",
        ),
        (
            "block deep 1",
            "op=r size=4096 depth=1 batches=20000 random=1 span=67108864",
        ),
    ] {
        let mut machine = with(guests::BENCH_BLOCK, line);
        machine.disks.push(Disk::new(image));
        machines.push((name, machine));
    }
    machines
}

/// What the guest said, how it ended, and how long it took from `begin` to `end`.
fn attempt(vmm: &dyn Vmm, machine: &Machine) -> Result<String> {
    let place = tempfile::tempdir()?;
    let Launch {
        mut command,
        status,
        held,
        ..
    } = match vmm.launch(machine, place.path()) {
        Ok(launch) => launch,
        Err(why) => return Ok(format!("unable: {why}")),
    };
    let started = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    let output = child.stdout.take().context("no output")?;
    let (mut begin, mut taken, mut said) = (None, Duration::ZERO, Vec::new());
    for line in BufReader::new(output).lines() {
        let line = line?;
        match line.as_str() {
            "begin" => begin = Some(Instant::now()),
            "end" => taken = begin.map_or(Duration::ZERO, |begin: Instant| begin.elapsed()),
            _ => said.push(line),
        }
    }
    let output = child.wait_with_output()?;
    drop(held);
    let well = if output.status.code() == Some(status) {
        ""
    } else {
        "NOT WELL, "
    };
    Ok(format!(
        "{said:?}, {well}{}, begin to end {taken:?}, all {:?} {}",
        output.status,
        started.elapsed(),
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}
