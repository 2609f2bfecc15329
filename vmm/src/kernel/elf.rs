//! ELF kernels: System V ABI, ELF-64 object file format, for x86-64; the PVH entry point is a note of Xen's
//! (`XEN_ELFNOTE_PHYS32_ENTRY`, xen/include/public/elfnote.h).
//!
//! A kernel is placed by the physical addresses of its program headers. The headers are read once, checked as a whole, and only
//! then is guest memory written; from a file the segments go straight into guest memory, from a decompressor they come in a
//! stream ([`StreamPlacer`]) that is never held as a whole.

use std::io;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::GuestRam;
use super::error::{mib, more_memory};
use super::source::{CopyError, ImageSource};
use super::{KernelEntry, KernelEntryPoint, LOWEST_KERNEL};

const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: u16 = 56;
const SECTION_HEADER_SIZE: u64 = 64;

/// Program headers that are looked at; a kernel has about five.
const MAX_PROGRAM_HEADERS: u16 = 128;

/// How far into a stream the program headers may end: that much of it is held back until they are known.
const MAX_STREAM_HEAD: u64 = 64 << 10;

/// Bytes of each note segment that are searched; a kernel has about 500.
const MAX_NOTES: u64 = 64 << 10;

const CLASS_64: u8 = 2;
const DATA_LITTLE_ENDIAN: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const NOTE_NAME: &[u8] = b"Xen\0";
const NOTE_PHYS32_ENTRY: u32 = 18;

/// Granularity at which zeroes are left out.
const PAGE: usize = 4096;

/// Why an ELF file cannot be a kernel here. Segments are named by their index in the program header table.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ElfError {
    /// No ELF magic.
    #[error("not an ELF file")]
    NotElf,
    /// The file could not be read, or guest memory not be written.
    #[error("the kernel did not reach guest memory")]
    Copy(#[from] CopyError),
    /// The headers could not be read.
    #[error("cannot read the {what}")]
    Read {
        /// What could not be read.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The file ends too early.
    #[error("truncated: {size} bytes of at least {needed}")]
    Truncated {
        /// Bytes that there are.
        size: u64,
        /// Bytes that its headers speak of.
        needed: u64,
    },
    /// 32-bit.
    #[error("a 32-bit ELF file: the kernel must be 64-bit")]
    Not64Bit,
    /// Big-endian.
    #[error("a big-endian ELF file: the kernel must be for x86-64")]
    BigEndian,
    /// For another processor.
    #[error("for {} (machine {machine}): the kernel must be for x86-64", machine_name(*machine))]
    Machine {
        /// `e_machine`.
        machine: u16,
    },
    /// Not linked to run at a fixed address.
    #[error("{} (type {kind}): the kernel must be linked to a fixed address", type_name(*kind))]
    Type {
        /// `e_type`.
        kind: u16,
    },
    /// Program headers of a strange size.
    #[error("program headers of {size} bytes: ELF-64 has {PROGRAM_HEADER_SIZE}")]
    HeaderSize {
        /// `e_phentsize`.
        size: u16,
    },
    /// Too many program headers.
    #[error("{count} program headers: more than {MAX_PROGRAM_HEADERS}")]
    TooManyHeaders {
        /// `e_phnum`.
        count: u16,
    },
    /// The program headers lie too far behind the beginning of a packed kernel.
    #[error("program headers end at offset {end:#x}: too far from the start")]
    HeadersTooFar {
        /// Offset of their end.
        end: u64,
    },
    /// No segment to load.
    #[error("no segment to load")]
    NoSegments,
    /// A segment holds more than it occupies.
    #[error("segment {index} holds {file_size:#x} bytes for {memory_size:#x} of memory")]
    LargerThanMemory {
        /// Which segment.
        index: u16,
        /// `p_filesz`.
        file_size: u64,
        /// `p_memsz`.
        memory_size: u64,
    },
    /// Offset, address and size of a segment do not fit 64 bits.
    #[error("segment {index} wraps around the address space")]
    Overflow {
        /// Which segment.
        index: u16,
    },
    /// A segment over the boot data.
    #[error("segment {index} at {address:#x} is below 1 MiB, where the boot data lie")]
    TooLow {
        /// Which segment.
        index: u16,
        /// `p_paddr`.
        address: u64,
    },
    /// The guest has too little memory.
    #[error("the kernel needs memory up to {} MiB, the guest has {} MiB", mib(*end), mib(*memory))]
    BeyondMemory {
        /// First guest physical address above the segment.
        end: u64,
        /// Size of guest memory in bytes.
        memory: u64,
    },
    /// A segment in the hole for devices.
    #[error("segment {index} at {address:#x} is not in memory but where devices lie")]
    NotMemory {
        /// Which segment.
        index: u16,
        /// `p_paddr`.
        address: u64,
    },
    /// Two segments in one place.
    #[error("segments {first} and {second} overlap at {address:#x}")]
    Overlap {
        /// The lower segment.
        first: u16,
        /// The higher segment.
        second: u16,
        /// Where the higher one starts.
        address: u64,
    },
    /// Nothing says where to enter.
    #[error("no PVH note, and the entry point {entry:#x} is in no segment")]
    NoEntry {
        /// `e_entry`.
        entry: u64,
    },
    /// PVH was asked for.
    #[error("no PVH note (XEN_ELFNOTE_PHYS32_ENTRY)")]
    NoPvhNote,
    /// The 64-bit protocol was asked for.
    #[error("the entry point {entry:#x} is in no segment")]
    EntryOutside {
        /// `e_entry`.
        entry: u64,
    },
    /// The PVH note is damaged.
    #[error("the PVH note names {entry:#x} as entry point, which is in no segment below 4 GiB")]
    PvhEntryOutside {
        /// The address in the note.
        entry: u64,
    },
}

impl ElfError {
    pub(super) fn remedy(&self) -> Option<String> {
        match self {
            Self::BeyondMemory { end, .. } => Some(more_memory(*end)),
            Self::Truncated { .. } => {
                Some("copy or build the file again: a part is missing".into())
            }
            Self::NoPvhNote => {
                Some("build the kernel with CONFIG_PVH=y, or use --entry auto".into())
            }
            Self::NoEntry { .. } => Some("build the kernel with CONFIG_PVH=y".into()),
            Self::Type { .. } => Some("use vmlinux or bzImage, not a module or object file".into()),
            _ => None,
        }
    }
}

fn machine_name(machine: u16) -> &'static str {
    match machine {
        3 => "32-bit x86",
        8 => "MIPS",
        20 | 21 => "PowerPC",
        22 => "s390",
        40 => "arm",
        183 => "arm64",
        243 => "RISC-V",
        258 => "LoongArch",
        _ => "another machine",
    }
}

