//! QEMU with its machine for microVMs, `-M microvm`, as lean as it goes, and an I/O thread for the disks.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Launch, MAC, Unable, Vmm, pair};
use crate::machine::{Engine, Machine};

pub(super) struct Qemu(pub(super) PathBuf);

impl Vmm for Qemu {
    fn name(&self) -> &'static str {
        "QEMU microvm"
    }

    fn binary(&self) -> &Path {
        &self.0
    }

    fn launch(&self, machine: &Machine, _place: &Path) -> Result<Launch, Unable> {
        if machine.vsock {
            return Err(Unable(
                "its socket device is the host kernel's (vhost-vsock)".into(),
            ));
        }
        let mut command = Command::new(&self.0);
        // A Linux guest learns of its devices by ACPI, and of the time by the clock.
        let platform = match machine.initrd {
            Some(_) => "rtc=on",
            None => "rtc=off,acpi=off,auto-kernel-cmdline=off",
        };
        command.arg("-M");
        command.arg(format!("microvm,accel=kvm,pit=off,pic=off,{platform}"));
        command.args(["-cpu", "host", "-smp", &machine.cpus.to_string()]);
        command.args(["-m", &format!("{}M", machine.memory_mib)]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-no-reboot", "-serial", "stdio"]);
        command.args(["-global", "virtio-mmio.force-legacy=false"]);
        command.arg("-kernel").arg(&machine.kernel);
        command.args(["-append", &machine.cmdline]);
        if let Some(initrd) = &machine.initrd {
            command.arg("-initrd").arg(initrd);
        }
        if machine.rng {
            command.args(["-device", "virtio-rng-device"]);
        }
        if !machine.disks.is_empty() {
            command.args(["-object", "iothread,id=io"]);
        }
        for (number, disk) in machine.disks.iter().enumerate() {
            // Threads are the usual for what the page cache holds, io_uring for what it does not.
            let aio = match (disk.engine, disk.direct) {
                (Engine::Sync, _) | (Engine::Usual, false) => "threads",
                (Engine::IoUring, _) | (Engine::Usual, true) => "io_uring",
            };
            let cache = if disk.direct { "none" } else { "writeback" };
            let mut drive = format!("if=none,id=disk{number},format=raw,aio={aio},cache={cache},");
            if disk.read_only {
                drive.push_str("readonly=on,");
            }
            drive.push_str(&pair("file", &disk.path));
            let mut device = format!("virtio-blk-device,drive=disk{number},iothread=io");
            if let Some(serial) = &disk.serial {
                device.push_str(&format!(",serial={serial}"));
            }
            command.args(["-drive", &drive, "-device", &device]);
        }
        if let Some(tap) = &machine.tap {
            let net = format!("tap,id=net,ifname={tap},script=no,downscript=no");
            let device = format!("virtio-net-device,netdev=net,mac={MAC}");
            command.args(["-netdev", &net, "-device", &device]);
        }
        Ok(Launch::new(command))
    }
}
