//! A network that loses, delays and duplicates frames on purpose, around one that does not.
//!
//! Nothing waits here. A frame that comes later is kept, and a timer beside the inner back end's descriptor says when: an epoll
//! instance has both. It tells by edges, as back ends are waited for: [`NetBackend::flush`], which is called after each, takes
//! what it has told.
//!
//! Runs on the I/O thread of the device, as every back end does.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

use super::fault::{Fault, MAX_DELAY, Plan, When};
use super::net::{HEADER_SIZE, MAX_FRAME, NetBackend, Offloads};

/// The most frames that are kept for later, in each direction; more are lost.
pub const MAX_KEPT_FRAMES: usize = 1024;
/// The most bytes of them.
pub const MAX_KEPT_BYTES: usize = 4 << 20;

/// Frames of which none is for the guest that one call takes, before others on the thread have their turn.
const BATCH: usize = 64;

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the guest to the network.
    FromGuest,
    /// From the network to the guest.
    ToGuest,
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetEffect {
    /// It is lost.
    Drop,
    /// It goes later, at most by [`MAX_DELAY`]; those behind it overtake it. Nothing waits for it, but at most
    /// [`MAX_KEPT_FRAMES`] and [`MAX_KEPT_BYTES`] are on their way at a time, and the rest is lost.
    Delay(Duration),
    /// It goes once more.
    Duplicate,
}

/// A fault of a network. Of several that strike one frame, a loss counts before all; delays and duplicates add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetFault {
    /// What frames it is about; none for both directions, which it counts together.
    pub direction: Option<Direction>,
    /// Which of them it strikes.
    pub when: When,
    /// What becomes of those.
    pub effect: NetEffect,
}

impl NetFault {
    /// What happens to some frames of one direction.
    pub fn new(direction: Direction, when: When, effect: NetEffect) -> Self {
        Self {
            direction: Some(direction),
            when,
            effect,
        }
    }
}

impl Fault for NetFault {
    fn when(&self) -> When {
        self.when
    }
}

/// The faults of a network, to be changed while it is in use. Cheap to clone; all clones are one plan, which all pairs of queues
/// of a network may have, and count together.
#[derive(Debug, Clone, Default)]
pub struct NetFaults {
    plan: Plan<NetFault>,
}

impl NetFaults {
    /// A plan of these faults.
    pub fn new(faults: impl IntoIterator<Item = NetFault>) -> Self {
        let made = Self::default();
        made.set(faults);
        made
    }

    /// Replaces the plan. Counting begins anew; frames that are on their way arrive when they should.
    pub fn set(&self, faults: impl IntoIterator<Item = NetFault>) {
        self.plan.set(faults);
    }

    /// Has nothing happen to frames any more.
    pub fn clear(&self) {
        self.set([]);
    }

    /// How often faults have struck, of all plans so far.
    pub fn struck(&self) -> u64 {
        self.plan.struck()
    }

    /// Frames that were lost because too many were on their way.
    pub fn lost(&self) -> u64 {
        self.plan.lost()
    }

    fn judge(&self, direction: Direction) -> Verdict {
        let mut verdict = Verdict::default();
        if !self.plan.is_armed() {
            return verdict;
        }
        self.plan.count(
            |fault| fault.direction.is_none_or(|it| it == direction),
            |fault| match fault.effect {
                NetEffect::Drop => verdict.dropped = true,
                NetEffect::Delay(more) => verdict.delay = verdict.delay.saturating_add(more),
                NetEffect::Duplicate => verdict.more += 1,
            },
        );
        verdict.delay = verdict.delay.min(MAX_DELAY);
        verdict
    }
}

/// What is to become of a frame.
#[derive(Debug, Clone, Copy, Default)]
struct Verdict {
    dropped: bool,
    delay: Duration,
    /// How often it goes once more.
    more: u32,
}

