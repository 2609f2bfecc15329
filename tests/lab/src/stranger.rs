//! A stranger's program: the one of docs/embedding.md, in a crate outside of this workspace that depends on `ampoule-vmm` alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::project::Project;

const NAME: &str = "my-sandbox";

/// Writes the crate; the command that builds it, and the program that it makes.
///
/// # Errors
/// The document has no program, or the crate cannot be written.
pub(crate) fn build(project: &Project) -> Result<(Command, PathBuf)> {
    let folder = project.lab.join("stranger");
    let text = fs::read_to_string(project.root.join("docs/embedding.md"))
        .context("cannot read docs/embedding.md")?;
    let manifest = format!(
        "[package]\nname = \"{NAME}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n\
         [dependencies]\nampoule-vmm = {{ path = {:?} }}\n\n[workspace]\n",
        project.root.join("vmm")
    );
    fs::create_dir_all(folder.join("src"))?;
    write(&folder.join("Cargo.toml"), &manifest)?;
    write(&folder.join("src/main.rs"), program(&text)?)?;
    // The versions that are tested, which are here already.
    let lock = fs::read_to_string(project.root.join("Cargo.lock"))?;
    if !folder.join("Cargo.lock").exists() {
        write(&folder.join("Cargo.lock"), &lock)?;
    }
    let mut command = project.cargo();
    command.arg("build").current_dir(&folder);
    Ok((command, project.target.join("debug").join(NAME)))
}

/// The document's program.
fn program(text: &str) -> Result<&str> {
    let start = text.split_once("```rust\n").context("no program in it")?.1;
    Ok(start
        .split_once("```")
        .context("its program does not end")?
        .0)
}

/// Writes a file where it is not so already: cargo builds anew what is newer.
fn write(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
