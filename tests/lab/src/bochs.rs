//! The Intel lab host: a Bochs machine whose emulated processor has VT-x, running a Debian kernel
//! with `kvm-intel` and the agent.
//!
//! Bochs has no virtio, so each thing takes the door a PC of its time had. The kernel and an
//! initramfs come from a CD, the file tree ([`image`]) from a disk, folders shared read-write from
//! a second disk, and the agent speaks over the second serial port, which Bochs connects to a
//! loopback TCP socket of ours. That port loses nothing (Bochs and the socket push back), but
//! carries 11 kB per guest second.
//!
//! Time in the host is counted in instructions, 100 million to the second; a busy second takes two
//! to three outside, an idle one next to nothing. About 25 s to the agent.
//!
//! Everything runs on the caller's thread, which must outlive the machine: the kernel ends Bochs
//! when that thread ends.

mod image;
mod initramfs;
mod read_write;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::image::FileSet;
use crate::say;

/// Debian packages this back end needs.
pub(crate) const PACKAGES: &[&str] = &[
    "bochs",
    "bochs-term",
    "bochsbios",
    "busybox-static",
    "e2fsprogs",
    "isolinux",
    "syslinux-common",
    // Debian lets seabios stand for it, which has no VGA BIOS that Bochs finds.
    "vgabios",
    "xorriso",
];

/// The agent's serial port inside the lab host.
pub(crate) const AGENT_PORT: &str = "/dev/ttyS1";

/// How long the machine may take to its agent: many times what it takes where it has a processor
/// to itself, for builds and other tests may run beside it.
const START_LIMIT: Duration = Duration::from_secs(600);

/// The most memory Bochs gives a machine.
const MOST_MEMORY_MIB: u32 = 2048;

/// What the init script says on the agent's port before it becomes the agent.
const READY: &str = "lab-host-ready";

/// The kernel command line. Beside the console: what a kernel spends seconds of emulated time on
/// and a lab does not need, most of all the self-tests of its ciphers (20 s), checking built-in
/// certificates, and set-up of tracers.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0,115200 loglevel=4 panic=-1 reboot=t \
     tsc=reliable mitigations=off cryptomgr.notests apparmor=0 init_on_alloc=0 \
     initcall_blacklist=load_system_certificate_list,init_blk_tracer,init_kprobe_trace,\
     cubictcp_register,bpf_rstat_kfunc_init";

/// What to start.
#[derive(Debug)]
pub(crate) struct BochsConfig<'a> {
    /// The lab host's kernel, a bzImage.
    pub(crate) kernel: &'a Path,
    /// That kernel's `lib/modules/VERSION` folder.
    pub(crate) modules: &'a Path,
    /// A folder for images and logs (`console.log` is the host's console); created where missing.
    /// One machine at a time.
    pub(crate) run_dir: &'a Path,
    /// Memory in MiB; Bochs gives at most 2048. Guests may be larger (memory is overcommitted).
    pub(crate) memory_mib: u32,
    /// The agent: a program of this machine and its arguments, of which one should be
    /// [`AGENT_PORT`].
    pub(crate) agent: &'a [OsString],
    /// Files and folders of this machine to show in the host under their own names, beside the
    /// basic programs. Folders that carry a `CACHEDIR.TAG` are left out where they are not named
    /// themselves. What does not exist is left out.
    pub(crate) paths: &'a [PathBuf],
    /// Folders that [`Bochs::take_back`] brings back.
    pub(crate) read_write: &'a [PathBuf],
}

/// A running machine. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Bochs {
    process: Child,
    stream: TcpStream,
    run_dir: PathBuf,
    read_write: Vec<PathBuf>,
}

