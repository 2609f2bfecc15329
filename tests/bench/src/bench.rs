//! What all measurements have at hand: the VMMs, a folder, and how long they may take.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tempfile::TempDir;

use crate::machine::Machine;
use crate::peer::{self, Launch, Vmm, Vsock};
use crate::process::{LINUX_PATIENCE, Running};
use crate::progress;
use crate::results::{AMPOULE, Program, Results, Role};
use crate::rounds::{Entrant, Rounds};

/// How much is measured, and where.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Fewer rounds of fewer things.
    pub(crate) quick: bool,
    /// Only groups whose names contain one of these; all, where there is none.
    pub(crate) only: Vec<String>,
    /// Rounds of each, instead of each measurement's own number.
    pub(crate) rounds: Option<usize>,
    /// A folder on a disk.
    pub(crate) disk: PathBuf,
    /// So many idle VMs at once, at most.
    pub(crate) vms: usize,
}

/// What is measured together: a name to ask for it by, what it is, and how.
pub(crate) type Measurement = (
    &'static str,
    &'static str,
    fn(&Bench, &mut Results) -> Result<()>,
);

/// What measurements have at hand.
pub(crate) struct Bench {
    pub(crate) plan: Plan,
    pub(crate) vmms: Vec<Box<dyn Vmm>>,
    /// In memory.
    folder: TempDir,
}

impl Bench {
    /// Finds the VMMs; says in the results which they are, and which are not there.
    pub(crate) fn new(plan: Plan, results: &mut Results) -> Result<Self> {
        let (vmms, absent) = peer::find();
        for vmm in &vmms {
            let version = vmm.version()?;
            results.programs.push(Program {
                name: vmm.name().into(),
                version,
            });
        }
        for absent in absent {
            results
                .notes
                .push(format!("{} was not measured: {}", absent.name, absent.why));
        }
        let folder = tempfile::tempdir_in("/dev/shm").context("no place in /dev/shm")?;
        Ok(Self { plan, vmms, folder })
    }

