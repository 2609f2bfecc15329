//! From a VMM's start to the guest's /init.

use anyhow::Result;

use super::{PART, machine};
use crate::bench::{Bench, millis};
use crate::machine::Machine;
use crate::peer::Vmm;
use crate::results::{Results, Role, Target, less};
use crate::rounds::Entrant;

const GROUP: &str = "boot";
const ROUNDS: usize = 9;

pub(crate) fn measure(bench: &Bench, results: &mut Results) -> Result<()> {
    // The bounds: no slower than anybody; with a bzImage, which others leave to the guest to unpack, faster.
    for (name, file, bound) in [("ELF", "vmlinux", 1.0), ("bzImage", "vmlinuz", 0.85)] {
        let machine = machine(bench, file, "bench.what=boot")?;
        let mut entrants = bench.entrants(results, GROUP, &machine, to_init);
        let ours = bench.ampoule()?;
        if file == "vmlinuz" {
            // Without a place to keep what it unpacked, as the first time that it sees this kernel.
            entrants.push(Entrant::new(
                "Ampoule, a kernel it has not seen",
                Role::Variant,
                || {
                    let started = bench.start_by(ours, &machine, |mut command| {
                        for folder in ["HOME", "XDG_CACHE_HOME"] {
                            command.env_remove(folder);
                        }
                        command
                    })?;
                    time(started)
                },
            ));
        }
        let kinds = vec![
            less(format!("{name}: start to /init"), "ms").target(Target::Peers(bound)),
            less(format!("{name}: start to exit"), "ms"),
        ];
        results.measure(PART, GROUP, bench.slow_rounds(ROUNDS, 1), kinds, entrants);
    }
    Ok(())
}

fn to_init(bench: &Bench, vmm: &dyn Vmm, machine: &Machine) -> Result<Vec<f64>> {
    time(bench.start(vmm, machine)?)
}

fn time(mut running: crate::process::Running) -> Result<Vec<f64>> {
    running.until("bench init")?;
    let init = running.age();
    let ended = running.end()?;
    Ok(vec![millis(init), millis(ended.wall)])
}
