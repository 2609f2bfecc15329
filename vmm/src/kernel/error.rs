//! Why a kernel or an initrd cannot be booted.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::bzimage::BzimageError;
use super::decompress::DecompressError;
use super::elf::ElfError;
use super::image::Content;
use super::initrd::InitrdError;

/// Which of a guest's files is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileRole {
    /// The kernel image.
    Kernel,
    /// The initial RAM disk.
    Initrd,
}

impl fmt::Display for FileRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
        })
    }
}

/// Why a kernel or an initrd cannot be booted. Each variant names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The file cannot be opened.
    #[error("cannot open {role} \"{}\"", path.display())]
    Open {
        /// Which file.
        role: FileRole,
        /// Its path.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The file cannot be read.
    #[error("cannot read {role} \"{}\"", path.display())]
    Read {
        /// Which file.
        role: FileRole,
        /// Its path.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Something else than a regular file.
    #[error("{role} \"{}\" is a {kind}, not a file", path.display())]
    NotAFile {
        /// Which file.
        role: FileRole,
        /// Its path.
        path: PathBuf,
        /// "directory", "pipe", "socket" or "device".
        kind: &'static str,
    },
    /// The file has no content.
    #[error("{role} \"{}\" is empty", path.display())]
    Empty {
        /// Which file.
        role: FileRole,
        /// Its path.
        path: PathBuf,
    },
    /// Neither an ELF file nor a bzImage.
    #[error("kernel \"{}\" is not an ELF file or bzImage but {content}", path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        content: Content,
    },
    /// The in-guest entry was asked for, of an ELF file.
    #[error("kernel \"{}\" is an ELF file, not a bzImage", path.display())]
    NotABzimage {
        /// The file.
        path: PathBuf,
    },
    /// An ELF file that cannot be a kernel here.
    #[error("cannot load kernel \"{}\" as ELF", path.display())]
    Elf {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ElfError,
    },
    /// A bzImage that cannot be a kernel here.
    #[error("cannot load kernel \"{}\" as a bzImage", path.display())]
    Bzimage {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: BzimageError,
    },
    /// The kernel inside a bzImage cannot be decompressed.
    #[error("cannot decompress the kernel in \"{}\"", path.display())]
    Payload {
        /// The bzImage.
        path: PathBuf,
        /// Why.
        #[source]
        source: DecompressError,
    },
    /// The kernel inside a bzImage cannot be a kernel here.
    #[error("cannot load the ELF kernel in bzImage \"{}\"", path.display())]
    PackedElf {
        /// The bzImage.
        path: PathBuf,
        /// Why.
        #[source]
        source: ElfError,
    },
    /// The command line is longer than this kernel takes.
    #[error("command line of {length} bytes is too long for kernel \"{}\", which takes {max}", path.display())]
    CmdlineTooLong {
        /// The kernel.
        path: PathBuf,
        /// Length of the command line in bytes.
        length: usize,
        /// What the kernel takes, in bytes.
        max: u32,
    },
    /// The initrd cannot be placed.
    #[error("cannot load initrd \"{}\"", path.display())]
    Initrd {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: InitrdError,
    },
}

impl KernelError {
    /// What a person can do about it, in the terms of the command line.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Open { source, path, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => Some(format!(
                    "some distributions let only root read kernels: copy it, or: sudo chmod a+r {}",
                    path.display()
                )),
                _ => None,
            },
            Self::NotAFile {
                kind: "directory",
                role: FileRole::Kernel,
                path,
            } => Some(format!("name a file in it: ls {}/vmlinu*", path.display())),
            Self::NotAFile { .. } => Some("copy it into a regular file first".into()),
            Self::NotAKernel { path, content } => content.remedy(path),
            Self::NotABzimage { .. } => {
                Some("leave --entry out: an ELF kernel needs no decompression".into())
            }
            Self::Elf { source, .. } => source.remedy(),
            Self::PackedElf { source, .. } => source.remedy().or_else(|| {
                Some("--entry bzimage lets the kernel decompress itself in the guest".into())
            }),
            Self::Bzimage { source, .. } => source.remedy(),
            Self::Payload { source, .. } => source.remedy(),
            Self::Initrd { source, .. } => source.remedy(),
            Self::CmdlineTooLong { .. } => {
                Some("shorten --cmdline and --append; an initrd can hold configuration".into())
            }
            Self::Read { .. } | Self::Empty { .. } => None,
        }
    }

    pub(super) fn reading(role: FileRole, path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        move |source| Self::Read {
            role,
            path: path.into(),
            source,
        }
    }

    pub(super) fn elf(path: &Path) -> impl Fn(ElfError) -> Self + '_ {
        move |source| Self::Elf {
            path: path.into(),
            source,
        }
    }

    pub(super) fn bzimage(path: &Path) -> impl Fn(BzimageError) -> Self + '_ {
        move |source| Self::Bzimage {
            path: path.into(),
            source,
        }
    }
}

/// The remedy for a guest with too little RAM: enough to hold what ends at `end` and a little to run in.
pub(super) fn more_memory(end: u64) -> String {
    const STEP: u64 = 32 << 20;
    let enough = end.saturating_add(STEP).div_ceil(STEP).saturating_mul(STEP) >> 20;
    format!("use --memory {enough}M or more")
}

/// A size in MiB, rounded up, for messages.
pub(super) fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}
