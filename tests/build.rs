//! Assembles the bare guests of `resources/guests`, and compiles its programs for Linux guests and the floor program of the
//! benches, with the C compiler that Rust links with anyway. Their sources are the only thing committed.

use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::{env, fs};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let sources = manifest.join("../resources/guests");
    let floor = manifest.join("bench/floor.c");
    println!("cargo::rerun-if-changed={}", sources.display());
    println!("cargo::rerun-if-changed={}", floor.display());
    println!("cargo::rerun-if-env-changed=CC");
    println!("cargo::rustc-env=GUESTS_DIR={}", out.display());

    let mut guests: Vec<PathBuf> = fs::read_dir(&sources)
        .unwrap_or_else(|err| fail(&format!("cannot read {}: {err}", sources.display())))
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "S" || extension == "c")
        })
        .collect();
    guests.sort();
    for source in &guests {
        // A file that fails to assemble must not leave an older guest behind for the tests.
        let output = out
            .join(source.file_stem().unwrap_or_default())
            .with_extension("elf");
        let _ = fs::remove_file(&output);
        compile(source, &output, |cc| {
            cc.args([
                "-m64",
                "-static",
                "-nostdlib",
                "-no-pie",
                "-Wa,--noexecstack",
            ])
            // For those in C: nothing that needs a library, or registers that a KVM in software does not have.
            .args([
                "-O2",
                "-Wall",
                "-Werror",
                "-ffreestanding",
                "-fno-pic",
                "-fno-stack-protector",
                "-fno-asynchronous-unwind-tables",
                "-fcf-protection=none",
                "-mgeneral-regs-only",
                "-mno-red-zone",
            ])
            .args(["-Wl,-N", "-Wl,--build-id=none", "-Wl,-T"])
            .arg(sources.join("guest.ld"));
        });
    }
    for name in ["numbered", "vsock_echo"] {
        let helper = sources.join(format!("linux/{name}.c"));
        compile(&helper, &out.join(name), |cc| {
            cc.args(["-O2", "-static", "-s", "-Wall", "-Werror"]);
        });
    }
    compile(&floor, &out.join("floor"), |cc| {
        cc.args(["-O2", "-Wall", "-Werror"]);
    });
}

fn compile(source: &Path, output: &Path, options: impl FnOnce(&mut Command)) {
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut command = Command::new(&compiler);
    options(&mut command);
    command.arg("-o").arg(output).arg(source);
    match command.output() {
        Ok(done) if done.status.success() => {}
        Ok(done) => fail(&format!(
            "{} failed on {}: {}",
            compiler.display(),
            source.display(),
            String::from_utf8_lossy(&done.stderr)
        )),
        Err(err) => fail(&format!(
            "cannot run {}: {err}; the bare guests need a C compiler (Debian: apt-get install gcc)",
            compiler.display()
        )),
    }
}

fn fail(message: &str) -> ! {
    for line in message.lines() {
        println!("cargo::error={line}");
    }
    exit(1)
}
