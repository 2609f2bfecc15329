//! What steps need of each other and of the machine: what cannot come true is told before anything boots.

use std::collections::BTreeSet;

use ampoule_vmm::config::{OnReboot, VmConfig};

use super::run::Run;
use super::sources::{Complaints, Place};
use super::steps::Placed;
use crate::config_file::suggestion;
use crate::test::scenario::{Action, EndKind, Stream};

/// How a machine is while its steps are gone through.
#[derive(Debug, Default)]
struct Course {
    is_paused: bool,
    /// It has ended by a step before.
    has_ended: bool,
    snapshots: BTreeSet<String>,
}

/// Goes through the steps.
pub(super) fn check(
    steps: &[Placed],
    vm: Option<&VmConfig>,
    run: Option<&Run>,
    complaints: &mut Complaints,
) {
    let mut course = Course::default();
    for Placed { step, place } in steps {
        course.check(&step.action, place, complaints);
        match &step.action {
            Action::Expect {
                on: Stream::Output, ..
            } if run.is_none_or(|it| it.spec.command.is_empty()) => {
                let message =
                    "there is no output to expect something on: the scenario has no command";
                let help = "[run] has command = [\"…\"]; a guest's console is on = \"console\"";
                complaints.help(place, message, help);
            }
            Action::Run { input: Some(_), .. } if run.is_none() => {
                let message =
                    "input is for commands that ampoule's init runs, and there is no [run]";
                let help = "have the shell feed it: run = \"echo … | …\"";
                complaints.help(place, message, help);
            }
            Action::WaitExit {
                reason: Some(EndKind::Command | EndKind::Signal),
                ..
            } if run.is_none_or(|it| it.spec.command.is_empty()) => {
                let message = "there is no command to end: the scenario has none";
                complaints.help(place, message, "[run] has command = [\"…\"]");
            }
            Action::WaitExit {
                reason: Some(EndKind::Reset),
                ..
            } if vm.is_some_and(|it| it.on_reboot == OnReboot::Restart) => {
                let message = "a reset does not end this machine: [vm] has on-reboot = \"restart\"";
                complaints.help(place, message, "leave out on-reboot");
            }
            Action::DiskFault { disk, .. } => {
                let known = vm.map(|vm| disks(vm, run));
                device("disk", disk, known, place, complaints);
            }
            Action::NetFault { net, .. } => {
                let known = vm.map(|vm| nets(vm, run));
                device("network", net, known, place, complaints);
            }
            _ => {}
        }
    }
}

impl Course {
    fn check(&mut self, action: &Action, place: &Place, complaints: &mut Complaints) {
        let name = kind(action);
        let is_about_the_past = matches!(
            action,
            Action::Expect { .. } | Action::Timeline { .. } | Action::SnapshotConsole { .. }
        );
        if self.has_ended && !is_about_the_past {
            let message =
                format!("{name} comes after wait-exit, when there is no machine any more");
            let help = "expect, timeline and snapshot-console are about what was, the others go before wait-exit";
            complaints.help(place, message, help);
            return;
        }
        let needs_a_guest = matches!(
            action,
            Action::Run { .. }
                | Action::Http { .. }
                | Action::Tcp { .. }
                | Action::File { .. }
                | Action::WaitExit { .. }
                | Action::PowerButton
                | Action::Reset
                | Action::Send { echo: true, .. }
        );
        if self.is_paused && needs_a_guest {
            let message = format!("{name} wants something of the guest, which is paused");
            complaints.help(place, message, "[[step]] resume = true goes before it");
        }
        match action {
            Action::Pause if self.is_paused => {
                complaints.say(place, "the machine is paused already");
            }
            Action::Resume if !self.is_paused => {
                complaints.say(place, "the machine is not paused");
            }
            Action::Pause => self.is_paused = true,
            Action::Resume => self.is_paused = false,
            Action::WaitExit { .. } => self.has_ended = true,
            Action::SnapshotConsole { name } if !self.snapshots.insert(name.clone()) => {
                let message = format!("there are two snapshots named {name}");
                complaints.help(place, message, "give each its own name");
            }
            _ => {}
        }
    }
}

/// The action's key.
fn kind(action: &Action) -> &'static str {
    match action {
        Action::Expect { .. } => "expect",
        Action::Send { .. } => "send",
        Action::Run { .. } => "run",
        Action::Http { .. } => "http",
        Action::Tcp { .. } => "tcp",
        Action::File { .. } => "file",
        Action::WaitExit { .. } => "wait-exit",
        Action::Pause => "pause",
        Action::Resume => "resume",
        Action::PowerButton => "power-button",
        Action::Reset => "reset",
        Action::DiskFault { .. } => "disk-fault",
        Action::NetFault { .. } => "net-fault",
        Action::Timeline { .. } => "timeline",
        Action::SnapshotConsole { .. } => "snapshot-console",
    }
}

/// The disks that the machine will have: those of its configuration, and those of a command.
fn disks(vm: &VmConfig, run: Option<&Run>) -> Vec<String> {
    let mut ids: Vec<String> = vm.device_ids().take(vm.disk.len()).collect();
    if let Some(run) = run {
        if run.arguments.image.is_some() {
            ids.push("root".into());
        }
        if run.arguments.overlay.is_some() {
            ids.push("overlay".into());
        }
    }
    ids
}

/// The same of networks. A command whose ports are published has one where nobody says otherwise.
fn nets(vm: &VmConfig, run: Option<&Run>) -> Vec<String> {
    let ids = vm.device_ids().skip(vm.disk.len()).take(vm.net.len());
    let mut ids: Vec<String> = ids.collect();
    if ids.is_empty() && run.is_some_and(|it| !it.arguments.publish.is_empty()) {
        ids.push("net0".into());
    }
    ids
}

fn device(
    what: &str,
    id: &str,
    known: Option<Vec<String>>,
    place: &Place,
    complaints: &mut Complaints,
) {
    let Some(known) = known.filter(|it| !it.iter().any(|it| it == id)) else {
        return;
    };
    let message = format!("the machine has no {what} \"{id}\"");
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    match known.is_empty() {
        true => complaints.help(place, message, format!("it has no {what} at all: see [vm]")),
        false => complaints.help(place, message, suggestion(id, &known)),
    }
}
