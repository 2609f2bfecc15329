//! The devices that the targets for all devices drive. A new device is one row.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ampoule_devices::backend::disk::{OpenDisk, RawDisk};
use ampoule_devices::console::ConsoleOutput;
use ampoule_devices::rate_limiter::RateLimit;
use ampoule_devices::virtio::VirtioDevice;
use ampoule_devices::virtio::block::{Block, BlockConfig, CacheMode, Engine};
use ampoule_devices::virtio::console::{Console, ConsoleLink};
use ampoule_devices::virtio::net::{Net, NetConfig, mac_of};
use ampoule_devices::virtio::rng::Rng;
use ampoule_devices::virtio::vsock::{EndpointLife, Vsock};

use crate::backends::{DISK, MemoryDisk, MemoryNet};

/// A name and a constructor.
pub type Row = (&'static str, fn() -> Box<dyn VirtioDevice>);

/// All of them. Inputs name a device by its place: new rows go to the end.
pub const ALL: &[Row] = &[
    ("rng", || Box::new(Rng::new())),
    ("block", || {
        Box::new(block(CacheMode::Writeback, 2, MemoryDisk::new(false)))
    }),
    ("net", || Box::new(net(vec![MemoryNet::new(true)]))),
    ("net of three pairs", || {
        Box::new(net((0..3).map(|_| MemoryNet::new(true)).collect()))
    }),
    ("vsock", || Box::new(vsock())),
    ("read-only block", || {
        Box::new(block(CacheMode::Unsafe, 1, MemoryDisk::new(true)))
    }),
    ("console", || Box::new(console())),
    ("block by io_uring", || Box::new(block_by_io_uring())),
];

/// The device that an input's byte names.
pub fn pick(byte: u8) -> Box<dyn VirtioDevice> {
    ALL[usize::from(byte) % ALL.len()].1()
}

/// A disk.
pub fn block(cache: CacheMode, queues: u16, disk: Arc<MemoryDisk>) -> Block {
    let config = BlockConfig {
        name: "disk".into(),
        serial: "serial".into(),
        cache,
        queues,
        limiter: None,
        poll: Duration::ZERO,
    };
    Block::new(config, disk, Engine::sync())
}

/// A disk whose requests the host has while the driver goes on; by the worker's thread, where the host has no io_uring.
fn block_by_io_uring() -> Block {
    let disk = RawDisk::open(&OpenDisk {
        path: &own_path("d"),
        read_only: false,
        create_size: Some(DISK as u64),
        direct: false,
        lock: false,
    });
    let disk = Arc::new(disk.expect("no disk"));
    let engine = Engine::io_uring(&*disk, 128).unwrap_or_else(|_| Engine::sync());
    let config = BlockConfig {
        name: "disk".into(),
        serial: "serial".into(),
        cache: CacheMode::Writeback,
        queues: 2,
        limiter: None,
        poll: Duration::ZERO,
    };
    Block::new(config, disk, engine)
}

/// A console on a terminal that nobody reads.
fn console() -> Console {
    let output = ConsoleOutput::with_limits(4096, Duration::ZERO).expect("no event");
    let link = ConsoleLink::new(Arc::new(output), Some((80, 25))).expect("no event");
    link.receive(b"typed before there was anybody to read it");
    Console::new(Arc::new(link))
}

/// A network interface; a pair of queues for each back end.
pub fn net(backends: Vec<Arc<MemoryNet>>) -> Net {
    let config = NetConfig {
        name: "net".into(),
        mac: mac_of("net"),
        mtu: Some(1500),
        limit: RateLimit::default(),
    };
    let backends = backends.into_iter().map(|it| it as _).collect();
    Net::new(config, backends).expect("no limit, and some back ends")
}

/// The context id of [`vsock`]'s guest.
pub const CID: u32 = 3;

/// A socket device at [`vsock_path`].
pub fn vsock() -> Vsock {
    let life = EndpointLife::new().expect("no event");
    Vsock::open(CID, Some(&vsock_path()), life.endpoint()).expect("no socket")
}

/// The socket at which programs of the host connect.
pub fn vsock_path() -> PathBuf {
    own_path("v")
}

/// A path of this process's own, in one folder, in which little stays.
fn own_path(prefix: &str) -> PathBuf {
    let folder = std::env::temp_dir().join("ampoule-fuzz");
    std::fs::create_dir_all(&folder).expect("no folder");
    folder.join(format!("{prefix}{}", std::process::id()))
}
