//! A distribution from a disk: what `--disk` without `--initrd` and without `root=` becomes.
//!
//! The kernels of distributions have no driver of our disks built in; they come with an initramfs, which is made for one machine. So the
//! guest gets one of ours: the drivers of what its machine has, and an init that finds the root on the first disk and hands over to
//! the init that is there. What is on a raw image is looked at here, too, so that a person hears of what cannot be booted before
//! a guest runs; a qcow2 image's content is the guest's alone to read.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use ampoule_image::disk_layout::{Candidate, Content, Layout};
use ampoule_image::initramfs;
use ampoule_image::kernel::{Driver, Kernel};
use ampoule_vmm::config::{DiskConfig, DiskFormat, VmConfig};
use log::info;

use crate::report::Failure;

/// File systems that a root may have.
const FILE_SYSTEMS: [&str; 5] = ["ext4", "xfs", "btrfs", "erofs", "squashfs"];

/// File systems that nobody writes to.
const READ_ONLY: [&str; 2] = ["erofs", "squashfs"];

/// Gives the configuration what it takes to boot from its first disk, if that is wanted; whether it has an initramfs of ours then.
pub(crate) fn complete(vm: &mut VmConfig) -> Result<bool, Failure> {
    let Some(disk) = vm.disk.first().filter(|_| is_wanted(vm)) else {
        return Ok(false);
    };
    let kernel = match &vm.kernel {
        Some(path) => match Kernel::at(path) {
            Ok(kernel) => kernel,
            // Who opens it for the guest says why.
            Err(_) => return Ok(false),
        },
        None => Kernel::find(None).map_err(|err| Failure::from_error(&err, err.remedy()))?,
    };
    let layout = match disk.format {
        DiskFormat::Raw => match layout(disk) {
            Some(layout) => Some(layout),
            // The same of the disk.
            None => return Ok(false),
        },
        _ => None,
    };
    let candidates = layout.as_ref().map(|it| &it.candidates[..]);
    if kernel.modules.is_none() {
        without_modules(vm, candidates);
        vm.kernel = Some(kernel.image);
        return Ok(false);
    }
    let mut file_systems = FILE_SYSTEMS.to_vec();
    if let Some(layout) = &layout {
        if layout.candidates.is_empty() {
            return Err(nothing(disk, layout));
        }
        file_systems.retain(|name| layout.candidates.iter().any(|it| it.file_system == *name));
    }
    let needed = [Driver::VirtioMmio, Driver::VirtioBlk];
    let cache = ampoule_store::cache_folder();
    let cache = cache.map_err(|err| Failure::from_error(&err, err.remedy()))?;
    let cache = cache.join("initramfs");
    let modules = kernel
        .boot_modules_cached(&cache, &needed, &wanted(vm), &file_systems)
        .map_err(|err| Failure::from_error(&err, err.remedy()))?;
    let initramfs = initramfs::cached_for_boot(&cache, &modules)
        .map_err(|err| Failure::from_error(&err, None))?;
    info!(
        "kernel {}, booting from the disk {} by an initramfs of ampoule's own: {}",
        kernel.image.display(),
        disk.path.display(),
        initramfs.display()
    );
    vm.kernel = Some(kernel.image);
    vm.initrd = Some(initramfs);
    Ok(true)
}

/// Whether the guest's root is nobody else's matter: an initrd's, or that of a person who says where it is.
pub(crate) fn is_wanted(vm: &VmConfig) -> bool {
    let words = [&vm.cmdline, &vm.append].into_iter().flatten();
    let mut words = words.flat_map(|text| text.split_whitespace());
    let is_chosen = |word: &str| word.starts_with("root=") || word.starts_with("rdinit=");
    vm.initrd.is_none() && !vm.disk.is_empty() && !words.any(is_chosen)
}

/// What is on a raw image; nothing where it cannot be opened.
fn layout(disk: &DiskConfig) -> Option<Layout> {
    // A FIFO would not open.
    let kind = match fs::metadata(&disk.path) {
        Ok(metadata) => metadata.file_type(),
        // It will be made, and empty.
        Err(_) if disk.size.is_some() => {
            return Some(Layout {
                parts: vec![(0, Content::Empty)],
                candidates: Vec::new(),
            });
        }
        Err(_) => return None,
    };
    if !kind.is_file() && !kind.is_block_device() {
        return None;
    }
    let file = File::open(&disk.path).ok()?;
    let size = size(&file)?;
    let mut read = |at: u64, buffer: &mut [u8]| file.read_exact_at(buffer, at).is_ok();
    Some(Layout::of(size, &mut read))
}

/// A file's size, or a block device's.
fn size(mut file: &File) -> Option<u64> {
    use std::io::{Seek, SeekFrom};
    file.seek(SeekFrom::End(0)).ok()
}

/// Drivers that are of use, if the kernel has them: the root knows nothing of this kernel's modules.
fn wanted(vm: &VmConfig) -> Vec<Driver> {
    let mut wanted = vec![Driver::Button, Driver::Evdev, Driver::Autofs];
    if vm.rng {
        wanted.push(Driver::VirtioRng);
    }
    if !vm.net.is_empty() {
        wanted.extend([Driver::VirtioNet, Driver::Packet]);
    }
    if vm.console.is_some() {
        wanted.push(Driver::VirtioConsole);
    }
    if vm.vsock.is_some() {
        wanted.push(Driver::Vsock);
    }
    wanted
}

/// A kernel with all drivers built in mounts the root itself, if it is told where that is. It may as well have an initramfs of its own
/// inside, or be no Linux: where there is no root to be seen, nothing is said of one.
fn without_modules(vm: &mut VmConfig, candidates: Option<&[Candidate]>) {
    let Some(Some(root)) = candidates.map(<[_]>::first) else {
        info!(
            "the kernel has no modules, and no root is seen on the disk: its command line stays as it is"
        );
        return;
    };
    let is_fixed = vm.disk[0].readonly || READ_ONLY.contains(&root.file_system);
    let number = match root.partition {
        0 => String::new(),
        number => number.to_string(),
    };
    let access = if is_fixed { "ro" } else { "rw" };
    let words = format!("root=/dev/vda{number} {access}");
    info!("the kernel has no modules: it is to mount the root itself, by {words}");
    vm.append = Some(match vm.append.take() {
        Some(text) => format!("{words} {text}"),
        None => words,
    });
}

/// There is no root on the disk; what to do about that.
fn nothing(disk: &DiskConfig, layout: &Layout) -> Failure {
    let path = disk.path.display();
    let mut failure = Failure::new(format!(
        "there is nothing to boot from on the disk \"{path}\": {}",
        layout.describe()
    ));
    let whole = match layout.parts[..] {
        [(0, content)] => Some(content),
        _ => None,
    };
    let help = match whole {
        Some(Content::Other("a qcow2 image")) => {
            format!("say so: --disk path={path},format=qcow2")
        }
        Some(Content::Other(what)) if what.contains("image") => {
            format!("make a raw image of it: qemu-img convert -O raw {path} {}", raw_name(&disk.path))
        }
        Some(Content::Other(what)) if what.contains("packed") || what.contains("archive") => {
            format!("unpack it, or run a command from it: ampoule run {path} -- CMD")
        }
        Some(Content::Empty) => {
            "a disk to install to, or to keep data on, needs something to boot from besides: --initrd".into()
        }
        _ => "name an initrd that finds its root, as the distribution has made it: --initrd".into(),
    };
    failure.help = Some(help);
    failure
}

fn raw_name(path: &Path) -> String {
    path.with_extension("raw").display().to_string()
}
