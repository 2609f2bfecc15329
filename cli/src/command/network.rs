//! The network of a command: user networking, where the host has what it needs.

use std::{env, fs};

use ampoule_vmm::config::{NetConfig, VmConfig};

use super::args::CommandArgs;
use crate::report::{self, Failure};

/// User networking where it can be.
pub(super) fn usual_network(arguments: &CommandArgs) -> Result<Vec<NetConfig>, Failure> {
    match why_no_network() {
        None => Ok(vec![NetConfig::user()]),
        // That nobody asked for one is no reason to run nothing.
        Some((why, help)) if arguments.publish.is_empty() => {
            if !arguments.quiet {
                report::print_stderr(&format!("ampoule: no network: {why} ({help})\n"));
            }
            Ok(Vec::new())
        }
        Some((why, help)) => {
            Err(Failure::new(format!("no ports can be led into the guest: {why}")).with_help(help))
        }
    }
}

/// Leads ports of the host's into the guest.
pub(super) fn publish(vm: &mut VmConfig, arguments: &CommandArgs) -> Result<(), Failure> {
    match vm.net.iter_mut().find(|net| net.user) {
        Some(net) => net.forward.extend(&arguments.publish),
        None if arguments.publish.is_empty() => {}
        None => return Err(Failure::new("--publish needs --net user")),
    }
    Ok(())
}

/// Why there is no user networking on this host, and what to do about it.
fn why_no_network() -> Option<(&'static str, &'static str)> {
    let path = env::var_os("PATH").unwrap_or_default();
    if !env::split_paths(&path).any(|folder| folder.join("passt").is_file()) {
        return Some(("passt is not installed", "apt install passt"));
    }
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    // It takes the one family that has one, or both.
    match has_default_route(&read("/proc/net/route"), &read("/proc/net/ipv6_route")) {
        true => None,
        false => Some(("this host has no default route", "see ip route")),
    }
}

/// Whether the kernel's tables of routes have a default route of IPv4 or of IPv6.
fn has_default_route(ipv4: &str, ipv6: &str) -> bool {
    // Columns: interface, destination, gateway, …; all zeroes is the default route.
    let is_ipv4 = |line: &str| line.split_whitespace().nth(1) == Some("00000000");
    // Columns: destination, length of its prefix, source, length, gateway, metric, references, uses, flags, interface. What
    // rejects all else is a default route on lo.
    let is_ipv6 = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let is_default = |it: &&str| it.bytes().all(|byte| byte == b'0');
        matches!(&columns[..], [to, "00", .., name] if is_default(to) && *name != "lo")
    };
    ipv4.lines().any(is_ipv4) || ipv6.lines().any(is_ipv6)
}

#[cfg(test)]
mod tests {
    use super::has_default_route;

    #[test]
    fn a_default_route_of_either_family_will_do() {
        let head = "Iface\tDestination\tGateway\tFlags\n";
        let ipv4 = format!("{head}eth0\t00000000\t0100000A\t0003\n");
        let subnet = format!("{head}eth0\t0000000A\t00000000\t0001\n");
        let zeros = "0".repeat(32);
        let line = |to: &str, length: &str, name: &str| {
            format!(
                "{to} {length} {zeros} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 {name}\n"
            )
        };
        let ipv6 = line(&zeros, "00", "    eth0");
        let rejects = line(&zeros, "00", "      lo");
        let link = line("fe800000000000000000000000000000", "40", "    eth0");
        assert!(has_default_route(&ipv4, ""));
        assert!(has_default_route(&subnet, &ipv6));
        assert!(has_default_route("", &format!("{link}{rejects}{ipv6}")));
        assert!(!has_default_route(&subnet, &format!("{link}{rejects}")));
        assert!(!has_default_route("", ""));
    }
}
