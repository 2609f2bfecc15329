//! The network device under load: `iperf3`, floods and large frames through a tap, a tap with vhost, and user networking.
//!
//! Nothing is timed: what is sent arrives, and the guest stays well. Needs root, as the lab host has.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::driver::{Vm, finish, pidfd, poll};
use crate::guest::{boot_with_tools, linux};
use crate::net::{host, open_tap};
use crate::resolver::Resolver;
use crate::virtio::{ask, expect};

/// An `iperf3` server on the host; it ends when this is dropped.
pub(crate) struct Server(Child);

impl Server {
    pub(crate) fn start(address: &str, port: u16) -> Self {
        let mut child = Command::new("iperf3")
            .args(["-s", "--forceflush", "-B", address, "-p", &port.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("no iperf3");
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("Server listening") {
            line.clear();
            assert_ne!(said.read_line(&mut line).unwrap(), 0, "iperf3 has ended");
        }
        // What it says later is not read, and must not hold it up.
        thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// TCP and UDP from the guest and to it; what the receiver of each says of it. So much that rings are gone through ten times and more, by
/// small frames and by large ones.
fn transfer(vm: &mut Vm, server: &str, port: u16, more: &str) {
    for options in [
        "-n 6M",
        "-n 6M -R",
        "-u -b 40M -l 1300 -n 1M",
        "-u -b 40M -l 1300 -n 1M -R",
    ] {
        let said = ask(
            vm,
            &format!("iperf3 -c {server} -p {port} {options} {more}"),
        );
        received(&said, options);
    }
}

/// Fails unless the receiver had something.
#[track_caller]
fn received(said: &str, what: &str) {
    let result = said.lines().rfind(|line| line.trim().ends_with("receiver"));
    let result = result.unwrap_or_else(|| panic!("{what}: {said}"));
    assert!(!result.contains(" 0.00 Bytes"), "{what}: {result}");
}

/// A guest on a tap of this name, with addresses `net.1` for the host and `net.2` for the guest.
fn on_tap(version: &str, tap: &str, net: &str, more: &str) -> Vm {
    let mut command = linux(version, "vmlinux");
    command.args(["--cpus", "2", "--net", &format!("tap={tap}{more}")]);
    let mut vm = boot_with_tools(command);
    host(&format!("ip addr add {net}.1/24 dev {tap}"));
    host(&format!("ip link set {tap} up"));
    ask(&mut vm, &format!("ip addr add {net}.2/24 dev eth0"));
    ask(&mut vm, "ip link set lo up; ip link set eth0 up");
    ask(&mut vm, &format!("/usr/bin/ping -c 1 -w 30 {net}.1"));
    vm
}

fn by_tap(version: &str, tap: &str, net: &str, more: &str) -> Vm {
    let mut vm = on_tap(version, tap, net, more);
    let address = format!("{net}.1");
    let _server = Server::start(&address, 5201);
    transfer(&mut vm, &address, 5201, "");
    vm
}

pub(crate) fn iperf_through_a_tap() {
    by_tap("6.1", "ampoule10", "10.83.10", "").send("poweroff -f\n");
}

pub(crate) fn linux_6_12_iperf_through_a_tap() {
    by_tap("6.12", "ampoule11", "10.83.11", ",queues=2").send("poweroff -f\n");
}

/// As by a tap alone, after a reset, too; and it is the kernel that moves the frames.
pub(crate) fn iperf_through_vhost() {
    let mut vm = by_tap("6.1", "ampoule12", "10.83.12", ",vhost=on");
    let thread = format!("vhost-{}", vm.pid());
    let threads = || {
        let processes = fs::read_dir("/proc").unwrap();
        let comm = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("comm")).ok();
        let names = processes.filter_map(|entry| comm(entry.ok()?));
        names.filter(|name| name.trim() == thread).count()
    };
    assert_eq!(threads(), 1, "{thread}");
    let again = "rmmod virtio_net && insmod /lib/virtio_net.ko && ip addr add 10.83.12.2/24 dev eth0 && ip link set eth0 up";
    ask(&mut vm, again);
    ask(&mut vm, "/usr/bin/ping -c 3 -w 30 10.83.12.1");
    ask(&mut vm, "/usr/bin/ping -f -q -c 500 -w 100 10.83.12.1");
    // Without its tap the guest is alone, and otherwise well.
    host("ip link del ampoule12");
    ask(&mut vm, "! /usr/bin/ping -c 2 -W 1 10.83.12.1");
    vm.send("poweroff -f\n");
    let end = vm.end().expect_code(0);
    for line in end.errors.lines() {
        assert!(
            line.contains("vhost-net failed: the tap takes no frames"),
            "{line}"
        );
    }
}

/// The driver uses as many pairs as it has CPUs, and others when it is told to.
fn pairs(vm: &mut Vm, address: &str) {
    expect(vm, "ls /sys/class/net/eth0/queues | grep -c rx", "2");
    expect(
        vm,
        "ethtool -l eth0 | grep Combined: | tr '\\n' ' '",
        "4 Combined:\t2",
    );
    let _server = Server::start(address, 5202);
    for count in [4, 1, 3] {
        ask(vm, &format!("ethtool -L eth0 combined {count}"));
        let queues = "ls /sys/class/net/eth0/queues | grep -c rx";
        expect(vm, queues, &count.to_string());
        ask(vm, &format!("/usr/bin/ping -c 1 -w 30 {address}"));
        for options in ["-P 6 -n 1M", "-P 6 -n 1M -R"] {
            let said = ask(vm, &format!("iperf3 -c {address} -p 5202 {options}"));
            received(&said, options);
        }
    }
    // Several of them had something to do.
    let busy = "ethtool -S eth0 | grep '[rt]x_queue_[123]_packets' | grep -v ': 0$'";
    expect(vm, busy, "packets");
}

pub(crate) fn several_queues() {
    let mut vm = on_tap("6.1", "ampoule13", "10.83.13", ",queues=4");
    pairs(&mut vm, "10.83.13.1");
    vm.send("poweroff -f\n");
    vm.end().expect_code(0).expect_silence();
}

pub(crate) fn several_queues_by_vhost() {
    let mut vm = on_tap("6.1", "ampoule14", "10.83.14", ",queues=4,vhost=on");
    pairs(&mut vm, "10.83.14.1");
    vm.send("poweroff -f\n");
    vm.end().expect_code(0).expect_silence();
}

pub(crate) fn large_frames_and_a_flood() {
    let mut vm = on_tap("6.1", "ampoule15", "10.83.15", ",mtu=9000");
    expect(&mut vm, "cat /sys/class/net/eth0/mtu", "9000");
    host("ip link set ampoule15 mtu 9000");
    let large = "/usr/bin/ping -M do -s 8900 -c 5 -w 60 10.83.15.1";
    expect(&mut vm, large, "5 received");
    host("ping -s 8900 -c 5 -W 30 10.83.15.2");
    ask(
        &mut vm,
        "! /usr/bin/ping -M do -s 9000 -c 1 -w 5 10.83.15.1",
    );
    // A flood is a packet or two longer than it was asked for; the status says whether a thousand answers have come.
    ask(&mut vm, "/usr/bin/ping -f -q -c 1000 -w 100 10.83.15.1");
    vm.send("poweroff -f\n");
    vm.end().expect_code(0).expect_silence();
}

/// Frames that a limit holds back come later, in both directions.
pub(crate) fn a_limited_network_is_slow_and_whole() {
    let more = ",bandwidth=4M,bandwidth-burst=100K,pps=4000,pps-burst=50";
    let mut vm = on_tap("6.1", "ampoule16", "10.83.16", more);
    let _server = Server::start("10.83.16.1", 5203);
    for options in ["-n 4M", "-n 4M -R", "-n 2M --bidir"] {
        let said = ask(&mut vm, &format!("iperf3 -c 10.83.16.1 -p 5203 {options}"));
        received(&said, options);
    }
    vm.send("poweroff -f\n");
    vm.end().expect_code(0).expect_silence();
}

/// Sees to it that the host has a default route, from which passt takes the guest's addresses.
pub(crate) fn uplink() {
    static TAP: OnceLock<Option<File>> = OnceLock::new();
    TAP.get_or_init(|| {
        let routes = fs::read_to_string("/proc/net/route").unwrap();
        let is_default = |line: &str| line.split_whitespace().nth(1) == Some("00000000");
        if routes.lines().any(is_default) {
            return None;
        }
        let tap = open_tap("ampoule20");
        host("ip addr add 10.83.20.1/24 dev ampoule20");
        host("ip link set ampoule20 up");
        host("ip link set lo up");
        host("ip route add default via 10.83.20.254 dev ampoule20");
        Some(tap)
    });
}

/// What `udhcpc` calls.
const LEASE: &str = "[ $1 = bound ] || exit 0; ip addr add $ip/$mask dev $interface; ip link set $interface mtu ${mtu:-1500}; \
     ip route add default via $router dev $interface onlink; echo lease: $router, $dns, $mtu.";

/// A guest with user networking, and the address by which it reaches its host.
fn user(more: &str) -> (Vm, String) {
    uplink();
    let mut command = linux("6.1", "vmlinux");
    command.args(["--cpus", "2", "--net", &format!("user{more}")]);
    let mut vm = boot_with_tools(command);
    ask(&mut vm, "ip link set lo up; ip link set eth0 up");
    ask(
        &mut vm,
        &format!("echo '#!/bin/sh' >/lease; echo '{LEASE}' >>/lease; chmod 755 /lease"),
    );
    let said = ask(&mut vm, "udhcpc -f -q -n -i eth0 -s /lease");
    let lease = said.split("lease: ").nth(1).expect(&said);
    let router = lease.split(',').next().unwrap().trim();
    assert!(router.parse::<Ipv4Addr>().is_ok(), "{said}");
    (vm, router.to_owned())
}

pub(crate) fn iperf_through_user_networking() {
    let (mut vm, gateway) = user(",forward=5211:5201,forward=udp:127.0.0.1:5211:5201");
    let server = Server::start("127.0.0.1", 5204);
    transfer(&mut vm, &gateway, 5204, "");
    drop(server);
    // The other way round: the guest has the server, and the host is led to it.
    ask(
        &mut vm,
        "iperf3 -s -D && while ! netstat -ltn | grep -q :5201; do :; done",
    );
    for options in ["-n 3M", "-n 3M -R", "-u -b 20M -l 1300 -n 1M"] {
        let mut client = Command::new("iperf3");
        client.args(["-c", "127.0.0.1", "-p", "5211"]);
        let output = client.args(options.split(' ')).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{options}: {output:?}");
        received(&said, options);
    }
    vm.send("poweroff -f\n");
    vm.end().expect_code(0).expect_silence();
}

/// Names are asked of a resolver on the host; ports of the host lead into the guest, whatever is behind them.
pub(crate) fn user_networking_resolves_and_forwards() {
    let (mut vm, gateway) = user(",mtu=4000,forward=8083:80");
    expect(&mut vm, "cat /sys/class/net/eth0/mtu", "4000");
    let resolver = Resolver::start([192, 0, 2, 77].into());
    let asked = format!("nslookup -type=a ampoule.test {gateway}");
    expect(&mut vm, &asked, "192.0.2.77");
    drop(resolver);

    let serve = "(echo hello | nc -l -p 80 >/got) & while ! netstat -ltn | grep -q :80; do :; done";
    ask(&mut vm, serve);
    let mut stream = TcpStream::connect("127.0.0.1:8083").unwrap();
    stream.write_all(b"there\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).unwrap();
    assert_eq!(got, "hello\n");
    expect(&mut vm, "wait; cat /got", "there");

    // A reset of the device, and the next driver finds what the first had.
    ask(
        &mut vm,
        "rmmod virtio_net && insmod /lib/virtio_net.ko && ip link set eth0 up",
    );
    expect(&mut vm, "udhcpc -f -q -n -i eth0 -s /lease", "lease: ");
    vm.send("poweroff -f\n");
    vm.end().expect_code(0).expect_silence();
}

/// The passt of a VM.
fn passt_of(vm: &Vm) -> u32 {
    let id = vm.pid();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let is_passt = |pid: &&str| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm"));
        comm.is_ok_and(|name| name.starts_with("passt"))
    };
    let pid = children.split_whitespace().find(is_passt);
    pid.expect("there is no passt").parse().unwrap()
}

/// Waits for the end of a process that runs now; false where it does not come.
fn has_ended(pid: u32) -> impl FnOnce() -> bool {
    let process = pidfd(pid);
    move || {
        poll(
            &[process.as_raw_fd()],
            Instant::now() + Duration::from_secs(60),
        )
    }
}

pub(crate) fn a_passt_that_ends_leaves_the_guest_running() {
    let (mut vm, _) = user("");
    let pid = passt_of(&vm).cast_signed();
    // SAFETY: takes no pointer; the process is a child of a child that has not waited for it.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
    ask(
        &mut vm,
        "for i in 1 2 3 4 5; do /usr/bin/ping -c 1 -W 1 192.0.2.1; done; true",
    );
    ask(
        &mut vm,
        "rmmod virtio_net && insmod /lib/virtio_net.ko && ip link set eth0 up",
    );
    vm.send("poweroff -f\n");
    let end = vm.end().expect_code(0).expect_error("passt has ended");
    let lines = end
        .errors
        .lines()
        .filter(|line| line.contains("net0"))
        .count();
    assert!(lines <= 2, "{}", end.describe());
}

/// However a VM ends, its helper does, too.
pub(crate) fn no_passt_outlives_its_vm() {
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        let (vm, _) = user("");
        let passt = has_ended(passt_of(&vm));
        vm.signal(signal);
        let end = vm.end();
        match signal {
            libc::SIGKILL => drop(end.expect_signal(signal)),
            _ => drop(end),
        }
        assert!(passt(), "signal {signal}");
    }
    let (mut vm, _) = user("");
    let passt = has_ended(passt_of(&vm));
    vm.send("reboot -f\n");
    vm.end().expect_code(0).expect_silence();
    assert!(passt());
}

/// What cannot be is told before the guest runs.
pub(crate) fn user_networking_that_cannot_be_is_explained() {
    uplink();
    let taken = std::net::TcpListener::bind("0.0.0.0:8085").unwrap();
    let with = |net: &str| {
        let mut command = linux("6.1", "vmlinux");
        command.args(["--net", net]);
        command
    };
    finish(with("user,forward=8085:80"))
        .expect_code(125)
        .expect_error("passt has ended, saying")
        .expect_error("ss -lntu");
    drop(taken);
    let mut missing = with("user");
    missing.env("PATH", "/nowhere");
    finish(missing)
        .expect_code(125)
        .expect_error("cannot start passt")
        .expect_error("apt-get install passt");
}
