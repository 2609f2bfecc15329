//! A bounded queue from the threads on which a guest prints to the one that passes it on.
//!
//! vCPU threads call [`ConsoleOutput::write`], the control thread calls [`ConsoleOutput::drain`] when
//! [`ConsoleOutput::wake_event`] rings or its sink has room again.
//!
//! A guest that prints faster than its reader reads is slowed down: when the queue is full, a writer
//! waits for room, for as long as the reader makes progress. A reader that makes none for
//! [`STALL_LIMIT`] is stalled, and stops nobody any more: what does not fit is dropped and counted,
//! at once, until it reads on. The oldest output is what is kept. A sink that is gone gets nothing,
//! and costs nothing.
//!
//! A device whose thread may not wait offers its output instead ([`ConsoleOutput::offer`]), and is told when there is room.
//!
//! Memory is taken in small chunks as output comes, and given back as it goes; an idle console holds
//! two chunks at most.
//!
//! Locks: `front` (taken by the draining side only) before `queue`. An observer is called with `queue`
//! held.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::legacy::serial::SerialOutput;

/// How many bytes a console keeps for its reader, unless told otherwise.
pub const DEFAULT_CAPACITY: usize = 1 << 20;

/// How long a full queue waits for a reader that makes no progress.
pub const STALL_LIMIT: Duration = Duration::from_millis(250);

/// Size of the pieces that the queue grows and shrinks by.
const CHUNK: usize = 4096;

/// Sees a console's output: every byte, in order, before it can be dropped.
pub trait ConsoleObserver: Send + Sync {
    /// Looks at bytes that the guest printed, however they are cut into calls.
    ///
    /// Called on vCPU threads, one call at a time, while the console is locked: it has to be quick,
    /// and must not call the console.
    fn observe(&self, bytes: &[u8]);
}

/// Where a console's output ends up.
///
/// ```
/// use std::io;
/// use std::os::fd::RawFd;
/// use ampoule_devices::console::{ConsoleOutput, ConsoleSink, DrainState};
///
/// struct Kept(Vec<u8>);
///
/// impl ConsoleSink for Kept {
///     fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
///         self.0.extend_from_slice(bytes);
///         Ok(bytes.len())
///     }
///
///     fn poll_fd(&self) -> Option<RawFd> {
///         None
///     }
/// }
///
/// let (output, mut kept) = (ConsoleOutput::new()?, Kept(Vec::new()));
/// output.write(b"login: ");
/// assert_eq!(output.drain(&mut kept), DrainState::Empty);
/// assert_eq!(kept.0, b"login: ");
/// # Ok::<(), io::Error>(())
/// ```
pub trait ConsoleSink: Send {
    /// Takes some of `bytes`, which are not empty, and returns how many. Does not block.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is no room now, [`io::ErrorKind::Interrupted`] to be
    /// called again at once. Any other error, and a return of 0, ends the sink for good.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// What to wait on (for writing) after [`io::ErrorKind::WouldBlock`]. `None` where there is
    /// nothing to wait on: the sink never blocks, or has no descriptor at present.
    fn poll_fd(&self) -> Option<RawFd>;
}

/// How far [`ConsoleOutput::drain`] got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainState {
    /// The sink took all that there was when the call began. If more has come, the event rings.
    Empty,
    /// The sink has no room. Call again when it has; the event may not ring before.
    Blocked,
    /// The sink is gone. All output is dropped from now on.
    Closed,
}

/// The output of one console.
pub struct ConsoleOutput {
    queue: Mutex<Queue>,
    /// Output has been taken from the queue, or there is another reason not to wait.
    room: Condvar,
    /// What the drain is about to pass on.
    front: Mutex<Front>,
    wake: EventFd,
    /// Rings for [`Self::offer`]; none where nobody offers.
    room_event: Option<EventFd>,
    capacity: usize,
    stall_limit: Duration,
}

