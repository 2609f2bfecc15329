//! What can be read from files of the host: memory, huge pages, device nodes, groups.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Check;

/// The host's file system, or a copy of parts of it in a test.
pub(super) struct Host {
    root: PathBuf,
}

/// Who runs this process.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) groups: Vec<u32>,
}

/// Access to a device node.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Access {
    Opens,
    Absent,
    /// Permission denied; the node's group by name and whether that group may read and write.
    Denied {
        group: String,
        group_may: bool,
    },
    Fails(String),
}

impl Host {
    pub(super) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// A file's text without the white space around it; `None` where it cannot be read.
    pub(super) fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path))
            .ok()
            .map(|text| text.trim().to_owned())
    }

    pub(super) fn read_number(&self, path: &str) -> Option<u64> {
        self.read(path)?.parse().ok()
    }

    /// Opens a device for reading and writing, and closes it again.
    pub(super) fn access(&self, path: &str) -> Access {
        let full = self.path(path);
        match OpenOptions::new().read(true).write(true).open(&full) {
            Ok(_) => Access::Opens,
            Err(err) if err.kind() == io::ErrorKind::NotFound => Access::Absent,
            Err(err) if err.kind() == io::ErrorKind::PermissionDenied => self.denied(&full),
            Err(err) => Access::Fails(crate::report::io_text(&err)),
        }
    }

    fn denied(&self, path: &Path) -> Access {
        let Ok(meta) = fs::metadata(path) else {
            return Access::Fails("permission denied".into());
        };
        let groups = self.read("/etc/group").unwrap_or_default();
        let group = group_name(&groups, meta.gid()).unwrap_or_else(|| meta.gid().to_string());
        Access::Denied {
            group,
            group_may: meta.mode() & 0o060 == 0o060,
        }
    }

    /// The group that owns a file, by number.
    pub(super) fn group_of(&self, path: &str) -> Option<u32> {
        fs::metadata(self.path(path)).ok().map(|meta| meta.gid())
    }

    pub(super) fn group_name(&self, gid: u32) -> Option<String> {
        group_name(&self.read("/etc/group")?, gid)
    }

    pub(super) fn identity(&self) -> Identity {
        self.read("/proc/self/status")
            .map(|status| parse_identity(&status))
            .unwrap_or_default()
    }
}

fn group_name(groups: &str, gid: u32) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    })
}

/// Reads the effective user, the effective group and the supplementary groups from `/proc/self/status`.
fn parse_identity(status: &str) -> Identity {
    let numbers = |key: &str| -> Vec<u32> {
        status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .map(|rest| {
                rest.split_whitespace()
                    .filter_map(|word| word.parse().ok())
                    .collect()
            })
            .unwrap_or_default()
    };
    let mut groups = numbers("Groups:");
    groups.extend(numbers("Gid:").get(1));
    Identity {
        uid: numbers("Uid:").get(1).copied().unwrap_or_default(),
        groups,
    }
}

/// A size of `kib` KiB, as people say it.
pub(super) fn human_kib(kib: u64) -> String {
    match kib {
        0..1024 => format!("{kib} KiB"),
        1024..1_048_576 => format!("{} MiB", kib >> 10),
        _ => format!("{}.{} GiB", kib >> 20, ((kib % (1 << 20)) * 10) >> 20),
    }
}

pub(super) fn memory(host: &Host) -> Vec<Check> {
    let mut checks = vec![free_memory(host), transparent_huge_pages(host)];
    checks.extend(huge_page_pools(host));
    checks
}

fn free_memory(host: &Host) -> Check {
    let meminfo = host.read("/proc/meminfo").unwrap_or_default();
    let kib = |key: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse().ok()
    };
    match (kib("MemAvailable:"), kib("MemTotal:")) {
        (Some(available), Some(total)) => {
            let detail = format!("{} available of {}", human_kib(available), human_kib(total));
            if available < 256 << 10 {
                return Check::warn("memory", detail)
                    .help("guests get 512 MiB by default: use a smaller --memory");
            }
            Check::ok("memory", detail)
        }
        _ => Check::warn("memory", "/proc/meminfo does not say how much there is"),
    }
}

fn transparent_huge_pages(host: &Host) -> Check {
    let name = "transparent huge pages";
    let Some(text) = host.read("/sys/kernel/mm/transparent_hugepage/enabled") else {
        return Check::missing(name, "not in this kernel")
            .help("guests get pages of 4 KiB, and run somewhat slower");
    };
    let chosen = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    match chosen {
        Some(mode @ ("always" | "madvise")) => Check::ok(name, mode),
        _ => Check::missing(name, "switched off").help(
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled (guests run \
             somewhat faster with them)",
        ),
    }
}

/// One line for each size that `--hugepages` takes.
fn huge_page_pools(host: &Host) -> Vec<Check> {
    vec![
        huge_page_pool(host, "huge pages 2M", "2M", 2048),
        huge_page_pool(host, "huge pages 1G", "1G", 1_048_576),
    ]
}

