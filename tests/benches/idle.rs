//! What VMs cost that do nothing: many of them, a process each, started one after the other. How long the first and the last take, how
//! often any of their threads wakes up, what memory they hold, and how long it takes until all are gone.
//!
//! `cargo bench -p ampoule-tests --bench idle [-- --vms N] [--fresh] [--seconds N]`; what stands behind `--vm` goes to `ampoule run`:
//! `--vm --rng off`. `AMPOULE_BIN` names another binary than this tree's release build. The floor program runs beside the first and the
//! last, to tell what the machine itself has become slower by.
//!
//! On a machine that is a VM, memory that it has not used before has to come from its own host: a start that gets some takes longer,
//! whichever it is. So as much is used beforehand as all will need; not with `--fresh`.

#![allow(clippy::print_stdout, reason = "the figures are this program's output")]

use std::fs;
use std::hint::black_box;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ampoule_tests::guests;
use anyhow::{Context, Result, ensure};

#[path = "common/options.rs"]
mod options;
#[path = "common/release.rs"]
mod release;

use options::Options;

/// VMs, unless `--vms` says otherwise.
const VMS: usize = 1000;
/// Of so many the median is taken, at the beginning and at the end.
const SAMPLE: usize = 20;
/// Starts before those that count: they read the files into the page cache.
const WARM_UP: usize = 3;
/// Guest memory.
const MEMORY: &str = "32M";
/// More than a VM takes of the machine.
const EACH: usize = 1536 << 10;
/// After which a VM has nothing left to do.
const SETTLE: Duration = Duration::from_secs(2);

fn main() -> Result<()> {
    let Some(options) = Options::of_bench() else {
        return Ok(());
    };
    let count = options.number("--vms", VMS)?;
    let seconds = options.number("--seconds", 10)?;
    let folder = tempfile::tempdir()?;
    let ampoule = release::installed(folder.path())?;
    let more = options.behind("--vm");
    for _ in 0..WARM_UP {
        Vm::start(&ampoule, more)?.end()?;
    }
    if !options.has("--fresh") {
        black_box(vec![1_u8; count * EACH]);
    }

    let mut floor = vec![floor_ms()?];
    let start = Instant::now();
    let mut vms = Vec::with_capacity(count);
    for number in 0..count {
        let vm = Vm::start(&ampoule, more);
        vms.push(vm.with_context(|| format!("VM {number} did not start"))?);
    }
    let up = start.elapsed();
    floor.push(floor_ms()?);
    thread::sleep(SETTLE);

    println!("{}, {count} VMs of {MEMORY}", ampoule.display());
    println!("up after {up:.2?}");
    let (first, last) = (
        &vms[..SAMPLE.min(count)],
        &vms[count.saturating_sub(SAMPLE)..],
    );
    let line = |what, of: fn(&Vm) -> f64| {
        let (first, last) = (median(first, of), median(last, of));
        let ratio = last / first;
        println!("{what:28} first {first:6.2} ms, last {last:6.2} ms, {ratio:.2} x");
    };
    line("start until it says so, wall", |vm| vm.wall_ms);
    line("the same, CPU", |vm| vm.cpu_ms);
    println!(
        "{:28} first {:6.2} ms, last {:6.2} ms, {:.2} x",
        "the floor, CPU",
        floor[0],
        floor[1],
        floor[1] / floor[0]
    );
    let before = switches(&vms)?;
    thread::sleep(Duration::from_secs(seconds));
    let woken = switches(&vms)? - before;
    println!("context switches of all their threads in {seconds} s: {woken}");
    let step = count.div_ceil(SAMPLE);
    let pss = vms.iter().step_by(step).map(Vm::pss_kb);
    let mut pss = pss.collect::<Result<Vec<_>>>()?;
    pss.sort_unstable();
    println!(
        "PSS of each, its guest's few pages included: {} kB",
        pss[pss.len() / 2]
    );

    let start = Instant::now();
    for vm in &mut vms {
        vm.child.kill()?;
    }
    for vm in &mut vms {
        vm.child.wait()?;
    }
    println!("killed, and gone after {:.2?}", start.elapsed());
    Ok(())
}

/// A VM that has said that it is there. Killed when it is dropped.
struct Vm {
    child: Child,
    _output: BufReader<ChildStdout>,
    wall_ms: f64,
    cpu_ms: f64,
}

impl Vm {
    fn start(ampoule: &Path, more: &[String]) -> Result<Self> {
        let start = Instant::now();
        let mut child = Command::new(ampoule)
            .args(["run", "--memory", MEMORY, "--kernel", guests::IDLE])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("ampoule does not run")?;
        let mut output = BufReader::new(child.stdout.take().context("no pipe")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        let wall_ms = start.elapsed().as_secs_f64() * 1e3;
        let mut vm = Self {
            child,
            _output: output,
            wall_ms,
            cpu_ms: 0.0,
        };
        ensure!(line == "ready\n", "its guest said {line:?}");
        vm.cpu_ms = vm.cpu_ms()?;
        Ok(vm)
    }

    fn threads(&self) -> Result<Vec<PathBuf>> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.child.id()))?;
        threads.map(|thread| Ok(thread?.path())).collect()
    }

    /// What its threads have used of processors.
    fn cpu_ms(&self) -> Result<f64> {
        let mut sum = 0;
        for thread in self.threads()? {
            let text = fs::read_to_string(thread.join("schedstat"))?;
            let spent: u64 = text.split(' ').next().unwrap_or_default().parse()?;
            sum += spent;
        }
        Ok(sum as f64 / 1e6)
    }

    fn switches(&self) -> Result<u64> {
        let mut sum = 0;
        for thread in self.threads()? {
            let status = fs::read_to_string(thread.join("status"))?;
            let counts = status.lines().filter(|line| line.contains("ctxt_switches"));
            for line in counts {
                let count = line.split_whitespace().last().unwrap_or_default();
                sum += count.parse::<u64>()?;
            }
        }
        Ok(sum)
    }

    fn pss_kb(&self) -> Result<u64> {
        let maps = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()))?;
        let pss = maps.lines().find_map(|line| line.strip_prefix("Pss:"));
        let pss = pss.context("no PSS in smaps_rollup")?;
        Ok(pss.trim().trim_end_matches(" kB").parse()?)
    }

    fn end(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Fails only where it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn switches(vms: &[Vm]) -> Result<u64> {
    vms.iter().map(Vm::switches).sum()
}

fn median(vms: &[Vm], of: fn(&Vm) -> f64) -> f64 {
    let mut values: Vec<f64> = vms.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What the floor program takes of processors, from start to exit; the median of some.
fn floor_ms() -> Result<f64> {
    let mut values = Vec::new();
    for _ in 0..SAMPLE {
        let before = children_ms()?;
        let status = Command::new(guests::FLOOR).stdout(Stdio::null()).status();
        ensure!(status?.success(), "the floor program failed");
        values.push(children_ms()? - before);
    }
    values.sort_by(f64::total_cmp);
    Ok(values[values.len() / 2])
}

/// What children that have been waited for have taken.
fn children_ms() -> Result<f64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: the pointer is valid for what the call writes.
    let result = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()) };
    ensure!(
        result == 0,
        "getrusage: {}",
        std::io::Error::last_os_error()
    );
    // SAFETY: the call succeeded.
    let usage = unsafe { usage.assume_init() };
    let ms = |time: libc::timeval| time.tv_sec as f64 * 1e3 + time.tv_usec as f64 / 1e3;
    Ok(ms(usage.ru_utime) + ms(usage.ru_stime))
}
