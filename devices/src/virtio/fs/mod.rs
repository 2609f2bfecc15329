//! The file system device. Virtio 1.2, section 5.11: a queue of requests that come first, and one of the others.
//!
//! What a request means another process knows, which has the queues ([`VhostUser`]): virtiofsd, for instance. It waits for the
//! queues' events by itself, and raises the device's interrupt line, too. The worker here only watches the connection. When that
//! ends, nobody would answer any more, and whoever waits in the guest for a file would wait for ever. So the worker takes the
//! queues over, and answers what is outstanding and all that comes by "transport endpoint is not connected" (`ENOTCONN`), as a
//! local file server's end is told. A reset does not bring the other process back.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::device::{
    ActivateError, ActivationContext, EventSource, GuestMemory, InterruptSource, VirtioDevice,
    VirtioDeviceType, VirtioInterrupt, VirtioWorker, WorkerError, read_space,
};
use super::queue::{ActiveQueue, Chain};
use super::status::features;
use crate::backend::vhost_user::VhostUser;
use crate::metrics::{Counter, Tally};

/// The longest tag in bytes.
pub const MAX_TAG: usize = 36;

/// The queues: of requests that come first, and of the others.
pub const QUEUES: u16 = 2;

/// Linux has as many pages in a request as it has descriptors for, 256 at most.
const QUEUE_SIZES: [u16; QUEUES as usize] = [128, 512];

const CONFIG_SIZE: usize = MAX_TAG + 4;

/// What the worker waits for.
mod token {
    pub(super) const CONNECTION: u32 = 0;
    pub(super) const ERRORS: u32 = 1;
    pub(super) const QUEUES: u32 = 2;
}

/// The file system device.
pub struct Fs {
    tag: String,
    backend: Arc<VhostUser>,
    /// What a worker waits on that has taken its queues over.
    taken_over: Arc<Epoll>,
}

impl Fs {
    /// The file system `tag`, as `backend` has it, which has [`QUEUES`] queues.
    ///
    /// # Errors
    /// `InvalidInput` where the tag is empty or longer than [`MAX_TAG`] bytes; the host has no descriptors left.
    pub fn new(tag: &str, backend: VhostUser) -> io::Result<Self> {
        if !(1..=MAX_TAG).contains(&tag.len()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self {
            tag: tag.to_owned(),
            backend: Arc::new(backend),
            taken_over: Arc::new(Epoll::new()?),
        })
    }

    /// The features that the back end must have.
    pub fn needed_features() -> u64 {
        features::COMMON
    }

    fn config_space(&self) -> [u8; CONFIG_SIZE] {
        let mut space = [0; CONFIG_SIZE];
        space[..self.tag.len()].copy_from_slice(self.tag.as_bytes());
        let requests = u32::from(QUEUES - 1);
        space[MAX_TAG..].copy_from_slice(&requests.to_le_bytes());
        space
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> VirtioDeviceType {
        VirtioDeviceType::FS
    }

    fn device_features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.config_space(), offset, data);
    }

    fn activate(
        &mut self,
        context: ActivationContext,
    ) -> Result<Box<dyn VirtioWorker>, ActivateError> {
        for index in 0..QUEUES {
            if !context.queues.iter().any(|queue| queue.index() == index) {
                return Err(ActivateError::MissingQueue { index });
            }
        }
        let metrics = &context.metrics;
        let mut worker = FsWorker {
            backend: self.backend.clone(),
            queues: context.queues,
            interrupt: context.interrupt,
            phase: Phase::Paused,
            taken_over: self.taken_over.clone(),
            chain: Chain::new(),
            unanswered: metrics.event("unanswered"),
            broken: metrics.guest_fault("bad-queue"),
            lost: metrics.host_error(),
        };
        let started = match worker.backend.is_there() {
            true => worker.backend.set_features(context.features),
            false => Err(io::ErrorKind::NotConnected.into()),
        };
        match started.and_then(|()| worker.give()) {
            Err(err) if err.kind() == io::ErrorKind::Unsupported => return Err(err.into()),
            Err(err) => worker.lose(&err).map_err(|err| match err {
                WorkerError::Queue { index, .. } => ActivateError::BadQueue { index },
                WorkerError::Host(err) => err.into(),
            })?,
            Ok(()) => {}
        }
        Ok(Box::new(worker))
    }
}

/// Who has the queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The back end.
    Given,
    /// Nobody, for now.
    Paused,
    /// The worker: there is no back end any more.
    TakenOver,
}

struct FsWorker {
    backend: Arc<VhostUser>,
    queues: Vec<ActiveQueue>,
    interrupt: Arc<dyn VirtioInterrupt>,
    phase: Phase,
    taken_over: Arc<Epoll>,
    chain: Chain,
    /// Requests that the back end did not answer.
    unanswered: Arc<Counter>,
    broken: Tally,
    lost: Tally,
}

impl FsWorker {
    /// Gives the queues to the back end.
    fn give(&mut self) -> io::Result<()> {
        // Whatever comes of it, it may have some of them.
        self.phase = Phase::Given;
        for queue in &self.queues {
            let call = self
                .interrupt
                .irqfd(InterruptSource::Queue(queue.index()))
                .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
            self.backend.give(queue, call)?;
        }
        Ok(())
    }