    /// A folder in memory (tmpfs).
    pub(crate) fn memory(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn ampoule(&self) -> Result<&dyn Vmm> {
        let ours = self.vmms.iter().find(|vmm| vmm.name() == AMPOULE);
        ours.map(AsRef::as_ref)
            .context("ampoule is not there: build it, or name it by AMPOULE_BIN")
    }

    /// So many rounds, a quarter of them where it is to be quick, but enough for a comparison to say something.
    pub(crate) fn rounds(&self, count: usize) -> Rounds {
        const FEWEST: usize = 4;
        let (count, seconds) = match (self.plan.rounds, self.plan.quick) {
            (Some(count), _) => (count, 3600),
            (None, false) => (count, 120),
            (None, true) => (count.min((count / 4).max(FEWEST)), 6),
        };
        Rounds {
            count,
            warm_up: 1,
            time: Duration::from_secs(seconds),
        }
    }

    /// The same of what takes seconds each time: `few` where it is to be quick, and none for warming up.
    pub(crate) fn slow_rounds(&self, count: usize, few: usize) -> Rounds {
        let count = match (self.plan.rounds, self.plan.quick) {
            (Some(count), _) => count,
            (None, false) => count,
            (None, true) => few,
        };
        Rounds {
            count,
            warm_up: 0,
            time: Duration::MAX,
        }
    }

    /// Measures of all of them what the plan wants. What fails as a whole is noted. `keep` is told after each.
    pub(crate) fn measure(
        &self,
        all: &[Measurement],
        results: &mut Results,
        keep: impl Fn(&Results),
    ) {
        for (group, title, measure) in all {
            if self.wants(group) {
                progress::group(title);
                if let Err(err) = measure(self, results) {
                    results.note(format!("{group}: {err:#}"));
                }
                keep(results);
            }
        }
    }

    /// Whether a group is to be measured: all of them, but where it is to be quick, or those that are named.
    fn wants(&self, group: &str) -> bool {
        /// What takes long and says least.
        const NOT_QUICK: [&str; 3] = ["growth", "iperf3", "linux-vsock"];
        let only = &self.plan.only;
        if only.is_empty() {
            return !(self.plan.quick && NOT_QUICK.contains(&group));
        }
        only.iter().any(|part| group.contains(part.as_str()))
    }

    /// How a VMM runs such a machine, with its files in `place`.
    fn launch(vmm: &dyn Vmm, machine: &Machine, place: &Path) -> Result<Launch> {
        let launch = if machine.initrd.is_some() {
            let cmdline = format!("{} {}", vmm.linux(), machine.cmdline);
            vmm.launch(
                &Machine {
                    cmdline,
                    ..machine.clone()
                },
                place,
            )
        } else {
            vmm.launch(machine, place)
        };
        launch.map_err(|unable| anyhow!("{unable}"))
    }

    /// Starts a machine; what is to be measured begins here.
    pub(crate) fn start(&self, vmm: &dyn Vmm, machine: &Machine) -> Result<Running> {
        self.start_with(vmm, machine, |command| command, |_| Ok(()))
    }

    /// The same by another command made of the VMM's.
    pub(crate) fn start_by(
        &self,
        vmm: &dyn Vmm,
        machine: &Machine,
        by: impl FnOnce(Command) -> Command,
    ) -> Result<Running> {
        self.start_with(vmm, machine, by, |_| Ok(()))
    }

    /// The same once `listen` is ready for its sockets.
    pub(crate) fn start_listening(
        &self,
        vmm: &dyn Vmm,
        machine: &Machine,
        listen: impl FnOnce(&Vsock) -> Result<()>,
    ) -> Result<Running> {
        self.start_with(vmm, machine, |command| command, listen)
    }

    fn start_with(
        &self,
        vmm: &dyn Vmm,
        machine: &Machine,
        by: impl FnOnce(Command) -> Command,
        listen: impl FnOnce(&Vsock) -> Result<()>,
    ) -> Result<Running> {
        let place = tempfile::tempdir_in(self.folder.path())?;
        let launch = Self::launch(vmm, machine, place.path())?;
        if let Some(vsock) = &launch.vsock {
            listen(vsock)?;
        }
        let mut running = Running::launch(Launch {
            command: by(launch.command),
            ..launch
        })?;
        if machine.initrd.is_some() {
            running.patience(LINUX_PATIENCE);
        }
        running.keep(place);
        Ok(running)
    }

    /// An entrant for each VMM that can have such a machine; a note for each that cannot.
    pub(crate) fn entrants<'a>(
        &'a self,
        results: &mut Results,
        group: &str,
        machine: &'a Machine,
        measure: impl Fn(&Self, &dyn Vmm, &Machine) -> Result<Vec<f64>> + Copy + 'a,
    ) -> Vec<Entrant<'a>> {
        let mut entrants = Vec::new();
        for vmm in &self.vmms {
            match vmm.launch(machine, self.folder.path()) {
                Ok(_) => entrants.push(Entrant::new(vmm.name(), role(vmm.as_ref()), move || {
                    measure(self, vmm.as_ref(), machine)
                })),
                Err(unable) => results.note(format!("{}, {group}: {unable}", vmm.name())),
            }
        }
        entrants
    }
}

/// What it stands for.
pub(crate) fn role(vmm: &dyn Vmm) -> Role {
    if vmm.name() == AMPOULE {
        Role::Ours
    } else {
        Role::Peer
    }
}

/// The command as an argument of another program: `strace -c COMMAND`.
pub(crate) fn under(program: &str, arguments: &[&str]) -> impl FnOnce(Command) -> Command {
    let mut outer = Command::new(program);
    outer.args(arguments);
    move |inner| {
        outer.arg(inner.get_program()).args(inner.get_args());
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => outer.env(name, value),
                None => outer.env_remove(name),
            };
        }
        outer
    }
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
