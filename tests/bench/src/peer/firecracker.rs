//! Firecracker, by a configuration file and without its API. Its devices are on virtio-mmio, as is its default.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use super::{Launch, MAC, Unable, Vmm, Vsock};
use crate::machine::{Engine, GUEST_CID, Machine};

pub(super) struct Firecracker(pub(super) PathBuf);

impl Vmm for Firecracker {
    fn name(&self) -> &'static str {
        "Firecracker"
    }

    fn binary(&self) -> &Path {
        &self.0
    }

    fn linux(&self) -> &'static str {
        // It has no ACPI power-off; the keyboard controller's reset ends it.
        "console=ttyS0 reboot=k panic=-1 quiet bench.end=reboot"
    }

    fn launch(&self, machine: &Machine, place: &Path) -> Result<Launch, Unable> {
        if !machine.has_elf_kernel() {
            return Err(Unable("it takes kernels as ELF files only".into()));
        }
        let socket = machine.vsock.then(|| place.join("vsock"));
        let config = config(machine, socket.as_deref())?;
        let file = place.join("firecracker.json");
        fs::write(&file, config)
            .with_context(|| format!("cannot write {}", file.display()))
            .map_err(Unable::from)?;
        let mut command = Command::new(&self.0);
        command.args(["--no-api", "--config-file"]).arg(file);
        // Messages go where the guest's output goes unless told otherwise.
        command.args(["--log-path", "/dev/stderr", "--level", "Error"]);
        let mut launch = Launch::new(command);
        launch.vsock = socket.map(Vsock::Unix);
        Ok(launch)
    }
}

fn config(machine: &Machine, socket: Option<&Path>) -> Result<String, Unable> {
    let mut drives = Vec::new();
    for (number, disk) in machine.disks.iter().enumerate() {
        if disk.direct {
            return Err(Unable("it has no direct I/O".into()));
        }
        drives.push(json!({
            "drive_id": format!("disk{number}"),
            "path_on_host": disk.path,
            "is_root_device": false,
            "is_read_only": disk.read_only,
            // Else a flush of the guest's would do nothing, which it does in all others.
            "cache_type": "Writeback",
            "io_engine": match disk.engine {
                Engine::Usual | Engine::Sync => "Sync",
                Engine::IoUring => "Async",
            },
        }));
    }
    let mut config = json!({
        "boot-source": {
            "kernel_image_path": machine.kernel,
            "boot_args": machine.cmdline,
        },
        "machine-config": {
            "vcpu_count": machine.cpus,
            "mem_size_mib": machine.memory_mib,
        },
        "drives": drives,
    });
    if let Some(initrd) = &machine.initrd {
        config["boot-source"]["initrd_path"] = json!(initrd);
    }
    if let Some(tap) = &machine.tap {
        config["network-interfaces"] =
            json!([{ "iface_id": "net", "host_dev_name": tap, "guest_mac": MAC }]);
    }
    if let Some(socket) = socket {
        config["vsock"] = json!({ "guest_cid": GUEST_CID, "uds_path": socket });
    }
    if machine.rng {
        config["entropy"] = json!({});
    }
    Ok(config.to_string())
}
