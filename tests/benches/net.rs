//! What a network interface is worth: a bare guest that sends from a polled ring over a tap, of whose frames nobody wants any,
//! beside one thread's plain loop of write(2) on the same tap, in turns; then the system calls of a packet, by `strace`.
//!
//! `cargo bench -p ampoule-tests --bench net [-- --runs N]`: a table, then one line of JSON. Needs root, `ip` and `strace`;
//! `AMPOULE_BIN` names another binary than this tree's release build. Nothing fails on a missed target: figures are for people to
//! judge.

#![allow(clippy::print_stdout, reason = "the figures are this program's output")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
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
const DEPTH: usize = 64;
/// `virtio_net_hdr_v1`, before each frame.
const HEADER: usize = 12;

/// Bytes of a frame, and how many of them.
const LOADS: [(usize, usize); 3] = [(60, 640_000), (1514, 640_000), (65_000, 64_000)];

fn main() -> Result<()> {
    let Some(options) = Options::of_bench() else {
        return Ok(());
    };
    let runs = options.number("--runs", RUNS)?;
    let ampoule = release::binary()?;
    let tap = Tap::new(&format!("bench{}", std::process::id() % 100_000))?;

    println!("{}, {runs} runs of each, in turns", ampoule.display());
    println!(
        "{:>12} {:>12} {:>12} {:>7} {:>12} {:>14}",
        "frame", "guest, 1/s", "loop, 1/s", "ratio", "guest, Gbit/s", "calls a frame"
    );
    let mut rows = Vec::new();
    for (size, frames) in LOADS {
        let (mut guest_rates, mut loop_rates) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            loop_rates.push(plain_loop(&tap, size, frames)?);
            guest_rates.push(guest(Command::new(&ampoule), &tap, size, frames)?);
        }
        let (guest, plain) = (median(guest_rates), median(loop_rates));
        let (ratio, gigabits) = (guest / plain, guest * size as f64 * 8e-9);
        let calls = calls(&ampoule, &tap, size)?;
        println!(
            "{size:>12} {guest:>12.0} {plain:>12.0} {ratio:>7.2} {gigabits:>12.2} {calls:>14.3}"
        );
        rows.push(json!({
            "bytes": size, "guest": guest, "loop": plain, "ratio": ratio, "calls": calls,
        }));
    }
    println!("{}", json!({ "runs": runs, "figures": Value::Array(rows) }));
    Ok(())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// A tap that stays while it is measured.
struct Tap(String);

impl Tap {
    fn new(name: &str) -> Result<Self> {
        ip(&["tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr"])?;
        let tap = Self(name.into());
        // Nothing of the host's own is to be on it.
        let quiet = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
        if Path::new(&quiet).exists() {
            fs::write(quiet, "1")?;
        }
        ip(&["link", "set", name, "up"])?;
        Ok(tap)
    }

    fn open(&self) -> Result<File> {
        let tap = File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")?;
        // SAFETY: `ifreq` is plain data, for which zeroes are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(self.0.bytes()) {
            *to = from as libc::c_char;
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        let size = HEADER as libc::c_int;
        // SAFETY: the request lives through the call, which reads and writes it.
        let made = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        ensure!(made == 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
        // SAFETY: the pointer is to an int, which is only read.
        let set = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) };
        ensure!(
            set == 0,
            "TUNSETVNETHDRSZ: {}",
            std::io::Error::last_os_error()
        );
        Ok(tap)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = ip(&["tuntap", "del", "dev", &self.0, "mode", "tap"]);
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output();
    let output = output.context("cannot run ip")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "ip {}: {errors}",
        arguments.join(" ")
    );
    Ok(())
}

/// Frames per second of one thread without a VM.
fn plain_loop(tap: &Tap, size: usize, frames: usize) -> Result<f64> {
    let mut tap = tap.open()?;
    let mut packet = vec![0; HEADER + size];
    packet[HEADER..HEADER + 14].copy_from_slice(&[
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 1, 2, 3, 4, 5, 0x88, 0xb5,
    ]);
    // As many places as the guest has.
    let mut packets = packet.repeat(DEPTH);
    let start = Instant::now();
    for frame in 0..frames {
        let at = frame % DEPTH * packet.len();
        ensure!(
            tap.write(&packets[at..at + packet.len()])? == packet.len(),
            "the tap takes half a frame"
        );
    }
    let rate = frames as f64 / start.elapsed().as_secs_f64();
    packets.clear();
    Ok(rate)
}

/// Frames per second of a guest, from its `begin` to its `end`.
fn guest(mut command: Command, tap: &Tap, size: usize, frames: usize) -> Result<f64> {
    let half = DEPTH / 2;
    let mut child = command
        .args(["run", "--memory", "64M", "--rng", "off"])
        .args(["--kernel", guests::VIRTIO_NET])
        .args(["--net", &format!("tap={}", tap.0), "--cmdline"])
        .arg(format!(
            "size={size} depth={DEPTH} batches={}",
            frames / half
        ))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
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
    let times = begin.zip(end);
    let (begin, end) = times.context("the guest has not said when it began and ended")?;
    Ok((frames / half * half) as f64 / (end - begin).as_secs_f64())
}

/// System calls for a frame: what a long run has more than a short one, so that the start does not count.
fn calls(ampoule: &Path, tap: &Tap, size: usize) -> Result<f64> {
    let count = |frames: usize| -> Result<f64> {
        let summary = tempfile::NamedTempFile::new()?;
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "-qq", "-c", "-o"])
            .arg(summary.path())
            .arg(ampoule);
        guest(strace, tap, size, frames)?;
        let text = fs::read_to_string(summary.path())?;
        // "100.00  0.1  7  6400  2 total": the calls are in the fourth column.
        let total = text.lines().find(|line| line.trim().ends_with("total"));
        let calls = total.and_then(|line| line.split_whitespace().nth(3));
        Ok(calls.context("strace has no total")?.parse()?)
    };
    let (few, many) = (3200, 16_000);
    Ok((count(many)? - count(few)?) / (many - few) as f64)
}
