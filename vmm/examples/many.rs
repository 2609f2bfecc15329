//! Many VMs in one process, side by side: `cargo run --release --example many -- KERNEL [VMS]`. Starts them all, waits until
//! every guest has printed something, says what they cost, and stops them.
//!
//! Any kernel will do that prints and does not power off; small guests show best what a VM itself costs.

#![allow(clippy::print_stdout, reason = "it talks to a person")]

use std::env;
use std::error::Error;
use std::fs;
use std::io::Read;
use std::thread;
use std::time::Instant;

use ampoule_vmm::config::{MemoryBacking, MemorySize, VmConfig};
use ampoule_vmm::{VmBuilder, VmHandle};
use indicatif::{ProgressBar, ProgressStyle};

type Failed = Box<dyn Error + Send + Sync>;

const VMS: usize = 200;
const MEMORY: MemorySize = MemorySize::mib(32);

fn main() -> Result<(), Failed> {
    let mut arguments = env::args().skip(1);
    let kernel = arguments.next().ok_or("usage: many KERNEL [VMS]")?;
    let count = arguments.next().map_or(Ok(VMS), |text| text.parse())?;
    let threads = thread::available_parallelism()?.get().min(count.max(1));

    let bar = ProgressBar::new(count as u64).with_style(ProgressStyle::with_template(
        "{msg:9} {wide_bar} {pos}/{len}",
    )?);
    bar.set_message("starting");
    let before = own_kb()?;
    let start = Instant::now();
    // Each thread starts its share, and waits for its guests.
    let vms: Vec<VmHandle> = thread::scope(|scope| {
        let shares: Vec<_> = (0..threads)
            .map(|first| {
                let (bar, kernel) = (&bar, &kernel);
                scope.spawn(move || {
                    let share = (first..count).step_by(threads);
                    let vms = share.map(|_| one(kernel).inspect(|_| bar.inc(1)));
                    vms.collect::<Result<Vec<_>, _>>()
                })
            })
            .collect();
        let shares = shares.into_iter().map(|share| match share.join() {
            Ok(vms) => vms,
            Err(_) => Err("a thread panicked".into()),
        });
        shares.collect::<Result<Vec<_>, _>>()
    })?
    .into_iter()
    .flatten()
    .collect();
    let up = start.elapsed();
    let each = own_kb()?.saturating_sub(before) / count.max(1) as u64;

    bar.set_message("stopping");
    bar.set_position(0);
    let start = Instant::now();
    for vm in vms {
        vm.stop();
        vm.wait();
        bar.inc(1);
    }
    let down = start.elapsed();
    bar.finish_and_clear();
    println!("{count} VMs up after {up:.2?}, gone after {down:.2?} more");
    println!("{each} kB for each, besides its memory");
    Ok(())
}

/// Starts a VM; returns when its guest has printed something.
fn one(kernel: &str) -> Result<VmHandle, Failed> {
    let config = VmConfig {
        kernel: Some(kernel.into()),
        memory: MEMORY,
        // It has a name then, by which the measurement knows it.
        memory_backing: MemoryBacking::Shared,
        ..VmConfig::default()
    };
    let vm = VmBuilder::new(config).build().map_err(told)?;
    let vm = vm.start().map_err(told)?;
    let mut console = vm.console().ok_or("it has no console")?;
    if console.read(&mut [0])? == 0 {
        return Err(format!("it said nothing: {}", vm.wait()).into());
    }
    Ok(vm)
}

/// An error as a person wants to see it: how many VMs fit into a process is a question of its limits.
fn told(error: ampoule_vmm::Error) -> Failed {
    let mut text = error.to_string();
    if let Some(source) = error.source() {
        text += &format!(": {source}");
    }
    if let Some(remedy) = error.remedy() {
        text += &format!("; {remedy}");
    }
    text.into()
}

/// The process's share of memory (PSS) in kB, but for that of guests.
fn own_kb() -> Result<u64, Failed> {
    let maps = fs::read_to_string("/proc/self/smaps")?;
    let (mut sum, mut is_guests) = (0, false);
    for line in maps.lines() {
        if let Some(kb) = line.strip_prefix("Pss:") {
            let kb: u64 = kb.trim().trim_end_matches(" kB").parse()?;
            sum += if is_guests { 0 } else { kb };
        } else if line.contains(" rw-") {
            is_guests = line.contains("guest-ram");
        } else if line.contains(" r-") || line.contains(" ---") {
            is_guests = false;
        }
    }
    Ok(sum)
}
