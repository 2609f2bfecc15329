//! The entropy device. Virtio 1.2, section 5.4: one queue, whose writable buffers are filled with random bytes.
//!
//! The bytes are the host kernel's (getrandom(2)), which does not block once the host has booted. A request gets at most
//! [`MAX_REQUEST`] bytes, however large its buffers are: the driver asks again.

use std::io;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::device::{
    ActivateError, ActivationContext, GuestMemory, VirtioDevice, VirtioDeviceType, VirtioWorker,
    WorkerError,
};
use super::metrics::DeviceMetrics;
use super::queue::{ActiveQueue, Chain};

/// The most bytes that one request gets.
pub const MAX_REQUEST: usize = 4096;

const QUEUE_SIZES: &[u16] = &[64];

/// The entropy device.
#[derive(Debug, Default)]
pub struct Rng;

impl Rng {
    /// A source of random bytes.
    pub fn new() -> Self {
        Self
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
            metrics: context.metrics,
        }))
    }
}

struct RngWorker {
    queue: ActiveQueue,
    chain: Chain,
    metrics: Arc<DeviceMetrics>,
}

impl VirtioWorker for RngWorker {
    fn process_queue(&mut self, _index: u16) -> Result<(), WorkerError> {
        let metrics = &self.metrics;
        self.queue.serve(&mut self.chain, |chain, memory| {
            let filled = fill(chain, memory)?;
            metrics.bytes_read.add_owned(filled.into());
            Ok(filled)
        })
    }

    fn stop(self: Box<Self>) -> Vec<ActiveQueue> {
        vec![self.queue]
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
