//! The same Linux guest under Ampoule and under `qemu-system-x86_64 -M microvm`, in turns: `fio` on a disk and `iperf3` over a tap.
//!
//! `cargo lab bench [-- --runs N] [--seconds N]` runs it where Linux guests run: here, or in the lab host, an emulated machine,
//! where only the ratios say anything. A table, then one line of JSON. Nothing fails on a missed target: figures are for people to
//! judge. Needs root, for taps.

#![allow(clippy::print_stdout, reason = "the figures are this program's output")]
#![allow(
    clippy::print_stderr,
    reason = "it takes minutes, and says how far it is"
)]

#[path = "../tests/bare/driver.rs"]
#[allow(dead_code, reason = "terminals are for tests")]
mod driver;
#[path = "../tests/linux/guest.rs"]
#[allow(dead_code, reason = "some of it is for tests")]
mod guest;
#[path = "../tests/linux/host.rs"]
#[allow(dead_code, reason = "the tests' disks")]
mod host;
#[path = "common/options.rs"]
mod options;
#[path = "../tests/linux/virtio.rs"]
#[allow(dead_code, reason = "its tests are not run here")]
mod virtio;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic;
use std::path::Path;
use std::process::{Command, Stdio};

use ampoule_tests::harness::{kernel, tools};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use driver::Vm;
use guest::{LOAD_TOOLS, LOAD_VIRTIO, initramfs, linux, wait_ready};
use options::Options;
use virtio::ask;

const RUNS: usize = 5;
const SECONDS: usize = 4;
/// How often a guest is booted until one lives through all loads.
const BOOTS: usize = 3;
const DISK: u64 = 64 << 20;
const TAP: &str = "ampoulepeer";

/// Who runs the guest.
#[derive(Debug, Clone, Copy)]
enum Vmm {
    Ampoule,
    Qemu,
}

