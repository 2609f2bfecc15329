//! The Intel lab host's file tree: a selection of the machine's own files under their own names, as
//! an ext4 image.
//!
//! Bochs has no way to share a folder, and a whole root folder may be tens of gigabytes. So the
//! tree holds what tests and shells need: basic programs with their shared libraries, and what the
//! caller names. It is staged with hard links where possible.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Debian packages whose programs are in every tree, where the machine has them.
const PACKAGES: &str = "\
     bash busybox-static coreutils cpio dash debianutils diffutils e2fsprogs findutils gawk grep gzip \
     hostname iproute2 kmod less lz4 mawk mount ncurses-bin procps sed strace tar util-linux \
     xz-utils zstd";

/// Files and folders programs look for; those that exist are in every tree.
const COMMON: &str = "\
     /bin /lib /lib64 /sbin /etc/alternatives /etc/bash.bashrc /etc/group /etc/hosts \
     /etc/inputrc /etc/ld.so.cache /etc/ld.so.conf /etc/ld.so.conf.d /etc/localtime \
     /etc/nsswitch.conf /etc/passwd /etc/profile /etc/resolv.conf /etc/shells /etc/terminfo \
     /lib/terminfo /usr/lib/locale/C.utf8";

/// Marks a folder that can be made again: cargo's target folder carries it, and so does the lab's
/// own. Such folders are left out unless a path inside is named.
const CACHE_TAG: &str = "CACHEDIR.TAG";

/// The most bytes a folder may hold that is added with all it holds: a few seconds of copying.
const LARGEST_FOLDER: u64 = 1 << 30;

/// A set of paths of this machine, closed under what opening them needs: parent folders, targets of
/// symbolic links, and (for programs) interpreters and shared libraries.
#[derive(Debug, Default)]
pub(super) struct FileSet {
    paths: BTreeSet<PathBuf>,
    programs: BTreeSet<PathBuf>,
}

impl FileSet {
    /// The basic programs and settings.
    ///
    /// # Errors
    /// `dpkg-query` cannot be run.
    pub(super) fn base() -> Result<Self> {
        let mut set = Self::default();
        for path in COMMON.split_whitespace() {
            let path = Path::new(path);
            // The merged-usr links and folders of settings; not what hangs below /lib.
            if path.is_dir() && path.parent() == Some(Path::new("/")) {
                set.insert_name(path);
            } else {
                set.add(path);
            }
        }
        let listing = Command::new("dpkg-query")
            .arg("--listfiles")
            .args(PACKAGES.split_whitespace())
            .stderr(Stdio::null()) // names the packages that are not installed
            .output()
            .context("cannot run dpkg-query")?;
        for line in listing.stdout.split(|byte| *byte == b'\n') {
            let path = Path::new(OsStr::from_bytes(line));
            if path
                .parent()
                .and_then(Path::file_name)
                .is_some_and(|folder| folder == "bin" || folder == "sbin")
            {
                set.add(path);
            }
        }
        Ok(set)
    }

    /// Adds the file `path`, or the folder with what it holds, under its absolute name. What does
    /// not exist is not added; of a folder that holds more than [`LARGEST_FOLDER`], only the name,
    /// and the answer is `false`.
    pub(super) fn add(&mut self, path: &Path) -> bool {
        let Some(real) = self.insert_name(path) else {
            return true;
        };
        let Ok(metadata) = fs::metadata(&real) else {
            return true;
        };
        if metadata.is_dir() {
            let mut content = Self::default();
            let mut room = LARGEST_FOLDER;
            if content
                .add_folder(&real, metadata.dev(), &mut room)
                .is_none()
            {
                return false;
            }
            self.paths.append(&mut content.paths);
            self.programs.append(&mut content.programs);
        } else if metadata.is_file() && is_program(&real) {
            self.programs.insert(real);
        }
        true
    }

