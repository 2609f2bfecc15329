//! Where the workers of a machine's virtio devices run: an event loop, and a thread for it.
//!
//! A [`WorkerLoop`] is an epoll instance and the workers that wait on it. Whoever calls [`WorkerLoop::dispatch`] runs them: an
//! [`IoThread`], named `io`, or the control thread, where a machine has none but devices of little work. vCPU threads start and
//! stop workers. A worker has a lock of its own, which is held while it works, and a stop waits for that; before, it takes the
//! worker off the list, so that it waits for one call at most, however often the driver notifies. The list's lock is a leaf. A
//! worker that fails or panics is put aside until its device is reset; the others go on.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use ampoule_devices::virtio::queue::ActiveQueue;
use ampoule_devices::virtio::{Notification, VirtioWorker, WorkerError, WorkerHost, WorkerId};

use crate::lifecycle::OwnThread;
use crate::sync::lock;
use crate::threads::{Muster, VmThread};

/// Tokens of queues have this bit; those of a worker's own events are below.
const QUEUE: u32 = 1 << 16;

/// Events that one turn takes.
const EVENTS: usize = 32;

/// What the event data of a loop's own wake-up is; no worker has this number.
const KICK: u64 = u64::MAX;

/// A worker and what it waits for.
struct Runner {
    /// None when it has been stopped.
    worker: Option<Box<dyn VirtioWorker>>,
    notifications: Vec<(u16, Arc<Notification>)>,
    /// The descriptors that the loop waits on for it.
    waited: Vec<RawFd>,
    /// Its VM is paused. An event that was on its way comes again when it goes on.
    paused: bool,
    /// Tells the device that the worker is broken; none when it is.
    broken: Option<Box<dyn FnOnce(WorkerError) + Send>>,
}

impl Runner {
    /// Every descriptor that it wants to wait on, with its token.
    fn events(&self) -> Vec<(RawFd, u32, EventSet)> {
        let worker = self.worker.iter();
        let takes = |index| worker.clone().all(|it| it.takes_notifications(index));
        let queues = self.notifications.iter().filter(|(index, _)| takes(*index));
        let queues = queues.map(|(index, queue)| {
            (
                queue.event().as_raw_fd(),
                QUEUE | u32::from(*index),
                EventSet::IN,
            )
        });
        let own = self.worker.iter().flat_map(|it| it.event_sources());
        queues
            .chain(own.map(|source| (source.fd, source.token & (QUEUE - 1), source.events)))
            .collect()
    }

    fn handle(&mut self, token: u32, events: EventSet) -> Result<(), WorkerError> {
        let Some(worker) = &mut self.worker else {
            return Ok(());
        };
        if token & QUEUE == 0 {
            return worker.process_event(token, events);
        }
        let index = token as u16;
        for (_, queue) in self.notifications.iter().filter(|(it, _)| *it == index) {
            // Nothing there: the notification was taken before.
            queue.take();
        }
        worker.process_queue(index)
    }

    /// Handles an event; a worker that cannot goes out of the loop.
    fn run(&mut self, token: u32, events: EventSet, epoll: &Epoll) {
        if !self.paused {
            self.guarded(epoll, |it| it.handle(token, events));
        }
    }

