//! The serial port in both directions: nothing is lost, whatever the pace, and nobody is held up.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use ampoule_tests::guests;

pub(crate) use crate::driver::connect;
use crate::driver::{Vm, argument, finish, run_guest};

/// Length of the lines that the flood guest prints.
const LINE: usize = 32;

/// Letters and line ends, no `q`, that never repeat in step with any buffer.
fn letters(count: usize) -> Vec<u8> {
    let mut state = 1_u32;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            b"abcdefghijklmnop\n"[(state >> 24) as usize % 17]
        })
        .collect()
}

/// Fails where they differ, without printing all of it.
fn assert_same(got: &[u8], expected: &[u8]) {
    assert_eq!(got.len(), expected.len(), "lengths differ");
    if let Some(at) = (0..got.len()).find(|&at| got[at] != expected[at]) {
        panic!("byte {at} is {:#x}, not {:#x}", got[at], expected[at]);
    }
}

/// More than all that lies between a terminal and a guest holds: a pipe, a terminal's queue, and ours have 64 KiB at most.
const LONG: usize = 256 << 10;

fn paste(mut vm: Vm) {
    vm.expect("ready\n");
    let text = letters(LONG);
    let expected = text.to_ascii_uppercase();
    let sender = vm.send_beside([text, b"q".to_vec()].concat());
    let echo = vm.take(expected.len());
    assert_same(&echo, &expected);
    sender.join().unwrap().unwrap();
    let end = vm.end().expect_code(0).expect_silence();
    assert_eq!(end.output, b"");
}

pub(crate) fn a_long_paste_through_a_pipe_comes_back() {
    paste(Vm::piped(run_guest(guests::SERIAL_ECHO)));
}

pub(crate) fn a_long_paste_into_a_terminal_comes_back() {
    paste(Vm::on_terminal(run_guest(guests::SERIAL_ECHO)));
}

pub(crate) fn a_guest_says_hello() {
    let end = finish(run_guest(guests::SERIAL_HELLO))
        .expect_code(0)
        .expect_silence();
    assert_eq!(end.text(), "Hello from a bare guest.\r\n");
}

/// Input that was there before the VM, and its end, which is not the VM's.
pub(crate) fn input_from_a_file_is_read_to_its_end() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"hello from a file").unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let mut command = run_guest(guests::SERIAL_ECHO);
    command.args(["--timeout", "2s"]).stdin(file);
    let output = command.output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "ready\nHELLO FROM A FILE"
    );
    assert_eq!(output.status.code(), Some(124));
}

fn flood(lines: usize) -> std::process::Command {
    let mut command = run_guest(guests::SERIAL_FLOOD);
    command.arg("--cmdline").arg(lines.to_string());
    command
}

fn flooded(lines: usize) -> Vec<u8> {
    (0..lines)
        .flat_map(|line| format!("{line:08x} one line of the flood.\n").into_bytes())
        .collect()
}

pub(crate) fn a_flood_arrives_whole() {
    let end = finish(flood(4096)).expect_code(0).expect_silence();
    assert_same(&end.output, &flooded(4096));
}

/// The pipe is full long before the guest is done, which powers off all the same. What was read and what is reported as
/// dropped is all that it printed.
pub(crate) fn a_stalled_reader_holds_nobody_up() {
    let lines = 24 << 10;
    let end = Vm::piped(flood(lines)).end_unread().expect_code(0);
    let words = end
        .errors
        .split_once(" bytes of the guest's console output were dropped");
    let dropped: usize = words
        .and_then(|(before, _)| before.split_whitespace().last()?.parse().ok())
        .unwrap_or_else(|| panic!("no count of what was dropped; {}", end.errors));
    assert!(
        dropped > 0 && end.output.len() >= 4096,
        "{dropped} dropped, {} read",
        end.output.len()
    );
    assert_eq!(end.output.len() + dropped, lines * LINE);
}

/// Standard output is a pipe whose reader has gone.
pub(crate) fn a_closed_reader_holds_nobody_up() {
    let mut vm = Vm::piped(run_guest(guests::KEYS));
    vm.close_output();
    vm.send("xyzp");
    vm.end().expect_code(0);
}

/// There is no standard output, nor input.
pub(crate) fn missing_standard_streams_hold_nobody_up() {
    let mut command = run_guest(guests::SERIAL_HELLO);
    // SAFETY: close(2) may be called between fork and exec, and takes no pointer.
    unsafe {
        command.pre_exec(|| {
            libc::close(0);
            libc::close(1);
            Ok(())
        });
    }
    finish(command).expect_code(0);
}

