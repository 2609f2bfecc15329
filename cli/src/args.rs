//! The command line: its flags, its help, and what becomes of them.
//!
//! A flag that says something about the VM has the name of the field of [`VmConfig`] that it sets, and is an `Option`: what
//! is not given leaves the configuration file's value, or the default.

use std::path::PathBuf;
use std::str::FromStr;

use ampoule_vmm::config::{
    ConsoleConfig, DiskConfig, FsConfig, HugePages, KernelEntry, MemoryBacking, MemorySize,
    OnReboot, Span, VmConfig, VmLimits, VsockConfig,
};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser, ValueParser};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use log::LevelFilter;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::Error as ValueError;

#[cfg(feature = "image")]
use crate::command::args::CommandArgs;
#[cfg(feature = "test")]
use crate::deferred::Deferred;
#[cfg(feature = "image")]
use crate::images::ImageArgs;
use crate::net_arg::NetArg;
#[cfg(feature = "test")]
use crate::test::args::{BisectArgs, TestArgs};
#[cfg(feature = "test")]
use crate::test::worker::WorkerArgs;
use crate::{disk_arg, fs_arg, limits_arg, vsock_arg};

const GUEST: &str = "Guest";
const MACHINE: &str = "Machine";
const DEVICES: &str = "Devices";
const CONSOLE: &str = "Console";
const LIFE: &str = "Life and death";
const INSIGHT: &str = "Insight";
const CONFIGURATION: &str = "Configuration";

const MAIN_EXAMPLES: &str = "\
Examples:
  ampoule doctor                                  can this host run Linux guests?
  ampoule run --kernel vmlinuz --initrd rootfs.cpio.gz
  ampoule run --config vm.toml --memory 2G

`ampoule run --help` explains every option.";

const RUN_EXAMPLES: &str = "\
Examples:
  ampoule run debian:12 -- cat /etc/os-release
  ampoule run debian.tar -- cat /etc/os-release
  ampoule run -it -p 8080:80 rootfs/ -- /bin/sh
  ampoule run --copy src:/src --copy-out /src/out:. debian.tar -- make -C /src
  ampoule run --file ./hello -- hello world
  ampoule run --disk debian.ext4
  ampoule run -v .:/src debian.tar -- make -C /src
  ampoule run --root / --read-only -- uname -a
  ampoule run --kernel /boot/vmlinuz-$(uname -r) --initrd initramfs.cpio.gz
  ampoule run --kernel vmlinux --memory 2G --cpus 4 --append quiet
  ampoule run --kernel vmlinuz --initrd test.cpio --serial file:console.log --timeout 60s
  ampoule run --kernel vmlinuz --initrd i.cpio --disk path=data.img,size=10G
  ampoule run --kernel vmlinuz --initrd i.cpio --net user,forward=8080:80
  ampoule run --kernel vmlinuz --initrd i.cpio --net tap=tap0
  ampoule run --kernel vmlinuz --initrd i.cpio --console stdio --log-file ampoule.log
  ampoule run --kernel vmlinuz --memory 1G --print-config > vm.toml
  ampoule run --config vm.toml --timeline -

Keys at the terminal: ^A x stops the VM, ^A c lists the keys, ^A ^A sends ^A to the guest.

Exit status of a command: its own, 128 + N where signal N ended it, 126 or 127 where it cannot be run.
Else: 0 the guest powered off, or reset itself with --on-reboot exit; 124 --timeout; 125 \
ampoule or the host failed; 134 the guest crashed (panic, triple fault, KVM internal error); \
128 + N stopped because of signal N.";

#[cfg(feature = "test")]
const TEST_EXAMPLES: &str = "\
Examples:
  ampoule test boot.toml
  ampoule test --jobs 2 --retries 1 tests/scenarios
  ampoule test --set vm.kernel=vmlinuz --tag fast tests/scenarios
  ampoule test --list tests/scenarios
  ampoule test --dry-run boot.toml
  ampoule test --schema > scenario.schema.json

Exit status: 0 all passed; 1 some failed; 2 the scenarios are wrong, and none was run; 125 ampoule or the host failed; \
130 somebody interrupted it.";

#[cfg(feature = "test")]
const BISECT_EXAMPLES: &str = "\
Examples:
  ampoule bisect --good vmlinuz-6.1 --bad vmlinuz-6.12 boot.toml
  ampoule bisect --good old.tar --bad new.tar boot.toml a.tar b.tar c.tar
  ampoule bisect --key vm.initrd --good a.cpio --bad b.cpio boot.toml";

