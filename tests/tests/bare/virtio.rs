//! Virtio devices on this machine's own KVM, driven by a guest that polls.

use std::fs;
use std::path::Path;
use std::process::Command;

use ampoule_tests::guests;
use ampoule_tests::numbered::{BLOCK, Random, SLOTS, blocks, lost};

use crate::driver::{Vm, finish, run};

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

/// Each start takes the disk of the VMM that was killed before, at a random moment; what the guest said of its blocks is true.
pub(crate) fn a_vmm_killed_a_hundred_times_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    fs::write(&disk, vec![0; SLOTS as usize * BLOCK]).unwrap();
    let mut random = Random::seeded();
    // No number is the zero that a new disk has.
    let mut first = SLOTS;
    for start in 0..100 {
        let orders = format!("op=n first={first} slots={SLOTS}");
        let engine = [",engine=sync", ",engine=io_uring"][start % 2];
        let mut vm = Vm::piped(guest(&disk, engine, &orders));
        let mut last = first;
        for _ in 0..=random.below(20) {
            last = number(vm.read_until("\n").trim());
        }
        vm.signal(libc::SIGKILL);
        let end = vm.end().expect_signal(libc::SIGKILL);
        // A line without its end may lack digits, too.
        if let Some((lines, _)) = end.text().rsplit_once('\n') {
            last = lines.lines().last().map_or(last, number);
        }
        let lost = lost(&disk, first, last);
        assert!(lost.is_empty(), "reported up to {last}: {lost:?}");
        first = 1 + blocks(&disk).concat().into_iter().max().unwrap();
    }
}

fn number(line: &str) -> u64 {
    u64::from_str_radix(line, 16).expect(line)
}
