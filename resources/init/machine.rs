//! From the kernel's hands to a machine that is as its command expects: the kernel's own file systems, the drivers, the root,
//! names, the network.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;

use crate::job::{Job, Mount, Root};
use crate::sys::{self, Errno, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY};
use crate::{Context, Problem, die, files, network, shared};

/// Where the initramfs has the drivers' modules, and the list of them: a file name a line, in the order to load them.
const MODULES: &[u8] = b"/modules/";
const LIST: &CStr = c"/modules/list";

/// File systems that every guest has: what, where, options.
const KERNEL: [(&CStr, &CStr, usize, &CStr); 3] = [
    (c"devtmpfs", c"/dev", MS_NOSUID, c"mode=755"),
    (c"proc", c"/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, c""),
    (c"sysfs", c"/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, c""),
];

/// The kernel's file systems and the drivers, of which some are still on their way.
pub(crate) fn prepare() -> Loading {
    let _ = sys::block_signals(true);
    sys::set_mask(0o022);
    for (kind, target, flags, options) in KERNEL {
        let _ = sys::mkdir(target, 0o755);
        // A kernel may have mounted its devices already.
        match sys::mount(kind, target, kind, flags, options) {
            Ok(()) | Err(Errno(16)) => {}
            Err(err) => die(format_args!("cannot mount {target:?}: {err}")),
        }
    }
    // Descriptors 0 to 2 are nobody else's, even where the kernel opened no console.
    while let Ok(fd) = sys::open(c"/dev/console", sys::READ_WRITE | sys::NO_TERMINAL) {
        if fd.number() > 2 {
            break;
        }
        core::mem::forget(fd);
    }
    hurry(true);
    load_modules(LIST, true)
}

/// Has the kernel wait for its processors in a hurry (RCU), as it does itself until its first process runs, or at its leisure. Mounts,
/// interfaces and modules wait for that, each some milliseconds, where there is more than one processor.
pub(crate) fn hurry(is_hurry: bool) {
    let value = if is_hurry { b"1" } else { b"0" };
    // A kernel without it does not wait.
    if let Ok(file) = sys::open(c"/sys/kernel/rcu_expedited", sys::WRITE) {
        let _ = file.write(value);
    }
}

/// Drivers that look for their devices as they are loaded, and wait for those.
const WAITING: [&[u8]; 3] = [b"virtio_blk.ko", b"virtio_net.ko", b"virtio_rng.ko"];

/// Of these nobody waits for the end.
const NOT_WAITED_FOR: &[u8] = b"virtio_rng.ko";

/// Drivers that are being loaded, each in a process of its own.
#[derive(Default)]
pub(crate) struct Loading(Vec<(i32, Vec<u8>)>);

impl Loading {
    /// Waits until all are there.
    pub(crate) fn finish(self) {
        for (process, name) in self.0 {
            match sys::wait(process) {
                Ok(sys::Ended::Exited(0)) => {}
                Ok(sys::Ended::Exited(error)) => cannot_load(&name, Errno(error.into())),
                _ => cannot_load(&name, Errno::INTR),
            }
        }
    }
}

/// Loads the modules that a list names, and removes their files where nobody else needs them.
pub(crate) fn load_modules(list: &CStr, removes: bool) -> Loading {
    let mut loading = Loading::default();
    let list = files::read(list).unwrap_or_default();
    for name in list
        .split(|byte| *byte == b'\n')
        .filter(|it| !it.is_empty())
    {
        if WAITING.contains(&name) {
            match sys::fork() {
                // All numbers of errors that there are fit into a byte.
                Ok(0) => sys::exit(load(name, removes).err().map_or(0, |err| err.0 as u8)),
                Ok(_) if name == NOT_WAITED_FOR => continue,
                Ok(process) => {
                    loading.0.push((process, name.to_vec()));
                    continue;
                }
                Err(_) => {}
            }
        }
        if let Err(err) = load(name, removes) {
            cannot_load(name, err);
        }
    }
    loading
}

fn load(name: &[u8], removes: bool) -> sys::Result<()> {
    let path = files::path(&[MODULES, name])?;
    let file = sys::open(&path, sys::READ)?;
    // The memory of the initramfs is the guest's.
    if removes {
        let _ = sys::unlink(&path);
    }
    match sys::load_module(&file) {
        // The second is a driver whose device there is not.
        Err(Errno::EXIST | Errno::NODEV) => Ok(()),
        other => other,
    }
}

fn cannot_load(name: &[u8], err: Errno) -> ! {
    die(format_args!(
        "cannot load the kernel module {}: {err}",
        name.escape_ascii()
    ))
}

/// The host's port.
pub(crate) fn port() -> u32 {
    let line = files::read(c"/proc/cmdline").unwrap_or_default();
    let words = line.split(|byte| byte.is_ascii_whitespace());
    let mut ports = words.filter_map(|word| word.strip_prefix(b"ampoule.port="));
    let port = ports
        .next_back()
        .and_then(|it| core::str::from_utf8(it).ok());
    let port = port.and_then(|port| port.parse().ok());
    port.unwrap_or_else(|| {
        die(format_args!(
            "the kernel's command line has no ampoule.port=N, the host's port to connect to"
        ))
    })
}

/// The connection to the host.
pub(crate) fn connect(port: u32) -> sys::Fd {
    sys::net::connect_host(port).unwrap_or_else(|err| match err {
        Errno::AFNOSUPPORT => die(format_args!(
            "the kernel has no sockets to its host (vsock): load or build in vmw_vsock_virtio_transport"
        )),
        Errno::NODEV => die(format_args!(
            "the machine has no socket device (--vsock) to reach its host by"
        )),
        err => die(format_args!("cannot connect to port {port} of the host: {err}")),
    })
}

/// All that a job wants of the machine but its root, which is there, and that nothing more is written to that. What could not be done,
/// but need not be, is told.
pub(crate) fn set_up(job: &Job) -> Result<Vec<String>, Problem> {
    rest_of_file_systems(&job.root)?;
    for it in &job.mounts {
        mount(it)?;
    }
    let mut notices = Vec::new();
    if !job.host_name.is_empty() {
        sys::set_host_name(&job.host_name).context("cannot set the host name")?;
    }
    let servers = network::set_up(&job.network, &mut notices);
    let is_shared = matches!(job.root, Root::Shared { .. });
    name_files(&job.host_name, &servers, is_shared, &mut notices);
    Ok(notices)
}

fn rest_of_file_systems(root: &Root) -> Result<(), Problem> {
    let flags = MS_NOSUID | MS_NOEXEC;
    let memory = MS_NOSUID | MS_NODEV;
    let pts = c"gid=5,mode=620,ptmxmode=666";
    let mut list = Vec::from([
        (c"devpts", c"/dev/pts", flags, pts),
        (c"tmpfs", c"/dev/shm", memory, c"mode=1777"),
    ]);
    // Elsewhere these are the image's own, as what it has there may be needed; what the host has there is not the guest's.
    if !matches!(
        root,
        Root::Disk {
            read_only: false,
            ..
        }
    ) {
        list.push((c"tmpfs", c"/run", memory, c"mode=755"));
        list.push((c"tmpfs", c"/tmp", memory, c"mode=1777"));
    }
    for (kind, target, flags, options) in list {
        let made = files::make_folders(target);
        made.and_then(|()| sys::mount(kind, target, kind, flags, options))
            .context(&format!("cannot mount {target:?}"))?;
    }
    if !sys::exists(c"/tmp") && sys::mkdir(c"/tmp", 0o1777).is_ok() {
        let _ = sys::chmod(c"/tmp", 0o1777);
    }
    let _ = sys::mkdir(c"/run", 0o755);
    // Of use to some, and missing in small kernels.
    let cgroups = c"/sys/fs/cgroup";
    let _ = sys::mount(
        c"cgroup2",
        cgroups,
        c"cgroup2",
        flags | MS_NODEV,
        c"nsdelegate",
    );
    for (name, target) in [
        (c"/dev/fd", c"/proc/self/fd"),
        (c"/dev/stdin", c"/proc/self/fd/0"),
        (c"/dev/stdout", c"/proc/self/fd/1"),
        (c"/dev/stderr", c"/proc/self/fd/2"),
    ] {
        let _ = sys::symlink(target, name);
    }
    Ok(())
}

fn mount(it: &Mount) -> Result<(), Problem> {
    let target = files::text(&it.target)?;
    let (source, kind) = (files::text(&it.source)?, files::text(&it.file_system)?);
    let flags = if it.read_only { MS_RDONLY } else { 0 };
    files::make_folders(&target)
        .and_then(|()| sys::mount(&source, &target, &kind, flags, c""))
        .context(&format!("cannot mount {source:?} at {target:?}"))
}

/// The files that say who is who. An image's own are respected, where they say something; but its name servers, if it has any,
/// are those of the machine that it was made on.
fn name_files(host_name: &[u8], servers: &[[u8; 4]], is_shared: bool, notices: &mut Vec<String>) {
    let mut hosts =
        Vec::from(b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" as &[u8]);
    if !host_name.is_empty() {
        hosts.extend([b"127.0.1.1\t", host_name, b"\n"].concat());
    }
    let mut resolver = String::new();
    for [a, b, c, d] in servers {
        resolver.push_str(&format!("nameserver {a}.{b}.{c}.{d}\n"));
    }
    let is_empty = |path| files::read(path).is_ok_and(|it| it.is_empty()) || !sys::exists(path);
    let mut write = |path: &CStr, content: &[u8]| {
        let _ = sys::mkdir(c"/etc", 0o755);
        let written = files::replace(path, content).or_else(|err| match is_shared {
            true => shared::cover(path, content),
            false => Err(err),
        });
        if let Err(err) = written {
            notices.push(format!("cannot write {path:?}: {err}"));
        }
    };
    if is_empty(c"/etc/hosts") {
        write(c"/etc/hosts", &hosts);
    }
    if !host_name.is_empty() && is_empty(c"/etc/hostname") {
        write(c"/etc/hostname", &[host_name, b"\n"].concat());
    }
    if !resolver.is_empty() {
        write(c"/etc/resolv.conf", resolver.as_bytes());
    }
}
