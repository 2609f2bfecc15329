//! How the binary is linked: so that starting it costs as little as it can (docs/performance.md, "What a start costs").

use std::env;
use std::ffi::CStr;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = env::var("TARGET").unwrap_or_default();
    if !target.ends_with("linux-gnu") {
        return;
    }
    // The unwinder from the compiler's archive: one shared library less to find, map and relocate at every start.
    println!("cargo::rustc-link-lib=static:-bundle=gcc_eh");
    // Relative relocations as a bitmap, a twentieth of the size. C libraries before 2.36 refuse to load such a program; the
    // one that this script runs with is the one that the program is linked against, unless it is built for another machine.
    if env::var("HOST").is_ok_and(|host| host == target) && glibc_minor().is_some_and(|it| it >= 36)
    {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The 36 of glibc 2.36.
fn glibc_minor() -> Option<u32> {
    // SAFETY: returns a pointer to a constant string of the C library.
    let version = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) };
    version.to_str().ok()?.strip_prefix("2.")?.parse().ok()
}