    /// Has a worker that is not broken do something. One that fails or panics is broken.
    fn guarded(&mut self, epoll: &Epoll, work: impl FnOnce(&mut Self) -> Result<(), WorkerError>) {
        if self.broken.is_none() {
            return;
        }
        let outcome = {
            let _own = OwnThread::enter();
            catch_unwind(AssertUnwindSafe(|| work(self)))
        };
        let error = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            // The hook has printed where and why.
            Err(_) => WorkerError::Host(io::Error::other("the device panicked")),
        };
        self.leave(epoll);
        if let Some(broken) = self.broken.take() {
            broken(error);
        }
    }

    /// Has the loop wait for its events. What the driver made available before has been notified to nobody: every queue is
    /// looked at.
    fn join(&mut self, number: u32, epoll: &Epoll) -> io::Result<()> {
        for (fd, token, events) in self.events() {
            let data = u64::from(number) << 32 | u64::from(token);
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, data))?;
            self.waited.push(fd);
        }
        let mut queues = self.notifications.iter();
        queues.try_for_each(|(_, queue)| queue.ring())
    }

    /// Ends what the worker does, and keeps it out of the loop.
    fn pause(&mut self, epoll: &Epoll) {
        self.paused = true;
        self.leave(epoll);
        self.guarded(epoll, |it| {
            it.worker.as_mut().map_or(Ok(()), |worker| worker.pause())
        });
    }

    /// Lets a paused worker go on.
    fn resume(&mut self, number: u32, epoll: &Epoll) {
        self.paused = false;
        self.guarded(epoll, |it| {
            if let Some(worker) = &mut it.worker {
                worker.resume()?;
            }
            Ok(it.join(number, epoll)?)
        });
    }

    fn leave(&mut self, epoll: &Epoll) {
        for fd in self.waited.drain(..) {
            let removed = epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
            if let Err(err) = removed {
                log::debug!("a worker's event was not waited for: {err}");
            }
        }
    }
}

/// A worker on the list of a loop.
struct Entry {
    number: u32,
    runner: Mutex<Runner>,
}

/// The workers of a loop.
#[derive(Default)]
struct Workers {
    list: Vec<Arc<Entry>>,
    last: u32,
}

impl Workers {
    fn position(&self, number: u32) -> Option<usize> {
        self.list.iter().position(|entry| entry.number == number)
    }

    fn add(&mut self, runner: Runner) -> Arc<Entry> {
        // A driver may reset its device as often as there are numbers.
        while self.position(self.last).is_some() {
            self.last = self.last.wrapping_add(1);
        }
        let entry = Arc::new(Entry {
            number: self.last,
            runner: Mutex::new(runner),
        });
        self.last = self.last.wrapping_add(1);
        self.list.push(entry.clone());
        entry
    }
}

/// An event loop of workers. It runs on whatever thread dispatches it.
pub(crate) struct WorkerLoop {
    epoll: Epoll,
    workers: Mutex<Workers>,
}

impl WorkerLoop {
    /// A loop without workers.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
            workers: Mutex::default(),
        })
    }

    /// Waits for events, at most for `timeout` milliseconds, for ever if that is negative, and has the workers handle them.
    ///
    /// # Errors
    /// The host cannot wait.
    pub(crate) fn dispatch(&self, timeout: i32) -> io::Result<()> {
        let mut events = [EpollEvent::default(); EVENTS];
        let count = match self.epoll.wait(timeout, &mut events) {
            Err(err) if err.kind() == io::ErrorKind::Interrupted => 0,
            result => result?,
        };
        for event in &events[..count] {
            let (number, token) = ((event.data() >> 32) as u32, event.data() as u32);
            let entry = {
                let workers = lock(&self.workers);
                let at = workers.position(number);
                at.map(|at| workers.list[at].clone())
            };
            // One that is gone has been stopped since.
            if let Some(entry) = entry {
                lock(&entry.runner).run(token, event.event_set(), &self.epoll);
            }
        }
        Ok(())
    }

    /// Ends what the workers do; on the return, none of them touches the guest's memory.
    pub(crate) fn pause(&self) {
        for entry in self.entries() {
            lock(&entry.runner).pause(&self.epoll);
        }
    }

    /// Lets paused workers go on.
    pub(crate) fn resume(&self) {
        for entry in self.entries() {
            lock(&entry.runner).resume(entry.number, &self.epoll);
        }
    }

    /// All workers. While a VM is paused none comes and none goes: drivers start and stop them.
    fn entries(&self) -> Vec<Arc<Entry>> {
        lock(&self.workers).list.clone()
    }
}