impl Verdict {
    /// How many copies are to be kept.
    fn kept(&self) -> u32 {
        self.more + u32::from(!self.delay.is_zero())
    }
}

/// Frames on their way, by the time at which they arrive.
#[derive(Debug, Default)]
struct Kept {
    frames: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
}

impl Kept {
    /// Whether there was room for it.
    fn keep(&mut self, due: Instant, frame: Vec<u8>) -> bool {
        if self.frames.len() >= MAX_KEPT_FRAMES || self.bytes + frame.len() > MAX_KEPT_BYTES {
            return false;
        }
        self.bytes += frame.len();
        let at = self.frames.partition_point(|(other, _)| *other <= due);
        self.frames.insert(at, (due, frame));
        true
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        let (_, frame) = self.frames.pop_front()?;
        self.bytes -= frame.len();
        Some(frame)
    }

    /// The first, if its time has come.
    fn due(&mut self, now: Instant) -> Option<&mut Vec<u8>> {
        let (due, frame) = self.frames.front_mut()?;
        (*due <= now).then_some(frame)
    }

    /// When the next of those arrives whose time has not come.
    fn next(&self, now: Instant) -> Option<Instant> {
        let at = self.frames.partition_point(|(due, _)| *due <= now);
        self.frames.get(at).map(|(due, _)| *due)
    }
}

struct State {
    from_guest: Kept,
    to_guest: Kept,
    /// What was to become of the frame for which there was no room, which comes again.
    refused: Option<Verdict>,
    timer: TimerFd,
    /// When it expires.
    armed: Option<Instant>,
    /// A frame for the guest, until it is known what becomes of it.
    scratch: Vec<u8>,
}

impl State {
    /// Has the timer expire when the next frame arrives, and no later than `end`.
    fn arm(&mut self, now: Instant, end: Option<Instant>) -> io::Result<()> {
        let times = [self.from_guest.next(now), self.to_guest.next(now), end];
        let Some(next) = times.into_iter().flatten().min() else {
            return Ok(());
        };
        if self.armed.is_none_or(|armed| next < armed) {
            let wait = next.saturating_duration_since(now);
            // No time at all would stop it.
            self.timer.reset(wait.max(Duration::from_nanos(1)), None)?;
            self.armed = Some(next);
        }
        Ok(())
    }
}

/// A network with faults.
pub struct FaultyNet {
    inner: Arc<dyn NetBackend>,
    faults: NetFaults,
    epoll: Epoll,
    state: Mutex<State>,
}