/// The names of the commands.
pub(crate) const COMMANDS: &[&str] = &[
    "run",
    #[cfg(feature = "image")]
    "image",
    #[cfg(feature = "test")]
    "test",
    #[cfg(feature = "test")]
    "bisect",
    "doctor",
    "completions",
    "man",
];

/// Boots Linux in a microVM.
#[derive(Debug, Parser)]
#[command(
    name = "ampoule",
    version,
    about = "Boot Linux in a microVM",
    long_about = "Boot Linux in a microVM: a sealed glass capsule for a guest. Needs read and write \
                  access to /dev/kvm, and nothing else.",
    after_help = MAIN_EXAMPLES,
    max_term_width = 100,
    disable_help_subcommand = true,
    arg_required_else_help = true,
    subcommand_value_name = "COMMAND"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What `ampoule` can be asked to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Boot a guest and wait for its end
    ///
    /// The guest's first serial port is the terminal. On a healthy run, all output is the guest's.
    #[command(after_help = RUN_EXAMPLES, max_term_width = 100)]
    Run(Box<RunArgs>),
    /// Show, pull and remove images
    ///
    /// Images are kept in $XDG_CACHE_HOME/ampoule, or in ~/.cache/ampoule, each as one file that all its VMs share.
    #[cfg(feature = "image")]
    #[command(max_term_width = 100)]
    Image(ImageArgs),
    /// Test VMs: boot what scenarios say, and look whether it does what they say
    ///
    /// A scenario is a TOML file: the machine, what runs in it, and steps to do and to see. docs/scenarios.md is its reference.
    #[cfg(feature = "test")]
    #[command(after_help = TEST_EXAMPLES, max_term_width = 100)]
    Test(Box<Deferred<TestArgs>>),
    /// Find the first of several kernels or images with which a scenario fails
    #[cfg(feature = "test")]
    #[command(after_help = BISECT_EXAMPLES, max_term_width = 100)]
    Bisect(Box<Deferred<BisectArgs>>),
    /// Tell what this host offers to guests, and what to do about the rest
    ///
    /// Tiny probe guests execute what Linux needs. Nothing on the host is changed. The exit status is 0 only where Linux
    /// guests will run, else 1.
    #[command(max_term_width = 100)]
    Doctor(DoctorArgs),
    /// One attempt at a scenario, for `ampoule test`
    #[cfg(feature = "test")]
    #[command(hide = true)]
    TestWorker(Deferred<WorkerArgs>),
    /// Print a completion script for a shell
    ///
    /// For instance: ampoule completions bash > ~/.local/share/bash-completion/completions/ampoule
    Completions {
        /// The shell
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
    /// Print a manual page
    ///
    /// For instance: ampoule man run | man -l -
    Man {
        /// The command to print the page of, instead of the page of ampoule itself
        #[arg(value_name = "COMMAND", value_parser = PossibleValuesParser::new(COMMANDS))]
        command: Option<String>,
    },
}

