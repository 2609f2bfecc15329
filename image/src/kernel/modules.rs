//! A folder of kernel modules: what is built in, what is there as a file, what needs what. By the lists that depmod(8) makes, or,
//! where it has not run (a package that was only unpacked), by the modules themselves.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use lzma_rust2::XzReader;
use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection};
use ruzstd::decoding::StreamingDecoder;

use super::KernelError;

/// No module that a guest is given is larger, uncompressed.
const LIMIT: u64 = 64 << 20;

/// The lists that are read.
pub(super) const LISTS: [&str; 4] = [
    "modules.builtin",
    "modules.dep",
    "modules.softdep",
    "modules.alias",
];

/// Folders of modules are no deeper.
const DEPTH: usize = 16;

/// A module's file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// The file, which may be compressed.
    pub path: PathBuf,
}

impl Module {
    /// What changes with the file: its path, size and times.
    pub(crate) fn stamp(&self) -> Result<Vec<u8>, KernelError> {
        stamp(&self.path).map_err(|it| failed(&self.path, it))
    }

    /// What the kernel loads.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub fn read(&self) -> Result<Vec<u8>, KernelError> {
        let extension = self.path.extension().and_then(|it| it.to_str());
        let content = self.open().and_then(|file| match extension {
            Some("xz") => all(XzReader::new(file, true)),
            Some("gz") => all(GzDecoder::new(file)),
            Some("zst") => all(StreamingDecoder::new(file).map_err(io::Error::other)?),
            _ => all(file),
        });
        content.map_err(|it| failed(&self.path, it))
    }

    fn open(&self) -> io::Result<File> {
        File::open(&self.path)
    }
}

/// What changes with a file: its path, size and times.
pub(super) fn stamp(path: &Path) -> io::Result<Vec<u8>> {
    let it = fs::metadata(path)?;
    let mut stamp = path.as_os_str().as_bytes().to_vec();
    let times = [it.mtime(), it.mtime_nsec(), it.ctime(), it.ctime_nsec()];
    stamp.extend(it.size().to_le_bytes());
    stamp.extend(times.iter().flat_map(|time| time.to_le_bytes()));
    Ok(stamp)
}

fn failed(path: &Path, source: io::Error) -> KernelError {
    KernelError::Module {
        path: path.to_owned(),
        source,
    }
}

fn all(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    reader.take(LIMIT + 1).read_to_end(&mut content)?;
    match content.len() as u64 > LIMIT {
        true => Err(io::Error::other(format!("it is longer than {LIMIT} bytes"))),
        false => Ok(content),
    }
}

/// Where a driver is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Found {
    BuiltIn,
    Module,
    Nowhere,
}

/// What a folder has.
pub(super) struct Tree {
    folder: PathBuf,
    built_in: HashSet<String>,
    files: HashMap<String, PathBuf>,
    /// What each needs, if depmod has run.
    needs: Option<HashMap<String, Needs>>,
    aliases: HashMap<String, String>,
}

#[derive(Clone, Debug, Default)]
struct Needs {
    hard: Vec<String>,
    /// What is to be loaded before, if it is there.
    soft: Vec<String>,
}

impl Tree {
    pub(super) fn read(folder: &Path) -> Result<Self, KernelError> {
        let list = |name| optional(&folder.join(name));
        let built_in = list("modules.builtin")?;
        let mut tree = Self {
            folder: folder.to_owned(),
            built_in: built_in.lines().filter_map(name_of).collect(),
            files: HashMap::new(),
            needs: None,
            aliases: HashMap::new(),
        };
        let dependencies = list("modules.dep")?;
        if dependencies.is_empty() {
            find_files(folder, DEPTH, &mut tree.files)?;
            return Ok(tree);
        }
        let mut needs: HashMap<String, Needs> = HashMap::new();
        for line in dependencies.lines() {
            let Some((path, rest)) = line.split_once(':') else {
                continue;
            };
            if let Some(name) = name_of(path) {
                let hard = rest.split_whitespace().filter_map(name_of).collect();
                tree.files.insert(name.clone(), folder.join(path));
                needs.entry(name).or_default().hard = hard;
            }
        }
        for line in list("modules.softdep")?.lines() {
            let mut words = line.split_whitespace();
            if let (Some("softdep"), Some(name)) = (words.next(), words.next()) {
                let soft = before(&words.collect::<Vec<_>>());
                needs.entry(normal(name)).or_default().soft.extend(soft);
            }
        }
        for line in list("modules.alias")?.lines() {
            // Only those of modules, which have no pattern in them: those of devices the kernel asks for itself.
            let words: Vec<&str> = line.split_whitespace().collect();
            if let ["alias", alias, name] = words[..]
                && !alias.contains(['*', '?', '['])
            {
                tree.aliases.insert(normal(alias), normal(name));
            }
        }
        tree.needs = Some(needs);
        Ok(tree)
    }

