//! The flags of a command in a VM, as docker(1) has them.

use std::ffi::OsString;
use std::path::PathBuf;

use ampoule_image::copy::{CopyInto, CopyOutOf};
use ampoule_vmm::config::{Forward, MemorySize};
use clap::Args;

use super::copy;
use super::overlay::{self, OverlayArg};
use super::registry::{PullPolicy, REGISTRY, RegistryArgs};
use super::volume::Volume;

const COMMAND: &str = "Command (with IMAGE)";

/// What to run from an image, or as it is, and how. Nothing of it without either.
#[derive(Debug, Default, Args)]
pub(crate) struct CommandArgs {
    /// Run a command from this image: a directory, a container image's archive or layout, a file system image, or a registry's
    ///
    /// A directory with a root file system; what `docker save`, `podman save` or skopeo write (Docker and OCI archives, OCI layouts);
    /// a root file system in a tar archive; an ext4, squashfs or erofs image. What is no file or directory, and does not look
    /// like one (/…, ./…, ../…, ….tar and so on), is an image's name as docker has it: debian:12, quay.io/a/b@sha256:…. It is never
    /// written to: what the command writes is gone with the VM. Images become a file once, in $XDG_CACHE_HOME/ampoule;
    /// `ampoule image` shows and removes them.
    #[arg(value_name = "IMAGE")]
    pub(crate) image: Option<PathBuf>,
    /// Run a command over this directory of the host, live, instead of from an image: --root /
    ///
    /// Nothing is ever written to it: what the command writes is kept in the guest's memory, or refused with --read-only. /dev, /proc,
    /// /sys, /run and /tmp are the guest's own.
    #[arg(long, value_name = "DIR", help_heading = COMMAND, requires = "command")]
    pub(crate) root: Option<PathBuf>,
    /// The command and its arguments, instead of those that the image names
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,

    /// Keep the command's standard input connected
    #[arg(short, long, help_heading = COMMAND)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long, help_heading = COMMAND)]
    pub(crate) tty: bool,
    /// A variable of its environment; without =VALUE, as it is here
    #[arg(short, long, value_name = "NAME[=VALUE]", help_heading = COMMAND)]
    pub(crate) env: Vec<OsString>,
    /// Where it starts [default: the image's]
    #[arg(short, long, value_name = "DIR", help_heading = COMMAND)]
    pub(crate) workdir: Option<OsString>,
    /// Whose it is, by name or number [default: the image's, or root's]
    #[arg(short, long, value_name = "USER[:GROUP]", help_heading = COMMAND)]
    pub(crate) user: Option<OsString>,
    /// What is executed, instead of the image's entrypoint
    #[arg(long, value_name = "PROGRAM", help_heading = COMMAND)]
    pub(crate) entrypoint: Option<OsString>,
    /// The guest's name [default: ampoule]
    #[arg(long, value_name = "NAME", help_heading = COMMAND)]
    pub(crate) hostname: Option<OsString>,
    /// Have the command write nothing
    #[arg(long, help_heading = COMMAND)]
    pub(crate) read_only: bool,
    /// Share a directory of this host with the command, live: .:/src
    ///
    /// Both sides see at once what the other writes. With :ro, nothing is written there. It needs virtiofsd (package virtiofsd;
    /// qemu-system-common in Debian 12). Without root's rights, the user's files are root's in the guest, and only root can create any.
    #[arg(short, long, value_name = "HOST:GUEST[:ro]", help_heading = COMMAND, value_parser = Volume::parse)]
    pub(crate) volume: Vec<Volume>,
    /// Lead a port of this host into the guest: 8080:80
    #[arg(short, long, value_name = "[ADDRESS:]PORT:GUESTPORT[/udp]", help_heading = COMMAND)]
    pub(crate) publish: Vec<Forward>,
    /// Which image of an archive with several: a tag, or the whole name
    #[arg(long, value_name = "NAME", help_heading = COMMAND)]
    pub(crate) image_name: Option<String>,
    /// When a registry is asked for an image
    #[arg(long, value_name = "WHEN", help_heading = REGISTRY, value_enum, default_value_t)]
    pub(crate) pull: PullPolicy,
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
    /// The most that an image may unpack to [default: 16G]
    #[arg(long, value_name = "SIZE", help_heading = COMMAND)]
    pub(crate) max_image_size: Option<MemorySize>,
    /// Run it without an image: this static program is all that there is besides the init; several times for several files
    ///
    /// It is /NAME in the guest unless a path is given, and remains executable. Its file system is in memory.
    #[arg(long, value_name = "PROGRAM[:GUESTPATH]", help_heading = COMMAND, value_parser = copy::file_parser())]
    pub(crate) file: Vec<CopyInto>,
    /// Copy a file or folder into the guest before the command starts; several times for several
    ///
    /// Into GUEST where that is a folder, else as GUEST; folders that it is in are made. Of HOST/. what is in it is copied. Modes,
    /// times, symbolic and hard links are kept; the owner is root.
    #[arg(long, value_name = "HOST:GUEST", help_heading = COMMAND, value_parser = copy::into_parser())]
    pub(crate) copy: Vec<CopyInto>,
    /// Copy a file or folder out of the guest when the command has ended, however it did; several times for several
    ///
    /// Into HOST where that is a folder, else as HOST. Of GUEST/. what is in it is copied. The files are yours; set-user-ID bits and
    /// devices stay behind. What cannot be copied is told, and makes a status of 0 a 125; what is complete by then stays.
    #[arg(long, value_name = "GUEST:HOST", help_heading = COMMAND, value_parser = copy::out_parser())]
    pub(crate) copy_out: Vec<CopyOutOf>,
    /// The most that --copy-out writes [default: 1G]
    #[arg(long, value_name = "SIZE", help_heading = COMMAND, requires = "copy_out")]
    pub(crate) max_copy_size: Option<MemorySize>,
    /// Have what the command writes on a disk instead of in memory: one that ends with the run, or one that is kept in a file
    ///
    /// The disk is a sparse file with an ext4 file system, which mkfs.ext4 makes. With path=FILE it is made where there is none, and
    /// is there again in the next run of the same image; size counts where it is made (10G if it does not say).
    #[arg(long, value_name = "size=SIZE|path=FILE[,size=SIZE]", help_heading = COMMAND, value_parser = overlay::parse)]
    pub(crate) overlay: Option<OverlayArg>,
    /// Leave nothing behind, which is so in any case
    #[arg(long, help_heading = COMMAND)]
    pub(crate) rm: bool,
    /// Say nothing about what takes time or is missing
    #[arg(short, long, help_heading = COMMAND)]
    pub(crate) quiet: bool,
}