fn type_name(kind: u16) -> &'static str {
    match kind {
        1 => "an object file or kernel module",
        3 => "a shared library or position-independent program",
        4 => "a core dump",
        _ => "not an executable",
    }
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, offset))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, offset))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, offset))
}

/// The bytes at `offset`; zeroes where there are none.
fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes
        .get(offset..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .unwrap_or([0; N])
}

/// The file header, checked.
struct Header {
    entry: u64,
    /// Where the program headers are, in the file.
    table: u64,
    count: u16,
    /// Where the section headers end: nothing that is loaded, but linkers put them last, so that they tell a whole file.
    sections_end: u64,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_SIZE]) -> Result<Self, ElfError> {
        if !bytes.starts_with(b"\x7fELF") {
            return Err(ElfError::NotElf);
        }
        if bytes[5] != DATA_LITTLE_ENDIAN {
            return Err(ElfError::BigEndian);
        }
        let (kind, machine) = (u16_at(bytes, 16), u16_at(bytes, 18));
        if machine != MACHINE_X86_64 {
            return Err(ElfError::Machine { machine });
        }
        if bytes[4] != CLASS_64 {
            return Err(ElfError::Not64Bit);
        }
        if kind != TYPE_EXECUTABLE {
            return Err(ElfError::Type { kind });
        }
        let (size, count) = (u16_at(bytes, 54), u16_at(bytes, 56));
        if count == 0 {
            return Err(ElfError::NoSegments);
        }
        if size != PROGRAM_HEADER_SIZE {
            return Err(ElfError::HeaderSize { size });
        }
        if count > MAX_PROGRAM_HEADERS {
            return Err(ElfError::TooManyHeaders { count });
        }
        let sections_end = match u64_at(bytes, 40) {
            0 => 0,
            // A count of zero stands for one that does not fit, and for one header at least.
            table => {
                let count = u64::from(u16_at(bytes, 60).max(1));
                table.saturating_add(SECTION_HEADER_SIZE * count)
            }
        };
        Ok(Self {
            entry: u64_at(bytes, 24),
            table: u64_at(bytes, 32),
            count,
            sections_end,
        })
    }

    /// Length in bytes of the program header table; at most a few KiB.
    fn table_size(&self) -> usize {
        usize::from(self.count) * usize::from(PROGRAM_HEADER_SIZE)
    }

    fn table_end(&self) -> u64 {
        self.table.saturating_add(self.table_size() as u64)
    }
}

