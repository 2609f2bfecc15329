//! bzImages: "The Linux/x86 Boot Protocol" (Documentation/arch/x86/boot.rst), 64-bit boot protocol.
//!
//! The file is a real-mode part of `setup_sects` sectors behind the boot sector, which no VM needs, then the protected-mode
//! part: a small program that unpacks the kernel proper, and that kernel, packed.

use std::io;

use linux_loader::bootparam::{XLF_KERNEL_64, setup_header};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::GuestRam;
use super::LOWEST_KERNEL;
use super::elf::{is_ram, ram_size};
use super::error::{mib, more_memory};
use super::source::{CopyError, ImageSource};

/// Where the setup header begins in the file.
const HEADER_OFFSET: usize = 0x1f1;

/// Where `jump` is: the header ends as far behind `header`, at 0x202, as its second byte says.
const JUMP_LENGTH: usize = 0x201;
const JUMP_BASE: usize = 0x202;

/// The end of the header of the newest protocol.
const HEADER_END: usize = HEADER_OFFSET + size_of::<setup_header>();

/// "HdrS".
const MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
const SECTOR: u64 = 512;

/// `syssize` counts paragraphs.
const PARAGRAPH: u64 = 16;

/// The oldest protocol with `xloadflags`, that is with a defined 64-bit entry point: Linux 3.8.
const MIN_VERSION: u16 = 0x020c;

/// `loadflags`: the protected-mode part belongs at 1 MiB or above.
const LOADED_HIGH: u8 = 1;

/// The 64-bit entry point, from the start of the protected-mode part.
const ENTRY_64: u64 = 0x200;

/// The most a kernel may unpack to. Far beyond any kernel, and well within any host.
const MAX_UNPACKED: u64 = 512 << 20;

/// Why a bzImage cannot be a kernel here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BzimageError {
    /// The header could not be read.
    #[error("cannot read the setup header")]
    Read(#[source] io::Error),
    /// The image did not reach guest memory.
    #[error("the kernel did not reach guest memory")]
    Copy(#[from] CopyError),
    /// The file ends too early.
    #[error("truncated: {size} bytes of at least {needed}")]
    Truncated {
        /// Bytes that there are.
        size: u64,
        /// Bytes that its header speaks of.
        needed: u64,
    },
    /// No boot sector signature or header magic.
    #[error("the setup header is damaged")]
    BadHeader,
    /// A protocol without 64-bit entry.
    #[error(
        "boot protocol {}.{:02}: 2.12 or later is needed (Linux 3.8)",
        version >> 8,
        version & 0xff
    )]
    OldProtocol {
        /// `version`, in which 0x20c is 2.12.
        version: u16,
    },
    /// A 32-bit kernel.
    #[error("a 32-bit kernel: it must be for x86-64")]
    Not64Bit,
    /// A zImage.
    #[error("a zImage, which is loaded below 1 MiB")]
    NotHigh,
    /// Nothing behind the real-mode part.
    #[error("no protected-mode part")]
    NoCode,
    /// The packed kernel is not inside the protected-mode part.
    #[error(
        "the packed kernel, {length} bytes at offset {offset}, is not inside the {size} bytes of the \
         protected-mode part"
    )]
    PayloadOutside {
        /// `payload_offset`, in bytes.
        offset: u32,
        /// `payload_length`, in bytes.
        length: u32,
        /// Size of the protected-mode part in bytes.
        size: u64,
    },
    /// An alignment that is no power of two.
    #[error("kernel_alignment {alignment:#x} is not a power of two")]
    Alignment {
        /// `kernel_alignment`, in bytes.
        alignment: u32,
    },
    /// The kernel wants to be where it cannot.
    #[error("the kernel wants {size:#x} bytes at {address:#x}, where no memory can be")]
    BadAddress {
        /// `pref_address`.
        address: u64,
        /// `init_size`, in bytes.
        size: u64,
    },
    /// The guest has too little memory.
    #[error(
        "the kernel needs memory up to {} MiB to decompress itself, the guest has {} MiB",
        mib(*end),
        mib(*memory)
    )]
    BeyondMemory {
        /// First guest physical address above what it needs.
        end: u64,
        /// Size of guest memory in bytes.
        memory: u64,
    },
}

impl BzimageError {
    pub(super) fn remedy(&self) -> Option<String> {
        match self {
            Self::BeyondMemory { end, .. } => Some(more_memory(*end)),
            Self::Truncated { .. } | Self::BadHeader | Self::PayloadOutside { .. } => {
                Some("copy or build the file again: it is damaged".into())
            }
            Self::OldProtocol { .. } | Self::Not64Bit | Self::NotHigh => {
                Some("use a bzImage of a 64-bit Linux, 3.8 or newer".into())
            }
            _ => None,
        }
    }
}

/// A bzImage whose header was checked against the size of its file.
#[derive(Debug)]
pub(super) struct Bzimage {
    /// The setup header; fields that its version does not have are zero.
    pub(super) header: setup_header,
    /// Offset of the protected-mode part in the file.
    code_offset: u64,
    /// Size of it in bytes.
    code_size: u64,
}

/// Where a bzImage was placed.
#[derive(Debug)]
pub(super) struct PlacedBzimage {
    /// Its 64-bit entry point.
    pub(super) entry: u64,
    /// The first guest physical address above all that it needs to unpack itself.
    pub(super) end: u64,
}

