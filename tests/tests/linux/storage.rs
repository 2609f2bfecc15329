//! Disks under load: file systems and `fio` of this machine's in the guest, and what its host finds in the image.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::driver::Vm;
use crate::guest::{LOAD_VIRTIO, boot, boot_with_tools, linux};
use crate::host::{Loop, Mount, host, sparse};
use crate::virtio::{ask, expect, host_sum, sha256};

/// A way of keeping a disk.
struct Kept {
    options: &'static str,
    /// On ext4 on a loop device, where the host reads and writes by itself what a tmpfs only keeps in its cache.
    on_ext4: bool,
}

impl Kept {
    fn is_qcow2(&self) -> bool {
        self.options.contains("format=qcow2")
    }
}

/// All of them are disks of one guest, under load together.
const KEPT: &[Kept] = &[
    Kept {
        options: "engine=sync,queues=2",
        on_ext4: false,
    },
    Kept {
        options: "engine=sync,direct",
        on_ext4: true,
    },
    Kept {
        options: "engine=io_uring,queues=2",
        on_ext4: false,
    },
    Kept {
        options: "engine=io_uring,queues=2,direct",
        on_ext4: true,
    },
    Kept {
        options: "cache=writethrough",
        on_ext4: true,
    },
    Kept {
        options: "cache=unsafe,poll=0s",
        on_ext4: false,
    },
    Kept {
        options: "format=qcow2,queues=2",
        on_ext4: false,
    },
];

const MIB: u64 = 1 << 20;

/// Dynamic programs run in the guest.
pub(crate) fn the_guest_has_programs_of_this_machine() {
    let vm = &mut boot_with_tools(linux("6.1", "vmlinux"));
    for (question, answer) in [
        ("fio --version", "fio-"),
        ("iperf3 --version", "iperf 3"),
        ("mkfs.ext4 -V 2>&1", "mke2fs 1"),
        ("fsck.ext4 -V 2>&1", "e2fsck 1"),
        ("mkfs.xfs -V", "mkfs.xfs version"),
        ("xfs_repair -V", "xfs_repair version"),
        ("/usr/bin/fstrim --version", "util-linux"),
        ("/usr/bin/blkdiscard --version", "util-linux"),
        ("ethtool --version", "ethtool version"),
        ("/usr/bin/ping -V", "iputils"),
    ] {
        expect(vm, question, answer);
    }
    vm.send("poweroff -f\n");
}

/// Blocks of all sizes at random places, read back by `fio` in the guest with their sums, and once more by the host.
pub(crate) fn fio_finds_what_it_wrote() {
    fio_on_disks("6.1", KEPT, 4);
}

/// The same by a newer driver, by which only the engines matter.
pub(crate) fn linux_6_12_fio_finds_what_it_wrote() {
    fio_on_disks("6.12", &KEPT[2..4], 4);
}

/// Much more of it.
pub(crate) fn fio_finds_all_of_much_that_it_wrote() {
    for version in ["6.1", "6.12"] {
        fio_on_disks(version, KEPT, 32);
    }
}

/// Two jobs write that many MiB of each disk past the guest's cache, and half of it through it.
fn fio_on_disks(version: &str, kept: &[Kept], mib: u64) {
    let folder = tempfile::tempdir().unwrap();
    let size = 4 * mib * MIB;
    let lower = Loop::new(
        &folder.path().join("lower"),
        kept.len() as u64 * size + 64 * MIB,
    );
    let ext4 = Mount::ext4(lower.path(), folder.path().join("ext4"));
    let mut command = linux(version, "vmlinux");
    command.args(["--cpus", "2"]);
    let mut images = Vec::new();
    for (number, kept) in kept.iter().enumerate() {
        let place = if kept.on_ext4 {
            ext4.path()
        } else {
            folder.path()
        };
        let image = place.join(format!("image{number}"));
        if kept.is_qcow2() {
            add(
                &mut command,
                &image,
                &format!("{},size={size}", kept.options),
            );
        } else {
            sparse(&image, size);
            add(&mut command, &image, kept.options);
        }
        images.push(image);
    }
    let mut vm = boot_with_tools(command);
    let disks: Vec<String> = ('a'..)
        .take(kept.len())
        .map(|letter| format!("/dev/vd{letter}"))
        .collect();
    fio(&mut vm, &disks, mib);
    ask(&mut vm, "echo 3 > /proc/sys/vm/drop_caches");
    let sums: Vec<String> = disks.iter().map(|disk| sha256(&mut vm, disk)).collect();
    power_off(vm);
    for ((image, kept), sum) in images.into_iter().zip(kept).zip(sums) {
        let raw = match kept.is_qcow2() {
            true => raw_of(&image),
            false => image,
        };
        assert_eq!(host_sum(raw.to_str().unwrap()), sum, "{}", kept.options);
    }
}

/// What a qcow2 image holds, by a program that nobody here wrote, and which finds no fault with it.
fn raw_of(image: &Path) -> PathBuf {
    let raw = image.with_extension("raw");
    host(&format!("qemu-img check -q {}", image.display()));
    let both = format!("{} {}", image.display(), raw.display());
    host(&format!("qemu-img convert -O raw {both}"));
    raw
}

