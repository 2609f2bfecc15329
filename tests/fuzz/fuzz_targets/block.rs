//! The disk: requests of any shape, over a back end that fails. Their status is the one that is due, data goes where it
//! should, and neither memory nor disk is changed anywhere else.

#![no_main]

use std::ops::Range;

use ampoule_devices::virtio::block::{CacheMode, features};
use ampoule_devices::virtio::status::features as ring;
use ampoule_fuzz::backends::{DISK, MemoryDisk};
use ampoule_fuzz::devices;
use ampoule_fuzz::guest::{Guest, SIZE, some};
use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const MAX_SEGMENTS: usize = 16;
const MAX_DISCARD: u32 = 1 << 23;
const MAX_ZEROES: u32 = 1 << 15;

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Kind {
    In,
    Out,
    Flush,
    GetId,
    Discard,
    WriteZeroes,
    Other(u32),
}

impl Kind {
    fn get(self) -> u32 {
        match self {
            Self::In => IN,
            Self::Out => OUT,
            Self::Flush => FLUSH,
            Self::GetId => GET_ID,
            Self::Discard => DISCARD,
            Self::WriteZeroes => WRITE_ZEROES,
            Self::Other(kind) => kind,
        }
    }
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Sector {
    Near(u8),
    Any(u64),
}

impl Sector {
    fn get(self) -> u64 {
        match self {
            Self::Near(sector) => sector.into(),
            Self::Any(sector) => sector,
        }
    }
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Len {
    Bytes(u8),
    Sectors(u8),
}

impl Len {
    fn get(self) -> u32 {
        match self {
            Self::Bytes(len) => len.into(),
            Self::Sectors(count) => u32::from(count % 16) * 512,
        }
    }
}

#[derive(Debug)]
struct Request {
    kind: Kind,
    sector: Sector,
    /// Of DISCARD and WRITE_ZEROES: sector, length, flags.
    segments: Vec<(Sector, u32, u8)>,
    /// Of OUT.
    payload: Len,
    /// By how much the readable part is cut short.
    cut: u8,
    /// Where the readable part is divided.
    divisions: Vec<u16>,
    writable: Vec<Len>,
    status: bool,
    indirect: bool,
    failures: [u8; 3],
}

impl<'a> Arbitrary<'a> for Request {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self {
            kind: input.arbitrary()?,
            sector: input.arbitrary()?,
            segments: some(input, MAX_SEGMENTS + 2)?,
            payload: input.arbitrary()?,
            cut: input.arbitrary()?,
            divisions: some(input, 5)?,
            writable: some(input, 5)?,
            status: input.arbitrary()?,
            indirect: input.arbitrary()?,
            failures: input.arbitrary()?,
        })
    }
}

impl Request {
    fn readable(&self) -> Vec<u8> {
        let kind = self.kind.get();
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(self.sector.get().to_le_bytes());
        for (sector, len, flags) in &self.segments {
            bytes.extend(sector.get().to_le_bytes());
            bytes.extend(len.to_le_bytes());
            bytes.extend(u32::from(*flags).to_le_bytes());
        }
        if kind == OUT {
            bytes.extend((0..self.payload.get()).map(|at| (at / 7 + 1) as u8));
        }
        bytes.truncate(bytes.len().saturating_sub(self.cut.into()));
        bytes
    }
}

#[derive(Debug)]
struct Input {
    read_only: bool,
    cache: u8,
    flush: bool,
    requests: Vec<Request>,
}

impl<'a> Arbitrary<'a> for Input {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self {
            read_only: input.arbitrary()?,
            cache: input.arbitrary()?,
            flush: input.arbitrary()?,
            requests: some(input, 8)?,
        })
    }
}

fuzz_target!(|input: Input| {
    let disk = MemoryDisk::new(input.read_only);
    let modes = [
        CacheMode::Writeback,
        CacheMode::Writethrough,
        CacheMode::Unsafe,
    ];
    let mode = modes[usize::from(input.cache) % modes.len()];
    let device = Box::new(devices::block(mode, 1, disk.clone()));
    let refused = if input.flush { 0 } else { features::FLUSH };
    let mut guest = Guest::new(device, 1, !(refused | ring::RING_EVENT_IDX));
    for request in &input.requests {
        carry_out(&mut guest, &disk, input.read_only, request);
    }
});