/// The disk behind standard output is full.
pub(crate) fn a_full_disk_holds_nobody_up() {
    let status = flood(4096)
        .stdin(Stdio::null())
        .stdout(File::options().write(true).open("/dev/full").unwrap())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
}

pub(crate) fn output_goes_to_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("console.log");
    fs::write(
        &log,
        "what was there before, and is longer than what comes now",
    )
    .unwrap();
    let mut command = run_guest(guests::SERIAL_HELLO);
    command.arg("--serial").arg(argument("file:", &log));
    let end = finish(command).expect_code(0).expect_silence();
    assert_eq!(end.text(), "");
    assert_eq!(
        fs::read_to_string(log).unwrap(),
        "Hello from a bare guest.\r\n"
    );
}

/// The guest goes on, and what is beyond the limit is gone.
pub(crate) fn a_file_takes_no_more_than_its_limit() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("console.log");
    let mut command = flood(4096);
    command.arg("--serial").arg(argument("file:", &log));
    command.args(["--limits", "console-file=20K"]);
    finish(command).expect_code(0);
    assert_same(&fs::read(log).unwrap(), &flooded(4096)[..20 << 10]);
}

pub(crate) fn output_goes_nowhere() {
    let mut command = run_guest(guests::SERIAL_HELLO);
    command.args(["--serial", "null"]);
    let end = finish(command).expect_code(0).expect_silence();
    assert_eq!(end.text(), "");
}

/// Output waits for the client; input comes back from it; when it goes another may come.
pub(crate) fn a_socket_serves_one_client_after_the_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");
    let mut command = run_guest(guests::KEYS);
    command.arg("--serial").arg(argument("socket:", &path));
    let vm = Vm::piped(command);
    let mut first = connect(&path);
    read_until(&mut first, "ready\n");
    send(&mut first, b"x");
    read_until(&mut first, "?\n");
    drop(first);
    let mut second = connect(&path);
    send(&mut second, b"y");
    read_until(&mut second, "?\n");
    send(&mut second, b"p");
    vm.end().expect_code(0).expect_silence();
    assert!(!path.exists(), "the socket is left behind");
}

/// A socket that another process listens on is not taken away from it.
pub(crate) fn a_file_in_the_place_of_the_socket_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");
    fs::write(&path, "precious").unwrap();
    let mut command = run_guest(guests::POWEROFF);
    command.arg("--serial").arg(argument("socket:", &path));
    finish(command).expect_code(125).expect_error("console");
    assert_eq!(fs::read_to_string(path).unwrap(), "precious");
}

/// Reads up to `text`, byte by byte, so that nothing after it is lost.
pub(crate) fn read_until(stream: &mut UnixStream, text: &str) {
    let mut seen = Vec::new();
    while !seen.ends_with(text.as_bytes()) {
        let mut byte = [0];
        if let Err(err) = stream.read_exact(&mut byte) {
            panic!("{err} after {:?}", String::from_utf8_lossy(&seen));
        }
        seen.push(byte[0]);
    }
}

pub(crate) fn send(stream: &mut UnixStream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
}

/// Where it is is told on standard error, as nobody could know it otherwise.
pub(crate) fn a_pseudo_terminal_is_told_and_leads_to_the_guest() {
    let mut command = run_guest(guests::KEYS);
    command.args(["--serial", "pty"]);
    let mut vm = Vm::piped(command);
    let path = vm.wait_for_error_line().replace("serial: ", "");
    let mut options = File::options();
    let mut terminal = options.read(true).write(true).open(&path).unwrap();
    let mut read_until = |text: &str, key: &[u8]| {
        let mut seen = Vec::new();
        while !seen.ends_with(text.as_bytes()) {
            let mut byte = [0];
            terminal.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
        terminal.write_all(key).unwrap();
    };
    read_until("ready\n", b"x");
    read_until("?\n", b"p");
    let end = vm.end().expect_code(0);
    assert_eq!((end.text(), end.errors.lines().count()), (String::new(), 1));
}

pub(crate) fn a_console_takes_the_standard_streams_from_the_serial_port() {
    let mut command = run_guest(guests::SERIAL_HELLO);
    command.args(["--console", "stdio"]);
    let end = finish(command).expect_code(0).expect_silence();
    assert_eq!(end.text(), "");
    let mut command = run_guest(guests::SERIAL_HELLO);
    command.args(["--console", "stdio", "--serial", "stdio"]);
    finish(command)
        .expect_code(125)
        .expect_error("cannot both be on standard input and output");
    let mut command = run_guest(guests::SERIAL_HELLO);
    command.args(["--console", "null"]);
    finish(command)
        .expect_code(0)
        .expect_output("Hello from a bare guest.");
}
