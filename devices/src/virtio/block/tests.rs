//! The block device, driven by its ring; requests good and bad.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use std::time::Instant;

use vm_memory::VolatileSlice;

#[cfg(feature = "io-uring")]
mod ring;

use super::*;
use crate::backend::disk::{OpenDisk, RawDisk, Route};
use crate::backend::fault::When;
use crate::backend::fault_block::{BlockEffect, BlockFault, BlockFaults, BlockOp, FaultyBlock};
#[cfg(feature = "qcow2")]
use crate::backend::qcow2::Qcow2Disk;
use crate::rate_limiter::{Rate, RateLimit};
use crate::virtio::status::features as common;
use crate::virtio::testing::*;
use crate::virtio::transport::mmio::register;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const HEADER: u64 = BUFFERS;
const DATA: u64 = BUFFERS + 0x1000;
const STATUS: u64 = BUFFERS + 0x800;

const DISK: u64 = 1 << 20;

/// A disk of 1 MiB in a file, behind a backend that fails when told to, and counts.
struct TestDisk {
    image: Box<dyn BlockBackend>,
    fail: AtomicBool,
    flushes: AtomicUsize,
    writes: AtomicUsize,
}

impl TestDisk {
    fn new(kind: Kind, read_only: bool) -> (tempfile::TempDir, Arc<Self>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let content: Vec<u8> = (0..DISK).map(|at| (at >> 9) as u8).collect();
        std::fs::write(&path, content).unwrap();
        let options = OpenDisk {
            path: &path,
            read_only,
            create_size: None,
            direct: false,
            lock: true,
        };
        let raw = || RawDisk::open(&options).unwrap();
        let image: Box<dyn BlockBackend> = match kind {
            Kind::Sync | Kind::Ring => Box::new(raw()),
            Kind::SyncInBlocks | Kind::RingInBlocks => Box::new(raw().in_blocks(4096)),
            Kind::Qcow2 => qcow2(options),
        };
        let disk = Self {
            image,
            fail: AtomicBool::new(false),
            flushes: AtomicUsize::new(0),
            writes: AtomicUsize::new(0),
        };
        (folder, Arc::new(disk))
    }

    fn fails(&self) -> io::Result<()> {
        match self.fail.load(Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            false => Ok(()),
        }
    }

    fn byte(&self, at: u64) -> u8 {
        let mut byte = [0];
        self.image
            .read_at(&[VolatileSlice::from(&mut byte[..])], at)
            .unwrap();
        byte[0]
    }
}

impl BlockBackend for TestDisk {
    fn size(&self) -> u64 {
        self.image.size()
    }

    fn refresh_size(&self) -> io::Result<u64> {
        self.image.refresh_size()
    }

    fn is_read_only(&self) -> bool {
        self.image.is_read_only()
    }

    fn read_at(&self, data: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        self.fails()?;
        self.image.read_at(data, offset)
    }

    fn write_at(&self, data: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        self.fails()?;
        self.image.write_at(data, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.fails()?;
        self.image.flush()
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        self.image.file()
    }

    fn route(&self, data: &[VolatileSlice<'_>], offset: u64, write: bool) -> Route {
        self.image.route(data, offset, write)
    }

    fn flushed(&self, result: io::Result<()>) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.image.flushed(result)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        self.fails()?;
        self.image.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        self.fails()?;
        self.image.write_zeroes(offset, len, unmap)
    }
}

/// An image of the same content in another format.
#[cfg(feature = "qcow2")]
fn qcow2(raw: OpenDisk<'_>) -> Box<dyn BlockBackend> {
    let mut content = std::fs::read(raw.path).unwrap();
    std::fs::remove_file(raw.path).unwrap();
    let new = OpenDisk {
        create_size: Some(DISK),
        read_only: false,
        ..raw
    };
    let disk = Qcow2Disk::open(&new, false).unwrap();
    disk.write_at(&[VolatileSlice::from(&mut content[..])], 0)
        .unwrap();
    drop(disk);
    Box::new(Qcow2Disk::open(&raw, false).unwrap())
}

#[cfg(not(feature = "qcow2"))]
fn qcow2(_: OpenDisk<'_>) -> Box<dyn BlockBackend> {
    unreachable!("no test of this build asks for it")
}

/// What moves data in a test.
#[cfg_attr(
    not(all(feature = "io-uring", feature = "qcow2")),
    allow(dead_code, reason = "some are for optional features")
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sync,
    /// As by direct I/O, for which the host wants larger blocks.
    SyncInBlocks,
    Ring,
    RingInBlocks,
    Qcow2,
}

