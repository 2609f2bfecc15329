//! The library's examples, each as its first lines say.

use std::process::Command;

use ampoule_tests::harness::{example, kernel};

use crate::driver::Vm;
use crate::guest::{LOAD_VIRTIO, initramfs, wait_ready};
use crate::virtio::{ask, expect};

/// An example that boots a kernel with an initrd, up to the guest's shell.
fn boot(name: &str) -> Vm {
    let mut command = Command::new(example(name));
    command.arg(kernel("6.1").join("vmlinux")).arg(initramfs());
    let mut vm = Vm::piped(command);
    wait_ready(&mut vm);
    vm
}

pub(crate) fn boot_leads_to_a_shell() {
    let mut vm = boot("boot");
    expect(&mut vm, "uname -r", "6.1.");
    vm.send("poweroff -f\n");
    let end = vm.end().expect_code(0);
    assert!(
        end.errors.contains("the guest powered off"),
        "{}",
        end.errors
    );
}

pub(crate) fn custom_device_throws_dice() {
    let mut vm = boot("custom_device");
    ask(&mut vm, LOAD_VIRTIO);
    let said = ask(&mut vm, "head -c 40 /dev/hwrng; echo");
    let is_throws =
        |line: &str| line.len() == 40 && line.bytes().all(|it| (b'1'..=b'6').contains(&it));
    assert!(said.lines().map(str::trim).any(is_throws), "{said}");
    vm.send("poweroff -f\n");
    vm.end().expect_code(0);
}
