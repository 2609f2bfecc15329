//! Compiles the guest's PID 1 (`init/`), which the library carries along: a static program without a standard library, by the
//! compiler that compiles the library.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// A program at a fixed address, of nothing but what is in it; small.
const OPTIONS: [&str; 13] = [
    "--edition=2024",
    "--crate-name=ampoule_init",
    "--crate-type=bin",
    "-Cpanic=abort",
    "-Copt-level=s",
    "-Clto=fat",
    "-Ccodegen-units=1",
    "-Cstrip=symbols",
    "-Crelocation-model=static",
    "-Clink-arg=-nostartfiles",
    "-Clink-arg=-nostdlib",
    "-Clink-arg=-static",
    "-Clink-args=-no-pie -Wl,--build-id=none",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=init");
    let variable = |name| env::var_os(name).unwrap_or_default();
    let out = PathBuf::from(variable("OUT_DIR")).join("init");
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(OPTIONS).arg("init/main.rs").arg("-o").arg(out);
    rustc.arg("--target").arg(variable("TARGET"));
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut option = std::ffi::OsString::from("-Clinker=");
        option.push(linker);
        rustc.arg(option);
    }
    match rustc.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("cannot compile the guest's init: rustc: {status}"),
        Err(err) => panic!("cannot compile the guest's init: {err}"),
    }
}
