//! Which modules drivers need, remembered from one run to the next: to find out means to read lists of thousands, or the modules
//! themselves.
//!
//! A file in the cache has a line for each module: the file system that it is for (or nothing), its name, its path. What the lists
//! and the folder were like is in the file's name. Where anything is not as it should be, it is found out anew.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::{Driver, Kernel, KernelError, Module, modules};
use crate::initramfs::{self, BootModules};

/// Changes with the form of the files, and with how modules are found.
const FORM: &str = "ampoule-modules-1";

/// The last line.
const END: &str = "end";

impl Kernel {
    /// As [`Kernel::modules_of`], by what this folder remembers.
    ///
    /// # Errors
    /// As there.
    pub fn modules_of_cached(
        &self,
        cache: &Path,
        needed: &[Driver],
        wanted: &[Driver],
    ) -> Result<Vec<Module>, KernelError> {
        let asked = [needed, wanted].concat();
        let find = || {
            let always = self.modules_of(needed, wanted)?;
            Ok(BootModules {
                always,
                file_systems: Vec::new(),
            })
        };
        // Where one list ends and the next begins counts.
        let lengths = format!("{} {}", needed.len(), wanted.len());
        let found = self.remembered(cache, &asked, &[], &lengths, find)?;
        Ok(found.always)
    }

    /// As [`Kernel::boot_modules`], by what this folder remembers.
    ///
    /// # Errors
    /// As there.
    pub fn boot_modules_cached(
        &self,
        cache: &Path,
        needed: &[Driver],
        wanted: &[Driver],
        file_systems: &[&'static str],
    ) -> Result<BootModules, KernelError> {
        let asked = [needed, wanted].concat();
        let lengths = format!("boot {} {}", needed.len(), wanted.len());
        let find = || self.boot_modules(needed, wanted, file_systems);
        self.remembered(cache, &asked, file_systems, &lengths, find)
    }

    fn remembered(
        &self,
        cache: &Path,
        drivers: &[Driver],
        file_systems: &[&'static str],
        lengths: &str,
        find: impl FnOnce() -> Result<BootModules, KernelError>,
    ) -> Result<BootModules, KernelError> {
        let Some(folder) = &self.modules else {
            return find();
        };
        let mut sum = Sha256::new();
        let mut part = |bytes: &[u8]| {
            sum.update((bytes.len() as u64).to_le_bytes());
            sum.update(bytes);
        };
        part(FORM.as_bytes());
        part(lengths.as_bytes());
        for path in modules::LISTS.map(|list| folder.join(list)) {
            part(&modules::stamp(&path).unwrap_or_default());
        }
        part(&modules::stamp(folder).unwrap_or_default());
        for driver in drivers {
            part(driver.module().as_bytes());
        }
        for name in file_systems {
            part(name.as_bytes());
        }
        let path = cache.join(format!("{}.modules", initramfs::text_of(sum)));
        let text = fs::read_to_string(&path).ok();
        if let Some(modules) = text.and_then(|text| parse(&text, file_systems)) {
            return Ok(modules);
        }
        let modules = find()?;
        if let Some(text) = text_of(&modules) {
            // It saves time, and nothing else.
            let _ = initramfs::keep(cache, &path, text.as_bytes());
        }
        Ok(modules)
    }
}

/// Nothing, where a name or a path does not fit into a line.
fn text_of(modules: &BootModules) -> Option<String> {
    let mut text = String::new();
    let mut add = |file_system: &str, module: Option<&Module>| {
        let (name, path) = match module {
            Some(it) => (
                it.name.as_str(),
                str::from_utf8(it.path.as_os_str().as_bytes()).ok()?,
            ),
            None => ("", ""),
        };
        let fields = [file_system, name, path];
        let fits = |field: &&str| !field.contains(['\t', '\n']);
        text += &fields.join("\t");
        text.push('\n');
        fields.iter().all(fits).then_some(())
    };
    for module in &modules.always {
        add("", Some(module))?;
    }
    for (name, list) in &modules.file_systems {
        // One that is built in is there without a module.
        add(name, None)?;
        for module in list {
            add(name, Some(module))?;
        }
    }
    Some(text + END)
}

fn parse(text: &str, file_systems: &[&'static str]) -> Option<BootModules> {
    let lines = text.strip_suffix(END)?.lines();
    let mut modules = BootModules::default();
    for line in lines {
        let fields: Vec<&str> = line.split('\t').collect();
        let [file_system, name, path] = fields[..] else {
            return None;
        };
        if name.is_empty() {
            let name = file_systems.iter().find(|name| **name == file_system)?;
            modules.file_systems.push((name, Vec::new()));
            continue;
        }
        let module = Module {
            name: name.into(),
            path: path.into(),
        };
        if !module.path.is_file() {
            return None;
        }
        match file_system {
            "" => modules.always.push(module),
            _ => {
                let (last, list) = modules.file_systems.last_mut()?;
                if *last != file_system {
                    return None;
                }
                list.push(module);
            }
        }
    }
    Some(modules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_remembered_until_something_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (root, cache) = (folder.path().join("modules"), folder.path().join("cache"));
        fs::create_dir(&root).unwrap();
        let write = |name: &str, text: &str| fs::write(root.join(name), text).unwrap();
        write("modules.builtin", "virtio_mmio.ko\nfs/ext4.ko\n");
        write("modules.dep", "virtio_blk.ko:\nxfs.ko: crc.ko\ncrc.ko:\n");
        for name in ["virtio_blk.ko", "xfs.ko", "crc.ko"] {
            write(name, name);
        }
        let kernel = Kernel {
            image: "vmlinuz".into(),
            version: None,
            modules: Some(root.clone()),
        };
        let needed = [Driver::VirtioMmio, Driver::VirtioBlk];
        let boot = || kernel.boot_modules_cached(&cache, &needed, &[], &["ext4", "xfs"]);
        let found = boot().unwrap();
        assert_eq!(
            found,
            kernel.boot_modules(&needed, &[], &["ext4", "xfs"]).unwrap()
        );
        assert_eq!(found.file_systems[0], ("ext4", Vec::new()));
        assert_eq!(found.file_systems[1].1.len(), 2);
        assert_eq!(boot().unwrap(), found);
        let plain = kernel.modules_of_cached(&cache, &needed, &[]).unwrap();
        assert_eq!(plain, found.always);
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 2);
        // It is what was remembered that is told, and not what is there.
        for entry in fs::read_dir(&cache).unwrap() {
            let path = entry.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, text.replace("virtio_blk\t", "renamed\t")).unwrap();
        }
        assert_eq!(boot().unwrap().always[0].name, "renamed");
        // But not a file that is gone, nor lists that have changed, nor a memory that is damaged.
        fs::remove_file(root.join("crc.ko")).unwrap();
        write("crc.ko", "again");
        write("modules.dep", "virtio_blk.ko:\nxfs.ko:\ncrc.ko:\n");
        let now = boot().unwrap();
        assert_eq!(
            (now.always[0].name.as_str(), now.file_systems[1].1.len()),
            ("virtio_blk", 1)
        );
        for entry in fs::read_dir(&cache).unwrap() {
            fs::write(entry.unwrap().path(), "x\ty\nend").unwrap();
        }
        assert_eq!(boot().unwrap(), now);
        fs::remove_file(root.join("virtio_blk.ko")).unwrap();
        fs::remove_file(root.join("modules.dep")).unwrap();
        assert!(boot().is_err());
    }
}
