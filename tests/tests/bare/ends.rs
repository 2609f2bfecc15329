//! Every way in which a VM can come to its end, and the exit code that it gives.

use std::fs;

use ampoule_tests::guests;

use crate::driver::{Vm, finish, run_guest};

pub(crate) fn a_guest_that_powers_off_gives_0_and_silence() {
    let end = finish(run_guest(guests::POWEROFF))
        .expect_code(0)
        .expect_silence();
    assert_eq!(end.text(), "", "ampoule prints nothing of its own");
}

pub(crate) fn a_reset_by_acpi_gives_0() {
    finish(run_guest(guests::RESET_ACPI))
        .expect_code(0)
        .expect_silence();
}

pub(crate) fn a_reset_by_the_keyboard_controller_gives_0() {
    finish(run_guest(guests::RESET_I8042))
        .expect_code(0)
        .expect_silence();
}

/// Twice by ACPI, once by the keyboard controller; each time the guest begins anew, and its input is not lost.
pub(crate) fn a_reset_starts_the_guest_again_if_asked_for() {
    let mut command = run_guest(guests::KEYS);
    command.args(["--on-reboot", "restart"]);
    let mut vm = Vm::piped(command);
    for key in ["r", "k", "r", "p"] {
        vm.expect("ready\n");
        vm.send(key);
    }
    vm.end().expect_code(0).expect_silence();
}

/// With more than one vCPU, all of which have to be stopped and made anew.
pub(crate) fn a_restart_takes_all_cpus() {
    let mut command = run_guest(guests::KEYS);
    command.args(["--on-reboot", "restart", "--cpus", "4"]);
    let mut vm = Vm::piped(command);
    for key in ["r", "r", "p"] {
        vm.expect("ready\n");
        vm.send(key);
    }
    vm.end().expect_code(0).expect_silence();
}

pub(crate) fn a_triple_fault_gives_134() {
    finish(run_guest(guests::TRIPLE_FAULT))
        .expect_code(134)
        .expect_error("triple fault");
}

/// A crash is not a reset: it ends the VM even where a reset would not.
pub(crate) fn a_triple_fault_is_not_restarted() {
    let mut command = run_guest(guests::TRIPLE_FAULT);
    command.args(["--on-reboot", "restart"]);
    finish(command)
        .expect_code(134)
        .expect_error("triple fault");
}

/// A KVM in software cannot execute the guest's `int3`, and the message says which bytes those were and where to look; any
/// other KVM can, and the guest dies of having no handler for it.
pub(crate) fn what_kvm_cannot_execute_gives_134_and_the_bytes() {
    let end = finish(run_guest(guests::INTERNAL_ERROR)).expect_code(134);
    if !end.errors.contains("triple fault") {
        end.expect_error("cc fa f4").expect_error("ampoule doctor");
    }
}

/// The vCPU is named, whichever it is, and the others, which spin or were never started, do not keep the VM.
pub(crate) fn a_triple_fault_of_another_vcpu_gives_134_and_its_number() {
    for vcpu in [1, 3] {
        finish(ap_crash(&format!("t{vcpu}")))
            .expect_code(134)
            .expect_error(&format!("triple fault on vCPU {vcpu}"));
    }
}

/// The same for what KVM cannot execute; a KVM that can comes to a triple fault.
pub(crate) fn what_kvm_cannot_execute_on_another_vcpu_gives_134_and_its_number() {
    let end = finish(ap_crash("i2")).expect_code(134);
    if end.errors.contains("triple fault") {
        end.expect_error("triple fault on vCPU 2");
    } else {
        end.expect_error("vCPU 2").expect_error("cc 0f 0b");
    }
}

fn ap_crash(how: &str) -> std::process::Command {
    let mut command = run_guest(guests::AP_CRASH);
    // Without the time limit a VM that does not notice would spin.
    command.args(["--cpus", "4", "--timeout", "100s", "--cmdline", how]);
    command
}

/// A power-off does not wait for vCPUs that nobody has started.
pub(crate) fn a_power_off_does_not_wait_for_vcpus_that_never_started() {
    let mut command = run_guest(guests::POWEROFF);
    command.args(["--cpus", "64"]);
    finish(command).expect_code(0).expect_silence();
}

pub(crate) fn a_panic_told_to_pvpanic_gives_134() {
    finish(run_guest(guests::PVPANIC))
        .expect_code(134)
        .expect_error("panic");
}

pub(crate) fn a_panic_seen_on_the_console_gives_134_and_an_excerpt() {
    let end = finish(run_guest(guests::PANIC_TEXT)).expect_code(134);
    end.expect_output("---[ end Kernel panic - not syncing: test ]---\r\n")
        .expect_error("Kernel panic - not syncing: test")
        .expect_error("Run /init as init process");
}