impl Kind {
    const ALL: &[Self] = &[
        Self::Sync,
        Self::SyncInBlocks,
        #[cfg(feature = "io-uring")]
        Self::Ring,
        #[cfg(feature = "io-uring")]
        Self::RingInBlocks,
        #[cfg(feature = "qcow2")]
        Self::Qcow2,
    ];

    fn engine(self, disk: &dyn BlockBackend) -> Engine {
        match self {
            Self::Sync | Self::SyncInBlocks | Self::Qcow2 => Engine::sync(),
            Self::Ring | Self::RingInBlocks => Engine::io_uring(disk, 128).unwrap(),
        }
    }
}

/// Lays a request of queue 0 at `slot`: three descriptors, a status and 64 KiB for data of its own.
fn lay(driver: &Driver, slot: u16, kind: u32, sector: u64, len: u32) -> u64 {
    let at = u64::from(slot);
    let (header, status) = (HEADER + at * 32, STATUS + at);
    let data = DATA + at * 0x1_0000;
    driver.put(header, kind);
    driver.put(header + 8, sector);
    driver.put(status, 0xff_u8);
    let first = slot * 3;
    let middle = match kind {
        0 => writable(data, len, Some(first + 2)),
        _ => readable(data, len, Some(first + 2)),
    };
    driver.put_desc(DESCRIPTORS, first, readable(header, 16, Some(first + 1)));
    driver.put_desc(DESCRIPTORS, first + 1, middle);
    driver.put_desc(DESCRIPTORS, first + 2, writable(status, 1, None));
    driver.make_available(first);
    data
}

fn limited(kind: Kind, disk: &Arc<TestDisk>, limiter: Arc<RateLimiter>) -> Block {
    let config = BlockConfig {
        name: "test".into(),
        serial: String::new(),
        cache: CacheMode::Writeback,
        queues: 1,
        limiter: Some(limiter),
        poll: Duration::ZERO,
    };
    Block::new(config, disk.clone(), kind.engine(&**disk))
}

fn block(kind: Kind, disk: &Arc<TestDisk>, cache: CacheMode) -> Block {
    let config = BlockConfig {
        name: "test".into(),
        serial: "a serial that is longer than twenty bytes".into(),
        cache,
        queues: 1,
        limiter: None,
        poll: Duration::ZERO,
    };
    Block::new(config, disk.clone(), kind.engine(&**disk))
}

struct Bench {
    driver: Driver,
    disk: Arc<TestDisk>,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new(kind: Kind, read_only: bool) -> Self {
        let (folder, disk) = TestDisk::new(kind, read_only);
        Self {
            driver: Driver::ready(block(kind, &disk, CacheMode::Writeback), 1),
            disk,
            _folder: folder,
        }
    }

    /// One with each engine.
    fn each(read_only: bool) -> impl Iterator<Item = Self> {
        Kind::ALL
            .iter()
            .map(move |kind| Self::new(*kind, read_only))
    }

    fn header(&self, kind: u32, sector: u64) {
        self.driver.put(HEADER, kind);
        self.driver.put(HEADER + 4, 0_u32);
        self.driver.put(HEADER + 8, sector);
        self.driver.put(STATUS, 0xff_u8);
    }

    /// A request with data for the device to read (`out`) or to write.
    fn request(&self, kind: u32, sector: u64, out: bool, len: u32) -> u8 {
        self.header(kind, sector);
        let data = if out {
            readable(DATA, len, Some(2))
        } else {
            writable(DATA, len, Some(2))
        };
        self.chain(&[
            readable(HEADER, 16, Some(1)),
            data,
            writable(STATUS, 1, None),
        ])
    }

    /// The status byte after a chain; 0xff where it was not written.
    fn chain(&self, chain: &[Desc]) -> u8 {
        let before = self.driver.used_index();
        self.driver.send(chain);
        while self.driver.used_index() == before && !self.driver.needs_reset() {
            assert!(self.driver.host.wait(), "no answer");
        }
        assert!(!self.driver.needs_reset());
        assert_eq!(
            self.driver.used_index(),
            before.wrapping_add(1),
            "no answer"
        );
        self.driver.get(STATUS)
    }

    fn segment(&self, at: u64, sector: u64, sectors: u32, flags: u32) {
        self.driver.put(DATA + at * 16, sector);
        self.driver.put(DATA + at * 16 + 8, sectors);
        self.driver.put(DATA + at * 16 + 12, flags);
    }
}

