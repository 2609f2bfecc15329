//! How many idle VMs there can be at once, what each costs, and whether the last one starts as fast as the first.

use std::fs;
use std::hint::black_box;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ampoule_tests::guests;
use anyhow::{Context, Result, ensure};

use super::PART;
use crate::bench::{Bench, millis, role};
use crate::machine::Machine;
use crate::process::Running;
use crate::progress;
use crate::results::{Kind, Results, Role, Series, Target, less, more};
use crate::stats::{Summary, slope};

const GROUP: &str = "density";
const MEMORY_MIB: u32 = 32;
/// So much of the host's memory is left alone.
const RESERVE_MIB: u64 = 2048;
/// No VM is started after so long.
const TIME: Duration = Duration::from_secs(120);
/// What VMs do after their start is over by then; so long they are watched.
const REST: Duration = Duration::from_secs(3);
/// More than a VM takes of the machine, its guest's memory with it.
const EACH: usize = 1536 << 10;
/// None of them lives longer, all measured.
const LIFE: Duration = Duration::from_secs(600);
/// So many at the beginning and at the end are compared.
const EDGE: usize = 20;

/// What came of starting many.
struct Crowd {
    /// Milliseconds from each one's start to its guest's word.
    starts: Vec<f64>,
    /// All of them, and the rate.
    seconds: f64,
    stop_seconds: f64,
    /// What the host had less, in MB.
    memory: f64,
    /// How often any of their threads left a processor, once all had come to rest.
    switches: f64,
    /// Why there were no more.
    why: String,
}

pub(crate) fn measure(bench: &Bench, results: &mut Results) -> Result<()> {
    let most = if bench.plan.quick {
        bench.plan.vms.min(100)
    } else {
        bench.plan.vms
    };
    let machine = Machine {
        memory_mib: MEMORY_MIB,
        ..Machine::new(guests::BENCH_IDLE)
    };
    let mut figures: Vec<(Kind, Vec<Series>)> = vec![
        (
            more("idle VMs at once", "").target(Target::AtLeast(most as f64)),
            Vec::new(),
        ),
        (
            more("starts, one after the other", "1/s").target(Target::Peers(1.0)),
            Vec::new(),
        ),
        (less(format!("start, the first {EDGE}"), "ms"), Vec::new()),
        (less(format!("start, the last {EDGE}"), "ms"), Vec::new()),
        (
            less("the last to the first", "x").target(Target::AtMost(2.0)),
            Vec::new(),
        ),
        (less("a start's growth with each VM", "us"), Vec::new()),
        (
            less("memory of the host's for each VM", "MB").target(Target::Peers(1.0)),
            Vec::new(),
        ),
        (
            less(
                format!("context switches of all of them in {} s", REST.as_secs()),
                "",
            )
            .target(Target::AtMost(0.0)),
            Vec::new(),
        ),
        (more("stops", "1/s"), Vec::new()),
    ];
    // On a machine that is a VM itself, memory that it has not used before has to come from its own host, and a start that gets some
    // takes longer, whichever it is. So as much is used before.
    black_box(vec![1_u8; most * EACH]);
    for vmm in &bench.vmms {
        if let Err(unable) = vmm.launch(&machine, bench.memory()) {
            results.note(format!("{}, {GROUP}: {unable}", vmm.name()));
            continue;
        }
        let crowd = match crowd(most, || bench.start(vmm.as_ref(), &machine)) {
            Ok(crowd) => crowd,
            Err(err) => {
                results.note(format!("{}, {GROUP}: {err:#}", vmm.name()));
                continue;
            }
        };
        progress::note(&format!(
            "{}: {} VMs: {}",
            vmm.name(),
            crowd.starts.len(),
            crowd.why
        ));
        if crowd.starts.len() < most {
            let text = format!(
                "{}, {GROUP}: {} VMs and no more: {}",
                vmm.name(),
                crowd.starts.len(),
                crowd.why
            );
            results.note(text);
        }
        add(&mut figures, vmm.name(), role(vmm.as_ref()), &crowd);
    }
    // The same number of processes that do nothing: what of it is the machine's own.
    let nothing = crowd(most, || {
        let mut command = Command::new("sh");
        command.args(["-c", "echo ready; exec sleep 3600"]);
        Running::start(command)
    })?;
    add(&mut figures, "a process that sleeps", Role::Floor, &nothing);
    for (kind, series) in figures {
        results.push(PART, GROUP, kind, series);
    }
    Ok(())
}

