//! The devices that the targets for all devices drive. A new device is one row.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ampoule_devices::rate_limiter::RateLimit;
use ampoule_devices::virtio::VirtioDevice;
use ampoule_devices::virtio::block::{Block, BlockConfig, CacheMode, Engine};
use ampoule_devices::virtio::net::{Net, NetConfig, mac_of};
use ampoule_devices::virtio::rng::Rng;
use ampoule_devices::virtio::vsock::Vsock;

use crate::backends::{MemoryDisk, MemoryNet};

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
    Vsock::open(CID, &vsock_path()).expect("no socket")
}

/// This process's own. Stays in one folder, of which at most a dead socket is left.
pub fn vsock_path() -> PathBuf {
    let folder = std::env::temp_dir().join("ampoule-fuzz");
    std::fs::create_dir_all(&folder).expect("no folder");
    folder.join(format!("v{}", std::process::id()))
}
