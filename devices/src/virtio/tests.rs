//! What a hostile driver may do to the rings and the registers: the device asks for a reset, or takes no notice, and works
//! again afterwards.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use super::device::{
    ActivateError, ActivationContext, VirtioDevice, VirtioDeviceType, VirtioWorker,
};
use super::queue::{ActiveQueue, Chain, MAX_CHAIN};
use super::rng::{MAX_REQUEST, Rng};
use super::status::{bits, features};
use super::testing::*;
use super::transport::mmio::register;
use super::{ConfigNotifier, WorkerError, device};
use crate::bus::BusDevice;
use crate::rate_limiter::{Rate, RateLimit};

/// A request that works, to see that the device does.
#[track_caller]
fn assert_alive(driver: &Driver) {
    let before = driver.used_index();
    driver.send(&[writable(BUFFERS, 64, None)]);
    assert!(!driver.needs_reset(), "it needs a reset");
    assert_eq!(driver.used_index(), before.wrapping_add(1));
    assert_eq!(driver.last_used(), (0, 64));
}

/// Sends a chain that breaks the queue; the device wants a reset, says so once, is still after that, and lives again.
#[track_caller]
fn assert_broken_by(what: &str, break_it: impl Fn(&Driver)) {
    let driver = Driver::ready(Rng::new(), 1);
    assert_alive(&driver);
    let interrupts = driver.line.count();
    break_it(&driver);
    assert!(driver.needs_reset(), "{what}");
    assert_eq!(driver.line.count(), interrupts + 1, "{what}");
    assert_eq!(driver.read(register::INTERRUPT_STATUS) & 2, 2, "{what}");
    let used = driver.used_index();
    driver.send(&[writable(BUFFERS, 64, None)]);
    assert_eq!(driver.used_index(), used, "{what}: it goes on");
    driver.set_up(1, features::COMMON & !features::RING_EVENT_IDX);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 0, "{what}");
    assert_alive(&driver);
}

#[test]
fn a_chain_that_is_a_cycle_breaks_the_queue() {
    assert_broken_by("itself", |driver| {
        driver.send(&[writable(BUFFERS, 1, Some(0))]);
    });
    assert_broken_by("two", |driver| {
        driver.send(&[writable(BUFFERS, 1, Some(1)), writable(BUFFERS, 1, Some(0))]);
    });
}

#[test]
fn an_index_beyond_the_table_breaks_the_queue() {
    assert_broken_by("next", |driver| {
        driver.send(&[writable(BUFFERS, 1, Some(16))]);
    });
    for head in [16, 17, u16::MAX] {
        assert_broken_by("head", |driver| {
            driver.make_available(head);
            driver.kick();
        });
    }
}

#[test]
fn an_available_index_that_jumps_breaks_the_queue() {
    for jump in [17, 1000, u16::MAX] {
        assert_broken_by("jump", |driver| {
            let index: u16 = driver.get(AVAILABLE + 2);
            driver.put(AVAILABLE + 2, index.wrapping_add(jump));
            driver.kick();
        });
    }
}

#[test]
fn a_buffer_outside_of_memory_breaks_the_queue_and_nothing_is_written() {
    for (address, len) in [
        (u64::MAX - 15, 32),
        (u64::MAX, 1),
        (LOW_END - 16, 32),
        (LOW_END, 1),
        (HIGH - 1, 2),
        (HIGH_END - 1, 2),
        (0xc000_0000, 4096),
        (0, u32::MAX),
    ] {
        assert_broken_by(&format!("{len:#x} at {address:#x}"), |driver| {
            driver.put(LOW_END - 16, [0_u8; 16]);
            // A good buffer first: it must not be filled either.
            driver.put(BUFFERS, 0_u64);
            driver.send(&[writable(BUFFERS, 8, Some(1)), writable(address, len, None)]);
            assert_eq!(driver.get::<u64>(BUFFERS), 0);
            assert_eq!(driver.get::<[u8; 16]>(LOW_END - 16), [0; 16]);
        });
    }
}