#[derive(Default)]
struct Queue {
    chunks: VecDeque<Vec<u8>>,
    /// An empty chunk to use next.
    spare: Option<Vec<u8>>,
    /// Bytes in `chunks` and those of `front` that no sink has taken.
    len: usize,
    /// Bytes that the guest printed.
    printed: u64,
    dropped: u64,
    /// Counts what sinks took, so that a waiting writer can see that they did.
    progress: u64,
    waiting: usize,
    /// Something that was offered found no room.
    refused: bool,
    stalled: bool,
    interrupted: bool,
    closed: bool,
    observer: Option<Arc<dyn ConsoleObserver>>,
}

#[derive(Default)]
struct Front {
    bytes: Vec<u8>,
    taken: usize,
}

impl ConsoleOutput {
    /// A console that keeps [`DEFAULT_CAPACITY`] bytes and waits for [`STALL_LIMIT`].
    ///
    /// # Errors
    /// The host's, on creating an event.
    pub fn new() -> io::Result<Self> {
        Self::with_limits(DEFAULT_CAPACITY, STALL_LIMIT)
    }

    /// A console that keeps at most `capacity` bytes, and waits at most `stall_limit` for a reader
    /// that makes no progress.
    ///
    /// # Errors
    /// The host's, on creating an event.
    pub fn with_limits(capacity: usize, stall_limit: Duration) -> io::Result<Self> {
        Ok(Self {
            queue: Mutex::default(),
            room: Condvar::new(),
            front: Mutex::default(),
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            room_event: None,
            capacity,
            stall_limit,
        })
    }

