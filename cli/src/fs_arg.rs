//! `--fs tag=src,path=DIR`: the keys of a shared file system's configuration, in one argument.

use ampoule_vmm::config::FsConfig;

use crate::key_list::{each, needed, switch, unknown};

const KEYS: [&str; 5] = ["tag", "path", "socket", "readonly", "id"];

/// Reads the argument.
pub(crate) fn parse(text: &str) -> Result<FsConfig, String> {
    let mut fs = FsConfig::default();
    each(text, |key, value| {
        match key {
            "tag" => fs.tag = needed(key, value)?.to_owned(),
            "path" => fs.path = Some(needed(key, value)?.into()),
            "socket" => fs.socket = Some(needed(key, value)?.into()),
            "readonly" => fs.readonly = switch(key, value)?,
            "id" => fs.id = Some(needed(key, value)?.to_owned()),
            _ => return Err(unknown(key, "a shared file system", &KEYS)),
        }
        Ok(())
    })?;
    match (&fs.path, &fs.socket) {
        _ if fs.tag.is_empty() => Err("no tag is given: tag=NAME".into()),
        (None, None) => Err("nothing to share is given: path=DIR or socket=PATH".into()),
        (Some(_), Some(_)) => Err("path and socket are two kinds of shares: give one".into()),
        _ => Ok(fs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_reach_their_fields() {
        let expected = FsConfig {
            readonly: true,
            id: Some("sources".into()),
            ..FsConfig::path("src", "/a,b")
        };
        let text = "tag=src,path=/a,,b,readonly,id=sources";
        assert_eq!(parse(text).unwrap(), expected);
        let expected = FsConfig::socket("t", "s");
        assert_eq!(parse("socket=s,tag=t").unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, complaint) in [
            ("", "empty key"),
            ("tag=a", "path=DIR or socket=PATH"),
            ("path=/a", "tag=NAME"),
            ("tag=a,path=b,socket=c", "give one"),
            ("tag=,path=b", "tag needs a value"),
            ("tag=a,tag=b,path=c", "twice"),
            ("tag=a,sock=s", "did you mean socket?"),
            ("tag=a,path=b,readonly=maybe", "on or off"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }
}
