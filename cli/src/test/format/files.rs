//! Which files: those that are named, those in directories that are named, and those that they extend.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::DeValue;

use super::sources::{Complaints, Place, Sources};
use crate::config_file::{self, Problem};
use crate::report;

/// How many files a file may extend.
const MAX_PARENTS: usize = 32;

/// How deep directories are looked into.
const MAX_DIRECTORIES: usize = 32;

/// How many files one run reads.
const MAX_FILES: usize = 10_000;

/// The most that all of them hold together.
const MAX_BYTES: usize = 64 << 20;

/// A file that was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Root {
    pub(super) source: usize,
    /// It was named itself, not only its directory.
    pub(super) is_named: bool,
}

/// The files read so far, by their paths without links.
struct Reader<'r> {
    sources: &'r mut Sources,
    complaints: &'r mut Complaints,
    known: HashMap<PathBuf, Option<usize>>,
    bytes: usize,
}

/// Reads all that is asked for and what that extends.
pub(super) fn read(
    paths: &[PathBuf],
    sources: &mut Sources,
    complaints: &mut Complaints,
) -> Vec<Root> {
    let mut reader = Reader {
        sources,
        complaints,
        known: HashMap::new(),
        bytes: 0,
    };
    let mut roots: Vec<Root> = Vec::new();
    for path in paths {
        let is_named = !path.is_dir();
        let files = match is_named {
            true => vec![path.clone()],
            false => reader.files_below(path),
        };
        for file in files {
            let Some(source) = reader.file(&file, None) else {
                continue;
            };
            match roots.iter_mut().find(|root| root.source == source) {
                Some(root) => root.is_named |= is_named,
                None => roots.push(Root { source, is_named }),
            }
        }
    }
    reader.read_parents();
    roots
}

impl Reader<'_> {
    /// A file, once.
    fn file(&mut self, path: &Path, asked: Option<&Place>) -> Option<usize> {
        let identity = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if let Some(known) = self.known.get(&identity) {
            return *known;
        }
        let read = match self.known.len() < MAX_FILES && self.bytes < MAX_BYTES {
            true => config_file::read(path, "scenario").map_err(|failure| failure.message),
            false => Err(format!(
                "there are more scenarios than {MAX_FILES} files or {} MiB",
                MAX_BYTES >> 20
            )),
        };
        let source = match read {
            Ok(text) => {
                self.bytes += text.len();
                Some(self.sources.add_file(path, text))
            }
            Err(message) => {
                self.complaints.add(Problem::new(message, asked.cloned()));
                None
            }
        };
        self.known.insert(identity, source);
        source
    }

    /// The scenarios in a directory and in those below it, by their names. Links to directories are not followed: they may lead in a
    /// circle.
    fn files_below(&mut self, directory: &Path) -> Vec<PathBuf> {
        let mut files = Vec::new();
        self.find(directory, 0, &mut files);
        files.sort();
        if files.is_empty() {
            let message = format!("there is no scenario in \"{}\"", directory.display());
            let help = "scenarios are files whose names end in .toml";
            let problem = Problem::new(message, None).with_help(help.into());
            self.complaints.add(problem);
        }
        files
    }

    fn find(&mut self, directory: &Path, depth: usize, files: &mut Vec<PathBuf>) {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(err) => {
                let (name, why) = (directory.display(), report::io_text(&err));
                let message = format!("cannot read directory \"{name}\": {why}");
                self.complaints.add(Problem::new(message, None));
                return;
            }
        };
        for entry in entries.flatten() {
            let (path, kind) = (entry.path(), entry.file_type());
            let is_scenario = path.extension().is_some_and(|it| it == "toml") && path.is_file();
            if kind.is_ok_and(|it| it.is_dir()) && depth < MAX_DIRECTORIES {
                self.find(&path, depth + 1, files);
            } else if is_scenario && files.len() <= MAX_FILES {
                files.push(path);
            }
        }
    }

    /// Reads what the files extend, and what that extends. A circle is found when they are put together.
    fn read_parents(&mut self) {
        let mut next = 0;
        while next < self.sources.len() {
            for (name, place) in self.extended_by(next) {
                // As it is shown: beside the file that extends it, as that was named.
                let file = self.sources.get(next).path.as_deref();
                let path = file
                    .and_then(Path::parent)
                    .unwrap_or(Path::new(""))
                    .join(&name);
                if let Some(parent) = self.file(&path, Some(&place)) {
                    self.sources.get_mut(next).parents.push((parent, place));
                }
            }
            next += 1;
        }
    }

    /// The names in a file's `extends`. That it is no TOML is told where it is put together.
    fn extended_by(&mut self, number: usize) -> Vec<(String, Place)> {
        let Ok(mut table) = self.sources.parse(number) else {
            return Vec::new();
        };
        let Some(value) = table.remove("extends") else {
            return Vec::new();
        };
        let place = value.span();
        let values = match value.into_inner() {
            DeValue::Array(values) => values.into_iter().collect(),
            other => vec![Spanned::new(place.clone(), other)],
        };
        if values.len() > MAX_PARENTS {
            let message = format!("a scenario extends {MAX_PARENTS} files at most");
            self.complaints.say(&place, message);
            return Vec::new();
        }
        let mut names = Vec::new();
        for value in values {
            match value.get_ref().as_str() {
                Some("") => self
                    .complaints
                    .say(&value.span(), "extends is an empty path"),
                Some(name) => names.push((name.to_owned(), value.span())),
                None => {
                    let kind = value.get_ref().type_str();
                    let message =
                        format!("extends is a path or several, not a value of type {kind}");
                    self.complaints.say(&value.span(), message);
                }
            }
        }
        names
    }
}