/// What is measured.
enum Load {
    /// `fio` in the guest.
    Disk { operation: &'static str, depth: u32 },
    /// `iperf3` between guest and host.
    Net { to_guest: bool },
}

const LOADS: [(&str, Load); 6] = [
    ("4 KiB randread, depth 1, 1/s", disk("randread", 1)),
    ("4 KiB randread, depth 32, 1/s", disk("randread", 32)),
    ("4 KiB randwrite, depth 1, 1/s", disk("randwrite", 1)),
    ("4 KiB randwrite, depth 32, 1/s", disk("randwrite", 32)),
    ("TCP host to guest, Mbit/s", Load::Net { to_guest: true }),
    ("TCP guest to host, Mbit/s", Load::Net { to_guest: false }),
];

const fn disk(operation: &'static str, depth: u32) -> Load {
    Load::Disk { operation, depth }
}

fn main() -> Result<()> {
    let Some(options) = Options::of_bench() else {
        return Ok(());
    };
    let (runs, seconds) = (
        options.number("--runs", RUNS)?,
        options.number("--seconds", SECONDS)?,
    );
    let folder = tempfile::tempdir_in("/dev/shm").context("no place for the disk")?;
    let image = folder.path().join("disk.img");
    fill(&image)?;

    let mut figures: Vec<[Vec<f64>; 2]> = LOADS.iter().map(|_| [Vec::new(), Vec::new()]).collect();
    for run in 0..runs {
        // Neither is always the first.
        let mut order = [Vmm::Ampoule, Vmm::Qemu];
        order.rotate_left(run % 2);
        for vmm in order {
            let measured = measure_alive(vmm, &image, seconds)?;
            for (figures, figure) in figures.iter_mut().zip(measured) {
                figures[vmm as usize].push(figure);
            }
        }
    }
    report(runs, seconds, figures);
    Ok(())
}

fn report(runs: usize, seconds: usize, figures: Vec<[Vec<f64>; 2]>) {
    println!("{runs} boots of each, in turns, {seconds} s of each load; medians, least and most");
    println!("{:32} {:>26} {:>26} {:>6}", "", "ampoule", "qemu", "ratio");
    let mut rows = Vec::new();
    for ((load, _), [ours, theirs]) in LOADS.iter().zip(figures) {
        let [ours, theirs] = [ours, theirs].map(|mut figures| {
            figures.sort_by(f64::total_cmp);
            (
                figures[figures.len() / 2],
                figures[0],
                figures[figures.len() - 1],
            )
        });
        let ratio = ours.0 / theirs.0;
        let tell = |(median, least, most): (f64, f64, f64)| {
            format!("{median:.0} ({least:.0} to {most:.0})")
        };
        println!(
            "{load:32} {:>26} {:>26} {ratio:>6.2}",
            tell(ours),
            tell(theirs)
        );
        rows.push(json!({ "load": load, "ampoule": ours.0, "qemu": theirs.0, "ratio": ratio }));
    }
    println!("{}", json!({ "runs": runs, "figures": Value::Array(rows) }));
}

fn fill(image: &Path) -> Result<()> {
    let file = File::create(image)?;
    let chunk = vec![0x11; 1 << 20];
    for at in (0..DISK).step_by(chunk.len()) {
        file.write_all_at(&chunk, at)?;
    }
    Ok(())
}

/// Measures a guest that stays alive. An emulated lab host loses an interrupt now and then, and a guest with it.
fn measure_alive(vmm: Vmm, image: &Path, seconds: usize) -> Result<Vec<f64>> {
    for _ in 1..BOOTS {
        // The driver of guests panics where one ends too soon.
        match panic::catch_unwind(|| measure(vmm, image, seconds)) {
            Ok(Ok(figures)) => return Ok(figures),
            Ok(Err(err)) => eprintln!("{vmm:?}: once more: {err:#}"),
            Err(_) => eprintln!("{vmm:?}: the guest died: once more"),
        }
    }
    measure(vmm, image, seconds)
}

/// Boots a guest and puts it under each load; the figures in the order of [`LOADS`].
fn measure(vmm: Vmm, image: &Path, seconds: usize) -> Result<Vec<f64>> {
    let mut vm = Vm::piped(match vmm {
        Vmm::Ampoule => ampoule(image),
        Vmm::Qemu => qemu(image),
    });
    wait_ready(&mut vm);
    ask(&mut vm, LOAD_VIRTIO);
    ask(&mut vm, LOAD_TOOLS);
    ask(&mut vm, "ip addr add 10.84.0.2/24 dev eth0");
    ask(&mut vm, "ip link set eth0 up");
    on_host(&[
        "/bin/busybox",
        "ip",
        "addr",
        "add",
        "10.84.0.1/24",
        "dev",
        TAP,
    ])?;
    on_host(&["/bin/busybox", "ip", "link", "set", TAP, "up"])?;
    ask(&mut vm, "iperf3 -s -D");
    let find = "for d in /sys/block/vd*; do if grep -q ampoule-bench $d/serial; then disk=/dev/${d##*/}; fi; done";
    ask(&mut vm, find);
    let figures = LOADS.iter().map(|(name, load)| {
        let figure = match load {
            Load::Disk { operation, depth } => fio(&mut vm, operation, *depth, seconds),
            Load::Net { to_guest } => iperf3(*to_guest, seconds),
        };
        if let Ok(figure) = figure {
            eprintln!("{vmm:?}: {name}: {figure:.0}");
        }
        figure
    });
    let figures = figures.collect();
    vm.send("poweroff -f\n");
    vm.end().expect_code(0);
    figures
}

fn ampoule(image: &Path) -> Command {
    let mut command = linux("6.1", "vmlinux");
    command
        .args(["--memory", "512M", "--net"])
        .arg(format!("tap={TAP}"));
    let disk = format!("path={},serial=ampoule-bench", image.display());
    let tools = format!("path={},readonly,serial=ampoule-tools", tools().display());
    command.args(["--disk", &disk, "--disk", &tools]);
    command
}

/// As near to it as QEMU comes: its machine for microVMs, without what such a guest does not need, and an I/O thread.
fn qemu(image: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-M", "microvm,accel=kvm,pit=off,pic=off,rtc=on"])
        .args(["-cpu", "host", "-smp", "1", "-m", "512M"])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-no-reboot", "-serial", "stdio"])
        .args(["-global", "virtio-mmio.force-legacy=false"])
        .args(["-object", "iothread,id=io", "-device", "virtio-rng-device"])
        .arg("-kernel")
        .arg(kernel("6.1").join("vmlinux"))
        .arg("-initrd")
        .arg(initramfs())
        .args(["-append", "console=ttyS0 reboot=t panic=-1 quiet"]);
    for (name, image, more) in [
        ("bench", image, "cache=writeback,aio=threads"),
        ("tools", &tools(), "readonly=on"),
    ] {
        let drive = format!(
            "if=none,id={name},format=raw,file={},{more}",
            image.display()
        );
        let device = format!("virtio-blk-device,drive={name},serial=ampoule-{name},iothread=io");
        command.args(["-drive", &drive, "-device", &device]);
    }
    let net = format!("tap,id=net,ifname={TAP},script=no,downscript=no");
    command.args(["-netdev", &net, "-device", "virtio-net-device,netdev=net"]);
    command
}

/// Requests per second.
fn fio(vm: &mut Vm, operation: &str, depth: u32, seconds: usize) -> Result<f64> {
    let line = format!(
        "fio --name=load --filename=$disk --rw={operation} --bs=4k --iodepth={depth} --direct=1 --ioengine=libaio --thread \
         --time_based --ramp_time=1 --runtime={seconds} --norandommap --output-format=json | grep '\"iops\" :'"
    );
    // Of reads, writes and trims, the others are 0.
    let said = ask(vm, &line);
    let figures = said
        .lines()
        .filter_map(|line| line.trim().strip_prefix("\"iops\" :"))
        .filter_map(|figure| figure.trim_end_matches(',').trim().parse::<f64>().ok());
    Ok(figures.fold(0.0, f64::max))
}

/// Mbit/s as the receiver counts them.
fn iperf3(to_guest: bool, seconds: usize) -> Result<f64> {
    let seconds = seconds.to_string();
    let mut line = vec!["iperf3", "-c", "10.84.0.2", "-J", "-O", "1", "-t", &seconds];
    if !to_guest {
        line.push("-R");
    }
    let result: Value = serde_json::from_slice(&on_host(&line)?)?;
    let rate = result["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(rate.context("iperf3 counted nothing")? / 1e6)
}

fn on_host(line: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new(line[0])
        .args(&line[1..])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", line[0]))?;
    ensure!(output.status.success(), "{line:?}: {output:?}");
    Ok(output.stdout)
}
