//! What a disk is worth: a bare guest that polls its rings, beside one thread's plain loop of pread(2) or pwrite(2) over the same
//! places of the same file.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use ampoule_tests::guests;
use anyhow::{Context, Result};

use super::PART;
use crate::bench::{Bench, role, under};
use crate::machine::{Disk, Engine, Machine};
use crate::peer::Vmm;
use crate::results::{Kind, Results, Role, Target, less, more};
use crate::rounds::Entrant;

const GROUP: &str = "block";
const ROUNDS: usize = 5;
const DISK: usize = 64 << 20;
/// Buffers of direct I/O begin at multiples of this.
const ALIGNMENT: usize = 4096;

/// Where the disk's file is, and how it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Medium {
    Tmpfs,
    PageCache,
    Direct,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Read,
    Write,
    /// By turns.
    Mixed,
}

/// One kind of load.
#[derive(Debug, Clone, Copy)]
struct Load {
    medium: Medium,
    operation: Operation,
    size: usize,
    depth: usize,
    /// Over the whole disk, in no order; else each request in flight has its own place, one behind the other.
    random: bool,
    /// The guest asks again when half of what is in flight has come back, else when all of it has. Only right for a VMM that answers
    /// in order.
    halves: bool,
}

impl Load {
    /// Whether the guest waits for all that is in flight before it asks again.
    fn whole(&self) -> bool {
        self.depth == 1 || !self.halves
    }

    fn name(&self) -> String {
        let medium = match self.medium {
            Medium::Tmpfs => "tmpfs",
            Medium::PageCache => "page cache",
            Medium::Direct => "O_DIRECT",
        };
        let operation = match self.operation {
            Operation::Read => "reads",
            Operation::Write => "writes",
            Operation::Mixed => "reads and writes",
        };
        let order = if self.random { "scattered " } else { "" };
        let halves = if self.halves {
            ", half a ring at a time"
        } else {
            ""
        };
        format!(
            "{medium}, {} KiB {order}{operation}{halves}",
            self.size / 1024
        )
    }

    /// As many as take a good VMM an eighth of a second.
    fn requests(&self, quick: bool) -> usize {
        let rate = match (self.medium, self.size > 4096, self.depth) {
            (Medium::Direct, false, 1) => 20_000,
            (Medium::Direct, false, _) => 60_000,
            (Medium::Direct, true, _) => 20_000,
            (_, false, 1) => 50_000,
            (_, false, ..16) => 400_000,
            (_, false, _) => 1_500_000,
            (_, true, 1) => 40_000,
            (_, true, _) => 250_000,
        };
        let requests = if quick { rate / 10 } else { rate / 8 };
        // Whole rings of whatever depth.
        requests / 256 * 256
    }

    fn cmdline(&self, requests: usize) -> String {
        let operation = match self.operation {
            Operation::Read => 'r',
            Operation::Write => 'w',
            Operation::Mixed => 'm',
        };
        let batch = if self.whole() {
            self.depth
        } else {
            self.depth / 2
        };
        let mut line = format!(
            "op={operation} size={} depth={} batches={}",
            self.size,
            self.depth,
            requests / batch
        );
        if self.whole() && self.depth > 1 {
            line.push_str(" whole=1");
        }
        if self.random {
            line.push_str(&format!(" random=1 span={DISK}"));
        }
        line
    }
}

/// How many requests are in flight: the more kinds of them, the more of what is asked for most.
fn depths(operation: Operation, size: usize) -> &'static [usize] {
    match (operation, size) {
        (Operation::Mixed, _) => &[1, 64],
        (_, 4096) => &[1, 4, 16, 64, 128],
        _ => &[1, 16, 64, 128],
    }
}

/// All of them, or those of which one sees most.
fn loads(quick: bool) -> Vec<Load> {
    let mut loads = Vec::new();
    let media = [Medium::Tmpfs, Medium::PageCache, Medium::Direct];
    let operations = [Operation::Read, Operation::Write, Operation::Mixed];
    for (operation, size) in [
        (Operation::Read, 4096),
        (Operation::Write, 4096),
        (Operation::Read, 65536),
    ] {
        let medium = Medium::Tmpfs;
        loads.push(Load {
            medium,
            operation,
            size,
            depth: 64,
            random: false,
            halves: true,
        });
    }
    for medium in media {
        for size in [4096, 65536] {
            for operation in operations {
                for &depth in depths(operation, size) {
                    let load = Load {
                        medium,
                        operation,
                        size,
                        depth,
                        random: false,
                        halves: false,
                    };
                    let usual = medium == Medium::Tmpfs
                        && operation != Operation::Mixed
                        && (depth == 64 || (depth == 1 && size == 4096));
                    if !quick || usual {
                        loads.push(load);
                    }
                }
            }
        }
        let scattered = Load {
            medium,
            operation: Operation::Read,
            size: 4096,
            depth: 64,
            random: true,
            halves: false,
        };
        if !quick || medium == Medium::Direct {
            loads.push(scattered);
        }
        if !quick {
            loads.push(Load {
                operation: Operation::Write,
                ..scattered
            });
        }
    }
    loads
}