/// A part of the file that goes to memory.
#[derive(Debug)]
struct Segment {
    index: u16,
    offset: u64,
    file_size: u64,
    address: u64,
    memory_size: u64,
}

impl Segment {
    fn end(&self) -> u64 {
        self.address.saturating_add(self.memory_size)
    }
}

/// A part of the file that is searched for the PVH note.
#[derive(Debug)]
struct Notes {
    offset: u64,
    /// At most [`MAX_NOTES`].
    size: u64,
    align: u64,
    bytes: Vec<u8>,
}

/// All that a file's headers say, checked against the guest's memory.
#[derive(Debug)]
pub(super) struct ElfPlan {
    segments: Vec<Segment>,
    notes: Vec<Notes>,
    entry: u64,
    file_size: u64,
}

impl ElfPlan {
    /// Reads and checks the headers of `file`.
    pub(super) fn read<S: ImageSource + ?Sized>(
        file: &S,
        ram: &GuestRam,
    ) -> Result<Self, ElfError> {
        let check_size = |needed| match file.len() {
            size if size < needed => Err(ElfError::Truncated { size, needed }),
            _ => Ok(()),
        };
        check_size(HEADER_SIZE as u64)?;
        let mut bytes = [0; HEADER_SIZE];
        file.read_exact(&mut bytes, 0)
            .map_err(|source| ElfError::Read {
                what: "ELF header",
                source,
            })?;
        let header = Header::parse(&bytes)?;
        check_size(header.table_end())?;
        let mut table = vec![0; header.table_size()];
        file.read_exact(&mut table, header.table)
            .map_err(|source| ElfError::Read {
                what: "program headers",
                source,
            })?;
        let plan = Self::new(&header, &table, ram)?;
        check_size(plan.file_size)?;
        Ok(plan)
    }

    fn new(header: &Header, table: &[u8], ram: &GuestRam) -> Result<Self, ElfError> {
        let mut plan = Self {
            segments: Vec::new(),
            notes: Vec::new(),
            entry: header.entry,
            file_size: header.table_end().max(header.sections_end),
        };
        for (index, entry) in (0..).zip(table.chunks_exact(PROGRAM_HEADER_SIZE.into())) {
            let (offset, file_size) = (u64_at(entry, 8), u64_at(entry, 32));
            let file_end = offset
                .checked_add(file_size)
                .ok_or(ElfError::Overflow { index });
            match u32_at(entry, 0) {
                PT_LOAD => {
                    let (address, memory_size) = (u64_at(entry, 24), u64_at(entry, 40));
                    let segment = Segment {
                        index,
                        offset,
                        file_size,
                        address,
                        memory_size,
                    };
                    check_segment(&segment, ram)?;
                    if memory_size != 0 {
                        plan.segments.push(segment);
                    }
                }
                PT_NOTE => plan.notes.push(Notes {
                    offset,
                    size: file_size.min(MAX_NOTES),
                    align: u64_at(entry, 48),
                    bytes: Vec::new(),
                }),
                _ => continue,
            }
            plan.file_size = plan.file_size.max(file_end?);
        }
        plan.segments.sort_by_key(|segment| segment.address);
        for pair in plan.segments.windows(2) {
            if pair[0].end() > pair[1].address {
                let (first, second) = (pair[0].index, pair[1].index);
                return Err(ElfError::Overlap {
                    first,
                    second,
                    address: pair[1].address,
                });
            }
        }
        match plan.segments.is_empty() {
            true => Err(ElfError::NoSegments),
            false => Ok(plan),
        }
    }

    /// Copies the segments of `file` to guest memory. The memory that a segment has beyond its bytes in the file (its bss)
    /// stays untouched: RAM is fresh, and thereby zero.
    pub(super) fn place<S: ImageSource + ?Sized>(
        mut self,
        file: &S,
        ram: &GuestRam,
    ) -> Result<LoadedElf, ElfError> {
        for segment in &self.segments {
            file.copy_to_guest(segment.offset, segment.file_size, segment.address, ram)?;
        }
        for notes in &mut self.notes {
            notes.bytes = vec![0; notes.size as usize];
            file.read_exact(&mut notes.bytes, notes.offset)
                .map_err(|source| ElfError::Read {
                    what: "notes",
                    source,
                })?;
        }
        Ok(self.loaded())
    }

