//! Which kernel a guest gets by default, and the modules of its drivers.

mod memory;
mod modules;
mod version;

use std::env;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::initramfs::BootModules;

pub use modules::Module;
use modules::{Found, Tree};

/// The variable that names a kernel.
pub const VARIABLE: &str = "AMPOULE_KERNEL";

/// Where distributions install theirs.
const BOOT: &str = "/boot";

/// Why there is no kernel for a guest, or not the right one.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KernelError {
    /// There is none where distributions install it.
    #[error("there is no kernel: no vmlinuz-* in {}", folder.display())]
    None {
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// There is one, which the user may not read.
    #[error("cannot read the kernel \"{}\"", path.display())]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A driver is missing.
    #[error("the kernel \"{}\" has no driver {driver}: neither built in nor in {}", kernel.display(), modules.display())]
    Driver {
        /// The kernel.
        kernel: PathBuf,
        /// Where its modules are.
        modules: PathBuf,
        /// The module's name.
        driver: &'static str,
    },
    /// A driver needs a module that is missing.
    #[error("the kernel module {module}, which {dependent} needs, is not in {}", modules.display())]
    Dependency {
        /// Where the modules are.
        modules: PathBuf,
        /// What is missing.
        module: String,
        /// Who needs it.
        dependent: String,
    },
    /// A module or a list of modules cannot be read.
    #[error("cannot read \"{}\"", path.display())]
    Module {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
}

impl KernelError {
    /// What a person can do about it.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::None { .. } => Some(format!(
                "install one (apt install linux-image-cloud-amd64), or name one: --kernel PATH, ${VARIABLE}"
            )),
            Self::Unreadable { path, source }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Some(format!("sudo chmod a+r {}", path.display()))
            }
            Self::Driver { .. } => Some(format!(
                "use another kernel, Debian's linux-image-cloud-amd64 for instance: --kernel PATH, ${VARIABLE}"
            )),
            Self::Dependency { .. } => Some("install the kernel's package again".into()),
            _ => None,
        }
    }
}

/// What a guest may need of its kernel.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Driver {
    /// The transport of all devices.
    VirtioMmio,
    /// Disks.
    VirtioBlk,
    /// Network devices.
    VirtioNet,
    /// Sockets between host and guest.
    Vsock,
    /// The entropy device.
    VirtioRng,
    /// The file system.
    Erofs,
    /// The file system.
    Squashfs,
    /// The file system.
    Ext4,
    /// The file system.
    Xfs,
    /// The file system.
    Btrfs,
    /// The file system that puts one over another.
    Overlay,
    /// The file system of shared directories.
    Virtiofs,
    /// Sockets of packets, by which DHCP is done.
    Packet,
    /// The console of its own, hvc0.
    VirtioConsole,
    /// The power button.
    Button,
    /// Events of keys and buttons, for those who do as they say.
    Evdev,
    /// Mounts that are made when they are used, as systemd wants them.
    Autofs,
}

impl Driver {
    /// What every guest of `ampoule run IMAGE` needs.
    pub const BASE: [Self; 2] = [Self::VirtioMmio, Self::Vsock];

    /// Its module's name.
    pub fn module(self) -> &'static str {
        match self {
            Self::VirtioMmio => "virtio_mmio",
            Self::VirtioBlk => "virtio_blk",
            Self::VirtioNet => "virtio_net",
            Self::Vsock => "vmw_vsock_virtio_transport",
            Self::VirtioRng => "virtio_rng",
            Self::Erofs => "erofs",
            Self::Squashfs => "squashfs",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Overlay => "overlay",
            Self::Virtiofs => "virtiofs",
            Self::Packet => "af_packet",
            Self::VirtioConsole => "virtio_console",
            Self::Button => "button",
            Self::Evdev => "evdev",
            Self::Autofs => "autofs4",
        }
    }

    /// The one that mounts a file system of this name.
    pub fn of_file_system(name: &str) -> Option<Self> {
        let all = [
            Self::Erofs,
            Self::Squashfs,
            Self::Ext4,
            Self::Xfs,
            Self::Btrfs,
            Self::Virtiofs,
        ];
        all.into_iter().find(|it| it.module() == name)
    }
}

/// A kernel, and where its modules are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Kernel {
    /// Its image.
    pub image: PathBuf,
    /// Its version, as `uname -r` prints it, if that could be found out.
    pub version: Option<String>,
    /// The folder of its modules. A kernel without one is taken to have all drivers built in.
    pub modules: Option<PathBuf>,
}

