//! The virtio console, by the drivers of stock kernels: a shell, its size, and many bytes both ways.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;

use crate::driver::Vm;
use crate::guest::{LOAD_VIRTIO, boot, linux, linux_with, wait_ready};
use crate::virtio::{ask, expect, host_sum, sha256};

const LEN: usize = 1 << 20;

/// A guest whose shell is on the console, and the console on a terminal.
fn shell(version: &str) -> (Vm, String) {
    let mut command = linux_with(version, "vmlinux", "quiet shell=hvc0");
    command.args(["--console", "stdio"]);
    let mut vm = Vm::on_terminal(command);
    let ready = wait_ready(&mut vm);
    assert!(ready.release.starts_with(version), "{}", ready.release);
    wait_prompt(&mut vm);
    (vm, ready.release)
}

/// What is typed before the shell has set up its terminal, it throws away.
fn wait_prompt(vm: &mut Vm) {
    vm.expect("/ # ");
}

pub(crate) fn linux_6_1_has_a_shell_on_it_that_knows_its_size() {
    shell_of_a_size("6.1");
}

pub(crate) fn linux_6_12_has_a_shell_on_it_that_knows_its_size() {
    shell_of_a_size("6.12");
}

fn shell_of_a_size(version: &str) {
    let (mut own, _) = shell(version);
    let vm = &mut own;
    vm.resize(120, 40);
    // The shell is a session of its own, whose terminal is resized by an interrupt of the device's.
    let until = |size| format!("until stty size | grep -q '{size}'; do :; done");
    ask(vm, &until("40 120"));
    vm.resize(91, 33);
    ask(vm, &until("33 91"));
    expect(vm, "cat /proc/consoles", "hvc0");
    expect(vm, "tty", "/dev/hvc0");
    vm.send("poweroff -f\n");
    own.end().expect_code(0);
}

/// The size that the terminal has when the VM starts.
pub(crate) fn the_first_size_is_known() {
    let (mut vm, _) = shell("6.1");
    ask(&mut vm, "until stty size | grep -q '24 80'; do :; done");
    vm.send("poweroff -f\n");
}

pub(crate) fn linux_6_1_moves_megabytes_both_ways() {
    megabytes("6.1");
}

pub(crate) fn linux_6_12_moves_megabytes_both_ways() {
    megabytes("6.12");
}

fn with_socket(version: &str) -> (Vm, UnixStream, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    let mut command: Command = linux(version, "vmlinux");
    // Where it is the kernel's console, a ^O that is typed there is a SysRq.
    command.args(["--cmdline", "console=ttyS0"]);
    command.arg("--console");
    command.arg(format!("socket:{}", path.display()));
    let (mut vm, _) = boot(command);
    ask(&mut vm, LOAD_VIRTIO);
    let stream = crate::driver::connect(&path);
    (vm, stream, folder)
}

/// Typed faster than it is read, while as much is printed.
fn megabytes(version: &str) {
    let (mut vm, stream, folder) = with_socket(version);
    let vm = &mut vm;
    // The driver forgets the settings when nobody has it open.
    ask(vm, "exec 3<>/dev/hvc0; stty raw -echo <&3");
    ask(vm, "dd if=/dev/urandom of=/out.bin bs=64k count=16");
    let sum = sha256(vm, "/out.bin");
    ask(vm, "echo begin-of-data > /dev/hvc0");
    let typed: Vec<u8> = (0..LEN).map(|at| (at / 251) as u8 ^ at as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    let mut reader = stream;
    let printed = thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&typed).unwrap());
        let printed = scope.spawn(|| {
            let mut all = Vec::new();
            let mut piece = [0; 4096];
            let start = b"begin-of-data\n";
            loop {
                let begin = all.windows(start.len()).position(|seen| seen == start);
                if let Some(at) = begin.map(|at| at + start.len())
                    && all.len() >= at + LEN
                {
                    break all[at..].to_vec();
                }
                let count = reader.read(&mut piece).unwrap();
                assert!(count > 0, "the console ended after {} bytes", all.len());
                all.extend_from_slice(&piece[..count]);
            }
        });
        let order = format!(
            "cat /out.bin > /dev/hvc0 & dd if=/dev/hvc0 of=/in.bin bs=4k count={LEN} \
             iflag=fullblock,count_bytes; wait"
        );
        ask(vm, &order);
        printed.join().unwrap()
    });
    assert_eq!(printed.len(), LEN);
    let path = folder.path().join("printed");
    std::fs::write(&path, printed).unwrap();
    assert_eq!(host_sum(path.to_str().unwrap()), sum);
    std::fs::write(&path, typed).unwrap();
    assert_eq!(sha256(vm, "/in.bin"), host_sum(path.to_str().unwrap()));
    vm.send("poweroff -f\n");
}

/// The client goes in the middle of a flood, which blocks nobody; the next one gets the rest.
pub(crate) fn a_client_that_goes_leaves_the_guest_running() {
    let (mut vm, mut stream, folder) = with_socket("6.1");
    let vm = &mut vm;
    vm.send("yes flood-of-lines > /dev/hvc0 & echo star''ted\n");
    vm.expect("started");
    // Few: each line is two exits and more.
    stream.read_exact(&mut [0; 5000]).unwrap();
    drop(stream);
    ask(vm, "true");
    let mut stream = crate::driver::connect(&folder.path().join("console"));
    let mut seen = vec![0; 5000];
    stream.read_exact(&mut seen).unwrap();
    assert!(String::from_utf8_lossy(&seen).contains("flood-of-lines"));
    ask(vm, "kill $!");
    vm.send("poweroff -f\n");
}

/// The panic is seen where it is printed, though the serial port has none of it.
pub(crate) fn a_panic_is_seen_on_it() {
    let mut command = linux_with("6.1", "vmlinux", "panic=-1 shell=hvc0");
    command.args(["--console", "stdio", "--cmdline", "console=hvc0"]);
    let mut vm = Vm::on_terminal(command);
    wait_ready(&mut vm);
    wait_prompt(&mut vm);
    vm.send("echo c > /proc/sysrq-trigger\n");
    vm.end().expect_code(134).expect_error("sysrq triggered");
}
