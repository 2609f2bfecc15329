//! A stream by AF_VSOCK, each way.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, ensure};

use super::{PART, machine};
use crate::bench::Bench;
use crate::machine::Machine;
use crate::peer::{Vmm, Vsock};
use crate::results::{Results, Target, more};

const GROUP: &str = "vsock";
const ROUNDS: usize = 5;

pub(crate) fn measure(bench: &Bench, results: &mut Results) -> Result<()> {
    let bytes: usize = if bench.plan.quick {
        64 << 20
    } else {
        256 << 20
    };
    let words = format!("bench.what=vsock bench.bytes={bytes}");
    let machine = Machine {
        vsock: true,
        ..machine(bench, "vmlinux", &words)?
    };
    let kinds = ["guest to host", "host to guest"];
    let kinds = kinds.map(|name| more(name, "Mbit/s").target(Target::Peers(1.0)));
    let stream = move |bench: &Bench, vmm: &dyn Vmm, machine: &Machine| {
        let mut listeners = Vec::new();
        let started = bench.start_listening(vmm, machine, |Vsock::Unix(path)| {
            for port in [1234, 1235] {
                let path = PathBuf::from(format!("{}_{port}", path.display()));
                listeners.push(UnixListener::bind(path)?);
            }
            Ok(())
        })?;
        ensure!(listeners.len() == 2, "it has no such device");
        let values = vec![
            receive(listeners[0].accept()?.0, bytes)?,
            send(listeners[1].accept()?.0, bytes)?,
        ];
        started.end()?;
        Ok(values)
    };
    let entrants = bench.entrants(results, GROUP, &machine, stream);
    let rounds = bench.slow_rounds(ROUNDS, 1);
    results.measure(PART, GROUP, rounds, kinds.to_vec(), entrants);
    Ok(())
}

fn receive(mut guest: UnixStream, bytes: usize) -> Result<f64> {
    let mut buffer = vec![0; 1 << 20];
    let begin = Instant::now();
    let mut seen = 0;
    loop {
        let count = guest.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        seen += count;
    }
    ensure!(seen == bytes, "{seen} of {bytes} bytes came");
    Ok(megabits(bytes, begin))
}

fn send(mut guest: UnixStream, bytes: usize) -> Result<f64> {
    let buffer = vec![0; 1 << 20];
    let begin = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let part = left.min(buffer.len());
        guest.write_all(&buffer[..part])?;
        left -= part;
    }
    // The guest closes when it has all.
    guest.shutdown(std::net::Shutdown::Write)?;
    guest.read_to_end(&mut Vec::new())?;
    Ok(megabits(bytes, begin))
}

fn megabits(bytes: usize, begin: Instant) -> f64 {
    bytes as f64 * 8e-6 / begin.elapsed().as_secs_f64()
}
