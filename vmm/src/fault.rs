//! Faults on purpose, for tests of guests and of what is built on them: disks that fail, and networks that lose frames.
//!
//! The faults are a handle ([`BlockFaults`], [`NetFaults`]) that any thread may change and read while the VM runs; a back end of
//! the program's own, or one of the configuration's, gets them put around it.
//!
//! ```no_run
//! use std::sync::Arc;
//! use ampoule_vmm::VmBuilder;
//! use ampoule_vmm::config::{DiskConfig, NetConfig, VmConfig};
//! use ampoule_vmm::fault::{
//!     BlockEffect, BlockFault, BlockFaults, BlockOp, Direction, FaultyBlock, FaultyNet, NetEffect, NetFault, NetFaults, When,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! const EIO: i32 = 5;
//! let config = VmConfig {
//!     kernel: Some("/boot/vmlinuz".into()),
//!     disk: vec![DiskConfig::new("data.img")],
//!     net: vec![NetConfig::tap("tap0")],
//!     ..VmConfig::default()
//! };
//! let disk = BlockFaults::default();
//! let lossy = NetFault::new(Direction::FromGuest, When::Every(5), NetEffect::Drop);
//! let net = NetFaults::new([lossy]);
//! let (disk_faults, net_faults) = (disk.clone(), net.clone());
//! let vm = VmBuilder::new(config)
//!     .wrap_disk("disk0", move |disk| Ok(Arc::new(FaultyBlock::new(disk, &disk_faults))))
//!     .wrap_net("net0", move |net| Ok(Arc::new(FaultyNet::new(net, &net_faults)?)))
//!     .build()?
//!     .start()?;
//! // When the guest is up, its disk breaks.
//! disk.set([BlockFault::new(BlockOp::Write, When::Every(1), BlockEffect::Fail(EIO))]);
//! println!("{}: {} writes failed, {} frames were lost", vm.wait(), disk.struck(), net.struck());
//! # Ok(())
//! # }
//! ```

pub use ampoule_devices::backend::fault::{MAX_DELAY, When};
pub use ampoule_devices::backend::fault_block::{
    BlockEffect, BlockFault, BlockFaults, BlockOp, FaultyBlock, Torn,
};
pub use ampoule_devices::backend::fault_net::{
    Direction, FaultyNet, MAX_KEPT_BYTES, MAX_KEPT_FRAMES, NetEffect, NetFault, NetFaults,
};