    /// A console that keeps at most `capacity` bytes, and whose output may be offered.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn for_offers(capacity: usize) -> io::Result<Self> {
        Ok(Self {
            room_event: Some(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?),
            ..Self::with_limits(capacity, STALL_LIMIT)?
        })
    }

    /// Has `observer` see all output from now on, in the place of any other.
    pub fn set_observer(&self, observer: Arc<dyn ConsoleObserver>) {
        self.queue().observer = Some(observer);
    }

    /// Takes output from the guest. Waits for room where there is none, as the module describes.
    pub fn write(&self, mut bytes: &[u8]) {
        let mut queue = self.queue();
        if let Some(observer) = &queue.observer {
            observer.observe(bytes);
        }
        queue.printed += bytes.len() as u64;
        loop {
            if queue.closed {
                break;
            }
            let room = self.capacity.saturating_sub(queue.len).min(bytes.len());
            let (fits, rest) = bytes.split_at(room);
            if !fits.is_empty() {
                let was_empty = queue.len == 0;
                queue.push(fits);
                if was_empty {
                    self.ring();
                }
            }
            bytes = rest;
            if bytes.is_empty() || queue.stalled || queue.interrupted {
                break;
            }
            queue = self.wait_for_room(queue);
        }
        queue.dropped += bytes.len() as u64;
    }

    /// Takes output from the guest as far as there is room, and does not wait; how much was taken. If it is less than there
    /// was, [`Self::room_event`] rings when there is room again. Of a sink that is gone or was given up, all is taken and
    /// dropped.
    pub fn offer(&self, bytes: &[u8]) -> usize {
        let mut queue = self.queue();
        let gone = queue.closed || queue.interrupted || queue.stalled;
        let room = match queue.closed {
            true => 0,
            false => self.capacity.saturating_sub(queue.len).min(bytes.len()),
        };
        let taken = if gone { bytes.len() } else { room };
        if let Some(observer) = &queue.observer {
            observer.observe(&bytes[..taken]);
        }
        queue.printed += taken as u64;
        queue.dropped += (taken - room) as u64;
        queue.refused |= taken < bytes.len();
        if room > 0 {
            let was_empty = queue.len == 0;
            queue.push(&bytes[..room]);
            if was_empty {
                self.ring();
            }
        }
        taken
    }

    /// Takes output from the guest; what there is no room for is dropped.
    pub fn offer_or_drop(&self, bytes: &[u8]) {
        let taken = self.offer(bytes);
        let mut queue = self.queue();
        queue.refused = false;
        let rest = &bytes[taken..];
        if let Some(observer) = &queue.observer {
            observer.observe(rest);
        }
        queue.printed += rest.len() as u64;
        queue.dropped += rest.len() as u64;
    }

    /// Ends the patience with a reader that has stood still since [`Self::offer`] refused: what finds no room is dropped from
    /// now on, until it reads again.
    pub fn give_up(&self) {
        let mut queue = self.queue();
        queue.stalled |= queue.refused;
        queue.refused = false;
    }

    /// The event that rings when there is room for what was refused; -1 where nothing may be offered.
    pub fn room_event(&self) -> RawFd {
        self.room_event.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Passes output on to `sink`, until it has no more room or has taken what was there when the
    /// call began. Does not block. What a sink did not take stays for the next call, which may be
    /// with another sink.
    pub fn drain(&self, sink: &mut dyn ConsoleSink) -> DrainState {
        let mut front = lock(&self.front);
        // A guest that prints as fast as its sink takes it would keep the caller here for ever.
        let mut budget = self.pending();
        loop {
            if front.taken == front.bytes.len() && !self.next_chunk(&mut front) {
                return if self.queue().closed {
                    DrainState::Closed
                } else {
                    DrainState::Empty
                };
            }
            if budget == 0 {
                self.ring();
                return DrainState::Empty;
            }
            let bytes = &front.bytes[front.taken..];
            let bytes = &bytes[..bytes.len().min(budget)];
            match sink.write(bytes) {
                Ok(0) => return self.close(front, &io::ErrorKind::WriteZero.into()),
                Ok(taken) => {
                    let taken = taken.min(bytes.len());
                    front.taken += taken;
                    budget -= taken;
                    self.taken(taken);
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return DrainState::Blocked,
                Err(err) => return self.close(front, &err),
            }
        }
    }

    /// The event that rings when there is something to drain: at least when output comes to a
    /// console that had none.
    pub fn wake_event(&self) -> &EventFd {
        &self.wake
    }

    /// Bytes that no sink has taken yet.
    pub fn pending(&self) -> usize {
        self.queue().len
    }

    /// Bytes that the guest has printed, since the console was made.
    pub fn printed(&self) -> u64 {
        self.queue().printed
    }

    /// Bytes that were dropped, since the console was made.
    pub fn dropped(&self) -> u64 {
        self.queue().dropped
    }

    /// Lets no writer wait from now on, those that do already included. What they have and what
    /// comes is dropped where it does not fit. For stopping vCPUs.
    pub fn interrupt(&self) {
        let mut queue = self.queue();
        queue.interrupted = true;
        self.tell_of_room(&mut queue);
    }

    /// Lets writers wait again, after [`interrupt`](Self::interrupt).
    pub fn resume(&self) {
        self.queue().interrupted = false;
    }

    /// Drops what is pending, and counts it.
    pub fn discard(&self) {
        let mut front = lock(&self.front);
        let mut queue = self.queue();
        self.discard_locked(&mut front, &mut queue);
        self.tell_of_room(&mut queue);
    }

    fn discard_locked(&self, front: &mut Front, queue: &mut Queue) {
        *front = Front::default();
        queue.chunks = VecDeque::new();
        queue.dropped += queue.len as u64;
        queue.len = 0;
        queue.progress += 1;
        queue.stalled = false;
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    fn ring(&self) {
        // It can only fail by being full, and then it is ringing.
        let _ = self.wake.write(1);
    }

    /// Wakes those who wait for room, and whoever offered and was refused.
    fn tell_of_room(&self, queue: &mut Queue) {
        if queue.waiting > 0 {
            self.room.notify_all();
        }
        if std::mem::take(&mut queue.refused)
            && let Some(event) = &self.room_event
        {
            // It can only fail by being full, and then it is ringing.
            let _ = event.write(1);
        }
    }

    /// Waits until there has been progress, or a reason not to wait any longer.
    fn wait_for_room<'a>(&self, mut queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        let seen = queue.progress;
        queue.waiting += 1;
        let (mut queue, result) = self
            .room
            .wait_timeout_while(queue, self.stall_limit, |queue| {
                queue.progress == seen && !queue.closed && !queue.interrupted && !queue.stalled
            })
            .unwrap_or_else(PoisonError::into_inner);
        queue.waiting -= 1;
        if result.timed_out() {
            queue.stalled = true;
            self.room.notify_all();
        }
        queue
    }

    /// Puts the oldest chunk in front; `false` when there is none.
    fn next_chunk(&self, front: &mut Front) -> bool {
        let mut queue = self.queue();
        let mut used = std::mem::take(&mut front.bytes);
        front.taken = 0;
        used.clear();
        if used.capacity() > 0 {
            queue.spare = Some(used);
        }
        match queue.chunks.pop_front() {
            Some(chunk) => {
                front.bytes = chunk;
                true
            }
            None => false,
        }
    }

    fn taken(&self, count: usize) {
        let mut queue = self.queue();
        queue.len -= count;
        queue.progress += 1;
        queue.stalled = false;
        self.tell_of_room(&mut queue);
    }

    fn close(&self, mut front: MutexGuard<'_, Front>, reason: &io::Error) -> DrainState {
        let mut queue = self.queue();
        queue.closed = true;
        self.discard_locked(&mut front, &mut queue);
        queue.spare = None;
        self.tell_of_room(&mut queue);
        drop(queue);
        log::info!("the guest's console output goes nowhere from now on: {reason}");
        DrainState::Closed
    }
}

impl Queue {
    fn push(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len();
        while !bytes.is_empty() {
            if self.chunks.back().is_none_or(|chunk| chunk.len() == CHUNK) {
                let chunk = self
                    .spare
                    .take()
                    .unwrap_or_else(|| Vec::with_capacity(CHUNK));
                self.chunks.push_back(chunk);
            }
            let Some(chunk) = self.chunks.back_mut() else {
                return;
            };
            let (fits, rest) = bytes.split_at(bytes.len().min(CHUNK - chunk.len()));
            chunk.extend_from_slice(fits);
            bytes = rest;
        }
    }
}

impl SerialOutput for ConsoleOutput {
    fn write(&self, bytes: &[u8]) {
        ConsoleOutput::write(self, bytes);
    }
}

/// A thread that panicked with the lock held leaves whole bytes behind, if not all of them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FOR_EVER: Duration = Duration::from_secs(3600);

    /// Takes `room` bytes, at most `step` at a time, then says what `end` says.
    struct Sink {
        got: Vec<u8>,
        room: usize,
        step: usize,
        end: io::ErrorKind,
    }

    impl Sink {
        fn with_room(room: usize) -> Self {
            Self {
                got: Vec::new(),
                room,
                step: usize::MAX,
                end: io::ErrorKind::WouldBlock,
            }
        }
    }

    impl ConsoleSink for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            assert!(!bytes.is_empty());
            let count = bytes.len().min(self.room).min(self.step);
            if count == 0 {
                return Err(self.end.into());
            }
            self.room -= count;
            self.got.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn poll_fd(&self) -> Option<RawFd> {
            None
        }
    }

    fn console(capacity: usize, stall_limit: Duration) -> ConsoleOutput {
        ConsoleOutput::with_limits(capacity, stall_limit).unwrap()
    }

    fn rang(output: &ConsoleOutput) -> bool {
        output.wake_event().read().is_ok()
    }

    #[test]
    fn the_event_rings_for_the_first_byte_only_and_again_once_drained() {
        let output = ConsoleOutput::new().unwrap();
        output.write(b"");
        assert!(!rang(&output));
        output.write(b"a");
        assert!(rang(&output));
        output.write(b"b");
        assert!(!rang(&output));
        let mut sink = Sink::with_room(1);
        assert_eq!(output.drain(&mut sink), DrainState::Blocked);
        output.write(b"c");
        assert!(!rang(&output));
        sink.room = 100;
        assert_eq!(output.drain(&mut sink), DrainState::Empty);
        assert_eq!((sink.got.as_slice(), output.pending()), (&b"abc"[..], 0));
        output.write(b"d");
        assert!(rang(&output));
    }

    #[test]
    fn a_slow_reader_loses_nothing() {
        let output = Arc::new(console(8, FOR_EVER));
        let text: Vec<u8> = (0..10_000).map(|n| (n % 251) as u8).collect();
        let writer = std::thread::spawn({
            let (output, text) = (output.clone(), text.clone());
            move || text.chunks(37).for_each(|piece| output.write(piece))
        });
        let mut sink = Sink::with_room(0);
        while sink.got.len() < text.len() {
            sink.room = 3;
            output.drain(&mut sink);
            assert!(output.pending() <= 8);
        }
        writer.join().unwrap();
        assert!(sink.got == text);
        assert_eq!(output.dropped(), 0);
    }

    #[test]
    fn a_stalled_reader_stops_nobody_and_the_rest_is_counted() {
        let mut output = console(8, Duration::from_millis(1));
        output.write(b"0123456789");
        assert_eq!((output.pending(), output.dropped()), (8, 2));
        // It is known to be stalled: nobody waits for it again, however long the limit.
        output.stall_limit = FOR_EVER;
        output.write(b"abc");
        assert_eq!(output.dropped(), 5);
        let mut sink = Sink::with_room(5);
        assert_eq!(output.drain(&mut sink), DrainState::Blocked);
        assert_eq!(sink.got, b"01234");
        output.write(b"xyz");
        sink.room = 100;
        assert_eq!(output.drain(&mut sink), DrainState::Empty);
        assert_eq!(
            (sink.got.as_slice(), output.dropped()),
            (&b"01234567xyz"[..], 5)
        );
    }

    #[test]
    fn a_reader_that_reads_on_is_waited_for_again() {
        let mut output = console(4, Duration::from_millis(1));
        output.write(b"01234");
        output.drain(&mut Sink::with_room(1));
        output.stall_limit = FOR_EVER;
        let output = Arc::new(output);
        let writer = std::thread::spawn({
            let output = output.clone();
            move || output.write(b"abc")
        });
        wait_for_a_waiter(&output);
        let mut sink = Sink::with_room(100);
        while sink.got.len() < 6 {
            output.drain(&mut sink);
        }
        writer.join().unwrap();
        assert_eq!((sink.got.as_slice(), output.dropped()), (&b"123abc"[..], 1));
    }

    fn wait_for_a_waiter(output: &ConsoleOutput) {
        while output.queue().waiting == 0 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_waiting_writer_can_be_interrupted_and_waits_again_after_resume() {
        let output = Arc::new(console(2, FOR_EVER));
        let write = |text: &'static [u8]| {
            let output = output.clone();
            std::thread::spawn(move || output.write(text))
        };
        let writer = write(b"abc");
        wait_for_a_waiter(&output);
        output.interrupt();
        writer.join().unwrap();
        output.write(b"d");
        assert_eq!((output.pending(), output.dropped()), (2, 2));
        output.resume();
        let writer = write(b"e");
        wait_for_a_waiter(&output);
        output.discard();
        writer.join().unwrap();
        let mut sink = Sink::with_room(100);
        output.drain(&mut sink);
        assert_eq!((sink.got.as_slice(), output.dropped()), (&b"e"[..], 4));
    }

    #[test]
    fn a_closed_sink_gets_nothing_more_and_lets_waiters_go() {
        for end in [io::ErrorKind::BrokenPipe, io::ErrorKind::StorageFull] {
            let output = Arc::new(console(4, FOR_EVER));
            let writer = std::thread::spawn({
                let output = output.clone();
                move || output.write(b"0123456")
            });
            wait_for_a_waiter(&output);
            let mut sink = Sink {
                end,
                ..Sink::with_room(0)
            };
            assert_eq!(output.drain(&mut sink), DrainState::Closed);
            writer.join().unwrap();
            output.write(b"abc");
            sink.room = 100;
            assert_eq!(output.drain(&mut sink), DrainState::Closed);
            assert_eq!(
                (sink.got.len(), output.pending(), output.dropped()),
                (0, 0, 10)
            );
            assert!(output.queue().chunks.is_empty());
        }
    }

    #[test]
    fn an_interrupted_write_is_repeated_and_a_write_of_nothing_is_the_end() {
        struct Odd(Vec<io::Result<usize>>);
        impl ConsoleSink for Odd {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                self.0.pop().unwrap()
            }
            fn poll_fd(&self) -> Option<RawFd> {
                None
            }
        }
        let output = console(100, FOR_EVER);
        output.write(b"abc");
        let mut sink = Odd(vec![Ok(99), Err(io::ErrorKind::Interrupted.into())]);
        assert_eq!(output.drain(&mut sink), DrainState::Empty);
        output.write(b"abc");
        assert_eq!(output.drain(&mut Odd(vec![Ok(0)])), DrainState::Closed);
    }

    /// A guest that prints whenever its output is taken.
    struct Endless<'a>(&'a ConsoleOutput, usize);

    impl ConsoleSink for Endless<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += bytes.len();
            assert!(self.1 < 1_000_000, "the drain does not come to an end");
            self.0.write(bytes);
            Ok(bytes.len())
        }

        fn poll_fd(&self) -> Option<RawFd> {
            None
        }
    }

    #[test]
    fn a_drain_comes_to_an_end_while_the_guest_prints_on() {
        let output = ConsoleOutput::new().unwrap();
        output.write(&[b'x'; 10_000]);
        assert!(rang(&output));
        assert_eq!(output.drain(&mut Endless(&output, 0)), DrainState::Empty);
        assert!(rang(&output), "what is left would be forgotten");
        assert_eq!(output.pending(), 10_000);
    }

    #[test]
    fn memory_is_given_back() {
        let output = ConsoleOutput::new().unwrap();
        output.write(&vec![b'x'; DEFAULT_CAPACITY]);
        assert_eq!(output.pending(), DEFAULT_CAPACITY);
        output.drain(&mut Sink::with_room(usize::MAX));
        assert!(output.queue().chunks.is_empty());
        assert_eq!(lock(&output.front).bytes.capacity(), 0);
    }

    #[derive(Default)]
    struct Observer(Mutex<Vec<u8>>);

    impl ConsoleObserver for Observer {
        fn observe(&self, bytes: &[u8]) {
            self.0.lock().unwrap().extend_from_slice(bytes);
        }
    }

    #[test]
    fn an_observer_sees_what_is_dropped_too() {
        let output = console(2, Duration::ZERO);
        let observer = Arc::new(Observer::default());
        output.set_observer(observer.clone());
        output.write(b"abc");
        output.drain(&mut Sink {
            end: io::ErrorKind::BrokenPipe,
            ..Sink::with_room(0)
        });
        output.write(b"def");
        assert_eq!(*observer.0.lock().unwrap(), b"abcdef");
    }

    proptest! {
        #[test]
        fn what_is_taken_is_what_was_written_in_order(
            steps in prop::collection::vec((0_usize..9000, 0_usize..9000, 1_usize..5000), 1..20),
        ) {
            let output = console(usize::MAX, FOR_EVER);
            let (mut written, mut sink) = (Vec::new(), Sink::with_room(0));
            for (len, room, step) in steps {
                let piece: Vec<u8> = (0..len).map(|n| (n % 253) as u8).collect();
                output.write(&piece);
                written.extend(piece);
                (sink.room, sink.step) = (room, step);
                let state = output.drain(&mut sink);
                let left = written.len() - sink.got.len();
                prop_assert_eq!(output.pending(), left);
                prop_assert_eq!(state == DrainState::Empty, left == 0);
            }
            prop_assert!(written.starts_with(&sink.got));
        }
    }
}
