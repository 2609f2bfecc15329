//! What is counted: bytes, connections, and what guest and host do wrong, of which less and less is logged.

use std::io;
use std::sync::Arc;

use crate::metrics::{Counter, Tally};
use crate::virtio::DeviceMetrics;

/// The counters of the device, as its worker has them.
#[derive(Debug)]
pub(super) struct Counters {
    device: Arc<DeviceMetrics>,
    bad_packet: Tally,
    bad_buffer: Tally,
    too_many: Tally,
    host: Tally,
    connections: Arc<Counter>,
    resets: Arc<Counter>,
}

impl Counters {
    pub(super) fn new(device: Arc<DeviceMetrics>) -> Self {
        Self {
            bad_packet: device.guest_fault("bad-packet"),
            bad_buffer: device.guest_fault("bad-buffer"),
            too_many: device.tally("too-many-connections"),
            host: device.host_error(),
            connections: device.event("connections"),
            resets: device.event("resets-sent"),
            device,
        }
    }

    /// The guest sent a packet that breaks a rule; it was dropped or refused.
    pub(super) fn bad_packet(&self, what: &str) {
        self.bad_packet.add(format_args!("the guest sent {what}"));
    }

    /// The guest has a buffer without space for a packet.
    pub(super) fn bad_buffer(&self) {
        self.bad_buffer
            .add("the guest has a buffer without space for a packet");
    }

    /// A connection was refused for there are too many.
    pub(super) fn too_many(&self) {
        self.too_many
            .add("a connection is refused: there are too many");
    }

    /// The host failed.
    pub(super) fn host(&self, what: &str, err: &io::Error) {
        self.host.add(format_args!("{what} failed: {err}"));
    }

    /// There is a connection more.
    pub(super) fn connected(&self) {
        self.connections.add_owned(1);
    }

    /// The guest was sent a reset.
    pub(super) fn reset(&self) {
        self.resets.add_owned(1);
    }

    /// So many bytes went to the guest.
    pub(super) fn guest_got(&self, bytes: u32) {
        self.device.bytes_read.add_owned(bytes.into());
    }

    /// So many bytes came from the guest.
    pub(super) fn guest_sent(&self, bytes: u32) {
        self.device.bytes_written.add_owned(bytes.into());
    }
}
