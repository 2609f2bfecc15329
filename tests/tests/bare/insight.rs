//! What a VM tells about itself: counts and messages in files, and nothing where nobody looks.

use std::fs;
use std::path::Path;
use std::thread;

use ampoule_tests::guests;
use serde_json::Value;

use crate::driver::{Vm, argument, finish, run, run_guest};

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

pub(crate) fn what_a_disk_did_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, metrics) = (folder.path().join("disk"), folder.path().join("m.json"));
    fs::write(&disk, vec![1; 64 << 10]).unwrap();
    let mut command = run(["--memory", "64M", "--kernel", guests::VIRTIO_BLOCK]);
    command.arg("--disk").arg(argument("id=d,path=", &disk));
    command.args(["--cmdline", "op=r size=4096 depth=8 batches=100"]);
    command.arg("--metrics").arg(&metrics);
    finish(command).expect_code(0).expect_output("PASS");
    let metrics = read(&metrics);
    assert_eq!(metrics["outcome"], "the guest powered off");
    assert_eq!(metrics["exit-code"], 0);
    let counts = &metrics["devices"]["d"];
    assert_eq!(counts["type"], "block");
    assert_eq!(counts["requests"], 400, "{counts}");
    assert_eq!(counts["bytes-read"], 400 * 4096);
    assert_eq!(counts["bytes-written"], 0);
    assert_eq!(counts["host-errors"], 0);
    let notifications = counts["notifications"].as_u64().unwrap();
    assert!((1..=100).contains(&notifications), "{counts}");
    let faults = counts["guest-faults"].as_object().unwrap();
    assert!(faults.len() > 8 && faults.values().all(|count| *count == 0));
    assert!(metrics["vcpus"][0]["mmio"].as_u64().unwrap() > 10);
    assert!(metrics["devices"]["rng"].is_object());
    assert!(metrics["consoles"]["serial"]["bytes"].as_u64().unwrap() > 0);
}

pub(crate) fn counts_are_written_when_asked_for_and_go_on_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.json");
    let mut command = run_guest(guests::KEYS);
    command.args(["--on-reboot", "restart"]);
    command.arg("--metrics").arg(&path);
    let mut vm = Vm::piped(command);
    vm.expect("ready\n");
    vm.signal(libc::SIGUSR1);
    while !path.exists() {
        thread::yield_now();
    }
    let first = read(&path);
    assert!(first["outcome"].is_null(), "{first}");
    let ports = |metrics: &Value| metrics["vcpus"][0]["port"].as_u64().unwrap();
    assert!(ports(&first) > 0);
    vm.send("r");
    vm.expect("ready\n");
    vm.send("p");
    vm.end().expect_code(0).expect_silence();
    let last = read(&path);
    assert_eq!(last["exit-code"], 0);
    assert!(ports(&last) > ports(&first), "{first} {last}");
    assert_eq!(last["consoles"]["serial"]["dropped-bytes"], 0);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

pub(crate) fn counts_follow_the_console_on_standard_output() {
    let mut command = run_guest(guests::POWEROFF);
    command.args(["--metrics", "-"]);
    let end = finish(command).expect_code(0).expect_silence();
    let metrics: Value = serde_json::from_str(&end.text()).unwrap();
    assert_eq!(metrics["exit-code"], 0);
}

pub(crate) fn messages_go_to_their_file_with_their_times() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    fs::write(&path, "of another run\n").unwrap();
    let mut command = run_guest(guests::POWEROFF);
    command.args(["--log-level", "info", "--log-file"]);
    command.arg(&path);
    finish(command).expect_code(0).expect_silence();
    let log = fs::read_to_string(&path).unwrap();
    assert!(log.contains("Z info: kernel "), "{log}");
    for line in log.lines() {
        assert!(line.starts_with("20") && line.contains('T'), "{line}");
    }
}

pub(crate) fn files_that_cannot_be_written_are_told_before_the_start() {
    for option in ["--metrics", "--log-file"] {
        let mut command = run_guest(guests::SERIAL_HELLO);
        command.args([option, "/no/such/directory/file"]);
        let end = finish(command)
            .expect_code(125)
            .expect_error("/no/such/directory/file");
        assert_eq!(end.text(), "", "{option}");
    }
}
