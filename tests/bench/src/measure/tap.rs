//! A tap of one's own, while it is measured.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// `virtio_net_hdr_v1`, before each frame.
pub(crate) const HEADER: usize = 12;

/// A tap, deleted in the end. Needs root.
pub(crate) struct Tap(String);

impl Tap {
    pub(crate) fn new() -> Result<Self> {
        let name = format!("bench{}", std::process::id() % 100_000);
        ip(&["tuntap", "add", "dev", &name, "mode", "tap", "vnet_hdr"])?;
        let tap = Self(name);
        // Nothing of the host's own is to be on it.
        let quiet = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", tap.0);
        if Path::new(&quiet).exists() {
            fs::write(quiet, "1")?;
        }
        ip(&["link", "set", &tap.0, "up"])?;
        Ok(tap)
    }

    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    /// The other end, as a VMM opens it.
    pub(crate) fn open(&self) -> Result<File> {
        let tap = File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")?;
        // SAFETY: `ifreq` is plain data, for which zeroes are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(self.0.bytes()) {
            *to = from as libc::c_char;
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        let size = HEADER as libc::c_int;
        // SAFETY: the request lives through the call, which reads and writes it.
        let made = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        ensure!(made == 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
        // SAFETY: the pointer is to an int, which is only read.
        let set = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) };
        ensure!(
            set == 0,
            "TUNSETVNETHDRSZ: {}",
            std::io::Error::last_os_error()
        );
        Ok(tap)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = ip(&["tuntap", "del", "dev", &self.0, "mode", "tap"]);
    }
}

pub(crate) fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    let output = output.context("cannot run ip (Debian: apt-get install iproute2)")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "ip {}: {errors}",
        arguments.join(" ")
    );
    Ok(())
}
