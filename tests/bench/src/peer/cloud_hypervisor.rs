//! Cloud Hypervisor, with its serial port instead of its virtio console. Its devices are on PCI; it always has an entropy device.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Launch, MAC, Unable, Vmm, Vsock, pair};
use crate::machine::{Engine, GUEST_CID, Machine};

pub(super) struct CloudHypervisor(pub(super) PathBuf);

impl Vmm for CloudHypervisor {
    fn name(&self) -> &'static str {
        "Cloud Hypervisor"
    }

    fn binary(&self) -> &Path {
        &self.0
    }

    fn launch(&self, machine: &Machine, place: &Path) -> Result<Launch, Unable> {
        let mut command = Command::new(&self.0);
        command.arg("--kernel").arg(&machine.kernel);
        command.args(["--cmdline", &machine.cmdline]);
        command.args(["--memory", &format!("size={}M", machine.memory_mib)]);
        command.args(["--cpus", &format!("boot={}", machine.cpus)]);
        command.args(["--serial", "tty", "--console", "off"]);
        if let Some(initrd) = &machine.initrd {
            command.arg("--initramfs").arg(initrd);
        }
        if !machine.disks.is_empty() {
            command.arg("--disk");
        }
        for disk in &machine.disks {
            // As long a queue as the others have.
            let mut keys = format!("{},image_type=raw,queue_size=256", pair("path", &disk.path));
            if disk.read_only {
                keys.push_str(",readonly=on");
            }
            if disk.direct {
                keys.push_str(",direct=on");
            }
            if let Some(serial) = &disk.serial {
                keys.push_str(&format!(",serial={serial}"));
            }
            // Its usual engine is io_uring.
            if disk.engine == Engine::Sync {
                keys.push_str(",_disable_io_uring=on,_disable_aio=on");
            }
            command.arg(keys);
        }
        if let Some(tap) = &machine.tap {
            command.args(["--net", &format!("tap={tap},mac={MAC}")]);
        }
        let socket = machine.vsock.then(|| place.join("vsock"));
        if let Some(socket) = &socket {
            let keys = format!("cid={GUEST_CID},{}", pair("socket", socket));
            command.args(["--vsock", &keys]);
        }
        let mut launch = Launch::new(command);
        launch.vsock = socket.map(Vsock::Unix);
        Ok(launch)
    }
}