/// Builds the images, starts the machine and waits for its agent.
///
/// # Errors
/// A program that is missing or fails, or a machine that does not come up; the message names the
/// log files.
pub(crate) fn start(config: &BochsConfig<'_>) -> Result<Bochs> {
    let run_dir = config.run_dir;
    fs::create_dir_all(run_dir).with_context(|| format!("cannot create {}", run_dir.display()))?;
    fs::write(
        run_dir.join("CACHEDIR.TAG"),
        "Signature: 8a477f597d28d172789f06886806bc55\n",
    )
    .context("cannot write CACHEDIR.TAG")?;
    make_cd(config)?;
    make_tree(config)?;
    read_write::make(run_dir, config.read_write)?;

    let listener =
        TcpListener::bind(("127.0.0.1", 0)).context("cannot listen on the loopback interface")?;
    fs::write(
        run_dir.join("bochsrc"),
        machine(config, listener.local_addr()?.port()),
    )
    .context("cannot write bochsrc")?;
    // Debian's Bochs stops in its debugger first.
    fs::write(run_dir.join("debugger"), "continue\n")
        .context("cannot write the debugger script")?;
    for log in ["console.log", "bochs.log", "screen.log"] {
        fs::write(run_dir.join(log), "").with_context(|| format!("cannot write {log}"))?;
    }

    let screen = fs::File::create(run_dir.join("screen.log")).context("cannot write screen.log")?;
    // It dies with this thread even where Drop does not run. -unlock, for a Bochs that was killed
    // leaves its locks behind.
    let process = Command::new("setpriv")
        .args([
            "--pdeathsig",
            "KILL",
            "bochs-bin",
            "-q",
            "-unlock",
            "-f",
            "bochsrc",
            "-rc",
            "debugger",
        ])
        .current_dir(run_dir)
        .env("TERM", "vt100")
        // Out of reach of a ^C that is meant for a command in the lab.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(screen.try_clone()?)
        .stderr(screen)
        .spawn()
        .context("cannot run setpriv (Debian package util-linux)")?;
    let process = Guard(Some(process));
    connect(process, &listener, config)
}

impl Bochs {
    /// The agent's byte stream.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The process id of the emulator.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Brings new and changed files of the read-write folders back from the machine to where they
    /// came from. Call it between commands. Files deleted in there stay here.
    ///
    /// # Errors
    /// `debugfs` fails, or a file cannot be written.
    pub(crate) fn take_back(&self) -> Result<()> {
        read_write::take_back(&self.run_dir, &self.read_write)
    }
}

impl Drop for Bochs {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

/// Ends Bochs while it is not yet a [`Bochs`].
struct Guard(Option<Child>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(process) = &mut self.0 {
            end(process);
        }
    }
}

fn end(process: &mut Child) {
    // Neither can fail in a way that leaves something to do: the process is ours and not yet
    // reaped.
    let _ = process.kill();
    let _ = process.wait();
}

/// What a command names and so should find in the machine: its program, looked up in `PATH`, and
/// each argument (or what follows its `=` or `:`) that is the path of something here.
pub(crate) fn named_in(command: &[OsString]) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    if let Some(program) = command
        .first()
        .filter(|name| !name.as_bytes().contains(&b'/'))
    {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        let program = std::env::split_paths(&folders)
            .map(|folder| folder.join(program))
            .find(|path| path.is_file());
        paths.extend(program);
    }
    for argument in command {
        let values = argument
            .as_bytes()
            .splitn(2, |byte| matches!(byte, b'=' | b':'));
        // The whole argument, then what follows.
        for value in std::iter::once(argument.as_bytes()).chain(values.skip(1)) {
            let path = Path::new(OsStr::from_bytes(value));
            // A folder above this one would bring everything.
            if !value.is_empty() && path.exists() && !is_above(path) {
                paths.push(path.to_owned());
            }
        }
    }
    paths
}

/// Whether `path` is a folder that the current one lies in.
fn is_above(path: &Path) -> bool {
    match (std::env::current_dir(), fs::canonicalize(path)) {
        (Ok(here), Ok(path)) => here != path && here.starts_with(path),
        _ => false,
    }
}

