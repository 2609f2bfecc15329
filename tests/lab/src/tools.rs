//! Programs of this machine for Linux guests, with the libraries they need: an ext4 image that a guest mounts read-only at /usr.
//!
//! Made once, and again when one of the files has changed. An image costs a guest what it reads of it; in an initramfs all of it
//! would have to be unpacked first, and fio alone comes with 80 MB of libraries.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::project::{Project, run};
use crate::say;

/// The Debian packages of these programs, and of those that tests run on the host.
pub(crate) const PACKAGES: &[&str] = &[
    "dmsetup",
    "docker-registry",
    "e2fsprogs",
    "erofs-utils",
    "fdisk",
    "ethtool",
    "fio",
    "iperf3",
    "iputils-ping",
    "mount",
    "passt",
    "python3-junitparser",
    "qemu-utils",
    "skopeo",
    "strace",
    "umoci",
    "util-linux",
    "xfsprogs",
];

/// The programs, in /usr/bin of the image.
const PROGRAMS: &[&str] = &[
    "blkdiscard",
    "ethtool",
    "fio",
    "fsck.ext4",
    "fstrim",
    "iperf3",
    "mkfs.ext4",
    "mkfs.xfs",
    "ping",
    "xfs_repair",
];

const FOLDERS: &[&str] = &["/usr/bin", "/usr/sbin", "/bin", "/sbin"];

/// What `mkfs.ext4` reads; a guest needs it in /etc.
const MKE2FS_CONF: &str = "/etc/mke2fs.conf";

const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// The image, made where it is missing or old.
///
/// # Errors
/// A program is missing, or the image cannot be made.
pub(crate) fn image(project: &Project) -> Result<PathBuf> {
    let image = project.lab.join("tools.ext4");
    let listing = project.lab.join("tools.list");
    let files = files()?;
    let current = describe(&files)?;
    let is_current = fs::read_to_string(&listing).is_ok_and(|old| old == current);
    if !(is_current && image.exists()) {
        say::step("making an image of tools for guests", || {
            make(&files, &image)
        })?;
        fs::write(&listing, current)
            .with_context(|| format!("cannot write {}", listing.display()))?;
    }
    Ok(image)
}

/// This machine's files by their places in the image.
fn files() -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    files.insert("share/mke2fs.conf".into(), MKE2FS_CONF.into());
    for name in PROGRAMS {
        let program = FOLDERS
            .iter()
            .map(|folder| Path::new(folder).join(name))
            .find(|path| path.exists())
            .with_context(|| format!("no program {name}"))?;
        // The loader loads the program to see what it needs, and does not start it.
        let mut list = Command::new(LOADER);
        let output = run(list.arg("--list").arg(&program).stdin(Stdio::null()))?;
        for library in libraries(&String::from_utf8_lossy(&output.stdout)) {
            files.insert(place(library), library.into());
        }
        files.insert(format!("bin/{name}"), program);
    }
    Ok(files)
}

/// The files in the loader's list: `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the loader itself.
fn libraries(list: &str) -> impl Iterator<Item = &str> {
    list.lines()
        .flat_map(str::split_whitespace)
        .filter(|word| word.starts_with('/'))
}

/// Where a library lies below /usr, which is where Debian has all of them by now.
fn place(library: &str) -> String {
    let below = library.strip_prefix("/usr/").unwrap_or(library);
    below.trim_start_matches('/').to_owned()
}

/// By this it is seen whether the image is still good.
fn describe(files: &BTreeMap<String, PathBuf>) -> Result<String> {
    let mut text = String::new();
    for (place, path) in files {
        let metadata =
            fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        let (len, time) = (metadata.len(), metadata.mtime());
        writeln!(text, "{place} {} {len} {time}", path.display())?;
    }
    Ok(text)
}

fn make(files: &BTreeMap<String, PathBuf>, image: &Path) -> Result<()> {
    let partial = image.with_extension(format!("partial-{}", std::process::id()));
    let folder = image.with_extension(format!("folder-{}", std::process::id()));
    let made = fill(files, &folder, &partial);
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    made?;
    fs::rename(&partial, image).with_context(|| format!("cannot write {}", image.display()))
}

fn fill(files: &BTreeMap<String, PathBuf>, folder: &Path, image: &Path) -> Result<()> {
    let mut bytes = 0;
    for (place, path) in files {
        let copy = folder.join(place);
        let parent = copy.parent().unwrap_or(folder);
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
        bytes +=
            fs::copy(path, &copy).with_context(|| format!("cannot copy {}", path.display()))?;
    }
    let mib = bytes / (1 << 20) * 11 / 10 + 8;
    let mut mkfs = Command::new("/sbin/mkfs.ext4");
    mkfs.args(["-q", "-F", "-m", "0", "-O", "^has_journal", "-d"])
        .arg(folder)
        .arg(image)
        .arg(format!("{mib}M"));
    run(mkfs.stdin(Stdio::null())).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_the_loaders_list() {
        let list = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f1e)\n\
                    \tlibc.so.6 => /usr/lib/x86_64-linux-gnu/libc.so.6 (0x00007f1d)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f1f)\n";
        let places: Vec<String> = libraries(list).map(place).collect();
        assert_eq!(
            places,
            [
                "lib/x86_64-linux-gnu/libz.so.1",
                "lib/x86_64-linux-gnu/libc.so.6",
                "lib64/ld-linux-x86-64.so.2"
            ]
        );
    }
}
