//! `cargo lab bench`: a Linux guest under Ampoule and under QEMU, in turns, where a KVM can run them (`tests/benches/peers.rs`).

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::host::{Cpu, HostConfig};
use crate::kernels::{Kernel, Version};
use crate::packages::Packages;
use crate::project::{Project, can_run_linux, run};
use crate::shared::Session;
use crate::suite::{BINARY, KERNELS, TOOLS};
use crate::{client, exec_here, say, tools};

/// Runs it with these arguments; its exit status.
///
/// # Errors
/// Something is missing, or does not build or start.
pub(crate) fn bench(
    project: &Project,
    packages: &Packages,
    config: &HostConfig,
    arguments: Vec<OsString>,
) -> Result<i32> {
    // QEMU is the peer, and makes the lab host.
    packages.ensure(&[&Cpu::Amd.packages(), tools::PACKAGES].concat())?;
    let tools = tools::image(project)?;
    for version in Version::ALL {
        Kernel::get(project, packages, version)?;
    }
    project.build_ampoule()?;
    let mut line = vec![program(project)?.into_os_string(), "--bench".into()];
    line.extend(arguments);
    let mut spec = client::spec(line, &project.programs(), None)?;
    for (name, value) in [
        (BINARY, project.ampoule()),
        (KERNELS, project.lab.join("kernels")),
        (TOOLS, tools),
    ] {
        spec.environment.push((name.into(), value.into()));
    }
    if can_run_linux(project)? {
        return exec_here(&spec);
    }
    say::say("measuring in the lab host: an emulated machine, of which only ratios say anything");
    let session = Session::open(project, packages, config, false)?;
    Ok(session.run(spec, client::run_attached)?.status())
}

/// The program, built; what it measures is a release build, it itself need not be.
fn program(project: &Project) -> Result<PathBuf> {
    let mut command = project.cargo();
    command.args(["test", "--package", "ampoule-tests", "--bench", "peers"]);
    command.args([
        "--no-run",
        "--quiet",
        "--message-format",
        "json-render-diagnostics",
    ]);
    let output = run(&mut command)?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "peers")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo built no such program")
}
