//! Linux guests by `ampoule test`: the project's scenarios (tests/scenarios), which are examples, too.

use std::path::Path;
use std::process::Command;

use ampoule_tests::harness::{self, debian};
use ampoule_tests::scenarios::{check, command, folder, results};
use tempfile::TempDir;

use crate::command::{as_users, kernel_of, root};
use crate::driver::{ampoule, finish};
use crate::guest::initramfs;
use crate::net_load::uplink;

/// The scenarios of a file, or of a folder, and where their results go.
fn scenarios(path: &str) -> (Command, TempDir) {
    let place = tempfile::tempdir().unwrap();
    let mut command = command(
        ampoule(),
        &[&folder().join(path)],
        &place.path().join("results"),
    );
    command
        .env(
            "AMPOULE_TEST_KERNELS",
            std::env::var_os(harness::KERNELS).unwrap_or_default(),
        )
        .env("AMPOULE_TEST_INITRAMFS", initramfs());
    (command, place)
}

/// Runs scenarios all of which pass.
fn pass(path: &str, options: &[&str]) {
    let (mut command, place) = scenarios(path);
    command.args(options);
    finish(command).expect_code(0);
    check(&results(&place.path().join("results")));
}

pub(crate) fn linux_6_1_by_every_way_in() {
    pass("linux/boot.toml", &["--filter", "version=6.1,"]);
}

pub(crate) fn linux_6_12_by_every_way_in() {
    pass("linux/boot.toml", &["--filter", "version=6.12,"]);
}

pub(crate) fn cpus() {
    pass("linux/cpus.toml", &[]);
}

pub(crate) fn memory() {
    pass("linux/memory.toml", &[]);
}

pub(crate) fn the_platform_is_found() {
    pass("linux/platform.toml", &[]);
}

pub(crate) fn restarts() {
    pass("linux/restart.toml", &[]);
}

pub(crate) fn files_go_in_and_out_by_the_console() {
    pass("linux/files.toml", &[]);
}

pub(crate) fn a_disk_that_fails_fails_alone() {
    pass("linux/disk-fault.toml", &[]);
}

pub(crate) fn ends() {
    for end in ["reboot", "triple-fault", "panic"] {
        pass(&format!("linux/{end}.toml"), &[]);
    }
}

pub(crate) fn guests_that_are_not_well_fail_for_the_right_reason() {
    let (command, place) = scenarios("must-fail");
    finish(command).expect_code(1);
    check(&results(&place.path().join("results")));
}

pub(crate) fn commands_in_images() {
    let (command, place) = scenarios("images");
    let own = kernel_of("6.1");
    let mut command = as_users("6.1", command);
    command.env("AMPOULE_TEST_BOOT", own.parent().unwrap_or(Path::new("/")));
    command.env("AMPOULE_TEST_DEBIAN", debian());
    crate::user::user().inspect(|user| user.owns(place.path()));
    finish(command).expect_code(1);
    check(&results(&place.path().join("results")));
}

pub(crate) fn servers_are_asked_through_published_ports() {
    uplink();
    let (command, place) = scenarios("network");
    let own = kernel_of("6.1");
    let mut command = as_users("6.1", command);
    command.env("AMPOULE_TEST_BOOT", own.parent().unwrap_or(Path::new("/")));
    command.env("AMPOULE_TEST_ROOT", root());
    command.env("AMPOULE_TEST_NAME", "somebody");
    crate::user::user().inspect(|user| user.owns(place.path()));
    finish(command).expect_code(0);
    check(&results(&place.path().join("results")));
    let page = std::fs::read_to_string(place.path().join("page.html"));
    assert_eq!(
        page.unwrap(),
        "the page of somebody\n",
        "the folder is the host's"
    );
}

/// On a machine that is busy besides, as CI systems are.
pub(crate) fn fifty_times_in_a_row() {
    let mut load = Command::new("sh")
        .args(["-c", "while :; do :; done"])
        .spawn()
        .unwrap();
    let (mut command, place) = scenarios("linux");
    // With one CPU each: two guests of two at once on an emulated host are more than its emulator bears (its kernel dies).
    for name in ["files", "reboot", "disk-fault", "way=elf-pvh"] {
        command.args(["--filter", name]);
    }
    command.args(["--jobs", "2", "--repeat", "50"]);
    // It takes longer than any other test.
    let status = command.status();
    let _ = load.kill();
    let _ = load.wait();
    assert!(status.unwrap().success());
    let all = results(&place.path().join("results"));
    check(&all);
    for scenario in &all {
        assert_eq!(scenario["attempts"].as_array().map(Vec::len), Some(50));
    }
}
