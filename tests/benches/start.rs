//! What a start costs: `ampoule run` of a guest that powers off at once, beside the floor program, which does no more than
//! KVM asks of anybody. Both run in one go and in turns, so that a machine that is slow for a while is slow for both.
//!
//! `cargo bench -p ampoule-tests --bench start [-- --runs N]`: a table, then the same as one line of JSON. `AMPOULE_BIN`
//! names another binary than this tree's release build. Nothing fails on a missed target: figures are for people to judge.

#![allow(clippy::print_stdout, reason = "the figures are this program's output")]

use std::cmp::Ordering;
use std::io::Read;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use ampoule_tests::guests;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

#[path = "common/options.rs"]
mod options;
#[path = "common/release.rs"]
mod release;

use options::Options;

/// Runs of each kind, unless `--runs` says otherwise.
const RUNS: usize = 60;
/// Runs of each kind before those that count: they read the files into the page cache.
const WARM_UP: usize = 3;
/// Guest memory, in MiB, as the floor program maps it.
const MEMORY_MIB: u64 = 128;
/// How long an idle VM is left alone before its memory is measured.
const SETTLE: Duration = Duration::from_millis(500);

fn main() -> Result<()> {
    let Some(options) = Options::of_bench() else {
        return Ok(());
    };
    let runs = options.number("--runs", RUNS)?;
    let folder = tempfile::tempdir()?;
    let ampoule = release::installed(folder.path())?;

    let mut floor = Series::default();
    let mut start = Series::default();
    let mut ratios = Vec::new();
    let mut first_ratios = Vec::new();
    let mut first_entry = Vec::new();
    let mut first_mark = Vec::new();
    let mut first_byte = Vec::new();
    let mut floor_first = Vec::new();
    let mut first_mark_ratios = Vec::new();
    for run in 0..WARM_UP + runs {
        let floor_run = measure(&mut Command::new(guests::FLOOR))?;
        let start_run = measure(&mut ampoule_run(&ampoule, guests::POWEROFF))?;
        // Without a place to keep what KVM says, each start is as the first after the host's.
        let mut command = ampoule_run(&ampoule, guests::POWEROFF);
        for folder in ["HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"] {
            command.env_remove(folder);
        }
        let first_run = measure(&mut command)?;
        let instruction = floor_instruction()?;
        let marks = timeline(&ampoule)?;
        let byte = until_first_byte(&ampoule)?;
        if run < WARM_UP {
            continue;
        }
        ratios.push(start_run.cpu_ms / floor_run.cpu_ms);
        first_ratios.push(first_run.cpu_ms / floor_run.cpu_ms);
        floor.push(floor_run);
        start.push(start_run);
        first_entry.push(marks.first_entry);
        first_mark.push(marks.first_mark);
        first_byte.push(byte);
        floor_first.push(instruction);
        first_mark_ratios.push(marks.first_mark / instruction);
    }
    let memory = idle_memory(&ampoule)?;
    let binary = fs::metadata(&ampoule)?.len() as f64 / 1e6;
    let binary_target = match runs_images(&ampoule)? {
        true => 10.0,
        false => 4.0,
    };

    let rows = [
        Row::new("floor: CPU, start to exit", "ms", &floor.cpu_ms),
        Row::new("floor: wall, start to exit", "ms", &floor.wall_ms),
        Row::new("ampoule: CPU, start to exit", "ms", &start.cpu_ms),
        Row::new("ampoule: wall, start to exit", "ms", &start.wall_ms),
        Row::new("CPU, ampoule to floor, by pairs", "x", &ratios).target(1.5),
        Row::new("the same, first start of a boot", "x", &first_ratios),
        Row::new("first entry, own timeline", "ms", &first_entry),
        Row::new("first guest mark, own timeline", "ms", &first_mark).target(2.0),
        Row::new("floor: first instruction since main", "ms", &floor_first),
        Row::new("first mark to that, by pairs", "x", &first_mark_ratios),
        Row::new("first console byte, seen by parent", "ms", &first_byte),
        Row::new("PSS without guest RAM, idle", "MB", &[memory.vmm_mb]).target(2.0),
        Row::new("release binary, stripped", "MB", &[binary]).target(binary_target),
    ];
    println!("{}, {runs} runs of each, in turns", ampoule.display());
    println!(
        "{:36} {:>8} {:>8} {:>8}     target",
        "", "median", "p10", "p90"
    );
    for row in &rows {
        println!("{row}");
    }
    println!(
        "guest RAM left out of the PSS: {:.2} MB present, in mappings: {}",
        memory.ram_mb, memory.ram_mappings
    );
    let rows: Vec<Value> = rows.iter().map(Row::json).collect();
    println!("{}", json!({ "runs": runs, "figures": rows }));
    Ok(())
}

