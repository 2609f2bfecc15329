//! How `ampoule` is linked: so that starting it costs as little as it can (docs/performance.md, "What a start costs"). `ampoule-pull` is
//! linked as usual: it looks up names of hosts, for which the C library wants its shared libraries.

use std::env;
use std::ffi::CStr;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=AMPOULE_LINK");
    println!("cargo::rerun-if-env-changed=CC");
    println!("cargo::rustc-check-cfg=cfg(static_libc)");
    let target = env::var("TARGET").unwrap_or_default();
    if !target.ends_with("linux-gnu") {
        return;
    }
    // The unwinder from the compiler's archive: one shared library less to find, map and relocate at every start.
    println!("cargo::rustc-link-lib=static:-bundle=gcc_eh");
    let native = env::var("HOST").is_ok_and(|host| host == target);
    if native && env::var("AMPOULE_LINK").as_deref() != Ok("dynamic") && has_static_libc() {
        link_statically();
    }
    // Relative relocations as a bitmap, a twentieth of the size. C libraries before 2.36 refuse to load such a program; the
    // one that this script runs with is the one that the program is linked against, unless it is built for another machine.
    if native && glibc_minor().is_some_and(|it| it >= 36) {
        println!("cargo::rustc-link-arg-bin=ampoule=-Wl,-z,pack-relative-relocs");
    }
}

/// The C library, too: no dynamic linker runs at a start. The program stays position-independent.
///
/// `-C target-feature=+crt-static` would say the same, but only for a whole build with a `--target`, and not where a user's
/// `cargo install` is what builds.
fn link_statically() {
    // Takes the place of the `-pie` that comes before it.
    println!("cargo::rustc-link-arg-bin=ampoule=-static-pie");
    // Has `main.rs` name the archive, and no test that links as usual: it comes before the shared libraries that the standard
    // library names, and leaves nothing for those to give.
    println!("cargo::rustc-cfg=static_libc");
    // And what is nowhere is null, as there is nobody to find it at run time.
    println!("cargo::rustc-link-arg-bin=ampoule=-Wl,-z,nodynamic-undefined-weak");
}

/// Whether the linker finds the C library as an archive.
fn has_static_libc() -> bool {
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let answer = Command::new(compiler)
        .arg("-print-file-name=libc.a")
        .output();
    answer.is_ok_and(|answer| {
        let path = String::from_utf8_lossy(&answer.stdout);
        // The bare name comes back where there is none.
        answer.status.success() && Path::new(path.trim()).is_absolute()
    })
}

/// The 36 of glibc 2.36.
fn glibc_minor() -> Option<u32> {
    // SAFETY: returns a pointer to a constant string of the C library.
    let version = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) };
    version.to_str().ok()?.strip_prefix("2.")?.parse().ok()
}
