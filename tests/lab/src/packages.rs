//! The Debian packages the lab needs: installed where missing, by root or sudo.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::project::{Project, run};
use crate::say;

/// What making a guest and a lab host needs in any case: their programs, their kernels' decompressors.
pub(crate) const BASE: &[&str] = &["busybox-static", "lz4", "xz-utils", "zstd"];

/// Debian's package lists as this run sees them.
#[derive(Debug)]
pub(crate) struct Packages {
    /// What leads to root rights: nothing for root, `sudo -n` where that works.
    privilege: Option<Vec<&'static str>>,
    lists: PathBuf,
}

impl Packages {
    /// Looks at this machine.
    ///
    /// # Errors
    /// It is no Debian machine.
    pub(crate) fn new(project: &Project) -> Result<Self> {
        if !Path::new("/usr/bin/dpkg-query").exists() {
            bail!("no dpkg-query: the lab is made from Debian packages");
        }
        let sudo = || {
            let mut sudo = Command::new("sudo");
            sudo.args(["-n", "true"]).stderr(Stdio::null());
            sudo.stdin(Stdio::null());
            sudo.status().is_ok_and(|status| status.success())
        };
        let privilege = if rustix::process::geteuid().is_root() {
            Some(Vec::new())
        } else {
            sudo().then(|| vec!["sudo", "-n"])
        };
        Ok(Self {
            privilege,
            lists: project.lab.join("package-lists-fetched"),
        })
    }

    /// Installs those of `packages` that are missing.
    ///
    /// # Errors
    /// `apt-get` fails, or nobody here may run it; the message names the packages.
    pub(crate) fn ensure(&self, packages: &[&str]) -> Result<()> {
        let missing = missing(packages)?;
        if missing.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = missing.into_iter().collect();
        let names_line = names.join(" ");
        if self.privilege.is_none() {
            bail!("missing Debian packages; as root: apt-get install {names_line}");
        }
        self.update()?;
        say::step(&format!("installing {names_line}"), || {
            let mut install = self.apt()?;
            install.args(["install", "-qq", "--no-install-recommends"]);
            run(install.args(&names)).map(drop)
        })
    }

    /// Fetches the package lists where no run did so before.
    ///
    /// # Errors
    /// `apt-get` fails.
    pub(crate) fn update(&self) -> Result<()> {
        if self.lists.exists() {
            return Ok(());
        }
        say::step("fetching package lists", || {
            run(self.apt()?.args(["update", "-qq"])).map(drop)
        })?;
        let folder = self.lists.parent().context("no folder for the lab")?;
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&self.lists, ""))
            .with_context(|| format!("cannot write {}", self.lists.display()))
    }

    fn apt(&self) -> Result<Command> {
        let privilege = self
            .privilege
            .as_deref()
            .context("apt-get needs root, or sudo without a password")?;
        // A machine that has just started may be installing something else.
        let words = [
            "env",
            "DEBIAN_FRONTEND=noninteractive",
            "apt-get",
            "-y",
            "-o",
            "DPkg::Lock::Timeout=600",
        ];
        let mut words = privilege.iter().chain(&words);
        let mut command = Command::new(words.next().context("no command")?);
        command.args(words).stdin(Stdio::null());
        Ok(command)
    }
}

/// Those of `packages` that are not installed.
fn missing<'a>(packages: &[&'a str]) -> Result<BTreeSet<&'a str>> {
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Abbrev}${Package}\n"])
        .args(packages)
        .stderr(Stdio::null()) // names the packages it never heard of
        .output()
        .context("cannot run dpkg-query")?;
    let listing = String::from_utf8_lossy(&output.stdout);
    let installed: BTreeSet<&str> = listing.lines().filter_map(installed).collect();
    Ok(packages
        .iter()
        .copied()
        .filter(|package| !installed.contains(package))
        .collect())
}

/// The package's name, where this line says that it is installed.
fn installed(line: &str) -> Option<&str> {
    line.strip_prefix("ii ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_installed_packages_count() {
        assert_eq!(installed("ii bash"), Some("bash"));
        assert_eq!(installed("rc qemu-system-x86"), None);
        assert_eq!(installed("un sudo"), None);
    }

    #[test]
    fn what_dpkg_never_heard_of_is_missing() {
        let missing = missing(&["dpkg", "no-such-package-anywhere"]).unwrap();
        assert_eq!(Vec::from_iter(missing), ["no-such-package-anywhere"]);
    }
}