/// `ampoule doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `ampoule run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[cfg(feature = "image")]
    #[command(flatten)]
    pub(crate) command: CommandArgs,

    /// The kernel: an ELF vmlinux or a bzImage (vmlinuz)
    #[arg(long, value_name = "PATH", help_heading = GUEST)]
    kernel: Option<PathBuf>,
    /// An initial RAM disk
    #[arg(long, value_name = "PATH", help_heading = GUEST)]
    initrd: Option<PathBuf>,
    /// The whole kernel command line [default: console=ttyS0, and console=hvc0 after it with --console]
    #[arg(long, value_name = "TEXT", help_heading = GUEST)]
    cmdline: Option<String>,
    /// More words for the end of the kernel command line
    #[arg(long, value_name = "TEXT", help_heading = GUEST)]
    append: Option<String>,
    /// How the kernel is entered [default: auto]
    #[arg(long, value_name = "HOW", help_heading = GUEST, value_parser = entry_parser())]
    entry: Option<KernelEntry>,

    /// Number of virtual CPUs [default: 1]
    #[arg(long, value_name = "N", help_heading = MACHINE)]
    cpus: Option<u32>,
    /// Guest memory, 16M or more; units are powers of 1024 [default: 512M]
    #[arg(long, value_name = "SIZE", help_heading = MACHINE)]
    memory: Option<MemorySize>,
    /// Pages that back guest memory [default: transparent]
    #[arg(long, value_name = "PAGES", help_heading = MACHINE, value_parser = hugepages_parser())]
    hugepages: Option<HugePages>,
    /// Whether other processes can map guest memory [default: private]
    #[arg(long, value_name = "KIND", help_heading = MACHINE, value_parser = backing_parser())]
    memory_backing: Option<MemoryBacking>,

    /// A disk, as IMAGE with more keys after commas; several times for several disks
    ///
    /// The guest sees them as /dev/vda, /dev/vdb and so on, in this order. Without --initrd and without root= for the kernel it boots the
    /// distribution that is on the first: a root file system (ext4, xfs, btrfs, erofs, squashfs) on the whole disk or in a partition,
    /// by a kernel of this host's. Keys: path, as which the first word counts; readonly; size=SIZE creates an image where
    /// there is none; format=raw|qcow2, raw whatever it holds unless it says; backing=allow lets a qcow2 image name other files;
    /// engine=sync|io_uring, what moves the data, else the one that measures best; direct goes past the host's page cache;
    /// cache=writeback|writethrough|unsafe, when data is safe: after a flush, when written, some time; iops=N and bandwidth=SIZE, the
    /// most requests and bytes in a second, with iops-burst=N and bandwidth-burst=SIZE at once after a rest; serial=TEXT; id=NAME,
    /// for messages; queues=N; poll=20us, how long to watch a busy disk for its next request; lock=off to share a disk at one's own
    /// risk. A comma in a value is doubled. SIGUSR2 has all images' sizes looked at again, and the guest told of what has grown.
    #[arg(long, value_name = "IMAGE,…", help_heading = DEVICES, value_parser = disk_arg::parse)]
    disk: Vec<DiskConfig>,
    /// A network interface, as user, tap=NAME or fd=N with more keys after commas; several times for several interfaces
    ///
    /// With user, the program passt does in sockets of its own what the guest wants of the network: no root, no set-up; the guest
    /// gets the host's addresses by DHCP, and forward=8080:80 or forward=udp:5353:53, once or more, makes ports of the host lead
    /// into it. With a tap,
    /// frames go to a TAP interface of the host, which is created where there is none (by root, or with CAP_NET_ADMIN), or to one
    /// that another program opened as descriptor N (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR). Keys: tap; fd; mac=ADDRESS, else one that
    /// is always the same for an id or a tap; mtu=N, told to the guest; queues=N, pairs of queues; vhost=on, frames are moved by
    /// the host's kernel (/dev/vhost-net); pps=N and bandwidth=SIZE, the most
    /// frames and bytes in a second in each direction, with pps-burst=N and bandwidth-burst=SIZE at once after a rest; id=NAME,
    /// for messages.
    #[arg(long, value_name = "user|tap=NAME,…|none", help_heading = DEVICES, value_parser = NetArg::parse)]
    net: Vec<NetArg>,
    /// Files that the guest shares with this host (virtio-fs), as tag=NAME,path=DIR or tag=NAME,socket=PATH; several times for several
    ///
    /// The guest mounts them by their tag: mount -t virtiofs NAME /mnt. With path, the program virtiofsd is started for the directory;
    /// without root's rights, the user's files are root's in the guest, and only root can create any there. With socket, the back
    /// end of somebody's own (vhost-user) listens there. Keys: tag; path; socket; readonly, nothing below path can be written;
    /// id=NAME, for messages. Guest memory is shared with those programs, as with --memory-backing shared.
    #[arg(long, value_name = "tag=NAME,…", help_heading = DEVICES, value_parser = fs_arg::parse)]
    fs: Vec<FsConfig>,
    /// An entropy device, fed by the host's random number generator [default: on]
    #[arg(long, value_name = "on|off", help_heading = DEVICES, action = clap::ArgAction::Set, value_parser = on_off_parser())]
    rng: Option<bool>,
    /// A socket device (AF_VSOCK), as cid=N,socket=PATH
    ///
    /// Lets programs of host and guest talk without a network. The guest's context id is N, 3 or more. On the host, connect to
    /// the Unix socket PATH, write "CONNECT 52" and a newline, and read "OK" and a port: then you talk to port 52 of the guest.
    /// A guest that connects to port 1234 of the host (CID 2) reaches the program that listens on the Unix socket PATH_1234.
    #[arg(long, value_name = "cid=N,socket=PATH", help_heading = DEVICES, value_parser = vsock_arg::parse)]
    vsock: Option<VsockConfig>,

    /// Where the guest's first serial port leads: stdio, null, file:PATH, socket:PATH or pty [default: stdio, or null with --console
    /// stdio]
    ///
    /// A file takes 1 GiB at most. A socket is listened on, and serves one client at a time; output waits for the first. With pty, a
    /// line on standard error says where the new pseudo-terminal is.
    #[arg(long, value_name = "WHERE", help_heading = CONSOLE, value_parser = ValueParser::new(ConsoleConfig::from_str))]
    serial: Option<ConsoleConfig>,
    /// A virtio console (hvc0) besides, fast and with the terminal's size, and where it leads: as for --serial
    ///
    /// Kernels print there once they have the driver, which distributions have as a module (virtio_console).
    #[arg(long, value_name = "WHERE", help_heading = CONSOLE, value_parser = ValueParser::new(ConsoleConfig::from_str))]
    console: Option<ConsoleConfig>,

    /// What the guest can make this host spend, as KEY=VALUE,…
    ///
    /// Keys: memory=SIZE, for what programs of the host have yet to read of the guest's sockets (64M); console-buffer=SIZE, kept of
    /// each console for a slow reader (1M); console-file=SIZE, the most in a console's file (1G); log=SIZE, log lines about
    /// what its devices meet (1M); requests=N, under way at once for each disk with io_uring (128).
    #[arg(long, value_name = "KEY=VALUE,…", help_heading = LIFE, value_parser = limits_arg::parse)]
    limits: Option<VmLimits>,
    /// What follows when the guest resets itself [default: exit]
    #[arg(long, value_name = "WHAT", help_heading = LIFE, value_parser = on_reboot_parser())]
    on_reboot: Option<OnReboot>,
    /// Time that a guest has to power off after SIGTERM or SIGINT, such as 500ms or 5s [default: 5s]
    #[arg(long, value_name = "TIME", help_heading = LIFE)]
    grace: Option<Span>,
    /// Stop the guest after this time, such as 60s or 5m, and exit with 124
    #[arg(long, value_name = "TIME", help_heading = LIFE)]
    timeout: Option<Span>,

    /// Write when things happened to a JSON file, or with - as a table to standard output
    #[arg(long, value_name = "FILE", help_heading = INSIGHT)]
    timeline: Option<PathBuf>,
    /// Write what was counted (requests, bytes, errors, exits) as JSON to a file at the end and on SIGUSR1, or with - to standard
    /// output at the end
    #[arg(long, value_name = "FILE", help_heading = INSIGHT)]
    metrics: Option<PathBuf>,
    /// Write messages to a file, with their times, instead of to standard error
    ///
    /// The file is created or emptied. It takes 16 MiB, so that no guest can fill a disk with it.
    #[arg(long, value_name = "FILE", help_heading = INSIGHT)]
    log_file: Option<PathBuf>,
    /// The least grave messages to print: off, error, warn, info, debug or trace [default: warn]
    #[arg(long, value_name = "LEVEL", help_heading = INSIGHT, hide_possible_values = true, value_parser = log_level_parser())]
    log_level: Option<LevelFilter>,

    /// Read options from a TOML file, by the names they have here: kernel = "vmlinuz"
    ///
    /// An option that is given on the command line counts more than the file's. A relative path in the file starts at
    /// the file's own directory.
    #[arg(long, value_name = "FILE", help_heading = CONFIGURATION)]
    pub(crate) config: Option<PathBuf>,
    /// Print the effective configuration as such a file, and do not run
    #[arg(long, help_heading = CONFIGURATION)]
    pub(crate) print_config: bool,
}

