//! `[matrix]`: one file, many machines. Its axes, the product of them, and the cells that are left out.

use toml::de::DeValue;

use super::merge::{merge, nested};
use super::reader::{Context, Field, Fields, integer};
use super::sources::{Place, Table, Value};
use super::template::Use;
use super::{NOT_IN_CELLS, SCENARIO_KEYS};
use crate::config_file::suggestion;

/// The most cells that a matrix has, those left out included.
pub(super) const MAX_CELLS: usize = 10_000;

/// The axis of a cell, and what it has there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    /// As it is written in `[matrix]`.
    pub(super) axis: String,
    /// Without the tables that it is in, where it is the only one of that name.
    pub(super) short: String,
    /// What the value is called.
    pub(super) label: String,
    /// What `{{matrix.AXIS}}` is.
    pub(super) text: String,
}

/// A place in the matrix.
#[derive(Debug, Clone, Default)]
pub(super) struct Cell<'a> {
    pub(super) choices: Vec<Choice>,
    /// What it says besides the file.
    pub(super) over: Table<'a>,
}

impl Cell<'_> {
    /// As it is in a scenario's name: `kernel=6.1,memory=512M`.
    pub(super) fn name(&self) -> String {
        let parts = self
            .choices
            .iter()
            .map(|it| format!("{}={}", it.short, it.label));
        parts.collect::<Vec<_>>().join(",")
    }
}

struct Axis<'a> {
    name: String,
    values: Vec<AxisValue<'a>>,
}

struct AxisValue<'a> {
    place: Place,
    label: String,
    text: String,
    /// It is a table with a name of its own.
    is_named: bool,
    over: Table<'a>,
}

/// The cells of a matrix, in the order of its axes, the last one's values next to each other; one where there is no matrix. `fixed` are
/// keys that are set from outside: an axis that would set one is none.
pub(super) fn cells<'a>(
    field: Option<Field<'a>>,
    fixed: &[Vec<String>],
    context: &mut Context<'_>,
) -> Vec<Cell<'a>> {
    let Some(field) = field else {
        return vec![Cell::default()];
    };
    let place = field.key;
    let Some(mut fields) = context.table(field.value, "matrix") else {
        return vec![Cell::default()];
    };
    let exclude = fields.take("exclude");
    let mut axes = Vec::new();
    find_axes("", fields, &mut axes, context);
    // A file's own come in their order, behind those of the files that it extends.
    let exclusions = exclude.map(|it| exclusions(it, &axes, context));
    axes.retain(|axis| {
        let path: Vec<&str> = axis.name.split('.').collect();
        !fixed
            .iter()
            .any(|it| path.starts_with(&it.iter().map(String::as_str).collect::<Vec<_>>()))
    });
    if axes.is_empty() {
        return vec![Cell::default()];
    }
    let count = axes
        .iter()
        .try_fold(1usize, |count, axis| count.checked_mul(axis.values.len()));
    if count.is_none_or(|it| it > MAX_CELLS) {
        let message = format!("the matrix has more than {MAX_CELLS} cells");
        context.complaints.help(
            &place,
            message,
            "leave out some values, or make several files of it",
        );
        return Vec::new();
    }
    let names = short_names(&axes);
    let mut cells = vec![Cell::default()];
    for (axis, short) in axes.iter().zip(&names) {
        let extended = cells.iter().flat_map(|cell: &Cell<'_>| {
            axis.values.iter().map(|value| {
                let mut cell = cell.clone();
                cell.choices.push(Choice {
                    axis: axis.name.clone(),
                    short: short.clone(),
                    label: value.label.clone(),
                    text: value.text.clone(),
                });
                merge(&mut cell.over, value.over.clone());
                cell
            })
        });
        cells = extended.collect();
    }
    let Some(exclusions) = exclusions else {
        return cells;
    };
    cells.retain(|cell| {
        let is_so = |(axis, label): &(String, String)| {
            cell.choices
                .iter()
                .any(|it| it.axis == *axis && it.label == *label)
        };
        !exclusions.iter().any(|it| it.iter().all(is_so))
    });
    if cells.is_empty() && context.complaints.is_empty() {
        context
            .complaints
            .say(&place, "exclude leaves no cell of the matrix");
    }
    cells
}

