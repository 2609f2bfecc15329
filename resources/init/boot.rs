//! A distribution from a disk: finds its root, mounts it, and becomes its own init.
//!
//! It is what the initramfs of a distribution does, for the disk that the guest's machine comes with: `/dev/vda`, or a partition of
//! it. Of the kernel's command line it heeds `init=`, `ro`, `rw` and `rootflags=`. The file `/modules/boot` in the initramfs says
//! that this is wanted; `/modules/FILESYSTEM.list` names the modules of a file system, which are loaded if the root has it.
//!
//! The root is mounted to be read only, and its init checks it and makes it writable by its own `/etc/fstab`, as distributions expect
//! it. Where that file says nothing about the root, as in an image that debootstrap(8) has made, it is made writable here.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;

use crate::disk_layout::{Candidate, Layout};
use crate::sys::{self, Errno, MS_RDONLY, MS_REMOUNT};
use crate::{files, machine, root, say};

/// Says that a disk is to be booted from.
const WANTED: &CStr = c"/modules/boot";

const DISK: &CStr = c"/dev/vda";
const NEW: &CStr = c"/new";

/// Where a distribution has its init: what the kernel itself looks for.
const INITS: [&CStr; 3] = [c"/sbin/init", c"/etc/init", c"/bin/init"];

/// Milliseconds that the disk may take to be there, if its driver is built in.
const PATIENCE: u32 = 5000;

pub(crate) fn is_wanted() -> bool {
    sys::exists(WANTED)
}

/// Becomes the distribution's init. A kernel whose first process ends panics, so that nobody takes a guest that did not come up for
/// one that was powered off.
pub(crate) fn hand_over(arguments: &[&CStr], environment: &[&CStr]) -> ! {
    let reason = match try_to(arguments, environment) {
        Ok(never) => match never {},
        Err(reason) => reason,
    };
    say(format_args!("{reason}"));
    sys::exit(1)
}

/// What the command line says of the root.
#[derive(Default)]
struct Words {
    init: Option<Vec<u8>>,
    flags: Vec<u8>,
    /// `rw`, or `ro`.
    is_writable: Option<bool>,
}

impl Words {
    fn read() -> Self {
        let mut words = Self::default();
        let line = files::read(c"/proc/cmdline").unwrap_or_default();
        for word in line.split(|byte| byte.is_ascii_whitespace()) {
            match word {
                b"--" => break,
                b"ro" => words.is_writable = Some(false),
                b"rw" => words.is_writable = Some(true),
                _ => {}
            }
            if let Some(path) = word.strip_prefix(b"init=") {
                words.init = Some(path.to_vec());
            } else if let Some(flags) = word.strip_prefix(b"rootflags=") {
                words.flags = flags.to_vec();
            }
        }
        words
    }
}

enum Never {}

fn try_to(arguments: &[&CStr], environment: &[&CStr]) -> Result<Never, String> {
    let words = Words::read();
    let layout = layout()?;
    sys::mkdir(NEW, 0o755)
        .map_err(|err| format!("cannot make a folder in the initramfs: {err}"))?;
    let flags = files::path(&[&words.flags]).unwrap_or_default();
    let (candidate, init) = mount_root(&layout, &words, &flags)?;
    let is_writable = words.is_writable.unwrap_or_else(|| !fstab_has_root());
    // What cannot be written to stays as it is: a disk that is read-only, a file system that always is.
    let remounted = is_writable && sys::mount(c"", NEW, c"", MS_REMOUNT, &flags).is_ok();
    log(&format!(
        "the root is {} ({}, {})",
        device(candidate.partition).to_string_lossy(),
        candidate.file_system,
        if remounted {
            "writable"
        } else {
            "read-only until its init says else"
        }
    ));
    // The initramfs's memory is the guest's.
    for name in sys::list(c"/modules").unwrap_or_default() {
        if let Ok(path) = files::path(&[b"/modules/", &name]) {
            let _ = sys::unlink(&path);
        }
    }
    machine::hurry(false);
    root::switch(NEW).map_err(|problem| problem.1)?;
    sys::reset_signals();
    let _ = sys::block_signals(false);
    let owned = |texts: &[&CStr]| texts.iter().map(|&it| it.into()).collect::<Vec<CString>>();
    let mut own = Vec::from([init.clone()]);
    own.extend(owned(arguments.get(1..).unwrap_or_default()));
    let error = sys::execute(&init, &own, &owned(environment));
    Err(format!("cannot run {init:?} of the root: {error}"))
}