/// Everything that the flags of `ampoule run` and its file can say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunConfig {
    pub(crate) vm: VmConfig,
    /// Where the timeline goes; `-` is the table on standard output.
    pub(crate) timeline: Option<PathBuf>,
    /// Where the counts go; `-` is standard output.
    pub(crate) metrics: Option<PathBuf>,
    pub(crate) log_file: Option<PathBuf>,
    pub(crate) log_level: LevelFilter,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            vm: VmConfig::default(),
            timeline: None,
            metrics: None,
            log_file: None,
            log_level: LevelFilter::Warn,
        }
    }
}

impl RunArgs {
    /// Whether they say something about networks, which may be that there is to be none.
    #[cfg(feature = "image")]
    pub(crate) fn chooses_network(&self) -> bool {
        !self.net.is_empty()
    }

    /// Puts what was given on the command line over `config`.
    pub(crate) fn apply(self, config: &mut RunConfig) {
        fn set<T>(field: &mut T, given: Option<T>) {
            if let Some(given) = given {
                *field = given;
            }
        }
        let RunConfig {
            vm,
            timeline,
            metrics,
            log_file,
            log_level,
        } = config;
        vm.kernel = self.kernel.or(vm.kernel.take());
        vm.initrd = self.initrd.or(vm.initrd.take());
        vm.cmdline = self.cmdline.or(vm.cmdline.take());
        vm.append = self.append.or(vm.append.take());
        set(&mut vm.entry, self.entry);
        set(&mut vm.cpus, self.cpus);
        set(&mut vm.memory, self.memory);
        set(&mut vm.hugepages, self.hugepages);
        set(&mut vm.memory_backing, self.memory_backing);
        vm.serial = self.serial.or(vm.serial.take());
        vm.console = self.console.or(vm.console.take());
        set(&mut vm.on_reboot, self.on_reboot);
        set(&mut vm.grace, self.grace);
        vm.timeout = self.timeout.or(vm.timeout.take());
        set(&mut vm.rng, self.rng);
        set(&mut vm.limits, self.limits);
        vm.vsock = self.vsock.or(vm.vsock.take());
        if !self.disk.is_empty() {
            vm.disk = self.disk;
        }
        if !self.net.is_empty() {
            let interfaces = self.net.into_iter().filter_map(NetArg::interface);
            vm.net = interfaces.collect();
        }
        if !self.fs.is_empty() {
            vm.fs = self.fs;
        }
        *timeline = self.timeline.or(timeline.take());
        *metrics = self.metrics.or(metrics.take());
        *log_file = self.log_file.or(log_file.take());
        set(log_level, self.log_level);
    }
}

