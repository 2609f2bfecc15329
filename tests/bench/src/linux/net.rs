//! iperf3(1) between guest and host, over a tap.

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ampoule_tests::harness::tools;
use anyhow::{Context, Result};
use serde_json::Value;

use super::{PART, machine};
use crate::bench::Bench;
use crate::machine::{Disk, Machine};
use crate::measure::tap::{Tap, ip};
use crate::peer::Vmm;
use crate::results::{Results, Target, more};

const GROUP: &str = "iperf3";
const ROUNDS: usize = 5;
/// How long a server may take until it listens.
const LISTENING: Duration = Duration::from_secs(30);

pub(crate) fn measure(bench: &Bench, results: &mut Results) -> Result<()> {
    let tap = Tap::new()?;
    ip(&["addr", "add", "10.84.0.1/24", "dev", tap.name()])?;
    let seconds = if bench.plan.quick { "1" } else { "4" };
    let programs = Disk {
        read_only: true,
        ..Disk::new(tools())
    };
    let machine = Machine {
        disks: vec![programs],
        tap: Some(tap.name().into()),
        ..machine(bench, "vmlinux", "bench.what=net")?
    };
    let kinds = ["TCP, host to guest", "TCP, guest to host"];
    let kinds = kinds.map(|name| more(name, "Mbit/s").target(Target::Peers(1.0)));
    let iperf3 = move |bench: &Bench, vmm: &dyn Vmm, machine: &Machine| {
        let mut running = bench.start(vmm, machine)?;
        let mut values = Vec::new();
        for reverse in [false, true] {
            running.until("bench ready")?;
            values.push(client(reverse, seconds)?);
        }
        running.end()?;
        Ok(values)
    };
    let entrants = bench.entrants(results, GROUP, &machine, iperf3);
    let rounds = bench.slow_rounds(ROUNDS, 1);
    results.measure(PART, GROUP, rounds, kinds.to_vec(), entrants);
    Ok(())
}

/// Mbit/s as the receiver counts them. The guest's server may need a moment until it listens.
fn client(reverse: bool, seconds: &str) -> Result<f64> {
    let deadline = Instant::now() + LISTENING;
    loop {
        let result = iperf3(reverse, seconds)?;
        let refused = result["error"]
            .as_str()
            .is_some_and(|text| text.contains("refused"));
        if refused && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(100));
            continue;
        }
        let rate = result["end"]["sum_received"]["bits_per_second"].as_f64();
        return Ok(
            rate.with_context(|| format!("iperf3 counted nothing: {}", result["error"]))? / 1e6,
        );
    }
}

fn iperf3(reverse: bool, seconds: &str) -> Result<Value> {
    let mut command = Command::new("iperf3");
    command.args(["-c", "10.84.0.2", "-J", "-O", "1", "-t", seconds]);
    command.args(["--connect-timeout", "10000"]);
    if reverse {
        command.arg("-R");
    }
    let output = command.stdin(Stdio::null()).output();
    let output = output.context("cannot run iperf3 (Debian: apt-get install iperf3)")?;
    serde_json::from_slice(&output.stdout).context("iperf3 says no JSON")
}
