//! The data half where the host's kernel is it: it gives the pairs of queues to vhost-net, and takes them back.
//!
//! No frame and no notification of a pair comes through here: the kernel waits for the queues' events by itself, and raises the
//! device's interrupt line, too. The control queue is served as ever. A queue that its driver breaks the kernel leaves alone until
//! the next notification; of that, as of frames that the tap does not take, it tells by one and the same event, which is counted
//! and logged.

use std::io;
use std::sync::Arc;

use vmm_sys_util::epoll::EventSet;

use super::control::Control;
use super::{Log, enable, features};
use crate::backend::vhost_net::{RX, TX, VhostNet};
use crate::virtio::device::{
    ActivateError, EventSource, InterruptSource, VirtioInterrupt, VirtioWorker, WorkerError,
};
use crate::virtio::queue::ActiveQueue;
use crate::virtio::status::features as ring;

/// The features that are the kernel's matter; the others are the tap's, and the control queue's.
pub(super) const OF_THE_KERNEL: u64 = ring::COMMON | features::MRG_RXBUF;

struct Pair {
    rx: ActiveQueue,
    tx: ActiveQueue,
    kernel: Arc<VhostNet>,
}

pub(super) struct VhostWorker {
    pairs: Vec<Pair>,
    control: Option<Control>,
    /// Those that go on when the VM does.
    paused: Vec<Arc<VhostNet>>,
    log: Arc<Log>,
}

impl VhostWorker {
    /// Gives the queues to the kernel, and has it begin with the first pair.
    pub(super) fn start(
        kernels: &[Arc<VhostNet>],
        pairs: Vec<(ActiveQueue, ActiveQueue)>,
        control: Option<Control>,
        (accepted, interrupt): (u64, &dyn VirtioInterrupt),
        log: Arc<Log>,
    ) -> Result<Self, ActivateError> {
        let mut started = Self {
            pairs: Vec::new(),
            control,
            paused: Vec::new(),
            log,
        };
        for ((rx, tx), kernel) in pairs.into_iter().zip(kernels) {
            kernel.set_features(accepted & OF_THE_KERNEL)?;
            for (index, queue) in [(RX, &rx), (TX, &tx)] {
                let call = interrupt
                    .irqfd(InterruptSource::Queue(queue.index()))
                    .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
                kernel.give(index, queue, call)?;
            }
            let kernel = kernel.clone();
            started.pairs.push(Pair { rx, tx, kernel });
        }
        if let Some(first) = started.pairs.first() {
            first.kernel.set_enabled(true)?;
        }
        Ok(started)
    }

    fn give_back(&mut self) -> Vec<ActiveQueue> {
        let mut queues = Vec::new();
        for Pair {
            mut rx,
            mut tx,
            kernel,
        } in self.pairs.drain(..)
        {
            let mut stop = || {
                kernel.set_running(false)?;
                kernel.take_back(RX, &mut rx)?;
                kernel.take_back(TX, &mut tx)
            };
            if let Err(err) = stop() {
                self.log.failed("stopping vhost-net", &err);
            }
            queues.extend([rx, tx]);
        }
        queues.extend(self.control.take().map(Control::stop));
        queues
    }
}

/// However it ends, the kernel leaves the driver's memory.
impl Drop for VhostWorker {
    fn drop(&mut self) {
        drop(self.give_back());
    }
}

impl VirtioWorker for VhostWorker {
    fn event_sources(&self) -> Vec<EventSource> {
        (0..)
            .zip(&self.pairs)
            .map(|(token, pair)| EventSource {
                fd: pair.kernel.errors(),
                token,
                events: EventSet::IN,
            })
            .collect()
    }

    fn takes_notifications(&self, index: u16) -> bool {
        usize::from(index / 2) >= self.pairs.len()
    }

    fn process_queue(&mut self, index: u16) -> Result<(), WorkerError> {
        if let Some(control) = &mut self.control
            && usize::from(index / 2) >= self.pairs.len()
        {
            let (pairs, log) = (&self.pairs, &self.log);
            control.answer(|wanted| {
                enable(pairs.len(), wanted, log, |pair, enabled| {
                    pairs[pair].kernel.set_enabled(enabled)
                })
            })?;
        }
        Ok(())
    }

    fn process_event(&mut self, token: u32, _events: EventSet) -> Result<(), WorkerError> {
        if let Some(pair) = self.pairs.get(token as usize)
            && pair.kernel.take_errors() > 0
        {
            let err = io::Error::other("the tap takes no frames, or the driver has broken a queue");
            self.log.failed("vhost-net", &err);
        }
        Ok(())
    }

    fn pause(&mut self) -> Result<(), WorkerError> {
        for pair in self.pairs.iter().filter(|pair| pair.kernel.is_running()) {
            pair.kernel.set_running(false)?;
            self.paused.push(pair.kernel.clone());
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), WorkerError> {
        for kernel in self.paused.drain(..) {
            kernel.set_running(true)?;
        }
        Ok(())
    }

    fn stop(mut self: Box<Self>) -> Vec<ActiveQueue> {
        self.give_back()
    }
}