#[test]
fn four_gib_in_all_are_too_much_and_nothing_at_all_is_fine() {
    assert_broken_by("4 GiB by the same buffer again and again", |driver| {
        let (entries, len) = (900, 5 << 20);
        for index in 0..entries {
            let next = (index + 1 < entries).then_some(index + 1);
            driver.put_desc(BUFFERS, index, writable(0, len, next));
        }
        driver.send(&[indirect(u32::from(entries) * 16)]);
    });
    let driver = Driver::ready(Rng::new(), 1);
    driver.send(&[writable(BUFFERS, 0, None)]);
    assert_eq!((driver.used_index(), driver.last_used()), (1, (0, 0)));
    driver.send(&[readable(BUFFERS, 8, None)]);
    assert_eq!((driver.used_index(), driver.last_used()), (2, (0, 0)));
    assert_alive(&driver);
}

#[test]
fn a_readable_buffer_behind_a_writable_one_breaks_the_queue() {
    assert_broken_by("order", |driver| {
        driver.send(&[writable(BUFFERS, 8, Some(1)), readable(BUFFERS, 8, None)]);
    });
}

fn indirect(len: u32) -> Desc {
    Desc {
        address: BUFFERS,
        len,
        flags: F_INDIRECT,
        next: 0,
    }
}

#[test]
fn an_indirect_table_is_followed_once_and_only_if_it_is_one() {
    let driver = Driver::ready(Rng::new(), 1);
    driver.put_desc(BUFFERS, 0, writable(BUFFERS + 0x1000, 10, Some(1)));
    driver.put_desc(BUFFERS, 1, writable(BUFFERS + 0x2000, 10, None));
    driver.send(&[indirect(32)]);
    assert_eq!(driver.last_used(), (0, 20));
    // More entries than the queue has descriptors, which 2.7.5.3.1 leaves to the driver.
    for index in 0..20 {
        let next = (index < 19).then_some(index + 1);
        driver.put_desc(BUFFERS, index, writable(BUFFERS + 0x1000, 1, next));
    }
    driver.send(&[indirect(20 * 16)]);
    assert_eq!(driver.last_used(), (0, 20));

    for len in [0, 8, 15, 17, (MAX_CHAIN as u32 + 1) * 16, u32::MAX - 15] {
        assert_broken_by(&format!("a table of {len}"), |driver| {
            driver.send(&[indirect(len)]);
        });
    }
    assert_broken_by("with a successor", |driver| {
        driver.put_desc(BUFFERS, 0, writable(BUFFERS, 8, None));
        let table = Desc {
            flags: F_INDIRECT | F_NEXT,
            next: 1,
            ..indirect(16)
        };
        driver.send(&[table, writable(BUFFERS, 8, None)]);
    });
    assert_broken_by("inside another", |driver| {
        driver.put_desc(BUFFERS, 0, indirect(16));
        driver.send(&[indirect(16)]);
    });
    assert_broken_by("pointing beyond itself", |driver| {
        driver.put_desc(BUFFERS, 0, writable(BUFFERS, 8, Some(1)));
        driver.send(&[indirect(16)]);
    });
    assert_broken_by("outside of memory", |driver| {
        let table = Desc {
            address: LOW_END - 8,
            ..indirect(16)
        };
        driver.send(&[table]);
    });
}

#[test]
fn a_request_gets_no_more_than_its_share() {
    let driver = Driver::ready(Rng::new(), 1);
    driver.send(&[writable(BUFFERS, (LOW_END - BUFFERS) as u32, None)]);
    assert_eq!(driver.last_used(), (0, MAX_REQUEST as u32));
    assert_eq!(driver.get::<u64>(BUFFERS + MAX_REQUEST as u64), 0);
    assert_ne!(driver.get::<u64>(BUFFERS), 0);
}

