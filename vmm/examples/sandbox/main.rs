//! A script that nobody trusts, in a VM of its own: in and out by a socket inside this process, with a time limit and a memory limit,
//! and without a network or a disk. `cargo run --example sandbox -- KERNEL INITRD < script.sh` prints what the script prints and
//! ends with its status.
//!
//! `make-initrd.sh` beside this file makes the initrd: busybox, the modules that the socket needs, and `init.c`.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it talks to a person"
)]

use std::env;
use std::error::Error;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::process::ExitCode;
use std::time::Duration;

use ampoule_vmm::config::{MemorySize, Span, VmConfig, VmLimits, VsockConfig};
use ampoule_vmm::{ExitReason, VmBuilder};

/// Ports of the host's, as init.c has them.
const SCRIPT: u32 = 1000;
const STATUS: u32 = 1001;

/// What a script may print; the rest is not read.
const MAX_OUTPUT: u64 = 1 << 20;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let mut script = Vec::new();
    io::stdin().read_to_end(&mut script)?;
    let config = VmConfig {
        kernel: arguments.next().map(Into::into),
        initrd: arguments.next().map(Into::into),
        append: Some("quiet panic=-1".into()),
        memory: MemorySize::mib(128),
        timeout: Some(Span::from(Duration::from_secs(60))),
        vsock: Some(VsockConfig {
            cid: 3,
            socket: None,
        }),
        limits: VmLimits {
            memory: MemorySize::mib(1),
            log: MemorySize::bytes(16 << 10),
            ..VmLimits::default()
        },
        ..VmConfig::default()
    };
    let vm = VmBuilder::new(config).build()?.start()?;
    let sockets = vm.vsock().ok_or("the VM has no sockets")?;
    let scripts = sockets.listen(SCRIPT)?;
    let statuses = sockets.listen(STATUS)?;

    // Whatever the guest does, these end: with the VM, at the latest, which ends at its time limit.
    let outcome = (|| -> io::Result<String> {
        let mut stream = scripts.accept()?;
        stream.write_all(&script)?;
        stream.shutdown(Shutdown::Write)?;
        io::copy(&mut (&mut stream).take(MAX_OUTPUT), &mut io::stdout())?;
        drop(stream);
        let mut status = String::new();
        statuses.accept()?.take(3).read_to_string(&mut status)?;
        Ok(status)
    })();
    let status = outcome.ok().and_then(|status| status.parse::<u8>().ok());
    match (status, vm.wait()) {
        (Some(status), ExitReason::PowerOff) => Ok(status.into()),
        (_, ExitReason::PowerOff) => Err("the guest ended without a status".into()),
        (_, end) => {
            eprintln!("sandbox: {end}");
            Ok(125.into())
        }
    }
}
