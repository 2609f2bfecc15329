//! How tables lie over each other: the values of an extended file, then the file's own, those of the matrix, and those of `--set`.

use std::collections::HashMap;

use toml::Spanned;
use toml::de::DeValue;

use super::sources::{Complaints, Place, Sources, Table, Value};

/// How long a chain of files may be.
const MAX_DEPTH: usize = 16;

/// Keys that a file says of itself alone.
const OWN: [&str; 3] = ["extends", "template", "name"];

/// Puts `over` over `under`: tables merge, all else replaces.
pub(super) fn merge<'a>(under: &mut Table<'a>, over: Table<'a>) {
    for (key, value) in over {
        match (under.get_mut(&key).map(Spanned::get_mut), value) {
            (Some(DeValue::Table(below)), value) if value.get_ref().is_table() => {
                if let DeValue::Table(above) = value.into_inner() {
                    merge(below, above);
                }
            }
            // The key of what replaces has the right place, too.
            (_, value) => {
                under.remove(&key);
                under.insert(key, value);
            }
        }
    }
}

/// A table in which only this key is set, a name of which is a table's.
pub(super) fn nested<'a>(path: &[String], key_place: &Place, value: Value<'a>) -> Table<'a> {
    let mut value = value;
    let mut table = Table::new();
    for name in path.iter().rev() {
        table = Table::new();
        let key = Spanned::new(key_place.clone(), name.clone().into());
        let place = value.span();
        table.insert(key, value);
        value = Spanned::new(place, DeValue::Table(table.clone()));
    }
    table
}

/// Files with what they extend, each put together once.
pub(super) struct Merger<'a> {
    sources: &'a Sources,
    done: HashMap<usize, Option<Table<'a>>>,
    under_way: Vec<usize>,
}

impl<'a> Merger<'a> {
    pub(super) fn new(sources: &'a Sources) -> Self {
        Self {
            sources,
            done: HashMap::new(),
            under_way: Vec::new(),
        }
    }

    /// A file's table over those of the files that it extends; none if it is no TOML, which has been told then.
    pub(super) fn table(
        &mut self,
        number: usize,
        complaints: &mut Complaints,
    ) -> Option<Table<'a>> {
        if let Some(done) = self.done.get(&number) {
            return done.clone();
        }
        let table = self.make(number, complaints);
        self.done.insert(number, table.clone());
        table
    }

    fn make(&mut self, number: usize, complaints: &mut Complaints) -> Option<Table<'a>> {
        let sources = self.sources;
        let own = match sources.parse(number) {
            Ok(table) => table,
            Err(problem) => {
                complaints.add(problem);
                return None;
            }
        };
        let mut table = Table::new();
        self.under_way.push(number);
        for (parent, place) in &sources.get(number).parents {
            if let Some(at) = self.under_way.iter().position(|it| it == parent) {
                let names = self.under_way[at..].iter().chain([parent]);
                let names: Vec<String> = names.map(|it| sources.get(*it).shown.clone()).collect();
                let message = format!("a file extends itself: {}", names.join(" -> "));
                complaints.say(place, message);
                continue;
            }
            if self.under_way.len() > MAX_DEPTH {
                let message = format!("more than {MAX_DEPTH} files extend each other in a row");
                complaints.say(place, message);
                continue;
            }
            if let Some(mut below) = self.table(*parent, complaints) {
                for key in OWN {
                    below.remove(key);
                }
                merge(&mut table, below);
            }
        }
        self.under_way.pop();
        merge(&mut table, own);
        Some(table)
    }
}