fn huge_page_pool(host: &Host, name: &'static str, flag: &str, kib: u64) -> Check {
    let directory = format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB");
    let file = format!("{directory}/nr_hugepages");
    let total = host.read_number(&file);
    let free = host.read_number(&format!("{directory}/free_hugepages"));
    match (total, free) {
        (Some(0), _) => {
            let pages = (1 << 20) / kib;
            Check::missing(
                name,
                format!("none reserved; only --hugepages {flag} needs them"),
            )
            .help(format!("for 1 GiB of them: echo {pages} | sudo tee {file}"))
        }
        (Some(total), Some(0)) => Check::warn(name, format!("all {total} in use"))
            .help(format!("for more: echo {} | sudo tee {file}", total * 2)),
        (Some(total), Some(free)) => Check::ok(
            name,
            format!(
                "{free} of {total} free, {} for guests",
                human_kib(free * kib)
            ),
        ),
        _ => Check::missing(name, "not offered by this kernel or processor"),
    }
}

pub(super) fn devices(host: &Host) -> Vec<Check> {
    let nodes = [
        ("/dev/net/tun", "tun"),
        ("/dev/vhost-net", "vhost_net"),
        ("/dev/vhost-vsock", "vhost_vsock"),
    ];
    nodes
        .iter()
        .map(|(path, module)| device(host, path, module))
        .collect()
}

fn device(host: &Host, path: &'static str, module: &str) -> Check {
    match host.access(path) {
        Access::Opens => Check::ok(path, "opens"),
        Access::Absent => Check::missing(path, "not there").help(format!("sudo modprobe {module}")),
        Access::Denied {
            group,
            group_may: true,
        } => Check::missing(path, "permission denied")
            .help(format!("sudo usermod -aG {group} $USER, then log in again")),
        Access::Denied {
            group_may: false, ..
        } => Check::missing(path, "permission denied").help(format!("sudo chmod a+rw {path}")),
        Access::Fails(reason) => Check::missing(path, reason).help(format!(
            "the kernel module may be missing: sudo modprobe {module}"
        )),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::Status;
    use super::*;

    /// A directory that stands for a host's root, removed in the end.
    pub(in super::super) struct FakeRoot(PathBuf);

    impl FakeRoot {
        pub(in super::super) fn new(test: &str, files: &[(&str, &str)]) -> Self {
            let name = format!("ampoule-doctor-{}-{test}", std::process::id());
            let root = Self(std::env::temp_dir().join(name));
            for (path, text) in files {
                let path = root.0.join(path.trim_start_matches('/'));
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            root
        }

        pub(in super::super) fn host(&self) -> Host {
            Host::new(&self.0)
        }
    }

    impl Drop for FakeRoot {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn identity_and_groups_are_read() {
        let status = "Name:\tx\nUid:\t1\t1000\t1\t1\nGid:\t5\t100\t5\t5\nGroups:\t4 104\n";
        let expected = Identity {
            uid: 1000,
            groups: vec![4, 104, 100],
        };
        assert_eq!(parse_identity(status), expected);
        let groups = "root:x:0:\nkvm:x:104:me\n";
        assert_eq!(group_name(groups, 104).as_deref(), Some("kvm"));
        assert_eq!(group_name(groups, 7), None);
    }

    #[test]
    fn memory_is_told_in_human_sizes() {
        assert_eq!(human_kib(512), "512 KiB");
        assert_eq!(human_kib(512 << 10), "512 MiB");
        assert_eq!(human_kib((5 << 20) + (1 << 19)), "5.5 GiB");
    }

    #[test]
    fn little_memory_is_a_warning() {
        let files = [(
            "/proc/meminfo",
            "MemTotal: 1048576 kB\nMemAvailable: 1000 kB\n",
        )];
        let root = FakeRoot::new("memory", &files);
        let check = free_memory(&root.host());
        assert_eq!(
            (check.status, check.detail.as_str()),
            (Status::Warn, "1000 KiB available of 1.0 GiB")
        );
        assert!(check.help.unwrap().contains("--memory"));
    }

    #[test]
    fn huge_page_pools_tell_free_used_and_absent() {
        let dir = "/sys/kernel/mm/hugepages/hugepages-2048kB";
        let pool = |test: &str, total: &str, free: &str| {
            let files = [
                (format!("{dir}/nr_hugepages"), total),
                (format!("{dir}/free_hugepages"), free),
            ];
            let files: Vec<_> = files
                .iter()
                .map(|(path, text)| (path.as_str(), *text))
                .collect();
            huge_page_pools(&FakeRoot::new(test, &files).host())
        };
        let checks = pool("free", "8\n", "4\n");
        assert_eq!(checks[0].detail, "4 of 8 free, 8 MiB for guests");
        assert_eq!(
            checks[1].status,
            Status::Missing,
            "the other size is not there at all"
        );
        assert_eq!(pool("used", "8", "0")[0].status, Status::Warn);
        let none = &pool("none", "0", "0")[0];
        assert!(
            none.help.as_ref().unwrap().contains("echo 512 | sudo tee"),
            "{none:?}"
        );
    }

    #[test]
    fn transparent_huge_pages_tell_the_mode() {
        let path = "/sys/kernel/mm/transparent_hugepage/enabled";
        let check =
            |test: &str, text| transparent_huge_pages(&FakeRoot::new(test, &[(path, text)]).host());
        assert_eq!(check("madvise", "always [madvise] never").detail, "madvise");
        assert_eq!(
            check("never", "always madvise [never]").status,
            Status::Missing
        );
    }

    #[test]
    fn a_device_that_is_not_there_names_its_module() {
        let root = FakeRoot::new("devices", &[("/dev/net/tun", "")]);
        let checks = devices(&root.host());
        assert_eq!(checks[0].status, Status::Ok);
        assert_eq!(checks[1].help.as_deref(), Some("sudo modprobe vhost_net"));
    }
}