/// What is on the disk.
fn layout() -> Result<Layout, String> {
    let failed = |err| format!("cannot open the disk {DISK:?}: {err}");
    let mut rest = PATIENCE;
    let disk = loop {
        match sys::open(DISK, sys::READ) {
            Err(Errno::NOENT) if rest > 0 => rest -= 1,
            other => break other.map_err(failed)?,
        }
        sys::sleep(1);
    };
    let sectors = files::read(c"/sys/class/block/vda/size").map_err(failed)?;
    let sectors = core::str::from_utf8(sectors.trim_ascii()).ok();
    let sectors: u64 = sectors.and_then(|it| it.parse().ok()).unwrap_or(0);
    let mut read = |at: u64, buffer: &mut [u8]| disk.read_at(at, buffer).is_ok();
    Ok(Layout::of(sectors.saturating_mul(512), &mut read))
}

fn device(partition: u32) -> CString {
    let mut name = DISK.to_bytes().to_vec();
    if partition > 0 {
        name.extend(format!("{partition}").bytes());
    }
    // There is no NUL in it.
    CString::new(name).unwrap_or_default()
}

/// Mounts the first candidate that has an init, read-only; the path of that init.
fn mount_root(
    layout: &Layout,
    words: &Words,
    flags: &CStr,
) -> Result<(Candidate, CString), String> {
    let mut inits: Vec<CString> = INITS.iter().map(|&it| it.into()).collect();
    if let Some(init) = &words.init {
        inits = Vec::from([files::path(&[init]).unwrap_or_default()]);
    }
    let mut reasons = String::new();
    for candidate in &layout.candidates {
        let kind = candidate.file_system.as_bytes();
        let list = files::path(&[b"/modules/", kind, b".list"]).unwrap_or_default();
        machine::load_modules(&list, false).finish();
        let device = device(candidate.partition);
        let mut note = |text: &str| {
            reasons.push_str(if reasons.is_empty() { "" } else { "; " });
            reasons.push_str(&format!("{}: {text}", device.to_string_lossy()));
        };
        let kind = files::path(&[kind]).unwrap_or_default();
        match sys::mount(&device, NEW, &kind, MS_RDONLY, flags) {
            Ok(()) => {}
            Err(Errno::NODEV) => {
                note(&format!(
                    "the kernel has no driver of the file system {}",
                    candidate.file_system
                ));
                continue;
            }
            Err(err) => {
                note(&format!(
                    "cannot mount its {}: {err}",
                    candidate.file_system
                ));
                continue;
            }
        }
        if let Some(init) = inits.iter().find(|init| is_in_root(init)) {
            return Ok((*candidate, init.clone()));
        }
        note(&format!(
            "its {} has no {}",
            candidate.file_system,
            inits[0].to_string_lossy()
        ));
        let _ = sys::unmount(NEW);
    }
    if reasons.is_empty() {
        reasons = layout.describe();
    }
    Err(format!(
        "there is nothing to boot from on the disk {DISK:?}: {reasons}"
    ))
}

/// Whether there is such a file where the root is `NEW`, links followed.
fn is_in_root(path: &CStr) -> bool {
    sys::open(NEW, sys::PATH).is_ok_and(|root| sys::open_in(&root, path, sys::PATH).is_ok())
}

/// Whether its own init knows how the root is to be mounted.
fn fstab_has_root() -> bool {
    let root = sys::open(NEW, sys::PATH);
    let content = root
        .and_then(|root| sys::open_in(&root, c"/etc/fstab", sys::READ))
        .and_then(|file| files::content(&file));
    let content = content.unwrap_or_default();
    let mut lines = content.split(|byte| *byte == b'\n');
    lines.any(|line| {
        let mut fields = line
            .split(|byte| byte.is_ascii_whitespace())
            .filter(|field| !field.is_empty());
        let is_comment = fields.next().is_none_or(|first| first.starts_with(b"#"));
        !is_comment && fields.next() == Some(b"/")
    })
}

/// A line among the kernel's messages, which is on the console where those are.
fn log(text: &str) {
    if let Ok(file) = sys::open(c"/dev/kmsg", sys::WRITE) {
        let _ = file.write(format!("<6>ampoule-init: {text}\n").as_bytes());
    }
}
