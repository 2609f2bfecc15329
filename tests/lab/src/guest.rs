//! `cargo lab boot`: a Debian kernel and busybox in Ampoule, to a shell, or for one command.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::cpio::Archive;
use crate::frame::Stream;
use crate::host::{Cpu, HostConfig};
use crate::kernels::{Kernel, Version};
use crate::packages::{self, Packages};
use crate::project::{Project, can_run_linux};
use crate::shared::Session;
use crate::{agent, client, say};

/// What a guest needs that Debian builds as modules: the power button and who hears it, and the panic device.
const MODULES: &[&str] = &["button", "evdev", "pvpanic-mmio"];

/// What the init script says before and after a command's output.
const BEGIN: &[u8] = b"lab-begin\n";
const EXIT: &[u8] = b"\nlab-exit ";

/// Which guest, and where.
#[derive(Debug, Args)]
pub(crate) struct BootArgs {
    /// The guest's kernel
    #[arg(long, value_enum, default_value = "6.1")]
    kernel: Version,
    /// Its processors
    #[arg(long, default_value_t = 1, value_name = "N")]
    cpus: u32,
    /// Its memory
    #[arg(long, default_value = "512M", value_name = "SIZE")]
    memory: String,
    /// Boot in the lab host with this virtualization, even where this machine's own KVM would do
    #[arg(long, value_enum)]
    cpu: Option<Cpu>,
    /// A command to run in the guest instead of a shell
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Boots a guest; its command's exit status.
///
/// # Errors
/// Something is missing, or does not build or start.
pub(crate) fn boot(project: &Project, packages: &Packages, arguments: &BootArgs) -> Result<i32> {
    packages.ensure(packages::BASE)?;
    project.build_to_boot()?;
    let direct = arguments.cpu.is_none() && can_run_linux(project)?;
    let kernel = Kernel::get(project, packages, arguments.kernel)?;
    let initrd = Initrd::make(project, &kernel, &arguments.command)?;
    let line = ampoule_run(project, &kernel, &initrd.0, arguments);
    if direct {
        say::say("booting on this machine's own KVM");
        return boot_here(project, line, !arguments.command.is_empty());
    }
    let cpu = arguments.cpu.unwrap_or_default();
    say::say(format!(
        "booting inside the lab host ({}), for this machine's own KVM cannot run Linux",
        cpu.name()
    ));
    let config = HostConfig {
        paths: vec![kernel.bzimage.clone(), initrd.0.clone()],
        ..HostConfig::of(cpu)
    };
    let session = Session::open(project, packages, &config, false)?;
    if arguments.command.is_empty() {
        let spec = client::spec(line, &project.programs(), client::terminal_size())?;
        return Ok(session.run(spec, client::run_attached)?.status());
    }
    let spec = client::spec(line, &project.programs(), None)?;
    let mut filter = Filter::default();
    let exit = session.run(spec, |connection, spec| {
        client::run_listening(connection, spec, &mut |stream, bytes| {
            filter.pass(stream, bytes)
        })
    })?;
    Ok(filter.status(exit.status()))
}

fn boot_here(project: &Project, line: Vec<OsString>, command: bool) -> Result<i32> {
    if !command {
        let error = Command::new(&line[0]).args(&line[1..]).exec();
        return Err(error).context("cannot run ampoule");
    }
    let spec = client::spec(line, &project.programs(), None)?;
    let mut filter = Filter::default();
    let exit = client::run_listening(agent::local()?.connect()?, &spec, &mut |stream, bytes| {
        filter.pass(stream, bytes)
    })?;
    Ok(filter.status(exit.status()))
}

fn ampoule_run(
    project: &Project,
    kernel: &Kernel,
    initrd: &Path,
    arguments: &BootArgs,
) -> Vec<OsString> {
    let cpus = arguments.cpus.to_string();
    let mut line: Vec<OsString> = vec![project.ampoule().into(), "run".into()];
    for (flag, value) in [
        ("--kernel", kernel.bzimage.as_os_str()),
        ("--initrd", initrd.as_os_str()),
        ("--cpus", OsStr::new(&cpus)),
        ("--memory", OsStr::new(&arguments.memory)),
    ] {
        line.extend([OsStr::new(flag).to_owned(), value.to_owned()]);
    }
    if !arguments.command.is_empty() {
        line.extend(["--append".into(), "quiet".into()]);
    }
    line
}

/// A guest's initramfs, removed when dropped.
struct Initrd(PathBuf);

impl Initrd {
    fn make(project: &Project, kernel: &Kernel, command: &[OsString]) -> Result<Self> {
        let folder = project.lab.join("run");
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let path = folder.join(format!("guest-{}.cpio", std::process::id()));
        let archive = initramfs(kernel, command)?;
        let initrd = Self(path);
        fs::write(&initrd.0, archive)
            .with_context(|| format!("cannot write {}", initrd.0.display()))?;
        Ok(initrd)
    }
}

impl Drop for Initrd {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn initramfs(kernel: &Kernel, command: &[OsString]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in [
        "bin",
        "dev",
        "etc",
        "etc/acpi",
        "etc/acpi/PWRF",
        "lib",
        "proc",
        "root",
        "sys",
        "tmp",
    ] {
        archive.folder(folder);
    }
    let busybox = fs::read("/bin/busybox").context("cannot read /bin/busybox")?;
    archive.file("bin/busybox", true, &busybox);
    archive.file("init", true, include_bytes!("guest/init.sh"));
    archive.file("etc/passwd", false, b"root:x:0:0:root:/root:/bin/sh\n");
    archive.file(
        "etc/acpi/PWRF/00000080",
        true,
        b"#!/bin/sh\nexec poweroff -f\n",
    );
    let mut order = String::new();
    for module in kernel.modules(MODULES)? {
        archive.file(&format!("lib/{}.ko", module.name), false, &module.content);
        order.push_str(&format!("{}\n", module.name));
    }
    archive.file("lib/order", false, order.as_bytes());
    if !command.is_empty() {
        archive.file("command", false, &script(command));
    }
    Ok(archive.finish())
}

/// A shell script that becomes `command`.
fn script(command: &[OsString]) -> Vec<u8> {
    let mut script = b"exec".to_vec();
    for argument in command {
        script.extend(b" '");
        for byte in argument.as_encoded_bytes() {
            match byte {
                b'\'' => script.extend(br"'\''"),
                byte => script.push(*byte),
            }
        }
        script.push(b'\'');
    }
    script.push(b'\n');
    script
}

/// Finds a command's output in what a guest's console says.
#[derive(Debug, Default)]
struct Filter {
    /// What is not yet decided on: before the command's output all there is, then what may be part of a mark.
    held: Vec<u8>,
    begun: bool,
    status: Option<i32>,
}

impl Filter {
    /// Passes on what is the command's.
    fn pass(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        if stream == Stream::Error {
            return io::stderr().write_all(bytes);
        }
        let mut output = io::stdout().lock();
        output.write_all(&self.take(bytes))?;
        output.flush()
    }

