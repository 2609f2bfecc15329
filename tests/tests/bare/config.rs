//! What is refused before anything starts, and how it is said: the file or the value, the reason, and what to do.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use ampoule_tests::guests;
use tempfile::TempDir;

use crate::driver::{finish, run, run_guest};

/// Fails unless the command is refused with one error line that holds all of `words`.
#[track_caller]
fn refused(command: Command, words: &[&str]) {
    let end = finish(command).expect_code(125);
    assert_eq!(end.text(), "", "{}", end.describe());
    let mut lines = end.errors.lines();
    let error = lines.next().unwrap_or_default();
    assert!(error.starts_with("error: "), "{}", end.describe());
    for word in words {
        assert!(
            end.errors.contains(word),
            "no {word:?} in {}",
            end.describe()
        );
    }
}

fn write(directory: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn kernel(path: &Path) -> Command {
    let mut command = run(["--memory", "64M", "--kernel"]);
    command.arg(path);
    command
}

pub(crate) fn what_is_no_kernel_is_named() {
    let directory = tempfile::tempdir().unwrap();
    refused(run::<[&str; 0]>([]), &["no kernel"]);
    refused(
        kernel(&directory.path().join("missing")),
        &["missing", "no such file"],
    );
    refused(
        kernel(directory.path()),
        &[&directory.path().display().to_string(), "directory"],
    );
    for (name, bytes) in [
        ("empty", &b""[..]),
        ("text", b"#!/bin/sh\nexit 0\n"),
        ("short", b"\x7fELF"),
        ("zeroes", &[0; 4096]),
    ] {
        refused(kernel(&write(&directory, name, bytes)), &[name]);
    }
}

/// At every length it is refused by name; whole, it runs. Even a file that lacks only what a guest never sees, such as the
/// table of sections at its end, is one that was not copied to its end.
pub(crate) fn a_truncated_kernel_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let whole = fs::read(guests::SERIAL_HELLO).unwrap();
    for length in (0..whole.len()).step_by(37).chain([whole.len() - 1]) {
        refused(
            kernel(&write(&directory, "cut", &whole[..length])),
            &["cut"],
        );
    }
    finish(kernel(&write(&directory, "cut", &whole))).expect_code(0);
}

/// Offsets in an ELF header and its first program header.
const E_MACHINE: usize = 18;
const P_PADDR: usize = 64 + 24;
const P_FILESZ: usize = 64 + 32;
const P_MEMSZ: usize = 64 + 40;

fn patched(directory: &TempDir, name: &str, patches: &[(usize, &[u8])]) -> PathBuf {
    let mut bytes = fs::read(guests::SERIAL_HELLO).unwrap();
    for (at, patch) in patches {
        bytes[*at..at + patch.len()].copy_from_slice(patch);
    }
    write(directory, name, &bytes)
}

pub(crate) fn a_kernel_that_lies_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let cases: [(&str, usize, &[u8]); 7] = [
        ("aarch64", E_MACHINE, &[183]),
        ("big-endian", 5, &[2]),
        ("beyond-memory", P_PADDR, &(1_u64 << 30).to_le_bytes()),
        ("over-the-zero-page", P_PADDR, &0x7000_u64.to_le_bytes()),
        ("wraps", P_PADDR, &(u64::MAX - 16).to_le_bytes()),
        ("larger-in-file", P_FILESZ, &(u64::MAX / 2).to_le_bytes()),
        ("endless", P_MEMSZ, &u64::MAX.to_le_bytes()),
    ];
    for (name, at, patch) in cases {
        refused(kernel(&patched(&directory, name, &[(at, patch)])), &[name]);
    }
}

/// A size is said together with the one that would do.
pub(crate) fn a_kernel_beyond_memory_says_how_much_it_needs() {
    let directory = tempfile::tempdir().unwrap();
    let path = patched(
        &directory,
        "large",
        &[(P_PADDR, &(100_u64 << 20).to_le_bytes())],
    );
    refused(kernel(&path), &["large", "64 MiB", "--memory"]);
}

pub(crate) fn an_entry_that_the_kernel_does_not_have_is_refused() {
    for (entry, guest) in [("pvh", guests::LINUX64), ("bzimage", guests::POWEROFF)] {
        let mut command = run_guest(guest);
        command.args(["--entry", entry]);
        refused(command, &[guest]);
    }
}

pub(crate) fn an_initrd_that_does_not_fit_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let large = write(&directory, "large", b"");
    // Sparse: its size is read, its bytes are not.
    fs::File::options()
        .write(true)
        .open(&large)
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    for (initrd, words) in [
        (large.as_path(), &["large"][..]),
        (
            &directory.path().join("missing"),
            &["missing", "no such file"],
        ),
        (directory.path(), &["directory"]),
    ] {
        let mut command = run_guest(guests::POWEROFF);
        command.arg("--initrd").arg(initrd);
        refused(command, words);
    }
}

pub(crate) fn values_out_of_range_are_refused() {
    let long = "x".repeat(5000);
    for (arguments, words) in [
        (["--cpus", "0"], &["vCPU"][..]),
        (["--cpus", "100000"], &["vCPU", "100000"]),
        (["--cpus", "-1"], &[]),
        (["--memory", "0"], &["memory"]),
        (["--memory", "1M"], &["memory", "1M"]),
        (["--memory", "16777215"], &["memory"]),
        (["--memory", "12345678T"], &["memory"]),
        (["--memory", "12X"], &["12X"]),
        (["--cmdline", &long], &["command line", "5000"]),
        (["--grace", "soon"], &["soon"]),
        (["--serial", "file:"], &["file:"]),
    ] {
        let mut command = run(["--kernel", guests::POWEROFF]);
        command.args(arguments);
        refused(command, words);
    }
}

