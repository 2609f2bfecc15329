//! Ampoule, as it is without options.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Launch, Unable, Vmm, Vsock, pair};
use crate::machine::{Disk, Engine, GUEST_CID, Machine};

pub(super) struct Ampoule(pub(super) PathBuf);

impl Vmm for Ampoule {
    fn name(&self) -> &'static str {
        "Ampoule"
    }

    fn binary(&self) -> &Path {
        &self.0
    }

    fn launch(&self, machine: &Machine, place: &Path) -> Result<Launch, Unable> {
        let mut command = Command::new(&self.0);
        command.arg("run");
        command.arg("--kernel").arg(&machine.kernel);
        command.args(["--cmdline", &machine.cmdline]);
        command.args(["--memory", &format!("{}M", machine.memory_mib)]);
        command.args(["--cpus", &machine.cpus.to_string()]);
        command.args(["--rng", if machine.rng { "on" } else { "off" }]);
        if let Some(initrd) = &machine.initrd {
            command.arg("--initrd").arg(initrd);
        }
        for disk in &machine.disks {
            command.args(["--disk", &keys(disk)]);
        }
        if let Some(tap) = &machine.tap {
            command.args(["--net", &pair("tap", tap)]);
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

fn keys(disk: &Disk) -> String {
    let mut keys = pair("path", &disk.path);
    keys.push_str(match disk.engine {
        Engine::Usual => "",
        Engine::Sync => ",engine=sync",
        Engine::IoUring => ",engine=io_uring",
    });
    if disk.read_only {
        keys.push_str(",readonly");
    }
    if disk.direct {
        keys.push_str(",direct");
    }
    if let Some(serial) = &disk.serial {
        keys.push_str(&format!(",serial={serial}"));
    }
    keys
}
