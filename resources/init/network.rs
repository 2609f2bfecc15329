//! Interfaces: `lo`, and the first of the others by what the host or a DHCP server says.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;

use crate::dhcp::{self, Lease};
use crate::files;
use crate::job::Network;
use crate::sys::net::{self, Interface};
use crate::sys::{self, Fd, POLLIN, PollFd};

/// Milliseconds after which a question is asked again, one after the other: all that DHCP may take.
const PATIENCE: [u32; 5] = [200, 400, 800, 1600, 3000];

/// Sets the network up; the name servers. What fails is told: a command may do without.
pub(crate) fn set_up(network: &Network, notices: &mut Vec<String>) -> Vec<[u8; 4]> {
    let socket = match net::ip_socket() {
        Ok(socket) => socket,
        // A kernel without networks.
        Err(_) => return Vec::new(),
    };
    let _ = net::configure(&socket, c"lo", Interface::Up);
    if *network == Network::None {
        return Vec::new();
    }
    let Some(name) = first_interface() else {
        notices.push("there is no network interface".into());
        return Vec::new();
    };
    let lease = match network {
        Network::Static {
            address,
            prefix,
            gateway,
            dns,
        } => Ok(Lease {
            address: *address,
            mask: mask(*prefix),
            gateway: *gateway,
            dns: dns.clone(),
            ..Lease::default()
        }),
        _ => ask(&socket, &name),
    };
    let set = lease.and_then(|lease| {
        let set = apply(&socket, &name, &lease);
        set.map_err(|err| format!("cannot set it up: {err}"))?;
        Ok(lease.dns)
    });
    set.unwrap_or_else(|reason| {
        notices.push(format!(
            "no network on {}: {reason}",
            name.to_string_lossy()
        ));
        Vec::new()
    })
}

fn first_interface() -> Option<CString> {
    let names = sys::list(c"/sys/class/net").ok()?;
    let is_ethernet = |name: &&Vec<u8>| {
        let path = files::path(&[b"/sys/class/net/", name, b"/type"]);
        let kind = path.and_then(|path| files::read(&path));
        name[..] != *b"lo" && kind.is_ok_and(|kind| kind.trim_ascii() == b"1")
    };
    CString::new(&names.iter().find(is_ethernet)?[..]).ok()
}

fn mask(prefix: u8) -> [u8; 4] {
    let hosts = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
    (!hosts).to_be_bytes()
}

/// A lease of a DHCP server.
fn ask(socket: &Fd, name: &CStr) -> Result<Lease, String> {
    let failed = |err| format!("cannot ask for an address: {err}");
    net::configure(socket, name, Interface::Up).map_err(failed)?;
    let index = net::interface_index(socket, name).map_err(failed)?;
    let hardware = net::hardware_address(socket, name).map_err(failed)?;
    let packets = net::packet_socket(index).map_err(failed)?;
    packets.set_nonblocking().map_err(failed)?;
    let transaction = sys::now() as u32
        ^ u32::from_ne_bytes([hardware[2], hardware[3], hardware[4], hardware[5]]);
    let mut offer = None;
    for wait in PATIENCE {
        let end = sys::now() + u64::from(wait) * 1_000_000;
        let mut is_asked = false;
        loop {
            if !is_asked {
                let message = dhcp::message(hardware, transaction, offer.as_ref());
                net::broadcast(&packets, index, &message).map_err(failed)?;
                is_asked = true;
            }
            let rest = end.saturating_sub(sys::now()) / 1_000_000;
            if rest == 0 {
                break;
            }
            let mut buffer = [0; 1500];
            let Ok(count) = packets.read(&mut buffer) else {
                let mut fds = [PollFd::new(Some(&packets), POLLIN)];
                sys::poll(&mut fds, Some(rest as u32)).map_err(failed)?;
                continue;
            };
            match dhcp::answer(&buffer[..count], hardware, transaction) {
                Some(lease) if lease.is_final && offer.is_some() => return Ok(lease),
                Some(lease) if offer.is_none() && !lease.is_final => {
                    offer = Some(lease);
                    is_asked = false;
                }
                _ => {}
            }
        }
    }
    Err("no DHCP server answers".into())
}

fn apply(socket: &Fd, name: &CStr, lease: &Lease) -> sys::Result<()> {
    if let Some(mtu) = lease.mtu {
        // A driver may not take it; its own is good, too.
        let _ = net::configure(socket, name, Interface::Mtu(mtu.into()));
    }
    net::configure(socket, name, Interface::Address(&lease.address))?;
    net::configure(socket, name, Interface::Mask(&lease.mask))?;
    net::configure(socket, name, Interface::Up)?;
    if let Some(gateway) = lease.gateway {
        let differs = |at: usize| (gateway[at] ^ lease.address[at]) & lease.mask[at] != 0;
        if (0..4).any(differs) {
            net::add_route(socket, name, gateway, [255; 4], [0; 4])?;
        }
        net::add_route(socket, name, [0; 4], [0; 4], gateway)?;
    }
    Ok(())
}
