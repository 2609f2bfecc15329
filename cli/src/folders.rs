//! Folders of this user's for what is found out or made once (XDG base directory specification).

use std::env;
use std::path::PathBuf;

use ampoule_vmm::VmBuilder;

/// Where a VM keeps what later ones need not find out or make again: what the host's KVM says, in the folder that goes with the
/// host's restart, and unpacked kernels, among other caches. A user who has no such folders goes without.
pub(crate) fn with_caches(mut builder: VmBuilder) -> VmBuilder {
    let cache = caches();
    if let Some(folder) = absolute("XDG_RUNTIME_DIR").or_else(|| cache.clone()) {
        builder = builder.host_cache(folder.join("ampoule"));
    }
    if let Some(folder) = cache {
        builder = builder.kernel_cache(folder.join("ampoule/kernels"));
    }
    builder
}

fn caches() -> Option<PathBuf> {
    absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))
}

/// As the specification has it, others are ignored.
fn absolute(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env::var_os(name)?);
    path.is_absolute().then_some(path)
}