    /// Adds the driver's module and what it needs to those found so far.
    pub(super) fn add(&self, name: &str, found: &mut Vec<Module>) -> Result<Found, KernelError> {
        self.add_for(name, found, &mut HashSet::new())
    }

    fn add_for(
        &self,
        name: &str,
        found: &mut Vec<Module>,
        in_work: &mut HashSet<String>,
    ) -> Result<Found, KernelError> {
        let mut name = normal(name);
        if self.built_in.contains(&name) {
            return Ok(Found::BuiltIn);
        }
        if !self.files.contains_key(&name)
            && let Some(other) = self.aliases.get(&name)
        {
            name = other.clone();
        }
        let Some(path) = self.files.get(&name) else {
            return Ok(Found::Nowhere);
        };
        // The second time, or within a circle.
        if found.iter().any(|it| it.name == name) || !in_work.insert(name.clone()) {
            return Ok(Found::Module);
        }
        let module = Module {
            name: name.clone(),
            path: path.clone(),
        };
        let needs = match &self.needs {
            Some(needs) => needs.get(&name).cloned().unwrap_or_default(),
            None => needs_of(&module)?,
        };
        for soft in &needs.soft {
            self.add_for(soft, found, in_work)?;
        }
        for hard in needs.hard {
            if self.add_for(&hard, found, in_work)? == Found::Nowhere {
                return Err(KernelError::Dependency {
                    modules: self.folder.clone(),
                    module: hard,
                    dependent: name,
                });
            }
        }
        found.push(module);
        Ok(Found::Module)
    }
}

/// A list's text; nothing where there is none.
fn optional(path: &Path) -> Result<String, KernelError> {
    match File::open(path).and_then(all) {
        Ok(content) => Ok(String::from_utf8_lossy(&content).into_owned()),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(err) => Err(failed(path, err)),
    }
}

/// `kvm_amd` for `kernel/…/kvm-amd.ko.xz`.
fn name_of(path: &str) -> Option<String> {
    let (name, rest) = path.rsplit('/').next()?.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst" | ".gz").then(|| normal(name))
}