#[test]
fn nothing_changes_after_driver_ok() {
    let driver = Driver::ready(Rng::new(), 1);
    driver.write(register::QUEUE_SEL, 0);
    driver.write(register::QUEUE_READY, 0);
    driver.write(register::QUEUE_NUM, 8);
    driver.write(register::QUEUE_DESC_LOW, 0xffff_f000);
    driver.write(register::QUEUE_DRIVER_HIGH, 1);
    driver.accept(0);
    assert_eq!(driver.read(register::QUEUE_READY), 1);
    assert_alive(&driver);
}

#[test]
fn registers_that_are_none_read_zero_and_take_nothing() {
    let driver = Driver::ready(Rng::new(), 1);
    driver.write(register::QUEUE_SEL, u32::MAX);
    assert_eq!(driver.read(register::QUEUE_NUM_MAX), 0);
    assert_eq!(driver.read(register::QUEUE_READY), 0);
    driver.write(register::QUEUE_READY, 1);
    driver.write(register::QUEUE_NOTIFY, u32::MAX);
    driver.write(register::DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(register::DEVICE_FEATURES), 0);
    for offset in 0..0x1000 {
        for len in [1, 2, 4, 8] {
            if offset + len > 0x1000 {
                continue;
            }
            let mut data = vec![0xaa; len as usize];
            driver.transport.read(offset, &mut data);
            let is_register = offset < 0x100 && len == 4 && offset % 4 == 0;
            if !is_register {
                assert!(data.iter().all(|byte| *byte == 0), "{len} at {offset:#x}");
            }
            // Writes to registers by another width than theirs, and to the configuration.
            if !is_register {
                driver.transport.write(offset, &vec![0xff; len as usize]);
            }
        }
    }
    assert_eq!(driver.read(register::MAGIC_VALUE), 0x7472_6976);
    assert_eq!(driver.read(register::SHM_LEN_LOW), u32::MAX);
    assert_alive(&driver);
}

#[test]
fn status_bits_come_in_order_or_not_at_all() {
    let driver = Driver::new(Rng::new());
    for bit in [bits::DRIVER, bits::FEATURES_OK, bits::DRIVER_OK] {
        assert_eq!(driver.add_status(bit), 0);
    }
    driver.add_status(bits::ACKNOWLEDGE);
    assert_eq!(driver.add_status(bits::DRIVER_OK), bits::ACKNOWLEDGE);
    driver.add_status(bits::DRIVER);
    // Without VERSION_1, and with what was not offered.
    for wrong in [
        features::RING_INDIRECT_DESC,
        features::VERSION_1 | 1 << 3,
        features::VERSION_1 | 1 << 50,
    ] {
        driver.accept(wrong);
        assert_eq!(driver.add_status(bits::FEATURES_OK), 3, "{wrong:#x}");
    }
    driver.accept(features::VERSION_1);
    assert_eq!(driver.add_status(bits::FEATURES_OK), 11);
    // Bits do not go away but all together.
    driver.write(register::STATUS, 1);
    assert_eq!(driver.status(), 11);
    // A driver that says it is ready and has no queue: the device cannot work.
    driver.add_status(bits::DRIVER_OK);
    assert!(driver.needs_reset());
    driver.write(register::STATUS, 0);
    assert_eq!(driver.status(), 0);
    driver.set_up(1, features::COMMON & !features::RING_EVENT_IDX);
    assert_alive(&driver);
}

#[test]
fn features_of_the_third_page_cannot_be_accepted() {
    let driver = Driver::new(Rng::new());
    driver.add_status(bits::ACKNOWLEDGE);
    driver.add_status(bits::DRIVER);
    driver.accept(features::VERSION_1);
    driver.write(register::DRIVER_FEATURES_SEL, 2);
    driver.write(register::DRIVER_FEATURES, 1);
    assert_eq!(driver.add_status(bits::FEATURES_OK), 3);
}

