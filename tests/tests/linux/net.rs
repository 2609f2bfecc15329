//! The network device, by the driver of a stock kernel, over a TAP interface of the host. Needs root, as the lab host has.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::thread;

use crate::driver::{Vm, finish};
use crate::guest::{LOAD_VIRTIO, boot, linux, wait_ready};
use crate::virtio::{ask, expect, host_sum, sha256};

/// What goes each way.
const BYTES: usize = 4 << 20;

/// Runs a program of busybox's on the host.
#[track_caller]
pub(crate) fn host(arguments: &str) {
    let output = Command::new("/bin/busybox")
        .args(arguments.split(' '))
        .output()
        .expect("no busybox");
    assert!(output.status.success(), "{arguments}: {output:?}");
}

/// Boots a guest on a tap, with addresses `net.1` for the host and `net.2` for the guest.
fn connected(tap: &str, net: &str, more: &str) -> Vm {
    let mut command = linux("6.1", "vmlinux");
    command.arg("--net").arg(format!("tap={tap}{more}"));
    let (mut vm, _) = boot(command);
    host(&format!("ip addr add {net}.1/24 dev {tap}"));
    host(&format!("ip link set {tap} up"));
    ask(&mut vm, LOAD_VIRTIO);
    ask(&mut vm, &format!("ip addr add {net}.2/24 dev eth0"));
    ask(&mut vm, "ip link set eth0 up");
    vm
}

/// Pings, and TCP in both directions: what arrives is what was sent.
pub(crate) fn a_guest_talks_to_its_host() {
    let more = ",mac=02:00:00:00:00:07,mtu=1400,id=lan";
    let vm = &mut connected("ampoule0", "10.83.0", more);
    expect(vm, "cat /sys/class/net/eth0/address", "02:00:00:00:00:07");
    expect(vm, "cat /sys/class/net/eth0/mtu", "1400");
    expect(vm, "cat /sys/class/net/eth0/carrier", "1");
    ask(vm, "ping -c 3 -W 30 10.83.0.1");
    host("ping -c 3 -W 30 10.83.0.2");

    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("10.83.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let sent = folder.path().join("sent");
    let bytes: Vec<u8> = (0..BYTES)
        .map(|at| (at ^ at >> 8 ^ at >> 16) as u8)
        .collect();
    fs::write(&sent, &bytes).unwrap();
    let taken = folder.path().join("taken");
    let there = taken.clone();
    // First the guest gets a file, then it gives one.
    let peer = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let _ = stream.read(&mut [0]);
        let (mut stream, _) = listener.accept().unwrap();
        let mut got = vec![0; BYTES];
        stream.read_exact(&mut got).unwrap();
        fs::write(there, got).unwrap();
    });
    let connect = format!("nc 10.83.0.1 {port}");
    ask(vm, &format!("{connect} </dev/null >/got.bin"));
    assert_eq!(sha256(vm, "/got.bin"), sum_of(&sent));
    ask(vm, "dd if=/dev/urandom of=/own.bin bs=1M count=4");
    ask(vm, &format!("{connect} </own.bin >/dev/null"));
    peer.join().unwrap();
    assert_eq!(sha256(vm, "/own.bin"), sum_of(&taken));

    // The driver goes, which resets the device, and comes back.
    ask(vm, "rmmod virtio_net && insmod /lib/virtio_net.ko");
    ask(vm, "ip addr add 10.83.0.2/24 dev eth0");
    ask(vm, "ip link set eth0 up");
    host("ping -c 3 -W 30 10.83.0.2");
    vm.send("poweroff -f\n");
}

fn sum_of(path: &Path) -> String {
    host_sum(path.to_str().unwrap())
}

/// Without its tap the guest is alone, and otherwise well.
pub(crate) fn a_tap_that_goes_leaves_the_guest_running() {
    let mut vm = connected("ampoule1", "10.83.1", "");
    ask(&mut vm, "ping -c 1 -W 30 10.83.1.1");
    // Down, a tap refuses frames.
    host("ip link set ampoule1 down");
    ask(&mut vm, "! ping -c 2 -W 1 10.83.1.1");
    host("ip link set ampoule1 up");
    ask(&mut vm, "ping -c 3 -W 30 10.83.1.1");
    host("ip link del ampoule1");
    ask(&mut vm, "! ping -c 2 -W 1 10.83.1.1");
    expect(&mut vm, "cat /sys/class/net/eth0/carrier", "1");
    vm.send("poweroff -f\n");
    vm.end().expect_code(0);
}

/// A tap that the test opens: it serves the guest that a reset leads to as it did the first.
pub(crate) fn an_inherited_tap_serves_one_guest_after_another() {
    let tap = open_tap("ampoule3");
    host("ip addr add 10.83.3.1/24 dev ampoule3");
    host("ip link set ampoule3 up");
    let mut command = linux("6.1", "vmlinux");
    command.args(["--on-reboot", "restart", "--net"]);
    command.arg(format!("fd={}", tap.as_raw_fd()));
    let (mut vm, _) = boot(command);
    for ending in ["reboot -f\n", "poweroff -f\n"] {
        ask(&mut vm, LOAD_VIRTIO);
        ask(&mut vm, "ip addr add 10.83.3.2/24 dev eth0");
        ask(&mut vm, "ip link set eth0 up");
        ask(&mut vm, "ping -c 3 -W 30 10.83.3.1");
        vm.send(ending);
        if ending.starts_with("reboot") {
            wait_ready(&mut vm);
        }
    }
    vm.end().expect_code(0).expect_silence();
}

/// Opens a tap that children inherit.
pub(crate) fn open_tap(name: &str) -> File {
    let tun = File::options().read(true).write(true).open("/dev/net/tun");
    let tun = tun.expect("no taps");
    // SAFETY: plain data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the request lives through the call, which reads and writes it.
    let made = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: takes no pointer.
    let kept = unsafe { libc::fcntl(tun.as_raw_fd(), libc::F_SETFD, 0) };
    assert_eq!(kept, 0);
    tun
}

/// What is no tap, and a tap of another VM.
pub(crate) fn a_tap_that_cannot_be_opened_is_named() {
    let with = |net: &str| {
        let mut command = linux("6.1", "vmlinux");
        command.args(["--net", net]);
        finish(command).expect_code(125)
    };
    with("tap=lo").expect_error("cannot open tap \"lo\"");
    with("fd=0").expect_error("descriptor 0 is not a tap");
    let mut command = linux("6.1", "vmlinux");
    command.args(["--net", "tap=ampoule2"]);
    let (mut vm, _) = boot(command);
    with("tap=ampoule2").expect_error("another process has it");
    vm.send("poweroff -f\n");
    vm.end().expect_code(0).expect_silence();
}
