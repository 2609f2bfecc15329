//! `--set KEY=VALUE`: a key of all scenarios, from outside. The value is one of TOML, or else a text.

use toml::de::DeValue;

use super::SCENARIO_KEYS;
use super::sources::{Complaints, Sources, Table};
use crate::config_file::Problem;

/// Keys that are a file's own.
const NOT_SET: [&str; 3] = ["extends", "template", "name"];

/// One that was read.
pub(super) struct Set {
    source: usize,
    /// The key's names.
    pub(super) path: Vec<String>,
}

/// Reads them.
pub(super) fn read(
    sets: &[String],
    sources: &mut Sources,
    complaints: &mut Complaints,
) -> Vec<Set> {
    let mut read = Vec::new();
    for set in sets {
        let Some((key, value)) = set.split_once('=') else {
            let problem = Problem::new(format!("--set {set}: it is no KEY=VALUE"), None);
            complaints.add(problem.with_help("--set vm.cpus=2, for instance".into()));
            continue;
        };
        let mut source = sources.add_set(set, set.clone());
        if sources.parse(source).is_err() {
            let text = toml::Value::String(value.to_owned());
            source = sources.add_set(set, format!("{key} = {text}"));
        }
        let table = match sources.parse(source) {
            Ok(table) => table,
            Err(problem) => {
                complaints.add(problem);
                continue;
            }
        };
        let path = path_of(&table);
        let place = sources.beginning(source);
        match path.first().map(String::as_str) {
            Some(first) if NOT_SET.contains(&first) => {
                let message = format!("{first} is a file's own, and cannot be set");
                complaints.say(&place, message);
            }
            Some(first) if !SCENARIO_KEYS.contains(&first) => {
                let known: Vec<&str> = SCENARIO_KEYS
                    .into_iter()
                    .filter(|it| !NOT_SET.contains(it))
                    .collect();
                complaints.unknown_key(&place, first, &known);
            }
            Some(_) => read.push(Set { source, path }),
            None => complaints.say(&place, "it sets nothing"),
        }
    }
    read
}

/// Their tables.
pub(super) fn tables<'s>(sets: &[Set], sources: &'s Sources) -> Vec<Table<'s>> {
    let tables = sets.iter().map(|set| sources.parse(set.source));
    tables.filter_map(Result::ok).collect()
}

/// The names down to what is set.
fn path_of(table: &Table<'_>) -> Vec<String> {
    let mut path = Vec::new();
    let mut table = table;
    while let (Some((key, value)), 1) = (table.iter().next(), table.len()) {
        path.push(key.get_ref().to_string());
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    path
}