#[test]
fn rings_outside_of_memory_are_refused_and_overlapping_ones_do_no_harm() {
    for (register, address) in [
        (register::QUEUE_DESC_LOW, LOW_END - 16),
        (register::QUEUE_DRIVER_LOW, LOW_END - 2),
        (register::QUEUE_DEVICE_LOW, HIGH_END - 4),
        (register::QUEUE_DESC_LOW, 0x1008),
        (register::QUEUE_DESC_HIGH, u64::from(u32::MAX)),
    ] {
        let driver = Driver::new(Rng::new());
        driver.add_status(bits::ACKNOWLEDGE);
        driver.add_status(bits::DRIVER);
        driver.accept(features::VERSION_1);
        driver.add_status(bits::FEATURES_OK);
        driver.set_up_queue(0);
        driver.write(register::QUEUE_READY, 0);
        driver.write(register, address as u32);
        driver.write(register::QUEUE_READY, 1);
        driver.add_status(bits::DRIVER_OK);
        assert!(driver.needs_reset(), "{register:#x} = {address:#x}");
        assert_eq!(driver.host.workers(), 0);
    }
    // The used ring on the available ring, and a buffer on all of them.
    let driver = Driver::new(Rng::new());
    driver.add_status(bits::ACKNOWLEDGE);
    driver.add_status(bits::DRIVER);
    driver.accept(features::VERSION_1);
    driver.add_status(bits::FEATURES_OK);
    driver.set_up_queue(0);
    driver.write(register::QUEUE_READY, 0);
    driver.write(register::QUEUE_DEVICE_LOW, AVAILABLE as u32);
    driver.write(register::QUEUE_READY, 1);
    driver.add_status(bits::DRIVER_OK);
    for _ in 0..20 {
        driver.send(&[writable(DESCRIPTORS, 0x3000, None)]);
    }
    driver.set_up(1, features::COMMON & !features::RING_EVENT_IDX);
    assert_alive(&driver);
}

#[test]
fn a_ring_that_is_kept_full_does_not_keep_the_thread() {
    // The used index is never read, the available index always a queue ahead: each turn serves one queue's worth.
    let driver = Driver::ready(Rng::new(), 1);
    for index in 0..16 {
        driver.put_desc(DESCRIPTORS, index, writable(BUFFERS, 1, None));
        driver.make_available(index);
    }
    driver.write(register::QUEUE_NOTIFY, 0);
    assert_eq!(driver.host.run(1), 1);
    assert_eq!(driver.used_index(), 16);
    // It asked to be called again, found nothing, and is still.
    assert_eq!(driver.host.run(100), 1);
}

#[test]
fn interrupts_are_raised_as_the_driver_wishes() {
    let driver = Driver::ready(Rng::new(), 1);
    let request = [writable(BUFFERS, 1, None)];
    // VIRTQ_AVAIL_F_NO_INTERRUPT
    driver.put(AVAILABLE, 1_u16);
    let before = driver.line.count();
    driver.send(&request);
    assert_eq!(driver.line.count(), before);
    driver.put(AVAILABLE, 0_u16);
    driver.send(&request);
    assert_eq!(driver.line.count(), before + 1);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 1);
    driver.write(register::INTERRUPT_ACK, 1);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 0);

    // EVENT_IDX: an interrupt when the used index passes used_event.
    driver.set_up(1, features::COMMON);
    let used_event = AVAILABLE + 4 + 16 * 2;
    let before = driver.line.count();
    driver.put(used_event, 1_u16);
    driver.send(&request);
    assert_eq!(driver.line.count(), before);
    driver.send(&request);
    assert_eq!(driver.line.count(), before + 1);
}

