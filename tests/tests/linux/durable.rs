//! What a guest was told is safe, is: numbered blocks, a VMM that is killed or a host that loses its power, and the image read
//! afterwards.

use std::fs;
use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use ampoule_tests::numbered::{BLOCK, Random, SLOTS, blocks, lost};

use crate::driver::Vm;
use crate::guest::{LOAD_VIRTIO, boot, linux};
use crate::host::{Loop, Mapper, Mount, sparse};
use crate::storage::add;
use crate::virtio::ask;

const PLATTER_SECTORS: u64 = 64 << 20 >> 9;

/// The disks whose host loses its power, with how the guest makes its blocks safe: by a flush, or, where writes go through, by the
/// write alone. The last one ignores flushes, and shows that the cut is one.
const CUT_OFF: &[(&str, &str)] = &[
    ("engine=sync", "fsync"),
    ("engine=io_uring", "fsync"),
    ("engine=sync,direct", "dsync"),
    ("engine=io_uring,direct", "dsync"),
    ("engine=sync,cache=writethrough", "direct"),
    ("engine=io_uring,cache=writethrough", "direct"),
    ("cache=unsafe", "fsync"),
];

/// A guest that writes numbered blocks to its disks, and what it reports of each.
struct Writer {
    vm: Vm,
    reports: Vec<UnixStream>,
}

impl Writer {
    /// Boots one that writes each disk, which has these options, from `first` on, and makes its blocks safe in this way
    /// (`numbered.c`).
    fn start(folder: &Path, first: u64, disks: &[(&Path, &str, &str)]) -> Self {
        let socket = folder.join("vsock");
        let mut command = linux("6.1", "vmlinux");
        for (image, options, _) in disks {
            add(&mut command, image, options);
        }
        command
            .arg("--vsock")
            .arg(format!("cid=3,socket={}", socket.display()));
        let (mut vm, _) = boot(command);
        ask(&mut vm, LOAD_VIRTIO);
        let mut reports = Vec::new();
        for ((letter, port), (_, _, how)) in ('a'..).zip(77..).zip(disks) {
            let listening = PathBuf::from(format!("{}_{port}", socket.display()));
            let listener = UnixListener::bind(&listening).unwrap();
            vm.send(&format!(
                "numbered /dev/vd{letter} {port} {first} {SLOTS} {how} &\n"
            ));
            reports.push(listener.accept().unwrap().0);
            fs::remove_file(&listening).unwrap();
        }
        Self { vm, reports }
    }

    /// Reads that many reports of each disk; the last ones.
    fn last_reports(&mut self, count: u64) -> Vec<u64> {
        let mut number = [0; 8];
        let last_of = |mut reports: &UnixStream| {
            for _ in 0..count {
                reports.read_exact(&mut number).unwrap();
            }
            u64::from_le_bytes(number)
        };
        self.reports.iter().map(last_of).collect()
    }

    /// Kills the VMM; what it had passed on of the reports of the first disk, from the last.
    fn kill(mut self) -> Option<u64> {
        self.vm.signal(libc::SIGKILL);
        self.vm.end().expect_signal(libc::SIGKILL);
        let mut rest = Vec::new();
        self.reports[0].read_to_end(&mut rest).unwrap();
        let number = rest.chunks_exact(8).next_back()?;
        Some(u64::from_le_bytes(number.try_into().unwrap()))
    }
}

/// Killed at a random moment, again and again: what was reported is there, and the next start takes the same image and socket.
pub(crate) fn a_killed_vmm_loses_nothing_that_was_flushed() {
    kill_vmms(3);
}

/// The same a hundred times.
pub(crate) fn a_vmm_killed_a_hundred_times_loses_nothing() {
    kill_vmms(100);
}

fn kill_vmms(times: u32) {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    sparse(&image, SLOTS * BLOCK as u64);
    let mut random = Random::seeded();
    // No number is the zero that a new image has.
    let mut first = SLOTS;
    for _ in 0..times {
        let how = ["fsync", "dsync"][random.below(2) as usize];
        let engine = ["engine=sync", "engine=io_uring"][random.below(2) as usize];
        let mut writer = Writer::start(folder.path(), first, &[(&image, engine, how)]);
        let read = writer.last_reports(1 + random.below(400))[0];
        let last = writer.kill().unwrap_or(read);
        let lost = lost(&image, first, last);
        assert!(
            lost.is_empty(),
            "{how}, {engine}, reported up to {last}: {lost:?}"
        );
        first = 1 + blocks(&image).concat().into_iter().max().unwrap();
    }
}

/// The power fails: of what has not reached the host's disk by then, nothing will. What was reported before is there.
pub(crate) fn a_power_cut_loses_nothing_that_was_flushed() {
    let folder = tempfile::tempdir().unwrap();
    let platter = Loop::new(&folder.path().join("platter"), PLATTER_SECTORS * 512);
    let working = format!("0 {PLATTER_SECTORS} linear {} 0", platter.path());
    let without_power = format!(
        "0 {PLATTER_SECTORS} flakey {} 0 0 1 1 drop_writes",
        platter.path()
    );
    let disk = Mapper::new("ampoule-power", &working);
    let place = folder.path().join("ext4");
    let ext4 = Mount::ext4(&disk.path(), place.clone());
    let images: Vec<PathBuf> = (0..CUT_OFF.len())
        .map(|number| place.join(format!("image{number}")))
        .collect();
    for image in &images {
        sparse(image, SLOTS * BLOCK as u64);
    }
    let disks: Vec<_> = images
        .iter()
        .zip(CUT_OFF)
        .map(|(image, (options, how))| (image.as_path(), *options, *how))
        .collect();
    let mut writer = Writer::start(folder.path(), SLOTS, &disks);
    let reported = writer.last_reports(1 + Random::seeded().below(100));
    disk.replace(&without_power);
    writer.kill();
    drop(ext4);
    disk.replace(&working);
    let _ext4 = Mount::new(&disk.path(), place);
    for ((image, (options, _)), last) in images.iter().zip(CUT_OFF).zip(reported) {
        let lost = lost(image, SLOTS, last);
        if options.contains("unsafe") {
            assert!(!lost.is_empty(), "the power was not cut");
        } else {
            assert!(lost.is_empty(), "{options}: {lost:?}");
        }
    }
}
