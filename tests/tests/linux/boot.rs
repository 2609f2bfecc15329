//! Ways in, CPUs, memory: what the guest finds is what was asked for.

use crate::guest::{Ready, boot, linux};

const MIB: u64 = 1 << 20;

/// Boots, checks the release, and powers off.
fn boots(version: &str, image: &str, arguments: &[&str]) -> Ready {
    let mut command = linux(version, image);
    command.args(arguments);
    let (mut vm, ready) = boot(command);
    assert!(
        ready.release.starts_with(&format!("{version}.")),
        "it is {}",
        ready.release
    );
    vm.send("poweroff -f\n");
    vm.end().expect_code(0).expect_silence();
    ready
}

pub(crate) fn linux_6_1_bzimage_decompressed_on_the_host() {
    assert_eq!(boots("6.1", "vmlinuz", &[]).cpus, 1);
}

pub(crate) fn linux_6_1_bzimage_by_the_64_bit_protocol() {
    boots("6.1", "vmlinuz", &["--entry", "linux64"]);
}

pub(crate) fn linux_6_1_bzimage_by_its_own_decompressor() {
    boots("6.1", "vmlinuz", &["--entry", "bzimage"]);
}

pub(crate) fn linux_6_1_elf_by_pvh() {
    boots("6.1", "vmlinux", &["--entry", "pvh"]);
}

pub(crate) fn linux_6_1_elf_by_the_64_bit_protocol() {
    boots("6.1", "vmlinux", &["--entry", "linux64"]);
}

pub(crate) fn linux_6_12_bzimage_decompressed_on_the_host() {
    boots("6.12", "vmlinuz", &[]);
}

pub(crate) fn linux_6_12_bzimage_by_the_64_bit_protocol() {
    boots("6.12", "vmlinuz", &["--entry", "linux64"]);
}

pub(crate) fn linux_6_12_bzimage_by_its_own_decompressor() {
    boots("6.12", "vmlinuz", &["--entry", "bzimage"]);
}

pub(crate) fn linux_6_12_elf_by_pvh() {
    boots("6.12", "vmlinux", &["--entry", "pvh"]);
}

pub(crate) fn linux_6_12_elf_by_the_64_bit_protocol() {
    boots("6.12", "vmlinux", &["--entry", "linux64"]);
}

pub(crate) fn two_cpus() {
    assert_eq!(boots("6.1", "vmlinux", &["--cpus", "2"]).cpus, 2);
}

pub(crate) fn four_cpus() {
    assert_eq!(boots("6.12", "vmlinux", &["--cpus", "4"]).cpus, 4);
}

/// The guest has all of its memory but what its kernel keeps for itself: its image, 64 bytes for each page, and 64 MiB of
/// bounce buffers (swiotlb) where there is memory above 4 GiB.
fn memory_agrees(size: &str, mib: u64) {
    let ready = boots("6.1", "vmlinux", &["--memory", size]);
    let (total, seen) = (mib * MIB, ready.memory_kib * 1024);
    let bounce = if mib > 3072 { 64 * MIB } else { 0 };
    let kept = 48 * MIB + total / 4096 * 64 + bounce;
    assert!(
        seen < total && seen + kept > total,
        "{seen} of {total} bytes"
    );
}

/// The kernel's image alone takes 36 MiB; with 64 MiB it runs out of memory while it unpacks the initramfs.
pub(crate) fn the_least_memory_that_the_kernel_bears() {
    memory_agrees("80M", 80);
}

pub(crate) fn three_gib() {
    memory_agrees("3G", 3072);
}

/// Two of them above the hole.
pub(crate) fn five_gib() {
    memory_agrees("5G", 5120);
}

pub(crate) fn shared_memory() {
    boots("6.1", "vmlinux", &["--memory-backing", "shared"]);
}

/// A stock kernel finds clock, timer, interrupts, topology and devices by itself.
pub(crate) fn the_platform_is_found() {
    let mut command = linux("6.1", "vmlinux");
    command.args(["--cpus", "2"]);
    let (mut vm, _) = boot(command);
    let mut answer = |question: &str, expected: &str| {
        // The shell's echo of the question must not pass for the answer.
        vm.send(&format!("{question}; echo answe''red\n"));
        let said = vm.read_until("answered");
        assert!(
            said.contains(expected),
            "{question}: no {expected:?} in {said}"
        );
    };
    // Where the TSC is invariant, Linux prefers it; it knows of the other all the same.
    let clock = "/sys/devices/system/clocksource/clocksource0/available_clocksource";
    answer(&format!("cat {clock}"), "kvm-clock");
    answer(
        "cat /sys/devices/system/clockevents/clockevent0/current_device",
        "lapic-deadline",
    );
    answer("grep x2apic /proc/cpuinfo | head -c 9999", "x2apic");
    answer(
        "cat /sys/devices/system/cpu/cpu1/topology/core_cpus_list",
        "1\r",
    );
    answer(
        "cat /sys/devices/system/cpu/cpu1/topology/package_cpus_list",
        "0-1",
    );
    answer("grep ttyS0 /proc/interrupts", "IO-APIC");
    answer("cat /proc/ioports", "rtc");
    answer("cat /sys/class/rtc/rtc0/date", "20");
    answer("ls /sys/bus/acpi/devices", "QEMU0001");
    vm.send("poweroff -f\n");
    vm.end().expect_code(0);
}
