//! The Debian packages the lab needs: installed where missing, by root or sudo.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::project::{Project, run};
use crate::say;

/// What making a guest and a lab host needs in any case: their programs, their kernels' decompressors.
pub(crate) const BASE: &[&str] = &["busybox-static", "lz4", "xz-utils", "zstd"];

/// How packages are installed: nobody's others go for them.
const INSTALL: &[&str] = &["install", "--no-install-recommends", "--no-remove"];

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
        let others = self.in_their_way(&names)?;
        for other in &others {
            say::say(format!(
                "{other} takes the place of a newer one that does not go with them"
            ));
        }
        say::step(&format!("installing {names_line}"), || {
            let mut install = self.apt()?;
            install.args(INSTALL).args(["-qq", "--allow-downgrades"]);
            run(install.args(&names).args(&others)).map(drop)
        })
    }

    /// What apt would remove for these packages, as the versions to have instead, `NAME=VERSION`: a package of a machine that is not of its
    /// distribution (a backport, say) may not go with what is. Nothing is removed.
    fn in_their_way(&self, names: &[&str]) -> Result<Vec<String>> {
        let mut simulation = Command::new("apt-get");
        simulation.arg("--simulate");
        simulation.args(["install", "--no-install-recommends"]);
        let output = run(simulation.args(names))?;
        let removed: Vec<(String, String)> = String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(removed)
            .collect();
        let other = |(name, version): &(String, String)| {
            let output = run(Command::new("apt-cache").args(["madison", name]))?;
            let listing = String::from_utf8_lossy(&output.stdout);
            let mut known = listing.lines().filter_map(known_version);
            let other = known.find(|it| it != version);
            let other = other.with_context(|| {
                format!(
                    "apt would remove {name} {version} to install {}: remove it yourself if you \
                     can do without it",
                    names.join(" ")
                )
            })?;
            Ok(format!("{name}={other}"))
        };
        removed.iter().map(other).collect()
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

    /// A program that root is to run. Where root's programs are is where it is looked for.
    ///
    /// # Errors
    /// Nobody here may become root.
    pub(crate) fn as_root(&self, program: &str) -> Result<Command> {
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        self.privileged(program, &["env", path, program])
    }

    fn apt(&self) -> Result<Command> {
        // A machine that has just started may be installing something else.
        let words = [
            "env",
            "DEBIAN_FRONTEND=noninteractive",
            "apt-get",
            "-y",
            "-o",
            "DPkg::Lock::Timeout=600",
        ];
        self.privileged("apt-get", &words)
    }

    /// A command of these words, with root's rights.
    fn privileged(&self, program: &str, words: &[&str]) -> Result<Command> {
        let privilege = self
            .privilege
            .as_deref()
            .with_context(|| format!("{program} needs root, or sudo without a password"))?;
        let mut words = privilege.iter().chain(words);
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

/// The package and the version that apt says it would remove: `Remv NAME [VERSION]`.
fn removed(line: &str) -> Option<(String, String)> {
    let mut words = line.strip_prefix("Remv ")?.split_whitespace();
    let (name, version) = (words.next()?, words.next()?);
    let version = version.strip_prefix('[')?.strip_suffix(']')?;
    Some((name.to_owned(), version.to_owned()))
}

/// The version in a line of `apt-cache madison`: `NAME | VERSION | WHERE`.
fn known_version(line: &str) -> Option<String> {
    Some(line.split('|').nth(1)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_would_remove_is_understood() {
        let line = "Remv qemu-utils [1:10.0.2+ds-2] [qemu-system-common:amd64 ]";
        let expected = ("qemu-utils".to_owned(), "1:10.0.2+ds-2".to_owned());
        assert_eq!(removed(line), Some(expected));
        assert_eq!(removed("Inst qemu-system-x86 (1:7.2 Debian)"), None);
        let line = "qemu-utils | 1:7.2+dfsg-7 | http://deb.example bookworm/main amd64 Packages";
        assert_eq!(known_version(line).as_deref(), Some("1:7.2+dfsg-7"));
    }

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
