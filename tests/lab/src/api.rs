//! `cargo lab api`: the public API of the libraries, compared with what is committed as `public-api.txt` beside each.
//!
//! rustdoc's JSON is an unstable format. The usual rustdoc writes it when told that it may, and nothing else is built in that
//! way: a compiler that is would have everything built anew. Where its format is not the one that is read here, nothing is
//! compared, and the caller is told why.

#![allow(clippy::print_stdout, reason = "what differs is the command's output")]

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::project::{Project, run};
use crate::verdict::Verdict;

/// Folders of the libraries; their packages carry a prefix.
const LIBRARIES: [&str; 5] = ["arch", "devices", "image", "store", "vmm"];

/// The committed list, in a library's folder.
const BASELINE: &str = "public-api.txt";

/// How a change is accepted.
const HINT: &str = "A line that is gone or changed (-) breaks programs that use it: it wants a line in CHANGELOG.md and a version \
     of its own.\nWhere the change is meant: cargo lab api --bless";

/// What rustdoc is called by: the one program that may use what is unstable.
const RUSTDOC: &str = "#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec \"${AMPOULE_RUSTDOC:-rustdoc}\" \"$@\"\n";

/// Compares the public APIs with the baselines.
///
/// # Errors
/// The libraries' documentation does not build, or a file cannot be read.
pub(crate) fn compare(project: &Project) -> Result<Verdict> {
    let lists = match list(project)? {
        Ok(lists) => lists,
        Err(reason) => return Ok(Verdict::Unknown(reason)),
    };
    let mut report = String::new();
    for (folder, list) in lists {
        let path = baseline(project, folder);
        // A library that is new has none.
        let committed = fs::read_to_string(&path).unwrap_or_default();
        let changes = Changes::between(&committed, &list);
        if !changes.is_empty() {
            write!(report, "{folder}/{BASELINE}: {changes}")?;
        }
    }
    Ok(match report.is_empty() {
        true => Verdict::Good,
        false => Verdict::Bad(format!("{report}\n{HINT}")),
    })
}

/// What the command does: compares, and prints what differs, or makes the public APIs as they are the baselines. Whether these
/// are so now.
///
/// # Errors
/// As for [`compare`], and where this toolchain's rustdoc cannot be read.
pub(crate) fn check(project: &Project, bless: bool) -> Result<bool> {
    if bless {
        for (folder, list) in list(project)?.map_err(anyhow::Error::msg)? {
            let path = baseline(project, folder);
            fs::write(&path, list).with_context(|| format!("cannot write {}", path.display()))?;
        }
        return Ok(true);
    }
    match compare(project)? {
        Verdict::Good => Ok(true),
        Verdict::Bad(report) => {
            println!("{report}");
            Ok(false)
        }
        Verdict::Unknown(reason) => bail!(reason),
    }
}

fn baseline(project: &Project, folder: &str) -> PathBuf {
    project.root.join(folder).join(BASELINE)
}

/// The public API of each library, an item a line; or why this toolchain's rustdoc cannot be read.
fn list(project: &Project) -> Result<Result<Vec<(&'static str, String)>, String>> {
    document(project)?;
    let mut lists = Vec::new();
    for folder in LIBRARIES {
        let json = format!("doc/ampoule_{folder}.json");
        let json = project.target.join(json);
        if let Err(reason) = check_format(&json)? {
            return Ok(Err(reason));
        }
        let api = public_api::Builder::from_rustdoc_json(&json)
            .omit_blanket_impls(true)
            .build()
            .with_context(|| format!("cannot read {}", json.display()))?;
        let mut list = String::new();
        for line in api
            .items()
            .map(ToString::to_string)
            .filter(|line| is_promise(line))
        {
            list.push_str(&line);
            list.push('\n');
        }
        lists.push((folder, list));
    }
    Ok(Ok(lists))
}

/// Traits that only the compiler knows; who implements them changes with it.
const COMPILER_ONLY: [&str; 3] = [
    "core::marker::Freeze for ",
    "core::marker::StructuralPartialEq for ",
    "core::marker::UnsafeUnpin for ",
];

/// Whether an item is one that programs can rely on.
fn is_promise(line: &str) -> bool {
    !COMPILER_ONLY.iter().any(|name| line.contains(name))
}

/// Has rustdoc write the libraries' JSON, with their default features.
fn document(project: &Project) -> Result<()> {
    fs::create_dir_all(&project.lab)
        .with_context(|| format!("cannot create {}", project.lab.display()))?;
    let rustdoc = project.lab.join("rustdoc");
    let write = || {
        fs::write(&rustdoc, RUSTDOC)?;
        fs::set_permissions(&rustdoc, fs::Permissions::from_mode(0o755))
    };
    write().with_context(|| format!("cannot write {}", rustdoc.display()))?;
    let mut cargo = project.cargo();
    if let Some(usual) = std::env::var_os("RUSTDOC") {
        cargo.env("AMPOULE_RUSTDOC", usual);
    }
    cargo
        .env("RUSTDOC", &rustdoc)
        .env("RUSTDOCFLAGS", "-Z unstable-options --output-format json")
        .env_remove("CARGO_ENCODED_RUSTDOCFLAGS")
        .args(["doc", "--quiet", "--no-deps", "--lib"]);
    for folder in LIBRARIES {
        cargo.args(["--package", &format!("ampoule-{folder}")]);
    }
    run(&mut cargo).map(drop)
}