#[test]
fn sectors_are_read_and_written() {
    for bench in Bench::each(false) {
        assert_eq!(bench.request(0, 5, false, 1024), OK);
        assert_eq!(bench.driver.last_used(), (0, 1025));
        assert_eq!(bench.driver.get::<u8>(DATA + 511), 5);
        assert_eq!(bench.driver.get::<u8>(DATA + 512), 6);
        bench.driver.put(DATA, [0x77_u8; 32]);
        assert_eq!(bench.request(1, 9, true, 512), OK);
        assert_eq!(bench.driver.last_used(), (0, 1));
        assert_eq!(
            (bench.disk.byte(9 * 512), bench.disk.byte(10 * 512)),
            (0x77, 10)
        );
    }
}

#[test]
fn a_request_may_be_cut_anywhere() {
    for bench in Bench::each(false) {
        bench.header(0, 7);
        // The header in three pieces, the data in odd ones, the last of which holds the status, too.
        let chain = [
            readable(HEADER, 3, Some(1)),
            readable(HEADER + 3, 0, Some(2)),
            readable(HEADER + 3, 13, Some(3)),
            writable(DATA, 1, Some(4)),
            writable(DATA + 1, 300, Some(5)),
            writable(DATA + 301, 212, None),
        ];
        bench.chain(&chain);
        assert_eq!(bench.driver.last_used(), (0, 513));
        assert_eq!(bench.driver.get::<u8>(DATA + 511), 7);
        assert_eq!(bench.driver.get::<u8>(DATA + 512), OK);
    }
}

#[test]
fn what_is_not_on_the_disk_is_an_error() {
    for bench in Bench::each(false) {
        let sectors = DISK / 512;
        for (sector, len) in [
            (sectors, 512),
            (sectors - 1, 1024),
            (u64::MAX, 512),
            (u64::MAX / 512, 512),
            (1 << 55, 512),
            (0, 511),
            (0, 513),
        ] {
            for out in [false, true] {
                let status = bench.request(u32::from(out), sector, out, len);
                assert_eq!(status, IOERR, "{len} at {sector}");
            }
        }
        assert_eq!(bench.disk.writes.load(Ordering::SeqCst), 0);
        assert_eq!(bench.request(0, sectors - 1, false, 512), OK);
    }
}

#[test]
fn chains_of_a_wrong_shape_are_given_back() {
    for bench in Bench::each(false) {
        bench.header(0, 0);
        // No room for a status.
        assert_eq!(bench.chain(&[readable(HEADER, 16, None)]), 0xff);
        assert_eq!(bench.driver.last_used(), (0, 0));
        // No header, or half of one.
        assert_eq!(bench.chain(&[writable(STATUS, 1, None)]), IOERR);
        bench.header(0, 0);
        let short = [readable(HEADER, 15, Some(1)), writable(STATUS, 1, None)];
        assert_eq!(bench.chain(&short), IOERR);
        // A write whose status lies where it cannot be written.
        bench.header(1, 0);
        let read_only = [readable(HEADER, 16, Some(1)), readable(STATUS, 1, None)];
        assert_eq!(bench.chain(&read_only), 0xff);
        for kind in [2, 3, 5, 7, 9, 10, 12, 14, u32::MAX] {
            assert_eq!(bench.request(kind, 0, false, 512), UNSUPP, "{kind}");
        }
        assert_eq!(bench.request(0, 0, false, 512), OK);
    }
}

#[test]
fn a_disk_that_is_read_only_stays_as_it_is() {
    for bench in Bench::each(true) {
        assert_ne!(bench.driver.offered() & features::RO, 0);
        bench.segment(0, 0, 8, 0);
        for kind in [1, 11, 13] {
            assert_eq!(bench.request(kind, 0, true, 512), IOERR);
            assert_eq!(bench.request(kind, 0, true, 16), IOERR);
        }
        assert_eq!(bench.disk.writes.load(Ordering::SeqCst), 0);
        assert_eq!(bench.request(4, 0, false, 0), OK, "a flush");
        assert_eq!(bench.request(0, 3, false, 512), OK);
    }
}

