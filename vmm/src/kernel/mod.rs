//! Kernel images: from a file on the host to a kernel in guest memory, ready to be entered.
//!
//! The story, in order: a file is *identified* by its content (`image`), never by its name. An ELF is *placed* segment by
//! segment (`elf`). A bzImage is taken apart (`bzimage`): the ELF packed inside is *decompressed* on the host
//! (`decompress`) straight into its place, which spares the guest the work; or, as a fall-back and on request, the bzImage is
//! entered as it is and unpacks itself in the guest. The initrd goes on top ([`initrd`]).
//!
//! A kernel file is hostile input. Each header is read once into host memory and only that copy is trusted; all arithmetic on
//! its fields is checked; whatever is allocated is bounded before its content is believed; and nothing is written to a guest
//! address that is not RAM.
//!
//! Specifications: System V ABI (ELF-64), "The Linux/x86 Boot Protocol", the PVH direct boot ABI of Xen.
//! Thread: the one that builds the VM, before any vCPU runs.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::Write;
use std::path::Path;

use linux_loader::bootparam::setup_header;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use crate::memory::GuestRam;

mod bzimage;
mod cache;
mod cmdline;
mod decompress;
#[cfg_attr(
    not(feature = "decompress"),
    allow(dead_code, reason = "what decoders need of it")
)]
mod elf;
mod error;
mod image;
pub mod initrd;
#[cfg_attr(
    not(feature = "decompress"),
    allow(dead_code, reason = "what decoders need of it")
)]
mod source;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use bzimage::BzimageError;
pub use cmdline::check_cmdline;
pub use decompress::{Compression, DecompressError};
pub use elf::ElfError;
pub use error::{FileRole, KernelError};
pub use image::Content;
pub use initrd::InitrdError;
pub use source::CopyError;

use bzimage::Bzimage;
use cache::Place;
use elf::{ElfPlan, LoadedElf};
use image::Identity;
use source::ImageSource;

/// The lowest address a kernel may occupy: below lie the boot data (zero page, command line, page tables, ACPI tables).
const LOWEST_KERNEL: u64 = 1 << 20;

/// How the kernel is to be entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum KernelEntry {
    /// PVH where the ELF has the note, else the 64-bit Linux protocol. A bzImage is decompressed on the host where its
    /// format is known, else it decompresses itself in the guest.
    #[default]
    Auto,
    /// The ELF's PVH entry point; an error where there is none. A bzImage is decompressed on the host.
    Pvh,
    /// The ELF's entry point by the 64-bit Linux protocol. A bzImage is decompressed on the host.
    Linux64,
    /// The bzImage itself, by the 64-bit Linux protocol; it decompresses in the guest.
    Bzimage,
}

/// Where, and in which state of the CPU, a loaded kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelEntryPoint {
    /// 32-bit protected mode without paging, by the PVH ABI.
    Pvh {
        /// Guest physical address; below 4 GiB.
        entry: u64,
    },
    /// Long mode with identity-mapped memory, by the 64-bit Linux protocol.
    Linux64 {
        /// Guest physical address.
        entry: u64,
    },
}

impl KernelEntryPoint {
    /// The guest physical address of the first instruction.
    pub fn address(&self) -> u64 {
        match *self {
            Self::Pvh { entry } | Self::Linux64 { entry } => entry,
        }
    }
}

impl fmt::Display for KernelEntryPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pvh { .. } => "PVH",
            Self::Linux64 { .. } => "the 64-bit Linux protocol",
        })
    }
}

/// The path from the file to the kernel in memory, for logs and timelines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootPath {
    /// An ELF file, placed as it is.
    Elf {
        /// How it is entered.
        entry: KernelEntryPoint,
    },
    /// The ELF inside a bzImage, decompressed on the host.
    Unpacked {
        /// How it was packed.
        compression: Compression,
        /// How it is entered.
        entry: KernelEntryPoint,
    },
    /// A bzImage, placed as it is.
    InGuest,
}

impl fmt::Display for BootPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elf { entry } => write!(f, "ELF, entered by {entry}"),
            Self::Unpacked { compression, entry } => {
                write!(
                    f,
                    "bzImage, {compression}, decompressed on the host, entered by {entry}"
                )
            }
            Self::InGuest => f.write_str("bzImage, decompresses itself in the guest"),
        }
    }
}

