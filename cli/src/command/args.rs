//! The flags of a command in a VM, as docker(1) has them.

use std::ffi::OsString;
use std::path::PathBuf;

use ampoule_vmm::config::{Forward, MemorySize};
use clap::Args;

const COMMAND: &str = "Command (with IMAGE)";

/// What to run from an image, and how. Nothing of it without one.
#[derive(Debug, Default, Args)]
pub(crate) struct CommandArgs {
    /// Run a command from this image: a directory, a container image's archive or layout, or a file system image
    ///
    /// A directory with a root file system; what `docker save`, `podman save` or skopeo write (Docker and OCI archives, OCI layouts);
    /// a root file system in a tar archive; an ext4, squashfs or erofs image. It is never written to: what the command writes
    /// is gone with the VM. Images become a file once, in $XDG_CACHE_HOME/ampoule.
    #[arg(value_name = "IMAGE")]
    pub(crate) image: Option<PathBuf>,
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
    /// Lead a port of this host into the guest: 8080:80
    #[arg(short, long, value_name = "[ADDRESS:]PORT:GUESTPORT[/udp]", help_heading = COMMAND)]
    pub(crate) publish: Vec<Forward>,
    /// Which image of an archive with several: a tag, or the whole name
    #[arg(long, value_name = "NAME", help_heading = COMMAND)]
    pub(crate) image_name: Option<String>,
    /// The most that an image may unpack to [default: 16G]
    #[arg(long, value_name = "SIZE", help_heading = COMMAND)]
    pub(crate) max_image_size: Option<MemorySize>,
    /// Say nothing about what takes time or is missing
    #[arg(short, long, help_heading = COMMAND)]
    pub(crate) quiet: bool,
}
