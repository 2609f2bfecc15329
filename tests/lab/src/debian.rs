//! A Debian with systemd, as a person makes one: debootstrap(8), then an ext4 image of it, and an OCI archive.
//!
//! It comes from the mirror that this machine's apt uses, in this machine's release. Made once, by root, as debootstrap wants it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::packages::Packages;
use crate::project::{Project, run};
use crate::say;

/// The Debian packages of the programs that make it.
pub(crate) const PACKAGES: &[&str] = &["debootstrap", "e2fsprogs", "tar", "umoci"];

/// What the system has beyond the least: an init, what that needs to offer a login, and what users expect.
const INCLUDED: &str = "dbus,login,systemd-sysv,udev";

/// Changes with what is made.
const VERSION: &str = "1";

/// The folder of `debian.ext4` and `debian-oci.tar`, made where it is missing.
///
/// # Errors
/// A program is missing or fails; nobody here may become root.
pub(crate) fn get(project: &Project, packages: &Packages) -> Result<PathBuf> {
    let folder = project.lab.join(format!("debian-{VERSION}"));
    if !folder.exists() {
        let partial = folder.with_extension(format!("partial-{}", std::process::id()));
        fs::create_dir_all(&partial)
            .with_context(|| format!("cannot create {}", partial.display()))?;
        say::step("making a Debian system (debootstrap)", || {
            make(packages, &partial)
        })?;
        match fs::rename(&partial, &folder) {
            // Another run was faster.
            Err(_) if folder.exists() => fs::remove_dir_all(&partial).context("cannot tidy up")?,
            other => other.with_context(|| format!("cannot create {}", folder.display()))?,
        }
    }
    Ok(folder)
}

fn make(packages: &Packages, folder: &Path) -> Result<()> {
    let root = folder.join("root");
    let (mirror, suite) = mirror()?;
    let mut debootstrap = packages.as_root("debootstrap")?;
    debootstrap
        .args(["--variant=minbase", &format!("--include={INCLUDED}")])
        .arg(suite)
        .arg(&root)
        .arg(mirror);
    run(&mut debootstrap)?;
    // A login without a password; and what only this machine needs goes.
    let tidy = "sed -i 's/^root:[^:]*:/root::/' etc/shadow && echo capsule >etc/hostname && : >etc/machine-id && \
                rm -rf var/cache/apt/archives/*.deb var/lib/apt/lists/* etc/resolv.conf";
    let mut shell = packages.as_root("sh")?;
    run(shell.args(["-c", tidy]).current_dir(&root))?;
    let image = folder.join("debian.ext4");
    let mut mkfs = packages.as_root("mkfs.ext4")?;
    mkfs.args(["-q", "-F", "-L", "debian", "-d"]).arg(&root);
    run(mkfs.arg(&image).arg("1G"))?;
    let layout = folder.join("oci");
    let name = format!("{}:latest", layout.display());
    let words: [&[&str]; 4] = [
        &["init", "--layout", &layout.display().to_string()],
        &["new", "--image", &name],
        &["insert", "--image", &name, &root.display().to_string(), "/"],
        &["config", "--image", &name, "--config.cmd", "bash"],
    ];
    for words in words {
        run(packages.as_root("umoci")?.args(words))?;
    }
    let archive = folder.join("debian-oci.tar");
    let mut tar = packages.as_root("tar")?;
    tar.args(["--owner=0", "--group=0", "-C"]).arg(&layout);
    run(tar.arg("-cf").arg(&archive).arg("."))?;
    let mut remove = packages.as_root("rm")?;
    run(remove.arg("-rf").args([&root, &layout]))?;
    if !rustix::process::geteuid().is_root() {
        let mut own = packages.as_root("chown")?;
        let owner = rustix::process::geteuid().as_raw().to_string();
        run(own.arg(owner).args([&image, &archive]))?;
    }
    Ok(())
}

/// Where this machine's apt has its own release from, and the release's name.
fn mirror() -> Result<(String, String)> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let suite = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("/etc/os-release has no VERSION_CODENAME")?;
    let mut apt = Command::new("apt-get");
    apt.args([
        "indextargets",
        "--format",
        "$(RELEASE) $(COMPONENT) $(REPO_URI)",
    ]);
    let targets = run(apt.arg("Created-By: Packages").stdin(Stdio::null()))?;
    match uri(&String::from_utf8_lossy(&targets.stdout), suite) {
        Some(uri) => Ok((uri.to_owned(), suite.to_owned())),
        None => bail!("apt's sources have no {suite} main"),
    }
}

/// The address of a release's main component, out of lines with release, component and address.
fn uri<'a>(targets: &'a str, suite: &str) -> Option<&'a str> {
    targets.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [release, "main", uri] if release == suite => Some(uri),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_itself_is_found_among_its_updates() {
        let targets = "bookworm-updates main http://a/\nbookworm contrib http://b/\nbookworm main http://c/debian/\n";
        assert_eq!(uri(targets, "bookworm"), Some("http://c/debian/"));
        assert_eq!(uri(targets, "trixie"), None);
    }
}
