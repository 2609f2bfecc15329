//! What a stream between guest and host is worth: a bare guest that sends from a polled ring to a program here, which forgets it.
//!
//! VMMs with a device of their own only: that of the host's kernel, vhost-vsock, is no VMM's work.

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Instant;

use ampoule_tests::guests;
use anyhow::{Result, bail, ensure};

use super::PART;
use crate::bench::Bench;
use crate::machine::Machine;
use crate::peer::{Vmm, Vsock};
use crate::results::{Results, Target, less, more};

const GROUP: &str = "vsock";
const ROUNDS: usize = 5;
/// The port to which the guest connects.
const PORT: u32 = 1234;
/// Bytes of a packet, and how many of them.
const LOADS: [(u64, u64); 2] = [(4096, 16_384), (65_536, 4096)];

pub(crate) fn measure(bench: &Bench, results: &mut Results) -> Result<()> {
    for (size, packets) in LOADS {
        let bytes = size * packets;
        let machine = Machine {
            cmdline: format!("op=s size={size} bytes={bytes} depth=64"),
            vsock: true,
            ..Machine::new(guests::BENCH_VSOCK)
        };
        let rate = move |bench: &Bench, vmm: &dyn Vmm, machine: &Machine| {
            stream(bench, vmm, machine, bytes)
        };
        let entrants = bench.entrants(results, GROUP, &machine, rate);
        let kinds = vec![
            more(
                format!("guest to host, packets of {} KiB", size / 1024),
                "Gbit/s",
            )
            .target(Target::Peers(1.0)),
            less(
                format!(
                    "guest to host, packets of {} KiB: CPU of the process",
                    size / 1024
                ),
                "us a KiB",
            ),
        ];
        results.measure(PART, GROUP, bench.rounds(ROUNDS), kinds, entrants);
    }
    Ok(())
}

/// Gbit a second from the first byte to the last, as they come in here, and microseconds of CPU for a KiB.
fn stream(bench: &Bench, vmm: &dyn Vmm, machine: &Machine, bytes: u64) -> Result<Vec<f64>> {
    let mut listener = None;
    let mut started = bench.start_listening(vmm, machine, |vsock| {
        let Vsock::Unix(path) = vsock;
        let path = PathBuf::from(format!("{}_{PORT}", path.display()));
        listener = Some(UnixListener::bind(path)?);
        Ok(())
    })?;
    let Some(listener) = listener else {
        bail!("it has no such device")
    };
    started.until("begin")?;
    let (mut guest, _) = listener.accept()?;
    let mut buffer = vec![0; 1 << 20];
    let mut seen = guest.read(&mut buffer)? as u64;
    let (begin, used, first) = (Instant::now(), started.cpu()?, seen);
    while seen < bytes {
        let count = guest.read(&mut buffer)? as u64;
        ensure!(count > 0, "the stream ended after {seen} of {bytes} bytes");
        seen += count;
    }
    let (time, used) = (begin.elapsed(), started.cpu()? - used);
    drop(guest);
    started.until("PASS")?;
    started.end()?;
    let counted = (seen - first) as f64;
    let rate = counted * 8e-9 / time.as_secs_f64();
    Ok(vec![rate, used.as_secs_f64() * 1e6 / (counted / 1024.0)])
}