/// A kernel in guest memory.
#[derive(Clone, Debug)]
pub struct LoadedKernel {
    /// Where its first instruction is.
    pub entry: KernelEntryPoint,
    /// The setup header of the bzImage that it came from. Only the fields that the file's protocol version has are set.
    pub setup_header: Option<Box<setup_header>>,
    /// The first guest physical address above all that the kernel occupies before it manages memory by itself.
    pub end: u64,
    /// How it got there.
    pub path_taken: BootPath,
}

/// Loads the kernel at `path` into `ram`, to be entered as `mode` says.
///
/// `ram` must be fresh, that is all zero: what a kernel wants to be zero is not written. After an error it may hold parts of
/// the kernel, and is not fresh.
///
/// # Errors
/// [`KernelError`] names the file, what is wrong with it, and in [`KernelError::remedy`] what to do about it.
pub fn load(path: &Path, mode: KernelEntry, ram: &GuestRam) -> Result<LoadedKernel, KernelError> {
    let file = source::open(FileRole::Kernel, path)?;
    load_from_source(&file, path, mode, ram, None)
}

/// As [`load`], with a folder of this user's, made where it is missing, for what bzImages unpack to: one that has been unpacked
/// since the host's start is not unpacked again. The kernels used last are kept, four of them.
///
/// # Errors
/// As [`load`]. A folder that cannot be used is no error.
pub fn load_cached(
    path: &Path,
    mode: KernelEntry,
    ram: &GuestRam,
    folder: &Path,
) -> Result<LoadedKernel, KernelError> {
    let file = source::open(FileRole::Kernel, path)?;
    load_from_source(&file, path, mode, ram, Some((folder, file.metadata())))
}

/// As [`load`], of an open file. `path` is only for messages.
///
/// # Errors
/// As [`load`].
pub fn load_from(
    file: File,
    path: &Path,
    mode: KernelEntry,
    ram: &GuestRam,
) -> Result<LoadedKernel, KernelError> {
    let file = source::regular(FileRole::Kernel, path, file)?;
    load_from_source(&file, path, mode, ram, None)
}

/// As [`load`], of an image in host memory. `path` is only for messages.
///
/// # Errors
/// As [`load`].
pub fn load_bytes(
    bytes: &[u8],
    path: &Path,
    mode: KernelEntry,
    ram: &GuestRam,
) -> Result<LoadedKernel, KernelError> {
    load_from_source(bytes, path, mode, ram, None)
}

/// The folder of unpacked kernels, and what tells this bzImage from others.
type Cache<'a> = (&'a Path, &'a Metadata);

fn load_from_source<S: ImageSource + ?Sized>(
    file: &S,
    path: &Path,
    mode: KernelEntry,
    ram: &GuestRam,
    cache: Option<Cache<'_>>,
) -> Result<LoadedKernel, KernelError> {
    let identity = image::identify(file).map_err(KernelError::reading(FileRole::Kernel, path))?;
    match identity {
        Identity::Empty => Err(KernelError::Empty {
            role: FileRole::Kernel,
            path: path.into(),
        }),
        Identity::Other(content) => Err(KernelError::NotAKernel {
            path: path.into(),
            content,
        }),
        Identity::Elf if mode == KernelEntry::Bzimage => {
            Err(KernelError::NotABzimage { path: path.into() })
        }
        Identity::Elf => load_elf(file, mode, ram).map_err(KernelError::elf(path)),
        Identity::Bzimage => load_bzimage(file, path, mode, ram, cache),
    }
}

fn load_elf<S: ImageSource + ?Sized>(
    file: &S,
    mode: KernelEntry,
    ram: &GuestRam,
) -> Result<LoadedKernel, ElfError> {
    let elf = ElfPlan::read(file, ram)?.place(file, ram)?;
    let entry = elf.entry(mode)?;
    Ok(LoadedKernel {
        entry,
        setup_header: None,
        end: elf.end,
        path_taken: BootPath::Elf { entry },
    })
}

