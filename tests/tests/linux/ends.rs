//! How a Linux guest comes to its end, and the exit code that it gives.

use std::fs;

use serde_json::Value;

use crate::guest::{boot, linux};

pub(crate) fn a_shell_is_typed_to_and_powers_off() {
    let (mut vm, _) = boot(linux("6.1", "vmlinux"));
    // A paste of more than any FIFO holds, to a program that counts it.
    vm.send("stty -echo; busybox wc -c; echo coun''ted\n");
    let paste = "0123456789abcdef".repeat(512);
    for line in paste.as_bytes().chunks(256) {
        vm.send(std::str::from_utf8(line).expect("ASCII"));
        vm.send("\n");
    }
    vm.send("\x04");
    let said = vm.read_until("counted");
    let expected = paste.len() + paste.len() / 256;
    assert!(
        said.contains(&expected.to_string()),
        "no {expected} in {said}"
    );
    vm.send("poweroff -f\n");
    vm.end().expect_code(0).expect_silence();
}

pub(crate) fn a_panic_gives_134_and_its_line() {
    let (mut vm, _) = boot(linux("6.12", "vmlinux"));
    vm.send("echo c > /proc/sysrq-trigger\n");
    vm.end()
        .expect_code(134)
        .expect_output("---[ end Kernel panic")
        .expect_error("Kernel panic - not syncing: sysrq triggered crash");
}

pub(crate) fn a_killed_vmm_leaves_no_trouble_behind() {
    let folder = tempfile::tempdir().expect("no temporary folder");
    let serial = format!("file:{}", folder.path().join("console.log").display());
    let (vm, _) = boot(linux("6.1", "vmlinux"));
    vm.signal(libc::SIGKILL);
    vm.end().expect_signal(libc::SIGKILL);
    // The next start takes the same files.
    let mut command = linux("6.1", "vmlinux");
    command.args(["--serial", &serial, "--timeout", "1s"]);
    crate::driver::finish(command).expect_code(124);
}

pub(crate) fn sigterm_presses_the_power_button() {
    let mut command = linux("6.1", "vmlinux");
    command.args(["--grace", "100s"]);
    let (mut vm, _) = boot(command);
    vm.send("insmod /lib/evdev.ko; insmod /lib/button.ko\n");
    vm.send("printf '#!/bin/sh\\npoweroff -f\\n' > /etc/acpi/PWRF/00000080\n");
    vm.send("chmod 755 /etc/acpi/PWRF/00000080\n");
    vm.send("while ! [ -e /dev/input/event0 ]; do sleep 0.1; done\n");
    // In the foreground it needs no /var/log.
    vm.send("acpid -d >/dev/null 2>&1 &\n");
    vm.send("while ! ls -l /proc/$(pidof acpid)/fd | grep -q input; do sleep 0.1; done\n");
    vm.send("echo wait''ing\n");
    vm.expect("waiting");
    vm.signal(libc::SIGTERM);
    vm.end().expect_code(0);
}

pub(crate) fn a_deadline_gives_124() {
    let mut command = linux("6.1", "vmlinux");
    command.args(["--timeout", "1s"]);
    crate::driver::finish(command)
        .expect_code(124)
        .expect_error("time limit");
}

pub(crate) fn the_timeline_marks_init() {
    let folder = tempfile::tempdir().expect("no temporary folder");
    let file = folder.path().join("timeline.json");
    let mut command = linux("6.1", "vmlinux");
    // Without "quiet" the kernel says when it runs /init.
    command.args(["--cmdline", "console=ttyS0"]);
    command.arg("--timeline").arg(&file);
    // Replaces the "--append quiet" that `linux` gives.
    let (mut vm, _) = boot(loud(command));
    vm.send("poweroff -f\n");
    vm.end().expect_code(0);
    let text = fs::read_to_string(&file).expect("no timeline");
    let timeline: Value = serde_json::from_str(&text).expect("no JSON");
    let at = |name: &str| {
        timeline["marks"]
            .as_array()
            .and_then(|marks| marks.iter().find(|mark| mark["name"] == name))
            .and_then(|mark| mark["at_us"].as_u64())
            .unwrap_or_else(|| panic!("no mark {name} in {text}"))
    };
    let marks = [
        "kvm-open",
        "kernel-loaded",
        "first-entry",
        "first-serial-byte",
        "/init",
    ];
    let times: Vec<u64> = marks.iter().map(|name| at(name)).collect();
    assert!(times.is_sorted(), "{marks:?} at {times:?}");
}

/// The same command without its "--append quiet".
fn loud(command: std::process::Command) -> std::process::Command {
    let mut loud = std::process::Command::new(command.get_program());
    let arguments: Vec<_> = command.get_args().collect();
    let quiet = arguments
        .windows(2)
        .position(|pair| pair == ["--append", "quiet"]);
    let kept = arguments
        .iter()
        .enumerate()
        .filter(|(index, _)| quiet.is_none_or(|at| *index != at && *index != at + 1));
    loud.args(kept.map(|(_, argument)| argument));
    loud
}
