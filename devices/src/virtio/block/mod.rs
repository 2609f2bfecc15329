//! The block device. Virtio 1.2, section 5.2.
//!
//! `request` says what a driver asks for, `worker` takes it from the queues and gives it back, an [`Engine`] moves the data;
//! here is what surrounds them: features and configuration space. A request that cannot be served ends with an error status,
//! never with the device.

mod engine;
mod request;
#[cfg(test)]
mod tests;
mod worker;

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::config_change::ConfigNotifier;
use super::device::{
    ActivateError, ActivationContext, VirtioDevice, VirtioDeviceType, VirtioWorker, read_space,
};
use crate::backend::disk::{BlockBackend, SECTOR};
use crate::rate_limiter::RateLimiter;

pub use engine::Engine;

/// Feature bits (5.2.3).
pub mod features {
    /// `seg_max` is valid.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The disk cannot be written.
    pub const RO: u64 = 1 << 5;
    /// `blk_size` is valid.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// FLUSH is understood, and needed: there is a cache.
    pub const FLUSH: u64 = 1 << 9;
    /// The topology is valid.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// More queues than one.
    pub const MQ: u64 = 1 << 12;
    /// DISCARD is understood.
    pub const DISCARD: u64 = 1 << 13;
    /// WRITE_ZEROES is understood.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// When data that was written is on stable storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheMode {
    /// After a FLUSH.
    #[default]
    Writeback,
    /// When the write is done.
    Writethrough,
    /// When the host pleases: a FLUSH does nothing. For disks that nobody will miss.
    Unsafe,
}

/// The most queues that a disk has.
pub const MAX_QUEUES: u16 = 16;

const QUEUE_SIZE: u16 = 256;
/// Data segments in a request: a queue's descriptors but those of header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
const CONFIG_SIZE: usize = 60;

/// A disk, as its driver sees it, apart from its content.
#[derive(Debug, Clone)]
pub struct BlockConfig {
    /// For messages.
    pub name: String,
    /// What GET_ID returns; at most 20 bytes of it.
    pub serial: String,
    /// When data is safe.
    pub cache: CacheMode,
    /// Number of queues, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// How much may be asked of it; none for as much as it can do. A FLUSH is an operation of no bytes.
    pub limiter: Option<Arc<RateLimiter>>,
    /// How long to watch a busy queue for its next request ([`set_poll`](super::queue::ActiveQueue::set_poll)).
    pub poll: Duration,
}

/// The block device.
pub struct Block {
    config: BlockConfig,
    backend: Arc<dyn BlockBackend>,
    queue_sizes: Vec<u16>,
    engine: Engine,
    notifier: Arc<OnceLock<ConfigNotifier>>,
}

impl Block {
    /// A disk kept in `backend`, on which `engine` works.
    pub fn new(config: BlockConfig, backend: Arc<dyn BlockBackend>, engine: Engine) -> Self {
        let queues = config.queues.clamp(1, MAX_QUEUES);
        Self {
            config,
            backend,
            engine,
            notifier: Arc::default(),
            queue_sizes: vec![QUEUE_SIZE; usize::from(queues)],
        }
    }

    /// What changes its size while it is in use.
    pub fn resizer(&self) -> Resizer {
        Resizer {
            name: self.config.name.clone(),
            backend: self.backend.clone(),
            notifier: self.notifier.clone(),
        }
    }

    fn config_space(&self) -> [u8; CONFIG_SIZE] {
        let mut space = [0; CONFIG_SIZE];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.backend.size() / SECTOR).to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        // The host's pages: blocks of 2^3 sectors.
        put(24, &[3]);
        put(26, &1_u16.to_le_bytes());
        put(34, &(self.queue_sizes.len() as u16).to_le_bytes());
        put(36, &request::MAX_DISCARD_SECTORS.to_le_bytes());
        put(40, &request::MAX_SEGMENTS.to_le_bytes());
        put(44, &1_u32.to_le_bytes());
        put(48, &request::MAX_ZERO_SECTORS.to_le_bytes());
        put(52, &request::MAX_SEGMENTS.to_le_bytes());
        put(56, &[1]);
        space
    }
}

impl VirtioDevice for Block {
    fn attach(&mut self, config: ConfigNotifier) {
        // A device is attached once.
        let _ = self.notifier.set(config);
    }

    fn device_type(&self) -> VirtioDeviceType {
        VirtioDeviceType::BLOCK
    }

    fn device_features(&self) -> u64 {
        use features::*;
        let mut offered = SEG_MAX | BLK_SIZE | TOPOLOGY;
        if self.backend.is_read_only() {
            offered |= RO;
        } else {
            offered |= DISCARD | WRITE_ZEROES;
        }
        if self.config.cache != CacheMode::Writethrough {
            offered |= FLUSH;
        }
        if self.queue_sizes.len() > 1 {
            offered |= MQ;
        }
        offered
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = self.config_space();
        read_space(&space, offset, data);
    }

    fn activate(
        &mut self,
        mut context: ActivationContext,
    ) -> Result<Box<dyn VirtioWorker>, ActivateError> {
        for queue in &mut context.queues {
            queue.set_poll(self.config.poll);
        }
        if context.queues.is_empty() {
            return Err(ActivateError::MissingQueue { index: 0 });
        }
        // A driver that does not flush expects every write to be safe (5.2.6.2).
        let write_through = match self.config.cache {
            CacheMode::Unsafe => false,
            CacheMode::Writethrough => true,
            CacheMode::Writeback => context.features & features::FLUSH == 0,
        };
        let disk = request::Disk {
            backend: self.backend.clone(),
            serial: self.config.serial.clone(),
            write_through,
            ignore_flush: self.config.cache == CacheMode::Unsafe,
            errors: context.metrics.host_error(),
            bad_requests: context.metrics.guest_fault("bad-request"),
            flushes: context.metrics.event("flushes"),
            metrics: context.metrics,
        };
        Ok(Box::new(worker::BlockWorker::new(
            context.queues,
            disk,
            self.engine.clone(),
            self.config.limiter.clone(),
        )))
    }
}

/// The host's way to a disk in use: looks at its image's size again. Any thread may call it.
#[derive(Clone)]
pub struct Resizer {
    name: String,
    backend: Arc<dyn BlockBackend>,
    notifier: Arc<OnceLock<ConfigNotifier>>,
}

/// What became of a disk's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resized {
    /// It is what it was, in bytes.
    Same(u64),
    /// It is so much now, and the driver has been told.
    Grown(u64),
    /// The image is smaller than the disk, which stays as it is.
    Refused {
        /// Bytes of the disk.
        disk: u64,
        /// Bytes of the image.
        image: u64,
    },
}

impl Resizer {
    /// The disk's name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Looks how large the image is by now, and tells the driver if it has grown.
    ///
    /// # Errors
    /// The host's.
    pub fn resize(&self) -> io::Result<Resized> {
        let (name, disk) = (&self.name, self.backend.size());
        let image = self.backend.refresh_size()?;
        if image < disk {
            log::warn!("{name}: the image has shrunk to {image} bytes; the disk keeps its {disk}");
            return Ok(Resized::Refused { disk, image });
        }
        if image == disk {
            return Ok(Resized::Same(disk));
        }
        log::info!("{name}: grown from {disk} to {image} bytes");
        if let Some(notifier) = self.notifier.get() {
            notifier.notify()?;
        }
        Ok(Resized::Grown(image))
    }
}
