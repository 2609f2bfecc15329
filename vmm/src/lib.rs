//! Ampoule: a KVM virtual machine monitor as a library.
//!
//! A [`VmConfig`](config::VmConfig) says what a VM is to be, a [`VmBuilder`] makes a [`Vm`] of it, and a running one is held by its
//! [`VmHandle`]. Linux on x86-64; a VM costs its guest's memory, some threads, and descriptors, and gives all of it back when the
//! last handle is dropped.
//!
//! ```no_run
//! use std::io::{BufRead, BufReader};
//! use std::time::Duration;
//!
//! use ampoule_vmm::config::{DiskConfig, MemorySize, VmConfig};
//! use ampoule_vmm::{ExitReason, VmBuilder};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let config = VmConfig {
//!         kernel: Some("/boot/vmlinuz".into()),
//!         initrd: Some("initramfs.cpio".into()),
//!         memory: MemorySize::mib(256),
//!         timeout: Some(Duration::from_secs(60).into()),
//!         disk: vec![DiskConfig::new("data.img")],
//!         ..VmConfig::default()
//!     };
//!     let vm = VmBuilder::new(config).build()?.start()?;
//!     // What the guest prints, from its first byte to its end.
//!     if let Some(console) = vm.console() {
//!         for line in BufReader::new(console).lines() {
//!             println!("guest: {}", line?);
//!         }
//!     }
//!     match vm.wait() {
//!         ExitReason::PowerOff => Ok(()),
//!         reason => Err(reason.to_string().into()),
//!     }
//! }
//! ```
//!
//! Many VMs live in one process, and do not notice each other. From any thread, a handle [pauses](VmHandle::pause),
//! [resumes](VmHandle::resume), [resets](VmHandle::reset) and [stops](VmHandle::stop) its VM, reads a paused one's
//! [memory](VmHandle::memory) and [registers](VmHandle::vcpu_registers), and tells [what happens](VmHandle::events) and
//! [what is counted](VmHandle::metrics). Devices of the program's own are made of what is in [`devices`].
//!
//! # What it does to the process
//! It returns instead of exiting and prints nothing; what it has to say besides errors goes to the crate `log`. Its one global is
//! an empty handler for the signal that interrupts vCPUs, [`kick_signal`], which a program leaves alone. User networking starts the
//! helper process passt, a shared directory virtiofsd; no other configuration starts any. A guest's mistakes are counted, and never end the VMM.
//!
//! # Threads
//! One thread for each vCPU (`vcpuN`) runs guest code and answers its accesses to devices; one I/O thread (`io`) moves the data of
//! virtio devices; one control thread (`vm-control`, or the caller of [`Vm::run`]) owns the machine, moves console bytes and keeps
//! deadlines. All exist before the guest's first instruction, and run the program's [hook](VmBuilder::on_thread_start) before it.
//!
//! # Features
//! These are on by default; each costs dependencies, and a build without any is complete otherwise.
//! - `decompress`: bzImages are decompressed on the host; without it, in the guest, and slower.
//! - `io-uring`: disks' asynchronous engine.
//! - `qcow2`: qcow2 images.
//!
//! Off by default are `test`, for tests that boot VMs (the module `test`), and `schema`, JSON schemas of the configuration's types.

#![deny(missing_docs)]

pub mod backend;
pub mod config;
pub mod console;
pub mod devices;
pub mod fault;
pub mod kernel;
pub mod metrics;
pub mod probe;
#[cfg(feature = "test")]
pub mod test;
pub mod timeline;

mod builder;
mod console_port;
mod console_stream;
mod control;
mod device_manager;
mod error;
mod events;
mod exit;
mod guest_watch;
mod handle;
mod helper;
mod host_cache;
mod io_thread;
mod kvm;
mod lifecycle;
mod limit;
mod machine;
mod memory;
mod own_backends;
mod own_devices;
mod own_file;
mod passt;
mod resource_allocator;
mod sync;
mod threads;
mod vcpu;
mod virtio;
mod virtiofsd;
mod vm;

pub use ampoule_devices::virtio::block::Resized;
pub use ampoule_devices::virtio::vsock::{
    MAX_VSOCK_BACKLOG, VsockEndpoint, VsockIncoming, VsockListener, VsockStream,
};
pub use builder::VmBuilder;
pub use console_stream::ConsoleStream;
pub use control::ControlSource;
pub use error::Error;
pub use events::{Events, MAX_PENDING_EVENTS, VmEvent};
pub use exit::{ExitReason, GuestPanic};
pub use handle::{ResizeError, VmHandle};
pub use kvm::KvmError;
pub use lifecycle::{PausedMemory, StateError, VmState};
pub use memory::{GuestRam, MemoryError};
pub use own_backends::{DiskOptions, NetOptions, WrapError};
pub use own_devices::{IoEvent, OwnBusDevice, OwnDeviceError, Placed, Placement};
pub use passt::PasstError;
pub use threads::VmThread;
pub use timeline::Timeline;
pub use vcpu::{FailureKind, Registers, VcpuError, VcpuFailure, kick_signal};
pub use virtiofsd::VirtiofsdError;
pub use vm::Vm;

/// The README's example, as a documentation test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
