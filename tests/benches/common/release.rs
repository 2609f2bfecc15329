//! The binary under measurement.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The binary as a user has it, in `folder`: a copy, as `cargo install` makes one. What the linker writes piece by piece, the page
/// cache keeps in small pieces, and the program takes more page faults to come in.
#[allow(dead_code, reason = "only a start is measured so closely")]
pub(crate) fn installed(folder: &Path) -> Result<PathBuf> {
    let copy = folder.join("ampoule");
    std::fs::copy(binary()?, &copy).context("cannot copy the binary")?;
    Ok(copy)
}

/// The release build of this tree, made if need be, or what `AMPOULE_BIN` names.
pub(crate) fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("AMPOULE_BIN") {
        return Ok(path.into());
    }
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What cargo tells a bench of its package would have build scripts that look at the same variables run again.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    let output = cargo
        .args(["build", "--release", "--package", "ampoule"])
        .args(["--message-format", "json-render-diagnostics"])
        .arg("--manifest-path")
        .arg(manifest)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "cargo build failed");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .find(|path| path.file_name().is_some_and(|name| name == "ampoule"))
        .context("cargo built no `ampoule`")
}
