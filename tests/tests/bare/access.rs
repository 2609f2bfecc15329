//! A host whose `/dev/kvm` is not there, or not this user's, or whose user may not have more threads: what is said, and what to
//! do about it.
//!
//! Each VM gets a `/dev` of its own, in a mount namespace that goes with it, which takes root.

use std::ffi::{CStr, CString};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::ptr;

use ampoule_tests::{guests, harness};

use crate::driver::{ampoule, finish};

/// "nobody", on every Linux.
const NOBODY: u32 = 65534;

/// A user that has no other process.
const ALONE: u32 = 1_234_567_890;

/// What a `/dev` has of KVM.
#[derive(Clone, Copy)]
enum Kvm {
    None,
    /// A file that is root's alone.
    Roots,
    /// The device with this number, for everybody.
    Everybodys(libc::dev_t),
}

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
/// Where there is a `kvm`, the process becomes the user's.
fn replace_dev(files: &[(CString, &CStr)], kvm: Kvm, user: u32) -> io::Result<()> {
    // SAFETY: takes no pointer.
    done(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    mount(c"none", c"/", c"none", libc::MS_REC | libc::MS_PRIVATE)?;
    mount(c"tmpfs", c"/dev", c"tmpfs", 0)?;
    for (file, place) in files {
        create(place, 0o755)?;
        mount(file, place, c"none", libc::MS_BIND)?;
    }
    match kvm {
        Kvm::None => return Ok(()),
        Kvm::Roots => create(c"/dev/kvm", 0o600)?,
        Kvm::Everybodys(number) => {
            // SAFETY: the strings live through the calls. The mask of new files would be in the way.
            unsafe {
                done(libc::mknod(c"/dev/kvm".as_ptr(), libc::S_IFCHR, number))?;
                done(libc::chmod(c"/dev/kvm".as_ptr(), 0o666))?;
            }
        }
    }
    // SAFETY: none of the calls takes a pointer but for an empty list.
    unsafe {
        done(libc::setgroups(0, ptr::null()))?;
        done(libc::setgid(user))?;
        done(libc::setuid(user))
    }
}

/// A VM with a /dev of its own.
const RUN: [&str; 5] = ["run", "--memory", "64M", "--kernel", "/dev/guest"];

/// `ampoule` where there is no KVM; a guest is at /dev/guest.
pub(crate) fn without_kvm(arguments: &[&str]) -> Command {
    within(arguments, Kvm::None, NOBODY)
}

fn within(arguments: &[&str], kvm: Kvm, user: u32) -> Command {
    let path = |path: &Path| CString::new(path.as_os_str().as_bytes()).unwrap();
    let files = [
        (path(ampoule()), c"/dev/ampoule"),
        (path(Path::new(guests::POWEROFF)), c"/dev/guest"),
    ];
    let mut command = Command::new("/dev/ampoule");
    command.args(arguments);
    // SAFETY: the closure makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(move || replace_dev(&files, kvm, user)) };
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
    finish(within(&RUN, Kvm::Roots, NOBODY))
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
    finish(without_kvm(&RUN))
        .expect_code(125)
        .expect_error("/dev/kvm")
        .expect_error("modprobe kvm");
}

/// Whichever thread it is that the user may not have: the library's, or the one that KVM gives each VM, for want of which KVM_RUN
/// would fail over and over.
pub(crate) fn exhausted_threads_are_a_clean_error() {
    if !is_root() {
        let name = "access::exhausted_threads_are_a_clean_error";
        return harness::skip(name, "only root can become a user without other processes");
    }
    let kvm = Kvm::Everybodys(fs::metadata("/dev/kvm").unwrap().rdev());
    let disk = tempfile::NamedTempFile::new().unwrap();
    fs::set_permissions(disk.path(), Permissions::from_mode(0o666)).unwrap();
    disk.as_file().set_len(4096).unwrap();
    let disk = format!("path={}", disk.path().display());
    // A disk has a thread of its own beside the vCPU's, KVM's and the first.
    let threads = |threads| {
        let mut command = within(&[&RUN[..], &["--disk", &disk]].concat(), kvm, ALONE);
        let limit = libc::rlimit {
            rlim_cur: threads,
            rlim_max: threads,
        };
        // SAFETY: setrlimit(2) may be called between fork and exec; the pointer is to a live value.
        unsafe {
            command.pre_exec(move || done(libc::setrlimit(libc::RLIMIT_NPROC, &raw const limit)));
        }
        command
    };
    let enough = (1..16)
        .find(|&limit| {
            let end = finish(threads(limit));
            if end.status.success() {
                return true;
            }
            end.expect_code(125)
                .expect_error("error: ")
                .expect_error("the limit of threads or processes is reached");
            false
        })
        .expect("no limit is enough");
    assert!(enough > 2, "nothing was refused");
}
