//! What a guest finds: its state at entry, memory, ACPI, other CPUs, the clock, and what answers where nothing is.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use ampoule_tests::guests;
use serde_json::Value;

use crate::driver::{End, finish, run, run_guest};

/// Runs a guest that judges for itself.
fn passes(guest: &str, arguments: &[&str]) -> End {
    let mut command = run(["--kernel", guest]);
    command.args(arguments);
    finish(command)
        .expect_code(0)
        .expect_output("PASS")
        .expect_silence()
}

pub(crate) fn the_pvh_entry_is_as_specified() {
    passes(guests::ENTRY_STATE, &[]);
    passes(guests::ENTRY_STATE, &["--entry", "pvh"]);
}

pub(crate) fn the_64_bit_entry_is_as_specified() {
    for arguments in [&["--entry", "linux64"][..], &[]] {
        let arguments = [arguments, &["--memory", "5G", "--cmdline", "one two"]].concat();
        let end = passes(guests::LINUX64, &arguments).expect_output("cmdline: one two\n");
        assert_eq!(ram(&end), (5 << 30) - LEGACY_HOLE);
    }
}

pub(crate) fn command_line_and_initrd_arrive() {
    let end = finish(run_guest(guests::CMDLINE_ECHO)).expect_code(0);
    assert_eq!(end.text(), "cmdline: console=ttyS0\nmodules: 0\n");

    let initrd = tempfile::NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..3001_u32).map(|at| (at * 7 + at / 256) as u8).collect();
    let sum: u32 = bytes.iter().map(|&byte| u32::from(byte)).sum();
    fs::write(initrd.path(), &bytes).unwrap();
    let mut command = run_guest(guests::CMDLINE_ECHO);
    command.args(["--cmdline", "root=/dev/vda \"a b\"", "--append", "quiet"]);
    command.arg("--initrd").arg(initrd.path());
    let end = finish(command)
        .expect_code(0)
        .expect_output("cmdline: root=/dev/vda \"a b\" quiet\nmodules: 1\n")
        .expect_output(&format!(" size 3001 sum {sum}\n"));
    let text = end.text();
    let (_, address) = text.split_once("initrd at ").unwrap();
    let address = u64::from_str_radix(&address[..16], 16).unwrap();
    assert_eq!(address % 4096, 0, "not on a page: {address:#x}");
}

/// Between the end of the low RAM and 1 MiB there is none.
const LEGACY_HOLE: u64 = 0x10_0000 - 0x9_fc00;

/// The size of all regions of RAM in a map that a guest printed.
fn ram(end: &End) -> u64 {
    end.text()
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                [address, size, "1"] if address.len() == 16 => u64::from_str_radix(size, 16).ok(),
                _ => None,
            }
        })
        .sum()
}

/// Below, around and above the hole under 4 GiB; all that is in the map is there, once, and nothing is missing in it.
pub(crate) fn memory_is_where_the_map_says() {
    for (memory, bytes) in [
        ("16M", 16 << 20),
        ("128M", 128 << 20),
        ("3G", 3 << 30),
        ("3076M", 3076 << 20),
        ("5G", 5_u64 << 30),
        ("12G", 12 << 30),
    ] {
        let end = passes(guests::MEM_PROBE, &["--memory", memory]);
        assert_eq!(
            ram(&end),
            bytes - LEGACY_HOLE,
            "{memory}: {}",
            end.describe()
        );
    }
}

pub(crate) fn memory_may_be_shared_or_of_small_pages() {
    for kind in [["--memory-backing", "shared"], ["--hugepages", "off"]] {
        passes(
            guests::MEM_PROBE,
            &[&["--memory", "5G"], &kind[..]].concat(),
        );
    }
}

pub(crate) fn acpi_tables_hang_together() {
    for cpus in ["1", "64"] {
        let end = passes(guests::ACPI_WALK, &["--cpus", cpus]);
        for signature in ["XSDT", "FACP", "APIC", "DSDT"] {
            assert!(
                end.text().contains(&format!("{signature} at ")),
                "{}",
                end.describe()
            );
        }
    }
}

pub(crate) fn other_cpus_start_and_know_their_numbers() {
    for cpus in [1, 2, 4, 64] {
        let mut command = run_guest(guests::SMP);
        command.arg("--cpus").arg(cpus.to_string());
        let ids: String = (1..cpus).map(|id| format!(" {id}")).collect();
        let others = cpus - 1;
        finish(command)
            .expect_code(0)
            .expect_output(&format!("started {others} of {others}\nAPIC IDs{ids}\n"))
            .expect_silence();
    }
}

/// In every width, without a word in the log.
pub(crate) fn unclaimed_addresses_read_all_ones() {
    passes(guests::UNCLAIMED, &[]);
}

pub(crate) fn the_clock_tells_the_hosts_time() {
    let now = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs()
    };
    let before = now();
    let text = finish(run_guest(guests::RTC_READ)).expect_code(0).text();
    let after = now();
    let read = seconds(text.trim()).unwrap_or_else(|| panic!("no time: {text:?}"));
    assert!(
        (before..=after).contains(&read),
        "{text:?}: {before} {read} {after}"
    );
}

/// Seconds since 1970 of a `YYYY-MM-DD HH:MM:SS` in UTC.
fn seconds(text: &str) -> Option<u64> {
    let numbers: Vec<u64> = text
        .split(['-', ' ', ':'])
        .map(|number| number.parse().ok())
        .collect::<Option<_>>()?;
    let [year, month, day, hour, minute, second] = numbers[..] else {
        return None;
    };
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let lengths = [
        31,
        28 + u64::from(leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let years: u64 = (1970..year).map(|year| 365 + u64::from(leap(year))).sum();
    let months: u64 = lengths.iter().take(month as usize - 1).sum();
    Some((((years + months + day - 1) * 24 + hour) * 60 + minute) * 60 + second)
}

pub(crate) fn the_timeline_file_has_host_phases_and_guest_marks_in_order() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut command = run_guest(guests::DEBUG_MARKS);
    command.arg("--timeline").arg(file.path());
    finish(command).expect_code(0).expect_silence();
    let timeline: Value = serde_json::from_reader(file).unwrap();
    let marks = timeline["marks"].as_array().unwrap();
    let position = |name: &str| {
        marks
            .iter()
            .position(|mark| mark["name"] == name)
            .unwrap_or_else(|| panic!("no mark {name:?} in {timeline}"))
    };
    let names = [
        "memory",
        "kernel-loaded",
        "vcpus",
        "first-entry",
        "debug-port-1",
        "debug-port-2",
        "debug-port-3",
    ];
    assert!(
        names
            .windows(2)
            .all(|pair| position(pair[0]) < position(pair[1])),
        "{timeline}"
    );
    assert!(
        marks
            .windows(2)
            .all(|pair| pair[0]["at_us"].as_u64() <= pair[1]["at_us"].as_u64()),
        "{timeline}"
    );
    assert_eq!(marks[position("memory")]["source"], "host");
    assert_eq!(marks[position("debug-port-1")]["source"], "guest");
}

pub(crate) fn the_timeline_marks_the_first_byte_and_init() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut command = run_guest(guests::PANIC_TEXT);
    command.arg("--timeline").arg(file.path());
    finish(command).expect_code(134);
    let timeline = fs::read_to_string(file).unwrap();
    for name in ["first-serial-byte", "\"/init\"", "panic-line"] {
        assert!(timeline.contains(name), "no {name}: {timeline}");
    }
}