fn carry_out(guest: &mut Guest, disk: &MemoryDisk, read_only: bool, request: &Request) {
    guest.free_all();
    let readable = request.readable();
    let mut buffers = Vec::new();
    let mut rest = &readable[..];
    for division in &request.divisions {
        let (now, later) = rest.split_at(usize::from(*division).min(rest.len()));
        rest = later;
        put(guest, &mut buffers, now);
    }
    put(guest, &mut buffers, rest);
    let mut writable: Vec<Range<u64>> = Vec::new();
    let lens = request.writable.iter().map(|len| len.get());
    for len in lens.chain(request.status.then_some(1)) {
        let Some(at) = guest.allocate(len) else {
            return;
        };
        writable.push(at..at + u64::from(len));
        buffers.push((at, len, true));
    }
    if buffers.len() > SIZE.into() && !request.indirect {
        return;
    }
    *disk.failures.lock().unwrap() = request.failures.into();
    let disk_before = disk.content.lock().unwrap().clone();
    let before = guest.buffers();
    guest.offer(0, 0, &buffers, request.indirect);
    guest.kick(0);

    assert!(!guest.driver.needs_reset(), "a good chain breaks the queue");
    let (head, written) = guest.take_used(0).expect("the chain is not given back");
    assert_eq!(head, 0);
    let room: u64 = writable.iter().map(|range| range.end - range.start).sum();
    assert!(u64::from(written) <= room);
    guest.assert_unchanged_but(&before, &mut writable.clone());

    let disk_after = disk.content.lock().unwrap().clone();
    let verdict = expect(&readable, room, read_only);
    let Some(data_len) = room.checked_sub(1) else {
        assert!(disk_before == disk_after || verdict.status == OK);
        return;
    };
    let all: Vec<u8> = writable
        .iter()
        .flat_map(|range| guest.read(range.start, (range.end - range.start) as u32))
        .collect();
    let status = all[data_len as usize];
    let may_fail = request.failures.iter().any(|fate| *fate != 0);
    let fine = status == verdict.status || may_fail && verdict.status == OK && status == IOERR;
    assert!(fine, "status {status}, not {}", verdict.status);
    // Whatever came of it, bytes outside of what the request names are as they were.
    let sectors = disk_after.chunks(512).zip(disk_before.chunks(512));
    for (start, (now, was)) in (0..).step_by(512).zip(sectors) {
        assert!(
            now == was || verdict.changes.iter().any(|range| range.contains(&start)),
            "the disk is changed at {start:#x}"
        );
    }
    if status != OK {
        return;
    }
    match request.kind.get() {
        IN => {
            let start = request.sector.get() as usize * 512;
            assert!(all[..data_len as usize] == disk_before[start..][..data_len as usize]);
            assert_eq!(u64::from(written), room);
        }
        OUT => {
            let start = request.sector.get() as usize * 512;
            assert!(disk_after[start..][..readable.len() - 16] == readable[16..]);
        }
        _ => {}
    }
}

fn put(guest: &mut Guest, buffers: &mut Vec<(u64, u32, bool)>, bytes: &[u8]) {
    let len = bytes.len() as u32;
    let at = guest.allocate(len).expect("readable parts are short");
    guest.write(at, bytes);
    buffers.push((at, len, false));
}

/// What a request should come to where the host does not fail.
struct Verdict {
    status: u8,
    /// What it may change of the disk.
    changes: Vec<Range<u64>>,
}

fn expect(readable: &[u8], room: u64, read_only: bool) -> Verdict {
    let no = |status| Verdict {
        status,
        changes: Vec::new(),
    };
    if readable.len() < 16 {
        return no(IOERR);
    }
    let (header, rest) = readable.split_at(16);
    let kind = u32::from_le_bytes(header[..4].try_into().unwrap());
    let sector = u64::from_le_bytes(header[8..].try_into().unwrap());
    let range = |sector: u64, len: u64| -> Option<Range<u64>> {
        let start = sector.checked_mul(512)?;
        let end = start.checked_add(len)?;
        (len.is_multiple_of(512) && end <= DISK as u64).then_some(start..end)
    };
    match kind {
        IN => no(match range(sector, room.saturating_sub(1)) {
            Some(_) => OK,
            None => IOERR,
        }),
        FLUSH | GET_ID => no(OK),
        OUT | DISCARD | WRITE_ZEROES if read_only => no(IOERR),
        OUT => match range(sector, rest.len() as u64) {
            Some(range) => Verdict {
                status: OK,
                changes: vec![range],
            },
            None => no(IOERR),
        },
        DISCARD | WRITE_ZEROES => segments(kind, rest, &range),
        _ => no(UNSUPP),
    }
}

fn segments(kind: u32, bytes: &[u8], range: &impl Fn(u64, u64) -> Option<Range<u64>>) -> Verdict {
    let mut verdict = Verdict {
        status: OK,
        changes: Vec::new(),
    };
    let count = bytes.len() / 16;
    if bytes.is_empty() || !bytes.len().is_multiple_of(16) || count > MAX_SEGMENTS {
        verdict.status = IOERR;
        return verdict;
    }
    let parsed: Vec<(u64, u32, u32)> = bytes
        .chunks_exact(16)
        .map(|bytes| {
            (
                u64::from_le_bytes(bytes[..8].try_into().unwrap()),
                u32::from_le_bytes(bytes[8..12].try_into().unwrap()),
                u32::from_le_bytes(bytes[12..].try_into().unwrap()),
            )
        })
        .collect();
    for (sector, sectors, _) in &parsed {
        if range(*sector, u64::from(*sectors) * 512).is_none() {
            verdict.status = IOERR;
            return verdict;
        }
    }
    for (sector, sectors, flags) in parsed {
        let known = if kind == DISCARD { 0 } else { 1 };
        let most = if kind == DISCARD {
            MAX_DISCARD
        } else {
            MAX_ZEROES
        };
        if flags & !known != 0 {
            verdict.status = UNSUPP;
            return verdict;
        }
        if sectors > most {
            verdict.status = IOERR;
            return verdict;
        }
        verdict
            .changes
            .extend(range(sector, u64::from(sectors) * 512));
    }
    verdict
}
