//! Disks whose host fails them: the guest is told of each error, the log names the disk, and the other disks go on.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::driver::Vm;
use crate::guest::{LOAD_VIRTIO, boot, linux};
use crate::host::{Loop, Mapper, Mount, sparse};
use crate::storage::add;
use crate::virtio::ask;

const MIB: u64 = 1 << 20;
const SECTORS: u64 = 32 * MIB / 512;

/// The disks that fail, `/dev/vda` and so on, each with its name.
const FAILING: &[(&str, &str)] = &[
    ("bad-sync", "engine=sync,queues=2"),
    ("bad-through", "engine=sync,cache=writethrough"),
    ("bad-ring", "engine=io_uring"),
];

/// A guest with disks that are to fail, in this order, and a last one that is not.
struct Guest {
    vm: Vm,
}

impl Guest {
    fn boot(images: &[PathBuf], folder: &Path) -> Self {
        let mut command = linux("6.1", "vmlinux");
        for (image, (name, options)) in images.iter().zip(FAILING) {
            add(&mut command, image, &format!("id={name},{options}"));
        }
        let good = folder.join("good");
        sparse(&good, 16 * MIB);
        add(&mut command, &good, "id=good");
        let (mut vm, _) = boot(command);
        ask(&mut vm, LOAD_VIRTIO);
        Self { vm }
    }

    /// Runs `dd` on a disk, whose device DISK stands for.
    #[track_caller]
    fn dd(&mut self, disk: usize, arguments: &str) {
        ask(&mut self.vm, &dd(disk, arguments));
    }

    /// The same, to see it fail by an I/O error.
    #[track_caller]
    fn dd_fails(&mut self, disk: usize, arguments: &str) {
        let line = format!("! {}", dd(disk, arguments));
        let said = ask(&mut self.vm, &line).to_lowercase();
        assert!(said.contains("i/o error"), "{line}: no I/O error in {said}");
    }

    /// The last disk reads what it writes, and makes it safe; the VM comes to a good end, and its log has these words of each
    /// disk that failed.
    fn the_rest_is_well(mut self, complaints: &[&str]) {
        self.dd(FAILING.len(), "if=/bin/busybox of=DISK bs=64k conv=fsync");
        ask(&mut self.vm, "echo 3 > /proc/sys/vm/drop_caches");
        self.dd(FAILING.len(), "if=DISK of=/back bs=64k count=8");
        ask(&mut self.vm, "cmp -n 524288 /bin/busybox /back");
        self.vm.send("poweroff -f\n");
        let mut end = self.vm.end().expect_code(0);
        for (name, _) in FAILING {
            for complaint in complaints {
                // There, a write is done when it is safe, and no flush is asked for.
                let complaint = match (*name, *complaint) {
                    ("bad-through", "flush failed") => "write failed",
                    _ => complaint,
                };
                end = end.expect_error(&format!("{name}: {complaint}"));
            }
        }
        assert!(!end.errors.contains("good: "), "{}", end.errors);
    }
}

fn dd(disk: usize, arguments: &str) -> String {
    let letter = char::from(b'a' + disk as u8);
    format!(
        "dd {}",
        arguments.replace("DISK", &format!("/dev/vd{letter}"))
    )
}

/// A place in a test's folder for each of the disks.
fn places(folder: &Path) -> Vec<PathBuf> {
    FAILING.iter().map(|(name, _)| folder.join(name)).collect()
}

