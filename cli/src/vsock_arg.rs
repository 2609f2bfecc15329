//! `--vsock cid=3,socket=vm.sock`: the keys of the socket device's configuration, in one argument.

use ampoule_vmm::config::VsockConfig;

use crate::key_list::{each, needed, typed, unknown};

const KEYS: [&str; 2] = ["cid", "socket"];

/// Reads the argument.
pub(crate) fn parse(text: &str) -> Result<VsockConfig, String> {
    let (mut cid, mut socket) = (None, None);
    each(text, |key, value| {
        match key {
            "cid" => cid = Some(typed::<u32>(key, value)?),
            "socket" => socket = Some(needed(key, value)?.into()),
            _ => return Err(unknown(key, "the socket device", &KEYS)),
        }
        Ok(())
    })?;
    Ok(VsockConfig {
        cid: cid.ok_or("no context id is given: cid=3")?,
        socket: Some(socket.ok_or("no socket is given: socket=PATH")?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_reach_their_fields() {
        let expected = VsockConfig {
            cid: 3,
            socket: Some("a,b=c".into()),
        };
        assert_eq!(parse("cid=3,socket=a,,b=c").unwrap(), expected);
        assert_eq!(parse("socket=a,,b=c,cid=3").unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, complaint) in [
            ("", "empty key"),
            ("cid=3", "socket=PATH"),
            ("socket=s", "cid=3"),
            ("cid=,socket=s", "cid needs a value"),
            ("cid=three,socket=s", "cid: "),
            ("cid=4294967296,socket=s", "cid: "),
            ("cid=3,cid=4,socket=s", "twice"),
            ("cid=3,sock=s", "did you mean socket?"),
            ("cid=3,wibble=s", "known are cid, socket"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }
}
