//! crosvm, in one process like the others (its sandbox puts each device into one of its own), and without the devices that it has
//! unless told otherwise. Its devices are on PCI. Written by its documentation and source; never run.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Launch, MAC, Unable, Vmm, pair};
use crate::machine::{Engine, Machine};

pub(super) struct Crosvm(pub(super) PathBuf);

/// Its status when the guest has reset itself. A bare guest ends no other way: the register for a power-off has no fixed place.
const VM_RESET: i32 = 32;

impl Vmm for Crosvm {
    fn name(&self) -> &'static str {
        "crosvm"
    }

    fn binary(&self) -> &Path {
        &self.0
    }

    fn version(&self) -> anyhow::Result<String> {
        super::version(&self.0, "version")
    }

    fn launch(&self, machine: &Machine, _place: &Path) -> Result<Launch, Unable> {
        if machine.vsock {
            return Err(Unable(
                "its socket device is the host kernel's (vhost-vsock)".into(),
            ));
        }
        let mut command = Command::new(&self.0);
        command.args(["run", "--disable-sandbox"]);
        command.args(["--no-balloon", "--no-usb", "--no-smt"]);
        if !machine.rng {
            command.arg("--no-rng");
        }
        if machine.initrd.is_none() {
            command.arg("--no-rtc");
        }
        command.args(["--mem", &format!("size={}", machine.memory_mib)]);
        command.args(["--cpus", &format!("num-cores={}", machine.cpus)]);
        command.args([
            "--serial",
            "type=stdout,hardware=serial,num=1,console=true,stdin=false",
        ]);
        command.args(["--params", &machine.cmdline]);
        if let Some(initrd) = &machine.initrd {
            command.arg("--initrd").arg(initrd);
        }
        for disk in &machine.disks {
            let mut keys = pair("path", &disk.path);
            if disk.read_only {
                keys.push_str(",ro=true");
            }
            if disk.direct {
                keys.push_str(",direct=true");
            }
            if let Some(serial) = &disk.serial {
                keys.push_str(&format!(",id={serial}"));
            }
            keys.push_str(match disk.engine {
                Engine::Usual => "",
                Engine::Sync => ",async-executor=epoll",
                Engine::IoUring => ",async-executor=uring",
            });
            command.args(["--block", &keys]);
        }
        if let Some(tap) = &machine.tap {
            command.args(["--net", &format!("tap-name={tap},mac={MAC}")]);
        }
        command.arg(&machine.kernel);
        let mut launch = Launch::new(command);
        if machine.initrd.is_none() {
            launch.status = VM_RESET;
        }
        Ok(launch)
    }
}
