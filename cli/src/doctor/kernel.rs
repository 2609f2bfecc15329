//! Interfaces of the host's kernel that later parts of a VMM build on: userfaultfd, io_uring, Landlock, control groups.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr::null;

use super::Check;
use super::host::{Access, Host};

pub(super) fn examine(host: &Host) -> Vec<Check> {
    vec![
        userfaultfd(host.access("/dev/userfaultfd"), try_userfaultfd()),
        io_uring(
            try_io_uring(),
            host.read_number("/proc/sys/kernel/io_uring_disabled"),
        ),
        landlock(landlock_abi(), host.read("/sys/kernel/security/lsm")),
        cgroup(host),
    ]
}

fn userfaultfd(device: Access, call: io::Result<()>) -> Check {
    let name = "userfaultfd";
    let help = "sudo sysctl vm.unprivileged_userfaultfd=1, or give this user /dev/userfaultfd";
    match (device, call) {
        (Access::Opens, _) => Check::ok(name, "/dev/userfaultfd opens"),
        (_, Ok(())) => Check::ok(name, "by system call"),
        (_, Err(err)) => match err.raw_os_error() {
            Some(libc::EPERM) => Check::missing(name, "not for this user").help(help),
            Some(libc::ENOSYS) => Check::missing(name, "not in this kernel"),
            _ => Check::missing(name, crate::report::io_text(&err)),
        },
    }
}

/// Creates a userfaultfd that handles faults of the kernel, too: KVM's are such.
fn try_userfaultfd() -> io::Result<()> {
    // SAFETY: the call takes flags only.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just created and is owned by nobody else; descriptors fit an int.
    drop(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) });
    Ok(())
}

fn io_uring(call: io::Result<()>, disabled: Option<u64>) -> Check {
    let name = "io_uring";
    match call {
        Ok(()) => Check::ok(name, "available"),
        Err(err) => match (err.raw_os_error(), disabled) {
            (Some(libc::ENOSYS), _) => Check::missing(name, "not in this kernel"),
            (Some(libc::EPERM), Some(1..)) => {
                Check::missing(name, "disabled").help("sudo sysctl kernel.io_uring_disabled=0")
            }
            (Some(libc::EPERM), _) => Check::missing(name, "not permitted")
                .help("a container's seccomp filter may forbid it"),
            _ => Check::missing(name, crate::report::io_text(&err)),
        },
    }
}

/// Asks for a ring without parameters: a kernel that would make one complains about the parameters.
fn try_io_uring() -> io::Result<()> {
    // SAFETY: a null pointer is what the call is asked to refuse; it is never read through in this process.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, null::<u8>()) };
    match io::Error::last_os_error() {
        _ if result >= 0 => Ok(()),
        err if err.raw_os_error() == Some(libc::EFAULT) => Ok(()),
        err => Err(err),
    }
}

fn landlock(abi: io::Result<u32>, modules: Option<String>) -> Check {
    let name = "landlock";
    match abi {
        Ok(version) => Check::ok(name, format!("ABI {version}")),
        Err(err) if err.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            let active = modules
                .filter(|list| !list.is_empty())
                .unwrap_or("...".into());
            Check::missing(name, "switched off at boot").help(format!(
                "add landlock to the security modules on the host's kernel command line: \
                 lsm=landlock,{active}"
            ))
        }
        Err(err) if err.raw_os_error() == Some(libc::ENOSYS) => {
            Check::missing(name, "not in this kernel")
                .help("it came with Linux 5.13 (CONFIG_SECURITY_LANDLOCK)")
        }
        Err(err) => Check::missing(name, crate::report::io_text(&err)),
    }
}

fn landlock_abi() -> io::Result<u32> {
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    let (attr, size) = (null::<u8>(), 0usize);
    // SAFETY: with this flag the call takes a null pointer and a size of 0, and only returns a number.
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            attr,
            size,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn cgroup(host: &Host) -> Check {
    let name = "cgroup";
    if let Some(controllers) = host.read("/sys/fs/cgroup/cgroup.controllers") {
        return Check::ok(name, format!("version 2 ({controllers})"));
    }
    if host.exists("/sys/fs/cgroup/memory") || host.exists("/sys/fs/cgroup/unified") {
        return Check::warn(name, "version 1")
            .help("boot the host with systemd.unified_cgroup_hierarchy=1");
    }
    Check::missing(name, "not mounted")
        .help("sudo mount -t cgroup2 none /sys/fs/cgroup (guests run without it)")
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::host::tests::FakeRoot;
    use super::*;

    fn os(code: i32) -> io::Error {
        io::Error::from_raw_os_error(code)
    }

    #[test]
    fn what_is_closed_to_this_user_says_how_to_open_it() {
        let check = userfaultfd(Access::Absent, Err(os(libc::EPERM)));
        assert!(check.help.unwrap().contains("unprivileged_userfaultfd=1"));
        assert_eq!(
            userfaultfd(Access::Opens, Err(os(libc::EPERM))).status,
            Status::Ok
        );
        let check = io_uring(Err(os(libc::EPERM)), Some(2));
        assert_eq!(
            check.help.as_deref(),
            Some("sudo sysctl kernel.io_uring_disabled=0")
        );
        let check = io_uring(Err(os(libc::EPERM)), None);
        assert!(check.help.unwrap().contains("seccomp"));
    }

    #[test]
    fn landlock_tells_its_version_or_why_not() {
        assert_eq!(landlock(Ok(4), None).detail, "ABI 4");
        let off = landlock(Err(os(libc::EOPNOTSUPP)), Some("capability,yama".into()));
        assert!(off.help.unwrap().ends_with("lsm=landlock,capability,yama"));
        assert_eq!(
            landlock(Err(os(libc::ENOSYS)), None).status,
            Status::Missing
        );
    }

    #[test]
    fn control_groups_tell_their_version() {
        let v2 = FakeRoot::new(
            "cgroup2",
            &[("/sys/fs/cgroup/cgroup.controllers", "cpu memory\n")],
        );
        assert_eq!(cgroup(&v2.host()).detail, "version 2 (cpu memory)");
        let v1 = FakeRoot::new("cgroup1", &[("/sys/fs/cgroup/memory/x", "")]);
        assert_eq!(cgroup(&v1.host()).status, Status::Warn);
        let none = FakeRoot::new("cgroup0", &[("/proc/x", "")]);
        assert_eq!(cgroup(&none.host()).status, Status::Missing);
    }

    /// The kernel under the test answers one way or the other, and never with a crash.
    #[test]
    fn the_calls_are_safe_to_make() {
        for check in examine(&Host::new("/")) {
            assert!(!check.detail.is_empty(), "{check:?}");
        }
    }
}
