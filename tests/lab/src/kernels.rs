//! Debian's kernels: downloaded and unpacked, not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::packages::Packages;
use crate::project::{Project, run};
use crate::{modules, say};

/// Which of Debian's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Version {
    /// The one Debian 12 came with; its payload is compressed with lz4.
    #[value(name = "6.1")]
    V6_1,
    /// The newer one; zstd.
    #[value(name = "6.12")]
    V6_12,
}

impl Version {
    /// All of them.
    pub(crate) const ALL: [Self; 2] = [Self::V6_1, Self::V6_12];

    /// Its short name, which is also its folder's.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    /// The package that depends on the newest of this version.
    fn metapackage(self) -> &'static str {
        match self {
            Self::V6_1 => "linux-image-cloud-amd64",
            Self::V6_12 => "linux-image-6.12-cloud-amd64",
        }
    }
}

/// An unpacked kernel, in `kernels/VERSION` of the lab's folder: `vmlinuz`, `vmlinux` (the ELF file that was compressed in
/// it), and the `package`.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// The bzImage.
    pub(crate) bzimage: PathBuf,
    /// The folder of its modules.
    pub(crate) modules: PathBuf,
}

impl Kernel {
    /// The kernel, downloaded where it is not there yet.
    ///
    /// # Errors
    /// `apt-get` or another program fails, or the package is not as expected.
    pub(crate) fn get(project: &Project, packages: &Packages, version: Version) -> Result<Self> {
        let folder = project.lab.join("kernels").join(version.name());
        if !folder.exists() {
            say::step(
                &format!("fetching Debian's kernel {}", version.name()),
                || fetch(packages, version, &folder),
            )?;
        }
        let modules = only_entry(&folder.join("package/lib/modules"))?;
        Ok(Self {
            bzimage: folder.join("vmlinuz"),
            modules,
        })
    }

    /// The modules called `names` and those they need, in the order to load them.
    ///
    /// # Errors
    /// A file cannot be read or decompressed.
    pub(crate) fn modules(&self, names: &[&str]) -> Result<Vec<modules::Module>> {
        modules::find(&self.modules, names)
    }
}

/// Downloads and unpacks a kernel to `folder`, which appears when it is complete.
fn fetch(packages: &Packages, version: Version, folder: &Path) -> Result<()> {
    let partial = folder.with_extension(format!("partial-{}", std::process::id()));
    fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    let package = match package(version) {
        Ok(package) => package,
        Err(_) => {
            packages.update()?;
            package(version)?
        }
    };
    let download = |package: &str| {
        let mut apt = Command::new("apt-get");
        // Root's apt-get would hand the download to a user who may not write here.
        apt.args(["-o", "APT::Sandbox::User=root", "-qq", "download"]);
        run(apt.arg(package).current_dir(&partial).stdin(Stdio::null()))
    };
    if download(&package).is_err() {
        // The lists may be older than the newest kernel.
        packages.update()?;
        download(&package)?;
    }
    let archive = only_entry(&partial)?;
    let unpacked = partial.join("package");
    run(Command::new("dpkg-deb")
        .arg("--extract")
        .arg(&archive)
        .arg(&unpacked))?;
    fs::remove_file(&archive).context("cannot remove the package file")?;
    let release = only_entry(&unpacked.join("lib/modules"))?;
    let release = release.file_name().unwrap_or_default().to_string_lossy();
    let bzimage = partial.join("vmlinuz");
    fs::rename(unpacked.join(format!("boot/vmlinuz-{release}")), &bzimage)
        .context("the package holds no kernel")?;
    let payload = partial.join("payload");
    let decompressor = extract_payload(&bzimage, &payload)?;
    let vmlinux = fs::File::create(partial.join("vmlinux")).context("cannot write vmlinux")?;
    // By a program of its own, for what ampoule does itself is to be compared with this.
    let output = Command::new(decompressor)
        .args(["-q", "-d", "-c"])
        .arg(&payload)
        .stdin(Stdio::null())
        .stdout(vmlinux)
        .output()
        .with_context(|| format!("cannot run {decompressor}"))?;
    if !output.status.success() {
        bail!(
            "{decompressor} could not decompress the kernel: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    fs::remove_file(&payload).context("cannot remove the payload file")?;
    match fs::rename(&partial, folder) {
        // Another run was faster.
        Err(_) if folder.exists() => fs::remove_dir_all(&partial).context("cannot tidy up"),
        other => other.with_context(|| format!("cannot create {}", folder.display())),
    }
}

/// The kernel package that the metapackage depends on.
fn package(version: Version) -> Result<String> {
    let metapackage = version.metapackage();
    let mut show = Command::new("apt-cache");
    show.args(["show", "--no-all-versions", metapackage]);
    let output = run(&mut show).with_context(|| format!("apt knows no package {metapackage}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    dependency(&text)
        .map(str::to_owned)
        .with_context(|| format!("package {metapackage} depends on no kernel"))
}

/// The kernel named in the `Depends` field of a package's description.
fn dependency(description: &str) -> Option<&str> {
    let field = description
        .lines()
        .find_map(|line| line.strip_prefix("Depends:"))?;
    field
        .split(',')
        .filter_map(|word| word.split_whitespace().next())
        .find(|word| word.starts_with("linux-image-"))
}

/// The one entry of a folder.
fn only_entry(folder: &Path) -> Result<PathBuf> {
    let mut entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let entry = entries
        .next()
        .with_context(|| format!("nothing in {}", folder.display()))?;
    Ok(entry?.path())
}

/// Writes a bzImage's compressed kernel to `payload`, and names the program that decompresses it.
///
/// The x86 boot protocol 2.08 (Linux `Documentation/arch/x86/boot.rst`): `payload_offset` and `payload_length`, counted
/// from the end of the set-up sectors. The last 4 bytes of the payload are the kernel's size, which decompressors do not
/// expect.
fn extract_payload(bzimage: &Path, payload: &Path) -> Result<&'static str> {
    let image = fs::read(bzimage).with_context(|| format!("cannot read {}", bzimage.display()))?;
    let field = |offset: usize| -> Option<usize> {
        let bytes = image.get(offset..offset + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes) as usize)
    };
    let compressed = || {
        let setup_sectors = usize::from(*image.get(0x1f1)?);
        let start = (setup_sectors + 1) * 512 + field(0x248)?;
        image.get(start..start + field(0x24c)?.checked_sub(4)?)
    };
    let compressed =
        compressed().with_context(|| format!("{} is no bzImage", bzimage.display()))?;
    let decompressor = match compressed {
        [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        _ => bail!("{} is compressed in an unexpected way", bzimage.display()),
    };
    fs::write(payload, compressed)
        .with_context(|| format!("cannot write {}", payload.display()))?;
    Ok(decompressor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metapackage_names_its_kernel() {
        let text = "Package: linux-image-cloud-amd64\nDepends: something, linux-image-6.1.0-9-cloud-amd64 (= 6.1.27-1)\n";
        assert_eq!(dependency(text), Some("linux-image-6.1.0-9-cloud-amd64"));
        assert_eq!(dependency("Package: x\n"), None);
    }
}
