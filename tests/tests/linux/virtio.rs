//! Virtio devices, by the drivers of stock kernels.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::driver::Vm;
use crate::guest::{LOAD_VIRTIO, boot, linux};
use crate::host::{Loop, Mount};

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
pub(crate) fn expect(vm: &mut Vm, question: &str, expected: &str) {
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

pub(crate) fn sha256(vm: &mut Vm, file: &str) -> String {
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
    disks("6.1");
}

/// The same by a newer driver.
pub(crate) fn linux_6_12_reads_and_writes_disks() {
    disks("6.12");
}

fn disks(version: &str) {
    let folder = tempfile::tempdir().unwrap();
    let first = image(folder.path(), "first", 8 << 20);
    let second = image(folder.path(), "second", 1 << 20);
    let mut command = linux(version, "vmlinux");
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

/// One guest after another, on the same images: what the first wrote is what the second finds.
pub(crate) fn every_engine_and_format_keeps_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let lower = Loop::new(&folder.path().join("lower"), 64 << 20);
    let ext4 = Mount::ext4(lower.path(), folder.path().join("ext4"));
    let disks = [
        (folder.path().join("ring"), "engine=io_uring,queues=2"),
        (ext4.path().join("direct"), "direct"),
        (ext4.path().join("direct-sync"), "direct,engine=sync"),
        (folder.path().join("qcow2"), "format=qcow2,queues=2"),
        (
            folder.path().join("limited"),
            "engine=io_uring,iops=500,bandwidth=2M,bandwidth-burst=1M",
        ),
    ];
    let letters = ["a", "b", "c", "d", "e"];
    let boot = || {
        let mut command = linux("6.1", "vmlinux");
        command.args(["--cpus", "2"]);
        for (path, options) in &disks {
            let path = path.display();
            command.arg("--disk");
            command.arg(format!("path={path},size=8M,{options}"));
        }
        let (mut vm, _) = boot(command);
        ask(&mut vm, LOAD_VIRTIO);
        vm
    };
    let mut vm = boot();
    ask(
        &mut vm,
        "dd if=/dev/urandom of=/tmp.bin bs=1k count=3071 2>/dev/null",
    );
    let written = sha256(&mut vm, "/tmp.bin");
    for letter in letters {
        expect(&mut vm, &format!("cat /sys/block/vd{letter}/size"), "16384");
        let write = format!("dd if=/tmp.bin of=/dev/vd{letter} bs=1k seek=513 conv=fsync");
        ask(&mut vm, &write);
    }
    // Behind what was written, and where a cluster ends in the middle.
    ask(&mut vm, "blkdiscard -o 4194304 -l 3670528 /dev/vdd");
    vm.send("poweroff -f\n");
    vm.end().expect_code(0);

    let mut vm = boot();
    for letter in letters {
        let read = format!("dd if=/dev/vd{letter} of=/back.bin bs=1k skip=513 count=3071");
        ask(&mut vm, &read);
        assert_eq!(sha256(&mut vm, "/back.bin"), written, "{letter}");
    }
    vm.send("poweroff -f\n");
    vm.end().expect_code(0);
    assert!(fs::read(&disks[3].0).unwrap().starts_with(b"QFI\xfb"));
}

/// The image grows; the guest hears of it without a restart. It shrinks; the guest does not.
pub(crate) fn a_disk_grows_while_it_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let first = image(folder.path(), "first", 8 << 20);
    let second = image(folder.path(), "second", 8 << 20);
    let mut command = linux("6.1", "vmlinux");
    command.arg("--disk").arg(format!("path={first}"));
    command
        .arg("--disk")
        .arg(format!("path={second},engine=io_uring,id=ring"));
    let (mut vm, _) = boot(command);
    ask(&mut vm, LOAD_VIRTIO);
    let resize = |path: &str, len| {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_len(len).unwrap();
    };
    resize(&first, 12 << 20);
    resize(&second, 16 << 20);
    vm.signal(libc::SIGUSR2);
    for (letter, sectors) in [("a", 24576), ("b", 32768)] {
        let size =
            format!("until [ $(cat /sys/block/vd{letter}/size) = {sectors} ]; do sleep 0.1; done");
        ask(&mut vm, &size);
    }
    expect(&mut vm, "dmesg", "new size: 24576 512-byte");
    ask(
        &mut vm,
        "dd if=/bin/busybox of=/dev/vdb bs=64k seek=192 count=4 conv=fsync",
    );
    assert_eq!(fs::metadata(&second).unwrap().len(), 16 << 20);
    resize(&first, 4 << 20);
    vm.signal(libc::SIGUSR2);
    ask(
        &mut vm,
        "! dd if=/dev/vda bs=64k skip=180 count=1 of=/back.bin",
    );
    expect(&mut vm, "cat /sys/block/vda/size", "24576");
    vm.send("poweroff -f\n");
    vm.end()
        .expect_code(0)
        .expect_error("disk0: the image has shrunk to 4194304 bytes");
}

/// Bytes by which each sector is told from its neighbours.
fn original(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 512) as u8 ^ at as u8).collect()
}

/// The same sum by the host's program.
pub(crate) fn host_sum(path: &str) -> String {
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