pub(crate) fn a_guest_that_never_ends_meets_its_timeout() {
    for guest in [guests::SPIN, guests::HLT_FOREVER, guests::SERIAL_FLOOD] {
        let mut command = run_guest(guest);
        command.args(["--timeout", "300ms"]);
        finish(command).expect_code(124).expect_error("time limit");
    }
}

/// vCPUs that nobody starts do not keep the VM from its end.
pub(crate) fn a_timeout_ends_vcpus_that_never_started() {
    let mut command = run_guest(guests::HLT_FOREVER);
    command.args(["--timeout", "300ms", "--cpus", "8"]);
    finish(command).expect_code(124);
}

pub(crate) fn sigterm_presses_the_power_button() {
    let mut vm = Vm::piped(run_guest(guests::POWER_BUTTON));
    vm.expect("ready\n");
    vm.signal(libc::SIGTERM);
    vm.end()
        .expect_code(0)
        .expect_output("power button\n")
        .expect_silence();
}

pub(crate) fn sigint_presses_the_power_button() {
    let mut vm = Vm::piped(run_guest(guests::POWER_BUTTON));
    vm.expect("ready\n");
    vm.signal(libc::SIGINT);
    vm.end().expect_code(0).expect_output("power button\n");
}

/// 128 and the signal's number, whether the guest polls, sleeps or spins.
pub(crate) fn a_guest_that_ignores_the_power_button_is_stopped_after_its_grace() {
    for (signal, code) in [(libc::SIGTERM, 143), (libc::SIGINT, 130)] {
        let mut command = run_guest(guests::KEYS);
        command.args(["--grace", "50ms"]);
        let mut vm = Vm::piped(command);
        vm.expect("ready\n");
        vm.signal(signal);
        vm.end().expect_code(code);
    }
}

pub(crate) fn a_second_signal_does_not_wait_for_the_grace() {
    let mut command = run_guest(guests::KEYS);
    command.args(["--grace", "1h"]);
    let mut vm = Vm::piped(command);
    vm.expect("ready\n");
    vm.signal(libc::SIGTERM);
    vm.signal(libc::SIGINT);
    let end = vm.end();
    let code = end.status.code();
    // Signals that wait together are taken by number, not by age.
    assert!(matches!(code, Some(143 | 130)), "{}", end.describe());
}

pub(crate) fn no_grace_is_no_wait() {
    let mut command = run_guest(guests::KEYS);
    command.args(["--grace", "0s"]);
    let mut vm = Vm::piped(command);
    vm.expect("ready\n");
    vm.signal(libc::SIGTERM);
    vm.end().expect_code(143);
}

/// Nothing of a killed VM stops the next one.
pub(crate) fn a_killed_vmm_leaves_no_trouble_behind() {
    let directory = tempfile::tempdir().unwrap();
    let socket = crate::driver::argument("socket:", &directory.path().join("console"));
    let start = || {
        let mut command = run_guest(guests::KEYS);
        command.arg("--serial").arg(&socket);
        command
    };
    let killed = Vm::piped(start());
    crate::serial::connect(&directory.path().join("console"));
    killed.signal(libc::SIGKILL);
    killed.end().expect_signal(libc::SIGKILL);

    let vm = Vm::piped(start());
    let mut client = crate::serial::connect(&directory.path().join("console"));
    crate::serial::read_until(&mut client, "ready\n");
    crate::serial::send(&mut client, b"p");
    vm.end().expect_code(0);
}

/// Its disk, its socket and its console are the next one's, whatever became of it.
pub(crate) fn a_killed_vmm_leaves_disks_and_sockets_free() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    fs::write(path("disk"), [0; 4096]).unwrap();
    let start = || {
        let mut command = run_guest(guests::KEYS);
        command.args(["--disk", &format!("path={}", path("disk"))]);
        command.args(["--vsock", &format!("cid=3,socket={}", path("v"))]);
        command.args(["--console", &format!("socket:{}", path("console"))]);
        Vm::piped(command)
    };
    for _ in 0..3 {
        let mut killed = start();
        killed.expect("ready\n");
        killed.signal(libc::SIGKILL);
        killed.end().expect_signal(libc::SIGKILL);
        assert!(fs::exists(path("v")).unwrap(), "nothing is left to replace");
    }
    let mut vm = start();
    vm.expect("ready\n");
    vm.send("p");
    vm.end().expect_code(0).expect_silence();
    assert!(!fs::exists(path("v")).unwrap());
}