impl FaultyNet {
    /// The network `inner` with these faults.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(inner: Arc<dyn NetBackend>, faults: &NetFaults) -> io::Result<Self> {
        let (epoll, timer) = (Epoll::new()?, TimerFd::new()?);
        let edges = EventSet::EDGE_TRIGGERED;
        for (fd, events) in [
            (inner.fd(), EventSet::IN | EventSet::OUT | edges),
            (timer.as_raw_fd(), EventSet::IN | edges),
        ] {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, 0))?;
        }
        Ok(Self {
            inner,
            faults: faults.clone(),
            epoll,
            state: Mutex::new(State {
                from_guest: Kept::default(),
                to_guest: Kept::default(),
                refused: None,
                timer,
                armed: None,
                scratch: Vec::new(),
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what has been kept long enough. `WouldBlock`: there is no room for the rest of it.
    fn send_due(&self, state: &mut State, now: Instant) -> io::Result<()> {
        let mut outcome = Ok(());
        while let Some(frame) = state.from_guest.due(now) {
            match self.inner.send(&[(&mut frame[..]).into()]) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Err(err),
                Err(err) => outcome = Err(err),
                Ok(()) => {}
            }
            state.from_guest.take();
        }
        outcome
    }

    /// Keeps so many copies of a frame for `delay`.
    fn keep(&self, kept: &mut Kept, frame: &[u8], verdict: Verdict, now: Instant) {
        for _ in 0..verdict.kept() {
            if !kept.keep(now + verdict.delay, frame.to_vec()) {
                self.faults.plan.add_lost();
            }
        }
    }
}

fn would_block() -> io::Error {
    io::ErrorKind::WouldBlock.into()
}

fn bytes_of(packet: &[VolatileSlice<'_>]) -> Vec<u8> {
    let len: usize = packet.iter().map(VolatileSlice::len).sum();
    let mut bytes = vec![0; len.min(HEADER_SIZE + MAX_FRAME)];
    let mut at = 0;
    for piece in packet {
        at += piece.copy_to(&mut bytes[at..]);
    }
    bytes
}

/// Copies as much of a frame as there is room for; how much that is.
fn copy_to(room: &[VolatileSlice<'_>], frame: &[u8]) -> usize {
    let mut rest = frame;
    for piece in room {
        let (now, later) = rest.split_at(piece.len().min(rest.len()));
        piece.copy_from(now);
        rest = later;
    }
    frame.len() - rest.len()
}

impl NetBackend for FaultyNet {
    fn send(&self, packet: &[VolatileSlice<'_>]) -> io::Result<()> {
        let now = Instant::now();
        let mut state = self.state();
        let state = &mut *state;
        if let Err(err) = self.send_due(state, now)
            && err.kind() == io::ErrorKind::WouldBlock
        {
            return Err(err);
        }
        let refused = state.refused.take();
        let verdict = refused.unwrap_or_else(|| self.faults.judge(Direction::FromGuest));
        if verdict.dropped {
            return Ok(());
        }
        let mut outcome = Ok(());
        if verdict.delay.is_zero() {
            outcome = self.inner.send(packet);
            if let Err(err) = &outcome
                && err.kind() == io::ErrorKind::WouldBlock
            {
                state.refused = Some(verdict);
                return outcome;
            }
        }
        if verdict.kept() > 0 {
            self.keep(&mut state.from_guest, &bytes_of(packet), verdict, now);
            // Duplicates go at once, or when there is room.
            let _ = self.send_due(state, now);
            state.arm(now, None)?;
        }
        outcome
    }

    fn flush(&self) -> io::Result<()> {
        // What it tells is taken; who calls this looks at all that it may be.
        let _ = self.epoll.wait(0, &mut [EpollEvent::default(); 2]);
        let flushed = self.inner.flush();
        let now = Instant::now();
        let mut state = self.state();
        let sent = self.send_due(&mut state, now);
        state.armed = None;
        state.arm(now, None)?;
        match sent {
            Err(err) if err.kind() != io::ErrorKind::WouldBlock => Err(err),
            _ => flushed,
        }
    }

    fn receive(&self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let now = Instant::now();
        let mut state = self.state();
        let state = &mut *state;
        if state.to_guest.due(now).is_some() {
            let frame = state.to_guest.take().unwrap_or_default();
            return Ok(copy_to(room, &frame));
        }
        if !self.faults.plan.is_armed() {
            return self.inner.receive(room);
        }
        for _ in 0..BATCH {
            // One byte more, by which a frame that was cut off is known.
            state.scratch.resize(HEADER_SIZE + MAX_FRAME + 1, 0);
            let len = self.inner.receive(&[(&mut state.scratch[..]).into()])?;
            let frame = &state.scratch[..len.min(HEADER_SIZE + MAX_FRAME + 1)];
            let verdict = self.faults.judge(Direction::ToGuest);
            if verdict.dropped {
                continue;
            }
            self.keep(&mut state.to_guest, frame, verdict, now);
            if verdict.delay.is_zero() {
                return Ok(copy_to(room, frame));
            }
            state.arm(now, None)?;
        }
        // There may be more, of which nothing tells again.
        state.arm(now, Some(now))?;
        Err(would_block())
    }

    fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    fn takes(&self) -> Offloads {
        self.inner.takes()
    }

    fn offloads(&self) -> Offloads {
        self.inner.offloads()
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.inner.set_offloads(offloads)
    }

    fn set_enabled(&self, enabled: bool) -> io::Result<()> {
        self.inner.set_enabled(enabled)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A network of one peer, which may be told to have no room.
    struct Link {
        socket: UnixDatagram,
        full: AtomicBool,
    }

    impl NetBackend for Link {
        fn send(&self, packet: &[VolatileSlice<'_>]) -> io::Result<()> {
            if self.full.load(Ordering::Relaxed) {
                return Err(would_block());
            }
            self.socket.send(&bytes_of(packet)).map(drop)
        }

        fn receive(&self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
            let mut frame = vec![0; 4096];
            let len = self.socket.recv(&mut frame)?;
            Ok(copy_to(room, &frame[..len]))
        }

        fn fd(&self) -> RawFd {
            self.socket.as_raw_fd()
        }
    }

    struct Bench {
        link: Arc<Link>,
        peer: UnixDatagram,
        faults: NetFaults,
        net: FaultyNet,
    }

    impl Bench {
        fn new(faults: impl IntoIterator<Item = NetFault>) -> Self {
            let (socket, peer) = UnixDatagram::pair().unwrap();
            socket.set_nonblocking(true).unwrap();
            peer.set_nonblocking(true).unwrap();
            let full = AtomicBool::new(false);
            let link = Arc::new(Link { socket, full });
            let faults = NetFaults::new(faults);
            let net = FaultyNet::new(link.clone(), &faults).unwrap();
            // The sockets are writable from the start.
            net.flush().unwrap();
            Self {
                link,
                peer,
                faults,
                net,
            }
        }

        fn send(&self, number: u8) -> io::Result<()> {
            let mut header = [0; HEADER_SIZE];
            let mut frame = [number; 60];
            let packet = [(&mut header[..]).into(), (&mut frame[..]).into()];
            self.net.send(&packet)
        }

        /// What has come to the peer: the last byte of each frame.
        fn sent(&self) -> Vec<u8> {
            let mut buffer = [0; 4096];
            let next = || self.peer.recv(&mut buffer).ok().map(|len| buffer[len - 1]);
            std::iter::from_fn(next).collect()
        }

        fn peer_sends(&self, numbers: impl IntoIterator<Item = u8>) {
            for number in numbers {
                self.peer.send(&[number; 72]).unwrap();
            }
        }

        /// What there is for the guest.
        fn received(&self) -> Vec<u8> {
            let (mut start, mut rest) = ([0; 20], [0; 100]);
            let next = || {
                let room = [(&mut start[..]).into(), (&mut rest[..]).into()];
                let len = self.net.receive(&room).ok()?;
                assert_eq!(len, 72);
                assert_eq!(start[0], rest[51]);
                Some(rest[51])
            };
            std::iter::from_fn(next).collect()
        }

        /// Waits until the descriptor tells of something, and takes that.
        fn wait(&self) {
            let mut poll = libc::pollfd {
                fd: self.net.fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: the pointer is to one live structure, as the count says.
            let ready = unsafe { libc::poll(&raw mut poll, 1, 60_000) };
            assert_eq!(ready, 1, "nothing happens");
            self.net.flush().unwrap();
        }
    }

    const OUT: Direction = Direction::FromGuest;
    const IN: Direction = Direction::ToGuest;

    #[test]
    fn frames_are_lost_and_doubled_in_either_direction() {
        let plan = |direction| {
            [
                NetFault::new(direction, When::Every(3), NetEffect::Drop),
                NetFault::new(direction, When::Nth(4), NetEffect::Duplicate),
            ]
        };
        let bench = Bench::new([plan(OUT), plan(IN)].concat());
        for number in 1..=7 {
            bench.send(number).unwrap();
        }
        assert_eq!(bench.sent(), [1, 2, 4, 4, 5, 7]);
        bench.peer_sends(1..=7);
        bench.wait();
        assert_eq!(bench.received(), [1, 2, 4, 4, 5, 7]);
        assert_eq!(bench.faults.struck(), 6);
        bench.faults.clear();
        bench.send(9).unwrap();
        bench.peer_sends([9]);
        assert_eq!((bench.sent(), bench.received()), (vec![9], vec![9]));
    }

    #[test]
    fn a_late_frame_is_overtaken_and_arrives_by_the_timer() {
        let late = |direction, delay| NetFault::new(direction, When::Nth(1), delay);
        for effect in [
            NetEffect::Delay(Duration::from_millis(1)),
            NetEffect::Delay(Duration::from_millis(20)),
        ] {
            let bench = Bench::new([late(OUT, effect), late(IN, effect)]);
            bench.send(1).unwrap();
            bench.peer_sends([1]);
            let (mut sent, mut received) = (bench.sent(), bench.received());
            while sent.is_empty() || received.is_empty() {
                bench.wait();
                sent.extend(bench.sent());
                received.extend(bench.received());
            }
            assert_eq!((sent, received), (vec![1], vec![1]));
        }
        // So late that it does not come while this is looked at.
        let effect = NetEffect::Delay(Duration::MAX);
        let bench = Bench::new([late(OUT, effect), late(IN, effect)]);
        bench.send(1).unwrap();
        bench.send(2).unwrap();
        bench.peer_sends([1, 2]);
        assert_eq!((bench.sent(), bench.received()), (vec![2], vec![2]));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let effect = NetEffect::Delay(MAX_DELAY);
        let bench = Bench::new([NetFault::new(OUT, When::Every(1), effect)]);
        for _ in 0..MAX_KEPT_FRAMES + 10 {
            bench.send(1).unwrap();
        }
        assert_eq!(bench.faults.lost(), 10);
        assert_eq!(bench.net.state().from_guest.frames.len(), MAX_KEPT_FRAMES);
        let mut kept = Kept::default();
        let frame = vec![0; MAX_KEPT_BYTES / 2];
        let now = Instant::now();
        assert!(kept.keep(now, frame.clone()) && kept.keep(now, frame.clone()));
        assert!(!kept.keep(now, vec![0]));
        kept.take();
        assert!(kept.keep(now, frame));
    }

    #[test]
    fn one_without_room_is_judged_once_and_its_double_waits_for_room() {
        let faults = [
            NetFault::new(OUT, When::Nth(1), NetEffect::Duplicate),
            NetFault::new(OUT, When::Nth(2), NetEffect::Drop),
        ];
        let bench = Bench::new(faults);
        bench.link.full.store(true, Ordering::Relaxed);
        for _ in 0..3 {
            let refused = bench.send(1).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        }
        bench.link.full.store(false, Ordering::Relaxed);
        bench.send(1).unwrap();
        bench.send(2).unwrap();
        bench.send(3).unwrap();
        assert_eq!(bench.sent(), [1, 1, 3]);
        assert_eq!(bench.faults.struck(), 2);
    }

    /// However many frames are lost, others have their turn, and the first that is not lost arrives.
    #[test]
    fn a_flood_that_is_lost_does_not_keep_the_thread() {
        let bench = Bench::new([NetFault::new(IN, When::Every(1), NetEffect::Drop)]);
        let mut told = 0;
        for _ in 0..BATCH * 2 {
            // The peer's queue is shorter than that.
            while bench.peer.send(&[1; 72]).is_err() {
                bench.wait();
                assert_eq!(bench.received(), []);
                told += 1;
            }
        }
        while bench.faults.struck() < 2 * BATCH as u64 {
            bench.wait();
            assert_eq!(bench.received(), []);
            told += 1;
        }
        assert!(told >= 2, "all at once");
        bench.faults.clear();
        bench.peer_sends([2]);
        bench.wait();
        assert_eq!(bench.received(), [2]);
    }
}