/// Goes through a table of axes, and the tables in it: `vm.memory` may be written as a table, too.
fn find_axes<'a>(
    prefix: &str,
    fields: Fields<'a>,
    axes: &mut Vec<Axis<'a>>,
    context: &mut Context<'_>,
) {
    for (key, field) in fields.left() {
        let name = format!("{prefix}{key}");
        let place = field.key.clone();
        match field.value.get_ref() {
            DeValue::Table(_) => {
                if let Some(fields) = context.table(field.value, &name) {
                    find_axes(&format!("{name}."), fields, axes, context);
                }
            }
            DeValue::Array(_) => axes.extend(axis(name, place, field.value, context)),
            other => {
                let message = format!(
                    "the axis \"{name}\" is an array of values, not a value of type {}",
                    other.type_str()
                );
                context.complaints.say(&field.value.span(), message);
            }
        }
    }
}

fn axis<'a>(
    name: String,
    place: Place,
    value: Value<'a>,
    context: &mut Context<'_>,
) -> Option<Axis<'a>> {
    let own_place = value.span();
    let values = context.array(value, &name)?;
    if values.is_empty() {
        let message = format!("the axis \"{name}\" is empty: the matrix would have no cell");
        context.complaints.say(&own_place, message);
        return None;
    }
    let path: Vec<String> = name.split('.').map(ToOwned::to_owned).collect();
    let is_key = SCENARIO_KEYS.contains(&&*path[0]) && !NOT_IN_CELLS.contains(&&*path[0]);
    if path.len() > 1 && !is_key {
        let help = suggestion(&path[0], &["vm", "run"]);
        let message = format!("the axis \"{name}\" sets no key");
        context.complaints.help(&place, message, help);
        return None;
    }
    let mut found: Vec<AxisValue<'a>> = Vec::new();
    for value in values {
        let Some(value) = (match value.get_ref() {
            DeValue::Table(_) => table_value(value, context),
            _ => plain_value(value, is_key.then_some((&path[..], &place)), &name, context),
        }) else {
            continue;
        };
        found.push(value);
    }
    if !is_key && found.iter().any(|it| !it.is_named) {
        hint_at_key(&name, &place, context);
    }
    shorten(&mut found);
    let mut labels = std::collections::HashSet::new();
    for value in &found {
        if !labels.insert(value.label.clone()) {
            let message = format!("the axis \"{name}\" has \"{}\" twice", value.label);
            context.complaints.say(&value.place, message);
        }
    }
    Some(Axis {
        name,
        values: found,
    })
}

/// An axis without a dot sets nothing, which is an oversight where a key of the machine has its name.
fn hint_at_key(name: &str, place: &Place, context: &mut Context<'_>) {
    let known = if super::machine::keys().iter().any(|it| it == name) {
        "vm"
    } else if super::run::keys().iter().any(|it| it == name) {
        "run"
    } else {
        return;
    };
    let message = format!("the axis \"{name}\" sets no key");
    let help = format!("did you mean \"{known}.{name}\"?");
    context.complaints.help(place, message, help);
}

/// `{ name = "6.1", vm.kernel = "a" }`: any keys, and what that is called.
fn table_value<'a>(value: Value<'a>, context: &mut Context<'_>) -> Option<AxisValue<'a>> {
    let place = value.span();
    let mut fields = context.table(value, "a value")?;
    let Some(name) = fields.take("name") else {
        let message = "a value of an axis that is a table has a name";
        context
            .complaints
            .help(&place, message, "name = \"6.1\", for instance");
        return None;
    };
    let label = context.some_text(&name.value, "name", Use::Value)?;
    let mut over = Table::new();
    for (key, field) in fields.left() {
        if NOT_IN_CELLS.contains(&&*key) {
            let message = format!("{key} cannot be set by a matrix");
            context.complaints.say(&field.key, message);
        } else if !SCENARIO_KEYS.contains(&&*key) {
            let known: Vec<&str> = SCENARIO_KEYS
                .into_iter()
                .filter(|it| !NOT_IN_CELLS.contains(it))
                .collect();
            context.complaints.unknown_key(&field.key, &key, &known);
        } else {
            let path = [key];
            merge(&mut over, nested(&path, &field.key, field.value));
        }
    }
    Some(AxisValue {
        place,
        text: label.clone(),
        label,
        is_named: true,
        over,
    })
}