/// Waits for Bochs to connect and for the machine to say that it is ready.
fn connect(mut process: Guard, listener: &TcpListener, config: &BochsConfig<'_>) -> Result<Bochs> {
    let deadline = Instant::now() + START_LIMIT;
    listener.set_nonblocking(true)?;
    let mut stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                check(&mut process, deadline, config.run_dir)?
            }
            Err(error) => {
                return Err(error).context("cannot accept the connection of the serial port");
            }
        }
        // Nothing tells when a child connects but polling or a second thread.
        std::thread::sleep(Duration::from_millis(20));
    };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    // One byte at a time: what follows the line belongs to the agent's client.
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) => bail!(problem(
                "the emulator closed the agent's serial port",
                config.run_dir
            )),
            Ok(_) => line.push(byte[0]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                check(&mut process, deadline, config.run_dir)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error).context("cannot read the agent's serial port"),
        }
    }
    if line.trim_ascii() != READY.as_bytes() {
        bail!(problem(
            "the machine said something unexpected on the agent's serial port",
            config.run_dir
        ));
    }
    stream.set_read_timeout(None)?;
    stream.set_nodelay(true)?;
    let process = process.0.take().context("the emulator is gone")?;
    Ok(Bochs {
        process,
        stream,
        run_dir: config.run_dir.to_owned(),
        read_write: config.read_write.to_vec(),
    })
}

/// An error if Bochs ended or the time is up.
fn check(process: &mut Guard, deadline: Instant, run_dir: &Path) -> Result<()> {
    if let Some(process) = &mut process.0
        && let Some(status) = process.try_wait()?
    {
        bail!(problem(
            &format!("the emulator ended before its agent was there ({status})"),
            run_dir
        ));
    }
    if Instant::now() > deadline {
        bail!(problem("the machine did not come up in time", run_dir));
    }
    Ok(())
}

/// `what`, with the emulator's last words where it left some.
fn problem(what: &str, run_dir: &Path) -> String {
    let screen = fs::read(run_dir.join("screen.log")).unwrap_or_default();
    match last_words(&String::from_utf8_lossy(&screen)) {
        Some(words) => format!("{what}: {words}"),
        None => what.to_owned(),
    }
}

/// The reason Bochs gives when it ends by itself.
fn last_words(screen: &str) -> Option<&str> {
    let (_, rest) = screen.rsplit_once("Bochs is exiting with the following message:")?;
    rest.lines().map(str::trim).find(|line| !line.is_empty())
}

/// The configuration of the machine. Paths are relative to the run folder, as Bochs' syntax has no
/// way to quote.
fn machine(config: &BochsConfig<'_>, port: u16) -> String {
    format!(
        "config_interface: textconfig\n\
         display_library: term\n\
         plugin_ctrl: serial=1, speaker=0, parallel=0\n\
         memory: guest={memory}, host={memory}\n\
         romimage: file=$BXSHARE/BIOS-bochs-latest\n\
         vgaromimage: file=$BXSHARE/VGABIOS-lgpl-latest\n\
         cpu: model=corei7_haswell_4770, count=1, ips=100000000, ignore_bad_msrs=1\n\
         clock: sync=none, time0=utc\n\
         ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
         ata0-master: type=disk, path=tree.img, mode=flat\n\
         ata0-slave: type=disk, path=read-write.img, mode=flat\n\
         ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15\n\
         ata1-master: type=cdrom, path=boot.iso, status=inserted\n\
         boot: cdrom\n\
         com1: enabled=1, mode=file, dev=console.log\n\
         com2: enabled=1, mode=socket-client, dev=127.0.0.1:{port}\n\
         sound: driver=dummy\n\
         log: bochs.log\n\
         panic: action=fatal\n\
         error: action=ignore\n\
         info: action=ignore\n\
         debug: action=ignore\n",
        memory = config.memory_mib.min(MOST_MEMORY_MIB),
    )
}

