//! The root file system: a disk's or a shared directory, which nobody writes to, under a layer that takes what is written.

use alloc::ffi::CString;
use alloc::format;
use core::ffi::CStr;

use crate::job::Root;
use crate::sys::{self, MS_MOVE, MS_RDONLY, MS_REMOUNT};
use crate::{Context, Problem, files, shared};

/// Milliseconds that a disk may take to be there. Those that the machine has at its start are, when their driver is loaded.
const PATIENCE: u32 = 5000;

const LOWER: &CStr = c"/lower";
const LAYER: &CStr = c"/layer";
const NEW: &CStr = c"/new";

/// Makes it `/`.
pub(crate) fn enter(root: &Root) -> Result<(), Problem> {
    match root {
        Root::Initramfs => {
            // What was for the machine's start is of no more use.
            for file in [c"/init", c"/modules/list"] {
                let _ = sys::unlink(file);
            }
            let _ = sys::rmdir(c"/modules");
            return Ok(());
        }
        Root::Disk {
            serial,
            file_system,
            overlay,
            ..
        } => {
            folders()?;
            let (device, kind) = (disk(serial)?, files::text(file_system)?);
            sys::mount(&device, LOWER, &kind, MS_RDONLY, c"").context(&format!(
                "cannot mount the {} file system of the disk {}",
                file_system.escape_ascii(),
                serial.escape_ascii()
            ))?;
            layer(overlay)?;
            mount_overlay()?;
        }
        Root::Shared { tag, read_only } => {
            folders()?;
            // Where nothing is written, it is the root by itself.
            let place = if *read_only { NEW } else { LOWER };
            shared::mount(tag, place)?;
            if !read_only {
                layer(&[])?;
                shared::with_what_it_may_read(mount_overlay)?;
            }
        }
    }
    switch(NEW)
}

fn folders() -> Result<(), Problem> {
    for folder in [LOWER, LAYER, NEW] {
        sys::mkdir(folder, 0o755).context("cannot make a folder in the initramfs")?;
    }
    Ok(())
}

/// Where what is written goes: to the disk of this serial number, or to memory.
fn layer(overlay: &[u8]) -> Result<(), Problem> {
    if overlay.is_empty() {
        sys::mount(c"tmpfs", LAYER, c"tmpfs", 0, c"mode=755")
            .context("cannot mount memory for what is written")?;
    } else {
        let disk = self::disk(overlay)?;
        // A file system in a sparse file is not to be filled with zeros.
        sys::mount(&disk, LAYER, c"ext4", 0, c"noinit_itable").context(&format!(
            "cannot mount the ext4 file system of the disk {}",
            overlay.escape_ascii()
        ))?;
    }
    for folder in [c"/layer/upper", c"/layer/work"] {
        sys::mkdir(folder, 0o755).context("cannot make a folder for what is written")?;
    }
    Ok(())
}

fn mount_overlay() -> Result<(), Problem> {
    let layers = c"lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work";
    sys::mount(c"overlay", NEW, c"overlay", 0, layers).context("cannot mount the overlay")
}

/// Makes what is mounted there `/`. The kernel's file systems go along.
pub(crate) fn switch(new: &CStr) -> Result<(), Problem> {
    for folder in [c"/dev", c"/proc", c"/sys"] {
        let target = files::path(&[new.to_bytes(), folder.to_bytes()])
            .context("cannot name a folder of the root")?;
        sys::mkdir(&target, 0o755)
            .and_then(|()| sys::mount(folder, &target, c"", MS_MOVE, c""))
            .context(&format!("cannot mount {folder:?} in the root"))?;
    }
    // The initramfs's memory is the guest's. Its other files are gone already, or folders.
    let _ = sys::unlink(c"/init");
    sys::chdir(new)
        .and_then(|()| sys::mount(c".", c"/", c"", MS_MOVE, c""))
        .and_then(|()| sys::chroot(c"."))
        .and_then(|()| sys::chdir(c"/"))
        .context("cannot enter the root")
}

/// From here on nothing is written to a root that is to be read-only.
pub(crate) fn seal(root: &Root) -> Result<(), Problem> {
    match root {
        Root::Disk {
            read_only: true, ..
        } => {
            let flags = MS_REMOUNT | MS_RDONLY;
            sys::mount(c"", c"/", c"", flags, c"").context("cannot make the root read-only")
        }
        _ => Ok(()),
    }
}

/// The device of the disk with this serial number.
fn disk(serial: &[u8]) -> Result<CString, Problem> {
    for _ in 0..PATIENCE {
        for name in sys::list(c"/sys/block").unwrap_or_default() {
            let number = files::path(&[b"/sys/block/", &name, b"/serial"])
                .and_then(|path| files::read(&path));
            if number.is_ok_and(|number| number.trim_ascii_end() == serial) {
                return files::path(&[b"/dev/", &name]).context("cannot name a disk");
            }
        }
        sys::sleep(1);
    }
    Err(Problem::setup(format!(
        "there is no disk whose serial number is {}",
        serial.escape_ascii()
    )))
}
