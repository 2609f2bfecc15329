//! Several pairs of queues, and the control queue.

use super::*;

/// Everything but several pairs, which have their own features.
const SEVERAL: u64 = ALL | features::MQ | features::CTRL_VQ;
const SET: [u8; 2] = [4, 0];

fn several(accepted: u64, pairs: usize, queues: impl IntoIterator<Item = u16>) -> Driver {
    Driver::with(Setup {
        pairs,
        queues: queues.into_iter().collect(),
        ..Setup::new(accepted)
    })
    .unwrap()
}

impl Driver {
    /// Has a command carried out, with room for its answer; the answer, `0xff` where there is none.
    fn command(&mut self, control: u16, command: &[u8]) -> u8 {
        let places = self.add(control, &[(command.len() as u32, 0), (1, WRITE)]);
        let memory = &self.memory;
        memory
            .write_slice(command, GuestAddress(places[0]))
            .unwrap();
        memory.write_obj(0xff_u8, GuestAddress(places[1])).unwrap();
        while {
            self.notify(control);
            self.comes_back(control)
        } {}
        self.bytes(places[1], 1)[0]
    }

    fn set_pairs(&mut self, control: u16, pairs: u16) -> u8 {
        let [low, high] = pairs.to_le_bytes();
        self.command(control, &[SET[0], SET[1], low, high])
    }

    fn enabled(&self) -> Vec<bool> {
        self.backends
            .iter()
            .map(|backend| backend.enabled())
            .collect()
    }
}

#[test]
fn several_pairs_are_offered_where_there_are_several_back_ends() {
    let driver = several(SEVERAL, 3, 0..7);
    let device = &driver.device;
    assert_eq!(device.queue_max_sizes().len(), 7);
    assert_eq!(device.device_features() & SEVERAL, SEVERAL);
    let mut pairs = [0; 2];
    device.read_config(8, &mut pairs);
    assert_eq!(pairs, [3, 0]);
    let single = Driver::new(ALL);
    assert_eq!(single.device.queue_max_sizes().len(), 2);
    let offered = single.device.device_features();
    assert_eq!(offered & (features::MQ | features::CTRL_VQ), 0);
    let config = || driver.device.config.clone();
    for count in [0, usize::from(MAX_PAIRS) + 1] {
        let backends = (0..count).map(|_| driver.backend.clone() as _).collect();
        assert!(Net::new(config(), backends).is_err(), "{count}");
    }
}

