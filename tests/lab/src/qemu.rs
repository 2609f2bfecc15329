//! The AMD lab host: a QEMU machine whose emulated processor has AMD-V, running a Debian kernel with `kvm-amd` and the
//! agent.
//!
//! The machine's own root folder is there, read-only by virtiofs below an overlay in memory; folders shared read-write are
//! virtiofs mounts of their own. The agent speaks over a virtio-serial port. About 5 s to the agent.
//!
//! Everything is started on the caller's thread, which must outlive the machine: the kernel ends QEMU and virtiofsd when
//! that thread ends.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, Result};

use crate::cpio::Archive;
use crate::kernels::Kernel;
use crate::project::own_program;
use crate::shared::at;

/// Debian packages this back end needs.
pub(crate) const PACKAGES: &[&str] = &["qemu-system-x86", "qemu-system-common"];

const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";

/// `kvm-amd` is what the host is for; the file tree comes by virtiofs, the overlay makes it writable; the agent's port is
/// a virtio console's; `tun` and `vhost_net` are for network tests, `loop` and `dm-*` are for disks that fail.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "virtiofs",
    "overlay",
    "kvm-amd",
    "tun",
    "vhost_net",
    "loop",
    "dm-mod",
    "dm-flakey",
];

/// Beside the console: end on a panic, none of what takes an emulated processor long, and a timer that ticks by itself.
///
/// QEMU's emulation of VMRUN and #VMEXIT changes the processor's word of pending interrupts without a lock, while its main
/// loop sets bits there: now and then an interrupt is lost. If that is a one-shot timer's, nothing ever wakes the lab host
/// again. A periodic one (no `nohz`, no `highres`) comes once more, and the lost one with it.
const COMMAND_LINE: &str = "console=ttyS0 loglevel=4 panic=-1 reboot=t mitigations=off cryptomgr.notests apparmor=0 \
     nohz=off highres=off";

/// What to start.
#[derive(Debug)]
pub(crate) struct QemuConfig<'a> {
    /// The lab host's kernel.
    pub(crate) kernel: &'a Kernel,
    /// A folder for sockets and logs; created where missing. One machine at a time.
    pub(crate) run_dir: &'a Path,
    /// Processors. More than this machine has only make it slower.
    pub(crate) cpus: u32,
    /// Memory in MiB. Guests may be larger (memory is overcommitted).
    pub(crate) memory_mib: u32,
    /// Folders shared read-write under their own names.
    pub(crate) read_write: &'a [PathBuf],
    /// Whether this machine's files stay as they are: the lab host asks once for each, and reads it once.
    pub(crate) frozen: bool,
}

/// A running machine. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Qemu {
    // In this order: the file servers end with their last client.
    process: Process,
    _servers: Vec<Process>,
    stream: UnixStream,
}

/// Starts the machine. The agent greets on the stream when it is up.
///
/// # Errors
/// A program or a folder is missing.
pub(crate) fn start(config: &QemuConfig<'_>) -> Result<Qemu> {
    let run_dir = config.run_dir;
    fs::create_dir_all(run_dir).with_context(|| format!("cannot create {}", run_dir.display()))?;
    fs::write(run_dir.join("initrd"), initramfs(config)?).context("cannot write the initramfs")?;

    let mut servers = Vec::new();
    let root = Path::new("/");
    let folders = std::iter::once(root).chain(config.read_write.iter().map(PathBuf::as_path));
    let mut qemu = machine(config);
    for (number, folder) in folders.enumerate() {
        let socket = format!("files{number}");
        let cache = match number {
            0 if config.frozen => "always",
            _ => "auto",
        };
        servers.push(serve_files(folder, cache, run_dir, &socket)?);
        let tag = tag(number);
        qemu.args(["-chardev", &format!("socket,id={tag},path={socket}")]);
        let device = format!("vhost-user-fs-pci,chardev={tag},tag={tag}");
        qemu.args(["-device", &device]);
    }
    // Handed over as standard input: no path, no race, nobody else can connect.
    let (stream, theirs) = UnixStream::pair()?;
    qemu.args(["-chardev", "socket,id=agent,fd=0"])
        .args(["-device", "virtio-serial-pci,max_ports=2"])
        .args(["-device", "virtserialport,nr=1,chardev=agent"])
        .stdin(OwnedFd::from(theirs));
    let process =
        spawn(&mut qemu, &run_dir.join("qemu.log")).context("cannot run qemu-system-x86_64")?;
    Ok(Qemu {
        process,
        _servers: servers,
        stream,
    })
}

