//! What bare guests show, on any KVM: the machine's own, one in software included.

mod block;
mod density;
mod exits;
mod growth;
mod idle;
mod memory;
mod net;
mod pause;
mod start;
pub(crate) mod tap;
mod vsock;

use crate::bench::Measurement;

/// The name of this part.
const PART: &str = "bare";

/// All of them, in the order in which one reads of them.
pub(crate) const ALL: &[Measurement] = &[
    ("start", "start to exit", start::measure),
    ("growth", "start by the machine's size", growth::measure),
    ("exits", "what an exit costs", exits::measure),
    (
        "memory",
        "memory of the VMM, and its size on disk",
        memory::measure,
    ),
    ("idle", "what an idle VM costs", idle::measure),
    ("block", "disks", block::measure),
    ("block-calls", "system calls of disks", block::measure_calls),
    ("net", "network", net::measure),
    ("vsock", "sockets between guest and host", vsock::measure),
    ("pause", "pause and resume", pause::measure),
    ("density", "many VMs", density::measure),
];