/// The targets of issue and design, for a disk on tmpfs: shares of the plain loop.
fn kind(load: &Load) -> Kind {
    let kind = more(load.name(), "1/s").over("in flight", load.depth as f64);
    // Those who answer out of order cannot have it.
    let kind = if load.halves {
        kind
    } else {
        kind.target(Target::Peers(1.0))
    };
    if load.medium != Medium::Tmpfs || load.random {
        return kind;
    }
    match (load.operation, load.size, load.depth) {
        (_, _, 64) if !load.halves => kind,
        (Operation::Read, 4096, 64) => kind.target(Target::FloorsAtLeast(0.65)),
        (Operation::Write, 4096, 64) => kind.target(Target::FloorsAtLeast(0.6)),
        (Operation::Read, 65536, 64) => kind.target(Target::FloorsAtLeast(0.95)),
        (Operation::Read, 4096, 1) => kind.target(Target::AtLeast(50_000.0)),
        _ => kind,
    }
}

pub(crate) fn measure(bench: &Bench, results: &mut Results) -> Result<()> {
    let disks = Disks::make(bench)?;
    for load in loads(bench.plan.quick) {
        let requests = load.requests(bench.plan.quick);
        let path = disks.path(load.medium);
        let disk = disk(&load, path);
        let machine = machine(&load, disk.clone(), requests);
        // Which engine is the one to have by default.
        let told = [
            ("Ampoule, engine=sync", Engine::Sync),
            ("Ampoule, engine=io_uring", Engine::IoUring),
        ];
        let machines = told.map(|(who, engine)| {
            let disk = Disk {
                engine,
                ..disk.clone()
            };
            (
                who,
                Machine {
                    disks: vec![disk],
                    ..machine.clone()
                },
            )
        });
        let mut entrants = Vec::new();
        if !load.random {
            entrants.push(Entrant::new("plain loop", Role::Floor, || {
                Ok(vec![plain_loop(&load, path, requests)?, f64::NAN])
            }));
        }
        let rate = move |bench: &Bench, vmm: &dyn Vmm, machine: &Machine| {
            guest(bench, vmm, machine, requests)
        };
        if load.halves {
            let ours = bench.ampoule()?;
            let machine = &machine;
            entrants.push(Entrant::new(ours.name(), Role::Ours, move || {
                rate(bench, ours, machine)
            }));
        } else {
            entrants.extend(bench.entrants(results, GROUP, &machine, rate));
        }
        if !bench.plan.quick && matches!(load.depth, 1 | 64) {
            let ours = bench.ampoule()?;
            for (who, machine) in &machines {
                entrants.push(Entrant::new(*who, Role::Variant, move || {
                    guest(bench, ours, machine, requests)
                }));
            }
        }
        let cpu = less(
            format!("{}: CPU of the process", load.name()),
            "us a request",
        );
        let kinds = vec![kind(&load), cpu.over("in flight", load.depth as f64)];
        results.measure(PART, GROUP, bench.rounds(ROUNDS), kinds, entrants);
    }
    Ok(())
}

/// System calls of the whole VMM for a request: what a long run has more than a short one, so that the start does not count.
pub(crate) fn measure_calls(bench: &Bench, results: &mut Results) -> Result<()> {
    let disks = Disks::make(bench)?;
    let (few, many) = (3200, 16_000);
    for (operation, size, random) in [
        (Operation::Read, 4096, false),
        (Operation::Write, 4096, false),
        (Operation::Read, 65536, false),
        (Operation::Read, 4096, true),
    ] {
        let load = Load {
            medium: Medium::Tmpfs,
            operation,
            size,
            depth: 64,
            random,
            halves: false,
        };
        let disk = disk(&load, disks.path(load.medium));
        let told = [
            (None, Engine::Usual),
            (Some("Ampoule, engine=io_uring"), Engine::IoUring),
        ];
        let machines = told.map(|(who, engine)| {
            let disk = Disk {
                engine,
                ..disk.clone()
            };
            (
                who,
                [few, many].map(|requests| machine(&load, disk.clone(), requests)),
            )
        });
        let mut entrants = Vec::new();
        for (who, machines) in &machines {
            for vmm in &bench.vmms {
                let ours = role(vmm.as_ref()) == Role::Ours;
                if who.is_some() && !ours || vmm.launch(&machines[0], bench.memory()).is_err() {
                    continue;
                }
                let role = if who.is_some() {
                    Role::Variant
                } else {
                    role(vmm.as_ref())
                };
                entrants.push(Entrant::new(who.unwrap_or(vmm.name()), role, move || {
                    let [short, long] = machines;
                    let calls =
                        calls(bench, vmm.as_ref(), long)? - calls(bench, vmm.as_ref(), short)?;
                    Ok(vec![calls / (many - few) as f64])
                }));
            }
        }
        let kind = less(
            format!("system calls a request, {}, depth 64", load.name()),
            "",
        );
        let kind = if random {
            kind
        } else {
            kind.target(Target::AtMost(0.15))
        };
        let rounds = bench.slow_rounds(3, 1);
        results.measure(
            PART,
            GROUP,
            rounds,
            vec![kind.target(Target::Peers(1.0))],
            entrants,
        );
    }
    Ok(())
}

