//! The texts that scenarios are made of, in one space of positions: what a table of several files holds still tells where it is from.
//!
//! A position is a byte's offset in its text, plus where the text begins in the space. So the spans that the TOML parser gives stay
//! with the values through merges, and a mistake is told at the file that makes it.

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config_file::{Problem, line_and_column, suggestion};
use crate::report::Failure;

/// Where something is written.
pub(super) type Place = Range<usize>;

/// A table with its keys' and values' places.
pub(super) type Table<'a> = DeTable<'a>;

/// A value with its place.
pub(super) type Value<'a> = Spanned<DeValue<'a>>;

/// More complaints than this help nobody.
const MAX_COMPLAINTS: usize = 500;

/// A text that was read.
#[derive(Debug)]
pub(super) struct Source {
    /// The file, or the whole `--set`, as it was named.
    pub(super) shown: String,
    /// The file; none where it is a `--set`.
    pub(super) path: Option<PathBuf>,
    pub(super) text: String,
    /// Where relative paths in it begin: absolute.
    pub(super) directory: PathBuf,
    /// What it extends, as numbers of other sources, and where it says so. Those that could not be read are not among them.
    pub(super) parents: Vec<(usize, Place)>,
    /// Where the text begins in the space of positions.
    start: usize,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Sources {
    all: Vec<Source>,
}

impl Sources {
    /// Adds a file; its number.
    pub(super) fn add_file(&mut self, path: &Path, text: String) -> usize {
        let shown = path.display().to_string();
        self.add(shown, Some(path.to_owned()), text, directory_of(path))
    }

    /// Adds what is set from outside. Paths begin at the current directory.
    pub(super) fn add_set(&mut self, set: &str, text: String) -> usize {
        let directory = std::env::current_dir().unwrap_or_else(|_| "/".into());
        self.add(format!("--set {set}"), None, text, directory)
    }

    fn add(
        &mut self,
        shown: String,
        path: Option<PathBuf>,
        text: String,
        directory: PathBuf,
    ) -> usize {
        // One position more than its bytes: its end is not the next one's beginning.
        let start = self
            .all
            .last()
            .map_or(0, |last| last.start + last.text.len() + 1);
        self.all.push(Source {
            shown,
            path,
            text,
            directory,
            parents: Vec::new(),
            start,
        });
        self.all.len() - 1
    }

    pub(super) fn get(&self, number: usize) -> &Source {
        &self.all[number]
    }

    pub(super) fn get_mut(&mut self, number: usize) -> &mut Source {
        &mut self.all[number]
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// The place of a text's beginning.
    pub(super) fn beginning(&self, number: usize) -> Place {
        let start = self.all[number].start;
        start..start
    }

    /// The text that a place is in.
    pub(super) fn at(&self, place: &Place) -> &Source {
        let after = self.all.partition_point(|it| it.start <= place.start);
        &self.all[after.saturating_sub(1)]
    }

    /// The line of a place, from 1.
    pub(super) fn line(&self, place: &Place) -> usize {
        let source = self.at(place);
        line_and_column(&source.text, place.start - source.start).0
    }

    /// A place, as a person is told of it.
    pub(super) fn show(&self, place: &Place) -> String {
        let source = self.at(place);
        if source.path.is_none() {
            return source.shown.clone();
        }
        let (line, column) = line_and_column(&source.text, place.start - source.start);
        format!("{}:{line}:{column}", source.shown)
    }

    /// Parses a text.
    pub(super) fn parse(&self, number: usize) -> Result<Table<'_>, Problem> {
        let source = &self.all[number];
        let by = source.start;
        let shift = |place: Place| place.start + by..place.end + by;
        match DeTable::parse(&source.text) {
            Ok(table) => Ok(shifted(table.into_inner(), by)),
            Err(err) => {
                let problem = Problem::of_toml(&err, &source.text, &[]);
                let place = problem.span.clone().map_or(by..by, shift);
                Err(Problem {
                    span: Some(place),
                    ..problem
                })
            }
        }
    }
}

/// The same table, all places moved.
fn shifted(table: Table<'_>, by: usize) -> Table<'_> {
    let entries = table.into_iter().map(|(key, value)| {
        let place = key.span();
        let key = Spanned::new(place.start + by..place.end + by, key.into_inner());
        (key, shifted_value(value, by))
    });
    entries.collect()
}

fn shifted_value(value: Value<'_>, by: usize) -> Value<'_> {
    let place = value.span();
    let value = match value.into_inner() {
        DeValue::Table(table) => DeValue::Table(shifted(table, by)),
        DeValue::Array(mut array) => {
            for value in array.iter_mut() {
                let own = std::mem::replace(value, Spanned::new(0..0, DeValue::Boolean(false)));
                *value = shifted_value(own, by);
            }
            DeValue::Array(array)
        }
        other => other,
    };
    Spanned::new(place.start + by..place.end + by, value)
}

/// What is wrong, each once.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    all: Vec<(Problem, Vec<String>)>,
    seen: HashSet<Problem>,
    /// The cell at hand.
    cell: Option<String>,
}

impl Complaints {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Something that is wrong at a place.
    pub(super) fn say(&mut self, place: &Place, message: impl Into<String>) {
        self.add(Problem::new(message, Some(place.clone())));
    }

    /// The same, and what to do about it.
    pub(super) fn help(
        &mut self,
        place: &Place,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.add(Problem::new(message, Some(place.clone())).with_help(help.into()));
    }

    /// A key that nothing knows.
    pub(super) fn unknown_key(&mut self, place: &Place, key: &str, known: &[&str]) {
        let message = format!("unknown key \"{key}\"");
        self.help(place, message, suggestion(key, known));
    }

    pub(super) fn add(&mut self, problem: Problem) {
        if self.seen.insert(problem.clone()) {
            self.all
                .push((problem, self.cell.clone().into_iter().collect()));
        } else if let Some(cell) = &self.cell
            && let Some((_, cells)) = self.all.iter_mut().find(|it| it.0 == problem)
        {
            cells.push(cell.clone());
        }
    }

    /// What follows is about this cell of a matrix.
    pub(super) fn set_cell(&mut self, cell: Option<String>) {
        self.cell = cell;
    }

    /// What was wrong in some of so many cells only names the first of them; what is wrong in all needs none.
    pub(super) fn end_cells(&mut self, since: usize, count: usize) {
        self.cell = None;
        for (problem, cells) in self.all.iter_mut().skip(since) {
            if let Some(cell) = cells.first().filter(|_| cells.len() < count) {
                problem.message = format!("{} (in {cell})", problem.message);
            }
            cells.clear();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// As they are told, in the order of their places.
    pub(super) fn into_failures(mut self, sources: &Sources) -> Vec<Failure> {
        self.all
            .sort_by_key(|(problem, _)| problem.span.as_ref().map(|it| it.start));
        let left = self.all.len().saturating_sub(MAX_COMPLAINTS);
        self.all.truncate(MAX_COMPLAINTS);
        let told = |(problem, _): (Problem, _)| {
            let message = match &problem.span {
                Some(place) => format!("{}: {}", sources.show(place), problem.message),
                None => problem.message,
            };
            Failure {
                message,
                help: problem.help,
            }
        };
        let mut failures: Vec<Failure> = self.all.into_iter().map(told).collect();
        if left > 0 {
            failures.push(Failure::new(format!("and {left} more")));
        }
        failures
    }
}

/// The directory that a file's relative paths begin at.
fn directory_of(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.parent().unwrap_or(Path::new("/")).to_owned()
}
