//! What a handle tells and gives: events, the console, hooks; and what its drop takes.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{io, thread};

use ampoule_tests::guests;
use ampoule_vmm::config::{VmConfig, VsockConfig};
use ampoule_vmm::{ExitReason, VmBuilder, VmEvent, VmHandle, VmThread};

use crate::guest::{Printed, config, ready};

/// Longer than anything here takes, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn events_tell_the_life_of_a_vm() {
    let vm = VmBuilder::new(config(guests::COUNTER, 2)).build().unwrap();
    let events = vm.handle().events();
    let vm = vm.start().unwrap();
    let mut console = Printed::of(&vm);
    console.wait_for("ready", 1);
    vm.pause().unwrap();
    vm.pause().unwrap();
    let since_pause = vm.events();
    vm.resume().unwrap();
    vm.reset().unwrap();
    console.wait_for("ready", 2);
    vm.stop();
    vm.wait();
    let all = [
        VmEvent::Started,
        VmEvent::Paused,
        VmEvent::Resumed,
        VmEvent::Reset,
        VmEvent::Exited(ExitReason::Stopped),
    ];
    assert_eq!(events.collect::<Vec<_>>(), all);
    assert_eq!(since_pause.collect::<Vec<_>>(), all[2..]);
    assert_eq!(vm.events().collect::<Vec<_>>(), all[4..]);
}

pub(crate) fn a_panic_is_told_when_it_is_noticed() {
    let vm = VmBuilder::new(config(guests::PANIC_TEXT, 1))
        .build()
        .unwrap();
    let mut events = vm.handle().events();
    let vm = vm.start().unwrap();
    assert_eq!(events.next(), Some(VmEvent::Started));
    let Some(VmEvent::PanicNoticed { line: Some(line) }) = events.next() else {
        panic!("no panic was noticed");
    };
    assert!(line.contains("Kernel panic"), "{line}");
    let ExitReason::Panic(panic) = vm.wait() else {
        panic!("it was no panic");
    };
    assert_eq!(panic.line, Some(line));
    assert!(matches!(
        events.next(),
        Some(VmEvent::Exited(ExitReason::Panic(_)))
    ));
}

/// Written to before the start, read after the end.
pub(crate) fn the_console_is_there_before_and_after_the_guest() {
    let vm = VmBuilder::new(config(guests::SERIAL_ECHO, 1))
        .build()
        .unwrap();
    let mut early = vm.handle().console().unwrap();
    early.write_all(b"hello").unwrap();
    let vm = vm.start().unwrap();
    early.write_all(b", worldq").unwrap();
    assert_eq!(vm.wait(), ExitReason::PowerOff);
    let mut text = String::new();
    vm.console().unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("ready"), "{text}");
    assert!(text.contains("HELLO, WORLD"), "{text}");
}

pub(crate) fn every_thread_calls_its_hook_before_the_guest_runs() {
    let called = Arc::<Mutex<Vec<String>>>::default();
    let (threads, guest) = (called.clone(), called.clone());
    let vm = VmBuilder::new(config(guests::SERIAL_HELLO, 3))
        .on_thread_start(move |thread_kind| {
            let name = thread::current().name().unwrap_or_default().to_owned();
            let expected = match thread_kind {
                VmThread::Control => "vm-control".to_owned(),
                VmThread::Vcpu { index } => format!("vcpu{index}"),
                other => panic!("{other}"),
            };
            assert_eq!(name, expected);
            threads.lock().unwrap().push(name);
            Ok(())
        })
        .before_guest(move || {
            guest.lock().unwrap().push("guest".into());
            Ok(())
        });
    let vm = vm.build().unwrap();
    let console = vm.handle().console();
    let vm = vm.start().unwrap();
    assert_eq!(vm.wait(), ExitReason::PowerOff);
    let mut called = called.lock().unwrap().clone();
    assert_eq!(called.pop().as_deref(), Some("guest"), "it comes last");
    called.sort();
    assert_eq!(called, ["vcpu0", "vcpu1", "vcpu2", "vm-control"]);
    let mut text = String::new();
    console.unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("Hello"), "{text}");
}

