//! What goes to the package registry: whether each package that may is complete, and has nothing in it by accident.
//!
//! The packages are made as for a release, but not built from: that is `cargo package` without `--no-verify`, by hand.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::project::{Project, run};
use crate::verdict::Verdict;

/// Fields of a manifest without which a package is not presentable.
const FIELDS: [&str; 8] = [
    "authors",
    "categories",
    "description",
    "documentation",
    "keywords",
    "license",
    "readme",
    "rust_version",
];

/// Files that every package has.
const REQUIRED: [&str; 3] = ["Cargo.toml", "LICENSE", "README.md"];

/// Others that it may have, besides Rust sources in these folders.
const ALLOWED: [&str; 5] = [
    ".cargo_vcs_info.json",
    "Cargo.lock",
    "Cargo.toml.orig",
    "build.rs",
    "scenario.schema.json",
];
const FOLDERS: [&str; 5] = ["benches/", "examples/", "init/", "src/", "tests/"];

/// Since this minor version of cargo, packages may need each other that no registry has yet.
const CARGO: u32 = 90;

/// Makes the packages, and looks for what is wrong with them.
///
/// # Errors
/// They cannot be made at all.
pub(crate) fn check(project: &Project) -> Result<Verdict> {
    let version = run(project.cargo().arg("--version"))?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    if minor(&version).is_some_and(|minor| minor < CARGO) {
        let version = version.trim();
        return Ok(Verdict::Unknown(format!(
            "packages that need each other want cargo 1.{CARGO}, and this is {version}"
        )));
    }
    let faults = faults(project)?;
    Ok(match faults.is_empty() {
        true => Verdict::Good,
        false => Verdict::Bad(faults.join("\n")),
    })
}

/// The minor version in what `cargo --version` prints.
fn minor(version: &str) -> Option<u32> {
    let number = version.split_whitespace().nth(1)?;
    number.strip_prefix("1.")?.split('.').next()?.parse().ok()
}

/// What is wrong with the packages, a line each.
fn faults(project: &Project) -> Result<Vec<String>> {
    let packages = publishable(project)?;
    let mut faults = Vec::new();
    for package in &packages {
        faults.extend(missing_fields(package));
        let name = name(package);
        let listed = run(&mut cargo(project, &["--list"], &[name]))?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        faults.extend(wrong_files(name, &listed.lines().collect::<Vec<_>>()));
    }
    let names: Vec<&str> = packages.iter().map(name).collect();
    let made = run(&mut cargo(project, &["--no-verify"], &names))?;
    let said = String::from_utf8_lossy(&made.stderr).into_owned();
    let warnings = said.lines().filter(|line| line.starts_with("warning"));
    faults.extend(warnings.map(ToOwned::to_owned));
    Ok(faults)
}

/// `cargo package` of these packages, from the working tree as it is.
fn cargo(project: &Project, options: &[&str], packages: &[&str]) -> Command {
    let mut cargo = project.cargo();
    cargo.args(["package", "--allow-dirty"]).args(options);
    for package in packages {
        cargo.args(["--package", package]);
    }
    cargo
}

/// What cargo knows of the packages that are not kept from the registry.
fn publishable(project: &Project) -> Result<Vec<Value>> {
    let mut cargo = project.cargo();
    cargo.args(["metadata", "--no-deps", "--format-version", "1"]);
    let mut metadata: Value = serde_json::from_slice(&run(&mut cargo)?.stdout)
        .context("cannot read what cargo metadata prints")?;
    let packages = metadata["packages"].as_array_mut();
    let packages = packages.context("cargo metadata names no packages")?;
    packages.retain(|package| package["publish"].is_null());
    Ok(std::mem::take(packages))
}

fn name(package: &Value) -> &str {
    package["name"].as_str().unwrap_or_default()
}

fn missing_fields(package: &Value) -> impl Iterator<Item = String> {
    let is_empty = |value: &Value| match value {
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        value => value.is_null(),
    };
    let missing = FIELDS
        .iter()
        .filter(move |field| is_empty(&package[**field]));
    missing.map(|field| format!("{}: its manifest has no {field}", name(package)))
}

fn wrong_files(package: &str, files: &[&str]) -> Vec<String> {
    let missing = REQUIRED.iter().filter(|file| !files.contains(file));
    let missing = missing.map(|file| format!("{package}: it has no {file}"));
    let is_source = |file: &str| {
        let in_folder = FOLDERS.iter().any(|folder| file.starts_with(folder));
        in_folder
            && Path::new(file)
                .extension()
                .is_some_and(|extension| extension == "rs" || extension == "css")
    };
    // An example may bring what its guest is made of.
    let is_known = |file: &str| {
        let known = REQUIRED.contains(&file) || ALLOWED.contains(&file);
        known || is_source(file) || file.starts_with("examples/")
    };
    let stray = files.iter().filter(|file| !is_known(file));
    let stray = stray.map(|file| format!("{package}: {file} does not belong in it"));
    missing.chain(stray).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_missing_and_what_is_stray_is_told() {
        let files = [
            "Cargo.toml",
            "LICENSE",
            "src/lib.rs",
            "src/a/note.txt",
            "x.rs",
        ];
        assert_eq!(
            wrong_files("p", &files),
            [
                "p: it has no README.md",
                "p: src/a/note.txt does not belong in it",
                "p: x.rs does not belong in it"
            ]
        );
        let complete = [
            "Cargo.toml",
            "Cargo.lock",
            "LICENSE",
            "README.md",
            "src/lib.rs",
        ];
        assert_eq!(wrong_files("p", &complete), [""; 0]);
    }

    #[test]
    fn a_version_is_read_as_cargo_prints_it() {
        assert_eq!(minor("cargo 1.95.0 (f2d3ce0bd 2026-03-21)\n"), Some(95));
        assert_eq!(minor("cargo 1.89.0-beta.1"), Some(89));
        assert_eq!(minor("cargo"), None);
    }

    #[test]
    fn a_manifest_without_a_field_is_told() {
        let mut package = json!({ "name": "p" });
        for field in FIELDS {
            package[field] = json!("x");
        }
        package["keywords"] = json!([]);
        package["license"] = Value::Null;
        let missing: Vec<_> = missing_fields(&package).collect();
        assert_eq!(
            missing,
            [
                "p: its manifest has no keywords",
                "p: its manifest has no license"
            ]
        );
    }
}
