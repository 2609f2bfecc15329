//! What disks and networks of a program's own are made of: the traits that the built-in back ends implement, and the types that
//! these speak in.
//!
//! A disk is an `Arc<dyn` [`BlockBackend`]`>`, for [`VmBuilder::disk`](crate::VmBuilder::disk); a network is one `Arc<dyn`
//! [`NetBackend`]`>` for each of its pairs of queues, for [`VmBuilder::net`](crate::VmBuilder::net). Their methods are called on
//! the VM's I/O thread, which all its devices share, and while a VM is paused not at all.
//!
//! ```no_run
//! use std::io;
//! use std::sync::{Arc, Mutex};
//! use ampoule_vmm::backend::{BlockBackend, VolatileSlice};
//! use ampoule_vmm::config::VmConfig;
//! use ampoule_vmm::{DiskOptions, VmBuilder};
//!
//! /// A disk in memory.
//! struct MemoryDisk(Mutex<Vec<u8>>);
//!
//! impl BlockBackend for MemoryDisk {
//!     fn size(&self) -> u64 {
//!         self.0.lock().unwrap().len() as u64
//!     }
//!     fn is_read_only(&self) -> bool {
//!         false
//!     }
//!     fn read_at(&self, data: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
//!         let (disk, mut at) = (self.0.lock().unwrap(), offset as usize);
//!         for piece in data {
//!             piece.copy_from(&disk[at..at + piece.len()]);
//!             at += piece.len();
//!         }
//!         Ok(())
//!     }
//!     fn write_at(&self, data: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
//!         let (mut disk, mut at) = (self.0.lock().unwrap(), offset as usize);
//!         for piece in data {
//!             at += piece.copy_to(&mut disk[at..at + piece.len()]);
//!         }
//!         Ok(())
//!     }
//!     fn flush(&self) -> io::Result<()> {
//!         Ok(())
//!     }
//!     fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
//!         Ok(())
//!     }
//!     fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> io::Result<()> {
//!         let mut disk = self.0.lock().unwrap();
//!         disk[offset as usize..(offset + len) as usize].fill(0);
//!         Ok(())
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = VmConfig { kernel: Some("/boot/vmlinuz".into()), ..VmConfig::default() };
//! let scratch = Arc::new(MemoryDisk(Mutex::new(vec![0; 64 << 20])));
//! let vm = VmBuilder::new(config)
//!     .disk("scratch", scratch, DiskOptions::default())
//!     .build()?
//!     .start()?;
//! println!("{}", vm.wait());
//! # Ok(())
//! # }
//! ```

pub use ampoule_devices::backend::disk::{
    BlockBackend, DiskError, OpenDisk, RawDisk, Route, SECTOR,
};
pub use ampoule_devices::backend::net::{
    HEADER_SIZE, MAX_FRAME, MAX_PIECES, NetBackend, Offloads, Pieces,
};
pub use vm_memory::VolatileSlice;