    /// The exit status: the command's, or `otherwise` where the guest did not get so far; then what its console said is
    /// worth seeing.
    fn status(&self, otherwise: i32) -> i32 {
        if let Some(status) = self.status {
            return status;
        }
        // Nobody may be left to see it.
        let _ = io::stderr().write_all(&self.held);
        if otherwise == 0 {
            say::say("error: the guest ended before its command");
            return 125;
        }
        otherwise
    }

    fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend(bytes);
        if !self.begun {
            let Some(position) = find(&self.held, BEGIN) else {
                return Vec::new();
            };
            self.held.drain(..position + BEGIN.len());
            self.begun = true;
        }
        if self.status.is_some() {
            return Vec::new();
        }
        let Some(position) = find(&self.held, EXIT) else {
            // All but what may become a mark.
            let keep = (1..EXIT.len())
                .rev()
                .find(|length| self.held.ends_with(&EXIT[..*length]));
            let end = self.held.len() - keep.unwrap_or(0);
            return self.held.drain(..end).collect();
        };
        let rest = &self.held[position + EXIT.len()..];
        if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let number = String::from_utf8_lossy(&rest[..end]);
            self.status = number.trim().parse().ok();
        }
        self.held.drain(..position).collect()
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The filter's output and status, for a console that gives `step` bytes at a time.
    fn filter(console: &[u8], step: usize) -> (Vec<u8>, Option<i32>) {
        let mut filter = Filter::default();
        let output = console
            .chunks(step)
            .flat_map(|bytes| filter.take(bytes))
            .collect();
        (output, filter.status)
    }

    #[test]
    fn the_commands_output_lies_between_the_marks() {
        let console =
            b"[ 0.0] Linux\r\nlab-begin\none\nlab-\n\nlab-exi\ntwo\n\nlab-exit 42\nreboot: Power down\r\n";
        for step in 1..=console.len() {
            let expected = (b"one\nlab-\n\nlab-exi\ntwo\n".to_vec(), Some(42));
            assert_eq!(filter(console, step), expected, "{step}");
        }
    }

    #[test]
    fn a_last_line_that_is_not_complete_stays_so() {
        let console = b"lab-begin\nno newline\nlab-exit 0\n";
        assert_eq!(filter(console, 1), (b"no newline".to_vec(), Some(0)));
    }

    #[test]
    fn a_guest_that_ends_early_has_no_status() {
        let console = b"lab-begin\nso far\nKernel panic\n";
        let (output, status) = filter(console, 3);
        assert_eq!(status, None);
        assert!(output.starts_with(b"so far\nKernel panic"));
        assert_eq!(filter(b"Kernel panic\n", 3), (Vec::new(), None));
    }

    #[test]
    fn a_command_keeps_its_arguments() {
        let command: Vec<OsString> = ["printf", "%s-", "it's", "a b", "$HOME", "*"]
            .map(OsString::from)
            .into();
        let output = Command::new("sh")
            .arg("-c")
            .arg(OsStr::new(std::str::from_utf8(&script(&command)).unwrap()))
            .output()
            .unwrap();
        assert_eq!(output.stdout, b"it's-a b-$HOME-*-");
    }
}
