//! Ampoule: a KVM virtual machine monitor as a library.
//!
//! A [`config::VmConfig`] says what a VM is to be, a [`VmBuilder`] makes a [`Vm`] of it, and a running one is held by its
//! [`VmHandle`]. The library returns instead of exiting, prints nothing by itself, and installs no handler but the one that
//! [`kick_signal`] names.
//!
//! # Threads
//! One thread for each vCPU runs guest code and answers its accesses to devices; one I/O thread moves the data of virtio devices;
//! one control thread owns the machine, moves
//! console bytes and keeps deadlines. All exist before the guest's first instruction.

#![deny(missing_docs)]

pub mod backend;
pub mod config;
pub mod console;
pub mod devices;
pub mod fault;
pub mod kernel;
pub mod metrics;
pub mod probe;
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
mod io_thread;
mod kvm;
mod lifecycle;
mod machine;
mod memory;
mod own_backends;
mod own_devices;
mod passt;
mod resource_allocator;
mod threads;
mod vcpu;
mod virtio;
mod vm;

pub use ampoule_devices::virtio::block::Resized;
pub use ampoule_devices::virtio::vsock::{
    MAX_VSOCK_BACKLOG, VsockEndpoint, VsockIncoming, VsockListener, VsockStream,
};
pub use builder::VmBuilder;
pub use console_stream::{ConsoleStream, DEFAULT_CONSOLE_BYTES};
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
pub use vm::Vm;
