//! The terminal: raw while the VM runs, as it was before however the VM ends, and the keys that are ampoule's own.

use ampoule_tests::guests;

use crate::driver::{End, Settings, Vm, finish, run_guest};

/// A VM on a terminal, its guest ready, and the settings that the terminal had before.
struct Session {
    vm: Vm,
    before: Settings,
}

impl Session {
    fn start(arguments: &[&str]) -> Self {
        let mut command = run_guest(guests::KEYS);
        command.args(arguments);
        let mut vm = Vm::on_terminal(command);
        // The settings of a new terminal are the kernel's; ours are read from one that nobody has touched.
        let before = Settings::of_new_terminal();
        vm.expect("ready\n");
        assert!(vm.terminal_settings().is_raw(), "not raw");
        Self { vm, before }
    }

    /// Waits for the end and compares the settings.
    fn end(self) -> End {
        let (end, after) = self.vm.end_with_settings();
        assert_eq!(after, self.before, "not restored; {}", end.describe());
        end
    }
}

pub(crate) fn it_is_restored_after_a_power_off() {
    let mut session = Session::start(&[]);
    session.vm.send("p");
    session.end().expect_code(0).expect_silence();
}

pub(crate) fn it_is_restored_after_a_crash() {
    for key in ["t", "c"] {
        let mut session = Session::start(&[]);
        session.vm.send(key);
        session.end().expect_code(134);
    }
}

pub(crate) fn it_is_restored_after_a_timeout() {
    let mut session = Session::start(&["--timeout", "1s"]);
    session.vm.send("h");
    session.end().expect_code(124);
}

pub(crate) fn it_is_restored_after_signals() {
    for (signal, code) in [(libc::SIGTERM, 143), (libc::SIGINT, 130)] {
        let session = Session::start(&["--grace", "10ms"]);
        session.vm.signal(signal);
        session.end().expect_code(code);
    }
}

/// The terminal's window was closed, or the connection broke.
pub(crate) fn it_is_restored_after_a_hangup() {
    let session = Session::start(&["--grace", "10ms"]);
    session.vm.signal(libc::SIGHUP);
    session.end();
}

/// What a failing program does to itself: abort and invalid memory access.
pub(crate) fn it_is_restored_after_fatal_signals() {
    for signal in [libc::SIGABRT, libc::SIGSEGV, libc::SIGQUIT] {
        let session = Session::start(&[]);
        session.vm.signal(signal);
        session.end().expect_signal(signal);
    }
}

pub(crate) fn it_is_as_it_was_after_a_failed_start() {
    let mut command = run_guest("/nonexistent/kernel");
    command.args(["--cpus", "1"]);
    let vm = Vm::on_terminal(command);
    let (end, after) = vm.end_with_settings();
    assert_eq!(after, Settings::of_new_terminal());
    end.expect_code(125);
}

pub(crate) fn control_a_x_leaves() {
    let mut session = Session::start(&[]);
    session.vm.send("\x01x");
    session.end().expect_code(0).expect_silence();
}

/// Even where the guest takes no input at all, and more was typed before than there is room for.
pub(crate) fn control_a_x_leaves_a_guest_that_is_deaf() {
    let mut session = Session::start(&[]);
    session.vm.send("h");
    session.vm.send(&"x".repeat(1000));
    session.vm.wait_until_read();
    session.vm.send("\x01x");
    session.end().expect_code(0);
}

pub(crate) fn control_a_c_helps() {
    let mut session = Session::start(&[]);
    session.vm.send("\x01c");
    session.vm.send("p");
    let end = session.end().expect_code(0);
    let shown = end.text() + &end.errors;
    assert!(shown.contains("^A x"), "{}", end.describe());
}

/// The guest gets one `^A`, and `^C` too, which is no signal here.
pub(crate) fn control_characters_reach_the_guest() {
    let mut session = Session::start(&[]);
    for keys in ["\x01\x01", "\x03", "\x1a", "\x04"] {
        session.vm.send(keys);
        session.vm.expect("?\n");
    }
    session.vm.send("p");
    let end = session.end().expect_code(0);
    assert_eq!(end.text(), "");
}

/// What is typed before the VM runs is the guest's; Linux shows it to the first who reads after the next key.
pub(crate) fn typed_ahead_is_not_lost() {
    let mut vm = Vm::on_terminal(run_guest(guests::KEYS));
    vm.send("x");
    vm.expect("ready\n");
    vm.send("p");
    vm.end().expect_code(0).expect_output("?\n");
}

/// No terminal, no keys of ours: a `^A x` in a pipe is the guest's.
pub(crate) fn a_pipe_has_no_escape() {
    let mut vm = Vm::piped(run_guest(guests::KEYS));
    vm.expect("ready\n");
    vm.send("\x01x");
    vm.expect("?\n?\n");
    vm.send("p");
    vm.end().expect_code(0);
}

/// Standard input is a terminal, but the serial port is elsewhere: the terminal is left alone.
pub(crate) fn a_terminal_that_is_not_the_console_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");
    let mut command = run_guest(guests::KEYS);
    command
        .arg("--serial")
        .arg(crate::driver::argument("socket:", &path));
    let vm = Vm::on_terminal(command);
    let mut client = crate::serial::connect(&path);
    crate::serial::read_until(&mut client, "ready\n");
    assert_eq!(vm.terminal_settings(), Settings::of_new_terminal());
    crate::serial::send(&mut client, b"p");
    vm.end().expect_code(0);
}

/// The table comes after the guest's output, with lines that a terminal shows as lines.
pub(crate) fn the_timeline_table_follows_the_console() {
    let mut command = run_guest(guests::DEBUG_MARKS);
    command.args(["--timeline", "-"]);
    let end = finish(command).expect_code(0).expect_silence();
    for mark in ["first-entry", "debug-port-1", "debug-port-3"] {
        assert!(end.text().contains(mark), "{}", end.describe());
    }
}

/// Nobody but a virtio console has a use for it.
pub(crate) fn another_size_leaves_the_guest_alone() {
    let mut vm = Vm::on_terminal(run_guest(guests::KEYS));
    vm.expect("ready");
    vm.resize(132, 43);
    vm.send("p");
    vm.end().expect_code(0).expect_silence();
}