fn ampoule_run(ampoule: &Path, guest: &str) -> Command {
    let mut command = Command::new(ampoule);
    command
        .args(["run", "--kernel", guest, "--memory"])
        .arg(format!("{MEMORY_MIB}M"));
    command
}

/// One run, from before the fork to after the wait.
struct Run {
    cpu_ms: f64,
    wall_ms: f64,
}

fn measure(command: &mut Command) -> Result<Run> {
    let start = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: `status` and `usage` are valid for the writes that the call makes; the child is ours and nobody else waits
    // for it, `Child` being dropped without a wait.
    let pid = unsafe { libc::wait4(child.id().cast_signed(), &mut status, 0, usage.as_mut_ptr()) };
    let wall = start.elapsed();
    ensure!(
        pid == child.id().cast_signed(),
        "cannot wait for {command:?}"
    );
    // SAFETY: wait4 succeeded, so that it filled `usage`.
    let usage = unsafe { usage.assume_init() };
    ensure!(
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        "{command:?} failed with wait status {status:#x}"
    );
    let millis = |time: libc::timeval| time.tv_sec as f64 * 1e3 + time.tv_usec as f64 / 1e3;
    Ok(Run {
        cpu_ms: millis(usage.ru_utime) + millis(usage.ru_stime),
        wall_ms: wall.as_secs_f64() * 1e3,
    })
}

/// Milliseconds from the floor's `main` until its guest's first instruction has been run, as it says itself.
fn floor_instruction() -> Result<f64> {
    let output = Command::new(guests::FLOOR).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "the floor failed: {output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut words = text
        .lines()
        .map(str::split_whitespace)
        .find_map(|mut words| (words.next() == Some("run")).then_some(words))
        .with_context(|| format!("no first instruction in {text:?}"))?;
    let micros: f64 = words.next().context("no number behind it")?.parse()?;
    Ok(micros / 1e3)
}

