//! The counters of a virtio device: made once, with the device, and kept through its resets.
//!
//! A queue's are written by the worker that has the queue; the device's by its worker, or, where they are rare, by any
//! thread. [`DeviceMetrics::counts`] is a picture of them for people and programs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use log::Level;
use serde::Serialize;

use super::device::VirtioDeviceType;
use super::queue::QueueError;
use crate::metrics::{Counter, LogBudget, Tally};

/// The counters of a queue.
#[derive(Debug, Default)]
pub struct QueueMetrics {
    /// Chains given back.
    pub(super) requests: Counter,
    /// How often its event rang, [`Self::own_rings`] included.
    pub(super) rings: Counter,
    /// How often the device's own side rang it.
    pub(super) own_rings: Counter,
    faults: [Counter; QueueError::KINDS.len()],
}

impl QueueMetrics {
    /// The driver broke the queue.
    pub(super) fn fault(&self, error: &QueueError) {
        if let Some(counter) = self.faults.get(error.kind()) {
            counter.add(1);
        }
    }

    fn notifications(&self) -> u64 {
        // A ring of our own is counted before it can be taken.
        let own = self.own_rings.get();
        self.rings.get().saturating_sub(own)
    }
}

/// What a named counter is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    GuestFault,
    Event,
}

/// The counters of a device.
#[derive(Debug)]
pub struct DeviceMetrics {
    name: String,
    device_type: VirtioDeviceType,
    queues: Vec<Arc<QueueMetrics>>,
    /// Bytes of content that went to the guest: read from a disk, received from a network.
    pub bytes_read: Counter,
    /// Bytes of content that came from the guest: written to a disk, sent to a network.
    pub bytes_written: Counter,
    /// Interrupts for used buffers.
    pub interrupts: Counter,
    /// Interrupts for a changed configuration or status.
    pub config_interrupts: Counter,
    /// How often the driver reset the device.
    pub resets: Counter,
    host_errors: Arc<Counter>,
    log: Arc<LogBudget>,
    /// Counters that not every device has; looked up when a worker is made, not when it works.
    named: Mutex<Vec<(Kind, &'static str, Arc<Counter>)>>,
}

impl DeviceMetrics {
    /// Counters of the device with this name and these queues, all zero.
    pub fn new(
        name: impl Into<String>,
        device_type: VirtioDeviceType,
        queues: Vec<Arc<QueueMetrics>>,
    ) -> Self {
        Self {
            name: name.into(),
            device_type,
            queues,
            bytes_read: Counter::new(),
            bytes_written: Counter::new(),
            interrupts: Counter::new(),
            config_interrupts: Counter::new(),
            resets: Counter::new(),
            host_errors: Arc::default(),
            log: Arc::default(),
            named: Mutex::default(),
        }
    }

    /// Has what is logged of the device taken from `budget`.
    pub fn with_log(mut self, budget: Arc<LogBudget>) -> Self {
        self.log = budget;
        self
    }

    /// The device's name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Counts, and logs at a limited rate, a kind of mistake of the guest's; besides those that break a queue, which are
    /// counted already. The same counter for the same kind.
    pub fn guest_fault(&self, kind: &'static str) -> Tally {
        let counter = self.find(Kind::GuestFault, kind);
        self.new_tally(Level::Warn, counter)
    }

    /// Counts and logs the host's errors.
    pub fn host_error(&self) -> Tally {
        self.new_tally(Level::Error, self.host_errors.clone())
    }

    /// Counts, and logs at a limited rate, something that deserves a warning and is not the guest's mistake alone.
    pub fn tally(&self, name: &'static str) -> Tally {
        self.new_tally(Level::Warn, self.event(name))
    }

    fn new_tally(&self, level: Level, counter: Arc<Counter>) -> Tally {
        Tally::new(&self.name, level, counter, self.log.clone())
    }

    /// Counts something that only devices like this one have. The same counter for the same name.
    pub fn event(&self, name: &'static str) -> Arc<Counter> {
        self.find(Kind::Event, name)
    }