    /// Adds what `folder` on file system `device` holds, or stops with `None` when it takes more
    /// than `room` bytes.
    fn add_folder(&mut self, folder: &Path, device: u64, room: &mut u64) -> Option<()> {
        let Ok(entries) = fs::read_dir(folder) else {
            return Some(());
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.is_dir() {
                self.paths.insert(path.clone());
                let skipped = entry.file_name() == ".git"
                    || metadata.dev() != device
                    || path.join(CACHE_TAG).exists();
                if !skipped {
                    self.add_folder(&path, device, room)?;
                }
            } else if metadata.is_symlink() {
                // A link to a folder brings its name only, or one link to / would bring everything.
                match fs::metadata(&path) {
                    Ok(target) if target.is_file() => drop(self.add(&path)),
                    _ => drop(self.insert_name(&path)),
                }
            } else if metadata.is_file() {
                // A small file takes a block and an inode.
                *room = room.checked_sub(metadata.len() + 4096)?;
                self.add(&path);
            }
        }
        Some(())
    }

    /// Adds the names on the way to `path`: parent folders, links and what they point to, the last
    /// component itself. Returns the path without links, or nothing where it does not exist.
    fn insert_name(&mut self, path: &Path) -> Option<PathBuf> {
        let absolute = std::path::absolute(path).ok()?;
        let mut rest: Vec<OsString> = components(&absolute).rev().collect();
        let mut real = PathBuf::from("/");
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == ".." {
                real.pop();
                continue;
            }
            let next = real.join(&name);
            let metadata = fs::symlink_metadata(&next).ok()?;
            self.paths.insert(next.clone());
            if metadata.is_symlink() {
                links += 1;
                if links > 40 {
                    return None; // as many as the kernel follows
                }
                let target = fs::read_link(&next).ok()?;
                if target.is_absolute() {
                    real = PathBuf::from("/");
                }
                rest.extend(components(&target).rev());
            } else {
                real = next;
            }
        }
        Some(real)
    }

    /// Adds what the dynamic loader would open for the programs added so far.
    fn add_libraries(&mut self) -> Result<()> {
        let programs: Vec<PathBuf> = std::mem::take(&mut self.programs).into_iter().collect();
        // In batches, for the length of a command line is limited.
        for batch in programs.chunks(500) {
            let output = Command::new("ldd")
                .args(batch)
                .stderr(Stdio::null())
                .output()
                .context("cannot run ldd")?;
            for line in output.stdout.split(|byte| *byte == b'\n') {
                if let Some(path) = library(line) {
                    self.add(&path);
                }
            }
        }
        self.programs.clear();
        Ok(())
    }

    /// Writes the set, with the shared libraries of its programs, as an ext4 file system image to
    /// `image`. `staging` is a folder of its own, emptied first; on the same file system as the
    /// files, they are linked there instead of copied.
    ///
    /// # Errors
    /// Staging fails, or `mke2fs` does.
    pub(super) fn write_image(mut self, image: &Path, staging: &Path) -> Result<()> {
        self.add_libraries()?;
        let mut bytes = 0;
        empty_folder(staging)?;
        for path in &self.paths {
            bytes += stage(path, &staging.join(path.strip_prefix("/")?))
                .with_context(|| format!("cannot stage {}", path.display()))?;
        }
        make_ext4(image, staging, bytes, self.paths.len() as u64)?;
        fs::remove_dir_all(staging).with_context(|| format!("cannot remove {}", staging.display()))
    }
}

/// The components of `path` that mean something to a walk.
fn components(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

/// An executable or shared ELF file, by its magic number.
fn is_program(path: &Path) -> bool {
    let mut magic = [0; 4];
    fs::File::open(path)
        .and_then(|mut file| io::Read::read_exact(&mut file, &mut magic))
        .is_ok()
        && magic == *b"\x7fELF"
}

/// The path in a line of ldd's output: `\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)` or
/// `\t/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn library(line: &[u8]) -> Option<PathBuf> {
    let line = line.strip_prefix(b"\t")?;
    let start = line
        .windows(4)
        .position(|window| window == b" => ")
        .map_or(0, |position| position + 4);
    let path = &line[start..];
    let end = path.windows(2).rposition(|window| window == b" (")?;
    path.starts_with(b"/")
        .then(|| OsString::from_vec(path[..end].to_vec()).into())
}

