//! The files of scenarios: TOML in, typed scenarios or all complaints out.
//!
//! ```text
//!  files ---> sources ---> merge ---> matrix ---> whole ---> Scenario
//!  named,     texts in     tables     one table   typed by machine, run, steps, faults;
//!  extended   one space    over       for each    checked by order
//!             of places    tables     cell
//! ```
//! Every value keeps the place where it was written, however many files lie over each other: complaints and relative paths need it.

mod address;
mod effective;
mod faults;
mod files;
mod machine;
mod matrix;
mod merge;
mod order;
mod reader;
mod run;
#[cfg(test)]
mod schema;
mod sets;
mod sources;
mod steps;
mod template;
#[cfg(test)]
mod tests;
mod whole;

use std::collections::HashMap;
use std::path::PathBuf;

use toml::de::DeValue;

use super::scenario::Scenario;
use crate::report::Failure;
pub(crate) use effective::to_toml;
use matrix::MAX_CELLS;
use merge::{Merger, merge};
use reader::{Context, Fields};
pub(crate) use run::{SOME_COMMAND, parse as run_arguments};
use sources::{Complaints, Place, Sources, Table};
use template::Values;
pub(crate) use template::{fill, fill_pattern};

/// The JSON schema of the files, for editors. A test makes it.
pub(crate) const SCHEMA: &str = include_str!("../../../scenario.schema.json");

/// The keys of a file.
const SCENARIO_KEYS: [&str; 14] = [
    "extends",
    "template",
    "name",
    "description",
    "tags",
    "timeout",
    "step-timeout",
    "forbid",
    "forbid-defaults",
    "allow",
    "vm",
    "run",
    "matrix",
    "step",
];

/// Keys that are a file's, not a cell's of its matrix.
const NOT_IN_CELLS: [&str; 4] = ["extends", "template", "name", "matrix"];

/// What names look like, for those who wrote another.
const NAME_HELP: &str =
    "names have letters, digits, dots, underscores and dashes, and begin by a letter or digit";

/// The longest name.
const MAX_NAME: usize = 100;

/// The most that the tables of all cells of a file hold together, in bytes of their texts and 64 for each value.
const MAX_WEIGHT: usize = 256 << 20;

/// Whether a text is a name: it becomes one of a folder, too.
fn is_name(text: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    begins && text.len() <= MAX_NAME && text.chars().all(is_letter)
}

/// Reads files, and directories of files, with keys set from outside; all scenarios that they are, or all that is wrong.
pub(crate) fn load(paths: &[PathBuf], sets: &[String]) -> Result<Vec<Scenario>, Vec<Failure>> {
    load_with(paths, sets, |name| std::env::var(name).ok())
}

/// The same with another environment.
fn load_with(
    paths: &[PathBuf],
    sets: &[String],
    environment: fn(&str) -> Option<String>,
) -> Result<Vec<Scenario>, Vec<Failure>> {
    let mut sources = Sources::default();
    let mut complaints = Complaints::default();
    let roots = files::read(paths, &mut sources, &mut complaints);
    let sets = sets::read(sets, &mut sources, &mut complaints);
    let sources = sources;
    let mut loader = Loader {
        sources: &sources,
        sets: sets::tables(&sets, &sources),
        fixed: sets.iter().map(|it| it.path.clone()).collect(),
        environment,
        complaints: &mut complaints,
        names: HashMap::new(),
        scenarios: Vec::new(),
    };
    let mut merger = Merger::new(&sources);
    for root in roots {
        if let Some(table) = merger.table(root.source, loader.complaints) {
            loader.file(table, root);
        }
    }
    let scenarios = loader.scenarios;
    match complaints.is_empty() {
        true => Ok(scenarios),
        false => Err(complaints.into_failures(&sources)),
    }
}

/// What is loaded so far.
struct Loader<'l> {
    sources: &'l Sources,
    /// What is set from outside.
    sets: Vec<Table<'l>>,
    /// Which keys that are.
    fixed: Vec<Vec<String>>,
    environment: fn(&str) -> Option<String>,
    complaints: &'l mut Complaints,
    /// Each name, and where it is given.
    names: HashMap<String, Place>,
    scenarios: Vec<Scenario>,
}

