//! What VMs leave behind in the process that ran them: nothing. A program of its own, because it looks at all of the process.

#[path = "library/guest.rs"]
#[allow(dead_code, reason = "some of it is for others")]
mod guest;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use ampoule_tests::guests;
use ampoule_tests::harness::{self, Needs, Test};
use ampoule_vmm::VmBuilder;
use ampoule_vmm::config::{DiskConfig, MemorySize, VmConfig, VsockConfig};

use guest::{Printed, config, count};

/// VMs at a time.
const THREADS: usize = 4;

/// The main thread, and that of the test. The harness has another at first, which finds nothing to do.
const OWN_THREADS: usize = 2;

/// How long a thread may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// No other mapping is as large.
const MEMORY_MIB: u64 = 48;

fn main() -> ExitCode {
    // One heap for all threads: how many the C library makes otherwise, and keeps, is a matter of chance.
    // SAFETY: no other thread exists yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    let tests = vec![Test {
        name: "five_hundred_vms_leave_nothing_behind",
        run: five_hundred_vms_leave_nothing_behind,
    }];
    harness::main([(Needs::Kvm, tests)], Path::new(""))
}

/// What `/proc/self` says of the process.
#[derive(Debug)]
struct Process {
    threads: usize,
    descriptors: BTreeSet<String>,
    mappings: Vec<String>,
}

impl Process {
    fn look() -> Self {
        let list = |folder: &str| fs::read_dir(folder).unwrap().map(Result::unwrap);
        let descriptors = list("/proc/self/fd").filter_map(|entry| {
            // That of the listing itself is gone.
            let target = fs::read_link(entry.path()).ok()?;
            Some(format!(
                "{}: {}",
                entry.file_name().display(),
                target.display()
            ))
        });
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        Self {
            threads: list("/proc/self/task").count(),
            descriptors: descriptors.filter(|it| !it.contains("/proc/")).collect(),
            mappings: maps.lines().map(str::to_owned).collect(),
        }
    }

    /// The same, when no more than so many threads are left. One that has been joined is listed until the kernel has done with
    /// it.
    fn look_with(threads: usize) -> Self {
        let end = Instant::now() + PATIENCE;
        loop {
            let process = Self::look();
            if process.threads <= threads || Instant::now() > end {
                return process;
            }
            thread::yield_now();
        }
    }

    /// The mappings that only VMs have.
    fn of_vms(&self) -> Vec<&String> {
        let is_ram = |line: &str| {
            let (start, end) = line.split_once(' ')?.0.split_once('-')?;
            let at = |text| u64::from_str_radix(text, 16).ok();
            // The first 2 MiB are a mapping of their own, because they are in small pages.
            Some(at(end)? - at(start)? >= (MEMORY_MIB - 2) << 20 && line.contains(" rw"))
        };
        let mappings = self.mappings.iter();
        mappings
            .filter(|line| line.contains("kvm") || is_ram(line).unwrap_or(false))
            .collect()
    }
}

fn a_vm(folder: &Path, number: usize) -> VmConfig {
    let mut disk = DiskConfig::new(folder.join(format!("{number}.img")));
    disk.size = Some(MemorySize::mib(1));
    VmConfig {
        memory: MemorySize::mib(MEMORY_MIB),
        disk: vec![disk],
        vsock: Some(VsockConfig {
            cid: 3,
            socket: Some(folder.join(format!("{number}.sock"))),
        }),
        ..config(guests::COUNTER, 2)
    }
}

/// Runs VMs, some of which are dropped while they boot, some when they are up, some while they are paused, some unstarted.
fn run_vms(folder: &Path, vms: usize) {
    thread::scope(|scope| {
        for first in 0..THREADS {
            scope.spawn(move || {
                for number in (first..vms).step_by(THREADS) {
                    let vm = VmBuilder::new(a_vm(folder, number)).build().unwrap();
                    if number % 10 == 9 {
                        continue;
                    }
                    let vm = vm.start().unwrap();
                    if number % 2 == 0 {
                        continue;
                    }
                    Printed::of(&vm).wait_for("ready", 1);
                    if number % 3 == 0 {
                        vm.pause().unwrap();
                        count(&vm);
                    }
                }
            });
        }
    });
}

fn five_hundred_vms_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    // What a process has only once, and what the C library keeps of its threads' stacks.
    run_vms(folder.path(), 40);
    let before = Process::look_with(OWN_THREADS);
    run_vms(folder.path(), 500);
    let after = Process::look_with(before.threads);
    assert_eq!(after.of_vms(), Vec::<&String>::new());
    assert_eq!(before.threads, after.threads);
    assert_eq!(before.descriptors, after.descriptors);
    let more = after.mappings.len().saturating_sub(before.mappings.len());
    assert!(more < 16, "{more} mappings more: {:#?}", after.mappings);
    let files = fs::read_dir(folder.path()).unwrap();
    let sockets = files
        .map(|file| file.unwrap().file_name())
        .filter(|name| name.to_string_lossy().ends_with(".sock"));
    assert_eq!(sockets.count(), 0);
}
