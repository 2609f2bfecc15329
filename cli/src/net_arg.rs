//! `--net tap=tap0,mac=02:00:00:00:00:01`, `--net user,forward=8080:80`: a list of keys, as a network interface's configuration has them, in one argument.

use ampoule_vmm::config::NetConfig;

use crate::key_list::{each_but, needed, switch, typed, unknown};

const KEYS: [&str; 13] = [
    "user",
    "forward",
    "tap",
    "fd",
    "mac",
    "mtu",
    "queues",
    "vhost",
    "pps",
    "pps-burst",
    "bandwidth",
    "bandwidth-burst",
    "id",
];

/// What the argument asks for.
#[derive(Debug, Clone)]
pub(crate) enum NetArg {
    /// No network at all.
    None,
    /// An interface.
    One(Box<NetConfig>),
}

impl NetArg {
    /// Reads the argument.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            text => Ok(Self::One(Box::new(parse(text)?))),
        }
    }

    /// The interface, if there is to be one.
    pub(crate) fn interface(self) -> Option<NetConfig> {
        match self {
            Self::None => None,
            Self::One(net) => Some(*net),
        }
    }
}

/// Reads the keys of an interface.
fn parse(text: &str) -> Result<NetConfig, String> {
    let mut net = NetConfig {
        tap: None,
        ..NetConfig::tap("")
    };
    each_but(text, &["forward"], |key, value| {
        match key {
            "tap" => net.tap = Some(needed(key, value)?.to_owned()),
            "fd" => net.fd = Some(typed::<u16>(key, value)?.into()),
            "user" => net.user = switch(key, value)?,
            "forward" => net.forward.push(typed(key, value)?),
            "mac" => net.mac = Some(typed(key, value)?),
            "mtu" => net.mtu = Some(typed(key, value)?),
            "queues" => net.queues = typed(key, value)?,
            "vhost" => net.vhost = switch(key, value)?,
            "pps" => net.pps = Some(typed(key, value)?),
            "pps-burst" => net.pps_burst = Some(typed(key, value)?),
            "bandwidth" => net.bandwidth = Some(typed(key, value)?),
            "bandwidth-burst" => net.bandwidth_burst = Some(typed(key, value)?),
            "id" => net.id = Some(needed(key, value)?.to_owned()),
            _ if value.is_none() && text == key && !key.is_empty() => {
                return Err(format!(
                    "\"{key}\" is not a key of a network interface; did you mean tap={key}?"
                ));
            }
            _ => return Err(unknown(key, "a network interface", &KEYS)),
        }
        Ok(())
    })?;
    match (&net.tap, net.fd, net.user) {
        (None, None, false) => Err("no network is given: user, tap=NAME, fd=N or none".into()),
        (Some(_), None, false) | (None, Some(_), false) | (None, None, true) => Ok(net),
        _ => Err("user, tap and fd are three kinds of networks: give one".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ampoule_vmm::config::MemorySize;

    #[test]
    fn all_keys_reach_their_fields() {
        let expected = NetConfig {
            mac: Some("02:00:00:00:00:01".parse().unwrap()),
            mtu: Some(9000),
            queues: 4,
            vhost: true,
            pps: Some(1000),
            pps_burst: Some(10),
            bandwidth: Some(MemorySize::mib(10)),
            bandwidth_burst: Some(MemorySize::mib(1)),
            id: Some("lan".into()),
            ..NetConfig::tap("tap0")
        };
        let text = "tap=tap0,mac=02:00:00:00:00:01,mtu=9000,queues=4,vhost,pps=1000,pps-burst=10,bandwidth=10M,bandwidth-burst=1M,id=lan";
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse("fd=3").unwrap(), NetConfig::fd(3));
        let forwarding = NetConfig {
            forward: vec!["8080:80".parse().unwrap(), "udp:53:53".parse().unwrap()],
            ..NetConfig::user()
        };
        let text = "user,forward=8080:80,forward=udp:53:53";
        assert_eq!(parse(text).unwrap(), forwarding);
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, complaint) in [
            ("", "empty key"),
            ("mtu=1500", "no network is given"),
            ("user=off", "no network is given"),
            ("user,tap=a", "give one"),
            ("user,forward=80", "forward: \"80\""),
            ("user,user", "twice"),
            ("tap=", "tap needs a value"),
            ("tap=a,tap=b", "twice"),
            ("tap=a,fd=3", "give one"),
            ("tap0", "did you mean tap=tap0?"),
            ("tap=a,macc=02:00:00:00:00:01", "did you mean mac?"),
            ("tap=a,wibble=1", "known are user"),
            ("tap=a,mac=02", "02:00:00:00:00:01"),
            ("tap=a,mtu=65536", "mtu: "),
            ("fd=-1", "fd: "),
            ("tap=a,pps=fast", "pps: "),
            ("tap=a,vhost=maybe", "on or off"),
            ("tap=a,queues=many", "queues: "),
            ("tap=a,bandwidth=1X", "bandwidth: "),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }
}