#[test]
fn pairs_work_when_they_are_enabled() {
    let mut driver = several(SEVERAL, 3, 0..7);
    assert_eq!(driver.enabled(), [true, false, false]);
    // What is there before waits, and is not forgotten.
    driver.send_on(5, &PLAIN, &frame(60));
    driver.add(4, &room(2000));
    driver.backends[2].give(PLAIN, &frame(61));
    driver.notify(5);
    driver.notify(4);
    driver.worker().process_event(2, EventSet::IN).unwrap();
    assert_eq!((driver.used(5).len(), driver.used(4).len()), (0, 0));
    assert_eq!(driver.set_pairs(6, 3), 0);
    assert_eq!(driver.used(6), [(0, 1)]);
    assert_eq!(driver.enabled(), [true, true, true]);
    assert_eq!(driver.used(5), [(0, 0)]);
    assert_eq!(driver.used(4), [(0, 73)]);
    assert_eq!(driver.backends[2].sent.lock().unwrap().len(), 1);
    // Each pair has its own back end.
    driver.send_on(3, &PLAIN, &frame(60));
    driver.notify(3);
    assert_eq!(driver.backends[1].sent.lock().unwrap().len(), 1);
    assert_eq!(driver.set_pairs(6, 1), 0);
    assert_eq!(driver.enabled(), [true, false, false]);
    driver.send_on(3, &PLAIN, &frame(60));
    driver.notify(3);
    assert_eq!(driver.backends[1].sent.lock().unwrap().len(), 1);
    let queues = driver.worker.take().unwrap().stop();
    let indices: Vec<u16> = queues.iter().map(ActiveQueue::index).collect();
    assert_eq!(indices, [0, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn the_control_queue_is_behind_the_pairs_that_were_negotiated() {
    // Without MQ there is one pair, whatever the device has (5.1.2).
    let mut driver = several(ALL | features::CTRL_VQ, 4, 0..9);
    assert_eq!(driver.set_pairs(2, 1), 0);
    assert_eq!(driver.set_pairs(2, 2), 1);
    assert_eq!(driver.enabled(), [true, false, false, false]);
    // Without a control queue nothing listens, there or elsewhere.
    let mut driver = several(ALL | features::MQ, 2, 0..5);
    assert_eq!(driver.set_pairs(4, 2), 0xff);
    driver.notify(99);
}

#[test]
fn a_driver_has_the_pairs_that_it_set_up() {
    // The third pair is half there, the second whole.
    let mut driver = several(SEVERAL, 4, [0, 1, 2, 3, 5, 6, 7, 8]);
    assert_eq!(driver.set_pairs(8, 3), 1);
    assert_eq!(driver.set_pairs(8, 4), 1);
    assert_eq!(driver.set_pairs(8, 2), 0);
    assert_eq!(driver.enabled(), [true, true, false, false]);
    driver.notify(5);
    driver.notify(6);
    for (queues, missing) in [(vec![1, 2, 3, 8], 0), (vec![0, 2, 3, 8], 1), (vec![], 0)] {
        let setup = Setup {
            pairs: 4,
            queues,
            ..Setup::new(SEVERAL)
        };
        match Driver::with(setup) {
            Err(ActivateError::MissingQueue { index }) => assert_eq!(index, missing),
            _ => panic!("queue {missing} is not missed"),
        }
    }
}

#[test]
fn hostile_commands_are_answered_with_an_error() {
    let mut driver = several(SEVERAL, 2, 0..5);
    let commands: [(&str, &[u8]); 12] = [
        ("nothing", &[]),
        ("half", &[4]),
        ("no number of pairs", &[4, 0]),
        ("half a number", &[4, 0, 1]),
        ("more than a number", &[4, 0, 1, 0, 0]),
        ("no pair", &[4, 0, 0, 0]),
        ("one too many", &[4, 0, 3, 0]),
        ("absurdly many", &[4, 0, 0xff, 0xff]),
        ("another command of the class", &[4, 1, 1, 0]),
        ("another class", &[0, 0, 1]),
        ("an unknown class", &[0xff, 0, 1, 0]),
        ("a table of addresses", &[1; 600]),
    ];
    for (count, (what, command)) in (1..).zip(commands) {
        assert_eq!(driver.command(4, command), 1, "{what}");
        assert_eq!(driver.dropped(), count, "{what}");
    }
    assert_eq!(driver.enabled(), [true, false]);
    // Without room for the answer, nothing is done.
    let place = driver.add(4, &[(4, 0)])[0];
    driver
        .memory
        .write_slice(&[4, 0, 2, 0], GuestAddress(place))
        .unwrap();
    driver.add(4, &[(4, 0), (0, WRITE)]);
    for _ in 0..3 {
        driver.notify(4);
    }
    assert_eq!(driver.used(4)[12..], [(24, 0), (25, 0)]);
    assert_eq!(driver.enabled(), [true, false]);
    // In any pieces, and with more room than is needed.
    let places = driver.add(4, &[(1, 0), (2, 0), (1, 0), (100, WRITE)]);
    for (place, piece) in places.iter().zip([&[4][..], &[0, 2], &[0], &[0xee, 0xee]]) {
        driver
            .memory
            .write_slice(piece, GuestAddress(*place))
            .unwrap();
    }
    driver.notify(4);
    assert_eq!(driver.bytes(places[3], 2), [0, 0xee]);
    assert_eq!(driver.enabled(), [true, true]);
}

#[test]
fn commands_are_carried_out_one_at_a_time() {
    let mut driver = several(SEVERAL, 2, 0..5);
    for pairs in [2, 1, 2] {
        let place = driver.add(4, &[(4, 0), (1, WRITE)])[0];
        driver
            .memory
            .write_slice(&[4, 0, pairs, 0], GuestAddress(place))
            .unwrap();
    }
    for served in 1..4 {
        driver.notify(4);
        assert_eq!(driver.used(4).len(), served);
        assert!(driver.comes_back(4));
    }
    driver.notify(4);
    assert!(!driver.comes_back(4));
}

#[test]
fn a_host_that_enables_no_pair_is_told_of() {
    let mut driver = several(SEVERAL, 2, 0..5);
    *driver.backends[1].broken.lock().unwrap() = Some(libc::EBADFD);
    assert_eq!(driver.set_pairs(4, 2), 1);
    assert_eq!(driver.metrics.counts().host_errors, 1);
    *driver.backends[1].broken.lock().unwrap() = None;
    assert_eq!(driver.set_pairs(4, 2), 0);
}

#[test]
fn features_follow_what_the_back_end_takes() {
    let driver = Driver::with(Setup {
        takes: Offloads::default(),
        ..Setup::new(0)
    })
    .unwrap();
    let offered = driver.device.device_features();
    use features::*;
    assert_eq!(offered, MAC | STATUS | MRG_RXBUF);
}

#[test]
fn a_back_end_without_room_is_waited_for() {
    let mut driver = Driver::new(ALL);
    driver.backend.space.store(1, Ordering::Relaxed);
    for _ in 0..3 {
        driver.send(&PLAIN, &frame(60));
    }
    driver.notify(TX);
    assert_eq!((driver.used(TX).len(), driver.sent().len()), (1, 1));
    assert!(!driver.comes_back(TX));
    // A frame that came is no room, and neither is a notification.
    driver.edge();
    driver.notify(TX);
    assert_eq!(driver.used(TX).len(), 1);
    driver.backend.space.store(2, Ordering::Relaxed);
    driver.worker().process_event(0, EventSet::OUT).unwrap();
    assert_eq!((driver.used(TX).len(), driver.sent().len()), (3, 2));
    assert_eq!(
        (driver.dropped(), driver.metrics.counts().host_errors),
        (0, 0)
    );
}
