//! The entropy device. Virtio 1.2, section 5.4: one queue, whose writable buffers are filled with random bytes.
//!
//! The bytes are the host kernel's (getrandom(2)), which does not block once the host has booted. A request gets at most
//! [`MAX_REQUEST`] bytes, however large its buffers are: the driver asks again. So that no guest keeps a processor of the host's
//! busy with it, there are so many requests and bytes a second ([`limit`]); what is beyond waits in the driver's queue.

use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Instant;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::EventSet;

use super::device::{
    ActivateError, ActivationContext, EventSource, GuestMemory, VirtioDevice, VirtioDeviceType,
    VirtioWorker, WorkerError,
};
use super::metrics::DeviceMetrics;
use super::queue::{ActiveQueue, Chain};
use crate::rate_limiter::{Rate, RateLimit, RateLimiter};

/// The most bytes that one request gets.
pub const MAX_REQUEST: usize = 4096;

/// Bytes a second: 32 bytes seed a kernel.
const BYTES: NonZeroU64 = NonZeroU64::new(1 << 20).unwrap();
/// Requests a second: as many of 64 bytes, which is what Linux asks for at a time.
const REQUESTS: NonZeroU64 = NonZeroU64::new((1 << 20) / 64).unwrap();

/// What a guest gets at most: 1 MiB and 16,384 requests a second, a tenth of that at once.
pub fn limit() -> RateLimit {
    let largest = NonZeroU64::new(MAX_REQUEST as u64).unwrap_or(NonZeroU64::MIN);
    RateLimit {
        ops: Some(Rate::new(REQUESTS, None, NonZeroU64::MIN)),
        bytes: Some(Rate::new(BYTES, None, largest)),
    }
}

const QUEUE_SIZES: &[u16] = &[64];

/// The entropy device.
#[derive(Debug, Default)]
pub struct Rng {
    /// Kept here, so that a reset fills no bucket.
    limiter: Option<Arc<RateLimiter>>,
}

impl Rng {
    /// A source of random bytes without a limit.
    pub fn new() -> Self {
        Self::default()
    }

    /// A source of random bytes that has one.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn limited(limit: RateLimit) -> io::Result<Self> {
        let limiter = RateLimiter::new(limit, Instant::now())?;
        Ok(Self {
            limiter: Some(Arc::new(limiter)),
        })
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> VirtioDeviceType {
        VirtioDeviceType::RNG
    }

    fn device_features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(
        &mut self,
        mut context: ActivationContext,
    ) -> Result<Box<dyn VirtioWorker>, ActivateError> {
        let queue = context
            .queues
            .pop()
            .ok_or(ActivateError::MissingQueue { index: 0 })?;
        Ok(Box::new(RngWorker {
            queue,
            chain: Chain::new(),
            limiter: self.limiter.clone(),
            waiting: false,
            metrics: context.metrics,
        }))
    }
}

struct RngWorker {
    queue: ActiveQueue,
    chain: Chain,
    limiter: Option<Arc<RateLimiter>>,
    /// A request waits for the limiter's timer.
    waiting: bool,
    metrics: Arc<DeviceMetrics>,
}

impl VirtioWorker for RngWorker {
    fn event_sources(&self) -> Vec<EventSource> {
        let timer = self.limiter.iter().map(|limiter| EventSource {
            fd: limiter.fd(),
            token: 0,
            events: EventSet::IN | EventSet::EDGE_TRIGGERED,
        });
        timer.collect()
    }

    fn process_queue(&mut self, _index: u16) -> Result<(), WorkerError> {
        // A driver that notifies again and again asks nobody for more.
        if self.waiting {
            return Ok(());
        }
        self.serve()
    }

    fn process_event(&mut self, _token: u32, _events: EventSet) -> Result<(), WorkerError> {
        self.waiting = false;
        self.serve()
    }

    fn stop(self: Box<Self>) -> Vec<ActiveQueue> {
        vec![self.queue]
    }
}

impl RngWorker {
    /// Answers requests as far as the limit allows: at most as many as the queue has, so that others on the thread have their turn.
    fn serve(&mut self) -> Result<(), WorkerError> {
        let mut budget = self.queue.size();
        self.queue.disable_notification()?;
        loop {
            while budget > 0 && self.queue.pop(&mut self.chain)? {
                budget -= 1;
                if !self.may_serve()? {
                    self.queue.undo_pop(self.chain.head());
                    // The timer tells when to go on, the driver need not.
                    return self.queue.notify();
                }
                let filled = fill(&self.chain, self.queue.memory())?;
                self.metrics.bytes_read.add_owned(filled.into());
                self.queue.push(self.chain.head(), filled)?;
            }
            self.queue.notify()?;
            if budget == 0 {
                return self.queue.come_back();
            }
            if !self.queue.enable_notification()? {
                return Ok(());
            }
            self.queue.disable_notification()?;
        }
    }

    fn may_serve(&mut self) -> Result<bool, WorkerError> {
        let Some(limiter) = &self.limiter else {
            return Ok(true);
        };
        let bytes = MAX_REQUEST.min(self.chain.writable_len() as usize);
        if let Err(wait) = limiter.take(1, bytes as u64, Instant::now()) {
            self.waiting = true;
            limiter.wake_after(wait)?;
        }
        Ok(!self.waiting)
    }
}

fn fill(chain: &Chain, memory: &GuestMemory) -> Result<u32, WorkerError> {
    let mut bytes = [0; MAX_REQUEST];
    let wanted = MAX_REQUEST.min(chain.writable_len() as usize);
    let bytes = &mut bytes[..wanted];
    random(bytes)?;
    let mut rest: &[u8] = bytes;
    for buffer in chain.writable() {
        let (now, later) = rest.split_at(rest.len().min(buffer.len as usize));
        write(memory, buffer.address, now)?;
        rest = later;
    }
    Ok(wanted as u32)
}

fn write(memory: &GuestMemory, address: GuestAddress, bytes: &[u8]) -> Result<(), WorkerError> {
    // The chain's buffers have been checked to be memory, which never goes away.
    memory
        .write_slice(bytes, address)
        .map_err(|err| WorkerError::Host(io::Error::other(err)))
}

fn random(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = &mut bytes[filled..];
        // SAFETY: the pointer and the length are those of a slice that is borrowed for the call.
        let count = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(count) {
            Ok(count) => filled += count,
            Err(_) => {
                let err = io::Error::last_os_error();
                if err.kind() != io::ErrorKind::Interrupted {
                    return Err(err);
                }
            }
        }
    }
    Ok(())
}
