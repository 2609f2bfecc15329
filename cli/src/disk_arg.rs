//! `--disk root.img,readonly`: a path, and a list of keys, as a disk's configuration has them, in one argument.

use ampoule_vmm::config::{
    BackingFiles, CacheMode, DiskConfig, DiskEngine, DiskFormat, MemorySize,
};

use crate::key_list::{each, needed, switch, typed, unknown};

const KEYS: [&str; 17] = [
    "path",
    "format",
    "backing",
    "readonly",
    "id",
    "serial",
    "engine",
    "direct",
    "iops",
    "iops-burst",
    "bandwidth",
    "bandwidth-burst",
    "cache",
    "queues",
    "poll",
    "lock",
    "size",
];

/// Reads the argument.
pub(crate) fn parse(text: &str) -> Result<DiskConfig, String> {
    let mut disk = DiskConfig::new("");
    let mut is_first = true;
    each(text, |key, value| {
        let is_first = std::mem::take(&mut is_first);
        match key {
            "path" if !disk.path.as_os_str().is_empty() => {
                return Err("the path is there twice".into());
            }
            "path" => disk.path = needed(key, value)?.into(),
            "format" => disk.format = format(needed(key, value)?)?,
            "backing" => disk.backing = backing(needed(key, value)?)?,
            "readonly" => disk.readonly = switch(key, value)?,
            "id" => disk.id = Some(needed(key, value)?.to_owned()),
            "serial" => disk.serial = Some(needed(key, value)?.to_owned()),
            "engine" => disk.engine = Some(engine(needed(key, value)?)?),
            "direct" => disk.direct = switch(key, value)?,
            "iops" => disk.iops = Some(typed(key, value)?),
            "iops-burst" => disk.iops_burst = Some(typed(key, value)?),
            "bandwidth" => disk.bandwidth = Some(typed(key, value)?),
            "bandwidth-burst" => disk.bandwidth_burst = Some(typed(key, value)?),
            "cache" => disk.cache = cache(needed(key, value)?)?,
            "queues" => disk.queues = typed(key, value)?,
            "poll" => disk.poll = typed(key, value)?,
            "lock" => disk.lock = switch(key, value)?,
            "size" => disk.size = Some(typed::<MemorySize>(key, value)?),
            // The first may be the path alone.
            _ if is_first && !key.is_empty() && value.is_none() => disk.path = key.into(),
            _ => return Err(unknown(key, "a disk", &KEYS)),
        }
        Ok(())
    })?;
    if disk.path.as_os_str().is_empty() {
        return Err("no path is given: path=IMAGE".into());
    }
    Ok(disk)
}

fn format(value: &str) -> Result<DiskFormat, String> {
    match value {
        "raw" => Ok(DiskFormat::Raw),
        "qcow2" => Ok(DiskFormat::Qcow2),
        other => Err(format!("format is raw or qcow2, not \"{other}\"")),
    }
}

fn backing(value: &str) -> Result<BackingFiles, String> {
    match value {
        "deny" => Ok(BackingFiles::Deny),
        "allow" => Ok(BackingFiles::Allow),
        other => Err(format!("backing is deny or allow, not \"{other}\"")),
    }
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
        let text = "path=a,,b.img,format=qcow2,backing=allow,readonly,id=root,serial=s1,engine=io_uring,direct,iops=9,iops-burst=8,bandwidth=2M,bandwidth-burst=1M,cache=unsafe,queues=2,poll=0s,lock=off,size=1G";
        let disk = parse(text).unwrap();
        let expected = DiskConfig {
            format: DiskFormat::Qcow2,
            backing: BackingFiles::Allow,
            readonly: true,
            id: Some("root".into()),
            serial: Some("s1".into()),
            engine: Some(DiskEngine::IoUring),
            direct: true,
            iops: Some(9),
            iops_burst: Some(8),
            bandwidth: Some(MemorySize::mib(2)),
            bandwidth_burst: Some(MemorySize::mib(1)),
            cache: CacheMode::Unsafe,
            queues: 2,
            poll: "0s".parse().unwrap(),
            lock: false,
            size: Some(MemorySize::mib(1024)),
            ..DiskConfig::new("a,b.img")
        };
        assert_eq!(disk, expected);
        assert_eq!(parse("path=x").unwrap(), DiskConfig::new("x"));
        assert_eq!(parse("a,,b.img").unwrap(), DiskConfig::new("a,b.img"));
        assert!(parse("x,readonly").unwrap().readonly);
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
            ("wibble=1", "known are path"),
            ("readonly,wibble", "known are path"),
            ("a,path=b", "twice"),
            ("path=a,lock=maybe", "on or off"),
            ("path=a,format=vmdk", "raw or qcow2"),
            ("path=a,backing=maybe", "deny or allow"),
            ("path=a,iops=fast", "iops: "),
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