/// `-` and `_` are one.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn find_files(
    folder: &Path,
    depth: usize,
    files: &mut HashMap<String, PathBuf>,
) -> Result<(), KernelError> {
    let entries = fs::read_dir(folder).map_err(|err| failed(folder, err))?;
    for entry in entries {
        let entry = entry.map_err(|err| failed(folder, err))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(|err| failed(&path, err))?;
        if kind.is_dir() && depth > 0 {
            find_files(&path, depth - 1, files)?;
        } else if let Some(name) = entry.file_name().to_str().and_then(name_of) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// The names after `pre:`.
fn before(words: &[&str]) -> Vec<String> {
    let mut is_before = false;
    let mut names = Vec::new();
    for word in words {
        match *word {
            "pre:" => is_before = true,
            "post:" => is_before = false,
            word if is_before => names.push(normal(word)),
            _ => {}
        }
    }
    names
}

/// What a module says of itself: its section of `KEY=value` texts, each with its NUL.
fn needs_of(module: &Module) -> Result<Needs, KernelError> {
    let content = module.read()?;
    let damaged = |err| failed(&module.path, io::Error::other(err));
    let file = ElfFile64::<Endianness>::parse(&content[..]).map_err(damaged)?;
    let section = file.section_by_name(".modinfo");
    let info = section
        .map_or(Ok(&[][..]), |section| section.data())
        .map_err(damaged)?;
    let mut needs = Needs::default();
    for entry in info.split(|byte| *byte == 0) {
        let entry = String::from_utf8_lossy(entry);
        match entry.split_once('=') {
            Some(("depends", names)) => {
                let names = names.split(',').filter(|name| !name.is_empty());
                needs.hard.extend(names.map(normal));
            }
            Some(("softdep", text)) => {
                needs
                    .soft
                    .extend(before(&text.split_whitespace().collect::<Vec<_>>()));
            }
            _ => {}
        }
    }
    Ok(needs)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use lzma_rust2::{XzOptions, XzWriter};
    use object::write::Object as Writer;
    use object::{Architecture, BinaryFormat, SectionKind};
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    use tempfile::TempDir;

    use super::*;
    use crate::kernel::{Driver, Kernel};

    /// A module file as the kernel's build makes it, as far as anybody looks here.
    fn module(info: &str) -> Vec<u8> {
        let mut file = Writer::new(
            BinaryFormat::Elf,
            Architecture::X86_64,
            object::Endianness::Little,
        );
        let section = file.add_section(Vec::new(), b".modinfo".to_vec(), SectionKind::ReadOnlyData);
        file.append_section_data(section, info.replace(' ', "\0").as_bytes(), 1);
        file.write().unwrap()
    }

    fn pack(name: &str, content: &[u8]) -> Vec<u8> {
        match name.rsplit('.').next().unwrap() {
            "xz" => {
                let mut writer = XzWriter::new(Vec::new(), XzOptions::with_preset(1)).unwrap();
                writer.write_all(content).unwrap();
                writer.finish().unwrap()
            }
            "gz" => {
                let mut writer = GzEncoder::new(Vec::new(), Compression::fast());
                writer.write_all(content).unwrap();
                writer.finish().unwrap()
            }
            "zst" => compress_to_vec(content, CompressionLevel::Fastest),
            _ => content.to_vec(),
        }
    }

    /// A folder of modules without lists but that of what is built in: name and what it says of itself.
    fn folder(built_in: &str, modules: &[(&str, &str)]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let drivers = folder.path().join("kernel/drivers");
        fs::create_dir_all(&drivers).unwrap();
        fs::write(folder.path().join("modules.builtin"), built_in).unwrap();
        for (name, info) in modules {
            fs::write(drivers.join(name), pack(name, &module(info))).unwrap();
        }
        folder
    }

    fn kernel(folder: &TempDir) -> Kernel {
        Kernel {
            image: "vmlinuz".into(),
            version: None,
            modules: Some(folder.path().into()),
        }
    }

    fn names(modules: &[Module]) -> Vec<&str> {
        modules.iter().map(|it| it.name.as_str()).collect()
    }

    const SET: [(&str, &str); 5] = [
        (
            "virtio_net.ko.xz",
            "license=GPL depends=virtio-ring,net_failover",
        ),
        ("net_failover.ko.gz", "depends=failover"),
        ("failover.ko.zst", "depends="),
        ("virtio-ring.ko", "alias=x"),
        ("unrelated.ko", "depends=virtio_net"),
    ];

    #[test]
    fn without_lists_modules_say_what_they_need() {
        let folder = folder("kernel/drivers/virtio/virtio-mmio.ko\n", &SET);
        let needed = [Driver::VirtioMmio, Driver::VirtioNet];
        let modules = kernel(&folder)
            .modules_of(&needed, &[Driver::VirtioRng])
            .unwrap();
        assert_eq!(
            names(&modules),
            ["virtio_ring", "failover", "net_failover", "virtio_net"]
        );
        for (module, (_, info)) in modules.iter().zip([SET[3], SET[2], SET[1], SET[0]]) {
            assert_eq!(
                module.read().unwrap(),
                self::module(info),
                "{}",
                module.name
            );
        }
    }

    #[test]
    fn a_driver_that_is_nowhere_is_named() {
        let folder = folder("", &SET[..1]);
        let needed = |driver| kernel(&folder).modules_of(&[driver], &[]).unwrap_err();
        let error = needed(Driver::Erofs);
        assert!(matches!(
            error,
            KernelError::Driver {
                driver: "erofs",
                ..
            }
        ));
        assert!(error.remedy().unwrap().contains("--kernel"));
        let error = needed(Driver::VirtioNet).to_string();
        assert!(
            error.starts_with("the kernel module virtio_ring, which virtio_net needs, is not in"),
            "{error}"
        );
    }

    #[test]
    fn lists_are_believed_where_there_are_any() {
        let folder = folder("", &[]);
        let lists = [
            (
                "modules.dep",
                "kernel/fs/erofs.ko.xz: kernel/lib/libcrc32c.ko kernel/lib/lz4.ko\nkernel/lib/libcrc32c.ko:\n\
                 kernel/lib/lz4.ko:\nkernel/arch/crc32c-intel.ko:\n",
            ),
            (
                "modules.softdep",
                "# made\nsoftdep libcrc32c pre: crc32c post: later\n",
            ),
            (
                "modules.alias",
                "alias crc32c crc32c_intel\nalias virtio:d*v* x\n",
            ),
        ];
        for (name, content) in lists {
            fs::write(folder.path().join(name), content).unwrap();
        }
        let modules = kernel(&folder).modules_of(&[Driver::Erofs], &[]).unwrap();
        assert_eq!(
            names(&modules),
            ["crc32c_intel", "libcrc32c", "lz4", "erofs"]
        );
        assert_eq!(modules[3].path, folder.path().join("kernel/fs/erofs.ko.xz"));
    }

    #[test]
    fn circles_and_damaged_files_end() {
        let folder = folder(
            "",
            &[
                ("erofs.ko", "depends=overlay"),
                ("overlay.ko", "depends=erofs"),
            ],
        );
        let modules = kernel(&folder).modules_of(&[Driver::Erofs], &[]).unwrap();
        assert_eq!(names(&modules), ["overlay", "erofs"]);
        let path = folder.path().join("kernel/drivers/erofs.ko");
        for content in [&b""[..], b"\x7fELF", &module("depends=")[..100]] {
            fs::write(&path, content).unwrap();
            let error = kernel(&folder)
                .modules_of(&[Driver::Erofs], &[])
                .unwrap_err();
            assert!(matches!(error, KernelError::Module { .. }), "{error}");
        }
        fs::rename(&path, path.with_extension("ko.xz")).unwrap();
        assert!(kernel(&folder).modules_of(&[Driver::Erofs], &[]).is_err());
    }
}
