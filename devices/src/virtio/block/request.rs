//! One request: header, data, status byte. Virtio 1.2, section 5.2.6.

use std::io;
use std::sync::Arc;

use vm_memory::{GuestAddress, VolatileSlice};

use crate::backend::disk::{BlockBackend, SECTOR};
use crate::metrics::{Counter, Tally};
use crate::virtio::DeviceMetrics;
use crate::virtio::device::GuestMemory;
use crate::virtio::queue::{Buffer, Chain, with_slices};

/// Request types.
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const HEADER_SIZE: u32 = 16;
const ID_SIZE: usize = 20;
const SEGMENT_SIZE: usize = 16;

/// Segments in a DISCARD or WRITE_ZEROES.
pub(super) const MAX_SEGMENTS: u32 = 16;
/// Sectors in a segment of DISCARD: 4 GiB.
pub(super) const MAX_DISCARD_SECTORS: u32 = 1 << 23;
/// Sectors in a segment of WRITE_ZEROES: 16 MiB, which a host without holes has to write.
pub(super) const MAX_ZERO_SECTORS: u32 = 1 << 15;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok,
    /// The host could not do it.
    HostFailed,
    /// It is no request that the disk could serve.
    Refused,
    /// It is of an unknown type.
    Unsupported,
}

impl Status {
    fn byte(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::HostFailed | Self::Refused => 1,
            Self::Unsupported => 2,
        }
    }
}

/// A disk at work.
pub(super) struct Disk {
    pub(super) backend: Arc<dyn BlockBackend>,
    pub(super) serial: String,
    /// Every write is flushed before it is answered.
    pub(super) write_through: bool,
    pub(super) ignore_flush: bool,
    pub(super) errors: Tally,
    pub(super) bad_requests: Tally,
    pub(super) flushes: Arc<Counter>,
    pub(super) metrics: Arc<DeviceMetrics>,
}

/// How a request goes on.
pub(super) enum Step {
    /// It is answered, with so many bytes written to its buffers.
    Done(u32),
    /// It moves data, or waits for data to be safe.
    Transfer(Transfer),
}

/// What an engine has to do for a request, checked, and where the answer goes then.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transfer {
    pub(super) kind: TransferKind,
    /// Where on the disk, in bytes.
    pub(super) offset: u64,
    pub(super) len: u32,
    answer: Answer,
}

/// What a transfer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TransferKind {
    /// From the disk to the writable part of the chain.
    Read,
    /// From the readable part of the chain to the disk.
    Write,
    /// Nothing moves.
    Flush,
}

