//! iperf3(1) between guest and host, over a tap.

use std::process::{Command, Stdio};

use ampoule_tests::harness::tools;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{PART, machine};
use crate::bench::Bench;
use crate::machine::{Disk, Machine};
use crate::measure::tap::{Tap, ip};
use crate::peer::Vmm;
use crate::results::{Results, Target, more};
use crate::rounds::Rounds;

const GROUP: &str = "iperf3";
const ROUNDS: usize = 5;

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
        let mut running = bench.start(vmm, machine)?.running;
        let mut values = Vec::new();
        for reverse in [false, true] {
            running.until_end_of_line("bench ready")?;
            values.push(client(reverse, seconds)?);
        }
        running.end()?;
        Ok(values)
    };
    let entrants = bench.entrants(results, GROUP, &machine, iperf3);
    let rounds = Rounds {
        warm_up: 0,
        ..bench.rounds(ROUNDS)
    };
    results.measure(PART, GROUP, rounds, kinds.to_vec(), entrants);
    Ok(())
}

/// Mbit/s as the receiver counts them.
fn client(reverse: bool, seconds: &str) -> Result<f64> {
    let mut command = Command::new("iperf3");
    command.args([
        "-c",
        "10.84.0.2",
        "-J",
        "-O",
        "1",
        "-t",
        seconds,
        "--connect-timeout",
        "10000",
    ]);
    if reverse {
        command.arg("-R");
    }
    let output = command.stdin(Stdio::null()).output();
    let output = output.context("cannot run iperf3 (Debian: apt-get install iperf3)")?;
    let result: Value = serde_json::from_slice(&output.stdout).context("iperf3 says no JSON")?;
    ensure!(output.status.success(), "iperf3: {}", result["error"]);
    let rate = result["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(rate.context("iperf3 counted nothing")? / 1e6)
}
