//! Disks and networks of the program's own, what it puts around those of the configuration, and faults on purpose.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ampoule_tests::guests;
use ampoule_vmm::backend::{BlockBackend, NetBackend, VolatileSlice};
use ampoule_vmm::config::{DiskConfig, DiskEngine, NetConfig, VmConfig};
use ampoule_vmm::devices::EventFd;
use ampoule_vmm::fault::{
    BlockEffect, BlockFault, BlockFaults, BlockOp, Direction, FaultyBlock, FaultyNet, NetEffect,
    NetFault, NetFaults, When,
};
use ampoule_vmm::{
    DiskOptions, Error, ExitReason, NetOptions, VmBuilder, VmEvent, VmHandle, VmThread,
};

use crate::guest::{Printed, config};

const BLOCK: usize = 4096;
const SLOTS: usize = 8;
const EIO: i32 = 5;

/// A disk in memory.
struct MemoryDisk {
    bytes: Mutex<Vec<u8>>,
    flushes: AtomicU64,
}

impl MemoryDisk {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(vec![0; SLOTS * BLOCK]),
            flushes: AtomicU64::new(0),
        })
    }

    /// The numbers that the guest has written, each to its place.
    fn numbers(&self) -> Vec<u64> {
        let bytes = self.bytes.lock().unwrap();
        let number = |block: &[u8]| u64::from_le_bytes(block[..8].try_into().unwrap());
        let numbers: Vec<u64> = bytes.chunks(BLOCK).map(number).collect();
        for (slot, number) in numbers
            .iter()
            .enumerate()
            .filter(|(_, number)| **number > 0)
        {
            assert_eq!(*number as usize % SLOTS, slot);
        }
        numbers
    }
}

impl BlockBackend for MemoryDisk {
    fn size(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, data: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        let (bytes, mut at) = (self.bytes.lock().unwrap(), offset as usize);
        for piece in data {
            piece.copy_from(&bytes[at..at + piece.len()]);
            at += piece.len();
        }
        Ok(())
    }

