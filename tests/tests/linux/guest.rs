//! The guest of the tests: busybox, a few modules, and a shell on the console.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use ampoule_tests::harness::{kernel, shared, tools};
use ampoule_tests::initramfs::{Initramfs, module};

use crate::driver::{Vm, run};
use crate::virtio::ask;

/// PID 1: what the tests ask about goes on one line, then a shell takes what is typed.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /usr /etc/acpi/PWRF
/bin/busybox ln -s usr/lib64 /lib64
/bin/busybox ln -s ../usr/share/mke2fs.conf /etc/mke2fs.conf
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin
set -- $(grep MemTotal /proc/meminfo)
echo "guest ready: $(uname -r), $(nproc) CPUs, $2 kB"
case " $(cat /proc/cmdline) " in *" shell=hvc0 "*)
    for m in virtio_ring virtio virtio_mmio virtio_console; do
        d=/lib; case $(uname -r) in 6.12*) d=/lib/6.12;; esac
        if test -e $d/$m.ko; then insmod $d/$m.ko; fi
    done
    set -- $(grep MemTotal /proc/meminfo)
    echo "guest ready: $(uname -r), $(nproc) CPUs, $2 kB" >/dev/hvc0
    exec setsid -c sh </dev/hvc0 >/dev/hvc0 2>&1;;
esac
exec sh </dev/ttyS0 >/dev/ttyS0 2>&1
"#;

/// Modules of 6.1 that the tests load, in /lib.
const MODULES: &[&str] = &[
    "button",
    "evdev",
    "pvpanic",
    "pvpanic-mmio",
    "virtio",
    "virtio_ring",
    "virtio_mmio",
    "virtio_blk",
    "virtio_console",
    "virtio-rng",
    "failover",
    "net_failover",
    "virtio_net",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
    "fuse",
    "virtiofs",
];

/// Those of 6.12, in /lib/6.12; the rest of virtio is built in.
const MODULES_6_12: &[&str] = &[
    "virtio_mmio",
    "virtio_blk",
    "virtio-rng",
    "failover",
    "net_failover",
    "virtio_net",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
];

/// A shell command that loads the modules of virtio.
pub(crate) const LOAD_VIRTIO: &str = "d=/lib; case $(uname -r) in 6.12*) d=/lib/6.12;; esac; for m in virtio_ring virtio virtio_mmio virtio_blk virtio_console virtio-rng \
     failover net_failover virtio_net \
     vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport fuse virtiofs; do \
     if test -e $d/$m.ko; then insmod $d/$m.ko || break; fi; done";

/// Mounts the tools' disk at /usr. The shell takes an applet of busybox's own where there is one: write `/usr/bin/ping`.
pub(crate) const LOAD_TOOLS: &str = "for d in /sys/block/vd*; do if grep -q ampoule-tools $d/serial; then \
     mount -t ext4 -o ro /dev/${d##*/} /usr; fi; done; \
     mkdir -p /dev/shm; mount -t tmpfs shm /dev/shm; export PATH=/bin:/usr/bin";

/// Programs of the guest's, in /bin: one talks by AF_VSOCK, one writes a disk and tells by AF_VSOCK what it has written.
const PROGRAMS: &[(&str, &str)] = &[
    ("vsock_echo", concat!(env!("GUESTS_DIR"), "/vsock_echo")),
    ("numbered", concat!(env!("GUESTS_DIR"), "/numbered")),
];

/// The initramfs, made once.
pub(crate) fn initramfs() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| shared("initramfs", make).join("initramfs.cpio"))
}

fn make(folder: &Path) {
    write(&folder.join("initramfs.cpio")).expect("cannot make an initramfs");
}

fn write(path: &Path) -> std::io::Result<()> {
    let mut archive = Initramfs::new();
    archive.folder("bin")?;
    archive.folder("lib")?;
    archive.program("bin/busybox", &fs::read("/bin/busybox")?)?;
    archive.program("init", INIT.as_bytes())?;
    for (name, program) in PROGRAMS {
        archive.program(&format!("bin/{name}"), &fs::read(program)?)?;
    }
    let modules = kernel("6.1").join("package/lib/modules");
    for name in MODULES {
        archive.program(&format!("lib/{name}.ko"), &module(&modules, name)?)?;
    }
    archive.folder("lib/6.12")?;
    let modules = kernel("6.12").join("package/lib/modules");
    for name in MODULES_6_12 {
        archive.program(&format!("lib/6.12/{name}.ko"), &module(&modules, name)?)?;
    }
    archive.write_to(path)
}

/// `ampoule run` of a file of a kernel's (`vmlinuz`, the bzImage, or `vmlinux`, the ELF) with the initramfs.
pub(crate) fn linux(version: &str, image: &str) -> Command {
    linux_with(version, image, "quiet")
}

/// The same with other words on the command line.
pub(crate) fn linux_with(version: &str, image: &str, append: &str) -> Command {
    let mut command = run(["--append", append]);
    command.arg("--kernel").arg(kernel(version).join(image));
    command.arg("--initrd").arg(initramfs());
    command
}

/// The same with a disk of this machine's programs ([`LOAD_TOOLS`]): fio, iperf3, mkfs.ext4, fsck.ext4 and others. Add other disks
/// before: this one comes last.
pub(crate) fn boot_with_tools(mut command: Command) -> Vm {
    command.arg("--disk").arg(format!(
        "path={},readonly,serial=ampoule-tools",
        tools().display()
    ));
    let (mut vm, _) = boot(command);
    ask(&mut vm, LOAD_VIRTIO);
    ask(&mut vm, LOAD_TOOLS);
    vm
}

/// What the guest said of itself.
pub(crate) struct Ready {
    pub(crate) release: String,
}

/// Boots a guest to its shell.
pub(crate) fn boot(command: Command) -> (Vm, Ready) {
    let mut vm = Vm::piped(command);
    let ready = wait_ready(&mut vm);
    (vm, ready)
}

/// Waits for the shell of a guest that boots.
pub(crate) fn wait_ready(vm: &mut Vm) -> Ready {
    vm.expect("guest ready: ");
    let line = vm.read_until(" kB");
    let fields: Vec<&str> = line
        .split([' ', ','])
        .filter(|word| !word.is_empty())
        .collect();
    let [release, _, "CPUs", _, "kB"] = fields[..] else {
        panic!("the guest said {line:?}");
    };
    Ready {
        release: release.into(),
    }
}