    fn loaded(self) -> LoadedElf {
        LoadedElf {
            end: self.segments.iter().map(Segment::end).max().unwrap_or(0),
            pvh_entry: self
                .notes
                .iter()
                .find_map(|notes| pvh_entry(&notes.bytes, notes.align)),
            entry: self.entry,
            segments: self.segments,
        }
    }
}

fn check_segment(segment: &Segment, ram: &GuestRam) -> Result<(), ElfError> {
    let Segment {
        index,
        file_size,
        address,
        memory_size,
        ..
    } = *segment;
    if file_size > memory_size {
        return Err(ElfError::LargerThanMemory {
            index,
            file_size,
            memory_size,
        });
    }
    let end = address
        .checked_add(memory_size)
        .ok_or(ElfError::Overflow { index })?;
    if memory_size == 0 {
        return Ok(());
    }
    if address < LOWEST_KERNEL {
        return Err(ElfError::TooLow { index, address });
    }
    if is_ram(ram, address, memory_size) {
        return Ok(());
    }
    match ram_size(ram) {
        memory if end > memory => Err(ElfError::BeyondMemory { end, memory }),
        _ => Err(ElfError::NotMemory { index, address }),
    }
}

/// Whether a range of guest physical addresses is RAM throughout.
pub(super) fn is_ram(ram: &GuestRam, address: u64, size: u64) -> bool {
    usize::try_from(size).is_ok_and(|size| ram.check_range(GuestAddress(address), size))
}

/// Size in bytes of the guest's RAM.
pub(super) fn ram_size(ram: &GuestRam) -> u64 {
    ram.iter().map(GuestMemoryRegion::len).sum()
}

/// Finds the PVH entry point among `notes`. They may be cut or damaged anywhere.
fn pvh_entry(notes: &[u8], align: u64) -> Option<u64> {
    let align: usize = if align == 8 { 8 } else { 4 };
    let mut rest = notes;
    loop {
        let header = rest.first_chunk::<12>()?;
        let name_size = u32_at(header, 0) as usize;
        let desc_size = u32_at(header, 4) as usize;
        let name_end = name_size.checked_add(header.len())?;
        let desc_start = name_end.checked_next_multiple_of(align)?;
        let desc_end = desc_start.checked_add(desc_size)?;
        let name = rest.get(header.len()..name_end)?;
        let desc = rest.get(desc_start..desc_end)?;
        if name == NOTE_NAME && u32_at(header, 8) == NOTE_PHYS32_ENTRY {
            return match desc_size {
                4 => Some(u32_at(desc, 0).into()),
                8 => Some(u64_at(desc, 0)),
                _ => None,
            };
        }
        rest = rest.get(desc_end.checked_next_multiple_of(align)?..)?;
    }
}

/// An ELF kernel in guest memory.
#[derive(Debug)]
pub(super) struct LoadedElf {
    segments: Vec<Segment>,
    pvh_entry: Option<u64>,
    entry: u64,
    /// The first guest physical address above all segments.
    pub(super) end: u64,
}

impl LoadedElf {
    /// Where to enter it. `e_entry` of a Linux kernel is the physical address of `startup_64`.
    pub(super) fn entry(&self, mode: KernelEntry) -> Result<KernelEntryPoint, ElfError> {
        let entry = self.entry;
        match (mode, self.pvh_entry) {
            (KernelEntry::Auto | KernelEntry::Pvh, Some(entry)) => {
                match self.covers(entry) && entry <= u32::MAX.into() {
                    true => Ok(KernelEntryPoint::Pvh { entry }),
                    false => Err(ElfError::PvhEntryOutside { entry }),
                }
            }
            (KernelEntry::Pvh, None) => Err(ElfError::NoPvhNote),
            _ if self.covers(entry) => Ok(KernelEntryPoint::Linux64 { entry }),
            (KernelEntry::Auto, None) => Err(ElfError::NoEntry { entry }),
            _ => Err(ElfError::EntryOutside { entry }),
        }
    }

    fn covers(&self, address: u64) -> bool {
        self.segments
            .iter()
            .any(|segment| (segment.address..segment.end()).contains(&address))
    }
}

/// Places a kernel that arrives as a stream of bytes: holds back its head until the program headers are known, then puts
/// each byte where it belongs.
pub(super) struct StreamPlacer<'a> {
    ram: &'a GuestRam,
    /// What has arrived, while there is no plan.
    head: Vec<u8>,
    plan: Option<ElfPlan>,
    /// Bytes placed, or known to belong nowhere.
    position: u64,
}

