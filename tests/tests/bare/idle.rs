//! An idle VM costs no processor time: each of its threads sleeps until something happens, and no clock wakes it.
//!
//! Nothing is timed here. `/proc` says of each thread which system call it waits in, with its arguments, and of each timer whether it
//! is set: one that waits for an event without a limit, beside timers that are all off, sleeps for as long as the guest does.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use ampoule_tests::guests;

use crate::driver::{Vm, run_guest};

/// After which a VM counts as one that never comes to rest, and what it still does is told.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn an_idle_vm_waits_for_nothing_but_events() {
    let mut vm = Vm::piped(run_guest(guests::IDLE));
    vm.expect("ready\n");
    assert_comes_to_rest(&vm);
}

pub(crate) fn one_with_devices_and_consoles_does_not_either() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    for disk in ["disk", "uring"] {
        fs::write(path(disk), [0; 4096]).unwrap();
    }
    let mut command = run_guest(guests::IDLE);
    command.args(["--cpus", "2", "--metrics", &path("metrics")]);
    command.args(["--disk", &format!("path={}", path("disk"))]);
    command.args(["--disk", &format!("path={},engine=io_uring", path("uring"))]);
    command.args(["--vsock", &format!("cid=3,socket={}", path("vsock"))]);
    command.args(["--console", &format!("socket:{}", path("console"))]);
    let mut vm = Vm::on_terminal(command);
    vm.expect("ready\n");
    assert_comes_to_rest(&vm);
}

/// What is typed waits for a guest that listens; that its descriptor stays readable meanwhile is no event.
pub(crate) fn input_that_no_guest_takes_wakes_nobody() {
    let mut vm = Vm::piped(run_guest(guests::IDLE));
    vm.expect("ready\n");
    let _typed = vm.send_beside(vec![b'x'; 1 << 20]);
    assert_comes_to_rest(&vm);
}

/// Looks until all threads rest, which they may do only a moment after the start.
#[track_caller]
fn assert_comes_to_rest(vm: &Vm) {
    let process = format!("/proc/{}", vm.pid());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let restless = restless(Path::new(&process));
        if restless.is_empty() {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "it does not rest:\n{}",
            restless.join("\n")
        );
        std::thread::yield_now();
    }
}

/// Threads that do not wait for an event alone, and timers that are set.
fn restless(process: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut threads = 0;
    for thread in fs::read_dir(process.join("task")).unwrap() {
        let thread = thread.unwrap().path();
        let (Ok(call), Ok(name)) = (
            fs::read_to_string(thread.join("syscall")),
            fs::read_to_string(thread.join("comm")),
        ) else {
            found.push("a thread that has ended meanwhile".into());
            continue;
        };
        // One that KVM has for each VM, which has no system calls.
        if name.starts_with("kvm-") {
            continue;
        }
        threads += 1;
        if !waits_without_limit(&call) {
            found.push(format!("{}: {}", name.trim(), call.trim()));
        }
    }
    assert!(threads >= 2, "there is no control thread, or no vCPU's");
    for descriptor in fs::read_dir(process.join("fdinfo")).unwrap() {
        let text = fs::read_to_string(descriptor.unwrap().path()).unwrap_or_default();
        let mut timer = text.lines().filter(|line| line.starts_with("it_"));
        if timer.any(|line| !line.ends_with(": (0, 0)")) {
            found.push(format!("a timer: {text}"));
        }
    }
    let timers = fs::read_to_string(process.join("timers")).unwrap_or_default();
    found.extend(timers.lines().map(str::to_owned));
    found
}

/// Whether a thread is in a wait for events that has no time limit, or in KVM, where its guest sleeps. `call` is what
/// `/proc/PID/task/TID/syscall` says: the call's number and six arguments, or that it is not in one.
fn waits_without_limit(call: &str) -> bool {
    let numbers = call.split_whitespace().map(|word| {
        let hex = word.strip_prefix("0x");
        hex.map_or_else(
            || word.parse().ok(),
            |hex| u64::from_str_radix(hex, 16).ok(),
        )
    });
    let numbers: Option<Vec<u64>> = numbers.collect();
    let Some([number, arguments @ ..]) = numbers.as_deref() else {
        return false;
    };
    const KVM_RUN: u64 = 0xae80;
    let is = |call: libc::c_long| i64::try_from(*number) == Ok(call);
    match arguments {
        [_, _, _, timeout, ..] if is(libc::SYS_epoll_wait) || is(libc::SYS_epoll_pwait) => {
            *timeout as i32 == -1
        }
        [_, request, ..] if is(libc::SYS_ioctl) => *request == KVM_RUN,
        _ => false,
    }
}
