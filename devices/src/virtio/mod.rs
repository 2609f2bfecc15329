//! Virtio devices, version 1.2 of the specification, split rings, no legacy interface.
//!
//! A device has two halves. The control half ([`VirtioDevice`]) says what it is and is owned by the [`status`] machine, which
//! a [`transport`] drives from vCPU threads. When the driver is ready, the control half makes the data half
//! ([`VirtioWorker`]), which owns the [`queue`]s and lives on an I/O thread until the device is reset.
//!
//! # The table of devices
//! | id | device | module | specification |
//! |---|---|---|---|
//! | 1 | network | [`net`] | 5.1 |
//! | 2 | block | [`block`] | 5.2 |
//! | 3 | console | [`console`] | 5.3 |
//! | 4 | entropy | [`rng`] | 5.4 |
//! | 19 | socket | [`vsock`] | 5.10 |
//! | 26 | file system | [`fs`] | 5.11 |

pub mod block;
pub mod config_change;
pub mod console;
pub mod device;
pub mod fs;
pub mod metrics;
pub mod net;
pub mod notification;
pub mod queue;
pub mod rng;
pub mod status;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod transport;
pub mod vsock;

pub use config_change::ConfigNotifier;
pub use device::{
    ActivateError, ActivationContext, EventSource, InterruptSource, VirtioDevice, VirtioDeviceType,
    VirtioInterrupt, VirtioWorker, WorkerError, WorkerHost, WorkerId,
};
pub use metrics::DeviceMetrics;
pub use notification::Notification;