    /// Takes the queues back from the back end.
    fn take_back(&mut self) -> io::Result<()> {
        self.phase = Phase::Paused;
        self.queues
            .iter_mut()
            .try_for_each(|queue| self.backend.take_back(queue))
    }

    /// The back end is gone: answers in its place.
    fn lose(&mut self, why: &io::Error) -> Result<(), WorkerError> {
        if self.phase == Phase::TakenOver {
            return Ok(());
        }
        self.lost.add(format_args!(
            "its back end is gone, and every request fails from now on: {why}"
        ));
        self.backend.give_up();
        self.phase = Phase::TakenOver;
        for (token, queue) in (0..).zip(&self.queues) {
            let fd = queue.notification().event().as_raw_fd();
            let event = EpollEvent::new(EventSet::IN, token);
            self.taken_over.ctl(ControlOperation::Add, fd, event)?;
        }
        for queue in &mut self.queues {
            for head in queue.take_over()? {
                queue.chain_of(head, &mut self.chain)?;
                let written = refuse(&self.chain, queue.memory());
                queue.push(head, written)?;
                self.unanswered.add(1);
            }
            queue.notify()?;
        }
        self.serve()
    }

    /// Answers what has come.
    fn serve(&mut self) -> Result<(), WorkerError> {
        for queue in &mut self.queues {
            queue.notification().take();
            queue.serve(&mut self.chain, |chain, memory| {
                self.unanswered.add(1);
                Ok(refuse(chain, memory))
            })?;
        }
        Ok(())
    }

    /// Nobody has the queues any more.
    fn release(&mut self) -> Vec<ActiveQueue> {
        match self.phase {
            Phase::Given => {
                if let Err(err) = self.take_back() {
                    self.lost.add(format_args!(
                        "its back end does not give its queues back: {err}"
                    ));
                }
            }
            Phase::TakenOver => {
                for queue in &self.queues {
                    let fd = queue.notification().event().as_raw_fd();
                    let (delete, event) = (ControlOperation::Delete, EpollEvent::default());
                    if let Err(err) = self.taken_over.ctl(delete, fd, event) {
                        log::debug!("a queue was not waited for: {err}");
                    }
                }
            }
            Phase::Paused => {}
        }
        self.phase = Phase::Paused;
        std::mem::take(&mut self.queues)
    }
}

/// However it ends, the back end leaves the driver's memory.
impl Drop for FsWorker {
    fn drop(&mut self) {
        drop(self.release());
    }
}

impl VirtioWorker for FsWorker {
    fn event_sources(&self) -> Vec<EventSource> {
        let source = |fd, token, events| EventSource { fd, token, events };
        vec![
            // By its edge: a connection that has ended stays so.
            source(
                self.backend.connection(),
                token::CONNECTION,
                EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED,
            ),
            source(self.backend.errors(), token::ERRORS, EventSet::IN),
            source(self.taken_over.as_raw_fd(), token::QUEUES, EventSet::IN),
        ]
    }

    fn takes_notifications(&self, _index: u16) -> bool {
        false
    }

    fn process_queue(&mut self, _index: u16) -> Result<(), WorkerError> {
        Ok(())
    }

    fn process_event(&mut self, token: u32, _events: EventSet) -> Result<(), WorkerError> {
        match token {
            token::CONNECTION if self.phase == Phase::Given && !self.backend.is_there() => {
                self.lose(&io::ErrorKind::ConnectionReset.into())
            }
            token::ERRORS => {
                if self.backend.take_errors() > 0 {
                    self.broken.add("the back end cannot use a queue");
                }
                Ok(())
            }
            token::QUEUES if self.phase == Phase::TakenOver => self.serve(),
            _ => Ok(()),
        }
    }

    fn pause(&mut self) -> Result<(), WorkerError> {
        if self.phase == Phase::Given
            && let Err(err) = self.take_back()
        {
            self.lose(&err)?;
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), WorkerError> {
        if self.phase == Phase::Paused {
            match self.give() {
                Err(err) => self.lose(&err)?,
                // What was answered while it was on its way back may have been told to nobody.
                Ok(()) => self.queues.iter().try_for_each(|queue| {
                    self.interrupt
                        .trigger(InterruptSource::Queue(queue.index()))
                })?,
            }
        }
        Ok(())
    }

    fn stop(mut self: Box<Self>) -> Vec<ActiveQueue> {
        self.release()
    }
}

/// Answers a request by ENOTCONN (5.11.6: the headers are those of FUSE). The length of the answer; some requests have no room for
/// one.
fn refuse(chain: &Chain, memory: &GuestMemory) -> u32 {
    const UNIQUE: std::ops::Range<usize> = 8..16;
    const ANSWER: u32 = 16;
    let mut request = [0; UNIQUE.end];
    let there = chain.read_start(memory, &mut request) == request.len();
    if !there || chain.writable_len() < ANSWER {
        return 0;
    }
    let mut answer = [0; ANSWER as usize];
    answer[..4].copy_from_slice(&ANSWER.to_le_bytes());
    answer[4..8].copy_from_slice(&(-libc::ENOTCONN).to_le_bytes());
    answer[8..].copy_from_slice(&request[UNIQUE]);
    chain.write_start(memory, &answer) as u32
}