/// Puts the file, folder or link `path` at `staged`, and returns how many bytes it takes. Other
/// kinds of files are left out.
fn stage(path: &Path, staged: &Path) -> io::Result<u64> {
    let metadata = match fs::symlink_metadata(path) {
        // Deleted since it was found: a build may be running.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    if metadata.is_dir() {
        fs::create_dir_all(staged)?;
        fs::set_permissions(staged, fs::Permissions::from_mode(metadata.mode() | 0o700))?;
    } else if metadata.is_symlink() {
        symlink(fs::read_link(path)?, staged)?;
    } else if metadata.is_file() {
        match fs::hard_link(path, staged).or_else(|_| fs::copy(path, staged).map(drop)) {
            // Not ours to read, then nobody needs it in there.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(0),
            other => other?,
        }
        return Ok(metadata.len());
    }
    Ok(0)
}

/// Creates `folder`, or removes what it holds.
///
/// # Errors
/// It cannot be removed or created.
pub(super) fn empty_folder(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

/// Makes an ext4 image from the folder `content`, which holds about `bytes` bytes in `files` files.
/// No journal: the images are made anew at each start.
///
/// # Errors
/// `mke2fs` cannot be run or fails.
pub(super) fn make_ext4(image: &Path, content: &Path, bytes: u64, files: u64) -> Result<()> {
    // Rounding to blocks, metadata, and room to write; the image file is sparse, so it costs
    // nothing.
    let size_mib = (bytes + files * 8192) * 5 / 4 / (1 << 20) + 64;
    match fs::remove_file(image) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).context("cannot remove the old image");
        }
        _ => (),
    }
    let output = Command::new("mke2fs")
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-m",
            "0",
            "-O",
            "^has_journal",
            "-E",
            "lazy_itable_init=1,nodiscard",
            "-d",
        ])
        .arg(content)
        .args(["-N", &(files * 2 + 1024).to_string()])
        .arg(image)
        .arg(format!("{size_mib}M"))
        // It lives in /sbin, which an ordinary user's PATH lacks.
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .context("cannot run mke2fs (Debian package e2fsprogs)")?;
    if !output.status.success() {
        bail!(
            "mke2fs could not make {}: {}",
            image.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_lines_give_paths() {
        let path = |line: &str| library(line.as_bytes());
        assert_eq!(
            path("\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)"),
            Some("/lib/x86_64-linux-gnu/libc.so.6".into())
        );
        assert_eq!(
            path("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)"),
            Some("/lib64/ld-linux-x86-64.so.2".into())
        );
        assert_eq!(path("\tlinux-vdso.so.1 (0x00007f)"), None);
        assert_eq!(path("\tlibx.so => not found"), None);
        assert_eq!(path("\tstatically linked"), None);
        assert_eq!(path("/bin/sh:"), None);
    }

    #[test]
    fn a_set_holds_the_links_on_the_way_and_their_targets() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        fs::create_dir(root.join("real")).unwrap();
        fs::write(root.join("real/file"), "x").unwrap();
        symlink("real", root.join("link")).unwrap();
        symlink("../link/file", root.join("real/loop-free")).unwrap();
        symlink("self", root.join("self")).unwrap();

        let mut set = FileSet::default();
        set.add(&root.join("link/loop-free"));
        set.add(&root.join("self"));
        set.add(&root.join("missing/file"));
        for name in ["link", "real", "real/loop-free", "real/file"] {
            assert!(set.paths.contains(&root.join(name)), "{name}");
        }
        assert!(!set.paths.contains(&root.join("missing")));
    }

    #[test]
    fn a_folder_brings_its_files_but_not_caches() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        for name in ["kept", "target", ".git"] {
            fs::create_dir(root.join(name)).unwrap();
            fs::write(root.join(name).join("file"), "x").unwrap();
        }
        fs::write(root.join("target").join(CACHE_TAG), "").unwrap();

        let mut set = FileSet::default();
        set.add(&root);
        assert!(set.paths.contains(&root.join("kept/file")));
        assert!(!set.paths.contains(&root.join("target/file")));
        assert!(!set.paths.contains(&root.join(".git/file")));
        assert!(set.paths.contains(&root.join(".git")), "its name");
        set.add(&root.join("target/file"));
        assert!(set.paths.contains(&root.join("target/file")));
    }
}
