//! Counting: what happened, and how often something went wrong.
//!
//! Counters are relaxed atomics that any thread may read at any time. On the data path each is written by one thread only
//! ([`Counter::add_owned`]), which costs a load and a store; nothing is locked or allocated there.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use log::Level;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Zero.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds, on whatever thread; the sum.
    pub fn add(&self, count: u64) -> u64 {
        self.0
            .fetch_add(count, Ordering::Relaxed)
            .wrapping_add(count)
    }

    /// Adds, on the only thread that does so for this counter: cheaper than [`Self::add`]. Additions of other threads at the
    /// same time may be lost.
    pub fn add_owned(&self, count: u64) {
        let sum = self.get().wrapping_add(count);
        self.0.store(sum, Ordering::Relaxed);
    }

    /// The sum so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How much may still be written to the log on a guest's account. Any thread may take from it.
#[derive(Debug)]
pub struct LogBudget {
    left: AtomicU64,
}

/// The last line of a guest that has had all its bytes.
const SPENT: &str = "no more is logged of what the guest's devices meet: its limit is reached";

/// What was left of a budget.
#[derive(Debug, PartialEq, Eq)]
enum Taken {
    Enough,
    TheRest,
    Nothing,
}

impl Default for LogBudget {
    /// One that nobody spends.
    fn default() -> Self {
        Self::new(u64::MAX)
    }
}

impl LogBudget {
    /// So many bytes.
    pub fn new(bytes: u64) -> Self {
        Self {
            left: AtomicU64::new(bytes),
        }
    }

    /// Logs a line, if there is enough left for it. The first for which there is not is replaced by words about that.
    pub fn log(&self, level: Level, line: &str) {
        if !log::log_enabled!(level) {
            return;
        }
        match self.take(line.len() as u64) {
            Taken::Enough => log::log!(level, "{line}"),
            Taken::TheRest => log::warn!("{SPENT}"),
            Taken::Nothing => {}
        }
    }

    fn take(&self, len: u64) -> Taken {
        // What is left is never nothing before the last word has been said.
        let take = |left: u64| match left {
            0 => None,
            left => Some(left.saturating_sub(len)),
        };
        let before = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        match before {
            Ok(left) if left > len => Taken::Enough,
            Ok(_) => Taken::TheRest,
            Err(_) => Taken::Nothing,
        }
    }
}

/// Counts what goes wrong, and logs it less and less: the first time, the second, the fourth, the eighth and so on. However
/// often a guest or a host makes it happen, it fills no log.
#[derive(Debug, Clone)]
pub struct Tally {
    subject: String,
    level: Level,
    counter: Arc<Counter>,
    budget: Arc<LogBudget>,
}

impl Tally {
    /// Counts on `counter`; messages begin with `subject`, and are taken from `budget`.
    pub fn new(
        subject: impl Into<String>,
        level: Level,
        counter: Arc<Counter>,
        budget: Arc<LogBudget>,
    ) -> Self {
        Self {
            subject: subject.into(),
            level,
            counter,
            budget,
        }
    }

    /// It happened again; `what` is one clause.
    pub fn add(&self, what: impl fmt::Display) {
        let count = self.counter.add(1);
        if count.is_power_of_two() {
            let line = format!("{}: {what} ({count} such so far)", self.subject);
            self.budget.log(self.level, &line);
        }
    }

    /// How often it has happened.
    pub fn count(&self) -> u64 {
        self.counter.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up() {
        let counter = Counter::new();
        assert_eq!(counter.add(2), 2);
        counter.add_owned(3);
        assert_eq!(counter.get(), 5);
        counter.add(u64::MAX);
        assert_eq!(counter.get(), 4, "it wraps, and does not panic");
    }

    #[test]
    fn a_tally_is_made_of_few_words() {
        struct Said(std::cell::Cell<u32>);
        impl fmt::Display for Said {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.set(self.0.get() + 1);
                f.write_str("it broke")
            }
        }
        let tally = Tally::new("disk", Level::Trace, Arc::default(), Arc::default());
        let said = Said(std::cell::Cell::new(0));
        for _ in 0..1000 {
            tally.add(&said);
        }
        assert_eq!(tally.count(), 1000);
        assert!(said.0.get() <= 10, "{}", said.0.get());
    }

    #[test]
    fn a_budget_is_spent_once() {
        let budget = LogBudget::new(10);
        assert_eq!(budget.take(5), Taken::Enough);
        assert_eq!(budget.take(6), Taken::TheRest);
        assert_eq!(budget.take(1), Taken::Nothing);
        let all = LogBudget::new(10);
        assert_eq!(all.take(10), Taken::TheRest, "the last word is said");
        assert_eq!(all.take(1), Taken::Nothing);
    }
}
