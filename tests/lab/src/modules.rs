//! Kernel modules as a package holds them: without the lists `depmod` makes, some compressed.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::project::run;

/// A module.
#[derive(Debug)]
pub(crate) struct Module {
    /// Its name, with underscores.
    pub(crate) name: String,
    /// The uncompressed file.
    pub(crate) content: Vec<u8>,
}

/// The modules called `names` below `folder` and those they need, in the order to load them. What is not there is taken
/// to be built into the kernel.
///
/// # Errors
/// A file cannot be read or decompressed.
pub(crate) fn find(folder: &Path, names: &[&str]) -> Result<Vec<Module>> {
    let files = files(&folder.join("kernel"))?;
    let mut found = Vec::new();
    for name in names {
        add(&name.replace('-', "_"), &files, &mut found)?;
    }
    Ok(found)
}

fn add(name: &str, files: &HashMap<String, PathBuf>, found: &mut Vec<Module>) -> Result<()> {
    if found.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let Some(path) = files.get(name) else {
        return Ok(());
    };
    let content = read(path)?;
    for needed in dependencies(&content) {
        add(&needed, files, found)?;
    }
    found.push(Module {
        name: name.to_owned(),
        content,
    });
    Ok(())
}

/// Every module file below `folder` by its name.
fn files(folder: &Path) -> Result<HashMap<String, PathBuf>> {
    let mut files = HashMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if let Some(name) = name(&entry.path()) {
                files.insert(name, entry.path());
            }
        }
    }
    Ok(files)
}

/// `kvm_amd` for `…/kvm-amd.ko` and `…/kvm-amd.ko.xz`.
fn name(path: &Path) -> Option<String> {
    let (name, suffix) = path.file_name()?.to_str()?.split_once('.')?;
    matches!(suffix, "ko" | "ko.xz").then(|| name.replace('-', "_"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "xz") {
        let mut xz = Command::new("xz");
        return Ok(run(xz.arg("-dc").arg(path).stdin(Stdio::null()))?.stdout);
    }
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// What a module needs: the `depends=` entry of its `.modinfo` section, which is a list of NUL-terminated strings.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[start + KEY.len()..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need() {
        let folder = tempfile::tempdir().unwrap();
        let drivers = folder.path().join("kernel/drivers");
        fs::create_dir_all(&drivers).unwrap();
        for (name, depends) in [
            ("kvm-amd.ko", "kvm,ccp"),
            ("kvm.ko", "irqbypass"),
            ("irqbypass.ko", ""),
            ("unrelated.ko", ""),
        ] {
            let content = format!("ELF\0license=GPL\0depends={depends}\0name=x\0");
            fs::write(drivers.join(name), content).unwrap();
        }
        let found = find(folder.path(), &["kvm-amd", "built-in", "kvm"]).unwrap();
        let names: Vec<&str> = found.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["irqbypass", "kvm", "kvm_amd"]);
    }

    #[test]
    fn names_of_compressed_modules_are_recognised() {
        let name = |text: &str| name(Path::new(text));
        assert_eq!(name("a/kvm-amd.ko.xz").as_deref(), Some("kvm_amd"));
        assert_eq!(name("a/tun.ko").as_deref(), Some("tun"));
        assert_eq!(name("a/modules.order"), None);
    }
}