/// On each disk at once, two jobs read and write so many MiB past the guest's cache and two half of that through it, at random, each
/// its own part, in blocks from 512 bytes to 1 MiB, and compare.
fn fio(vm: &mut Vm, disks: &[String], mib: u64) {
    let (half, middle) = (mib / 2, 2 * mib);
    // A file, for busybox's shell takes no long lines.
    let tell = |vm: &mut Vm, lines: &str| {
        ask(vm, &format!("printf '%s\\n' {lines} >> /load.fio"));
    };
    let common = format!(
        "[global] thread numjobs=2 offset_increment={mib}m rw=randrw end_fsync=1 \
         bssplit=512/20:4k/40:20k/20:64k/10:256k/8:1m/2 verify=crc32c verify_fatal=1"
    );
    tell(vm, &common);
    for disk in disks {
        let past = format!("[past] direct=1 ioengine=libaio iodepth=16 size={mib}m");
        let through = format!("[through] ioengine=psync fsync=32 size={half}m offset={middle}m");
        tell(
            vm,
            &format!("{past} filename={disk} {through} filename={disk}"),
        );
    }
    let said = ask(vm, "fio /load.fio | grep -e err= -e verify:");
    let good = said.matches("): err= 0:").count();
    assert_eq!(good, 4 * disks.len(), "{said}");
}

/// Files are made, changed, moved and removed by several processes; the file system is sound, for guest and host, and holds what
/// was written.
pub(crate) fn ext4_survives_heavy_writing() {
    heavy_writing("6.1");
}

/// The same by a newer kernel.
pub(crate) fn linux_6_12_ext4_survives_heavy_writing() {
    heavy_writing("6.12");
}

fn heavy_writing(version: &str) {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    sparse(&image, 256 * MIB);
    let mut command = linux(version, "vmlinux");
    command.args(["--cpus", "2"]);
    add(&mut command, &image, "engine=io_uring,queues=2");
    let mut vm = boot_with_tools(command);
    ask(
        &mut vm,
        "mkfs.ext4 -q /dev/vda && mkdir /mnt && mount /dev/vda /mnt",
    );
    let files = "f() { mkdir /mnt/$1; for i in $(seq 20); do echo $1 $i > /mnt/$1/$i; cat /bin/busybox >> /mnt/$1/big; \
                 if [ $((i % 3)) = 0 ]; then mv /mnt/$1/$i /mnt/$1/moved$i; fi; \
                 if [ $((i % 5)) = 0 ]; then sync; fi; \
                 if [ $((i % 7)) = 0 ]; then rm /mnt/$1/big; fi; done; }";
    ask(&mut vm, files);
    let load = "fio --name=files --directory=/mnt --thread --numjobs=2 --nrfiles=10 --size=4m --rw=randwrite \
                --bssplit=512/30:4k/50:64k/20 --fsync=16 --verify=crc32c --verify_fatal=1 | grep err=";
    ask(
        &mut vm,
        &format!("f one & f two & {load} && wait && mkdir /mnt/lib && cp /usr/bin/* /mnt/lib"),
    );
    let sum = "find /mnt -type f | sort | xargs sha256sum > /tmp/sums";
    ask(&mut vm, sum);
    let written = sha256(&mut vm, "/tmp/sums");
    ask(&mut vm, "umount /mnt && fsck.ext4 -fn /dev/vda");
    ask(
        &mut vm,
        "echo 3 > /proc/sys/vm/drop_caches && mount /dev/vda /mnt",
    );
    ask(&mut vm, sum);
    assert_eq!(sha256(&mut vm, "/tmp/sums"), written);
    ask(&mut vm, "umount /mnt");
    power_off(vm);
    host(&format!("fsck.ext4 -fn {}", image.display()));
}