impl Bzimage {
    /// Reads and checks the setup header of `file`.
    pub(super) fn read<S: ImageSource + ?Sized>(file: &S) -> Result<Self, BzimageError> {
        let size = file.len();
        if size < HEADER_END as u64 {
            return Err(BzimageError::Truncated {
                size,
                needed: HEADER_END as u64,
            });
        }
        let mut bytes = [0; HEADER_END];
        file.read_exact(&mut bytes, 0).map_err(BzimageError::Read)?;
        let end = JUMP_BASE + usize::from(bytes[JUMP_LENGTH]);
        if let Some(beyond) = bytes.get_mut(end..) {
            beyond.fill(0);
        }
        let header = parse(&bytes);
        check(&header)?;

        let sectors = match header.setup_sects {
            0 => 4, // As the protocol says.
            count => u64::from(count),
        };
        let code_offset = (sectors + 1) * SECTOR;
        let code_size = u64::from(header.syssize) * PARAGRAPH;
        if code_size <= ENTRY_64 {
            return Err(BzimageError::NoCode);
        }
        let needed = code_offset + code_size;
        if size < needed {
            return Err(BzimageError::Truncated { size, needed });
        }
        let (offset, length) = (header.payload_offset, header.payload_length);
        if length == 0 || u64::from(offset) + u64::from(length) > code_size {
            return Err(BzimageError::PayloadOutside {
                offset,
                length,
                size: code_size,
            });
        }
        Ok(Self {
            header,
            code_offset,
            code_size,
        })
    }

    /// Offset in the file, and length, of the packed kernel.
    pub(super) fn payload(&self) -> (u64, u64) {
        let offset = self.code_offset + u64::from(self.header.payload_offset);
        (offset, self.header.payload_length.into())
    }

    /// The most bytes that the packed kernel may unpack to. The kernel's own unpacker works within `init_size`.
    pub(super) fn unpacked_limit(&self) -> u64 {
        match self.header.init_size {
            0 => MAX_UNPACKED,
            size => MAX_UNPACKED.min(size.into()),
        }
    }

    /// Copies the protected-mode part of `file` to guest memory, to unpack itself there.
    pub(super) fn place<S: ImageSource + ?Sized>(
        &self,
        file: &S,
        ram: &GuestRam,
    ) -> Result<PlacedBzimage, BzimageError> {
        // The unpacker moves what lies lower up to `pref_address`, so that nothing is gained by another place.
        let address = self.header.pref_address;
        // It begins with copying itself to the end of the memory it may use, which must hold it.
        let size = u64::from(self.header.init_size).max(self.code_size);
        let bad_address = BzimageError::BadAddress { address, size };
        let Some(end) = address.checked_add(size) else {
            return Err(bad_address);
        };
        if address < LOWEST_KERNEL || !address.is_multiple_of(self.alignment()) {
            return Err(bad_address);
        }
        if !is_ram(ram, address, size) {
            let contiguous = ram.iter().next().map_or(0, GuestMemoryRegion::len);
            return Err(
                match end > contiguous && address < contiguous.max(1 << 32) {
                    true => BzimageError::BeyondMemory {
                        end,
                        memory: ram_size(ram),
                    },
                    false => bad_address,
                },
            );
        }
        file.copy_to_guest(self.code_offset, self.code_size, address, ram)?;
        Ok(PlacedBzimage {
            entry: address + ENTRY_64,
            end,
        })
    }

    /// Alignment of the load address in bytes; a power of two.
    fn alignment(&self) -> u64 {
        u64::from(self.header.kernel_alignment).max(1)
    }
}

fn check(header: &setup_header) -> Result<(), BzimageError> {
    if header.boot_flag != BOOT_FLAG || header.header != MAGIC {
        return Err(BzimageError::BadHeader);
    }
    let version = header.version;
    if version < MIN_VERSION {
        return Err(BzimageError::OldProtocol { version });
    }
    if header.loadflags & LOADED_HIGH == 0 {
        return Err(BzimageError::NotHigh);
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(BzimageError::Not64Bit);
    }
    let alignment = header.kernel_alignment;
    match alignment == 0 || alignment.is_power_of_two() {
        true => Ok(()),
        false => Err(BzimageError::Alignment { alignment }),
    }
}

/// Reads the fields one after the other, as they lie in the file: little-endian, without gaps.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((value, rest)) => {
                self.0 = rest;
                *value
            }
            None => [0; N],
        }
    }

    fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

fn parse(file: &[u8; HEADER_END]) -> setup_header {
    let mut fields = Fields(&file[HEADER_OFFSET..]);
    // The order of the fields is that of evaluation.
    setup_header {
        setup_sects: fields.u8(),
        root_flags: fields.u16(),
        syssize: fields.u32(),
        ram_size: fields.u16(),
        vid_mode: fields.u16(),
        root_dev: fields.u16(),
        boot_flag: fields.u16(),
        jump: fields.u16(),
        header: fields.u32(),
        version: fields.u16(),
        realmode_swtch: fields.u32(),
        start_sys_seg: fields.u16(),
        kernel_version: fields.u16(),
        type_of_loader: fields.u8(),
        loadflags: fields.u8(),
        setup_move_size: fields.u16(),
        code32_start: fields.u32(),
        ramdisk_image: fields.u32(),
        ramdisk_size: fields.u32(),
        bootsect_kludge: fields.u32(),
        heap_end_ptr: fields.u16(),
        ext_loader_ver: fields.u8(),
        ext_loader_type: fields.u8(),
        cmd_line_ptr: fields.u32(),
        initrd_addr_max: fields.u32(),
        kernel_alignment: fields.u32(),
        relocatable_kernel: fields.u8(),
        min_alignment: fields.u8(),
        xloadflags: fields.u16(),
        cmdline_size: fields.u32(),
        hardware_subarch: fields.u32(),
        hardware_subarch_data: fields.u64(),
        payload_offset: fields.u32(),
        payload_length: fields.u32(),
        setup_data: fields.u64(),
        pref_address: fields.u64(),
        init_size: fields.u32(),
        handover_offset: fields.u32(),
        kernel_info_offset: fields.u32(),
    }
}
