//! The MC146818 real-time clock and the CMOS memory beside it, at ports 0x70 and 0x71.
//!
//! After the Motorola MC146818A data sheet, with the PC's additions: the century at index 0x32 and
//! the memory sizes that firmware would have left. The index port also masks NMIs (bit 7), of which
//! there are none. Called on vCPU threads.
//!
//! - The time is the host's UTC plus an offset. A guest that sets the clock changes the offset, for
//!   its own machine's life; the host's clock is never touched.
//! - Update in progress (register A, bit 7) shows for the last 2.2 ms of each second, as on the
//!   chip, so that a driver that waits for its end wakes at the beginning of a second.
//! - There is no interrupt, hence no alarm: the enable bits of register B stay 0 however they are
//!   written, and a driver that looks sees that. "Update ended" in register C works, for polling.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::bus::BusDevice;

use super::{byte_read, byte_write};

const INDEX_PORT: u8 = 0;
const DATA_PORT: u8 = 1;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY_OF_WEEK: u8 = 0x06;
const DAY_OF_MONTH: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

const CMOS_LEN: usize = 128;
const INDEX_MASK: u8 = 0x7f;

const A_UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// 32.768 kHz time base, 1024 Hz periodic rate: what firmware leaves.
const A_DEFAULT: u8 = 0x26;
const B_SET: u8 = 1 << 7;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;
const B_WRITABLE: u8 = B_SET | B_BINARY | B_24_HOURS;
const C_UPDATE_ENDED: u8 = 1 << 4;
const D_VALID: u8 = 1 << 7;
const HOURS_PM: u8 = 1 << 7;

/// tBUC + tUC of the data sheet at 32.768 kHz: 244 µs of warning, 1984 µs of update.
const UPDATE: Duration = Duration::from_micros(2228);

/// Where the time comes from.
pub trait WallClock: Send + Sync {
    /// The time since 1970-01-01 00:00:00 UTC.
    fn now(&self) -> Duration;
}

/// The host's real-time clock. A time before 1970 counts as 1970.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostClock;

impl WallClock for HostClock {
    fn now(&self) -> Duration {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
    }
}

/// The clock and its memory. Two ports long, from 0x70 on.
pub struct Rtc {
    clock: Box<dyn WallClock>,
    state: Mutex<State>,
}

impl Rtc {
    /// A clock that shows the host's time, in UTC.
    pub fn new() -> Self {
        Self::with_clock(HostClock)
    }

    /// A clock that shows the time of `clock`.
    pub fn with_clock(clock: impl WallClock + 'static) -> Self {
        let mut cmos = [0; CMOS_LEN];
        cmos[usize::from(REGISTER_A)] = A_DEFAULT;
        cmos[usize::from(REGISTER_B)] = B_24_HOURS;
        let now = clock.now().as_secs().cast_signed();
        let state = State {
            index: 0,
            cmos,
            offset: 0,
            held: None,
            update_seen: now,
        };
        Self {
            clock: Box::new(clock),
            state: Mutex::new(state),
        }
    }

