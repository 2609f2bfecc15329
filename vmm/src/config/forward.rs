//! Ports of the host that lead into the guest, as configuration.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A port of the host that leads to one of the guest, written `8080:80`, `udp:5353:53` or `127.0.0.1:8080:80`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
pub struct Forward {
    /// What is forwarded.
    pub protocol: Protocol,
    /// The host's IPv4 address to listen on; all of them, where none is given.
    pub address: Option<Ipv4Addr>,
    /// The host's port.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
}

/// What can be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A text that is no such port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a forwarded port (write 8080:80, the host's and the guest's, or udp:5353:53, or 127.0.0.1:8080:80)"
)]
pub struct ForwardError(String);

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        let parse = || {
            let (protocol, rest) = match text.split_once(':')? {
                ("tcp", rest) => (Protocol::Tcp, rest),
                ("udp", rest) => (Protocol::Udp, rest),
                _ => (Protocol::Tcp, text),
            };
            let parts: Vec<&str> = rest.split(':').collect();
            let (address, host, guest) = match parts[..] {
                [host, guest] => (None, host, guest),
                [address, host, guest] => (Some(address.parse().ok()?), host, guest),
                _ => return None,
            };
            let port = |text: &str| {
                let digits = text.bytes().all(|c| c.is_ascii_digit());
                text.parse().ok().filter(|port| digits && *port > 0)
            };
            Some(Self {
                protocol,
                address,
                host: port(host)?,
                guest: port(guest)?,
            })
        };
        parse().ok_or_else(|| ForwardError(text.to_owned()))
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.protocol == Protocol::Udp {
            f.write_str("udp:")?;
        }
        if let Some(address) = self.address {
            write!(f, "{address}:")?;
        }
        write!(f, "{}:{}", self.host, self.guest)
    }
}

impl TryFrom<String> for Forward {
    type Error = ForwardError;

    fn try_from(text: String) -> Result<Self, ForwardError> {
        text.parse()
    }
}

impl From<Forward> for String {
    fn from(forward: Forward) -> Self {
        forward.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_read_as_they_are_written() {
        for text in [
            "8080:80",
            "udp:5353:53",
            "127.0.0.1:8080:80",
            "udp:10.0.0.1:1:65535",
        ] {
            assert_eq!(text.parse::<Forward>().unwrap().to_string(), text);
        }
        let tcp: Forward = "tcp:8080:80".parse().unwrap();
        assert_eq!(tcp, "8080:80".parse().unwrap());
        assert_eq!((tcp.host, tcp.guest, tcp.address), (8080, 80, None));
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in [
            "",
            ":",
            "80",
            "80:",
            ":80",
            "0:80",
            "80:0",
            "+80:80",
            "80:65536",
            "sctp:80:80",
            "a:80:80",
            "1.2.3:80:80",
            "udp:80",
            "80:80:80:80",
            "127.0.0.1:80",
            "::1:80:80",
            "80,443:80",
        ] {
            assert!(text.parse::<Forward>().is_err(), "{text}");
        }
    }
}
