//! Disks under load: file systems and `fio` of this machine in the guest, and what its host finds in the image.

use crate::guest::{boot_with_tools, linux};
use crate::virtio::{ask, expect};

/// Dynamic programs run in the guest, by both kernels.
pub(crate) fn the_guest_has_programs_of_this_machine() {
    for version in ["6.1", "6.12"] {
        let vm = &mut boot_with_tools(linux(version, "vmlinux"));
        expect(vm, "fio --version", "fio-");
        expect(vm, "iperf3 --version", "iperf 3");
        expect(vm, "mkfs.ext4 -V 2>&1", "mke2fs 1");
        expect(vm, "fsck.ext4 -V 2>&1", "e2fsck 1");
        expect(vm, "mkfs.xfs -V", "mkfs.xfs version");
        expect(vm, "xfs_repair -V", "xfs_repair version");
        expect(vm, "/usr/bin/fstrim --version", "util-linux");
        expect(vm, "/usr/bin/blkdiscard --version", "util-linux");
        expect(vm, "ethtool --version", "ethtool version");
        expect(vm, "/usr/bin/ping -V", "iputils");
        ask(
            vm,
            "mkfs.ext4 -q -F /tmp/image 8M && fsck.ext4 -fn /tmp/image",
        );
        vm.send("poweroff -f\n");
    }
}
