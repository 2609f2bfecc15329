//! The library's examples, each as its first lines say.

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ampoule_tests::harness::{STRANGER, example, kernel, skip};
use tempfile::TempDir;

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

/// An initrd by the example's recipe, in a folder that goes with it.
fn sandbox_initrd() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let initrd = folder.path().join("sandbox.cpio");
    let recipe = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../vmm/examples/sandbox/make-initrd.sh"
    );
    let made = Command::new(recipe)
        .arg(&initrd)
        .arg(kernel("6.1").join("package/lib/modules"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    (folder, initrd)
}

/// Has a program run a script in a guest with that initrd.
fn run_script(program: &Path, initrd: &Path, script: &str) -> Output {
    let mut sandbox = Command::new(program)
        .arg(kernel("6.1").join("vmlinux"))
        .arg(initrd)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = sandbox.stdin.take().unwrap();
    input.write_all(script.as_bytes()).unwrap();
    drop(input);
    sandbox.wait_with_output().unwrap()
}

/// As a stranger writes it, who depends on the library alone.
pub(crate) fn the_program_of_the_document_runs() {
    let Some(program) = env::var_os(STRANGER) else {
        return skip(
            "examples::the_program_of_the_document_runs",
            "it is not built: cargo lab test does so",
        );
    };
    let (_folder, initrd) = sandbox_initrd();
    let output = run_script(program.as_ref(), &initrd, "echo hello; exit 7");
    assert_eq!(output.stdout, b"hello\n", "{output:?}");
    assert_eq!(output.status.code(), Some(7), "{output:?}");
}

/// Its initrd by its own recipe; what a script prints and its status come out, and a script that ends the guest is told apart.
pub(crate) fn sandbox_runs_scripts() {
    let (_folder, initrd) = sandbox_initrd();
    let run = |script: &str| run_script(&example("sandbox"), &initrd, script);
    let output = run("echo \"$((6 * 7)) by $(uname -r)\"; ls /sys; exit 42");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.starts_with("42 by 6.1."), "{output:?}");
    assert!(said.contains("No such file"), "{said}");
    assert_eq!(output.status.code(), Some(42), "{output:?}");

    let output = run("echo so; poweroff -f");
    assert_eq!(output.stdout, b"so\n", "{output:?}");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("without a status"), "{errors}");
}
