//! The I/O thread: one event loop for the workers of a machine's virtio devices.
//!
//! The thread, named `io`, owns the workers. vCPU threads start and stop workers by calls that it carries out between two
//! events and waits for neither; it takes no lock that another thread holds, so that the calls always return. A worker that
//! fails or panics is put aside until its device is reset; the others go on.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, RemoteEndpoint, SubscriberId,
};
use vmm_sys_util::eventfd::EventFd;

use ampoule_devices::virtio::queue::ActiveQueue;
use ampoule_devices::virtio::{VirtioWorker, WorkerError, WorkerHost, WorkerId};

/// Tokens of queues have this bit; those of a worker's own events are below.
const QUEUE: u32 = 1 << 16;

/// A worker and what it waits for.
struct Runner {
    id: WorkerId,
    worker: Box<dyn VirtioWorker>,
    notifications: Vec<(u16, Arc<EventFd>)>,
    /// Tells the device that the worker is broken; none when it is.
    broken: Option<Box<dyn FnOnce(WorkerError) + Send>>,
}

impl Runner {
    fn handle(&mut self, token: u32, events: EventSet) -> Result<(), WorkerError> {
        if token & QUEUE == 0 {
            return self.worker.process_event(token, events);
        }
        let index = token as u16;
        for (_, event) in self.notifications.iter().filter(|(it, _)| *it == index) {
            // Nothing to read: the notification was taken before.
            let _ = event.read();
        }
        self.worker.process_queue(index)
    }

    /// Every descriptor that it waits on, with its token.
    fn events(&self) -> Vec<Events> {
        let ours = self.notifications.iter();
        let ours = ours.filter(|(index, _)| self.worker.takes_notifications(*index));
        let queues = ours.map(|(index, event)| {
            Events::with_data(&**event, QUEUE | u32::from(*index), EventSet::IN)
        });
        let own = self.worker.event_sources().into_iter();
        queues
            .chain(own.map(|source| {
                Events::with_data_raw(source.fd, source.token & (QUEUE - 1), source.events)
            }))
            .collect()
    }
}

impl MutEventSubscriber for Runner {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if self.broken.is_none() {
            return;
        }
        let (token, set) = (events.data(), events.event_set());
        let outcome = catch_unwind(AssertUnwindSafe(|| self.handle(token, set)));
        let error = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            // The hook has printed where and why.
            Err(_) => WorkerError::Host(io::Error::other("the device panicked")),
        };
        for events in self.events() {
            if let Err(err) = ops.remove(events) {
                log::debug!("a worker's event was not waited for: {err}");
            }
        }
        if let Some(broken) = self.broken.take() {
            broken(error);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        for events in self.events() {
            if let Err(err) = ops.add(events)
                && let Some(broken) = self.broken.take()
            {
                broken(WorkerError::Host(io::Error::other(err)));
            }
        }
        // What the driver made available before it was ready has been notified to nobody, whoever waits for it.
        for (_, event) in &self.notifications {
            let _ = event.write(1);
        }
    }
}

type Manager = EventManager<Runner>;

/// One I/O thread of a machine.
pub(crate) struct IoThread {
    endpoint: RemoteEndpoint<Runner>,
    /// The loop, until the thread has it.
    manager: Mutex<Option<Manager>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    quit: AtomicBool,
    ids: Mutex<Vec<(WorkerId, SubscriberId)>>,
    last: std::sync::atomic::AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn to_io(err: event_manager::Error) -> io::Error {
    match err {
        event_manager::Error::Epoll(err) => err.into(),
        other => io::Error::other(other),
    }
}

impl IoThread {
    /// The loop, without a thread yet.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub(crate) fn new() -> io::Result<Self> {
        let manager = Manager::new().map_err(to_io)?;
        Ok(Self {
            endpoint: manager.remote_endpoint(),
            manager: Mutex::new(Some(manager)),
            thread: Mutex::new(None),
            state: Arc::default(),
        })
    }

    /// Starts the thread. Before it, workers can neither be started nor stopped.
    ///
    /// # Errors
    /// The host refuses the thread.
    pub(crate) fn start(&self) -> io::Result<()> {
        let Some(mut manager) = lock(&self.manager).take() else {
            return Ok(());
        };
        let state = self.state.clone();
        let thread = thread::Builder::new()
            .name("io".into())
            .stack_size(256 << 10)
            .spawn(move || {
                while !state.quit.load(Ordering::Acquire) {
                    if let Err(err) = manager.run() {
                        log::error!("the I/O thread cannot wait: {err}");
                        return;
                    }
                }
            })?;
        *lock(&self.thread) = Some(thread);
        Ok(())
    }
}

impl WorkerHost for IoThread {
    fn start(
        &self,
        worker: Box<dyn VirtioWorker>,
        notifications: Vec<(u16, Arc<EventFd>)>,
        broken: Box<dyn FnOnce(WorkerError) + Send>,
    ) -> io::Result<WorkerId> {
        let id = WorkerId(self.state.last.fetch_add(1, Ordering::Relaxed));
        let runner = Runner {
            id,
            worker,
            notifications,
            broken: Some(broken),
        };
        let subscriber = self
            .endpoint
            .call_blocking(move |manager| {
                Ok::<_, event_manager::Error>(manager.add_subscriber(runner))
            })
            .map_err(to_io)?;
        lock(&self.state.ids).push((id, subscriber));
        Ok(id)
    }

    fn stop(&self, id: WorkerId) -> Vec<ActiveQueue> {
        let subscriber = {
            let mut ids = lock(&self.state.ids);
            match ids.iter().position(|(known, _)| *known == id) {
                Some(at) => ids.swap_remove(at).1,
                None => return Vec::new(),
            }
        };
        let stopped = self.endpoint.call_blocking(move |manager| {
            let runner = manager.remove_subscriber(subscriber)?;
            debug_assert_eq!(runner.id, id);
            // A worker that panicked before may do so again.
            let queues = catch_unwind(AssertUnwindSafe(|| runner.worker.stop()));
            Ok::<_, event_manager::Error>(queues.unwrap_or_default())
        });
        stopped.unwrap_or_else(|err| {
            log::error!("a worker cannot be stopped: {err}");
            Vec::new()
        })
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        let Some(thread) = lock(&self.thread).take() else {
            return;
        };
        self.state.quit.store(true, Ordering::Release);
        if let Err(err) = self.endpoint.kick() {
            log::error!("the I/O thread cannot be woken: {err}");
            return;
        }
        if thread.join().is_err() {
            log::error!("the I/O thread panicked");
        }
    }
}