/// System calls of one run, as strace(1) counts them.
pub(crate) fn calls(bench: &Bench, vmm: &dyn Vmm, machine: &Machine) -> Result<f64> {
    let summary = tempfile::NamedTempFile::new_in(bench.memory())?;
    let path = summary.path().to_str().context("no path")?;
    let mut running = bench.start_by(
        vmm,
        machine,
        under("strace", &["-f", "-qq", "-c", "-o", path]),
    )?;
    running.until("PASS")?;
    running.end()?;
    let text = fs::read_to_string(summary.path())?;
    // "100.00  0.1  7  6400  2 total": the calls are in the fourth column.
    let total = text.lines().find(|line| line.trim().ends_with("total"));
    let calls = total.and_then(|line| line.split_whitespace().nth(3));
    Ok(calls.context("strace has no total")?.parse()?)
}

fn disk(load: &Load, path: &Path) -> Disk {
    Disk {
        direct: load.medium == Medium::Direct,
        ..Disk::new(path)
    }
}

fn machine(load: &Load, disk: Disk, requests: usize) -> Machine {
    Machine {
        cmdline: load.cmdline(requests),
        disks: vec![disk],
        ..Machine::new(guests::BENCH_BLOCK)
    }
}

/// Requests a second of a guest, from its `begin` to its `end`, and microseconds of CPU for each.
fn guest(bench: &Bench, vmm: &dyn Vmm, machine: &Machine, requests: usize) -> Result<Vec<f64>> {
    let (time, used) = bench.start(vmm, machine)?.work()?;
    let requests = requests as f64;
    Ok(vec![
        requests / time.as_secs_f64(),
        used.as_secs_f64() * 1e6 / requests,
    ])
}

/// Requests a second of one thread without a VM.
fn plain_loop(load: &Load, path: &Path, requests: usize) -> Result<f64> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    if load.medium == Medium::Direct {
        options.custom_flags(libc::O_DIRECT);
    }
    let file = options.open(path)?;
    let mut memory = vec![0x5a_u8; load.depth * load.size + ALIGNMENT];
    let buffers = memory.as_ptr().align_offset(ALIGNMENT);
    let begin = Instant::now();
    for request in 0..requests {
        let place = request % load.depth * load.size;
        let buffer = &mut memory[buffers + place..][..load.size];
        let writes = match load.operation {
            Operation::Read => false,
            Operation::Write => true,
            Operation::Mixed => request % 2 == 1,
        };
        match writes {
            true => file.write_all_at(buffer, place as u64)?,
            false => file.read_exact_at(buffer, place as u64)?,
        }
    }
    Ok(requests as f64 / begin.elapsed().as_secs_f64())
}

/// The files of the disks, deleted in the end.
struct Disks {
    tmpfs: PathBuf,
    on_disk: PathBuf,
}

impl Disks {
    fn make(bench: &Bench) -> Result<Self> {
        let disks = Self {
            tmpfs: bench.memory().join("disk.img"),
            on_disk: bench
                .plan
                .disk
                .join(format!("bench-{}.img", std::process::id())),
        };
        fill(&disks.tmpfs)?;
        fill(&disks.on_disk)?;
        Ok(disks)
    }

    fn path(&self, medium: Medium) -> &Path {
        match medium {
            Medium::Tmpfs => &self.tmpfs,
            Medium::PageCache | Medium::Direct => &self.on_disk,
        }
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.tmpfs);
        let _ = fs::remove_file(&self.on_disk);
    }
}

fn fill(path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("no place for {}", path.display()))?;
    let chunk = vec![0x11; 1 << 20];
    for at in (0..DISK as u64).step_by(chunk.len()) {
        file.write_all_at(&chunk, at)?;
    }
    Ok(file.sync_all()?)
}