impl Kernel {
    /// The kernel that is asked for; else the one that [`VARIABLE`] names; else the newest in /boot that may be read.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn find(asked_for: Option<&Path>) -> Result<Self, KernelError> {
        let named = env::var_os(VARIABLE).filter(|it| !it.is_empty());
        match (asked_for, named) {
            (Some(path), _) => Self::at(path),
            (None, Some(path)) => Self::at(Path::new(&path)),
            (None, None) => Self::newest_in(Path::new(BOOT)),
        }
    }

    /// The one at this path. Its modules are in `/lib/modules/VERSION`, or in `../lib/modules/VERSION`, as where a
    /// distribution's package is unpacked.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn at(path: &Path) -> Result<Self, KernelError> {
        let version = version::of(path).map_err(|source| KernelError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        let beside = path
            .parent()
            .unwrap_or(Path::new(""))
            .join("../lib/modules");
        let folders = version.iter().flat_map(|version| {
            [Path::new("/lib/modules"), &beside].map(|folder| folder.join(version))
        });
        Ok(Self {
            image: path.to_owned(),
            modules: folders.into_iter().find(|it| it.is_dir()),
            version,
        })
    }

    fn newest_in(folder: &Path) -> Result<Self, KernelError> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names
            .filter(|name| name.starts_with("vmlinuz-") && !name.ends_with(".old"))
            .collect();
        names.sort_by(|a, b| version::compare(b, a));
        let mut unreadable = None;
        for name in names {
            let path = folder.join(name);
            match File::open(&path).and_then(|mut file| file.read(&mut [0])) {
                Ok(_) => return Self::at(&path),
                Err(source) => {
                    unreadable.get_or_insert(KernelError::Unreadable { path, source });
                }
            }
        }
        Err(unreadable.unwrap_or(KernelError::None {
            folder: folder.to_owned(),
        }))
    }

    /// The modules of the drivers that are not built in, and what those need, in the order to load them: `needed` must be
    /// there, `wanted` may.
    ///
    /// # Errors
    /// A driver is missing, or a list or module cannot be read.
    pub fn modules_of(
        &self,
        needed: &[Driver],
        wanted: &[Driver],
    ) -> Result<Vec<Module>, KernelError> {
        let Some(folder) = &self.modules else {
            return Ok(Vec::new());
        };
        self.modules_in(&Tree::read(folder)?, needed, wanted)
    }

    /// The modules of a guest that boots a distribution from its disk: `needed` and `wanted` as in [`Kernel::modules_of`], and those of
    /// the file systems of these names, of which one must be there.
    ///
    /// # Errors
    /// As [`Kernel::modules_of`].
    pub fn boot_modules(
        &self,
        needed: &[Driver],
        wanted: &[Driver],
        file_systems: &[&'static str],
    ) -> Result<BootModules, KernelError> {
        let Some(folder) = &self.modules else {
            return Ok(BootModules::default());
        };
        let tree = Tree::read(folder)?;
        let mut modules = BootModules {
            always: self.modules_in(&tree, needed, wanted)?,
            file_systems: Vec::new(),
        };
        let mut missing = None;
        for &name in file_systems {
            let driver = Driver::of_file_system(name);
            match self.modules_in(&tree, driver.as_slice(), &[]) {
                Ok(mut list) => {
                    list.retain(|it| !modules.always.contains(it));
                    modules.file_systems.push((name, list));
                }
                Err(err @ KernelError::Driver { .. }) => {
                    missing.get_or_insert(err);
                }
                Err(err) => return Err(err),
            }
        }
        match missing {
            Some(err) if modules.file_systems.is_empty() => Err(err),
            _ => Ok(modules),
        }
    }

    fn modules_in(
        &self,
        tree: &Tree,
        needed: &[Driver],
        wanted: &[Driver],
    ) -> Result<Vec<Module>, KernelError> {
        let mut modules = Vec::new();
        for driver in needed {
            if tree.add(driver.module(), &mut modules)? == Found::Nowhere {
                return Err(KernelError::Driver {
                    kernel: self.image.clone(),
                    modules: self.modules.clone().unwrap_or_default(),
                    driver: driver.module(),
                });
            }
        }
        for driver in wanted {
            tree.add(driver.module(), &mut modules)?;
        }
        Ok(modules)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let error = Kernel::newest_in(folder.path()).unwrap_err();
        assert!(matches!(error, KernelError::None { .. }));
        assert!(error.remedy().unwrap().contains("apt install"));
        for name in [
            "vmlinuz-6.1.0-9-amd64",
            "vmlinuz-6.1.0-56-amd64",
            "vmlinuz-6.12.1",
            "vmlinuz-6.9.3",
            "vmlinuz-7.0.old",
            "config-8.0",
        ] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        let kernel = Kernel::newest_in(folder.path()).unwrap();
        assert_eq!(kernel.image, folder.path().join("vmlinuz-6.12.1"));
        assert_eq!(kernel.version.as_deref(), Some("6.12.1"));
        assert_eq!(kernel.modules, None);
    }

    #[test]
    fn a_kernels_modules_may_be_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let modules = folder.path().join("lib/modules/6.1.0-test");
        fs::create_dir_all(&modules).unwrap();
        fs::create_dir(folder.path().join("boot")).unwrap();
        let path = folder.path().join("boot/vmlinuz-6.1.0-test");
        fs::write(&path, "x").unwrap();
        let found = Kernel::at(&path).unwrap().modules.unwrap();
        assert_eq!(
            found.canonicalize().unwrap(),
            modules.canonicalize().unwrap()
        );
        assert!(matches!(
            Kernel::at(&folder.path().join("none")),
            Err(KernelError::Unreadable { .. })
        ));
    }
}