#[test]
fn space_is_given_back_and_zeroed() {
    for kind in Kind::ALL {
        let bench = Bench::new(*kind, false);
        bench.segment(0, 8, 8, 0);
        bench.segment(1, 32, 8, 0);
        assert_eq!(bench.request(11, 0, true, 32), OK);
        // A format with clusters keeps what is less than one.
        if *kind != Kind::Qcow2 {
            assert_eq!(
                (bench.disk.byte(8 * 512), bench.disk.byte(39 * 512)),
                (0, 0)
            );
        }
        assert_eq!(bench.disk.byte(16 * 512), 16);
        bench.segment(0, 17, 1, 1);
        assert_eq!(bench.request(13, 0, true, 16), OK);
        assert_eq!(
            (bench.disk.byte(17 * 512), bench.disk.byte(18 * 512)),
            (0, 18)
        );
    }
}

#[test]
fn bad_segments_change_nothing() {
    for bench in Bench::each(false) {
        let sectors = DISK / 512;
        for (kind, sector, count, flags, status) in [
            (11, sectors, 1, 0, IOERR),
            (11, u64::MAX, 1, 0, IOERR),
            (11, 0, u32::MAX, 0, IOERR),
            (13, sectors - 1, 2, 0, IOERR),
            (11, 8, 8, 1, UNSUPP),
            (13, 8, 8, 2, UNSUPP),
            (13, 8, 8, u32::MAX, UNSUPP),
        ] {
            // A good one first: it must not be carried out when a range after it is bad.
            bench.segment(0, 8, if status == IOERR { 8 } else { 0 }, 0);
            bench.segment(1, sector, count, flags);
            assert_eq!(
                bench.request(kind, 0, true, 32),
                status,
                "{kind} {sector} {count}"
            );
        }
        for len in [0, 15, 17, 17 * 16] {
            assert_eq!(bench.request(11, 0, true, len), IOERR, "{len}");
        }
        assert_eq!(bench.disk.writes.load(Ordering::SeqCst), 0);
        assert_eq!(bench.disk.byte(8 * 512), 8);
    }
}

#[test]
fn the_hosts_errors_are_the_drivers_and_a_failed_flush_is_never_forgotten() {
    let bench = Bench::new(Kind::Sync, false);
    bench.disk.fail.store(true, Ordering::SeqCst);
    bench.segment(0, 8, 8, 0);
    for (kind, out, len) in [
        (0, false, 512),
        (1, true, 512),
        (4, false, 0),
        (11, true, 16),
    ] {
        assert_eq!(bench.request(kind, 0, out, len), IOERR, "{kind}");
    }
    bench.disk.fail.store(false, Ordering::SeqCst);
    assert_eq!(bench.request(1, 0, true, 512), OK);
    assert_eq!(bench.request(4, 0, false, 0), OK);
}

#[test]
fn an_id_fits_its_buffer() {
    for bench in Bench::each(false) {
        bench.driver.put(DATA, [0xee_u8; 32]);
        assert_eq!(bench.request(8, 0, false, 20), OK);
        assert_eq!(&bench.driver.get::<[u8; 8]>(DATA), b"a serial");
        assert_eq!(bench.driver.get::<u8>(DATA + 20), 0xee);
        assert_eq!(bench.request(8, 0, false, 4), OK);
        assert_eq!(bench.driver.last_used(), (0, 5));
    }
}

#[test]
fn data_is_safe_when_the_cache_mode_says() {
    let cases = [
        (CacheMode::Writeback, true, 0, 1),
        // A driver that will not flush has to be served as if there were no cache.
        (CacheMode::Writeback, false, 1, 2),
        (CacheMode::Writethrough, true, 1, 2),
        (CacheMode::Unsafe, true, 0, 0),
    ];
    for (kind, (cache, driver_flushes, after_write, after_flush)) in Kind::ALL
        .iter()
        .flat_map(|kind| cases.map(|case| (*kind, case)))
    {
        let (folder, disk) = TestDisk::new(kind, false);
        let driver = Driver::new(block(kind, &disk, cache));
        let flush = if driver_flushes { features::FLUSH } else { 0 };
        driver.set_up(1, common::VERSION_1 | flush);
        let bench = Bench {
            driver,
            disk,
            _folder: folder,
        };
        assert_eq!(bench.request(1, 0, true, 512), OK);
        let flushes = || bench.disk.flushes.load(Ordering::SeqCst);
        assert_eq!(flushes(), after_write, "{kind:?} {cache:?}");
        assert_eq!(bench.request(4, 0, false, 0), OK);
        assert_eq!(flushes(), after_flush, "{kind:?} {cache:?}");
    }
}