impl Qemu {
    /// The agent's byte stream.
    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The process id of the emulator.
    pub(crate) fn pid(&self) -> u32 {
        self.process.0.id()
    }
}

fn tag(number: usize) -> String {
    match number {
        0 => "host".into(),
        number => format!("rw{number}"),
    }
}

/// A child that ends when dropped.
#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Neither can fail in a way that leaves something to do: the process is ours and not yet reaped.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `command` so that it ends with this thread, even where no drop runs, and out of reach of a `^C` that is meant for
/// a command in the lab.
fn spawn(command: &mut Command, log: &Path) -> Result<Process> {
    let log = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let child = command
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()?;
    Ok(Process(child))
}

fn dying_with_us(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}

fn serve_files(folder: &Path, cache: &str, run_dir: &Path, socket: &str) -> Result<Process> {
    let path = run_dir.join(socket);
    // Left behind by a run that was killed.
    let _ = fs::remove_file(&path);
    let listener = at(&path, |path| UnixListener::bind(path))
        .with_context(|| format!("cannot listen at {}", path.display()))?;
    let mut server = if rustix::process::geteuid().is_root() {
        dying_with_us(VIRTIOFSD)
    } else {
        // It wants to be root, and is in a user namespace; `setpriv` last, for new rights revoke what it sets.
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user"]);
        unshare.args(["setpriv", "--pdeathsig", "KILL", VIRTIOFSD]);
        unshare
    };
    server
        .args(["--fd=0", "-o", "sandbox=chroot", "-o", "log_level=err"])
        .args(["-o", &format!("cache={cache}"), "-o"])
        .arg(format!("source={}", folder.display()))
        .current_dir(run_dir)
        .stdin(OwnedFd::from(listener));
    spawn(&mut server, &run_dir.join(format!("{socket}.log"))).context("cannot run virtiofsd")
}

fn machine(config: &QemuConfig<'_>) -> Command {
    let memory = config.memory_mib;
    let mut qemu = dying_with_us("qemu-system-x86_64");
    qemu.current_dir(config.run_dir)
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-no-reboot", "-machine", "q35,accel=tcg"])
        .args(["-cpu", "EPYC,+svm,+npt"])
        .args(["-smp", &config.cpus.to_string()])
        .args(["-m", &memory.to_string()])
        .arg("-object")
        .arg(format!(
            "memory-backend-memfd,id=memory,size={memory}M,share=on"
        ))
        .args(["-numa", "node,memdev=memory"])
        .args(["-serial", "file:console.log"])
        .arg("-kernel")
        .arg(&config.kernel.bzimage)
        .args(["-initrd", "initrd", "-append", COMMAND_LINE]);
    qemu
}

fn initramfs(config: &QemuConfig<'_>) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in [
        "bin", "dev", "etc", "lib", "lower", "proc", "root", "rw", "sys", "tree",
    ] {
        archive.folder(folder);
    }
    let busybox = fs::read("/bin/busybox").context("cannot read /bin/busybox")?;
    archive.file("bin/busybox", true, &busybox);
    archive.file("init", true, include_bytes!("qemu/init.sh"));
    let mut order = String::new();
    for module in config.kernel.modules(MODULES)? {
        archive.file(&format!("lib/{}.ko", module.name), false, &module.content);
        order.push_str(&module.name);
        order.push('\n');
    }
    archive.file("lib/order", false, order.as_bytes());
    let agent = own_program()?;
    archive.file("lib/agent", false, agent.as_os_str().as_encoded_bytes());
    let mut read_write = String::new();
    for (index, folder) in config.read_write.iter().enumerate() {
        read_write.push_str(&format!("{} {}\n", tag(index + 1), folder.display()));
    }
    archive.file("lib/read-write", false, read_write.as_bytes());
    Ok(archive.finish())
}