/// Block devices that fail reads and the writing back of what their host has cached; what was lost stays lost.
pub(crate) fn a_device_that_fails_gives_io_errors() {
    let folder = tempfile::tempdir().unwrap();
    let disks: Vec<(Loop, Mapper)> = places(folder.path())
        .iter()
        .zip(FAILING)
        .map(|(place, (name, _))| {
            let platter = Loop::new(place, SECTORS * 512);
            let disk = Mapper::new(name, &working(&platter));
            (platter, disk)
        })
        .collect();
    let images: Vec<PathBuf> = disks.iter().map(|(_, disk)| disk.path().into()).collect();
    let mut guest = Guest::boot(&images, folder.path());
    let flush = "if=/dev/zero of=DISK bs=4k count=1 seek=7 conv=fsync";
    for (number, (platter, disk)) in disks.iter().enumerate() {
        guest.dd(number, "if=DISK of=/dev/null bs=4k count=1 iflag=direct");
        guest.dd(number, flush);
        disk.replace(&format!("0 {SECTORS} error"));
        // Far from what the host has read ahead.
        guest.dd_fails(
            number,
            "if=DISK of=/dev/null bs=4k count=1 iflag=direct skip=6000",
        );
        guest.dd_fails(number, flush);
        disk.replace(&working(platter));
        guest.dd(
            number,
            "if=DISK of=/dev/null bs=4k count=1 iflag=direct skip=5000",
        );
        // What an earlier flush has not written is not there, whatever the host says of it now.
        guest.dd_fails(number, flush);
    }
    guest.the_rest_is_well(&["read failed", "flush failed"]);
}

fn working(platter: &Loop) -> String {
    format!("0 {SECTORS} linear {} 0", platter.path())
}

/// File systems that are full.
pub(crate) fn a_full_tmpfs_gives_io_errors() {
    let folder = tempfile::tempdir().unwrap();
    let full = places(folder.path())
        .into_iter()
        .map(|place| Mount::tmpfs(8 * MIB, place))
        .collect();
    fill(full, folder.path());
}

/// The same, where space is given out when the cache is written back.
pub(crate) fn a_full_ext4_gives_io_errors() {
    let folder = tempfile::tempdir().unwrap();
    let lower: Vec<Loop> = places(folder.path())
        .iter()
        .map(|place| Loop::new(&place.with_extension("lower"), 8 * MIB))
        .collect();
    let full = lower
        .iter()
        .zip(places(folder.path()))
        .map(|(lower, place)| Mount::ext4(lower.path(), place))
        .collect();
    fill(full, folder.path());
}

fn fill(full: Vec<Mount>, folder: &Path) {
    let image = |mount: &Mount| {
        let image = mount.path().join("image");
        sparse(&image, 32 * MIB);
        image
    };
    let images: Vec<PathBuf> = full.iter().map(image).collect();
    let mut guest = Guest::boot(&images, folder);
    for number in 0..images.len() {
        guest.dd(number, "if=/dev/zero of=DISK bs=64k count=16 conv=fsync");
        guest.dd_fails(number, "if=/dev/zero of=DISK bs=64k count=512 oflag=direct");
        // What is there can be written again, and read.
        guest.dd(number, "if=/bin/busybox of=DISK bs=4k count=1 oflag=direct");
        guest.dd(number, "if=DISK of=/back bs=4k count=1 iflag=direct");
        ask(&mut guest.vm, "cmp -n 4096 /bin/busybox /back");
    }
    guest.the_rest_is_well(&["write failed: No space left on device"]);
}

/// Images that somebody cuts short while they are in use.
pub(crate) fn an_image_cut_short_gives_io_errors() {
    let folder = tempfile::tempdir().unwrap();
    let images = places(folder.path());
    for image in &images {
        sparse(image, 32 * MIB);
    }
    let mut guest = Guest::boot(&images, folder.path());
    for (number, image) in images.iter().enumerate() {
        guest.dd(number, "if=DISK of=/dev/null bs=64k iflag=direct");
        let file = File::options().write(true).open(image).unwrap();
        // In the middle of a block that the guest reads.
        file.set_len(MIB + 512).unwrap();
        guest.dd(number, "if=DISK of=/dev/null bs=64k count=16 iflag=direct");
        guest.dd_fails(
            number,
            "if=DISK of=/dev/null bs=64k skip=16 count=1 iflag=direct",
        );
        guest.dd_fails(
            number,
            "if=DISK of=/dev/null bs=64k skip=100 count=1 iflag=direct",
        );
    }
    guest.the_rest_is_well(&["read failed"]);
}