#[test]
fn the_configuration_says_how_large_it_is_and_ends() {
    for bench in Bench::each(false) {
        assert_eq!(bench.driver.read(register::CONFIG), (DISK / 512) as u32);
        assert_eq!(bench.driver.read(register::CONFIG + 4), 0);
        assert_eq!(bench.driver.read(register::CONFIG + 20), 512);
        assert_eq!(bench.driver.read(register::CONFIG + 58), 0);
        assert_eq!(bench.driver.read(register::CONFIG + 0xefc), 0);
        bench.driver.write(register::CONFIG, 0);
        assert_eq!(bench.driver.read(register::CONFIG), (DISK / 512) as u32);
    }
}

/// A limit on operations and on bytes, each with its burst.
fn limiter(ops: Option<(u64, u64)>, bytes: Option<(u64, u64)>) -> Arc<RateLimiter> {
    let rate = |(per_second, burst): (u64, u64)| {
        let count = |number| NonZeroU64::new(number).unwrap();
        Rate::new(count(per_second), Some(count(burst)), NonZeroU64::MIN)
    };
    let limit = RateLimit {
        ops: ops.map(rate),
        bytes: bytes.map(rate),
    };
    Arc::new(RateLimiter::new(limit, Instant::now()).unwrap())
}

#[test]
fn what_the_limit_does_not_let_go_waits_for_its_timer_and_asks_for_nothing_meanwhile() {
    const SLOW: u64 = 1;
    for kind in Kind::ALL {
        for (limiter, lengths, go) in [
            // An operation a second is as good as none more, as long as nobody waits for it.
            (limiter(Some((SLOW, 3)), None), [512_u32; 5], 3),
            (
                limiter(None, Some((SLOW, 4096))),
                [2048, 2048, 512, 512, 512],
                2,
            ),
            // The first leaves the bucket in debt.
            (
                limiter(None, Some((SLOW, 4096))),
                [8192, 512, 512, 512, 512],
                1,
            ),
        ] {
            let (_folder, disk) = TestDisk::new(*kind, false);
            let device = limited(*kind, &disk, limiter);
            let driver = Driver::ready(device, 1);
            for (slot, len) in (0..).zip(lengths) {
                lay(&driver, slot, 0, 0, len);
            }
            driver.kick();
            while driver.used_index() < go {
                assert!(driver.host.wait(), "nothing goes");
            }
            assert_eq!(driver.used_index(), go);
            // More notifications do not help.
            for _ in 0..3 {
                driver.kick();
            }
            assert_eq!(driver.used_index(), go);
            assert_eq!(driver.host.run(10), 0, "it spins");
            // Nor does a reset.
            driver.set_up(1, common::VERSION_1);
            lay(&driver, 0, 0, 0, 512);
            driver.kick();
            assert_eq!(driver.used_index(), 0);
        }
    }
}

#[test]
fn the_timer_lets_what_waits_go() {
    for kind in Kind::ALL {
        let (_folder, disk) = TestDisk::new(*kind, false);
        let device = limited(*kind, &disk, limiter(Some((1000, 1)), None));
        let driver = Driver::ready(device, 1);
        for slot in 0..5 {
            // One of them is a flush.
            lay(&driver, slot, if slot == 2 { 4 } else { 0 }, 0, 0);
        }
        driver.kick();
        while driver.used_index() < 5 {
            assert!(driver.host.wait(), "it has been forgotten");
        }
    }
}