fn load_bzimage<S: ImageSource + ?Sized>(
    file: &S,
    path: &Path,
    mode: KernelEntry,
    ram: &GuestRam,
    cache: Option<Cache<'_>>,
) -> Result<LoadedKernel, KernelError> {
    let image = Bzimage::read(file).map_err(KernelError::bzimage(path))?;
    if mode == KernelEntry::Bzimage {
        return place_bzimage(&image, file, ram).map_err(KernelError::bzimage(path));
    }
    let place = cache.and_then(|(folder, metadata)| Place::new(folder, metadata));
    match unpack(&image, file, mode, ram, place.as_ref()) {
        // Only where not a byte of it has been placed, so that the RAM is still fresh.
        Err(UnpackError::Payload(reason))
            if mode == KernelEntry::Auto && reason.host_cannot_read() =>
        {
            log::warn!(
                "kernel {}: {reason}: it decompresses itself in the guest",
                path.display()
            );
            place_bzimage(&image, file, ram).map_err(KernelError::bzimage(path))
        }
        Err(UnpackError::Payload(source)) => Err(KernelError::Payload {
            path: path.into(),
            source,
        }),
        Err(UnpackError::Elf(source)) => Err(KernelError::PackedElf {
            path: path.into(),
            source,
        }),
        Ok((elf, compression, entry)) => Ok(LoadedKernel {
            entry,
            setup_header: Some(Box::new(image.header)),
            end: elf.end,
            path_taken: BootPath::Unpacked { compression, entry },
        }),
    }
}

/// Why the kernel inside a bzImage could not be placed.
enum UnpackError {
    Payload(DecompressError),
    Elf(ElfError),
}

fn unpack<S: ImageSource + ?Sized>(
    image: &Bzimage,
    file: &S,
    mode: KernelEntry,
    ram: &GuestRam,
    place: Option<&Place<'_>>,
) -> Result<(LoadedElf, Compression, KernelEntryPoint), UnpackError> {
    if let Some(kept) = place.and_then(Place::find)
        && let Ok(compression) = decompress::format(file, image.payload())
        // One that is damaged is as good as none, as long as nothing of it is in memory.
        && let Ok(plan) = ElfPlan::read(&kept, ram)
    {
        let elf = plan.place(&kept, ram).map_err(UnpackError::Elf)?;
        let entry = elf.entry(mode).map_err(UnpackError::Elf)?;
        return Ok((elf, compression, entry));
    }
    let mut placer = elf::StreamPlacer::new(ram);
    let mut output = Tee {
        placer: &mut placer,
        copy: place.and_then(Place::begin),
    };
    let compression =
        decompress::stream(file, image.payload(), image.unpacked_limit(), &mut output).map_err(
            |err| match err {
                decompress::StreamError::Input(err) => UnpackError::Payload(err),
                decompress::StreamError::Output(ElfError::NotElf) => {
                    UnpackError::Payload(DecompressError::NotElf)
                }
                decompress::StreamError::Output(err) => UnpackError::Elf(err),
            },
        )?;
    let copy = output.copy;
    let elf = match placer.finish() {
        Err(ElfError::NotElf) => return Err(UnpackError::Payload(DecompressError::NotElf)),
        other => other.map_err(UnpackError::Elf)?,
    };
    let entry = elf.entry(mode).map_err(UnpackError::Elf)?;
    if let (Some(place), Some(copy)) = (place, copy) {
        place.keep(copy);
    }
    Ok((elf, compression, entry))
}

/// Where an unpacked kernel goes: to its place in memory, and to a file for the next time.
struct Tee<'a, 'b> {
    placer: &'a mut elf::StreamPlacer<'b>,
    copy: Option<NamedTempFile>,
}

impl Tee<'_, '_> {
    #[cfg_attr(
        not(feature = "decompress"),
        allow(dead_code, reason = "only decoders have an output")
    )]
    fn push(&mut self, bytes: &[u8]) -> Result<(), ElfError> {
        if let Some(copy) = &mut self.copy
            && let Err(err) = copy.write_all(bytes)
        {
            log::debug!("cannot keep an unpacked kernel: {err}");
            self.copy = None;
        }
        self.placer.push(bytes)
    }
}

fn place_bzimage<S: ImageSource + ?Sized>(
    image: &Bzimage,
    file: &S,
    ram: &GuestRam,
) -> Result<LoadedKernel, BzimageError> {
    let placed = image.place(file, ram)?;
    Ok(LoadedKernel {
        entry: KernelEntryPoint::Linux64 {
            entry: placed.entry,
        },
        setup_header: Some(Box::new(image.header)),
        end: placed.end,
        path_taken: BootPath::InGuest,
    })
}
