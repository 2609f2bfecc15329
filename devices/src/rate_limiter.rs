//! Rate limits: token buckets of operations and of bytes, for every device that has a limit.
//!
//! A bucket holds up to its burst and fills at its rate; an operation takes a token for itself and one for each byte. One that
//! is larger than a bucket goes when the bucket is full and leaves it in debt, so that it goes in the end and the rate holds.
//! Tokens are counted in parts of 10⁻⁹, of which a nanosecond brings a whole number: nothing is lost by rounding.
//!
//! The clock is given, not read. Whoever is refused arms the timer ([`RateLimiter::wake_after`]) and waits for [`RateLimiter::fd`]
//! beside its other events. Any thread may call; the lock inside is held for a few additions. Nothing is allocated.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

/// Parts of a token.
const TOKEN: u128 = 1_000_000_000;

/// The timer's longest wait: after it, whoever waits asks again.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// How much of something goes in a second, and how much at once after a rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    per_second: NonZeroU64,
    burst: NonZeroU64,
}

impl Rate {
    /// A rate with its burst: a tenth of a second's worth and no less than `largest`, one operation's, where none is given.
    pub fn new(per_second: NonZeroU64, burst: Option<NonZeroU64>, largest: NonZeroU64) -> Self {
        let tenth = NonZeroU64::new(per_second.get() / 10);
        Self {
            per_second,
            burst: burst.unwrap_or_else(|| tenth.map_or(largest, |tenth| tenth.max(largest))),
        }
    }
}

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RateLimit {
    /// Operations: requests or frames.
    pub ops: Option<Rate>,
    /// Bytes.
    pub bytes: Option<Rate>,
}

impl RateLimit {
    /// Whether anything is limited.
    pub fn is_some(&self) -> bool {
        self.ops.is_some() || self.bytes.is_some()
    }
}

/// A bucket. All quantities are in parts of a token.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    /// At most the burst; negative in debt.
    level: i128,
}

impl Bucket {
    fn new(rate: Rate) -> Self {
        let mut bucket = Self { rate, level: 0 };
        bucket.level = bucket.full();
        bucket
    }

    /// Below 2⁹⁴, as all quantities of 64-bit numbers of tokens are.
    fn parts(tokens: u64) -> i128 {
        (u128::from(tokens) * TOKEN) as i128
    }

    fn full(&self) -> i128 {
        Self::parts(self.rate.burst.get())
    }

    fn fill(&mut self, elapsed: Duration) {
        let gained = u128::from(self.rate.per_second.get()).checked_mul(elapsed.as_nanos());
        let gained = gained.and_then(|gained| i128::try_from(gained).ok());
        self.level = self
            .level
            .saturating_add(gained.unwrap_or(i128::MAX))
            .min(self.full());
    }

    /// How long until so many tokens can be taken; zero for now.
    fn wait(&self, tokens: u64) -> Duration {
        let missing = Self::parts(tokens).min(self.full()) - self.level;
        // What is missing is at most a burst and a debt.
        let missing = u128::try_from(missing).unwrap_or_default();
        let nanos = missing.div_ceil(u128::from(self.rate.per_second.get()));
        u64::try_from(nanos).map_or(Duration::MAX, Duration::from_nanos)
    }

    fn take(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub(Self::parts(tokens));
    }
}

#[derive(Debug)]
struct State {
    ops: Option<Bucket>,
    bytes: Option<Bucket>,
    /// Until when the buckets were filled.
    filled: Instant,
    timer: TimerFd,
}

/// A limit at work.
#[derive(Debug)]
pub struct RateLimiter {
    state: Mutex<State>,
    fd: RawFd,
}