impl AsRawFd for WorkerLoop {
    /// Readable when there is something to dispatch.
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

impl WorkerHost for WorkerLoop {
    fn start(
        &self,
        worker: Box<dyn VirtioWorker>,
        notifications: Vec<(u16, Arc<Notification>)>,
        broken: Box<dyn FnOnce(WorkerError) + Send>,
    ) -> io::Result<WorkerId> {
        let entry = lock(&self.workers).add(Runner {
            worker: Some(worker),
            notifications,
            waited: Vec::new(),
            paused: false,
            broken: Some(broken),
        });
        let id = WorkerId(entry.number.into());
        let started = lock(&entry.runner).join(entry.number, &self.epoll);
        if let Err(err) = started {
            drop(self.stop(id));
            return Err(err);
        }
        Ok(id)
    }

    fn stop(&self, id: WorkerId) -> Vec<ActiveQueue> {
        let entry = {
            let mut workers = lock(&self.workers);
            let at = u32::try_from(id.0).ok();
            match at.and_then(|number| workers.position(number)) {
                Some(at) => workers.list.swap_remove(at),
                None => return Vec::new(),
            }
        };
        let mut runner = lock(&entry.runner);
        runner.leave(&self.epoll);
        let Some(worker) = runner.worker.take() else {
            return Vec::new();
        };
        // A worker that panicked before may do so again.
        catch_unwind(AssertUnwindSafe(|| worker.stop())).unwrap_or_default()
    }
}

/// A thread that dispatches a loop. Dropping it ends the thread.
pub(crate) struct IoThread {
    workers: Arc<WorkerLoop>,
    thread: Option<JoinHandle<()>>,
    quit: Arc<AtomicBool>,
    kick: EventFd,
}

impl IoThread {
    /// A loop, without its thread yet.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub(crate) fn new() -> io::Result<Self> {
        let workers = WorkerLoop::new()?;
        let kick = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let event = EpollEvent::new(EventSet::IN, KICK);
        let add = ControlOperation::Add;
        workers.epoll.ctl(add, kick.as_raw_fd(), event)?;
        Ok(Self {
            workers: Arc::new(workers),
            thread: None,
            quit: Arc::default(),
            kick,
        })
    }

    /// Its loop.
    pub(crate) fn workers(&self) -> &Arc<WorkerLoop> {
        &self.workers
    }

