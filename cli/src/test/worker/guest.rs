//! The guest of an attempt, however it was booted: a console in any case, and where ampoule's init is in it, commands by its agent.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use ampoule_vmm::Timeline;
use ampoule_vmm::config::VmConfig;
use ampoule_vmm::test::{Pattern as Wanted, TestError, TestVm, TextLog};

use super::super::format::{SOME_COMMAND, run_arguments};
use super::super::outcome::FailureKind;
use super::super::scenario::{Action, Pattern, RunSpec, Scenario};
use super::agent::Agent;
use super::trouble::Trouble;
use crate::command::Plan;
use crate::folders::with_caches;
use crate::report::{self, Failure};

/// The most of a console that is kept in a file.
const FILE_LIMIT: u64 = 64 << 20;

/// A VM that is up, and what reaches into it.
pub(super) struct Guest {
    pub(super) vm: TestVm,
    /// Where ampoule's init is the guest's first process.
    pub(super) agent: Option<Agent>,
    /// What the kernel's log and the VMM's say.
    pub(super) log: TextLog,
}

impl Guest {
    /// Boots what the scenario says. With an image it returns when commands can be run.
    pub(super) fn boot(
        scenario: &Scenario,
        folder: &Path,
        timeline: Timeline,
        deadline: Instant,
    ) -> Result<Self, Trouble> {
        let mut vm = scenario.vm.clone();
        let mut plan = None;
        match &scenario.run {
            Some(spec) => {
                let made =
                    make_plan(spec, vm, &timeline).map_err(|failure| Trouble::host(&failure))?;
                vm = made.vm.clone();
                plan = Some(made);
            }
            None => {
                crate::boot_disk::complete(&mut vm).map_err(|failure| Trouble::host(&failure))?;
            }
        }
        let console = TextLog::new(sink(folder, "console.log"), sink(folder, "console.txt"));
        let mut builder = TestVm::builder(vm)
            .record(console)
            .forbid(wanted(&scenario.forbid)?, wanted(&scenario.allow)?)
            .with(move |builder| with_caches(builder).timeline(timeline));
        for disk in faulty(scenario, |action| match action {
            Action::DiskFault { disk, .. } => Some(disk),
            _ => None,
        }) {
            builder = builder.faulty_disk(disk);
        }
        for net in faulty(scenario, |action| match action {
            Action::NetFault { net, .. } => Some(net),
            _ => None,
        }) {
            builder = builder.faulty_net(net);
        }
        let vm = builder.boot().map_err(Trouble::of_boot)?;
        let mut guest = Self {
            vm,
            agent: None,
            log: TextLog::default(),
        };
        if let (Some(plan), Some(spec)) = (plan, &scenario.run) {
            let agent = Agent::start(&guest.vm, plan, !spec.command.is_empty(), deadline);
            guest.agent = Some(agent.map_err(|err| err.explain(&guest.vm))?);
        }
        Ok(guest)
    }
}

/// The plan of `ampoule run` with these arguments.
fn make_plan(spec: &RunSpec, vm: VmConfig, timeline: &Timeline) -> Result<Plan, Failure> {
    let arguments = run_arguments(spec).map_err(|err| Failure::new(err.to_string()));
    let mut arguments = arguments?;
    arguments.quiet = true;
    if arguments.command.is_empty() {
        // The image's own command is not run unless the scenario says so; some word has to be there.
        arguments.command.push(SOME_COMMAND.into());
    }
    // A test has the networks that it asks for.
    let is_network_chosen = !vm.net.is_empty() || arguments.publish.is_empty();
    Plan::new(&arguments, vm, timeline, is_network_chosen)
}

/// The patterns as the library has them.
pub(super) fn wanted(patterns: &[Pattern]) -> Result<Vec<Wanted>, Trouble> {
    patterns.iter().map(one).collect()
}

pub(super) fn one(pattern: &Pattern) -> Result<Wanted, Trouble> {
    match pattern {
        Pattern::Literal(text) => Ok(Wanted::from(text.as_str())),
        Pattern::Regex(text) => Wanted::regex(text).map_err(|err| {
            Trouble::new(
                FailureKind::Scenario,
                format!("/{text}/ is no regular expression: {err}"),
            )
        }),
    }
}

fn faulty<'s>(
    scenario: &'s Scenario,
    id: impl Fn(&'s Action) -> Option<&'s String>,
) -> BTreeSet<&'s String> {
    let actions = scenario.steps.iter().map(|step| &step.action);
    actions.filter_map(id).collect()
}

/// A file for a text that a guest writes.
pub(super) fn sink(folder: &Path, name: &str) -> Option<Box<dyn Write + Send>> {
    match File::create(folder.join(name)) {
        Ok(file) => Some(Box::new(Limited {
            file,
            left: FILE_LIMIT,
        })),
        Err(err) => {
            log::error!("cannot write {name}: {}", report::io_text(&err));
            None
        }
    }
}

/// A file that takes so much and no more.
struct Limited {
    file: File,
    left: u64,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let taken = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        self.file.write_all(&bytes[..taken])?;
        self.left -= taken as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Trouble {
    /// There is no VM: the host's fault, or the scenario's.
    fn of_boot(err: TestError) -> Self {
        let TestError::Boot(error) = &err else {
            return Self::new(FailureKind::Scenario, err.to_string());
        };
        use ampoule_vmm::Error;
        let kind = match error {
            Error::Config(_) | Error::Kernel(_) | Error::Wrap { .. } | Error::Disk(_) => {
                FailureKind::Scenario
            }
            _ => FailureKind::Host,
        };
        let mut trouble = Self::new(kind, report::chain(error));
        trouble
            .details
            .extend(error.remedy().map(|help| format!("help: {help}")));
        trouble
    }
}

/// What is left of a time.
pub(super) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}