    fn find(&self, kind: Kind, name: &'static str) -> Arc<Counter> {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        let known = named
            .iter()
            .find(|entry| (entry.0, entry.1) == (kind, name));
        if let Some((_, _, counter)) = known {
            return counter.clone();
        }
        let counter = Arc::<Counter>::default();
        named.push((kind, name, counter.clone()));
        counter
    }

    /// What has been counted so far.
    pub fn counts(&self) -> DeviceCounts {
        let sum = |of: fn(&QueueMetrics) -> u64| self.queues.iter().map(|queue| of(queue)).sum();
        let mut counts = DeviceCounts {
            kind: self.device_type.name(),
            requests: sum(|queue| queue.requests.get()),
            bytes_read: self.bytes_read.get(),
            bytes_written: self.bytes_written.get(),
            notifications: sum(QueueMetrics::notifications),
            interrupts: self.interrupts.get(),
            config_interrupts: self.config_interrupts.get(),
            resets: self.resets.get(),
            host_errors: self.host_errors.get(),
            ..DeviceCounts::default()
        };
        for (at, kind) in QueueError::KINDS.into_iter().enumerate() {
            let faults = self.queues.iter().map(|queue| queue.faults[at].get());
            counts.guest_faults.insert(kind, faults.sum());
        }
        let named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        for (kind, name, counter) in &*named {
            let map = match kind {
                Kind::GuestFault => &mut counts.guest_faults,
                Kind::Event => &mut counts.events,
            };
            map.insert(name, counter.get());
        }
        counts
    }
}

/// What a device's counters said at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DeviceCounts {
    /// What the device is, in a word.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Requests served: descriptor chains given back, whatever came of them.
    pub requests: u64,
    /// Bytes of content that went to the guest: read from a disk, received from a network.
    pub bytes_read: u64,
    /// Bytes of content that came from the guest: written to a disk, sent to a network.
    pub bytes_written: u64,
    /// Notifications of the driver's.
    pub notifications: u64,
    /// Interrupts for used buffers.
    pub interrupts: u64,
    /// Interrupts for a changed configuration or status.
    pub config_interrupts: u64,
    /// How often the driver reset the device.
    pub resets: u64,
    /// Errors of the host's.
    pub host_errors: u64,
    /// Mistakes of the guest's, by kind.
    pub guest_faults: BTreeMap<&'static str, u64>,
    /// What only devices of this type have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub events: BTreeMap<&'static str, u64>,
}

impl DeviceCounts {
    /// Adds what the same device counted in another life of the machine.
    pub fn add(&mut self, other: &Self) {
        self.kind = other.kind;
        self.requests += other.requests;
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
        self.notifications += other.notifications;
        self.interrupts += other.interrupts;
        self.config_interrupts += other.config_interrupts;
        self.resets += other.resets;
        self.host_errors += other.host_errors;
        for (kind, count) in &other.guest_faults {
            *self.guest_faults.entry(kind).or_default() += count;
        }
        for (name, count) in &other.events {
            *self.events.entry(name).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_counter_and_lives_of_a_machine_add_up() {
        let metrics = DeviceMetrics::new("disk0", VirtioDeviceType::BLOCK, Vec::new());
        metrics.guest_fault("bad-request").add("it is bad");
        metrics.guest_fault("bad-request").add("again");
        metrics.event("flushes").add(3);
        metrics.host_error().add("it failed");
        metrics.bytes_read.add_owned(512);
        let mut counts = metrics.counts();
        assert_eq!(counts.guest_faults["bad-request"], 2);
        assert_eq!(
            counts.guest_faults["ring"], 0,
            "kinds of all queues are there"
        );
        assert_eq!(counts.events["flushes"], 3);
        counts.add(&metrics.counts());
        assert_eq!(counts.guest_faults["bad-request"], 4);
        assert_eq!((counts.bytes_read, counts.host_errors), (1024, 2));
        assert_eq!(counts.kind, "block");
    }
}
