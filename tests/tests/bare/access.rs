//! A host whose `/dev/kvm` is not there, or not this user's: what is said, and what to do about it.
//!
//! Each VM gets a `/dev` of its own, in a mount namespace that goes with it, which takes root.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::ptr;

use ampoule_tests::{guests, harness};

use crate::driver::{ampoule, finish};

/// "nobody", on every Linux.
const NOBODY: u32 = 65534;

fn done(result: i32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A mount, as a system call between fork and exec.
fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the strings live through the call; there is no data.
    done(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            ptr::null(),
        )
    })
}

/// An empty file, with the rights that are given.
fn create(path: &CStr, mode: libc::mode_t) -> io::Result<()> {
    // SAFETY: the string lives through the call.
    let file = unsafe { libc::open(path.as_ptr(), libc::O_CREAT | libc::O_CLOEXEC, mode) };
    done(file.min(0))
}

/// Runs between fork and exec: an empty folder becomes /dev, with what the VM needs in it, so that anybody may read that.
/// `with_kvm` gives it a `kvm` that is root's alone, and makes the process nobody's.
fn replace_dev(files: &[(CString, &CStr)], with_kvm: bool) -> io::Result<()> {
    // SAFETY: takes no pointer.
    done(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    mount(c"none", c"/", c"none", libc::MS_REC | libc::MS_PRIVATE)?;
    mount(c"tmpfs", c"/dev", c"tmpfs", 0)?;
    for (file, place) in files {
        create(place, 0o755)?;
        mount(file, place, c"none", libc::MS_BIND)?;
    }
    if with_kvm {
        create(c"/dev/kvm", 0o600)?;
        // SAFETY: neither call takes a pointer but for an empty list.
        unsafe {
            done(libc::setgroups(0, ptr::null()))?;
            done(libc::setgid(NOBODY))?;
            done(libc::setuid(NOBODY))?;
        }
    }
    Ok(())
}

/// A VM with a /dev of its own.
fn run(with_kvm: bool) -> Command {
    let guest = ["run", "--memory", "64M", "--kernel", "/dev/guest"];
    within(&guest, with_kvm)
}

/// `ampoule` where there is no KVM; a guest is at /dev/guest.
pub(crate) fn without_kvm(arguments: &[&str]) -> Command {
    within(arguments, false)
}

fn within(arguments: &[&str], with_kvm: bool) -> Command {
    let path = |path: &Path| CString::new(path.as_os_str().as_bytes()).unwrap();
    let files = [
        (path(ampoule()), c"/dev/ampoule"),
        (path(Path::new(guests::POWEROFF)), c"/dev/guest"),
    ];
    let mut command = Command::new("/dev/ampoule");
    command.args(arguments);
    // SAFETY: the closure makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(move || replace_dev(&files, with_kvm)) };
    command
}

pub(crate) fn is_root() -> bool {
    // SAFETY: takes no pointer and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

pub(crate) fn without_access_to_kvm_the_group_is_named() {
    if !is_root() {
        let name = "access::without_access_to_kvm_the_group_is_named";
        return harness::skip(name, "only root can make a /dev of its own");
    }
    finish(run(true))
        .expect_code(125)
        .expect_error("/dev/kvm")
        .expect_error("permission denied")
        .expect_error("usermod -aG kvm");
}

pub(crate) fn without_kvm_the_module_is_named() {
    if !is_root() {
        let name = "access::without_kvm_the_module_is_named";
        return harness::skip(name, "only root can make a /dev of its own");
    }
    finish(run(false))
        .expect_code(125)
        .expect_error("/dev/kvm")
        .expect_error("modprobe kvm");
}
