//! A guest that breaks every rule of virtio, against all devices at once. Runs on this machine's own KVM, and in the lab on one
//! like a processor's: what is proved is the VMM's side of both.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::thread;

use ampoule_tests::{guests, harness};

use crate::driver::{End, finish, run};

const SECTOR: usize = 512;
const SECTORS: usize = 128;
/// The one that the guest writes to, to see that the disk works.
const WRITTEN: usize = 2;

/// How many cases there are of each number for each queue of a device.
const CASES_OF_A_QUEUE: &[(u32, usize)] = &[
    (1, 4),
    (2, 4),
    (3, 2),
    (4, 6),
    (5, 3),
    (6, 6),
    (7, 1),
    (11, 1),
    (13, 2),
    (14, 4),
];

/// And for each device.
const CASES_OF_A_DEVICE: &[(u32, usize)] = &[(8, 1), (9, 2), (12, 1)];

/// A device in the guest's words, its queues, and how many cases there are of the numbers that are not the same for all.
type Device = (&'static str, &'static [usize], &'static [(u32, usize)]);

const DISK: Device = ("block", &[0], &[(10, 2), (15, 19)]);
const READ_ONLY_DISK: Device = ("block-1", &[0], &[(10, 2), (15, 20)]);
const NET: Device = ("net", &[0, 1], &[(10, 2), (16, 13)]);
const RNG: Device = ("rng", &[0], &[(10, 1), (18, 1)]);
const CONSOLE: Device = ("console", &[1], &[(10, 1), (18, 1)]);
const VSOCK: Device = ("vsock", &[0, 1], &[(10, 2), (17, 4)]);

fn guest() -> Command {
    let mut command = run(["--memory", "64M", "--cpus", "2", "--timeout", "500s"]);
    command.args(["--kernel", guests::VIRTIO_HOSTILE, "--cmdline", "memory=64"]);
    command
}

/// Fails unless the guest has come to its end, with every case of these devices.
#[track_caller]
fn check(end: End, devices: &[Device]) {
    let end = end.expect_code(0);
    let text = end.text();
    assert!(text.ends_with("PASS\n"), "{}", end.describe());
    let mut seen: HashMap<(String, u32), usize> = HashMap::new();
    for line in text.lines().filter(|line| line.starts_with("case ")) {
        let mut words = line.split(' ').skip(1);
        let (number, device) = (words.next().unwrap(), words.next().unwrap());
        assert!(line.ends_with(": ok"), "{line}");
        *seen
            .entry((device.into(), number.parse().unwrap()))
            .or_default() += 1;
    }
    for (name, queues, own) in devices {
        for (number, count) in CASES_OF_A_DEVICE.iter().chain(*own) {
            let found = seen.remove(&((*name).into(), *number));
            assert_eq!(found, Some(*count), "case {number} of {name}");
        }
        for queue in *queues {
            let name = format!("{name}.{queue}");
            for (number, count) in CASES_OF_A_QUEUE {
                let found = seen.remove(&(name.clone(), *number));
                assert_eq!(found, Some(*count), "case {number} of {name}");
            }
        }
    }
    assert!(seen.is_empty(), "{seen:?}");
    // Each device was broken a hundred times: fewer and fewer of them are worth a line.
    let lines = end.errors.lines().count();
    assert!(lines < 30 * devices.len(), "{}", end.describe());
}

/// A disk whose every byte tells its sector.
fn disk(path: &Path) -> Vec<u8> {
    let content: Vec<u8> = (0..SECTORS * SECTOR)
        .map(|at| (at / SECTOR + 1) as u8)
        .collect();
    fs::write(path, &content).unwrap();
    content
}

pub(crate) fn disks_entropy_console_and_sockets_survive_a_hostile_driver() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let content = disk(&first);
    disk(&second);
    let socket = folder.path().join("v.sock");
    let mut command = guest();
    command
        .arg("--disk")
        .arg(format!("path={}", first.display()));
    command.arg("--disk");
    command.arg(format!("path={},readonly", second.display()));
    command
        .arg("--vsock")
        .arg(format!("cid=3,socket={}", socket.display()));
    let console = folder.path().join("console");
    command.arg("--console");
    command.arg(format!("file:{}", console.display()));
    check(
        finish(command),
        &[DISK, READ_ONLY_DISK, RNG, CONSOLE, VSOCK],
    );
    // Of what a guest must not write, nothing is written.
    assert!(fs::read(&second).unwrap() == content, "the read-only disk");
    let now = fs::read(&first).unwrap();
    let (start, end) = (WRITTEN * SECTOR, (WRITTEN + 1) * SECTOR);
    assert!(now[..start] == content[..start], "the disk's start");
    assert!(now[end..] == content[end..], "the disk's end");
    assert!(!socket.exists());
}

pub(crate) fn a_network_survives_a_hostile_driver() {
    let tap = match thread::spawn(tap_of_its_own).join().unwrap() {
        Ok(tap) => tap,
        Err(err) => {
            let reason = format!("no tap: {err}");
            return harness::skip("hostile::a_network_survives_a_hostile_driver", &reason);
        }
    };
    let mut command = guest();
    command.arg("--net").arg(format!("fd={}", tap.as_raw_fd()));
    check(finish(command), &[NET, RNG]);
}

/// A tap that is up, in a network namespace that has nothing else; this thread stays there.
fn tap_of_its_own() -> io::Result<File> {
    let done = |result: i32| match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: takes no pointer.
    done(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    // Without it the host would send frames of its own.
    fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").or_else(|err| {
        let is_missing = err.kind() == io::ErrorKind::NotFound;
        is_missing.then_some(()).ok_or(err)
    })?;
    let tun = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: plain data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"hostile") {
        *to = *from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the request lives through the call, which reads and writes it.
    done(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request lives through the call, which reads it.
    done(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) })?;
    // SAFETY: takes no pointer. The VMM inherits it.
    done(unsafe { libc::fcntl(tun.as_raw_fd(), libc::F_SETFD, 0) })?;
    Ok(tun)
}
