//! What only an asynchronous engine can get wrong: requests under way while something else happens.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::*;

/// A disk whose file is another one: what goes by the ring goes there.
struct Odd {
    file: OwnedFd,
    failed: AtomicBool,
}

impl Odd {
    fn new(file: impl Into<OwnedFd>) -> Arc<Self> {
        Arc::new(Self {
            file: file.into(),
            failed: AtomicBool::new(false),
        })
    }

    fn driver(self: &Arc<Self>, depth: u16) -> Driver {
        let config = BlockConfig {
            name: "odd".into(),
            serial: String::new(),
            cache: CacheMode::Writeback,
            queues: 1,
            limiter: None,
            poll: Duration::ZERO,
        };
        let engine = Engine::io_uring(&**self, depth).unwrap();
        Driver::ready(Block::new(config, self.clone(), engine), 1)
    }
}

impl BlockBackend for Odd {
    fn size(&self) -> u64 {
        1 << 40
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, _: &[VolatileSlice<'_>], _: u64) -> io::Result<()> {
        unreachable!("a read goes by the ring")
    }

    fn write_at(&self, _: &[VolatileSlice<'_>], _: u64) -> io::Result<()> {
        unreachable!("a write goes by the ring")
    }

    fn flush(&self) -> io::Result<()> {
        unreachable!("a flush goes by the ring")
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn flushed(&self, result: io::Result<()>) -> io::Result<()> {
        self.failed.fetch_or(result.is_err(), Ordering::SeqCst);
        result
    }
}

fn wait_for(driver: &Driver, used: u16) {
    while driver.used_index() != used && !driver.needs_reset() {
        assert!(driver.host.wait(), "nothing happens any more");
    }
}

fn status(driver: &Driver, slot: u16) -> u8 {
    driver.get(STATUS + u64::from(slot))
}

#[test]
fn more_requests_than_the_ring_takes_are_all_served_and_interrupt_once_a_batch() {
    for depth in [1, 2, 4, 8] {
        let (_folder, disk) = TestDisk::new(Kind::Ring, false);
        let config = BlockConfig {
            name: "test".into(),
            serial: String::new(),
            cache: CacheMode::Writeback,
            queues: 1,
            limiter: None,
            poll: Duration::ZERO,
        };
        let engine = Engine::io_uring(&*disk, depth).unwrap();
        let driver = Driver::ready(Block::new(config, disk, engine), 1);
        let mut used = 0_u16;
        for round in 0..50 {
            let interrupts = driver.line.count();
            for slot in 0..5 {
                lay(&driver, slot, 0, u64::from(slot) * 3 + round, 512);
            }
            driver.kick();
            used += 5;
            wait_for(&driver, used);
            for slot in 0..5_u16 {
                assert_eq!(status(&driver, slot), OK);
                let first: u8 = driver.get(DATA + u64::from(slot) * 0x1_0000);
                assert_eq!(u64::from(first), (u64::from(slot) * 3 + round) & 0xff);
            }
            let batches = driver.line.count() - interrupts;
            assert!((1..=5).contains(&batches), "{batches} interrupts");
        }
    }
}

#[test]
fn a_request_that_the_host_serves_in_parts_is_carried_on_with() {
    let (reader, mut writer) = io::pipe().unwrap();
    let driver = Odd::new(reader).driver(4);
    let data = lay(&driver, 0, 0, 0, 1024);
    driver.kick();
    for part in [&[1_u8; 100][..], &[2; 900], &[3; 24]] {
        assert_eq!(driver.used_index(), 0);
        writer.write_all(part).unwrap();
        assert!(driver.host.wait());
    }
    wait_for(&driver, 1);
    assert_eq!((status(&driver, 0), driver.last_used()), (OK, (0, 1025)));
    let bytes: [u8; 1024] = std::array::from_fn(|at| driver.get(data + at as u64));
    assert!(bytes[..100].iter().all(|byte| *byte == 1));
    assert!(bytes[100..1000].iter().all(|byte| *byte == 2));
    assert!(bytes[1000..].iter().all(|byte| *byte == 3));
}

#[test]
fn the_later_of_two_may_end_first() {
    let (reader, mut writer) = io::pipe().unwrap();
    let driver = Odd::new(reader).driver(4);
    lay(&driver, 0, 0, 0, 512);
    driver.kick();
    assert_eq!(driver.used_index(), 0);
    // A flush of a pipe is refused, at once.
    lay(&driver, 1, 4, 0, 0);
    driver.kick();
    wait_for(&driver, 1);
    assert_eq!(driver.last_used().0, 3);
    assert_eq!((status(&driver, 0), status(&driver, 1)), (0xff, IOERR));
    writer.write_all(&[7; 512]).unwrap();
    wait_for(&driver, 2);
    assert_eq!((driver.last_used().0, status(&driver, 0)), (0, OK));
}

#[test]
fn a_reset_waits_for_what_is_under_way_and_touches_nothing_afterwards() {
    let (mut reader, writer) = io::pipe().unwrap();
    let driver = Odd::new(reader.try_clone().unwrap()).driver(4);
    for _ in 0..3 {
        driver.set_up(1, common::VERSION_1);
        let data = lay(&driver, 0, 0, 0, 512);
        driver.kick();
        assert_eq!(driver.used_index(), 0);
        let mut writer = writer.try_clone().unwrap();
        // A vCPU resets the device while the I/O thread has another to serve.
        std::thread::scope(|scope| {
            let vcpu = scope.spawn(|| driver.write(register::STATUS, 0));
            writer.write_all(&[9; 512]).unwrap();
            vcpu.join().unwrap();
        });
        assert_eq!(driver.used_index(), 1);
        assert_eq!((driver.get::<u8>(data + 511), status(&driver, 0)), (9, OK));
    }
    // What comes now is nobody's.
    let mut writer = writer;
    writer.write_all(&[1; 10]).unwrap();
    let mut bytes = [0; 10];
    reader.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [1; 10]);
}

#[test]
fn a_chain_that_is_under_way_cannot_be_made_available_again() {
    let (reader, mut writer) = io::pipe().unwrap();
    let driver = Odd::new(reader).driver(4);
    lay(&driver, 0, 0, 0, 512);
    driver.kick();
    driver.make_available(0);
    driver.kick();
    assert!(driver.needs_reset());
    writer.write_all(&[7; 1024]).unwrap();
    driver.set_up(1, common::VERSION_1);
    lay(&driver, 0, 0, 0, 512);
    driver.kick();
    wait_for(&driver, 1);
    assert_eq!(status(&driver, 0), OK);
}

#[test]
fn errors_of_the_host_are_the_requests_that_they_concern() {
    let full = OpenOptions::new().read(true).write(true).open("/dev/full");
    let disk = Odd::new(full.unwrap());
    let driver = disk.driver(4);
    lay(&driver, 0, 1, 0, 512);
    lay(&driver, 1, 0, 0, 512);
    driver.kick();
    wait_for(&driver, 2);
    assert_eq!((status(&driver, 0), status(&driver, 1)), (IOERR, OK));
    lay(&driver, 2, 4, 0, 0);
    driver.kick();
    wait_for(&driver, 3);
    assert_eq!(status(&driver, 2), IOERR);
    assert!(
        disk.failed.load(Ordering::SeqCst),
        "the disk must know of it"
    );
}

#[test]
fn parts_of_a_block_survive_what_is_under_way_around_them() {
    let (folder, disk) = TestDisk::new(Kind::RingInBlocks, false);
    let driver = Driver::ready(block(Kind::RingInBlocks, &disk, CacheMode::Writeback), 1);
    for round in 1..50_u16 {
        let value = round as u8;
        for (slot, (sector, len)) in [(0, 4096), (3, 512), (8, 4096), (6, 1536), (16, 4096)]
            .into_iter()
            .enumerate()
        {
            let data = lay(&driver, slot as u16, 1, sector, len);
            for at in (0..u64::from(len)).step_by(8) {
                driver.put(data + at, [value; 8]);
            }
        }
        driver.kick();
        wait_for(&driver, round * 5);
        let file = std::fs::read(folder.path().join("disk")).unwrap();
        assert!(file[..20 * 512].iter().all(|byte| *byte == value));
    }
}

#[test]
fn a_flush_that_failed_makes_all_that_follow_fail() {
    let (folder, disk) = TestDisk::new(Kind::Ring, false);
    disk.image
        .flushed(Err(io::Error::from_raw_os_error(libc::EIO)))
        .unwrap_err();
    let driver = Driver::ready(block(Kind::Ring, &disk, CacheMode::Writeback), 1);
    let bench = Bench {
        driver,
        disk,
        _folder: folder,
    };
    for _ in 0..2 {
        assert_eq!(bench.request(4, 0, false, 0), IOERR);
    }
    assert_eq!(bench.request(1, 0, true, 512), OK);
}

#[test]
fn a_file_that_has_become_shorter_ends_the_request_and_not_the_disk() {
    for kind in [Kind::Sync, Kind::Ring] {
        let bench = Bench::new(kind, false);
        let path = bench._folder.path().join("disk");
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(DISK - 700)
            .unwrap();
        let last = DISK / 512;
        assert_eq!(bench.request(0, last - 1, false, 512), IOERR);
        assert_eq!(bench.request(0, last - 2, false, 1024), IOERR);
        assert_eq!(bench.request(0, last - 3, false, 512), OK);
    }
}

#[test]
fn a_request_of_more_than_the_host_takes_at_once_is_served() {
    let sparse = tempfile::tempfile().unwrap();
    sparse.set_len(4 << 30).unwrap();
    let driver = Odd::new(sparse).driver(4);
    // An indirect table whose buffers all are the same 4 MiB: 2.2 GiB.
    let (table, buffer, len) = (BUFFERS + 0x8000, 0x10_0000_u64, 4 << 20);
    let pieces = 550;
    driver.put(HEADER, 0_u32);
    driver.put(HEADER + 8, 0_u64);
    driver.put(STATUS, 0xff_u8);
    driver.put(buffer, 0xff_u8);
    driver.put_desc(table, 0, readable(HEADER, 16, Some(1)));
    for piece in 1..=pieces {
        driver.put_desc(table, piece, writable(buffer, len, Some(piece + 1)));
    }
    driver.put_desc(table, pieces + 1, writable(STATUS, 1, None));
    let indirect = Desc {
        address: table,
        len: (u32::from(pieces) + 2) * 16,
        flags: F_INDIRECT,
        next: 0,
    };
    driver.send(&[indirect]);
    wait_for(&driver, 1);
    assert_eq!(status(&driver, 0), OK);
    assert_eq!(driver.last_used(), (0, u32::from(pieces) * len + 1));
    assert_eq!(driver.get::<u8>(buffer), 0);
}

#[test]
fn the_image_is_free_when_its_ring_is_gone() {
    for _ in 0..20 {
        let (folder, disk) = TestDisk::new(Kind::Ring, false);
        let driver = Driver::ready(block(Kind::Ring, &disk, CacheMode::Writeback), 1);
        lay(&driver, 0, 1, 0, 512);
        driver.kick();
        wait_for(&driver, 1);
        drop((driver, disk));
        let path = folder.path().join("disk");
        let file = File::options().write(true).open(&path).unwrap();
        let lock = libc::flock {
            l_type: libc::F_WRLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        // SAFETY: the pointer is to a valid `flock`, which is only read.
        let locked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
        assert_eq!(locked, 0, "{}", io::Error::last_os_error());
    }
}
