//! A table that is one cell of one file, as a scenario.

use std::path::PathBuf;
use std::time::Duration;

use ampoule_vmm::config::{ConfigError, Span, VmConfig};
use ampoule_vmm::test::FORBIDDEN;

use super::reader::{Context, Field, Fields};
use super::run::{self, Run};
use super::sources::{Complaints, Place};
use super::template::{Use, Values};
use super::{SCENARIO_KEYS, machine, order, steps};
use crate::test::scenario::{Pattern, Scenario};
use crate::{boot_disk, command};

/// How long a scenario may take that does not say so.
const TIMEOUT: Duration = Duration::from_secs(300);

/// The same of a step.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// Reads the table; none if something is wrong. `is_whole` is false where files are missing that it extends.
pub(super) fn scenario(
    mut fields: Fields<'_>,
    values: Values<'_>,
    is_whole: bool,
    complaints: &mut Complaints,
) -> Option<Scenario> {
    let beginning = fields.place.clone();
    let mut context = Context { values, complaints };
    let context = &mut context;
    let description = fields.take("description");
    let description = description.and_then(|it| context.string(&it.value, "description"));
    let tags = tags(fields.take("tags"), context);
    let timeout = span("timeout", fields.take("timeout"), TIMEOUT, context);
    let step_timeout = span(
        "step-timeout",
        fields.take("step-timeout"),
        STEP_TIMEOUT,
        context,
    );
    let mut forbid = patterns("forbid", fields.take("forbid"), context);
    let with_defaults = fields.take("forbid-defaults");
    let with_defaults = with_defaults.map(|it| context.boolean(&it.value, "forbid-defaults"));
    if with_defaults.flatten().unwrap_or(true) {
        let defaults = FORBIDDEN
            .iter()
            .map(|(_, text)| Pattern::Regex((*text).to_owned()));
        forbid.splice(0..0, defaults);
    }
    let allow = patterns("allow", fields.take("allow"), context);

    let vm = fields.take("vm");
    let vm_place = vm.as_ref().map_or(beginning.clone(), |it| it.key.clone());
    let vm = machine::machine(vm, context);
    let run = fields.take("run");
    let has_run = run.is_some();
    let run = run::run(run, context);
    let step = fields.take("step");
    let step_place = step.as_ref().map_or(beginning.clone(), |it| it.key.clone());
    let before = context.complaints.len();
    let steps = steps::steps(step, context);
    if steps.is_empty() && context.complaints.len() == before {
        let message = "the scenario has no step: it would pass before anything can be seen";
        let help = "[[step]] expect = \"login:\" or wait-exit = \"power-off\", for instance";
        context.complaints.help(&step_place, message, help);
    }
    for (key, field) in fields.left() {
        context
            .complaints
            .unknown_key(&field.key, &key, &SCENARIO_KEYS);
    }
    // A run that could not be read is not one that is not there.
    if has_run == run.is_some() {
        if let Some(vm) = vm.as_ref().filter(|_| is_whole) {
            check_machine(vm, run.as_ref(), &vm_place, context.complaints);
        }
        order::check(&steps, vm.as_ref(), run.as_ref(), context.complaints);
    }
    let file = context.sources().at(&beginning).path.clone();
    let cell = context.values.cell.iter();
    Some(Scenario {
        name: String::new(),
        file: file.map(absolute).unwrap_or_default(),
        description,
        tags,
        cell: cell
            .map(|it| (it.short.clone(), it.label.clone()))
            .collect(),
        vm: vm?,
        run: run.map(|it| it.spec),
        timeout,
        step_timeout,
        forbid,
        allow,
        steps: steps.into_iter().map(|it| it.step).collect(),
    })
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// The library's judgement. A kernel is found by who runs a command or boots from a disk.
fn check_machine(vm: &VmConfig, run: Option<&Run>, place: &Place, complaints: &mut Complaints) {
    let mut judged = vm.clone();
    if run.is_some() || boot_disk::is_wanted(vm) {
        judged.kernel.get_or_insert_with(|| "found".into());
    }
    match judged.validate() {
        Ok(()) => {}
        Err(ConfigError::NoKernel) => {
            let help = "[vm] kernel = \"/boot/vmlinuz\", a [[vm.disk]] to boot from, or [run] for a command";
            complaints.help(place, "the scenario names nothing to boot", help);
        }
        Err(err) => {
            let message = format!("[vm] is no machine: {err}");
            match err.remedy() {
                Some(remedy) => complaints.help(place, message, remedy),
                None => complaints.say(place, message),
            }
        }
    }
    if let Some(run) = run
        && let Err(failure) = command::check(&run.arguments, vm)
    {
        let help = failure.help.unwrap_or_default();
        complaints.help(&run.place, failure.message, help);
    }
}

fn span(key: &str, field: Option<Field<'_>>, usual: Duration, context: &mut Context<'_>) -> Span {
    let given = field.and_then(|field| {
        let span: Span = context.typed(&field.value, key)?;
        if span.as_duration().is_zero() {
            let message = format!("{key} is longer than nothing");
            context.complaints.say(&field.place(), message);
        }
        Some(span)
    });
    given.unwrap_or(usual.into())
}

fn tags(field: Option<Field<'_>>, context: &mut Context<'_>) -> Vec<String> {
    let values = field.and_then(|it| context.array(it.value, "tags"));
    let mut tags: Vec<String> = Vec::new();
    for value in values.unwrap_or_default() {
        let Some(tag) = context.string(&value, "a tag") else {
            continue;
        };
        let is_tag = |c: char| !c.is_whitespace() && !c.is_control();
        if tag.is_empty() || !tag.chars().all(is_tag) {
            let message = format!("{tag:?} is no tag: it is empty, or has a space in it");
            context.complaints.say(&value.span(), message);
        } else if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    tags
}

fn patterns(key: &str, field: Option<Field<'_>>, context: &mut Context<'_>) -> Vec<Pattern> {
    let values = field.and_then(|it| context.array(it.value, key));
    let values = values.unwrap_or_default().into_iter();
    let patterns = values.filter_map(|it| context.pattern(it, key, Use::Value, &mut Vec::new()));
    patterns.collect()
}