/// Makes the CD: isolinux, the kernel, the initramfs.
fn make_cd(config: &BochsConfig<'_>) -> Result<()> {
    let folder = config.run_dir.join("cd");
    image::empty_folder(&folder)?;
    let copy = |from: &Path, name: &str| -> Result<()> {
        fs::copy(from, folder.join(name))
            .map(drop)
            .with_context(|| format!("cannot copy {}", from.display()))
    };
    copy(Path::new("/usr/lib/ISOLINUX/isolinux.bin"), "isolinux.bin")?;
    copy(
        Path::new("/usr/lib/syslinux/modules/bios/ldlinux.c32"),
        "ldlinux.c32",
    )?;
    copy(config.kernel, "vmlinuz")?;
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .map(Path::new)
        .into_iter()
        .find(|path| path.exists())
        .context("no /bin/busybox (Debian package busybox-static)")?;
    let initramfs = initramfs::make(busybox, config.modules, &agent_script(config.agent))?;
    fs::write(folder.join("initrd"), initramfs).context("cannot write the initramfs")?;
    fs::write(
        folder.join("isolinux.cfg"),
        format!(
            "DEFAULT lab\n\
             PROMPT 0\n\
             LABEL lab\n \
             KERNEL vmlinuz\n \
             INITRD initrd\n \
             APPEND {KERNEL_COMMAND_LINE}\n"
        ),
    )
    .context("cannot write isolinux.cfg")?;
    let output = Command::new("xorriso")
        .args(["-as", "mkisofs", "-quiet", "-o"])
        .arg(config.run_dir.join("boot.iso"))
        .args([
            "-b",
            "isolinux.bin",
            "-c",
            "boot.cat",
            "-no-emul-boot",
            "-boot-load-size",
            "4",
            "-boot-info-table",
        ])
        .arg(&folder)
        .stdin(Stdio::null())
        .output()
        .context("cannot run xorriso (Debian package xorriso)")?;
    if !output.status.success() {
        bail!(
            "xorriso could not make boot.iso: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// The shell script that becomes the agent.
fn agent_script(agent: &[OsString]) -> String {
    let mut script = "exec".to_owned();
    for argument in agent {
        script.push_str(" '");
        script.push_str(&argument.to_string_lossy().replace('\'', r"'\''"));
        script.push('\'');
    }
    script.push('\n');
    script
}

/// Makes the first disk: the file tree.
fn make_tree(config: &BochsConfig<'_>) -> Result<()> {
    let mut files = FileSet::base()?;
    if let Some(agent) = config.agent.first() {
        files.add(Path::new(agent));
    }
    for path in config.paths {
        if !files.add(path) {
            let path = path.display();
            say::say(format!(
                "{path} is too large for the Intel lab host; it is empty there"
            ));
        }
    }
    files.write_image(
        &config.run_dir.join("tree.img"),
        &config.run_dir.join("tree"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(memory_mib: u32) -> BochsConfig<'static> {
        BochsConfig {
            kernel: Path::new("vmlinuz"),
            modules: Path::new("modules"),
            run_dir: Path::new("run"),
            memory_mib,
            agent: &[],
            paths: &[],
            read_write: &[],
        }
    }

    #[test]
    fn the_machine_has_the_memory_bochs_can_give() {
        let memory = |mib| {
            let text = machine(&config(mib), 1);
            let line = text.lines().find(|line| line.starts_with("memory:"));
            line.map(str::to_owned)
        };
        assert_eq!(memory(512).as_deref(), Some("memory: guest=512, host=512"));
        assert_eq!(
            memory(4096).as_deref(),
            Some("memory: guest=2048, host=2048")
        );
    }

    #[test]
    fn the_agent_gets_its_arguments_as_they_are() {
        let script = agent_script(&["/a b".into(), "it's".into(), "$x".into()]);
        assert_eq!(script, "exec '/a b' 'it'\\''s' '$x'\n");
    }

    #[test]
    fn a_command_brings_what_it_names() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("vmlinuz");
        fs::write(&kernel, "").unwrap();
        let named = |words: &[&str]| {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            named_in(&words)
        };
        let name = kernel.to_str().unwrap();
        assert_eq!(
            named(&["no-such-program", name]),
            std::slice::from_ref(&kernel)
        );
        let option = format!("--kernel={name}");
        assert_eq!(
            named(&["no-such-program", &option]),
            std::slice::from_ref(&kernel)
        );
        let serial = format!("file:{name}");
        assert_eq!(
            named(&["no-such-program", &serial]),
            std::slice::from_ref(&kernel)
        );
        assert_eq!(named(&["sh"])[0].file_name(), Some(OsStr::new("sh")));
        assert_eq!(
            named(&["no-such-program", "/", "..", "missing", ""]),
            [] as [PathBuf; 0]
        );
    }

    #[test]
    fn the_emulator_says_why_it_ended() {
        let screen =
            "noise\n====\nBochs is exiting with the following message:\n[SIM   ] bad\n====\n";
        assert_eq!(last_words(screen), Some("[SIM   ] bad"));
        assert_eq!(last_words("noise\n"), None);
    }
}