impl<'a> StreamPlacer<'a> {
    /// Places into `ram`, which must be fresh.
    pub(super) fn new(ram: &'a GuestRam) -> Self {
        Self {
            ram,
            head: Vec::new(),
            plan: None,
            position: 0,
        }
    }

    /// Takes the next bytes of the stream.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), ElfError> {
        if self.plan.is_some() {
            return self.place(bytes);
        }
        let (head, rest) = bytes.split_at(bytes.len().min(self.head_wanted()));
        self.head.extend_from_slice(head);
        let Some(plan) = self.try_plan()? else {
            return Ok(());
        };
        self.plan = Some(plan);
        let head = std::mem::take(&mut self.head);
        self.place(&head)?;
        self.place(rest)
    }

    fn head_wanted(&self) -> usize {
        (MAX_STREAM_HEAD as usize).saturating_sub(self.head.len())
    }

    fn try_plan(&self) -> Result<Option<ElfPlan>, ElfError> {
        if self
            .head
            .first_chunk()
            .is_some_and(|magic| magic != b"\x7fELF")
        {
            return Err(ElfError::NotElf);
        }
        let Some(header) = self.head.first_chunk() else {
            return Ok(None);
        };
        let header = Header::parse(header)?;
        let end = header.table_end();
        if end > MAX_STREAM_HEAD {
            return Err(ElfError::HeadersTooFar { end });
        }
        match self.head.get(header.table as usize..end as usize) {
            Some(table) => ElfPlan::new(&header, table, self.ram).map(Some),
            None => Ok(None),
        }
    }

    fn place(&mut self, bytes: &[u8]) -> Result<(), ElfError> {
        let start = self.position;
        self.position = start.saturating_add(bytes.len() as u64);
        let Some(plan) = &mut self.plan else {
            return Ok(());
        };
        for segment in &plan.segments {
            if let Some((skipped, part)) = overlap(start, bytes, segment.offset, segment.file_size)
            {
                write_fresh(self.ram, segment.address + skipped, part)?;
            }
        }
        for notes in &mut plan.notes {
            if let Some((_, part)) = overlap(start, bytes, notes.offset, notes.size) {
                notes.bytes.extend_from_slice(part);
            }
        }
        Ok(())
    }

    /// Ends the stream.
    pub(super) fn finish(self) -> Result<LoadedElf, ElfError> {
        let size = self.position.max(self.head.len() as u64);
        match self.plan {
            Some(plan) if size < plan.file_size => Err(ElfError::Truncated {
                size,
                needed: plan.file_size,
            }),
            Some(plan) => Ok(plan.loaded()),
            None if self.head.starts_with(b"\x7fELF") => Err(ElfError::Truncated {
                size,
                needed: size + 1,
            }),
            None => Err(ElfError::NotElf),
        }
    }
}

/// The part of `bytes`, which begin at offset `start`, that lies among the `size` bytes from `offset` on; and how many of
/// these come before it.
fn overlap(start: u64, bytes: &[u8], offset: u64, size: u64) -> Option<(u64, &[u8])> {
    let from = start.max(offset);
    let to = (start + bytes.len() as u64).min(offset.saturating_add(size));
    if from >= to {
        return None;
    }
    let part = bytes.get((from - start) as usize..(to - start) as usize)?;
    Some((from - offset, part))
}

/// Writes `bytes` to fresh RAM. Pages of zeroes are left out: they are zero already, and a page that nobody writes costs the
/// host nothing. (A kernel's image holds megabytes of them, its bss among them.)
fn write_fresh(ram: &GuestRam, address: u64, bytes: &[u8]) -> Result<(), CopyError> {
    let write = |at: usize, part: &[u8]| {
        let address = address + at as u64;
        ram.write_slice(part, GuestAddress(address))
            .map_err(|source| CopyError::Write {
                address,
                length: part.len() as u64,
                source,
            })
    };
    // What waits to be written: from `from` to `at`.
    let (mut from, mut at) = (0, 0);
    for page in bytes.chunks(PAGE) {
        if is_zero(page) {
            if from < at {
                write(from, &bytes[from..at])?;
            }
            from = at + page.len();
        }
        at += page.len();
    }
    match from < at {
        true => write(from, &bytes[from..at]),
        false => Ok(()),
    }
}

/// Whether all of `bytes` are zero. (By parts, each without a branch, for the sake of vector instructions.)
fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(256)
        .all(|part| part.iter().fold(0, |sum, byte| sum | byte) == 0)
}