/// A hook that fails or panics, on whatever thread: the guest never runs.
pub(crate) fn a_hook_that_fails_ends_the_vm_before_its_guest_runs() {
    let build = |failing: Option<VmThread>, panics: bool| {
        VmBuilder::new(config(guests::SERIAL_HELLO, 2))
            .on_thread_start(move |thread| match failing == Some(thread) {
                true if panics => panic!("as the test wants it"),
                true => Err(io::Error::other("no such cgroup")),
                false => Ok(()),
            })
            .before_guest(move || match failing {
                None => Err(io::Error::other("no such cgroup")),
                Some(_) => Ok(()),
            })
            .build()
            .unwrap()
    };
    for failing in [
        None,
        Some(VmThread::Control),
        Some(VmThread::Vcpu { index: 0 }),
        Some(VmThread::Vcpu { index: 1 }),
    ] {
        for panics in [false, true] {
            let vm = build(failing, panics).start().unwrap();
            let ExitReason::HostFailed { message } = vm.wait() else {
                panic!("the hook of {failing:?} did not end the VM");
            };
            let reason = match panics && failing.is_some() {
                true => "it panicked",
                false => "no such cgroup",
            };
            assert!(message.contains(reason), "{message}");
            let mut text = String::new();
            vm.console().unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "", "the guest ran");
        }
    }
}

/// One whose guest panics, one that is dropped while it boots, one that is dropped while it is paused: a fourth goes on.
pub(crate) fn vms_of_one_process_do_not_notice_each_other() {
    let (steady, mut console) = ready(guests::SERIAL_ECHO, 1);
    let mut input = steady.console().unwrap();
    for round in 1..=3 {
        let start = |guest| VmBuilder::new(config(guest, 2)).build()?.start();
        let panics: VmHandle = start(guests::PANIC_TEXT).unwrap();
        drop(start(guests::COUNTER).unwrap());
        let (paused, _) = ready(guests::COUNTER, 2);
        paused.pause().unwrap();
        drop(paused);
        assert!(matches!(
            panics.wait_timeout(PATIENCE),
            Some(ExitReason::Panic(_))
        ));
        input.write_all(b"x").unwrap();
        console.wait_for("X", round);
    }
    assert_eq!(steady.exit_reason(), None);
    input.write_all(b"q").unwrap();
    assert_eq!(steady.wait(), ExitReason::PowerOff);
}

/// Without a driver, connections wait; and all that waits fails with the VM's end, whether it ran or not.
pub(crate) fn vsock_waits_for_a_driver_and_ends_with_its_vm() {
    let config = || VmConfig {
        vsock: Some(VsockConfig {
            cid: 3,
            socket: None,
        }),
        ..config(guests::COUNTER, 1)
    };
    let broken = |outcome: io::Error| assert_eq!(outcome.kind(), io::ErrorKind::BrokenPipe);
    let vm = VmBuilder::new(config()).build().unwrap();
    let vsock = vm.handle().vsock().unwrap();
    let listener = vsock.listen(7).unwrap();
    let early = vsock.connect_timeout(52, Duration::from_millis(1));
    assert_eq!(early.unwrap_err().kind(), io::ErrorKind::TimedOut);
    let vm = vm.start().unwrap();
    let mut console = Printed::of(&vm);
    console.wait_for("ready", 1);
    thread::scope(|scope| {
        let connecting = scope.spawn(|| vsock.connect(52));
        let accepting = scope.spawn(|| listener.accept());
        vm.reset().unwrap();
        console.wait_for("ready", 2);
        let taken = vsock.listen(7).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        vm.stop();
        vm.wait();
        broken(connecting.join().unwrap().unwrap_err());
        broken(accepting.join().unwrap().unwrap_err());
    });
    broken(vm.vsock().unwrap().connect(52).unwrap_err());

    let unstarted = VmBuilder::new(config()).build().unwrap();
    let vsock = unstarted.handle().vsock().unwrap();
    thread::scope(|scope| {
        let connecting = scope.spawn(|| vsock.connect(52));
        drop(unstarted);
        broken(connecting.join().unwrap().unwrap_err());
    });
    assert!(ready(guests::COUNTER, 1).0.vsock().is_none());
}
