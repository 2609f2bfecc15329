//! `--volume HOST:GUEST[:ro]`: directories of the host's that a command finds in its guest, live.

use std::path::{Path, PathBuf};
use std::{fs, io};

use ampoule_image::job::{Mount, Root};
use ampoule_vmm::config::{FsConfig, VmConfig};

use super::args::CommandArgs;
use crate::report::{self, Failure};

/// The tag of the directory that is a root.
const ROOT: &str = "ampoule-root";

/// The argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    host: PathBuf,
    guest: String,
    read_only: bool,
}

impl Volume {
    /// Reads the argument. A colon in the host's path is part of it, one in the guest's cannot be written.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (paths, read_only) = match text.rsplit_once(':') {
            Some((paths, "ro")) => (paths, true),
            Some((paths, "rw")) => (paths, false),
            _ => (text, false),
        };
        let (host, guest) = paths
            .rsplit_once(':')
            .filter(|(host, guest)| !host.is_empty() && !guest.is_empty())
            .ok_or_else(|| format!("\"{text}\" is no volume: write HOST:GUEST or HOST:GUEST:ro"))?;
        if !guest.starts_with('/') {
            return Err(format!(
                "\"{guest}\" is no place in the guest: it begins by a slash"
            ));
        }
        if guest.split('/').any(|part| part == "..") || guest.trim_matches('/').is_empty() {
            return Err(format!("nothing can be mounted at \"{guest}\""));
        }
        Ok(Self {
            host: host.into(),
            guest: guest.to_owned(),
            read_only,
        })
    }
}

/// Has a VM share them; how its guest mounts them.
pub(super) fn share(volumes: &[Volume], vm: &mut VmConfig) -> Result<Vec<Mount>, Failure> {
    let mut mounts = Vec::new();
    for (index, volume) in volumes.iter().enumerate() {
        let tag = format!("ampoule-volume{index}");
        check(&volume.host)?;
        vm.fs.push(FsConfig {
            readonly: volume.read_only,
            id: Some(format!("volume{index}")),
            ..FsConfig::path(&tag, &volume.host)
        });
        mounts.push(Mount {
            source: tag.into(),
            target: volume.guest.clone().into(),
            file_system: b"virtiofs".into(),
            read_only: volume.read_only,
        });
    }
    Ok(mounts)
}

/// Has a VM share the directory that is its command's root, if that was asked for; what its guest is told of it.
pub(super) fn root(arguments: &CommandArgs, vm: &mut VmConfig) -> Result<Option<Root>, Failure> {
    let Some(path) = &arguments.root else {
        return Ok(None);
    };
    check(path)?;
    vm.fs.push(FsConfig {
        // What is written stays in the guest.
        readonly: true,
        id: Some("root".into()),
        ..FsConfig::path(ROOT, path)
    });
    Ok(Some(Root::Shared {
        tag: ROOT.into(),
        read_only: arguments.read_only,
    }))
}

/// Whether a path can be shared. It is known before an image is made.
pub(super) fn check(path: &Path) -> Result<(), Failure> {
    let name = path.display();
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(
            Failure::new(format!("cannot share \"{name}\": it is not a directory"))
                .with_help("share the directory that it is in"),
        ),
        Err(err) => {
            let failure = Failure::new(format!(
                "cannot share \"{name}\": {}",
                report::io_text(&err)
            ));
            Err(match err.kind() {
                io::ErrorKind::NotFound => {
                    failure.with_help("make it first: nothing is made on the host unasked")
                }
                _ => failure,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(host: &str, guest: &str, read_only: bool) -> Volume {
        Volume {
            host: host.into(),
            guest: guest.into(),
            read_only,
        }
    }

    #[test]
    fn volumes_are_read_as_docker_reads_them() {
        for (text, expected) in [
            ("/a:/b", volume("/a", "/b", false)),
            (".:/src:ro", volume(".", "/src", true)),
            ("a:/b:rw", volume("a", "/b", false)),
            ("/a:b:/c", volume("/a:b", "/c", false)),
        ] {
            assert_eq!(Volume::parse(text), Ok(expected), "{text}");
        }
        for (text, complaint) in [
            ("", "HOST:GUEST"),
            ("/a", "HOST:GUEST"),
            (":/a", "HOST:GUEST"),
            ("/a:ro", "HOST:GUEST"),
            ("/a:b", "begins by a slash"),
            ("/a:/", "nothing can be mounted"),
            ("/a:/b/../c", "nothing can be mounted"),
            ("/a:/b:rx", "begins by a slash"),
        ] {
            let error = Volume::parse(text).unwrap_err();
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }

    #[test]
    fn a_volume_is_a_share_and_a_mount() {
        let mut vm = VmConfig::default();
        let volumes = [volume("/", "/a", true), volume(".", "/b", false)];
        let mounts = share(&volumes, &mut vm).unwrap();
        let tags: Vec<_> = vm.fs.iter().map(|fs| fs.tag.as_bytes()).collect();
        let sources: Vec<_> = mounts.iter().map(|it| &it.source[..]).collect();
        assert_eq!(tags, sources);
        assert!(vm.fs[0].readonly && mounts[0].read_only);
        assert!(!vm.fs[1].readonly && !mounts[1].read_only);
        vm.kernel = Some("k".into());
        assert_eq!(vm.validate(), Ok(()));
    }

    #[test]
    fn what_cannot_be_shared_is_named() {
        let missing = check(Path::new("/no/such")).unwrap_err();
        assert_eq!(
            missing.message,
            "cannot share \"/no/such\": no such file or directory"
        );
        let file = check(Path::new("/dev/null")).unwrap_err();
        assert!(file.message.ends_with("it is not a directory"));
    }
}