/// Whether the binary has the features that are there by default, and may be larger for them.
fn runs_images(ampoule: &Path) -> Result<bool> {
    let status = Command::new(ampoule)
        .args(["image", "--help"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    Ok(status.success())
}

/// Marks of one run's timeline, in milliseconds since the process's start.
struct Marks {
    first_entry: f64,
    first_mark: f64,
}

fn timeline(ampoule: &Path) -> Result<Marks> {
    let file = tempfile::NamedTempFile::new()?;
    let status = ampoule_run(ampoule, guests::DEBUG_MARKS)
        .arg("--timeline")
        .arg(file.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()?;
    ensure!(status.success(), "ampoule failed: {status}");
    let timeline: Value = serde_json::from_reader(file.reopen()?)?;
    let mark = |name: &str| {
        timeline["marks"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|mark| mark["name"] == name)
            .and_then(|mark| mark["at_us"].as_f64())
            .map(|micros| micros / 1e3)
            .with_context(|| format!("no mark {name:?} in {timeline}"))
    };
    Ok(Marks {
        first_entry: mark("first-entry")?,
        first_mark: mark("debug-port-1")?,
    })
}

/// Milliseconds from before the fork until a byte of the guest's console has come here: an outsider's view of the start.
fn until_first_byte(ampoule: &Path) -> Result<f64> {
    let start = Instant::now();
    let mut child = ampoule_run(ampoule, guests::SERIAL_HELLO)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut output = child.stdout.take().context("no pipe")?;
    output.read_exact(&mut [0])?;
    let elapsed = start.elapsed();
    output.read_to_end(&mut Vec::new())?;
    ensure!(child.wait()?.success(), "ampoule failed");
    Ok(elapsed.as_secs_f64() * 1e3)
}

/// What an idle VM holds in memory.
struct IdleMemory {
    /// Proportional set size of all that is not guest RAM.
    vmm_mb: f64,
    /// Guest RAM that is present.
    ram_mb: f64,
    ram_mappings: usize,
}

fn idle_memory(ampoule: &Path) -> Result<IdleMemory> {
    let mut child = ampoule_run(ampoule, guests::HLT_FOREVER)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let smaps = idle_smaps(&mut child);
    child.kill()?;
    child.wait()?;
    split_smaps(&smaps?)
}

/// Waits until the vCPU's thread runs, and some time more for it to come to rest.
fn idle_smaps(child: &mut Child) -> Result<String> {
    let process = PathBuf::from(format!("/proc/{}", child.id()));
    let is_vcpu = |thread: io::Result<fs::DirEntry>| {
        let name = fs::read_to_string(thread?.path().join("comm"))?;
        Ok::<_, io::Error>(name.trim() == "vcpu0")
    };
    while !fs::read_dir(process.join("task"))?.any(|thread| is_vcpu(thread).unwrap_or(false)) {
        ensure!(child.try_wait()?.is_none(), "ampoule ended by itself");
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(SETTLE);
    ensure!(child.try_wait()?.is_none(), "ampoule ended by itself");
    Ok(fs::read_to_string(process.join("smaps"))?)
}

/// A mapping of a process.
struct Mapping {
    start: u64,
    end: u64,
    pss_kib: u64,
}

/// Splits proc_pid_smaps(5) into guest RAM and all the rest. Guest RAM is the mapping, or the mappings side by side, of the
/// guest's size: parts of it may have advice of their own, which makes them mappings of their own.
fn split_smaps(smaps: &str) -> Result<IdleMemory> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let Some((first, rest)) = line.split_once(' ') else {
            continue;
        };
        if first == "Pss:" {
            let kib = rest.trim().trim_end_matches(" kB").parse()?;
            mappings.last_mut().context("no mapping")?.pss_kib = kib;
        } else if let Some((start, end)) = first.split_once('-') {
            mappings.push(Mapping {
                start: u64::from_str_radix(start, 16)?,
                end: u64::from_str_radix(end, 16)?,
                pss_kib: 0,
            });
        }
    }
    let ram = (0..mappings.len())
        .find_map(|first| guest_ram(&mappings[first..]))
        .with_context(|| format!("no {MEMORY_MIB} MiB of guest RAM in\n{smaps}"))?;
    let pss = |mappings: &[Mapping]| mappings.iter().map(|mapping| mapping.pss_kib).sum::<u64>();
    let mb = |kib: u64| kib as f64 * 1024.0 / 1e6;
    Ok(IdleMemory {
        vmm_mb: mb(pss(&mappings) - pss(ram)),
        ram_mb: mb(pss(ram)),
        ram_mappings: ram.len(),
    })
}

/// The first mappings, if they lie side by side and are together as large as the guest's RAM.
fn guest_ram(mappings: &[Mapping]) -> Option<&[Mapping]> {
    let start = mappings.first()?.start;
    let mut end = start;
    for (index, mapping) in mappings.iter().enumerate() {
        if mapping.start != end {
            return None;
        }
        end = mapping.end;
        match (end - start).cmp(&(MEMORY_MIB << 20)) {
            Ordering::Less => {}
            Ordering::Equal => return Some(&mappings[..=index]),
            Ordering::Greater => return None,
        }
    }
    None
}

/// The runs of one kind.
#[derive(Default)]
struct Series {
    cpu_ms: Vec<f64>,
    wall_ms: Vec<f64>,
}

impl Series {
    fn push(&mut self, run: Run) {
        self.cpu_ms.push(run.cpu_ms);
        self.wall_ms.push(run.wall_ms);
    }
}

/// A line of the table.
struct Row {
    what: &'static str,
    unit: &'static str,
    median: f64,
    p10: f64,
    p90: f64,
    target: Option<f64>,
}

impl Row {
    fn new(what: &'static str, unit: &'static str, values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let quantile = |q: f64| sorted[((sorted.len() - 1) as f64 * q).round() as usize];
        Self {
            what,
            unit,
            median: quantile(0.5),
            p10: quantile(0.1),
            p90: quantile(0.9),
            target: None,
        }
    }

    /// The most that the median should be.
    fn target(self, target: f64) -> Self {
        Self {
            target: Some(target),
            ..self
        }
    }

    fn json(&self) -> Value {
        json!({
            "what": self.what,
            "unit": self.unit,
            "median": self.median,
            "p10": self.p10,
            "p90": self.p90,
            "target": self.target,
        })
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            what,
            unit,
            median,
            p10,
            p90,
            ..
        } = self;
        write!(f, "{what:36} {median:8.3} {p10:8.3} {p90:8.3} {unit:3}")?;
        match self.target {
            Some(target) if self.median <= target => write!(f, " {target:.1} met"),
            Some(target) => write!(f, " {target:.1} MISSED"),
            None => Ok(()),
        }
    }
}