/// Whether the format of this JSON is the one that is read here; the reason where it is not.
fn check_format(json: &Path) -> Result<Result<(), String>> {
    let text =
        fs::read_to_string(json).with_context(|| format!("cannot read {}", json.display()))?;
    let value: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is no JSON", json.display()))?;
    let known = u64::from(rustdoc_types::FORMAT_VERSION);
    Ok(match value["format_version"].as_u64() {
        Some(version) if version == known => Ok(()),
        version => Err(format!(
            "this toolchain's rustdoc writes format {}, and the crate public-api in use reads {known}",
            version.map_or_else(|| "unknown".to_owned(), |version| version.to_string()),
        )),
    })
}

/// Lines that are only in one of two lists.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes<'a> {
    /// By what is compared to find lines that belong together.
    lines: BTreeMap<(&'a str, Side, &'a str), usize>,
}

/// Where a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Committed,
    Present,
}

impl<'a> Changes<'a> {
    fn between(committed: &'a str, present: &'a str) -> Self {
        let mut counts: BTreeMap<&str, isize> = BTreeMap::new();
        for line in committed.lines() {
            *counts.entry(line).or_default() -= 1;
        }
        for line in present.lines() {
            *counts.entry(line).or_default() += 1;
        }
        let lines = counts.into_iter().filter(|(_, count)| *count != 0);
        let lines = lines.map(|(line, count)| {
            let side = match count < 0 {
                true => Side::Committed,
                false => Side::Present,
            };
            ((item(line), side, line), count.unsigned_abs())
        });
        Self {
            lines: lines.collect(),
        }
    }

    fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    fn count(&self, wanted: Side) -> usize {
        let of_side = self
            .lines
            .iter()
            .filter(|((_, side, _), _)| *side == wanted);
        of_side.map(|(_, count)| count).sum()
    }
}

impl fmt::Display for Changes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (gone, new) = (self.count(Side::Committed), self.count(Side::Present));
        writeln!(f, "{gone} gone or changed, {new} new")?;
        for ((_, side, line), count) in &self.lines {
            let sign = match side {
                Side::Committed => '-',
                Side::Present => '+',
            };
            for _ in 0..*count {
                writeln!(f, "  {sign} {line}")?;
            }
        }
        Ok(())
    }
}

/// The path of the item that a line is about: what stays where its signature changes.
fn item(line: &str) -> &str {
    let start = line.find("ampoule_").unwrap_or(0);
    let of_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let len = line[start..].find(|c| !of_path(c));
    let path = len.map_or(&line[start..], |len| &line[start..start + len]);
    path.trim_end_matches(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMITTED: &str = "pub fn ampoule_vmm::VmHandle::stop(&self)\n\
         pub fn ampoule_vmm::VmHandle::wait(&self) -> ampoule_vmm::ExitReason\n\
         pub struct ampoule_vmm::Vm\n";

    #[test]
    fn a_changed_line_stands_beside_what_it_was() {
        let present = "pub fn ampoule_vmm::VmHandle::kill(&self)\n\
             pub fn ampoule_vmm::VmHandle::stop(&self, how: ampoule_vmm::How)\n\
             pub fn ampoule_vmm::VmHandle::wait(&self) -> ampoule_vmm::ExitReason\n";
        let changes = Changes::between(COMMITTED, present).to_string();
        assert_eq!(
            changes,
            "2 gone or changed, 2 new\n\
             \x20 - pub struct ampoule_vmm::Vm\n\
             \x20 + pub fn ampoule_vmm::VmHandle::kill(&self)\n\
             \x20 - pub fn ampoule_vmm::VmHandle::stop(&self)\n\
             \x20 + pub fn ampoule_vmm::VmHandle::stop(&self, how: ampoule_vmm::How)\n"
        );
    }

    #[test]
    fn order_is_no_change_and_number_is() {
        let mut lines: Vec<&str> = COMMITTED.lines().rev().collect();
        assert!(Changes::between(COMMITTED, &lines.join("\n")).is_empty());
        lines.push(lines[0]);
        let twice = lines.join("\n");
        let changes = Changes::between(COMMITTED, &twice);
        assert_eq!(
            (changes.count(Side::Committed), changes.count(Side::Present)),
            (0, 1)
        );
    }

    #[test]
    fn another_format_is_told_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let json = folder.path().join("x.json");
        let check = |text: &str| {
            fs::write(&json, text).unwrap();
            check_format(&json).unwrap()
        };
        let known = rustdoc_types::FORMAT_VERSION;
        assert_eq!(check(&format!(r#"{{"format_version": {known}}}"#)), Ok(()));
        let newer = check(&format!(r#"{{"format_version": {}}}"#, known + 1));
        assert!(
            newer
                .unwrap_err()
                .contains(&format!("format {}", known + 1))
        );
        assert!(check("{}").unwrap_err().contains("format unknown"));
    }
}
