//! A Linux guest on the standard streams: `cargo run --example boot -- KERNEL INITRD [WORDS OF THE COMMAND LINE…]`.

#![allow(clippy::print_stderr, reason = "it talks to a person")]

use std::env;
use std::error::Error;
use std::path::PathBuf;

use ampoule_vmm::VmBuilder;
use ampoule_vmm::config::{ConsoleConfig, MemorySize, VmConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let mut file = || arguments.next().map(PathBuf::from);
    let config = VmConfig {
        kernel: file(),
        initrd: file(),
        append: Some(arguments.collect::<Vec<_>>().join(" ")),
        memory: MemorySize::mib(256),
        serial: Some(ConsoleConfig::Stdio),
        ..VmConfig::default()
    };
    let vm = VmBuilder::new(config).build()?;
    // This thread moves the console's bytes and keeps deadlines, until the guest's end.
    let end = vm.run();
    eprintln!("{end}");
    Ok(())
}
