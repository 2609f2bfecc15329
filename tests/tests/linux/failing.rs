//! Disks whose host fails them: the guest is told of each error, the log names the disk, and the other disks go on.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use crate::driver::{End, Vm};
use crate::guest::{LOAD_VIRTIO, boot, linux};
use crate::host::{Loop, Mapper, Mount, sparse};
use crate::storage::add;
use crate::virtio::ask;

const MIB: u64 = 1 << 20;
const SECTORS: u64 = 32 * MIB / 512;

/// A guest with a disk that is to fail, `/dev/vda`, and one that is not.
fn boot_with(image: &Path, folder: &Path) -> Vm {
    let good = folder.join("good");
    sparse(&good, 16 * MIB);
    let mut command: Command = linux("6.1", "vmlinux");
    add(&mut command, image, "id=bad");
    add(&mut command, &good, "id=good");
    let (mut vm, _) = boot(command);
    ask(&mut vm, LOAD_VIRTIO);
    vm
}

/// The other disk reads what it writes, and makes it safe; the VM comes to a good end.
fn the_rest_is_well(mut vm: Vm) -> End {
    ask(
        &mut vm,
        "dd if=/dev/urandom of=/random bs=64k count=16 && dd if=/random of=/dev/vdb bs=64k conv=fsync",
    );
    ask(&mut vm, "echo 3 > /proc/sys/vm/drop_caches");
    ask(&mut vm, "cmp -n 1048576 /random /dev/vdb");
    vm.send("poweroff -f\n");
    let end = vm.end().expect_code(0);
    assert!(!end.errors.contains("disk good"), "{}", end.errors);
    end
}

/// A block device that fails reads and the writing back of what its host has cached; what was lost stays lost.
pub(crate) fn a_device_that_fails_gives_io_errors() {
    let folder = tempfile::tempdir().unwrap();
    let platter = Loop::new(&folder.path().join("platter"), SECTORS * 512);
    let working = format!("0 {SECTORS} linear {} 0", platter.path());
    let disk = Mapper::new("ampoule-fails", &working);
    let mut vm = boot_with(Path::new(&disk.path()), folder.path());
    let vm_ = &mut vm;
    let read =
        |at: u32| format!("dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct skip={at}");
    let write =
        |at: u32| format!("dd if=/bin/busybox of=/dev/vda bs=512 count=1 oflag=direct seek={at}");
    let flush = "dd if=/dev/zero of=/dev/vda bs=4k count=1 seek=7 conv=fsync";
    ask(vm_, &read(0));
    ask(vm_, flush);

    disk.replace(&format!("0 {SECTORS} error"));
    // Far from what the host has read ahead.
    fails(vm_, &read(6000));
    fails(vm_, flush);
    disk.replace(&working);
    ask(vm_, &read(5000));
    ask(vm_, &write(9));
    // What an earlier flush has not written is not there, whatever the host says of it now.
    fails(vm_, flush);
    the_rest_is_well(vm)
        .expect_error("disk bad: read failed")
        .expect_error("disk bad: flush failed");
}

/// The guest's program ends with an I/O error.
#[track_caller]
fn fails(vm: &mut Vm, line: &str) {
    let said = ask(vm, &format!("! {line}"));
    assert!(
        said.to_lowercase().contains("i/o error"),
        "{line}: no I/O error in {said}"
    );
}

/// A file system that is full.
pub(crate) fn a_full_tmpfs_gives_io_errors() {
    let folder = tempfile::tempdir().unwrap();
    let full = Mount::tmpfs(8 * MIB, folder.path().join("full"));
    fill(full.path(), folder.path());
}

/// The same, where space is given out when the cache is written back.
pub(crate) fn a_full_ext4_gives_io_errors() {
    let folder = tempfile::tempdir().unwrap();
    let lower = Loop::new(&folder.path().join("lower"), 8 * MIB);
    let full = Mount::ext4(lower.path(), folder.path().join("full"));
    fill(full.path(), folder.path());
}

fn fill(full: &Path, folder: &Path) {
    let image = full.join("image");
    sparse(&image, 32 * MIB);
    let mut vm = boot_with(&image, folder);
    ask(
        &mut vm,
        "dd if=/dev/zero of=/dev/vda bs=64k count=16 conv=fsync",
    );
    fails(
        &mut vm,
        "dd if=/dev/urandom of=/dev/vda bs=64k count=512 oflag=direct",
    );
    // What is there can be written again, and read.
    ask(
        &mut vm,
        "dd if=/bin/busybox of=/dev/vda bs=512 count=1 oflag=direct",
    );
    ask(
        &mut vm,
        "dd if=/dev/vda of=/back bs=512 count=1 iflag=direct && cmp -n 512 /bin/busybox /back",
    );
    the_rest_is_well(vm).expect_error("disk bad: write failed: No space left on device");
}

/// An image that somebody cuts short while it is in use.
pub(crate) fn an_image_cut_short_gives_io_errors() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    sparse(&image, 32 * MIB);
    let mut vm = boot_with(&image, folder.path());
    ask(&mut vm, "dd if=/dev/vda of=/dev/null bs=64k iflag=direct");
    let file = File::options().write(true).open(&image).unwrap();
    // In the middle of a block that the guest reads.
    file.set_len(MIB + 512).unwrap();
    ask(
        &mut vm,
        "dd if=/dev/vda of=/dev/null bs=64k count=16 iflag=direct",
    );
    fails(
        &mut vm,
        "dd if=/dev/vda of=/dev/null bs=64k skip=16 count=1 iflag=direct",
    );
    fails(
        &mut vm,
        "dd if=/dev/vda of=/dev/null bs=64k skip=100 count=1 iflag=direct",
    );
    the_rest_is_well(vm).expect_error("disk bad: read failed");
}
