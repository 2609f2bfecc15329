//! `--disk path=root.img,readonly`: a list of keys, as a disk's configuration has them, in one argument.

use std::fmt::Display;
use std::str::FromStr;

use ampoule_vmm::config::{CacheMode, DiskConfig, MemorySize};

const KEYS: [&str; 8] = [
    "path", "readonly", "id", "serial", "cache", "queues", "lock", "size",
];

/// Reads the argument. A comma is part of a value where it is doubled.
pub(crate) fn parse(text: &str) -> Result<DiskConfig, String> {
    let mut disk = DiskConfig::new("");
    let mut seen: Vec<String> = Vec::new();
    for part in split(text) {
        let (key, value) = match part.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (part.as_str(), None),
        };
        if seen.iter().any(|known| known == key) {
            return Err(format!("{key} is there twice"));
        }
        seen.push(key.to_owned());
        let needed = || {
            value
                .filter(|value| !value.is_empty())
                .ok_or_else(|| format!("{key} needs a value: {key}=…"))
        };
        match key {
            "path" => disk.path = needed()?.into(),
            "readonly" => disk.readonly = switch(key, value)?,
            "id" => disk.id = Some(needed()?.to_owned()),
            "serial" => disk.serial = Some(needed()?.to_owned()),
            "cache" => disk.cache = cache(needed()?)?,
            "queues" => disk.queues = number(key, needed()?)?,
            "lock" => disk.lock = switch(key, value)?,
            "size" => disk.size = Some(number::<MemorySize>(key, needed()?)?),
            _ => return Err(unknown(key)),
        }
    }
    if disk.path.as_os_str().is_empty() {
        return Err("no path is given: path=IMAGE".into());
    }
    Ok(disk)
}

/// The parts between commas, where a doubled one stands for itself.
pub(crate) fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match (c, parts.last_mut()) {
            (',', Some(last)) if rest.peek() == Some(&',') => {
                rest.next();
                last.push(',');
            }
            (',', _) => parts.push(String::new()),
            (c, Some(last)) => last.push(c),
            (_, None) => {}
        }
    }
    parts
}

fn switch(key: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("on") => Ok(true),
        Some("off") => Ok(false),
        Some(other) => Err(format!("{key} is on or off, not \"{other}\"")),
    }
}

fn cache(value: &str) -> Result<CacheMode, String> {
    match value {
        "writeback" => Ok(CacheMode::Writeback),
        "writethrough" => Ok(CacheMode::Writethrough),
        "unsafe" => Ok(CacheMode::Unsafe),
        other => Err(format!(
            "cache is writeback, writethrough or unsafe, not \"{other}\""
        )),
    }
}

fn number<T: FromStr>(key: &str, value: &str) -> Result<T, String>
where
    T::Err: Display,
{
    value.parse().map_err(|err| format!("{key}: {err}"))
}

fn unknown(key: &str) -> String {
    if key.is_empty() {
        return "there is an empty key: keys are separated by one comma".into();
    }
    if std::path::Path::new(key).exists() {
        return format!("\"{key}\" is not a key of a disk; did you mean path={key}?");
    }
    let nearest = KEYS
        .iter()
        .map(|known| (strsim::jaro_winkler(key, known), known))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((_, known)) => format!("\"{key}\" is not a key of a disk; did you mean {known}?"),
        None => format!(
            "\"{key}\" is not a key of a disk; known are {}",
            KEYS.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_reach_their_fields() {
        let text =
            "path=a,,b.img,readonly,id=root,serial=s1,cache=unsafe,queues=2,lock=off,size=1G";
        let disk = parse(text).unwrap();
        let expected = DiskConfig {
            readonly: true,
            id: Some("root".into()),
            serial: Some("s1".into()),
            cache: CacheMode::Unsafe,
            queues: 2,
            lock: false,
            size: Some(MemorySize::mib(1024)),
            ..DiskConfig::new("a,b.img")
        };
        assert_eq!(disk, expected);
        assert_eq!(parse("path=x").unwrap(), DiskConfig::new("x"));
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, complaint) in [
            ("", "empty key"),
            ("readonly", "no path is given"),
            ("path=", "path needs a value"),
            ("path=a,path=b", "twice"),
            ("path=a,redonly", "did you mean readonly?"),
            ("path=a,wibble=1", "known are path"),
            ("/", "did you mean path=/?"),
            ("path=a,lock=maybe", "on or off"),
            ("path=a,cache=none", "writeback, writethrough or unsafe"),
            ("path=a,queues=many", "queues: "),
            ("path=a,size=big", "size: "),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }
}
