//! Network interfaces, as configuration.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use ampoule_devices::backend::net::MAX_FRAME;
use ampoule_devices::rate_limiter::RateLimit;
use ampoule_devices::virtio::net::mac_of;
use serde::{Deserialize, Serialize};

use super::rate::{self, RateKeys};
use super::{Forward, MemorySize, is_one, one};

/// The longest frame.
const LARGEST: NonZeroU64 = NonZeroU64::new(MAX_FRAME as u64).unwrap();

/// A network interface of the guest: a TAP interface of the host, by its name or as a descriptor, or user networking. One of the
/// three is given.
///
/// ```
/// use ampoule_vmm::config::NetConfig;
///
/// // By passt, without root; port 8080 of the host leads to the guest's 80.
/// let user = NetConfig { forward: vec!["8080:80".parse()?], ..NetConfig::user() };
/// // By a tap that the host has set up, moved by its kernel.
/// let tap = NetConfig { queues: 4, vhost: true, ..NetConfig::tap("tap0") };
/// # assert_ne!(user, tap);
/// # Ok::<(), ampoule_vmm::config::ForwardError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NetConfig {
    /// The TAP interface; created where there is none, and gone with the VM then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// A descriptor of one that was opened before, which this process has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fd: Option<i32>,
    /// User networking: the program passt does in sockets of its own what the guest wants of the network.
    #[serde(default, skip_serializing_if = "is_off")]
    pub user: bool,
    /// Ports of the host that lead into the guest, with user networking.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forward: Vec<Forward>,
    /// The guest's Ethernet address. Made of its name where none is given, or else of the tap's: the same for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// The MTU that the guest is told, 68 or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Number of pairs of queues, 1 to 8; the guest uses as many as it wants to.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub queues: u16,
    /// Whether the host's kernel moves the frames (vhost-net).
    #[serde(default, skip_serializing_if = "is_off")]
    pub vhost: bool,
    /// Frames in a second, in each direction: the most that go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pps: Option<u64>,
    /// Frames that go at once after a rest; a tenth of `pps`, unless it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pps_burst: Option<u64>,
    /// Bytes in a second, in each direction: the most that go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<MemorySize>,
    /// Bytes that go at once after a rest; a tenth of `bandwidth` and 64 KiB at least, unless it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_burst: Option<MemorySize>,
    /// Its name in messages; `net0` and so on, unless it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl NetConfig {
    /// The tap of this name, with nothing special about it.
    pub fn tap(name: impl Into<String>) -> Self {
        Self {
            tap: Some(name.into()),
            ..Self::nothing()
        }
    }

    /// The tap that was opened as this descriptor.
    pub fn fd(fd: i32) -> Self {
        Self {
            fd: Some(fd),
            ..Self::nothing()
        }
    }

    /// User networking.
    pub fn user() -> Self {
        Self {
            user: true,
            ..Self::nothing()
        }
    }

    pub(crate) fn nothing() -> Self {
        Self {
            tap: None,
            fd: None,
            user: false,
            forward: Vec::new(),
            mac: None,
            mtu: None,
            queues: 1,
            vhost: false,
            pps: None,
            pps_burst: None,
            bandwidth: None,
            bandwidth_burst: None,
            id: None,
        }
    }

    /// Its limits, by their keys.
    pub(crate) fn rates(&self) -> [RateKeys; 2] {
        [
            RateKeys::ops("pps", self.pps, self.pps_burst),
            RateKeys::bytes("bandwidth", self.bandwidth, self.bandwidth_burst),
        ]
    }

    /// What goes in each direction.
    pub(crate) fn limit(&self) -> RateLimit {
        let [frames, bytes] = self.rates();
        rate::limit(frames, bytes, LARGEST)
    }

    /// Its name in messages, where it is the interface with this index.
    pub(crate) fn name(&self, index: usize) -> String {
        self.id.clone().unwrap_or_else(|| format!("net{index}"))
    }

    /// The address that the guest gets, where its name is `name`. VMs on one network mostly have neither addresses nor ids,
    /// but each has a tap of its own.
    pub(crate) fn effective_mac(&self, name: &str) -> MacAddress {
        self.mac.unwrap_or_else(|| {
            let own = self.id.as_deref().or(self.tap.as_deref());
            MacAddress(mac_of(own.unwrap_or(name)))
        })
    }
}

fn is_off(value: &bool) -> bool {
    !*value
}

/// An Ethernet address, written `02:00:00:00:00:01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// An address of these bytes.
    pub fn new(octets: [u8; 6]) -> Self {
        Self(octets)
    }

    /// Its bytes.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Whether it can be one interface's: not zero, and not a group's.
    pub fn is_station(self) -> bool {
        self.0 != [0; 6] && self.0[0] & 1 == 0
    }
}

/// A text that is no Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not an Ethernet address (write for instance 02:00:00:00:00:01)")]
pub struct MacError(String);

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let octet = |part: &str| {
            let digits = part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit());
            digits.then(|| u8::from_str_radix(part, 16).ok()).flatten()
        };
        let octets: Option<Vec<u8>> = text.split(':').map(octet).collect();
        octets
            .and_then(|octets| octets.try_into().ok())
            .map(Self)
            .ok_or_else(|| MacError(text.to_owned()))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl TryFrom<String> for MacAddress {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_they_are_written() {
        let mac: MacAddress = "02:00:5E:10:00:ff".parse().unwrap();
        assert_eq!(mac.octets(), [2, 0, 0x5e, 0x10, 0, 0xff]);
        assert_eq!(mac.to_string(), "02:00:5e:10:00:ff");
        for bad in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:ff:00",
            "2:0:0:0:0:1",
            "+2:00:00:00:00:01",
            "02-00-5e-10-00-ff",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_is_given_or_stays_the_same() {
        let config = NetConfig::tap("tap0");
        let made = config.effective_mac("net0");
        assert_eq!(made, config.effective_mac("net1"));
        assert_ne!(made, NetConfig::tap("tap1").effective_mac("net0"));
        let named = NetConfig {
            id: Some("lan".into()),
            ..config.clone()
        };
        assert_ne!(made, named.effective_mac("lan"));
        let mac = "02:00:00:00:00:07".parse().unwrap();
        let given = NetConfig {
            mac: Some(mac),
            ..named
        };
        assert_eq!(given.effective_mac("lan"), mac);
    }
}
