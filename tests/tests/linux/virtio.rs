//! Virtio devices, by the drivers of stock kernels.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::driver::Vm;
use crate::guest::{LOAD_VIRTIO, boot, linux};

/// Has the guest's shell do something, and returns what it printed.
pub(crate) fn ask(vm: &mut Vm, question: &str) -> String {
    // The shell's echo of the question must not pass for the answer.
    vm.send(&format!("{question}; echo answe''red $?\n"));
    let said = vm.read_until("answered ");
    let status = vm.read_until("\r\n");
    assert_eq!(status.trim(), "0", "{question}: {said}");
    said
}

#[track_caller]
fn expect(vm: &mut Vm, question: &str, expected: &str) {
    let said = ask(vm, question);
    assert!(
        said.contains(expected),
        "{question}: no {expected:?} in {said}"
    );
}

fn image(folder: &Path, name: &str, len: usize) -> String {
    let path = folder.join(name);
    fs::write(&path, original(len)).unwrap();
    path.to_str().unwrap().to_owned()
}

fn sha256(vm: &mut Vm, file: &str) -> String {
    let said = ask(vm, &format!("sha256sum {file} | cut -c1-64"));
    let is_sum = |line: &&str| line.len() == 64;
    said.lines()
        .map(str::trim)
        .find(is_sum)
        .expect(&said)
        .into()
}

/// Two disks: one is written, discarded and survives the guest; one can only be read.
pub(crate) fn disks_are_read_and_written() {
    let folder = tempfile::tempdir().unwrap();
    let first = image(folder.path(), "first", 8 << 20);
    let second = image(folder.path(), "second", 1 << 20);
    let mut command = linux("6.1", "vmlinux");
    command.args(["--cpus", "2"]);
    command
        .arg("--disk")
        .arg(format!("path={first},serial=ampoule-1,queues=2"));
    command.arg("--disk").arg(format!("path={second},readonly"));
    let (mut vm, _) = boot(command);
    let vm = &mut vm;
    ask(vm, LOAD_VIRTIO);
    expect(vm, "cat /sys/block/vda/size", "16384");
    expect(vm, "cat /sys/block/vda/serial", "ampoule-1");
    expect(vm, "cat /sys/block/vda/queue/write_cache", "write back");
    expect(vm, "ls /sys/block/vda/mq | wc -l", "2");
    expect(vm, "cat /sys/block/vdb/ro", "1");

    assert_eq!(sha256(vm, "/dev/vdb"), host_sum(&second));
    let random = "dd if=/dev/urandom of=/tmp.bin bs=1M count=4";
    ask(vm, random);
    ask(vm, "dd if=/tmp.bin of=/dev/vda bs=64k seek=16 conv=fsync");
    let written = sha256(vm, "/tmp.bin");
    ask(vm, "echo 3 > /proc/sys/vm/drop_caches");
    ask(vm, "dd if=/dev/vda of=/back.bin bs=64k skip=16 count=64");
    assert_eq!(sha256(vm, "/back.bin"), written);
    // From half-way into what was written to the end.
    let before = fs::metadata(&first).unwrap().blocks();
    ask(vm, "blkdiscard -o 3145728 -l 5242880 /dev/vda");
    let after = fs::metadata(&first).unwrap().blocks();
    vm.send("poweroff -f\n");
    assert!(
        after + 8000 < before,
        "{before} blocks before, {after} after"
    );
    let content = fs::read(&first).unwrap();
    assert_eq!(content.len(), 8 << 20);
    assert!(content[3 << 20..].iter().all(|byte| *byte == 0));
    assert!(content[..1 << 20] == original(1 << 20)[..]);
}

/// Bytes by which each sector is told from its neighbours.
fn original(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 512) as u8 ^ at as u8).collect()
}

/// The same sum by the host's program.
fn host_sum(path: &str) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text[..64].to_owned()
}

/// The entropy device feeds /dev/hwrng, and is there unless it is turned off.
pub(crate) fn the_entropy_device_feeds_hwrng() {
    let (mut vm, _) = boot(linux("6.1", "vmlinux"));
    ask(&mut vm, LOAD_VIRTIO);
    expect(
        &mut vm,
        "cat /sys/class/misc/hw_random/rng_current",
        "virtio_rng",
    );
    // As many different bytes as a file of noise has.
    let count =
        "dd if=/dev/hwrng bs=4096 count=4 2>/dev/null | od -An -v -tx1 -w1 | sort -u | wc -l";
    expect(&mut vm, count, "256");
    vm.send("poweroff -f\n");
    vm.end().expect_code(0);
}