#[test]
fn an_interrupt_of_the_kernel_s_is_about_used_buffers() {
    let driver = Driver::ready(Hoarder { by_kernel: true }, 1);
    // The kernel sets no bit, and neither can a driver take this one away.
    for _ in 0..2 {
        assert_eq!(driver.read(register::INTERRUPT_STATUS), 1);
        driver.write(register::INTERRUPT_ACK, 1);
    }
    driver.write(register::STATUS, 0);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 0);
    let driver = Driver::ready(Hoarder::default(), 1);
    assert_eq!(driver.read(register::INTERRUPT_STATUS), 0);
}

/// Takes chains and never gives them back.
#[derive(Default)]
struct Hoarder {
    /// Whether it has the kernel raise its interrupts.
    by_kernel: bool,
}

struct HoarderWorker(ActiveQueue, Chain);

impl VirtioDevice for Hoarder {
    fn device_type(&self) -> VirtioDeviceType {
        VirtioDeviceType(42)
    }

    fn device_features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[16]
    }

    fn read_config(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(
        &mut self,
        mut context: ActivationContext,
    ) -> Result<Box<dyn VirtioWorker>, ActivateError> {
        let queue = context.queues.remove(0);
        if self.by_kernel {
            let irqfd = |source| context.interrupt.irqfd(source);
            assert!(irqfd(device::InterruptSource::Config).is_none());
            assert!(irqfd(device::InterruptSource::Queue(0)).is_some());
        }
        Ok(Box::new(HoarderWorker(queue, Chain::new())))
    }
}

impl VirtioWorker for HoarderWorker {
    fn process_queue(&mut self, _: u16) -> Result<(), device::WorkerError> {
        while self.0.pop(&mut self.1)? {}
        Ok::<(), WorkerError>(())
    }

    fn stop(self: Box<Self>) -> Vec<ActiveQueue> {
        vec![self.0]
    }
}

#[test]
fn a_head_that_the_device_has_cannot_be_made_available_again() {
    let driver = Driver::ready(Hoarder::default(), 1);
    driver.send(&[writable(BUFFERS, 1, None)]);
    assert!(!driver.needs_reset());
    driver.make_available(0);
    driver.kick();
    assert!(driver.needs_reset());
    // A reset with chains in flight; then the same head is a good one.
    driver.set_up(1, features::COMMON);
    driver.send(&[writable(BUFFERS, 1, None)]);
    assert!(!driver.needs_reset());
}

#[test]
fn a_buffer_may_lie_in_two_regions_only_if_they_touch() {
    let driver = Driver::ready(Rng::new(), 1);
    driver.send(&[writable(HIGH, (HIGH_END - HIGH) as u32, None)]);
    assert_eq!(driver.last_used(), (0, MAX_REQUEST as u32));
}

#[test]
fn what_happens_is_counted_and_a_reset_forgets_none_of_it() {
    let driver = Driver::ready(Rng::new(), 1);
    assert_alive(&driver);
    assert_alive(&driver);
    let counts = driver.transport.metrics().counts();
    assert_eq!(counts.kind, "rng");
    assert_eq!((counts.requests, counts.notifications), (2, 2));
    assert_eq!((counts.interrupts, counts.config_interrupts), (2, 0));
    assert_eq!((counts.bytes_read, counts.resets), (128, 0));
    driver.send(&[writable(LOW_END, 1, None)]);
    driver.set_up(1, features::COMMON & !features::RING_EVENT_IDX);
    driver.send(&[writable(BUFFERS, 1, Some(0))]);
    driver.set_up(1, features::COMMON & !features::RING_EVENT_IDX);
    assert_alive(&driver);
    let counts = driver.transport.metrics().counts();
    assert_eq!(counts.guest_faults["memory"], 1);
    assert_eq!(counts.guest_faults["too-long"], 1);
    assert_eq!(counts.guest_faults.values().sum::<u64>(), 2);
    assert_eq!(counts.events["stopped"], 2);
    assert_eq!((counts.requests, counts.notifications), (3, 5));
    assert_eq!((counts.interrupts, counts.config_interrupts), (3, 2));
    assert_eq!((counts.resets, counts.host_errors), (2, 0));
}

