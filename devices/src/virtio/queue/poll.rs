//! Whether a worker watches a queue for a moment or goes to sleep at once.

use std::time::{Duration, Instant};

/// When to look for the next chain instead of asking to be told of it.
///
/// A notification costs the guest an exit and the host a wake-up: tens of microseconds, in which a driver that waits for one
/// request at a time could have had several. So a queue whose chains follow one another closely is watched for a moment after
/// each; one whose driver takes its time is not, and costs nothing.
///
/// Where the driver's vCPU waits for the very processor that the watch spins on, no chain can come. So each watch in vain halves how
/// often there is one, and the first that is not puts it right.
#[derive(Debug, Default)]
pub(super) struct Poll {
    /// How long to watch; zero for never.
    pub(super) window: Duration,
    /// Since when the driver has been asked to notify.
    asked: Option<Instant>,
    /// Whether chains have come closely.
    pub(super) busy: bool,
    /// Watches in vain, one after the other.
    misses: u32,
    /// So many more times chains may come closely before there is a watch.
    skip: u32,
}

impl Poll {
    /// Gaps of as many windows are short: most of a gap is the notification itself.
    const CLOSE: u32 = 8;
    /// At least one in 2 to the power of this is watched for.
    const MOST_MISSES: u32 = 7;

    /// A notification has come.
    pub(super) fn woken(&mut self) {
        if let Some(asked) = self.asked.take() {
            self.came_after(asked.elapsed());
        }
    }

    fn came_after(&mut self, gap: Duration) {
        let close = gap < self.window * Self::CLOSE;
        self.busy = close && self.skip == 0;
        if close {
            self.skip = self.skip.saturating_sub(1);
        }
    }

    /// A watch has seen something.
    pub(super) fn hit(&mut self) {
        self.misses = 0;
    }

    /// One has not.
    pub(super) fn missed(&mut self) {
        self.busy = false;
        self.skip = (1 << self.misses) - 1;
        self.misses = (self.misses + 1).min(Self::MOST_MISSES);
    }

    /// The driver is to notify from now on.
    pub(super) fn ask(&mut self) {
        self.asked = (!self.window.is_zero()).then(Instant::now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_micros(20);
    const CLOSELY: Duration = Duration::from_micros(100);
    const LATER: Duration = Duration::from_millis(2);

    /// Of so many chains, each of which comes after `gap`, how many are watched for, all in vain.
    fn watches_in_vain(poll: &mut Poll, chains: usize, gap: Duration) -> usize {
        let mut watches = 0;
        for _ in 0..chains {
            poll.came_after(gap);
            if poll.busy {
                watches += 1;
                poll.missed();
            }
        }
        watches
    }

    fn poll() -> Poll {
        Poll {
            window: WINDOW,
            ..Poll::default()
        }
    }

    #[test]
    fn chains_that_come_closely_are_watched_for() {
        let mut poll = poll();
        poll.came_after(LATER);
        assert!(!poll.busy);
        for _ in 0..1000 {
            poll.came_after(CLOSELY);
            assert!(poll.busy);
            poll.hit();
        }
        poll.came_after(LATER);
        assert!(!poll.busy);
        let mut never = Poll::default();
        never.came_after(Duration::ZERO);
        assert!(!never.busy, "a window of zero is none");
    }

    #[test]
    fn watches_in_vain_become_rare_and_one_that_is_not_puts_it_right() {
        let mut poll = poll();
        let first = watches_in_vain(&mut poll, 256, CLOSELY);
        assert!((8..=9).contains(&first), "{first}");
        let rest = watches_in_vain(&mut poll, 12_800, CLOSELY);
        assert!((90..=110).contains(&rest), "one in 128: {rest}");
        // There is one in the end, and it sees something.
        while !poll.busy {
            poll.came_after(CLOSELY);
        }
        poll.hit();
        poll.came_after(CLOSELY);
        assert!(poll.busy);
        poll.missed();
        poll.came_after(CLOSELY);
        assert!(poll.busy, "one in vain is forgiven");
    }
}