impl<'l> Loader<'l> {
    /// A file, with what it extends.
    fn file(&mut self, mut table: Table<'l>, root: files::Root) {
        // What lacks a file that it extends lacks more, which is not its mistake.
        let is_whole = self.complaints.is_empty();
        if self.is_template(&mut table, root) {
            return;
        }
        for set in &self.sets {
            merge(&mut table, set.clone());
        }
        let (name, place) = self.name(&mut table, root.source);
        let beginning = self.sources.beginning(root.source);
        let mut fields = Fields::new(table, beginning.clone());
        let matrix = fields.take("matrix");
        fields.take("extends");
        let mut context = Context {
            values: Values {
                sources: self.sources,
                environment: self.environment,
                cell: &[],
            },
            complaints: self.complaints,
        };
        let cells = matrix::cells(matrix, &self.fixed, &mut context);
        let table = fields.into_table();
        let weight = weight_of(&table);
        if self.scenarios.len() + cells.len() > MAX_CELLS
            || weight.saturating_mul(cells.len()) > MAX_WEIGHT
        {
            let message = "the scenarios are too many and too large to be held";
            let help = format!("there are {MAX_CELLS} at most; run fewer files at once");
            self.complaints.help(&beginning, message, help);
            return;
        }
        if let Some(name) = &name
            && let Some(other) = self.names.insert(name.clone(), place.clone())
        {
            let message = format!(
                "there are two scenarios named \"{name}\": the other is at {}",
                self.sources.show(&other)
            );
            self.complaints
                .help(&place, message, "give one another name: name = \"…\"");
        }
        let before = self.complaints.len();
        let count = cells.len();
        for cell in cells {
            let mut own = table.clone();
            let (choices, over) = (&cell.choices, cell.over.clone());
            merge(&mut own, over);
            for set in &self.sets {
                merge(&mut own, set.clone());
            }
            // An axis of the matrix is none of the scenario's.
            own.remove("matrix");
            let shown = (!choices.is_empty()).then(|| cell.name());
            self.complaints.set_cell(shown.clone());
            let values = Values {
                sources: self.sources,
                environment: self.environment,
                cell: choices,
            };
            let made = whole::scenario(
                Fields::new(own, beginning.clone()),
                values,
                is_whole,
                self.complaints,
            );
            let (Some(mut scenario), Some(name)) = (made, &name) else {
                continue;
            };
            scenario.name = match shown {
                Some(cell) => format!("{name}[{cell}]"),
                None => name.clone(),
            };
            self.scenarios.push(scenario);
        }
        self.complaints.end_cells(before, count);
    }

    /// Whether a file is only there to be extended.
    fn is_template(&mut self, table: &mut Table<'l>, root: files::Root) -> bool {
        let Some(value) = table.remove("template") else {
            return false;
        };
        match value.get_ref() {
            DeValue::Boolean(false) => false,
            DeValue::Boolean(true) => {
                if root.is_named {
                    let message = "the file is a template: it is only there to be extended";
                    let help = "name a file that extends it, or leave out template = true";
                    self.complaints.help(&value.span(), message, help);
                }
                true
            }
            other => {
                let kind = other.type_str();
                let message = format!("template is true or false, not a value of type {kind}");
                self.complaints.say(&value.span(), message);
                true
            }
        }
    }

    /// The file's name for its scenarios, and where that is said.
    fn name(&mut self, table: &mut Table<'l>, source: usize) -> (Option<String>, Place) {
        let (name, place) = match table.remove("name") {
            Some(value) => match value.get_ref().as_str() {
                Some(name) => (name.to_owned(), value.span()),
                None => {
                    let kind = value.get_ref().type_str();
                    let message = format!("name is a string, not a value of type {kind}");
                    self.complaints.say(&value.span(), message);
                    return (None, value.span());
                }
            },
            None => {
                let path = self.sources.get(source).path.as_deref();
                let stem = path.and_then(|it| it.file_stem()).unwrap_or_default();
                let name = stem.to_string_lossy().into_owned();
                (name, self.sources.beginning(source))
            }
        };
        if !is_name(&name) {
            let message = format!("\"{name}\" is no name of a scenario");
            let help = format!("name = \"…\"; {NAME_HELP}");
            self.complaints.help(&place, message, help);
            return (None, place);
        }
        (Some(name), place)
    }
}

/// What a table takes, roughly.
fn weight_of(table: &Table<'_>) -> usize {
    let of_key = |(key, value): (&toml::Spanned<_>, &toml::Spanned<_>)| {
        let key: &std::borrow::Cow<'_, str> = key.get_ref();
        key.len() + weight_of_value(value.get_ref())
    };
    table.iter().map(of_key).sum()
}

fn weight_of_value(value: &DeValue<'_>) -> usize {
    64 + match value {
        DeValue::String(text) => text.len(),
        DeValue::Array(values) => values.iter().map(|it| weight_of_value(it.get_ref())).sum(),
        DeValue::Table(table) => weight_of(table),
        _ => 0,
    }
}
