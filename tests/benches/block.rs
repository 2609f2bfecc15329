//! What a disk is worth: a bare guest that polls its rings, beside one thread's plain loop of pread(2) or pwrite(2) over the same
//! places of the same file, in turns.
//!
//! `cargo bench -p ampoule-tests --bench block [-- OPTIONS]`: a table, then one line of JSON. The file is made in /dev/shm unless
//! `--folder DIR` says otherwise; `AMPOULE_BIN` names another binary than this tree's release build. Nothing fails on a missed target:
//! figures are for people to judge. Options: `--runs N`; `--divide N` makes runs shorter, for slow disks; `--engine sync|io_uring`;
//! `--disk KEYS`, more of them (`direct`, …); `--whole` has the guest wait for a whole ring before it asks again, as it must where
//! answers come in any order; `--strace` counts system calls per request instead.

#![allow(clippy::print_stdout, reason = "the figures are this program's output")]

use std::env;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use ampoule_tests::guests;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

#[path = "common/options.rs"]
mod options;
#[path = "common/release.rs"]
mod release;

use options::Options;

const RUNS: usize = 5;
const DISK: u64 = 64 << 20;

/// One kind of load.
struct Load {
    name: &'static str,
    writes: bool,
    size: usize,
    depth: usize,
    requests: usize,
    /// Of the plain loop's rate.
    target: Option<f64>,
}

const LOADS: [Load; 4] = [
    Load {
        name: "4 KiB reads, depth 64",
        writes: false,
        size: 4096,
        depth: 64,
        requests: 640_000,
        target: Some(0.65),
    },
    Load {
        name: "4 KiB writes, depth 64",
        writes: true,
        size: 4096,
        depth: 64,
        requests: 640_000,
        target: Some(0.6),
    },
    Load {
        name: "64 KiB reads, depth 64",
        writes: false,
        size: 65536,
        depth: 64,
        requests: 128_000,
        target: Some(0.95),
    },
    Load {
        name: "4 KiB reads, depth 1",
        writes: false,
        size: 4096,
        depth: 1,
        requests: 50_000,
        target: None,
    },
];

fn main() -> Result<()> {
    let Some(options) = Options::of_bench() else {
        return Ok(());
    };
    let runs = options.number("--runs", RUNS)?;
    let folder = options.value("--folder").unwrap_or("/dev/shm");
    let folder = tempfile::tempdir_in(folder).context("no place for the disk")?;
    let disk = folder.path().join("disk.img");
    let ampoule = release::binary()?;
    fill(&disk)?;
    let mut keys = format!("path={}", disk.display());
    for (flag, key) in [("--engine", "engine="), ("--disk", "")] {
        if let Some(value) = options.value(flag) {
            keys.push_str(&format!(",{key}{value}"));
        }
    }
    let divisor: usize = options.number("--divide", 1)?;
    let loads = LOADS.map(|load| Load {
        requests: load.requests / divisor,
        ..load
    });
    let count_calls = options.has("--strace");

    println!(
        "{}, {runs} runs of each, in turns, --disk {keys}",
        ampoule.display()
    );
    println!(
        "{:26} {:>12} {:>12} {:>7}   target",
        "", "guest, 1/s", "loop, 1/s", "ratio"
    );
    let mut rows = Vec::new();
    if count_calls {
        for load in &loads {
            println!(
                "{:26} {:.3} system calls a request",
                load.name,
                system_calls(load, &ampoule, &keys)?
            );
        }
        return Ok(());
    }
    for load in &loads {
        let mut guest_rates = Vec::new();
        let mut loop_rates = Vec::new();
        for _ in 0..runs {
            loop_rates.push(plain_loop(load, &disk)?);
            guest_rates.push(guest(load, Command::new(&ampoule), &keys)?);
        }
        let (guest, plain) = (median(guest_rates), median(loop_rates));
        let ratio = guest / plain;
        let target = load
            .target
            .map_or("50,000 1/s".into(), |target| format!("{target:.2}"));
        println!(
            "{:26} {guest:>12.0} {plain:>12.0} {ratio:>7.2}   {target}",
            load.name
        );
        rows.push(json!({ "load": load.name, "guest": guest, "loop": plain, "ratio": ratio }));
    }
    println!("{}", json!({ "runs": runs, "figures": Value::Array(rows) }));
    Ok(())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn fill(disk: &Path) -> Result<()> {
    let file = File::create(disk)?;
    let chunk = vec![0x11; 1 << 20];
    for at in (0..DISK).step_by(chunk.len()) {
        file.write_all_at(&chunk, at)?;
    }
    Ok(())
}

/// Requests per second of one thread without a VM.
fn plain_loop(load: &Load, disk: &PathBuf) -> Result<f64> {
    let file = File::options().read(true).write(true).open(disk)?;
    let mut buffers = vec![0x5a_u8; load.depth * load.size];
    let start = Instant::now();
    for request in 0..load.requests {
        let place = request % load.depth * load.size;
        let buffer = &mut buffers[place..place + load.size];
        if load.writes {
            file.write_all_at(buffer, place as u64)?;
        } else {
            file.read_exact_at(buffer, place as u64)?;
        }
    }
    Ok(load.requests as f64 / start.elapsed().as_secs_f64())
}

/// System calls of the whole VMM, its start included, for one request of a guest.
fn system_calls(load: &Load, ampoule: &Path, keys: &str) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let summary = folder.path().join("calls");
    let mut strace = Command::new("strace");
    strace.args(["-c", "-f", "-o"]).arg(&summary).arg(ampoule);
    guest(load, strace, keys)?;
    let text = std::fs::read_to_string(&summary)?;
    // "100.00    0.123456           1     12345        67 total"
    let total = text
        .lines()
        .find(|line| line.trim_end().ends_with(" total"));
    let calls = total.and_then(|line| line.split_whitespace().nth(3));
    let calls: f64 = calls.context("strace printed no total")?.parse()?;
    Ok(calls / load.requests as f64)
}

/// Requests per second of a guest, from its `begin` to its `end`. `ampoule` is the command that runs it.
fn guest(load: &Load, mut ampoule: Command, keys: &str) -> Result<f64> {
    let whole = env::args().any(|argument| argument == "--whole");
    let half = match whole {
        true => load.depth,
        false => (load.depth / 2).max(1),
    };
    let mut child = ampoule
        .args([
            "run",
            "--memory",
            "64M",
            "--rng",
            "off",
            "--kernel",
            guests::VIRTIO_BLOCK,
        ])
        .args(["--disk", keys])
        .arg("--cmdline")
        .arg(format!(
            "op={} size={} depth={} batches={}{}",
            if load.writes { "w" } else { "r" },
            load.size,
            load.depth,
            load.requests / half,
            if whole { " whole=1" } else { "" }
        ))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {ampoule:?}"))?;
    let output = child.stdout.take().context("no output")?;
    let (mut begin, mut end, mut last) = (None, None, String::new());
    for line in BufReader::new(output).lines() {
        last = line?;
        match last.trim() {
            "begin" => begin = Some(Instant::now()),
            "end" => end = Some(Instant::now()),
            _ => {}
        }
    }
    let status = child.wait()?;
    ensure!(
        status.success() && last.trim() == "PASS",
        "the guest failed: {last}, {status}"
    );
    let (begin, end) = begin
        .zip(end)
        .context("the guest has not said when it began and ended")?;
    Ok((load.requests / half * half) as f64 / (end - begin).as_secs_f64())
}