    /// Fills in the memory sizes that a guest finds in CMOS: RAM from address 0 up to the hole below
    /// 4 GiB, and RAM from 4 GiB on, both in bytes.
    #[must_use]
    pub fn with_memory_size(self, below_4g: u64, above_4g: u64) -> Self {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        let base = (below_4g / KIB).min(640);
        let extended = (below_4g.saturating_sub(MIB) / KIB).min(0xffff);
        let above_16m = (below_4g.saturating_sub(16 * MIB) / (64 * KIB)).min(0xffff);
        let high = (above_4g / (64 * KIB)).min(0xff_ffff);
        {
            let mut state = self.state();
            state.store(0x15, base, 2);
            state.store(0x17, extended, 2);
            state.store(0x30, extended, 2);
            state.store(0x34, above_16m, 2);
            state.store(0x5b, high, 3);
        }
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Rtc {
    fn default() -> Self {
        Self::new()
    }
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        byte_read(offset, data, |offset| {
            (offset == DATA_PORT).then(|| self.state().read(self.clock.now()))
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match byte_write(offset, data) {
            Some((INDEX_PORT, value)) => self.state().index = value & INDEX_MASK,
            Some((DATA_PORT, value)) => self.state().write(value, self.clock.now()),
            _ => {}
        }
    }
}

struct State {
    index: u8,
    /// What is stored as such. Time and status registers are worked out when they are read.
    cmos: [u8; CMOS_LEN],
    /// The guest's time minus the host's, in seconds.
    offset: i64,
    /// While SET is on, the clock stands still and its registers are memory.
    held: Option<Time>,
    /// The second at which register C was last read.
    update_seen: i64,
}

impl State {
    fn read(&mut self, now: Duration) -> u8 {
        let time = self.time(now);
        match self.index {
            SECONDS => self.encode(time.second),
            MINUTES => self.encode(time.minute),
            HOURS => self.encode_hour(time.hour),
            DAY_OF_WEEK => self.encode(time.day_of_week()),
            DAY_OF_MONTH => self.encode(time.day),
            MONTH => self.encode(time.month),
            YEAR => self.encode(time.year % 100),
            CENTURY => self.encode(time.year / 100),
            REGISTER_A => {
                let rest = Duration::from_secs(1) - Duration::from_nanos(now.subsec_nanos().into());
                let updating = self.held.is_none() && rest <= UPDATE;
                self.register(REGISTER_A) | if updating { A_UPDATE_IN_PROGRESS } else { 0 }
            }
            REGISTER_C => {
                let second = self.seconds(now);
                let ended = self.held.is_none() && second != self.update_seen;
                self.update_seen = second;
                if ended { C_UPDATE_ENDED } else { 0 }
            }
            REGISTER_D => D_VALID,
            index => self.register(index),
        }
    }

    fn write(&mut self, value: u8, now: Duration) {
        let mut time = self.time(now);
        match self.index {
            SECONDS => time.second = self.decode(value),
            MINUTES => time.minute = self.decode(value),
            HOURS => time.hour = self.decode_hour(value),
            DAY_OF_MONTH => time.day = self.decode(value),
            MONTH => time.month = self.decode(value),
            YEAR => time.year = time.year / 100 * 100 + self.decode(value),
            CENTURY => time.year = time.year % 100 + self.decode(value) * 100,
            // It follows from the date.
            DAY_OF_WEEK | REGISTER_C | REGISTER_D => return,
            REGISTER_A => {
                return self.store(REGISTER_A, u64::from(value & !A_UPDATE_IN_PROGRESS), 1);
            }
            REGISTER_B => return self.write_register_b(value, now),
            index => return self.store(index, u64::from(value), 1),
        }
        match &mut self.held {
            Some(held) => *held = time,
            None => self.set(&time, now),
        }
    }

    fn write_register_b(&mut self, value: u8, now: Duration) {
        let value = value & B_WRITABLE;
        if value & B_SET == 0 {
            if let Some(time) = self.held.take() {
                self.set(&time, now);
            }
        } else if self.held.is_none() {
            self.held = Some(self.time(now));
        }
        self.store(REGISTER_B, u64::from(value), 1);
    }

    /// Sets the clock. A date that does not exist leaves it as it was.
    fn set(&mut self, time: &Time, now: Duration) {
        if let Some(seconds) = time.to_unix() {
            self.offset = seconds - now.as_secs().cast_signed();
        }
    }

    fn time(&self, now: Duration) -> Time {
        self.held
            .unwrap_or_else(|| Time::from_unix(self.seconds(now)))
    }

    fn seconds(&self, now: Duration) -> i64 {
        now.as_secs().cast_signed().wrapping_add(self.offset)
    }

    fn register(&self, index: u8) -> u8 {
        self.cmos[usize::from(index & INDEX_MASK)]
    }

    /// Stores the lowest `len` bytes of `value`, lowest first.
    fn store(&mut self, index: u8, value: u64, len: usize) {
        let bytes = value.to_le_bytes();
        for (at, byte) in (usize::from(index)..CMOS_LEN).zip(bytes.into_iter().take(len)) {
            self.cmos[at] = byte;
        }
    }

    fn is_binary(&self) -> bool {
        self.register(REGISTER_B) & B_BINARY != 0
    }

    /// A guest may have stored a number of three digits; what does not fit is cut off.
    fn encode(&self, value: i64) -> u8 {
        let value = if self.is_binary() {
            value
        } else {
            value / 10 * 16 + value % 10
        };
        value.to_le_bytes()[0]
    }

    fn decode(&self, value: u8) -> i64 {
        let value = i64::from(value);
        if self.is_binary() {
            value
        } else {
            (value >> 4) * 10 + (value & 0xf)
        }
    }

    fn encode_hour(&self, hour: i64) -> u8 {
        if self.register(REGISTER_B) & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
        self.encode(twelve) | if hour >= 12 { HOURS_PM } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> i64 {
        if self.register(REGISTER_B) & B_24_HOURS != 0 {
            return self.decode(value);
        }
        let twelve = self.decode(value & !HOURS_PM) % 12;
        twelve + if value & HOURS_PM != 0 { 12 } else { 0 }
    }
}

/// A time of the Gregorian calendar, or what a guest wrote in the place of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Time {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

const SECONDS_A_DAY: i64 = 86_400;
/// The calendar repeats itself after so many days, 400 years.
const DAYS_AN_ERA: i64 = 146_097;
/// From 0000-03-01 to 1970-01-01. Years are counted from March, so that a leap day is a year's last.
const DAYS_TO_1970: i64 = 719_468;

impl Time {
    fn from_unix(seconds: i64) -> Self {
        let day = seconds.div_euclid(SECONDS_A_DAY) + DAYS_TO_1970;
        let second = seconds.rem_euclid(SECONDS_A_DAY);
        let (era, day) = (day.div_euclid(DAYS_AN_ERA), day.rem_euclid(DAYS_AN_ERA));
        // 1460, 36524 and 146096: the last days of 4, 100 and 400 years, which would count as a year
        // of their own.
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        // From March on, months have 153 days in five.
        let month = (5 * day + 2) / 153;
        Self {
            // Four digits are all there is to show.
            year: (year + era * 400 + i64::from(month >= 10)).rem_euclid(10_000),
            month: if month < 10 { month + 3 } else { month - 9 },
            day: day - (153 * month + 2) / 5 + 1,
            hour: second / 3600,
            minute: second / 60 % 60,
            second: second % 60,
        }
    }

    /// Seconds since 1970; `None` for what is not a time.
    fn to_unix(self) -> Option<i64> {
        let valid = (0..=9999).contains(&self.year)
            && (1..=12).contains(&self.month)
            && (1..=self.days_in_month()).contains(&self.day)
            && (0..24).contains(&self.hour)
            && (0..60).contains(&self.minute)
            && (0..60).contains(&self.second);
        valid.then(|| {
            self.days() * SECONDS_A_DAY + self.hour * 3600 + self.minute * 60 + self.second
        })
    }

    /// Days since 1970.
    fn days(self) -> i64 {
        let year = if self.month <= 2 {
            self.year - 1
        } else {
            self.year
        };
        let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
        let month = if self.month > 2 {
            self.month - 3
        } else {
            self.month + 9
        };
        let day = (153 * month + 2) / 5 + self.day - 1;
        era * DAYS_AN_ERA + 365 * year + year / 4 - year / 100 + day - DAYS_TO_1970
    }

    fn days_in_month(self) -> i64 {
        let leap = self.year % 4 == 0 && (self.year % 100 != 0 || self.year % 400 == 0);
        match self.month {
            2 if leap => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        }
    }

    /// 1 is Sunday.
    fn day_of_week(self) -> i64 {
        // 1970-01-01 was a Thursday.
        (self.days() + 4).rem_euclid(7) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_wide_reads_are_all_ones, inb, outb};
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct ManualClock(Arc<Mutex<Duration>>);

    impl ManualClock {
        fn at(seconds: u64) -> Self {
            Self(Arc::new(Mutex::new(Duration::from_secs(seconds))))
        }

        fn advance(&self, by: Duration) {
            *self.0.lock().unwrap() += by;
        }
    }

    impl WallClock for ManualClock {
        fn now(&self) -> Duration {
            *self.0.lock().unwrap()
        }
    }

    fn get(rtc: &Rtc, index: u8) -> u8 {
        outb(rtc, 0, index);
        inb(rtc, 1)
    }

    fn put(rtc: &Rtc, index: u8, value: u8) {
        outb(rtc, 0, index);
        outb(rtc, 1, value);
    }

    /// Century, year, month, day, hour, minute, second, day of week.
    fn fields(rtc: &Rtc) -> [u8; 8] {
        [0x32, 9, 8, 7, 4, 2, 0, 6].map(|index| get(rtc, index))
    }

    /// 2024-02-29 23:59:58, a Thursday.
    const LEAP_DAY: u64 = 1_709_251_198;

    #[test]
    fn the_host_s_time_is_shown_in_bcd() {
        let clock = ManualClock::at(LEAP_DAY);
        let rtc = Rtc::with_clock(clock.clone());
        assert_eq!(fields(&rtc), [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58, 5]);
        clock.advance(Duration::from_secs(2));
        assert_eq!(fields(&rtc), [0x20, 0x24, 0x03, 0x01, 0, 0, 0, 6]);
        assert_eq!(
            [0x0a, 0x0b, 0x0d].map(|index| get(&rtc, index)),
            [0x26, 0x02, 0x80]
        );
    }

    #[test]
    fn binary_and_twelve_hour_modes_follow_register_b() {
        let clock = ManualClock::at(LEAP_DAY);
        let rtc = Rtc::with_clock(clock.clone());
        put(&rtc, 0x0b, 0x06);
        assert_eq!(fields(&rtc), [20, 24, 2, 29, 23, 59, 58, 5]);
        put(&rtc, 0x0b, 0x00);
        assert_eq!(get(&rtc, 4), 0x91);
        clock.advance(Duration::from_secs(2));
        assert_eq!(get(&rtc, 4), 0x12);
        put(&rtc, 4, 0x92);
        put(&rtc, 0x0b, 0x02);
        assert_eq!(get(&rtc, 4), 0x12);
    }

    #[test]
    fn the_clock_can_be_set_the_way_linux_does_and_then_goes_on() {
        let clock = ManualClock::at(LEAP_DAY);
        let rtc = Rtc::with_clock(clock.clone());
        put(&rtc, 0x0b, 0x82);
        put(&rtc, 0x0a, 0x76);
        for (index, value) in [
            (9, 0x99),
            (8, 0x12),
            (7, 0x31),
            (4, 0x23),
            (2, 0x59),
            (0, 0x59),
            (0x32, 0x19),
        ] {
            clock.advance(Duration::from_secs(3));
            put(&rtc, index, value);
        }
        put(&rtc, 0x0b, 0x02);
        put(&rtc, 0x0a, 0x26);
        assert_eq!(fields(&rtc), [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59, 6]);
        clock.advance(Duration::from_secs(1));
        assert_eq!(fields(&rtc), [0x20, 0, 1, 1, 0, 0, 0, 7]);
    }

    #[test]
    fn a_single_field_can_be_set_while_the_clock_runs() {
        let rtc = Rtc::with_clock(ManualClock::at(LEAP_DAY));
        put(&rtc, 2, 0x30);
        assert_eq!(fields(&rtc), [0x20, 0x24, 0x02, 0x29, 0x23, 0x30, 0x58, 5]);
        // 2023 had no 29 February.
        put(&rtc, 9, 0x23);
        assert_eq!(get(&rtc, 9), 0x24);
    }

    #[test]
    fn a_century_is_a_leap_year_when_it_is_the_fourth() {
        for (century, day) in [(0x19, 0x28), (0x20, 0x29), (0x21, 0x28), (0x24, 0x29)] {
            let rtc = Rtc::with_clock(ManualClock::at(LEAP_DAY));
            put(&rtc, 7, 0x28);
            put(&rtc, 9, 0);
            put(&rtc, 0x32, century);
            put(&rtc, 7, 0x29);
            assert_eq!(fields(&rtc)[..4], [century, 0, 2, day]);
        }
    }

    #[test]
    fn a_date_that_does_not_exist_is_shown_while_set_and_then_forgotten() {
        let rtc = Rtc::with_clock(ManualClock::at(LEAP_DAY));
        put(&rtc, 0x0b, 0x82);
        put(&rtc, 8, 0x45);
        assert_eq!(get(&rtc, 8), 0x45);
        put(&rtc, 0x0b, 0x02);
        assert_eq!(fields(&rtc), [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58, 5]);
    }

    #[test]
    fn an_update_shows_at_the_end_of_a_second_and_ends_with_it() {
        let clock = ManualClock::at(LEAP_DAY);
        let rtc = Rtc::with_clock(clock.clone());
        let update = |rtc: &Rtc| (get(rtc, 0x0a) >> 7, get(rtc, 0x0c));
        assert_eq!(update(&rtc), (0, 0));
        clock.advance(Duration::from_micros(997_000));
        assert_eq!(update(&rtc), (0, 0));
        clock.advance(Duration::from_micros(1_500));
        assert_eq!(update(&rtc), (1, 0));
        put(&rtc, 0x0b, 0x82);
        assert_eq!(update(&rtc), (0, 0));
        put(&rtc, 0x0b, 0x02);
        clock.advance(Duration::from_micros(1_500));
        assert_eq!(update(&rtc), (0, 0x10));
        assert_eq!(update(&rtc), (0, 0));
    }

    #[test]
    fn interrupts_cannot_be_enabled() {
        let rtc = Rtc::with_clock(ManualClock::default());
        put(&rtc, 0x0b, 0x7b);
        assert_eq!(get(&rtc, 0x0b), 0x02);
    }

    #[test]
    fn the_rest_is_memory_and_bit_7_of_the_index_is_not_part_of_it() {
        let rtc = Rtc::with_clock(ManualClock::default());
        for index in (0x0e..0x80).filter(|&index| index != 0x32) {
            put(&rtc, index | 0x80, !index);
        }
        for index in (0x0e..0x80).filter(|&index| index != 0x32) {
            assert_eq!(get(&rtc, index), !index);
        }
        for index in [1, 3, 5] {
            put(&rtc, index, 0xc0);
            assert_eq!(get(&rtc, index), 0xc0);
        }
        put(&rtc, 0x0d, 0);
        assert_eq!(get(&rtc, 0x0d), 0x80);
        assert_eq!((inb(&rtc, 0), inb(&rtc, 2)), (0xff, 0xff));
        assert_wide_reads_are_all_ones(&rtc, 2);
        rtc.write(1, &[0, 0]);
        rtc.write(u64::MAX, &[0]);
    }

    #[test]
    fn memory_sizes_are_where_firmware_puts_them() {
        let rtc = Rtc::with_clock(ManualClock::default()).with_memory_size(3 << 30, 5 << 30);
        let bytes = [0x15, 0x16, 0x17, 0x18, 0x34, 0x35, 0x5b, 0x5c, 0x5d];
        let expected = [0x80, 0x02, 0xff, 0xff, 0x00, 0xbf, 0x00, 0x40, 0x01];
        assert_eq!(bytes.map(|index| get(&rtc, index)), expected);
        let rtc = Rtc::with_clock(ManualClock::default()).with_memory_size(17 << 20, 0);
        assert_eq!(
            [0x30, 0x31, 0x34, 0x35].map(|index| get(&rtc, index)),
            [0, 0x40, 0x10, 0]
        );
        let _ = Rtc::with_clock(ManualClock::default()).with_memory_size(u64::MAX, u64::MAX);
    }

    proptest! {
        #[test]
        fn times_survive_the_way_to_fields_and_back(seconds in -62_167_219_200_i64..253_402_300_800) {
            prop_assert_eq!(Time::from_unix(seconds).to_unix(), Some(seconds));
        }

        #[test]
        fn no_sequence_of_writes_breaks_the_clock(
            start in any::<u64>(),
            writes in prop::collection::vec((0_u64..3, any::<u8>()), 0..64),
        ) {
            let rtc = Rtc::with_clock(ManualClock::at(start));
            for (port, value) in writes {
                outb(&rtc, port, value);
                inb(&rtc, 1);
            }
            for index in 0..=255 {
                get(&rtc, index);
            }
        }
    }
}