/// A value by itself, which sets the key that the axis is called by, or is there for `{{matrix.AXIS}}` alone.
fn plain_value<'a>(
    value: Value<'a>,
    key: Option<(&[String], &Place)>,
    axis: &str,
    context: &mut Context<'_>,
) -> Option<AxisValue<'a>> {
    let place = value.span();
    let text = match value.get_ref() {
        DeValue::String(_) => {
            context.some_text(&value, &format!("a value of {axis}"), Use::Value)?
        }
        DeValue::Integer(number) => integer(number)?.to_string(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(value) => value.to_string(),
        _ => {
            let message = format!(
                "a value of the axis \"{axis}\" is a string, a number, true or false, or a table with a name"
            );
            let help = format!("{{ name = \"…\", {axis} = … }}");
            context.complaints.help(&place, message, help);
            return None;
        }
    };
    let over = match key {
        Some((path, key_place)) => nested(path, key_place, value),
        None => Table::new(),
    };
    Some(AxisValue {
        place,
        label: text.clone(),
        text,
        is_named: false,
        over,
    })
}

/// Of paths, the last part is enough where it tells them apart.
fn shorten(values: &mut [AxisValue<'_>]) {
    let last = |text: &str| text.rsplit('/').next().unwrap_or_default().to_owned();
    let mut short: Vec<String> = values.iter().map(|it| last(&it.label)).collect();
    short.sort();
    short.dedup();
    let is_enough = short.len() == values.len() && short.iter().all(|it| !it.is_empty());
    for value in values.iter_mut().filter(|it| is_enough && !it.is_named) {
        value.label = last(&value.label);
    }
}

/// The axes' names without their tables, where that tells them apart.
fn short_names(axes: &[Axis<'_>]) -> Vec<String> {
    let last = |axis: &Axis<'_>| axis.name.rsplit('.').next().unwrap_or_default().to_owned();
    let all: Vec<String> = axes.iter().map(last).collect();
    axes.iter()
        .zip(&all)
        .map(
            |(axis, short)| match all.iter().filter(|it| *it == short).count() {
                1 => short.clone(),
                _ => axis.name.clone(),
            },
        )
        .collect()
}

/// The cells that are left out, each as axes with the names of values.
fn exclusions(
    field: Field<'_>,
    axes: &[Axis<'_>],
    context: &mut Context<'_>,
) -> Vec<Vec<(String, String)>> {
    let mut all = Vec::new();
    for value in context.array(field.value, "exclude").unwrap_or_default() {
        let place = value.span();
        let Some(fields) = context.table(value, "a cell to exclude") else {
            continue;
        };
        let mut cell = Vec::new();
        let before = context.complaints.len();
        exclusion("", fields, axes, &mut cell, context);
        if cell.is_empty() && context.complaints.len() == before {
            context.complaints.say(
                &place,
                "a cell to exclude that names no axis is all of them",
            );
        }
        // What is wrong excludes nothing, rather than too much.
        if context.complaints.len() == before {
            all.push(cell);
        }
    }
    all
}

fn exclusion(
    prefix: &str,
    fields: Fields<'_>,
    axes: &[Axis<'_>],
    cell: &mut Vec<(String, String)>,
    context: &mut Context<'_>,
) {
    for (key, field) in fields.left() {
        let name = format!("{prefix}{key}");
        let place = field.place();
        if field.value.get_ref().is_table() {
            if let Some(fields) = context.table(field.value, &name) {
                exclusion(&format!("{name}."), fields, axes, cell, context);
            }
            continue;
        }
        let Some(axis) = axes.iter().find(|it| it.name == name) else {
            let known: Vec<&str> = axes.iter().map(|it| it.name.as_str()).collect();
            let message = format!("the matrix has no axis \"{name}\"");
            context
                .complaints
                .help(&field.key, message, suggestion(&name, &known));
            continue;
        };
        let text = match field.value.get_ref() {
            DeValue::Integer(number) => integer(number).map(|it| it.to_string()),
            DeValue::Float(number) => Some(number.as_str().to_owned()),
            DeValue::Boolean(value) => Some(value.to_string()),
            _ => context.string(&field.value, &name),
        };
        let Some(text) = text else { continue };
        let found = axis
            .values
            .iter()
            .find(|it| it.label == text || it.text == text);
        match found {
            Some(value) => cell.push((name, value.label.clone())),
            None => {
                let known: Vec<&str> = axis.values.iter().map(|it| it.label.as_str()).collect();
                let message = format!("the axis \"{name}\" has no value \"{text}\"");
                context
                    .complaints
                    .help(&place, message, suggestion(&text, &known));
            }
        }
    }
}
