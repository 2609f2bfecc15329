//! Rate limits: what is held back, where it waits, and when it goes on.

use std::num::NonZeroU64;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent};

use super::*;
use crate::rate_limiter::Rate;

fn limited(ops: Option<Rate>, bytes: Option<Rate>) -> Driver {
    let limit = RateLimit { ops, bytes };
    Driver::with(Setup {
        limit,
        ..Setup::new(ALL)
    })
    .unwrap()
}

/// So slow that a test sees no second burst.
fn slowly(burst: u64) -> Option<Rate> {
    let count = |number| NonZeroU64::new(number).unwrap();
    Some(Rate::new(count(1), Some(count(burst)), NonZeroU64::MIN))
}

#[test]
fn a_limit_holds_frames_back_where_they_are() {
    let mut driver = limited(slowly(3), None);
    for _ in 0..5 {
        driver.send(&PLAIN, &frame(60));
        driver.add(RX, &room(2000));
        driver.backend.give(PLAIN, &frame(60));
    }
    driver.notify(TX);
    assert_eq!(driver.sent().len(), 3);
    assert_eq!(driver.used(TX), [(0, 0), (1, 0), (2, 0)]);
    // What kept one direction lets the other go.
    driver.edge();
    assert_eq!(driver.used(RX), [(0, 72), (1, 72), (2, 72)]);
    // One frame was read, and waits; the rest is the back end's. Neither direction asks to be called again.
    assert_eq!(driver.backend.frames.lock().unwrap().len(), 1);
    assert!(!driver.comes_back(TX) && !driver.comes_back(RX));
    for _ in 0..10 {
        driver.edge();
        driver.notify(RX);
        driver.notify(TX);
    }
    assert_eq!(driver.backend.reads.load(Ordering::Relaxed), 4);
    assert_eq!((driver.sent().len(), driver.dropped()), (0, 0));
    // Nothing of it is lost.
    let queues = driver.worker.take().unwrap().stop();
    let mut chain = crate::virtio::queue::Chain::new();
    for (mut queue, heads) in queues.into_iter().zip([3..5, 3..5]) {
        for head in heads {
            assert!(queue.pop(&mut chain).unwrap());
            assert_eq!(chain.head(), head);
        }
    }
}

#[test]
fn a_limit_s_timer_lets_the_next_frames_go() {
    let count = |number| NonZeroU64::new(number).unwrap();
    // 100 bytes a millisecond.
    let rate = Rate::new(count(100_000), Some(count(100)), NonZeroU64::MIN);
    let mut driver = limited(None, Some(rate));
    for _ in 0..4 {
        driver.send(&PLAIN, &frame(80));
        driver.add(RX, &room(2000));
        driver.backend.give(PLAIN, &frame(80));
    }
    let epoll = Epoll::new().unwrap();
    for source in driver.worker().event_sources() {
        let event = EpollEvent::new(source.events, source.token.into());
        epoll.ctl(ControlOperation::Add, source.fd, event).unwrap();
    }
    driver.notify(TX);
    driver.edge();
    let mut events = [EpollEvent::default(); 4];
    while driver.used(TX).len() < 4 || driver.used(RX).len() < 4 {
        let ready = epoll.wait(-1, &mut events).unwrap();
        for event in &events[..ready] {
            let token = event.data() as u32;
            // The back end is writable at all times, and has frames only when it is said so.
            if token < token::RX_LIMIT {
                continue;
            }
            driver.worker().process_event(token, EventSet::IN).unwrap();
        }
    }
    assert_eq!(driver.sent().len(), 4);
    // Longer than the bucket, and of a nonsensical length: they pass, and are paid for by what they are.
    driver.send(&PLAIN, &frame(3000));
    driver.add(TX, &[(u32::MAX >> 12, 0)]);
    driver.notify(TX);
    while driver.used(TX).len() < 6 {
        epoll.wait(-1, &mut events).unwrap();
        driver
            .worker()
            .process_event(token::TX_LIMIT, EventSet::IN)
            .unwrap();
    }
    assert_eq!((driver.sent().len(), driver.dropped()), (1, 1));
}

#[test]
fn a_reset_fills_no_bucket() {
    let mut driver = limited(slowly(1), None);
    driver.send(&PLAIN, &frame(60));
    driver.send(&PLAIN, &frame(60));
    driver.notify(TX);
    assert_eq!(driver.sent().len(), 1);
    let queues = driver.worker.take().unwrap().stop();
    let context = ActivationContext {
        features: ALL,
        queues,
        interrupt: driver.interrupts.clone(),
        metrics: driver.metrics.clone(),
    };
    driver.worker = Some(driver.device.activate(context).unwrap());
    driver.notify(TX);
    assert_eq!(driver.sent().len(), 0);
}
