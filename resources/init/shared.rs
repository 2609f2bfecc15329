//! Directories that are shared with the host, live (virtiofs).

use alloc::format;
use alloc::vec::Vec;
use core::ffi::CStr;

use crate::sys::{self, Errno, MS_BIND, MS_RDONLY};
use crate::{Context, Problem, files};

/// What is in a root, and often not its user's. Whether it can be read tells what the host's side is.
const PROBES: [&CStr; 3] = [
    c"/lower/etc/passwd",
    c"/lower/etc/ld.so.cache",
    c"/lower/bin/sh",
];

/// Mounts a directory of which nothing is written.
pub(crate) fn mount(tag: &[u8], target: &CStr) -> Result<(), Problem> {
    let source = files::text(tag)?;
    sys::mount(&source, target, c"virtiofs", MS_RDONLY, c"")
        .context(&format!("cannot mount the shared directory {source:?}"))
}

/// Mounts an overlay, which opens files so that it does not change when they were read last (O_NOATIME). That only their owner may,
/// and a file server without root's rights owns few; some take no notice (the one in Rust), others refuse to open them. An overlay
/// leaves it out where whoever mounted it may not act for other owners.
pub(crate) fn with_what_it_may_read(
    mount: impl FnOnce() -> Result<(), Problem>,
) -> Result<(), Problem> {
    let is_refused = |path: &CStr| {
        let flags = sys::READ | sys::NO_TERMINAL;
        sys::open(path, flags).is_ok()
            && sys::open(path, flags | sys::NO_ACCESS_TIME).err() == Some(Errno::PERM)
    };
    if !PROBES.into_iter().any(is_refused) {
        return mount();
    }
    let all = sys::capabilities().context("cannot read the capabilities")?;
    sys::set_capabilities(&sys::without_ownership(all))
        .context("cannot set the capabilities aside")?;
    let mounted = mount();
    sys::set_capabilities(&all).context("cannot take the capabilities back")?;
    mounted
}

/// Puts a file with this content in the place of one that cannot be written: over it, or, where it is a link to what the host
/// has in /run, there.
pub(crate) fn cover(path: &CStr, content: &[u8]) -> sys::Result<()> {
    const OWN: &[u8] = b"/run/ampoule";
    let name = path.to_bytes().split(|byte| *byte == b'/').next_back();
    let own = files::path(&[OWN, b"/", name.unwrap_or_default()])?;
    files::make_folders(&files::path(&[OWN])?)?;
    files::replace(&own, content)?;
    if sys::exists(path) {
        return sys::mount(&own, path, c"", MS_BIND, c"");
    }
    let target = sys::read_link(path)?;
    let target = match target.strip_prefix(b"../") {
        Some(rest) => [b"/", rest].concat(),
        None => target,
    };
    let folder: Vec<u8> = match target.iter().rposition(|byte| *byte == b'/') {
        Some(end) if target.starts_with(b"/run/") => target[..end].to_vec(),
        _ => return Err(Errno::NOENT),
    };
    files::make_folders(&files::path(&[&folder])?)?;
    files::replace(&files::path(&[&target])?, content)
}
