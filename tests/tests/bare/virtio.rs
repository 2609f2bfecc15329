//! Virtio devices on this machine's own KVM, driven by a guest that polls.

use std::fs;
use std::path::Path;
use std::process::Command;

use ampoule_tests::guests;

use crate::driver::{finish, run};

/// The guest of the disk, told what to do with it.
fn guest(disk: &Path, more: &str, orders: &str) -> Command {
    let mut command = run(["--memory", "64M", "--kernel", guests::VIRTIO_BLOCK]);
    command.arg("--disk");
    command.arg(format!("path={}{more}", disk.display()));
    command.args(["--cmdline", orders]);
    command
}

pub(crate) fn a_disk_is_read_and_written() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    fs::write(&disk, vec![1; 64 << 10]).unwrap();
    let reads = "op=r size=4096 depth=8 batches=100";
    finish(guest(&disk, "", reads))
        .expect_code(0)
        .expect_output("PASS");
    assert!(fs::read(&disk).unwrap().iter().all(|byte| *byte == 1));
    let writes = "op=w size=4096 depth=8 batches=100";
    finish(guest(&disk, "", writes))
        .expect_code(0)
        .expect_output("PASS");
    let content = fs::read(&disk).unwrap();
    assert!(content[..32 << 10].iter().all(|byte| *byte == 0x5a));
    assert!(content[32 << 10..].iter().all(|byte| *byte == 1));
}

pub(crate) fn a_disk_that_is_read_only_or_too_small_fails_requests_only() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    fs::write(&disk, vec![1; 16 << 10]).unwrap();
    let orders = "op=w size=4096 depth=4 batches=10";
    finish(guest(&disk, ",readonly", orders))
        .expect_code(0)
        .expect_output("FAIL a request has failed");
    // The second half of the requests lies beyond the end.
    finish(guest(&disk, "", "op=r size=4096 depth=8 batches=10"))
        .expect_code(0)
        .expect_output("FAIL a request has failed");
    assert!(fs::read(&disk).unwrap().iter().all(|byte| *byte == 1));
}

pub(crate) fn a_disk_is_one_vms_and_made_where_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("new");
    let orders = "op=r size=512 depth=1 batches=1";
    finish(guest(&disk, "", orders))
        .expect_code(125)
        .expect_error("size=10G");
    finish(guest(&disk, ",size=1M", orders))
        .expect_code(0)
        .expect_output("PASS");
    assert_eq!(fs::metadata(&disk).unwrap().len(), 1 << 20);
    let mut twice = guest(&disk, "", orders);
    twice.arg("--disk").arg(format!("path={}", disk.display()));
    finish(twice).expect_code(125).expect_error("in use");
}