pub(crate) fn the_nearest_name_of_an_option_is_offered() {
    refused(
        run(["--kernal", "x"]),
        &["--kernal", "did you mean", "--kernel"],
    );
    let mut twice = run_guest(guests::POWEROFF);
    twice.args(["--memory", "1G"]);
    refused(twice, &["--memory"]);
    let mut command = run_guest(guests::POWEROFF);
    command.args(["--on-reboot", "restrat"]);
    refused(command, &["restrat", "restart"]);
}

pub(crate) fn what_is_wrong_in_a_file_is_said_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    for (name, text, words) in [
        (
            "unknown",
            "cpus = 1\nkernal = \"x\"\n",
            &["kernal", "kernel", ":2"][..],
        ),
        ("twice", "cpus = 1\ncpus = 2\n", &["cpus", ":2"]),
        ("type", "cpus = \"two\"\n", &["two", ":1"]),
        ("syntax", "cpus = \n", &[":1"]),
        (
            "value",
            "kernel = \"k\"\nentry = \"bios\"\n",
            &["bios", ":2"],
        ),
        ("range", "kernel = \"k\"\ncpus = 0\n", &["vCPU"]),
    ] {
        let file = write(&directory, name, text.as_bytes());
        let mut command = run(["--config"]);
        command.arg(file);
        refused(command, words);
    }
    let mut command = run(["--config"]);
    command.arg(directory.path().join("missing"));
    refused(command, &["missing", "no such file"]);
}

/// The same names, the same meaning; a flag counts more than the file.
pub(crate) fn a_file_says_what_flags_say() {
    let directory = tempfile::tempdir().unwrap();
    let text = format!(
        "kernel = \"{}\"\nmemory = \"64M\"\ncmdline = \"from the file\"\non-reboot = \"exit\"\n",
        guests::CMDLINE_ECHO
    );
    let file = write(&directory, "vm.toml", text.as_bytes());
    let mut command = run(["--config"]);
    command.arg(&file);
    finish(command)
        .expect_code(0)
        .expect_output("cmdline: from the file\n");
    let mut command = run(["--cmdline", "from a flag", "--config"]);
    command.arg(&file);
    finish(command)
        .expect_code(0)
        .expect_output("cmdline: from a flag\n");
}

pub(crate) fn the_printed_configuration_means_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = run_guest(guests::CMDLINE_ECHO);
    command.args([
        "--append",
        "\"quoted\"",
        "--timeout",
        "90s",
        "--print-config",
    ]);
    let printed = finish(command).expect_code(0).expect_silence().text();
    let file = write(&directory, "vm.toml", printed.as_bytes());
    let mut command = run(["--print-config", "--config"]);
    command.arg(&file);
    assert_eq!(finish(command).expect_code(0).text(), printed);
    let mut command = run(["--config"]);
    command.arg(&file);
    finish(command)
        .expect_code(0)
        .expect_output("cmdline: console=ttyS0 \"quoted\"\n");
}

pub(crate) fn huge_pages_that_the_host_has_not_are_a_clear_error() {
    let pool = fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let mut command = run_guest(guests::POWEROFF);
    command.args(["--hugepages", "2M"]);
    match pool.map(|free| free.trim().parse::<u64>()) {
        Ok(Ok(free)) if free >= 32 => {
            finish(command).expect_code(0);
        }
        _ => refused(command, &["huge"]),
    }
}

/// Runs with a resource limit, getrlimit(2).
fn limited(resource: libc::__rlimit_resource_t, limit: u64, memory: &str) -> Command {
    let mut command = run(["--kernel", guests::POWEROFF, "--memory", memory]);
    // SAFETY: setrlimit(2) may be called between fork and exec; the pointer is to a live value.
    unsafe {
        command.pre_exec(move || {
            let limit = libc::rlimit {
                rlim_cur: limit,
                rlim_max: limit,
            };
            match libc::setrlimit(resource, &limit) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
    }
    command
}

/// Out of descriptors and out of address space: an error, at whatever step it hits.
pub(crate) fn exhausted_limits_are_clean_errors() {
    assert_descriptors_run_out_cleanly(&[]);
    refused(limited(libc::RLIMIT_AS, 1 << 30, "2G"), &["memory", "2G"]);
}

/// The same where devices open files of their own; nothing of them is left behind.
pub(crate) fn exhausted_limits_are_clean_errors_with_devices() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("disk"), [0; 4096]).unwrap();
    let disk = format!("path={}", path("disk"));
    let vsock = format!("cid=3,socket={}", path("v"));
    let console = format!("socket:{}", path("console"));
    assert_descriptors_run_out_cleanly(&[
        "--disk",
        &disk,
        "--vsock",
        &vsock,
        "--console",
        &console,
    ]);
    let mut left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["disk"]);
}

fn assert_descriptors_run_out_cleanly(arguments: &[&str]) {
    let files = |files| {
        let mut command = limited(libc::RLIMIT_NOFILE, files, "64M");
        command.args(arguments);
        command
    };
    // The three standard streams and one more are too few; some tens are enough.
    let enough = (4..96)
        .find(|&limit| {
            let end = finish(files(limit));
            if end.status.success() {
                return true;
            }
            let end = end.expect_code(125).expect_error("error: ");
            let end = end.expect_error("help: the limit of open files is reached");
            let errors = end.errors.to_lowercase();
            assert!(errors.contains("too many open files"), "{}", end.describe());
            false
        })
        .expect("no limit is enough");
    assert!(enough > 4, "nothing was refused");
}