/// Reads an enumeration of the library by the names that it has in files.
fn by_name<T: for<'de> Deserialize<'de>>(name: &str) -> Result<T, ValueError> {
    T::deserialize(name.into_deserializer())
}

/// The names with what they mean.
fn named<T>(names: &'static [(&'static str, &'static str)]) -> ValueParser
where
    T: for<'de> Deserialize<'de> + Clone + Send + Sync + 'static,
{
    let values = names
        .iter()
        .map(|(name, help)| PossibleValue::new(*name).help(*help));
    PossibleValuesParser::new(values)
        .try_map(|name| by_name::<T>(&name))
        .into()
}

fn entry_parser() -> ValueParser {
    named::<KernelEntry>(&[
        (
            "auto",
            "A bzImage is decompressed on the host; PVH where the ELF has the note, else linux64",
        ),
        ("pvh", "An ELF by its PVH entry point"),
        ("linux64", "An ELF by the 64-bit Linux boot protocol"),
        (
            "bzimage",
            "A bzImage as it is: it decompresses itself in the guest",
        ),
    ])
}

fn hugepages_parser() -> ValueParser {
    named::<HugePages>(&[
        ("off", "Pages of 4 KiB only"),
        (
            "transparent",
            "Transparent huge pages, as the host finds them",
        ),
        ("2M", "Pages of 2 MiB from the host's pool"),
        ("1G", "Pages of 1 GiB from the host's pool"),
    ])
}

fn backing_parser() -> ValueParser {
    named::<MemoryBacking>(&[
        ("private", "Anonymous memory of this process"),
        ("shared", "A memfd, which other processes can map"),
    ])
}

fn on_off_parser() -> ValueParser {
    PossibleValuesParser::new(["on", "off"])
        .map(|value| value == "on")
        .into()
}

fn on_reboot_parser() -> ValueParser {
    named::<OnReboot>(&[
        ("exit", "The run ends with exit status 0"),
        ("restart", "The guest boots again, in the same process"),
    ])
}

/// The names of the levels, the gravest first.
pub(crate) const LOG_LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

fn log_level_parser() -> ValueParser {
    PossibleValuesParser::new(LOG_LEVELS)
        .try_map(|name| LevelFilter::from_str(&name))
        .into()
}

#[cfg(test)]
mod tests {
    use ampoule_vmm::config::NetConfig;

    use super::*;
    use clap::CommandFactory;

    fn parse(args: &[&str]) -> Result<RunConfig, clap::Error> {
        let cli = Cli::try_parse_from(["ampoule", "run"].iter().chain(args))?;
        let Command::Run(args) = cli.command else {
            panic!("not run");
        };
        let mut config = RunConfig::default();
        args.apply(&mut config);
        Ok(config)
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn nothing_given_is_the_default() {
        assert_eq!(parse(&[]).unwrap(), RunConfig::default());
    }

    #[test]
    fn every_flag_reaches_its_field() {
        let args = "--kernel k --initrd i --cmdline c --append a --entry pvh --cpus 3 --memory 2G --hugepages 2M \
                    --memory-backing shared --serial file:log --console pty --on-reboot restart --grace 1500ms --timeout 2m \
                    --timeline t.json --metrics m.json --log-file l --log-level debug --rng off --disk path=a.img --disk path=b.img,readonly --net tap=t --net fd=3 --fs tag=a,path=b \
                    --vsock cid=7,socket=v.sock --limits log=2M,requests=8";
        let args: Vec<_> = args.split_whitespace().collect();
        let expected = RunConfig {
            vm: VmConfig {
                kernel: Some("k".into()),
                initrd: Some("i".into()),
                cmdline: Some("c".into()),
                append: Some("a".into()),
                entry: by_name("pvh").unwrap(),
                cpus: 3,
                memory: MemorySize::mib(2048),
                hugepages: HugePages::Huge2M,
                memory_backing: MemoryBacking::Shared,
                serial: Some(ConsoleConfig::File("log".into())),
                console: Some(ConsoleConfig::Pty),
                on_reboot: OnReboot::Restart,
                grace: "1500ms".parse().unwrap(),
                timeout: Some("2m".parse().unwrap()),
                rng: false,
                disk: vec![
                    DiskConfig::new("a.img"),
                    DiskConfig {
                        readonly: true,
                        ..DiskConfig::new("b.img")
                    },
                ],
                net: vec![NetConfig::tap("t"), NetConfig::fd(3)],
                fs: vec![FsConfig::path("a", "b")],
                vsock: Some(VsockConfig {
                    cid: 7,
                    socket: Some("v.sock".into()),
                }),
                limits: VmLimits {
                    log: MemorySize::mib(2),
                    requests: 8,
                    ..VmLimits::default()
                },
            },
            timeline: Some("t.json".into()),
            metrics: Some("m.json".into()),
            log_file: Some("l".into()),
            log_level: LevelFilter::Debug,
        };
        assert_eq!(parse(&args).unwrap(), expected);
    }

    #[test]
    fn a_value_that_is_none_is_refused() {
        for args in [
            ["--memory", "12X"],
            ["--cpus", "many"],
            ["--grace", "5"],
            ["--serial", "tty"],
            ["--console", "hvc0"],
            ["--hugepages", "4K"],
            ["--entry", "bios"],
            ["--on-reboot", "sleep"],
            ["--log-level", "loud"],
            ["--rng", "maybe"],
            ["--disk", "path="],
            ["--net", "tap0"],
            ["--vsock", "3"],
            ["--fs", "src"],
        ] {
            assert!(parse(&args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn an_option_given_twice_is_refused() {
        let err = parse(&["--cpus", "1", "--cpus", "2"]).unwrap_err();
        assert_eq!(err.kind(), clap::error::ErrorKind::ArgumentConflict);
    }

    /// Every value that help offers is one that the library knows.
    #[test]
    fn offered_values_are_accepted() {
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        let mut offered = 0;
        for arg in run.get_arguments() {
            for value in arg.get_possible_values() {
                let Some(flag) = arg
                    .get_long()
                    .filter(|_| arg.get_num_args().is_none_or(|n| n.takes_values()))
                else {
                    continue;
                };
                if arg.get_action().takes_values() {
                    let args = [&format!("--{flag}"), value.get_name()];
                    assert!(parse(&args).is_ok(), "{args:?}");
                    offered += 1;
                }
            }
        }
        assert!(offered > 15, "{offered}");
    }
}