#[test]
fn a_notification_of_the_devices_own_is_none_of_the_drivers() {
    let driver = Driver::ready(Rng::new(), 1);
    let queue = driver.transport.notifications()[0].clone();
    queue.ring().unwrap();
    queue.ring().unwrap();
    driver.kick();
    assert!(!queue.take());
    let counts = driver.transport.metrics().counts();
    assert_eq!(counts.notifications, 1);
}

/// Shows a number that others change.
struct Shown(Arc<OnceLock<ConfigNotifier>>, Arc<AtomicU8>);

impl VirtioDevice for Shown {
    fn attach(&mut self, config: ConfigNotifier) {
        assert!(self.0.set(config).is_ok(), "attached twice");
    }

    fn device_type(&self) -> VirtioDeviceType {
        VirtioDeviceType(42)
    }

    fn device_features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[16]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        device::read_space(&[self.1.load(Ordering::Relaxed)], offset, data);
    }

    fn activate(
        &mut self,
        context: ActivationContext,
    ) -> Result<Box<dyn VirtioWorker>, ActivateError> {
        Hoarder::default().activate(context)
    }
}

#[test]
fn a_change_of_the_configuration_reaches_a_driver_whenever_it_comes() {
    let (notifier, shown) = (Arc::new(OnceLock::new()), Arc::new(AtomicU8::new(0)));
    let driver = Driver::new(Shown(notifier.clone(), shown.clone()));
    let change = |value| {
        shown.store(value, Ordering::Relaxed);
        notifier.get().unwrap().notify().unwrap();
    };
    let seen = || {
        let seen = (driver.read(register::INTERRUPT_STATUS), driver.line.count());
        driver.write(register::INTERRUPT_ACK, 2);
        seen
    };
    let generation = || driver.read(register::CONFIG_GENERATION);
    let before = generation();
    change(1);
    assert_ne!(generation(), before);
    assert_eq!(seen(), (0, 0), "no driver is there");

    driver.set_up(1, features::COMMON);
    assert_eq!(seen(), (0, 0), "it changed before there was a driver");
    change(2);
    assert_eq!(seen(), (2, 1));
    assert_eq!(driver.read(register::CONFIG), 2);

    // Between what the driver reads while it starts and the instant that it is ready.
    driver.write(register::STATUS, 0);
    driver.add_status(bits::ACKNOWLEDGE);
    driver.add_status(bits::DRIVER);
    driver.accept(features::COMMON & driver.offered());
    driver.add_status(bits::FEATURES_OK);
    driver.set_up_queue(0);
    change(3);
    assert_eq!(seen(), (0, 1));
    driver.add_status(bits::DRIVER_OK);
    assert_eq!(seen(), (2, 2));
}

#[test]
fn an_entropy_flood_waits_for_its_rate_and_goes_on() {
    let rate = |per_second, burst| {
        let count = |number| NonZeroU64::new(number).unwrap();
        Some(Rate::new(
            count(per_second),
            Some(count(burst)),
            NonZeroU64::MIN,
        ))
    };
    // Seven requests at once, then one in a millisecond.
    let limit = RateLimit {
        ops: rate(1000, 7),
        bytes: rate(1 << 30, 1 << 30),
    };
    let driver = Driver::ready(Rng::limited(limit).unwrap(), 1);
    driver.put_desc(DESCRIPTORS, 0, writable(BUFFERS, 64, None));
    let mut served = 0;
    while driver.used_index() == served && served < 500 {
        driver.make_available(0);
        driver.kick();
        served += 1;
    }
    assert!(served > 7, "{served}: the burst goes at once");
    assert!(served < 500, "there is no limit");
    // A kick storm does not make it sooner, and the one that waits is served in its time.
    driver.kick();
    assert!(driver.host.wait(), "the timer does not expire");
    assert_eq!(driver.used_index(), served);
    assert_eq!(
        driver.transport.metrics().counts().requests,
        u64::from(served)
    );
}
