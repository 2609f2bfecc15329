//! `--disk path=root.img,readonly`: a list of keys, as a disk's configuration has them, in one argument.

use std::path::Path;

use ampoule_vmm::config::{CacheMode, DiskConfig, DiskEngine, MemorySize};

use crate::key_list::{each, needed, switch, typed, unknown};

const KEYS: [&str; 11] = [
    "path", "readonly", "id", "serial", "engine", "direct", "cache", "queues", "poll", "lock",
    "size",
];

/// Reads the argument.
pub(crate) fn parse(text: &str) -> Result<DiskConfig, String> {
    let mut disk = DiskConfig::new("");
    each(text, |key, value| {
        match key {
            "path" => disk.path = needed(key, value)?.into(),
            "readonly" => disk.readonly = switch(key, value)?,
            "id" => disk.id = Some(needed(key, value)?.to_owned()),
            "serial" => disk.serial = Some(needed(key, value)?.to_owned()),
            "engine" => disk.engine = Some(engine(needed(key, value)?)?),
            "direct" => disk.direct = switch(key, value)?,
            "cache" => disk.cache = cache(needed(key, value)?)?,
            "queues" => disk.queues = typed(key, value)?,
            "poll" => disk.poll = typed(key, value)?,
            "lock" => disk.lock = switch(key, value)?,
            "size" => disk.size = Some(typed::<MemorySize>(key, value)?),
            _ if !key.is_empty() && Path::new(key).exists() => {
                return Err(format!(
                    "\"{key}\" is not a key of a disk; did you mean path={key}?"
                ));
            }
            _ => return Err(unknown(key, "a disk", &KEYS)),
        }
        Ok(())
    })?;
    if disk.path.as_os_str().is_empty() {
        return Err("no path is given: path=IMAGE".into());
    }
    Ok(disk)
}

fn engine(value: &str) -> Result<DiskEngine, String> {
    match value {
        "sync" => Ok(DiskEngine::Sync),
        "io_uring" => Ok(DiskEngine::IoUring),
        other => Err(format!("engine is sync or io_uring, not \"{other}\"")),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_reach_their_fields() {
        let text = "path=a,,b.img,readonly,id=root,serial=s1,engine=io_uring,direct,cache=unsafe,queues=2,poll=0s,lock=off,size=1G";
        let disk = parse(text).unwrap();
        let expected = DiskConfig {
            readonly: true,
            id: Some("root".into()),
            serial: Some("s1".into()),
            engine: Some(DiskEngine::IoUring),
            direct: true,
            cache: CacheMode::Unsafe,
            queues: 2,
            poll: "0s".parse().unwrap(),
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
            ("path=a,engine=aio", "sync or io_uring"),
            ("path=a,cache=none", "writeback, writethrough or unsafe"),
            ("path=a,queues=many", "queues: "),
            ("path=a,size=big", "size: "),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }
}