    /// Starts the thread, which comes to `muster` first.
    ///
    /// # Errors
    /// The host refuses the thread.
    pub(crate) fn start(&mut self, muster: Option<Arc<Muster>>) -> io::Result<()> {
        let (quit, workers) = (self.quit.clone(), self.workers.clone());
        let thread = thread::Builder::new()
            .name("io".into())
            .stack_size(256 << 10)
            .spawn(move || {
                if let Some(muster) = muster {
                    muster.arrive(VmThread::Io);
                }
                while !quit.load(Ordering::Acquire) {
                    if let Err(err) = workers.dispatch(-1) {
                        log::error!("the I/O thread cannot wait: {err}");
                        return;
                    }
                }
            })?;
        self.thread = Some(thread);
        Ok(())
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.quit.store(true, Ordering::Release);
        if let Err(err) = self.kick.write(1) {
            log::error!("the I/O thread cannot be woken: {err}");
            return;
        }
        if thread.join().is_err() {
            log::error!("the I/O thread panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;
    use ampoule_devices::virtio::EventSource;

    /// Tells what it is called for, and waits for leave to return.
    struct Told {
        said: Sender<String>,
        leave: Receiver<()>,
        own: Arc<EventFd>,
    }

    impl Told {
        fn say(&self, text: String) {
            self.said.send(text).unwrap();
            let _ = self.leave.recv();
        }
    }

    impl VirtioWorker for Told {
        fn event_sources(&self) -> Vec<EventSource> {
            vec![EventSource {
                fd: self.own.as_raw_fd(),
                token: 7,
                events: EventSet::IN | EventSet::EDGE_TRIGGERED,
            }]
        }

        fn process_queue(&mut self, index: u16) -> Result<(), WorkerError> {
            self.say(format!("queue {index}"));
            match index {
                1 => Err(io::Error::other("broken").into()),
                2 => panic!("on purpose"),
                _ => Ok(()),
            }
        }

        fn process_event(&mut self, token: u32, _events: EventSet) -> Result<(), WorkerError> {
            self.say(format!("event {token}"));
            Ok(())
        }

        fn stop(self: Box<Self>) -> Vec<ActiveQueue> {
            let _ = self.said.send("stopped".into());
            Vec::new()
        }
    }

    fn event() -> Arc<EventFd> {
        Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).unwrap())
    }

    /// A worker of one queue that has been started, and what it is told by and tells.
    struct Started {
        id: WorkerId,
        notification: Arc<Notification>,
        own: Arc<EventFd>,
        said: Receiver<String>,
        leave: Sender<()>,
        broken: Receiver<String>,
    }

    fn start(workers: &WorkerLoop, index: u16) -> Started {
        let (told, said) = channel();
        let (leave, may_leave) = channel();
        let (tell, broken) = channel();
        let (notification, own) = (Arc::new(Notification::new().unwrap()), event());
        let worker = Told {
            said: told,
            leave: may_leave,
            own: own.clone(),
        };
        let broken_worker = Box::new(move |err: WorkerError| {
            let _ = tell.send(ampoule_devices::error_chain(&err));
        });
        let notifications = vec![(index, notification.clone())];
        let id = workers.start(Box::new(worker), notifications, broken_worker);
        Started {
            id: id.unwrap(),
            notification,
            own,
            said,
            leave,
            broken,
        }
    }

    #[test]
    fn a_worker_is_called_for_its_events_until_it_is_stopped() {
        let mut thread = IoThread::new().unwrap();
        thread.start(None).unwrap();
        let it = start(thread.workers(), 0);
        // Unasked, for what was there before.
        assert_eq!(it.said.recv().unwrap(), "queue 0");
        it.leave.send(()).unwrap();
        it.own.write(1).unwrap();
        assert_eq!(it.said.recv().unwrap(), "event 7");
        it.leave.send(()).unwrap();
        it.notification.notify();
        assert_eq!(it.said.recv().unwrap(), "queue 0");
        // The worker is at work: a stop waits until it is not.
        thread::scope(|scope| {
            let stopping = scope.spawn(|| thread.workers().stop(it.id));
            it.leave.send(()).unwrap();
            stopping.join().unwrap();
        });
        assert_eq!(it.said.recv().unwrap(), "stopped");
        it.notification.notify();
        assert!(thread.workers().stop(it.id).is_empty());
        drop(thread);
        assert!(it.said.recv().is_err(), "a stopped worker was called");
    }

    #[test]
    fn one_that_fails_or_panics_is_put_aside_and_the_others_go_on() {
        let workers = WorkerLoop::new().unwrap();
        for (index, reason) in [(1, "broken"), (2, "the device panicked")] {
            let bad = start(&workers, index);
            let good = start(&workers, 0);
            for it in [&bad, &good] {
                it.leave.send(()).unwrap();
                it.leave.send(()).unwrap();
            }
            workers.dispatch(-1).unwrap();
            let told = bad.broken.recv().unwrap();
            assert!(told.contains(reason), "{told}");
            good.notification.notify();
            bad.notification.notify();
            workers.dispatch(-1).unwrap();
            assert_eq!(good.said.try_iter().count(), 2);
            assert_eq!(bad.said.try_iter().count(), 1);
            workers.stop(bad.id);
            workers.stop(good.id);
            assert_eq!(bad.said.recv().unwrap(), "stopped");
        }
        workers.dispatch(0).unwrap();
    }
}