/// What a guest discards, its host gets back; what it does not, stays.
pub(crate) fn discards_shrink_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let xfs = folder.path().join("xfs");
    sparse(&image, 64 * MIB);
    sparse(&xfs, 512 * MIB);
    let mut command = linux("6.1", "vmlinux");
    add(&mut command, &image, "id=image");
    add(&mut command, &xfs, "id=xfs");
    let mut vm = boot_with_tools(command);
    let used = |image: &PathBuf| fs::metadata(image).unwrap().blocks() * 512;
    // Nothing of it is zero; that much noise would take an emulated machine long.
    ask(&mut vm, "dd if=/dev/urandom of=/noise bs=1M count=4");
    let noise = |mib: u64, dd: &str| {
        let times = mib / 4;
        format!(
            "for i in $(seq {times}); do cat /noise; done | dd {dd} bs=1M iflag=fullblock conv=fsync"
        )
    };
    let fill = &noise(64, "of=/dev/vda");

    ask(&mut vm, fill);
    assert_eq!(used(&image), 64 * MIB);
    ask(&mut vm, "mkfs.ext4 -q -F -K /dev/vda");
    assert_eq!(used(&image), 64 * MIB);
    ask(&mut vm, "mkfs.ext4 -q -F /dev/vda");
    let empty = used(&image);
    assert!(empty < 16 * MIB, "{empty} bytes after mkfs.ext4");

    ask(&mut vm, "mkdir /mnt && mount /dev/vda /mnt");
    ask(&mut vm, &noise(40, "of=/mnt/file"));
    assert!(used(&image) > 40 * MIB);
    ask(&mut vm, "rm /mnt/file && sync");
    assert!(used(&image) > 40 * MIB);
    ask(&mut vm, "/usr/bin/fstrim /mnt");
    let trimmed = used(&image);
    assert!(
        trimmed < empty + 4 * MIB,
        "{trimmed} bytes after fstrim, {empty} before"
    );
    ask(&mut vm, "umount /mnt && fsck.ext4 -fn /dev/vda");

    ask(&mut vm, fill);
    ask(&mut vm, "/usr/bin/blkdiscard -o 16M -l 16M /dev/vda");
    assert_eq!(used(&image), 48 * MIB);
    // Zeroes that keep their place, and zeroes of which the host may take it.
    ask(&mut vm, "/usr/bin/blkdiscard -z /dev/vda");
    ask(&mut vm, "cmp -n 67108864 /dev/vda /dev/zero");
    ask(&mut vm, "/usr/bin/blkdiscard -f /dev/vda");
    assert_eq!(used(&image), 0);

    // Of what it does not need, mkfs.xfs writes zeroes over its log of 64 MiB, and wants them to keep their place.
    ask(&mut vm, &noise(160, "of=/dev/vdb seek=16"));
    ask(&mut vm, "mkfs.xfs -q -K /dev/vdb");
    assert!(used(&xfs) >= 160 * MIB);
    ask(&mut vm, "mkfs.xfs -q -f /dev/vdb && xfs_repair -n /dev/vdb");
    let empty = used(&xfs);
    assert!(empty < 72 * MIB, "{empty} bytes after mkfs.xfs");
    power_off(vm);
}

/// A disk that may only be read is written by nothing the guest does; the others tell what their cache is.
pub(crate) fn read_only_disks_refuse_writes() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    sparse(&image, 32 * MIB);
    host(&format!("mkfs.ext4 -q {}", image.display()));
    let before = host_sum(image.to_str().unwrap());
    let other = |name: &str| {
        let path = folder.path().join(name);
        sparse(&path, MIB);
        path
    };
    let mut command = linux("6.1", "vmlinux");
    add(&mut command, &image, "readonly");
    add(&mut command, &other("through"), "cache=writethrough");
    add(&mut command, &other("unsafe"), "cache=unsafe");
    let mut vm = boot_with_tools(command);
    for line in [
        "! dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct",
        "! /usr/bin/blkdiscard -f /dev/vda",
        "! /usr/bin/blkdiscard -z /dev/vda",
        "! mkfs.ext4 -q -F /dev/vda",
        "mkdir /mnt && ! mount -o rw /dev/vda /mnt || ! touch /mnt/file",
        "umount /mnt; mount -o ro /dev/vda /mnt && ls /mnt/lost+found",
        "grep -x 'write through' /sys/block/vdb/queue/write_cache",
        "grep -x 'write back' /sys/block/vdc/queue/write_cache",
        "dd if=/dev/zero of=/dev/vdb bs=64k count=16 conv=fsync",
        "dd if=/dev/zero of=/dev/vdc bs=64k count=16 conv=fsync",
    ] {
        ask(&mut vm, line);
    }
    power_off(vm);
    assert_eq!(host_sum(image.to_str().unwrap()), before);
}

/// A disk that grows while it is in use, and is used to its new end.
pub(crate) fn a_disk_that_grows_is_used_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    sparse(&image, 8 * MIB);
    let mut command = linux("6.1", "vmlinux");
    add(&mut command, &image, "queues=2");
    let (mut vm, _) = boot(command);
    ask(&mut vm, LOAD_VIRTIO);
    expect(&mut vm, "cat /sys/block/vda/size", "16384");
    let file = fs::File::options().write(true).open(&image).unwrap();
    file.set_len(16 * MIB).unwrap();
    vm.signal(libc::SIGUSR2);
    let grown = "while [ $(cat /sys/block/vda/size) != 32768 ]; do sleep 0.1; done";
    ask(&mut vm, grown);
    ask(
        &mut vm,
        "dd if=/bin/busybox of=/dev/vda bs=64k count=16 seek=240 conv=fsync",
    );
    power_off(vm);
    let content = fs::read(&image).unwrap();
    assert!(content[15 << 20..] == fs::read("/bin/busybox").unwrap()[..1 << 20]);
}

/// One more disk.
pub(crate) fn add(command: &mut Command, image: &Path, options: &str) {
    command
        .arg("--disk")
        .arg(format!("path={},{options}", image.display()));
}

/// Ends a guest that must have been well until then, in silence of its VMM.
pub(crate) fn power_off(mut vm: Vm) {
    vm.send("poweroff -f\n");
    vm.end().expect_code(0).expect_silence();
}