#[test]
fn an_image_that_grows_is_told_of_and_one_that_shrinks_is_not_followed() {
    for kind in Kind::ALL.iter().filter(|kind| **kind != Kind::Qcow2) {
        let (folder, disk) = TestDisk::new(*kind, false);
        let device = block(*kind, &disk, CacheMode::Writeback);
        let resizer = device.resizer();
        let image = std::fs::File::options()
            .write(true)
            .open(folder.path().join("disk"))
            .unwrap();
        let set = |len| {
            image.set_len(len).unwrap();
            resizer.resize().unwrap()
        };
        // Nobody is there yet to be told.
        assert_eq!(set(DISK + 4096), Resized::Grown(DISK + 4096));
        let driver = Driver::ready(device, 1);
        let bench = Bench {
            driver,
            disk,
            _folder: folder,
        };
        let generation = || bench.driver.read(register::CONFIG_GENERATION);
        let sectors = || bench.driver.read(register::CONFIG);
        let before = (generation(), bench.driver.line.count());
        assert_eq!(set(DISK + 4096), Resized::Same(DISK + 4096));
        assert_eq!((generation(), bench.driver.line.count()), before);

        let last = (DISK + 8192) / 512 - 1;
        assert_eq!(bench.request(0, last, false, 512), IOERR);
        let before = (generation(), bench.driver.line.count());
        assert_eq!(set(DISK + 8192), Resized::Grown(DISK + 8192));
        assert_ne!(generation(), before.0);
        assert_eq!(bench.driver.line.count(), before.1 + 1);
        assert_eq!(bench.driver.read(register::INTERRUPT_STATUS) & 2, 2);
        assert_eq!(u64::from(sectors()), last + 1);
        assert_eq!(bench.request(1, last, true, 512), OK);

        let before = (generation(), bench.driver.line.count());
        let (disk, image) = (DISK + 8192, 4096);
        assert_eq!(set(image), Resized::Refused { disk, image });
        assert_eq!((generation(), bench.driver.line.count()), before);
        assert_eq!(u64::from(sectors()), last + 1);
        assert_eq!(bench.request(0, last, false, 512), IOERR);
        assert_eq!(bench.request(0, 0, false, 512), OK);
    }
}

/// The statuses of five requests for one sector each, one behind the other from sector 3 on.
fn five_in_a_row(driver: &Driver, kind: u32, used: u16) -> [u8; 5] {
    for slot in 0..5 {
        lay(driver, slot, kind, 3 + u64::from(slot), 512);
    }
    driver.kick();
    while driver.used_index() != used {
        assert!(driver.host.wait(), "no answer");
    }
    std::array::from_fn(|slot| driver.get(STATUS + slot as u64))
}

#[test]
fn requests_in_a_row_are_each_answered_for_themselves() {
    for kind in Kind::ALL {
        let (folder, disk) = TestDisk::new(*kind, false);
        let driver = Driver::ready(block(*kind, &disk, CacheMode::Writeback), 1);
        assert_eq!(five_in_a_row(&driver, 0, 5), [OK; 5]);
        for slot in 0..5 {
            let data = DATA + slot * 0x1_0000;
            assert_eq!(driver.get::<u8>(data + 511), 3 + slot as u8);
            assert_eq!(driver.get::<u8>(data + 512), 0);
            driver.put(data, [0x60 + slot as u8; 32]);
        }
        assert_eq!(five_in_a_row(&driver, 1, 10), [OK; 5]);
        for slot in 0..5 {
            assert_eq!(disk.byte((3 + slot) * 512 + 7), 0x60 + slot as u8);
        }
        assert_eq!((disk.byte(2 * 512), disk.byte(8 * 512)), (2, 8));
        if *kind == Kind::Sync {
            assert_eq!(disk.writes.load(Ordering::SeqCst), 1, "one call");
        }
        if *kind == Kind::Qcow2 {
            continue;
        }
        // The file ends in the middle of it.
        let file = std::fs::File::options()
            .write(true)
            .open(folder.path().join("disk"))
            .unwrap();
        file.set_len(6 * 512).unwrap();
        let statuses = five_in_a_row(&driver, 0, 15);
        assert_eq!(statuses, [OK, OK, OK, IOERR, IOERR], "{kind:?}");
    }
}

#[test]
fn faults_count_the_requests_of_the_driver_though_they_come_in_a_row() {
    let (_folder, disk) = TestDisk::new(Kind::Sync, false);
    let fails = BlockEffect::Fail(libc::EIO);
    let faults = BlockFaults::new([
        BlockFault::new(BlockOp::Write, When::Nth(2), fails),
        BlockFault::new(BlockOp::Read, When::Every(1), fails).sectors(6..7),
    ]);
    let config = BlockConfig {
        name: "test".into(),
        serial: String::new(),
        cache: CacheMode::Writeback,
        queues: 1,
        limiter: None,
        poll: Duration::ZERO,
    };
    let faulty = Arc::new(FaultyBlock::new(disk.clone(), &faults));
    let driver = Driver::ready(Block::new(config, faulty, Engine::sync()), 1);
    let statuses = five_in_a_row(&driver, 1, 5);
    assert_eq!(statuses, [OK, IOERR, OK, OK, OK]);
    assert_eq!(disk.writes.load(Ordering::SeqCst), 4);
    let statuses = five_in_a_row(&driver, 0, 10);
    assert_eq!(statuses, [OK, OK, OK, IOERR, OK]);
    assert_eq!(faults.struck(), 2);
}
