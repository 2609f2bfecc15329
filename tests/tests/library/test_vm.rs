//! The library's test feature: what a VM under test shows, and what is said of one that fails.

use std::time::Duration;

use ampoule_tests::guests;
use ampoule_vmm::ExitReason;
use ampoule_vmm::config::{DiskConfig, VmConfig};
use ampoule_vmm::fault::{BlockEffect, BlockFault, BlockOp, When};
use ampoule_vmm::test::{HangKind, Pattern, TestError, TestVm};

use crate::guest::config;

/// A deadline that is to pass.
const SHORT: Duration = Duration::from_millis(300);

fn echoed(words: &str) -> VmConfig {
    VmConfig {
        cmdline: Some(words.into()),
        ..config(guests::CMDLINE_ECHO, 1)
    }
}

pub(crate) fn a_guest_is_read_typed_to_and_seen_to_end() {
    let mut vm = TestVm::boot(config(guests::SERIAL_ECHO, 1)).unwrap();
    vm.expect("ready").unwrap();
    vm.send("hello").unwrap();
    let word = Pattern::regex("(?P<word>HEL+O)").unwrap();
    let found = vm.expect(&word).unwrap();
    assert_eq!(found.captures, [("word".to_owned(), "HELLO".to_owned())]);
    vm.send_line("q").unwrap();
    vm.expect_power_off().unwrap();
    assert!(vm.finish().is_ok(), "it stays so");
}

pub(crate) fn an_end_that_nobody_waited_for_is_told() {
    let mut vm = TestVm::boot(config(guests::SERIAL_HELLO, 1)).unwrap();
    match vm.expect("login:") {
        Err(err @ TestError::Ended { .. }) => {
            let said = format!("{err:?}");
            assert!(
                said.contains("\"login:\" was not on the console: the guest powered off"),
                "{said}"
            );
            assert!(said.ends_with("\n  Hello from a bare guest."), "{said}");
        }
        other => panic!("{other:?}"),
    }
    let mut vm = TestVm::boot(config(guests::PANIC_TEXT, 1)).unwrap();
    match vm.expect("login:") {
        Err(TestError::Ended {
            reason, console, ..
        }) => {
            assert!(matches!(*reason, ExitReason::Panic(_)), "{reason}");
            assert!(
                console.iter().any(|line| line.contains("end Kernel panic")),
                "{console:?}"
            );
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) fn a_guest_that_waits_and_one_that_computes_are_told_apart() {
    let hang = |guest: &str| {
        let mut vm = TestVm::builder(config(guest, 1))
            .timeout(SHORT)
            .boot()
            .unwrap();
        match vm.expect("nowhere") {
            Err(TestError::Deadline { hang, .. }) => hang,
            other => panic!("{guest}: {other:?}"),
        }
    };
    let idle = hang(guests::IDLE);
    assert_eq!(idle.kind, HangKind::Idle, "{idle}");
    let spinning = hang(guests::SPIN);
    assert_eq!(spinning.kind, HangKind::Spinning, "{spinning}");
    // By the symbols of its ELF.
    assert!(
        spinning.to_string().contains("in the kernel at _start+"),
        "{spinning}"
    );
    assert!(spinning.vcpus[0].registers.is_some());
}

pub(crate) fn a_paused_guest_is_no_hang() {
    let mut vm = TestVm::boot(config(guests::COUNTER, 1)).unwrap();
    vm.expect("ready").unwrap();
    vm.vm().pause().unwrap();
    vm.set_timeout(SHORT);
    match vm.expect("nowhere") {
        Err(TestError::Deadline { hang, .. }) => assert_eq!(hang.kind, HangKind::Paused),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn a_vmm_that_does_not_stop_when_it_is_told_to_is_stuck() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let config = VmConfig {
        cmdline: Some("op=n first=1 slots=16".into()),
        disk: vec![DiskConfig::new(image.path())],
        ..config(guests::VIRTIO_BLOCK, 1)
    };
    let mut vm = TestVm::builder(config)
        .faulty_disk("disk0")
        .timeout(SHORT)
        .boot()
        .unwrap();
    // A disk that takes its time keeps the thread that a pause waits for.
    let disk = vm.disk_faults("disk0").unwrap().clone();
    let late = BlockEffect::Delay(Duration::from_secs(10));
    disk.set([BlockFault::new(BlockOp::Write, When::Every(1), late)]);
    let outcome = vm.expect("nowhere");
    // Another plan ends the delay.
    disk.clear();
    match outcome {
        Err(TestError::Deadline { hang, .. }) => {
            assert_eq!(hang.kind, HangKind::VmmStuck, "{hang}");
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) fn what_is_forbidden_fails_the_step_and_the_end() {
    let mut vm = TestVm::boot(echoed("[    1.000000] BUG: a test")).unwrap();
    match vm.expect("nowhere") {
        Err(TestError::Forbidden { found, .. }) => {
            assert_eq!(found.text, "cmdline: [    1.000000] BUG: a test")
        }
        other => panic!("{other:?}"),
    }
    // It comes after the last step, or with it.
    let mut vm = TestVm::boot(echoed("[    1.000000] BUG: a test")).unwrap();
    vm.expect("cmdline").unwrap();
    assert!(matches!(vm.finish(), Err(TestError::Forbidden { .. })));
    let allowed = TestVm::builder(echoed("[    1.000000] BUG: a test"))
        .forbid(vec!["BUG:".into()], vec!["a test".into()]);
    let mut vm = allowed.boot().unwrap();
    vm.expect("modules: 0").unwrap();
    vm.finish().unwrap();
}

pub(crate) fn colours_are_no_part_of_the_text() {
    let mut vm = TestVm::boot(echoed("\x1b[1;31mre\x1b[0md")).unwrap();
    vm.expect("cmdline: red\n").unwrap();
}

pub(crate) fn no_vm_is_an_error_with_its_remedy() {
    let error = TestVm::boot(VmConfig::default()).unwrap_err();
    let said = format!("{error:?}");
    assert!(
        said.contains("cannot be booted") && said.contains("\nhelp: "),
        "{said}"
    );
}
