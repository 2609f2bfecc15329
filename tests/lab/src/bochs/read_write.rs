//! Folders the Intel lab host shares read-write: copied to its second disk, and copied back from
//! there.
//!
//! The disk holds the folders by number, and a file `folders` with a line `NUMBER PATH` for each.
//! The machine mounts it with every write going through at once, so its image may be read while the
//! machine runs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::image;

/// Makes `read-write.img` in `run_dir` from copies of `folders`.
///
/// # Errors
/// A folder that cannot be read, or `mke2fs` fails.
pub(super) fn make(run_dir: &Path, folders: &[PathBuf]) -> Result<()> {
    let folder = run_dir.join("read-write");
    image::empty_folder(&folder)?;
    let mut table = String::new();
    let mut size = Size::default();
    for (number, path) in folders.iter().enumerate() {
        let path =
            fs::canonicalize(path).with_context(|| format!("cannot share {}", path.display()))?;
        let Some(name) = path.to_str().filter(|name| !name.contains('\n')) else {
            bail!(
                "cannot share {}: its name is not plain text",
                path.display()
            );
        };
        copy_folder(&path, &folder.join(number.to_string()), &mut size)
            .with_context(|| format!("cannot copy {}", path.display()))?;
        table.push_str(&format!("{number} {name}\n"));
    }
    fs::write(folder.join("folders"), table)
        .context("cannot write the table of read-write folders")?;
    // Room for what the machine writes; sparse.
    image::make_ext4(
        &run_dir.join("read-write.img"),
        &folder,
        size.bytes + (1 << 30),
        size.files + 10_000,
    )?;
    fs::remove_dir_all(&folder).context("cannot remove the staged read-write folders")
}

/// What a copied folder takes.
#[derive(Default)]
struct Size {
    bytes: u64,
    files: u64,
}

/// Copies a folder's files, folders and links. Nothing is linked: these are files the machine
/// writes to.
fn copy_folder(from: &Path, to: &Path, size: &mut Size) -> io::Result<()> {
    fs::create_dir_all(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        size.files += 1;
        if kind.is_dir() {
            copy_folder(&entry.path(), &target, size)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, &target)?;
        } else if kind.is_file() {
            size.bytes += fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Copies what the machine wrote to `read-write.img` in `run_dir` to the folders it came from.
///
/// # Errors
/// `debugfs` fails, or a file cannot be written.
pub(super) fn take_back(run_dir: &Path, folders: &[PathBuf]) -> Result<()> {
    for (number, folder) in folders.iter().enumerate() {
        let taken = run_dir.join("taken");
        image::empty_folder(&taken)?;
        let output = Command::new("debugfs")
            .arg("-R")
            .arg(format!("rdump /{number} taken"))
            .arg("read-write.img")
            .current_dir(run_dir)
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .output()
            .context("cannot run debugfs (Debian package e2fsprogs)")?;
        if !output.status.success() {
            bail!(
                "debugfs could not read the read-write disk: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        replace_changed(&taken.join(number.to_string()), folder)
            .with_context(|| format!("cannot bring back {}", folder.display()))?;
        fs::remove_dir_all(&taken).context("cannot remove the folder of files taken back")?;
    }
    Ok(())
}

/// Copies files and folders of `from` that `to` lacks or that differ there.
fn replace_changed(from: &Path, to: &Path) -> io::Result<()> {
    if !to.exists() {
        fs::create_dir(to)?;
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            replace_changed(&path, &target)?;
        } else if kind.is_symlink() {
            let link = fs::read_link(&path)?;
            if fs::read_link(&target).ok().as_ref() != Some(&link) {
                remove_if_there(&target)?;
                std::os::unix::fs::symlink(link, &target)?;
            }
        } else if kind.is_file() && !same_content(&path, &target)? {
            fs::copy(&path, &target)?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whether both are files with the same bytes. These are test results: small enough to hold in
/// memory.
fn same_content(one: &Path, other: &Path) -> io::Result<bool> {
    let (Ok(one_length), Ok(other_length)) = (
        fs::metadata(one).map(|m| m.len()),
        fs::metadata(other).map(|m| m.len()),
    ) else {
        return Ok(false);
    };
    Ok(one_length == other_length && fs::read(one)? == fs::read(other)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_comes_back_and_the_rest_stays() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for folder in [from.path(), to.path()] {
            fs::write(folder.join("same"), "same").unwrap();
        }
        let before = fs::metadata(to.path().join("same"))
            .unwrap()
            .modified()
            .unwrap();
        fs::write(to.path().join("changed"), "old").unwrap();
        fs::write(to.path().join("only here"), "kept").unwrap();
        fs::write(from.path().join("changed"), "new").unwrap();
        fs::create_dir(from.path().join("folder")).unwrap();
        fs::write(from.path().join("folder/new"), "new").unwrap();
        std::os::unix::fs::symlink("changed", from.path().join("link")).unwrap();

        replace_changed(from.path(), to.path()).unwrap();
        let read = |name: &str| fs::read_to_string(to.path().join(name)).unwrap();
        assert_eq!(read("changed"), "new");
        assert_eq!(read("only here"), "kept");
        assert_eq!(read("folder/new"), "new");
        assert_eq!(
            fs::read_link(to.path().join("link")).unwrap(),
            Path::new("changed")
        );
        assert_eq!(
            fs::metadata(to.path().join("same"))
                .unwrap()
                .modified()
                .unwrap(),
            before
        );
    }

    #[test]
    fn a_disk_image_gives_back_what_it_was_made_of() {
        let (run, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(shared.path().join("deep")).unwrap();
        fs::write(shared.path().join("deep/file"), "content").unwrap();
        let folders = [shared.path().to_owned()];
        make(run.path(), &folders).unwrap();
        fs::remove_file(shared.path().join("deep/file")).unwrap();
        take_back(run.path(), &folders).unwrap();
        assert_eq!(
            fs::read_to_string(shared.path().join("deep/file")).unwrap(),
            "content"
        );
    }
}