fn add(figures: &mut [(Kind, Vec<Series>)], who: &str, role: Role, crowd: &Crowd) {
    let count = crowd.starts.len();
    let edge = EDGE.min(count);
    let (first, last) = (&crowd.starts[..edge], &crowd.starts[count - edge..]);
    let median = |values| Summary::of(values).map_or(f64::NAN, |summary| summary.median);
    let points: Vec<(f64, f64)> = crowd
        .starts
        .iter()
        .enumerate()
        .map(|(n, ms)| (n as f64, *ms))
        .collect();
    let each = count.max(1) as f64;
    let values = [
        vec![count as f64],
        vec![count as f64 / crowd.seconds],
        first.to_vec(),
        last.to_vec(),
        vec![median(last) / median(first)],
        vec![slope(&points).unwrap_or(f64::NAN) * 1e3],
        vec![crowd.memory / each],
        vec![crowd.switches],
        vec![each / crowd.stop_seconds],
    ];
    for ((_, series), values) in figures.iter_mut().zip(values) {
        if values.iter().all(|value| value.is_finite()) {
            series.push(Series {
                who: who.into(),
                role,
                values,
            });
        }
    }
}

/// Starts one after the other, each when the one before is there, until there are enough, or memory or time runs out.
fn crowd(most: usize, mut start: impl FnMut() -> Result<Running>) -> Result<Crowd> {
    let mut all = Vec::with_capacity(most);
    let mut starts = Vec::with_capacity(most);
    let before = available_mib()?;
    let begin = Instant::now();
    let mut why = String::from("enough");
    while all.len() < most {
        if begin.elapsed() > TIME {
            why = format!("{} s were over", TIME.as_secs());
            break;
        }
        if available_mib()? < RESERVE_MIB {
            why = format!("the host has less than {RESERVE_MIB} MiB left");
            break;
        }
        let started = start().and_then(|mut started| {
            started.patience(LIFE);
            started.until("ready")?;
            Ok(started)
        });
        match started {
            Ok(started) => {
                starts.push(millis(started.age()));
                all.push(started);
            }
            Err(err) => {
                why = format!("{err:#}");
                break;
            }
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    ensure!(!all.is_empty(), "not even one: {why}");
    let memory = used_since(before)?;
    let switches = switches(&all)?;
    let begin = Instant::now();
    stop(all)?;
    Ok(Crowd {
        starts,
        seconds,
        stop_seconds: begin.elapsed().as_secs_f64(),
        memory,
        switches,
        why,
    })
}

/// Of all their threads, once all have come to rest.
fn switches(all: &[Running]) -> Result<f64> {
    let count = || all.iter().map(Running::switches).sum::<Result<u64>>();
    thread::sleep(REST);
    let before = count()?;
    thread::sleep(REST);
    // What a thread that has ended had counted is gone.
    Ok(count()?.saturating_sub(before) as f64)
}

/// Kills all of them, and waits until they are gone.
fn stop(mut all: Vec<Running>) -> Result<()> {
    for running in &mut all {
        running.begin_to_kill()?;
    }
    for running in all {
        running.kill()?;
    }
    Ok(())
}

/// MB that the host has less than `before`, the kernel's own for the VMs with them.
fn used_since(before: u64) -> Result<f64> {
    let used = before as f64 - available_mib()? as f64;
    Ok(used * (1 << 20) as f64 / 1e6)
}

fn available_mib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    Ok(kib.context("/proc/meminfo has no MemAvailable")? / 1024)
}
