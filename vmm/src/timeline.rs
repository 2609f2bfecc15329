//! When things happened in the life of a VM: host phases and guest marks, in microseconds since a common origin.
//!
//! A [`Timeline`] is shared by all threads of a VM and may be read at any time. It is bounded: a guest that marks without end
//! fills it once, and is counted from then on.

use std::borrow::Cow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

/// The most marks a timeline holds.
pub const MAX_MARKS: usize = 1024;

/// Who set a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MarkSource {
    /// The VMM.
    Host,
    /// Something the guest did.
    Guest,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// Microseconds since the timeline's origin.
    pub at_us: u64,
    /// Who set it.
    pub source: MarkSource,
    /// What happened, in kebab-case: `kvm-open`, `first-entry`, `first-serial-byte`, `debug-port-17`.
    pub name: Cow<'static, str>,
}

/// When things happened, in the order in which they did.
///
/// ```
/// use ampoule_vmm::{Timeline, VmHandle};
///
/// /// What the start took, phase by phase.
/// fn print(timeline: &Timeline) {
///     for mark in timeline.marks() {
///         println!("{:>8} us  {}", mark.at_us, mark.name);
///     }
/// }
/// fn print_of(vm: &VmHandle) {
///     print(vm.timeline());
/// }
///
/// // A program's own marks, where it gives the timeline to `VmBuilder::timeline` afterwards.
/// let timeline = Timeline::since_process_start();
/// timeline.host("arguments-read");
/// print(&timeline);
/// ```
#[derive(Debug)]
pub struct Timeline {
    origin: Instant,
    marks: Mutex<Vec<Mark>>,
    dropped: AtomicU64,
}

impl Default for Timeline {
    fn default() -> Self {
        Self::new()
    }
}

impl Timeline {
    /// A timeline whose origin is now.
    pub fn new() -> Self {
        Self::with_origin(Instant::now())
    }

    /// A timeline whose origin is the start of this process, for a program that calls this first thing in `main`.
    ///
    /// The kernel tells the start only in hundredths of a second. So the origin is now less the CPU time that the process
    /// has used: right to some microseconds when it did nothing but load and run until here, late by what it slept.
    pub fn since_process_start() -> Self {
        let now = Instant::now();
        Self::with_origin(now.checked_sub(process_cpu_time()).unwrap_or(now))
    }

    fn with_origin(origin: Instant) -> Self {
        Self {
            origin,
            marks: Mutex::new(Vec::with_capacity(16)),
            dropped: AtomicU64::new(0),
        }
    }

    /// Marks a phase of the VMM as reached.
    pub fn host(&self, name: impl Into<Cow<'static, str>>) {
        self.mark(MarkSource::Host, name.into());
    }

    /// Marks something that the guest did.
    pub fn guest(&self, name: impl Into<Cow<'static, str>>) {
        self.mark(MarkSource::Guest, name.into());
    }

    /// Marks something that the guest is known to have done then, between the marks of what came before and after it. A time before
    /// the origin counts as the origin, one in the future as now.
    pub fn guest_at(&self, at: Instant, name: impl Into<Cow<'static, str>>) {
        let now = self.origin.elapsed();
        let since = at.saturating_duration_since(self.origin).min(now);
        let at_us = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
        let name = name.into();
        self.add(|marks| {
            let place = marks.partition_point(|mark| mark.at_us <= at_us);
            let source = MarkSource::Guest;
            marks.insert(
                place,
                Mark {
                    at_us,
                    source,
                    name,
                },
            );
        });
    }

    /// The marks so far.
    pub fn marks(&self) -> Vec<Mark> {
        self.marks
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone()
    }

    /// How many marks found the timeline full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn mark(&self, source: MarkSource, name: Cow<'static, str>) {
        self.add(|marks| {
            // Taken under the lock, so that the order of the marks is that of their times.
            let at_us = u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX);
            marks.push(Mark {
                at_us,
                source,
                name,
            });
        });
    }

    fn add(&self, add: impl FnOnce(&mut Vec<Mark>)) {
        let mut marks = self
            .marks
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if marks.len() >= MAX_MARKS {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        add(&mut marks);
    }
}

/// CPU time of this process, all threads, user and system.
fn process_cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec that the call fills; the clock exists on every Linux.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    match result {
        0 => Duration::new(time.tv_sec as u64, time.tv_nsec as u32),
        _ => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_keep_their_order_and_times_do_not_go_back() {
        let timeline = Timeline::since_process_start();
        timeline.host("kvm-open");
        timeline.guest("first-serial-byte");
        let marks = timeline.marks();
        assert_eq!(marks[0].name, "kvm-open");
        assert_eq!(marks[1].source, MarkSource::Guest);
        assert!(marks[0].at_us <= marks[1].at_us);
        assert!(
            marks[0].at_us > 0,
            "a process uses more than a microsecond before main"
        );
    }

    #[test]
    fn what_is_heard_of_later_is_put_where_it_belongs() {
        let now = Instant::now();
        let ago = |seconds| now.checked_sub(Duration::from_secs(seconds)).unwrap();
        let timeline = Timeline::with_origin(ago(10));
        timeline.host("after");
        timeline.guest_at(ago(4), "between");
        timeline.guest_at(ago(5), "before");
        timeline.guest_at(ago(20), "first");
        timeline.guest_at(now + Duration::from_secs(3600), "last");
        let marks = timeline.marks();
        let names: Vec<&str> = marks.iter().map(|it| &*it.name).collect();
        assert_eq!(names, ["first", "before", "between", "after", "last"]);
        assert!(marks.is_sorted_by_key(|it| it.at_us));
        assert_eq!(marks[0].at_us, 0);
    }

    #[test]
    fn a_guest_cannot_grow_it_for_ever() {
        let timeline = Timeline::new();
        for value in 0..MAX_MARKS as u64 + 5 {
            timeline.guest(format!("debug-port-{value}"));
        }
        assert_eq!(timeline.marks().len(), MAX_MARKS);
        assert_eq!(timeline.dropped(), 5);
    }
}
