//! alioth, whose devices are on PCI. Its disks are read and written through the page cache by one thread that blocks, unless it is
//! told to use io_uring.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::{Launch, MAC, Terminal, Unable, Vmm, pair};
use crate::machine::{Engine, Machine};

pub(super) struct Alioth(pub(super) PathBuf);

impl Vmm for Alioth {
    fn name(&self) -> &'static str {
        "alioth"
    }

    fn binary(&self) -> &Path {
        &self.0
    }

    fn launch(&self, machine: &Machine, _place: &Path) -> Result<Launch, Unable> {
        if machine.vsock {
            // Seen with 0.12.0, in either direction.
            return Err(Unable(
                "its socket device does not give credit back, and a stream stalls".into(),
            ));
        }
        let mut command = Command::new(&self.0);
        command.arg("boot");
        // By the 64-bit protocol, or by PVH.
        let kernel = if machine.has_elf_kernel() {
            "--pvh"
        } else {
            "--kernel"
        };
        command.arg(kernel).arg(&machine.kernel);
        command.args(["--cmdline", &machine.cmdline]);
        command.args(["--memory", &format!("size={}M", machine.memory_mib)]);
        command.args(["--cpu", &format!("count={}", machine.cpus)]);
        if let Some(initrd) = &machine.initrd {
            command.arg("--initramfs").arg(initrd);
        }
        if machine.rng {
            command.arg("--entropy");
        }
        for disk in &machine.disks {
            if disk.direct {
                return Err(Unable("it has no direct I/O".into()));
            }
            let mut keys = format!("file,{}", pair("path", &disk.path));
            if disk.read_only {
                keys.push_str(",readonly=true");
            }
            keys.push_str(match disk.engine {
                Engine::Usual | Engine::Sync => "",
                Engine::IoUring => ",api=iouring",
            });
            command.args(["--blk", &keys]);
        }
        if let Some(tap) = &machine.tap {
            let keys = format!("tap,if={tap},mac={MAC},mtu=1500");
            command.args(["--net", &keys]);
        }
        let mut launch = Launch::new(command);
        launch.terminal = Some(terminal()?);
        Ok(launch)
    }
}

/// Both sides of a pseudo-terminal: it does not start without one as its standard input.
fn terminal() -> Result<Terminal> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .context("cannot make a pseudo-terminal")?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let path = OsStr::from_bytes(name.as_bytes());
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let its = rustix::fs::open(path, flags, Mode::empty())
        .with_context(|| format!("cannot open {}", path.display()))?;
    Ok(Terminal { ours, its })
}