impl RateLimiter {
    /// Full buckets, and the timer.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn new(limit: RateLimit, now: Instant) -> io::Result<Self> {
        let timer = TimerFd::new()?;
        Ok(Self {
            fd: timer.as_raw_fd(),
            state: Mutex::new(State {
                ops: limit.ops.map(Bucket::new),
                bytes: limit.bytes.map(Bucket::new),
                filled: now,
                timer,
            }),
        })
    }

    /// Takes `ops` operations of `bytes` in all, or nothing.
    ///
    /// # Errors
    /// How long until they can be taken, if nobody else takes any meanwhile.
    pub fn take(&self, ops: u64, bytes: u64, now: Instant) -> Result<(), Duration> {
        let mut state = self.lock();
        // A clock of another processor's may be a little behind.
        let elapsed = now.saturating_duration_since(state.filled);
        state.filled += elapsed;
        let State {
            ops: by_ops,
            bytes: by_bytes,
            ..
        } = &mut *state;
        let mut buckets = [(by_ops, ops), (by_bytes, bytes)];
        let mut longest = Duration::ZERO;
        for (bucket, tokens) in &mut buckets {
            if let Some(bucket) = bucket {
                bucket.fill(elapsed);
                longest = longest.max(bucket.wait(*tokens));
            }
        }
        if !longest.is_zero() {
            return Err(longest);
        }
        for (bucket, tokens) in buckets {
            if let Some(bucket) = bucket {
                bucket.take(tokens);
            }
        }
        Ok(())
    }

    /// Has the timer expire after `wait`, or after an hour if that is sooner. An earlier wait is forgotten.
    ///
    /// # Errors
    /// The host's.
    pub fn wake_after(&self, wait: Duration) -> io::Result<()> {
        // Nothing at all would disarm it.
        let wait = wait.clamp(Duration::from_nanos(1), LONGEST_WAIT);
        Ok(self.lock().timer.reset(wait, None)?)
    }

    /// The timer: becomes readable when it expires, and stays so until it is armed again. To be waited for by its edges; there
    /// is nothing to read. Valid for as long as this lives.
    pub fn fd(&self) -> RawFd {
        self.fd
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

    use super::*;

    fn count(number: u64) -> NonZeroU64 {
        NonZeroU64::new(number).unwrap()
    }

    fn rate(per_second: u64, burst: u64) -> Option<Rate> {
        Some(Rate::new(
            count(per_second),
            Some(count(burst)),
            NonZeroU64::MIN,
        ))
    }

    fn limiter(ops: Option<Rate>, bytes: Option<Rate>) -> (RateLimiter, Instant) {
        let start = Instant::now();
        let limit = RateLimit { ops, bytes };
        (RateLimiter::new(limit, start).unwrap(), start)
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_burst_is_a_tenth_of_a_second_and_one_operation_at_least() {
        let burst = |per_second, given: Option<u64>, largest| {
            Rate::new(count(per_second), given.map(count), count(largest)).burst
        };
        assert_eq!(burst(1000, None, 1), count(100));
        assert_eq!(burst(1000, None, 1500), count(1500));
        assert_eq!(burst(9, None, 1), count(1));
        assert_eq!(burst(1000, Some(7), 1500), count(7));
    }

    #[test]
    fn what_is_not_limited_goes() {
        let (limiter, now) = limiter(None, None);
        assert_eq!(limiter.take(u64::MAX, u64::MAX, now), Ok(()));
        assert!(!RateLimit::default().is_some());
    }

    #[test]
    fn a_burst_goes_at_once_and_then_the_rate_holds() {
        let (limiter, start) = limiter(rate(1000, 10), None);
        for _ in 0..10 {
            assert_eq!(limiter.take(1, 1 << 40, start), Ok(()));
        }
        assert_eq!(limiter.take(1, 0, start), Err(MS));
        assert_eq!(limiter.take(1, 0, start + MS / 4), Err(MS * 3 / 4));
        assert_eq!(limiter.take(1, 0, start + MS), Ok(()));
        // A rest fills it, and no more than that.
        let later = start + Duration::from_secs(3600);
        assert_eq!(limiter.take(10, 0, later), Ok(()));
        assert_eq!(limiter.take(1, 0, later), Err(MS));
    }

    #[test]
    fn both_limits_hold_and_a_refusal_takes_nothing() {
        let (limiter, start) = limiter(rate(1000, 1), rate(1000, 100));
        assert_eq!(limiter.take(1, 100, start), Ok(()));
        // An operation is there again after 1 ms, its bytes after 10 ms.
        let bytes_missing = limiter.take(1, 10, start + MS);
        assert_eq!(bytes_missing, Err(MS * 9));
        assert_eq!(limiter.take(1, 1, start + MS), Ok(()));
        assert_eq!(limiter.take(1, 0, start + MS), Err(MS));
    }

    #[test]
    fn what_is_larger_than_the_bucket_goes_when_it_is_full() {
        let (limiter, start) = limiter(None, rate(1000, 100));
        assert_eq!(limiter.take(1, 1, start), Ok(()));
        assert_eq!(limiter.take(1, 5000, start), Err(MS));
        let full = start + MS;
        assert_eq!(limiter.take(1, 5000, full), Ok(()));
        // 4900 of debt, and the next 50.
        assert_eq!(limiter.take(1, 50, full), Err(MS * 4950));
        assert_eq!(limiter.take(1, 50, full + MS * 4950), Ok(()));
    }

    #[test]
    fn a_clock_that_goes_back_brings_nothing() {
        let (limiter, start) = limiter(rate(1000, 10), None);
        let now = start + MS * 100;
        assert_eq!(limiter.take(10, 0, now), Ok(()));
        assert_eq!(limiter.take(1, 0, start), Err(MS));
        assert_eq!(limiter.take(1, 0, now), Err(MS));
        assert_eq!(limiter.take(1, 0, now + MS), Ok(()));
    }

    #[test]
    fn the_largest_numbers_are_only_large() {
        let (limiter, start) = limiter(rate(u64::MAX, u64::MAX), rate(1, 1));
        let far = start + Duration::from_secs(1 << 40);
        assert_eq!(limiter.take(u64::MAX, u64::MAX, far), Ok(()));
        // A debt of 584 billion years.
        let wait = limiter.take(1, 1, far).unwrap_err();
        assert_eq!(wait, Duration::MAX);
        limiter.wake_after(wait).unwrap();
        assert!(limiter.lock().timer.is_armed().unwrap());
    }

    #[test]
    fn the_timer_has_an_edge_for_each_time_it_is_armed() {
        let (limiter, _) = limiter(rate(1, 1), None);
        let epoll = Epoll::new().unwrap();
        let wanted = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 7);
        epoll
            .ctl(ControlOperation::Add, limiter.fd(), wanted)
            .unwrap();
        let mut events = [EpollEvent::default()];
        assert_eq!(epoll.wait(0, &mut events).unwrap(), 0);
        for _ in 0..3 {
            limiter.wake_after(Duration::ZERO).unwrap();
            assert_eq!(epoll.wait(-1, &mut events).unwrap(), 1);
            assert_eq!(events[0].data(), 7);
            assert_eq!(epoll.wait(0, &mut events).unwrap(), 0);
        }
    }

    proptest! {
        /// Whatever is asked for and when: in no time more goes than the rate and a burst, or one operation, allow.
        #[test]
        fn no_sequence_exceeds_the_rate(
            per_second in 1_u64..1_000_000,
            burst in 1_u64..10_000,
            asked in prop::collection::vec((1_u64..20_000, 0_u64..2_000_000), 1..200),
        ) {
            let (limiter, start) = limiter(None, rate(per_second, burst));
            let (mut now, mut taken) = (start, 0_u128);
            for (bytes, pause) in asked {
                now += Duration::from_micros(pause);
                if limiter.take(1, bytes, now).is_ok() {
                    taken += u128::from(bytes);
                    let elapsed = now.duration_since(start).as_nanos();
                    let brought = u128::from(per_second) * elapsed / TOKEN;
                    let most = brought + u128::from(burst.max(bytes));
                    prop_assert!(taken <= most, "{taken} of {most}");
                }
            }
        }

        /// A wait is neither too short nor too long.
        #[test]
        fn a_wait_is_as_long_as_it_must_be(
            ops in (1_u64..1_000_000, 1_u64..1000),
            bytes in (1_u64..1_000_000_000, 1_u64..1_000_000),
            asked in prop::collection::vec((0_u64..2000, 0_u64..2_000_000), 1..50),
        ) {
            let (limiter, start) = limiter(rate(ops.0, ops.1), rate(bytes.0, bytes.1));
            let mut now = start;
            for (ops, bytes) in asked {
                if let Err(wait) = limiter.take(ops, bytes, now) {
                    let almost = now + wait - Duration::from_nanos(1);
                    prop_assert!(limiter.take(ops, bytes, almost).is_err());
                    now += wait;
                    prop_assert_eq!(limiter.take(ops, bytes, now), Ok(()));
                }
            }
        }

        /// The whole range of everything: no overflow.
        #[test]
        fn nothing_overflows(
            ops in (1_u64.., 1_u64..),
            bytes in (1_u64.., 1_u64..),
            asked in prop::collection::vec((any::<u64>(), any::<u64>(), 0_u64..1 << 40), 1..50),
        ) {
            let (limiter, start) = limiter(rate(ops.0, ops.1), rate(bytes.0, bytes.1));
            let mut now = start;
            for (ops, bytes, pause) in asked {
                now += Duration::from_secs(pause);
                let _ = limiter.take(ops, bytes, now);
                let state = limiter.lock();
                for bucket in [&state.ops, &state.bytes].into_iter().flatten() {
                    prop_assert!(bucket.level <= bucket.full());
                }
            }
        }
    }
}