    fn write_at(&self, data: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        let (mut bytes, mut at) = (self.bytes.lock().unwrap(), offset as usize);
        for piece in data {
            at += piece.copy_to(&mut bytes[at..at + piece.len()]);
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Ok(())
    }
}

/// A guest that writes numbered blocks for ever, and prints each number.
fn numbering() -> VmConfig {
    VmConfig {
        cmdline: Some(format!("op=n first=1 slots={SLOTS}")),
        ..config(guests::VIRTIO_BLOCK, 1)
    }
}

/// A number as the guest prints it.
fn line(number: u64) -> String {
    format!("{number:016x}\n")
}

fn start(builder: VmBuilder) -> (VmHandle, Printed) {
    let vm = builder.build().unwrap().start().unwrap();
    let printed = Printed::of(&vm);
    (vm, printed)
}

pub(crate) fn a_disk_of_the_programs_own_outlives_its_guest() {
    let disk = MemoryDisk::new();
    let options = DiskOptions {
        queues: 2,
        poll: Duration::ZERO,
        ..DiskOptions::default()
    };
    let io_threads = Arc::new(AtomicU64::new(0));
    let counted = io_threads.clone();
    let builder = VmBuilder::new(numbering()).disk("mine", disk.clone(), options);
    let builder = builder.on_thread_start(move |thread| {
        counted.fetch_add(u64::from(thread == VmThread::Io), Ordering::Relaxed);
        Ok(())
    });
    let (vm, mut printed) = start(builder);
    printed.wait_for(&line(20), 1);
    assert_eq!(vm.disk_ids(), ["mine"]);
    assert_eq!(io_threads.load(Ordering::Relaxed), 1);
    vm.pause().unwrap();
    assert!(disk.numbers().iter().all(|number| *number > 10));
    assert!(disk.flushes.load(Ordering::Relaxed) >= 20);
    disk.bytes.lock().unwrap().fill(0);
    vm.reset().unwrap();
    printed.wait_for(&line(20), 2);
    vm.stop();
    assert_eq!(vm.wait(), ExitReason::Stopped);
    assert!(disk.numbers().iter().all(|number| *number > 10));
    drop(vm);
    assert_eq!(Arc::strong_count(&disk), 1);
}

/// One of two VMs has a disk that fails: its guest is told, and the other does not notice.
pub(crate) fn a_disk_that_fails_is_its_own_vms_alone() {
    let healthy = MemoryDisk::new();
    let builder = VmBuilder::new(numbering());
    let (steady, mut going) = start(builder.disk("good", healthy, DiskOptions::default()));
    going.wait_for(&line(1), 1);
    let mut events = steady.events();

    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let (fails, never) = (BlockEffect::Fail(EIO), When::Every(0));
    for (op, written) in [(BlockOp::Write, 19), (BlockOp::Flush, 20)] {
        fs::write(&image, vec![0; SLOTS * BLOCK]).unwrap();
        let faults = BlockFaults::new([
            BlockFault::new(op, When::Nth(20), fails),
            BlockFault::new(BlockOp::Read, never, fails),
        ]);
        let config = VmConfig {
            // With faults around it, it has no file for that.
            disk: vec![DiskConfig {
                engine: Some(DiskEngine::IoUring),
                ..DiskConfig::new(&image)
            }],
            ..numbering()
        };
        let around = faults.clone();
        let (failing, mut printed) =
            start(VmBuilder::new(config).wrap_disk("disk0", move |disk| {
                assert!(disk.file().is_some());
                Ok(Arc::new(FaultyBlock::new(disk, &around)))
            }));
        printed.wait_for(&line(19), 1);
        printed.wait_for("FAIL a request has failed", 1);
        assert_eq!(failing.wait(), ExitReason::PowerOff);
        assert_eq!(faults.struck(), 1);
        assert_eq!(failing.metrics().devices["disk0"].host_errors, 1);
        let bytes = fs::read(&image).unwrap();
        let last = &bytes[written as usize % SLOTS * BLOCK..][..8];
        assert_eq!(last, u64::to_le_bytes(written));
    }

    // It goes on from wherever it is.
    steady.pause().unwrap();
    let so_far = going.text().lines().count();
    steady.resume().unwrap();
    going.wait_for("\n", so_far + 100);
    assert!(!going.text().contains("FAIL"));
    let told: Vec<_> = std::iter::from_fn(|| events.try_next()).collect();
    assert_eq!(told, [VmEvent::Paused, VmEvent::Resumed]);
    assert_eq!(steady.metrics().devices["good"].host_errors, 0);
}

/// A network that counts what it gets.
struct Sink {
    frames: AtomicU64,
    never: EventFd,
}

impl NetBackend for Sink {
    fn send(&self, packet: &[VolatileSlice<'_>]) -> io::Result<()> {
        let len: usize = packet.iter().map(VolatileSlice::len).sum();
        assert_eq!(len, 112);
        self.frames.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn receive(&self, _: &[VolatileSlice<'_>]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn fd(&self) -> RawFd {
        self.never.as_raw_fd()
    }
}

fn sink() -> Arc<Sink> {
    Arc::new(Sink {
        frames: AtomicU64::new(0),
        never: EventFd::new(0).unwrap(),
    })
}

pub(crate) fn a_network_of_the_programs_own_loses_frames_as_it_is_told() {
    let sink = sink();
    let faults = NetFaults::new([
        NetFault::new(Direction::FromGuest, When::Every(5), NetEffect::Drop),
        NetFault::new(Direction::FromGuest, When::Every(7), NetEffect::Duplicate),
    ]);
    let net = Arc::new(FaultyNet::new(sink.clone(), &faults).unwrap());
    let config = VmConfig {
        // A hundred frames.
        cmdline: Some("size=100 depth=4 batches=50".into()),
        ..config(guests::VIRTIO_NET, 1)
    };
    let builder = VmBuilder::new(config).net("mine", vec![net], NetOptions::default());
    let (vm, mut printed) = start(builder);
    printed.wait_for("PASS", 1);
    assert_eq!(vm.wait(), ExitReason::PowerOff);
    // 20 are lost, 14 go twice, 2 of which are among the lost.
    assert_eq!(sink.frames.load(Ordering::Relaxed), 100 - 20 + 14 - 2);
    assert_eq!(faults.struck(), 34);
    assert_eq!(faults.lost(), 0);
}

/// The message of a build that must fail, its causes and its remedy.
fn refused(builder: VmBuilder) -> String {
    let Err(error) = builder.build() else {
        panic!("it was built");
    };
    let remedy = error.remedy().unwrap_or_default();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    assert!(!matches!(error, Error::Kvm(_)), "{text}");
    format!("{text} ({remedy})")
}

pub(crate) fn what_cannot_be_added_or_wrapped_is_named() {
    let builder = || {
        let vhost = NetConfig {
            vhost: true,
            id: Some("lan".into()),
            ..NetConfig::tap("ampoule-none")
        };
        VmBuilder::new(VmConfig {
            disk: vec![DiskConfig::new("/nonexistent"), DiskConfig::new("/none")],
            net: vec![vhost],
            ..config(guests::VIRTIO_BLOCK, 1)
        })
    };
    let disk = |id: &str, options| builder().disk(id, MemoryDisk::new(), options);
    let net = |backends, options| builder().net("mine", backends, options);
    let one = || vec![sink() as Arc<dyn NetBackend>];
    let options = DiskOptions::default;
    for (builder, words) in [
        (
            builder().wrap_disk("disk2", Ok),
            "cannot wrap the back end of \"disk2\": the configuration has no disk of that id (the disks are: disk0, disk1)",
        ),
        (
            builder().wrap_disk("lan", Ok),
            "the configuration has no disk of that id",
        ),
        (
            disk("mine", options()).wrap_disk("mine", Ok),
            "the configuration has no disk of that id",
        ),
        (
            builder().wrap_net("net0", Ok),
            "the configuration has no network of that id (the networks are: lan)",
        ),
        (
            builder().wrap_net("lan", Ok),
            "cannot wrap the back end of \"lan\": the host's kernel moves its frames (vhost) (leave vhost out for it)",
        ),
        (
            disk("disk0", options()),
            "cannot add the device \"disk0\": another device has its id",
        ),
        (
            disk("mine", options()).net("mine", one(), NetOptions::default()),
            "cannot add the device \"mine\": another device has its id",
        ),
        (
            disk(
                "mine",
                DiskOptions {
                    queues: 17,
                    ..options()
                },
            ),
            "mine",
        ),
        (
            disk(
                "mine",
                DiskOptions {
                    iops: Some(0),
                    ..options()
                },
            ),
            "mine has a limit of 0 for iops",
        ),
        (
            net(
                one(),
                NetOptions {
                    mtu: Some(67),
                    ..NetOptions::default()
                },
            ),
            "mine",
        ),
        (
            net(Vec::new(), NetOptions::default()),
            "cannot add the device \"mine\": it has 0 back ends, not 1 to 8",
        ),
        (
            net((0..9).flat_map(|_| one()).collect(), NetOptions::default()),
            "it has 9 back ends, not 1 to 8",
        ),
    ] {
        let text = refused(builder);
        assert!(text.contains(words), "{words}: {text}");
    }
    // One that fails while the machine is built.
    let folder = tempfile::tempdir().unwrap();
    let mut image = DiskConfig::new(folder.path().join("image"));
    image.size = Some(ampoule_vmm::config::MemorySize::mib(1));
    let config = VmConfig {
        disk: vec![image],
        ..config(guests::VIRTIO_BLOCK, 1)
    };
    let builder = VmBuilder::new(config);
    let text = refused(builder.wrap_disk("disk0", |_| Err(io::Error::other("no key"))));
    assert!(text.contains("its wrapper failed: no key"), "{text}");
}
