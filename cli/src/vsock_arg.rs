//! `--vsock cid=3,socket=vm.sock`: the keys of the socket device's configuration, in one argument.

use ampoule_vmm::config::VsockConfig;

use crate::disk_arg::split;

const KEYS: [&str; 2] = ["cid", "socket"];

/// Reads the argument. A comma is part of a value where it is doubled.
pub(crate) fn parse(text: &str) -> Result<VsockConfig, String> {
    let (mut cid, mut socket) = (None, None);
    for part in split(text) {
        let (key, value) = part.split_once('=').unwrap_or((&part, ""));
        let needed = || {
            Some(value)
                .filter(|value| !value.is_empty())
                .ok_or_else(|| format!("{key} needs a value: {key}=…"))
        };
        let twice = match key {
            "cid" => cid.replace(number(needed()?)?).is_some(),
            "socket" => socket.replace(needed()?.into()).is_some(),
            _ => return Err(unknown(key)),
        };
        if twice {
            return Err(format!("{key} is there twice"));
        }
    }
    Ok(VsockConfig {
        cid: cid.ok_or("no context id is given: cid=3")?,
        socket: socket.ok_or("no socket is given: socket=PATH")?,
    })
}

fn number(value: &str) -> Result<u32, String> {
    value.parse().map_err(|err| format!("cid: {err}"))
}

fn unknown(key: &str) -> String {
    if key.is_empty() {
        return "there is an empty key: keys are separated by one comma".into();
    }
    let nearest = KEYS
        .iter()
        .map(|known| (strsim::jaro_winkler(key, known), known))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((_, known)) => {
            format!("\"{key}\" is not a key of the socket device; did you mean {known}?")
        }
        None => format!(
            "\"{key}\" is not a key of the socket device; known are {}",
            KEYS.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_reach_their_fields() {
        let expected = VsockConfig {
            cid: 3,
            socket: "a,b=c".into(),
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
