//! What the guest's init was at, in the timeline.

use std::time::{Duration, Instant};

use ampoule_image::session::Started;
use ampoule_vmm::Timeline;

/// Puts the init's phases into the timeline. By the guest's clock, which is the host's but for its origin: the guest was connected
/// when this side saw it. What the guest says is hostile; times that do not follow each other are left out.
pub(crate) fn mark(timeline: &Timeline, times: &Started, connected: Instant) {
    let phases = [
        (times.init, "init"),
        (times.connected, "connected"),
        (times.job, "job-received"),
        (times.modules, "modules-loaded"),
        (times.root, "root-mounted"),
        (times.network, "network-up"),
        (times.command, "command"),
    ];
    if !phases.is_sorted_by_key(|phase| phase.0) {
        return;
    }
    for (at, name) in phases {
        let (before, after) = (
            times.connected.saturating_sub(at),
            at.saturating_sub(times.connected),
        );
        let at = connected
            .checked_sub(Duration::from_nanos(before))
            .and_then(|it| it.checked_add(Duration::from_nanos(after)));
        if let Some(at) = at {
            timeline.guest_at(at, name);
        }
    }
    let took = (times.command - times.init) as f64;
    let share = 100.0 * took / times.command.max(1) as f64;
    timeline.host(format!("init-{:.1}ms-{share:.1}%-of-boot", took / 1e6));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(times: &Started) -> Vec<String> {
        let timeline = Timeline::new();
        mark(&timeline, times, Instant::now());
        let marks = timeline.marks();
        assert!(marks.is_sorted_by_key(|it| it.at_us));
        marks.into_iter().map(|it| it.name.into_owned()).collect()
    }

    #[test]
    fn phases_are_marked_in_their_order_with_their_share() {
        let times = Started {
            init: 95_000_000,
            connected: 96_000_000,
            job: 97_000_000,
            modules: 98_000_000,
            root: 99_000_000,
            network: 99_500_000,
            command: 100_000_000,
        };
        let names = names(&times);
        assert_eq!(names.first().unwrap(), "init");
        assert_eq!(names.len(), 8);
        assert!(
            names.contains(&"init-5.0ms-5.0%-of-boot".to_owned()),
            "{names:?}"
        );
    }

    #[test]
    fn times_that_no_guest_has_are_left_out() {
        let backwards = Started {
            init: u64::MAX,
            ..Started::default()
        };
        assert!(names(&backwards).is_empty());
        let far = Started {
            command: u64::MAX,
            ..Started::default()
        };
        assert!(names(&far).len() <= 8);
    }
}
