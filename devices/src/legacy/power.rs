//! The machine's power: ACPI sleep and reset registers, and a power button.
//!
//! Models what hardware-reduced ACPI needs (ACPI 6.5, sections 4.8.3.7 "Sleep Control and Status
//! Registers" and 4.8.3.6 "Reset Register"), at four consecutive ports:
//!
//! | offset | register       | access                                                        |
//! |--------|----------------|---------------------------------------------------------------|
//! | 0      | sleep control  | bits 2 to 4 SLP_TYP, bit 5 SLP_EN; reads 0                    |
//! | 1      | sleep status   | reads 0: a machine that never slept never woke                |
//! | 2      | reset          | writing 1 resets; reads 0                                     |
//! | 3      | button events  | bit 0: the power button was pressed; reading clears; not written |
//!
//! The last one belongs to a generic event device in ACPI, whose method reads it when its interrupt
//! comes. Registers are called on vCPU threads, the button is pressed from any thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;

use super::{byte_read, byte_write};

/// Offset of the sleep control register.
pub const SLEEP_CONTROL: u8 = 0;
/// Offset of the sleep status register.
pub const SLEEP_STATUS: u8 = 1;
/// Offset of the reset register.
pub const RESET: u8 = 2;
/// Offset of the register that tells which buttons were pressed.
pub const BUTTONS: u8 = 3;
/// Number of ports.
pub const LEN: u64 = 4;

/// The sleep type of S5, "soft off", which ACPI's `\_S5` has to name.
pub const SLEEP_TYPE_S5: u8 = 5;
/// What resets the machine when written to [`RESET`].
pub const RESET_VALUE: u8 = 1;
/// The power button's bit in [`BUTTONS`].
pub const POWER_BUTTON: u8 = 1 << 0;

const SLP_EN: u8 = 1 << 5;
const SLP_TYP_SHIFT: u8 = 2;
const SLP_TYP_MASK: u8 = 7;

/// What the guest asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerEvent {
    /// To be switched off.
    PowerOff,
    /// To be reset.
    Reset,
}

/// The power registers and the button. [`LEN`] ports long.
pub struct AcpiPower {
    line: Arc<dyn InterruptLine>,
    request: Box<dyn Fn(PowerEvent) + Send + Sync>,
    buttons: AtomicU8,
}

impl AcpiPower {
    /// Registers that hand what the guest asks for to `request`, on the vCPU thread that asks; the
    /// button raises `line`.
    ///
    /// `request` returns at once: the vCPU goes on until it is stopped, and may ask again.
    pub fn new(
        line: Arc<dyn InterruptLine>,
        request: impl Fn(PowerEvent) + Send + Sync + 'static,
    ) -> Self {
        Self {
            line,
            request: Box::new(request),
            buttons: AtomicU8::new(0),
        }
    }

    /// Presses the power button. A guest that has no driver for it takes no notice.
    ///
    /// # Errors
    /// The host's, on raising the interrupt. The button counts as pressed all the same.
    pub fn press_power_button(&self) -> io::Result<()> {
        self.buttons.fetch_or(POWER_BUTTON, Ordering::SeqCst);
        self.line.trigger()
    }
}

impl BusDevice for AcpiPower {
    fn read(&self, offset: u64, data: &mut [u8]) {
        byte_read(offset, data, |offset| match offset {
            SLEEP_CONTROL | SLEEP_STATUS | RESET => Some(0),
            BUTTONS => Some(self.buttons.swap(0, Ordering::SeqCst)),
            _ => None,
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match byte_write(offset, data) {
            // Other sleep states are not offered in ACPI, and a guest that asks for one stays awake.
            Some((SLEEP_CONTROL, value))
                if value & SLP_EN != 0
                    && (value >> SLP_TYP_SHIFT) & SLP_TYP_MASK == SLEEP_TYPE_S5 =>
            {
                (self.request)(PowerEvent::PowerOff);
            }
            Some((RESET, RESET_VALUE)) => (self.request)(PowerEvent::Reset),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_wide_reads_are_all_ones, inb, outb};
    use super::*;
    use crate::interrupt::CountingLine;
    use std::sync::Mutex;

    fn power() -> (AcpiPower, Arc<Mutex<Vec<PowerEvent>>>, Arc<CountingLine>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let line = Arc::new(CountingLine::default());
        let request = {
            let seen = seen.clone();
            move |event| seen.lock().unwrap().push(event)
        };
        (AcpiPower::new(line.clone(), request), seen, line)
    }

    #[test]
    fn only_s5_with_the_enable_bit_powers_off() {
        let (power, seen, _) = power();
        for value in 0..=255_u8 {
            outb(&power, 0, value);
            let off = value & 0x20 != 0 && value & 0x1c == 5 << 2;
            let expected = if off {
                vec![PowerEvent::PowerOff]
            } else {
                vec![]
            };
            assert_eq!(
                std::mem::take(&mut *seen.lock().unwrap()),
                expected,
                "{value:#x}"
            );
        }
    }

    #[test]
    fn only_the_reset_value_resets() {
        let (power, seen, _) = power();
        for value in 0..=255 {
            outb(&power, 2, value);
        }
        for offset in [1, 3, 4, 0x102] {
            outb(&power, offset, 1);
        }
        power.write(2, &[1, 0]);
        assert_eq!(*seen.lock().unwrap(), [PowerEvent::Reset]);
    }

    #[test]
    fn a_pressed_button_interrupts_and_shows_until_it_is_read() {
        let (power, _, line) = power();
        assert_eq!(inb(&power, 3), 0);
        power.press_power_button().unwrap();
        power.press_power_button().unwrap();
        assert_eq!(line.count(), 2);
        assert_eq!(inb(&power, 3), POWER_BUTTON);
        assert_eq!(inb(&power, 3), 0);
    }

    #[test]
    fn a_wide_read_does_not_clear_the_button() {
        let (power, _, line) = power();
        line.break_it();
        power.press_power_button().unwrap_err();
        assert_wide_reads_are_all_ones(&power, LEN);
        assert_eq!(
            [0, 1, 2, 4].map(|offset| inb(&power, offset)),
            [0, 0, 0, 0xff]
        );
        assert_eq!(inb(&power, 3), POWER_BUTTON);
    }
}