impl Transfer {
    /// Calls `use_it` with the memory that the data goes to or comes from.
    pub(super) fn with_data<T>(
        &self,
        chain: &Chain,
        memory: &GuestMemory,
        use_it: impl FnOnce(&[VolatileSlice<'_>]) -> T,
    ) -> T {
        match self.kind {
            TransferKind::Read => with_slices(memory, chain.writable(), 0, self.len, use_it),
            TransferKind::Write => {
                with_slices(memory, chain.readable(), HEADER_SIZE, self.len, use_it)
            }
            TransferKind::Flush => use_it(&[]),
        }
    }
}

impl Transfer {
    /// Adds the memory that the data goes to or comes from.
    pub(super) fn add_buffers(&self, chain: &Chain, buffers: &mut Vec<Buffer>) {
        let (all, mut skip) = match self.kind {
            TransferKind::Read => (chain.writable(), 0),
            TransferKind::Write => (chain.readable(), HEADER_SIZE),
            TransferKind::Flush => return,
        };
        let mut left = self.len;
        for buffer in all {
            let start = skip.min(buffer.len);
            skip -= start;
            let len = (buffer.len - start).min(left);
            left -= len;
            if len > 0 {
                let address = GuestAddress(buffer.address.0 + u64::from(start));
                buffers.push(Buffer { address, len });
            }
        }
    }
}

/// Where a request's answer goes.
#[derive(Debug, Clone, Copy)]
struct Answer {
    /// The last byte of the chain.
    status: Buffer,
    /// Bytes to write before it.
    data_len: u32,
}

impl Answer {
    /// None where there is no byte for the status, and so no way to answer.
    fn to(chain: &Chain) -> Option<Self> {
        let last = chain.writable().last()?;
        Some(Self {
            status: Buffer {
                address: GuestAddress(last.address.0 + u64::from(last.len) - 1),
                len: 1,
            },
            data_len: chain.writable_len() - 1,
        })
    }

    /// Writes the status; how many bytes of the buffers were written in all.
    fn give(&self, memory: &GuestMemory, outcome: Result<u32, Status>) -> u32 {
        let (status, written) = match outcome {
            Ok(written) => (Status::Ok, written),
            Err(status) => (status, 0),
        };
        with_slices(memory, &[self.status], 0, 1, |slices| {
            for byte in slices {
                byte.copy_from(&[status.byte()]);
            }
        });
        match status {
            Status::Ok => written + 1,
            // All up to the status byte counts as written, and nothing of it was.
            _ if self.data_len > 0 => 0,
            _ => 1,
        }
    }
}

/// What a good request comes to.
enum Outcome {
    /// It is done, with so many bytes of data written.
    Written(u32),
    Transfer(Transfer),
}

impl Disk {
    /// Begins a request; those that move no data end here, too.
    pub(super) fn begin(&self, chain: &Chain, memory: &GuestMemory) -> Step {
        let Some(answer) = Answer::to(chain) else {
            self.bad_requests
                .add("a request has no room for its status");
            return Step::Done(0);
        };
        match self.execute(chain, memory, answer) {
            Ok(Outcome::Transfer(transfer)) => Step::Transfer(transfer),
            Ok(Outcome::Written(len)) => Step::Done(answer.give(memory, Ok(len))),
            Err(status) => {
                match status {
                    Status::Ok | Status::HostFailed => {}
                    Status::Refused => self.bad_requests.add("a request cannot be served"),
                    Status::Unsupported => {
                        self.bad_requests.add("a request is of an unknown type");
                    }
                }
                Step::Done(answer.give(memory, Err(status)))
            }
        }
    }

    /// Makes a transfer here and now.
    pub(super) fn transfer(
        &self,
        transfer: &Transfer,
        chain: &Chain,
        memory: &GuestMemory,
    ) -> io::Result<()> {
        transfer.with_data(chain, memory, |data| match transfer.kind {
            TransferKind::Read => self.backend.read_at(data, transfer.offset),
            TransferKind::Write => self.backend.write_at(data, transfer.offset),
            TransferKind::Flush => self.backend.flush(),
        })?;
        if self.needs_flush(transfer) {
            self.backend.flush()?;
        }
        Ok(())
    }

    /// Moves `len` bytes between the disk, where `first` wants them, and `buffers`, from `skip` on.
    pub(super) fn move_data(
        &self,
        first: &Transfer,
        memory: &GuestMemory,
        buffers: &[Buffer],
        skip: u32,
        len: u32,
    ) -> io::Result<()> {
        with_slices(memory, buffers, skip, len, |data| match first.kind {
            TransferKind::Write => self.backend.write_at(data, first.offset),
            _ => self.backend.read_at(data, first.offset),
        })
    }

    /// Whether a transfer that went well has to be followed by a flush before it is answered.
    pub(super) fn needs_flush(&self, transfer: &Transfer) -> bool {
        self.write_through && transfer.kind == TransferKind::Write
    }

    /// Answers a request whose transfer has ended; how many bytes were written to its buffers.
    pub(super) fn end(
        &self,
        transfer: &Transfer,
        memory: &GuestMemory,
        result: io::Result<()>,
    ) -> u32 {
        let (what, written) = match transfer.kind {
            TransferKind::Read => ("read", transfer.len),
            TransferKind::Write => ("write", 0),
            TransferKind::Flush => ("flush", 0),
        };
        if result.is_ok() {
            match transfer.kind {
                TransferKind::Read => self.metrics.bytes_read.add_owned(transfer.len.into()),
                TransferKind::Write => self.metrics.bytes_written.add_owned(transfer.len.into()),
                TransferKind::Flush => {}
            }
        }
        let outcome = self.host(what, result).map(|()| written);
        transfer.answer.give(memory, outcome)
    }

    fn execute(
        &self,
        chain: &Chain,
        memory: &GuestMemory,
        answer: Answer,
    ) -> Result<Outcome, Status> {
        let mut header = [0; HEADER_SIZE as usize];
        if chain.read_start(memory, &mut header) < header.len() {
            return Err(Status::Refused);
        }
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([t0, t1, t2, t3]) {
            IN => self.data(TransferKind::Read, sector, answer.data_len, answer),
            OUT => {
                self.writable()?;
                let len = chain.readable_len() - HEADER_SIZE;
                self.data(TransferKind::Write, sector, len, answer)
            }
            FLUSH => {
                self.flushes.add_owned(1);
                if self.ignore_flush || self.backend.is_read_only() {
                    return Ok(Outcome::Written(0));
                }
                Ok(Outcome::Transfer(Transfer {
                    kind: TransferKind::Flush,
                    offset: 0,
                    len: 0,
                    answer,
                }))
            }
            GET_ID => self.get_id(chain, memory, answer.data_len),
            DISCARD => self.segments(chain, memory, |segment| self.discard(segment)),
            WRITE_ZEROES => self.segments(chain, memory, |segment| self.write_zeroes(segment)),
            _ => Err(Status::Unsupported),
        }
    }

    fn data(
        &self,
        kind: TransferKind,
        sector: u64,
        len: u32,
        answer: Answer,
    ) -> Result<Outcome, Status> {
        let offset = self.range(sector, len.into())?;
        if len == 0 {
            return Ok(Outcome::Written(0));
        }
        Ok(Outcome::Transfer(Transfer {
            kind,
            offset,
            len,
            answer,
        }))
    }

    /// Where a range of the disk begins, in bytes, if it is one.
    fn range(&self, sector: u64, len: u64) -> Result<u64, Status> {
        let start = sector.checked_mul(SECTOR).ok_or(Status::Refused)?;
        let end = start.checked_add(len).ok_or(Status::Refused)?;
        if !len.is_multiple_of(SECTOR) || end > self.backend.size() {
            return Err(Status::Refused);
        }
        Ok(start)
    }

    fn host<T>(&self, what: &str, result: io::Result<T>) -> Result<T, Status> {
        result.map_err(|err| {
            self.errors.add(format_args!("{what} failed: {err}"));
            Status::HostFailed
        })
    }

    fn writable(&self) -> Result<(), Status> {
        if self.backend.is_read_only() {
            return Err(Status::Refused);
        }
        Ok(())
    }

    fn get_id(&self, chain: &Chain, memory: &GuestMemory, len: u32) -> Result<Outcome, Status> {
        let mut id = [0; ID_SIZE];
        let known = self.serial.len().min(ID_SIZE);
        id[..known].copy_from_slice(&self.serial.as_bytes()[..known]);
        let wanted = len.min(ID_SIZE as u32);
        let mut rest = &id[..wanted as usize];
        with_slices(memory, chain.writable(), 0, wanted, |slices| {
            for slice in slices {
                let (now, later) = rest.split_at(slice.len().min(rest.len()));
                slice.copy_from(now);
                rest = later;
            }
        });
        Ok(Outcome::Written(wanted))
    }

    /// Reads the segments once, checks all of them, and only then has each carried out.
    fn segments(
        &self,
        chain: &Chain,
        memory: &GuestMemory,
        carry_out: impl Fn(&Segment) -> Result<(), Status>,
    ) -> Result<Outcome, Status> {
        self.writable()?;
        let len = chain.readable_len() - HEADER_SIZE;
        let max = MAX_SEGMENTS * SEGMENT_SIZE as u32;
        if len == 0 || !len.is_multiple_of(SEGMENT_SIZE as u32) || len > max {
            return Err(Status::Refused);
        }
        let mut bytes = [0; MAX_SEGMENTS as usize * SEGMENT_SIZE];
        let mut at = 0;
        with_slices(memory, chain.readable(), HEADER_SIZE, len, |slices| {
            for slice in slices {
                at += slice.copy_to(&mut bytes[at..]);
            }
        });
        let segments: Vec<Segment> = bytes[..at]
            .chunks_exact(SEGMENT_SIZE)
            .filter_map(Segment::parse)
            .collect();
        for segment in &segments {
            self.range(segment.sector, segment.len())?;
        }
        for segment in &segments {
            carry_out(segment)?;
        }
        if self.write_through {
            self.host("flush", self.backend.flush())?;
        }
        Ok(Outcome::Written(0))
    }

    fn discard(&self, segment: &Segment) -> Result<(), Status> {
        if segment.flags != 0 {
            return Err(Status::Unsupported);
        }
        if segment.sectors > MAX_DISCARD_SECTORS {
            return Err(Status::Refused);
        }
        if segment.sectors == 0 {
            return Ok(());
        }
        let result = self.backend.discard(segment.sector * SECTOR, segment.len());
        self.host("discard", result)
    }

    fn write_zeroes(&self, segment: &Segment) -> Result<(), Status> {
        const UNMAP: u32 = 1;
        if segment.flags & !UNMAP != 0 {
            return Err(Status::Unsupported);
        }
        if segment.sectors > MAX_ZERO_SECTORS {
            return Err(Status::Refused);
        }
        if segment.sectors == 0 {
            return Ok(());
        }
        let unmap = segment.flags & UNMAP != 0;
        let offset = segment.sector * SECTOR;
        let result = self.backend.write_zeroes(offset, segment.len(), unmap);
        self.host("write of zeroes", result)
    }
}

/// A range in a DISCARD or WRITE_ZEROES.
struct Segment {
    sector: u64,
    sectors: u32,
    flags: u32,
}

impl Segment {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (sector, rest) = bytes.split_first_chunk()?;
        let (sectors, rest) = rest.split_first_chunk()?;
        let (flags, _) = rest.split_first_chunk()?;
        Some(Self {
            sector: u64::from_le_bytes(*sector),
            sectors: u32::from_le_bytes(*sectors),
            flags: u32::from_le_bytes(*flags),
        })
    }

    fn len(&self) -> u64 {
        u64::from(self.sectors) * SECTOR
    }
}
