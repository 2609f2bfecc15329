//! The bare guests: tiny programs that run without a kernel, one story each, made from `resources/guests` by the build
//! script. They run on any `/dev/kvm`, one in software included, which no Linux kernel does.

/// Declares a constant for each guest: the path of its ELF file.
macro_rules! guests {
    ($($(#[$doc:meta])* $name:ident = $file:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = concat!(env!("GUESTS_DIR"), "/", $file, ".elf");)*

        /// All of them.
        pub const ALL: &[&str] = &[$($name),*];
    };
}

guests! {
    /// Walks the ACPI tables, prints their signatures, checks their sums, and prints `PASS`.
    ACPI_WALK = "acpi_walk";
    /// `op=r|w|m size=BYTES depth=N batches=N …`, for any VMM: reads or writes a virtio disk by polled rings; `begin`, `end`, `PASS`.
    BENCH_BLOCK = "bench_block";
    /// `what=e|o|i|r|w count=N`, for any VMM: exits to it; `begin`, `end`, `tsc ` and the time in hexadecimal.
    BENCH_EXITS = "bench_exits";
    /// For any VMM: says `ready` and sleeps with interrupts off, for ever.
    BENCH_IDLE = "bench_idle";
    /// `op=s|r depth=N batches=N size=BYTES`, for any VMM: sends or receives frames by a network interface; `begin`, `end`, `PASS`.
    BENCH_NET = "bench_net";
    /// For any VMM: prints `!` and ends.
    BENCH_START = "bench_start";
    /// `op=s|r bytes=N size=BYTES depth=N`, for any VMM: streams bytes to or from port 1234 of the host; `begin`, `end`, `PASS`.
    BENCH_VSOCK = "bench_vsock";
    /// Starts another vCPU, which crashes: `tN` by a triple fault, `iN` by an `int3`; N is its APIC ID.
    AP_CRASH = "ap_crash";
    /// Prints `cmdline: …`, `modules: N`, and `initrd at A size N sum N` (the sum of all bytes).
    CMDLINE_ECHO = "cmdline_echo";
    /// Says `ready`, then counts for ever: in ESI, and an instruction later at [`COUNT`].
    COUNTER = "counter";
    /// Sets marks 1, 2, 3 on the debug port, the first with its first instructions, and powers off.
    DEBUG_MARKS = "debug_marks";
    /// Compares the state at entry with the PVH boot protocol and prints `PASS`.
    ENTRY_STATE = "entry_state";
    /// Sleeps with interrupts off, for ever.
    HLT_FOREVER = "hlt_forever";
    /// Says `ready` and sleeps with interrupts off, for ever.
    IDLE = "idle";
    /// Executes `int3`: an internal error on a KVM in software, a triple fault on another.
    INTERNAL_ERROR = "internal_error";
    /// Says `ready` and does what single characters tell it to: `p`ower off, `r`eset, `k` i8042 reset, `t`riple fault,
    /// `c`rash by pvpanic, `h`alt; a `?` for anything else.
    KEYS = "keys";
    /// Entered by the 64-bit Linux protocol (no PVH note): prints and checks the zero page, and prints `PASS`.
    LINUX64 = "linux64";
    /// Prints the memory map, writes and reads RAM at both ends of each region, above 4 GiB too, and prints `PASS`.
    MEM_PROBE = "mem_probe";
    /// Prints the lines of a Linux kernel's panic and goes on spinning.
    PANIC_TEXT = "panic_text";
    /// Says `ready`, waits for the power button, says `power button`, and powers off.
    POWER_BUTTON = "power_button";
    /// Powers off at once.
    POWEROFF = "poweroff";
    /// `what=b gsi=N` or `what=v`: uses devices that a program brings, on buses or behind virtio; says what it finds and `done`.
    OWN_DEVICES = "own_devices";
    /// Reports a panic through pvpanic and goes on spinning.
    PVPANIC = "pvpanic";
    /// Resets by ACPI's reset register.
    RESET_ACPI = "reset_acpi";
    /// Resets by the keyboard controller.
    RESET_I8042 = "reset_i8042";
    /// Prints the date and time of the CMOS clock, `YYYY-MM-DD HH:MM:SS`.
    RTC_READ = "rtc_read";
    /// Says `ready`, then sends back in upper case what it receives, until a `q` powers it off.
    SERIAL_ECHO = "serial_echo";
    /// Prints as many numbered lines of 32 bytes as its command line says and powers off; without a number, for ever.
    SERIAL_FLOOD = "serial_flood";
    /// Prints `Hello from a bare guest.` and powers off.
    SERIAL_HELLO = "serial_hello";
    /// Starts the other vCPUs, prints `started N of M` and their APIC IDs, and powers off.
    SMP = "smp";
    /// Starts the other vCPUs, prints a `+` for each that comes, and has all of them spin without an exit, for ever.
    SMP_SPIN = "smp_spin";
    /// Spins without an exit, for ever.
    SPIN = "spin";
    /// Dies of a triple fault.
    TRIPLE_FAULT = "triple_fault";
    /// Reads and writes what no device claims, in all widths, and prints `PASS`.
    UNCLAIMED = "unclaimed";
    /// `op=r|w size=N depth=N batches=N`: reads or writes a virtio disk by polled rings; `begin`, `end`, `PASS`. `op=n first=N
    /// slots=N`: writes and flushes numbered blocks for ever, and prints each number then.
    VIRTIO_BLOCK = "virtio_block";
    /// Sends frames by a network interface, as its command line says, and prints `begin`, `end` and `PASS`.
    VIRTIO_NET = "virtio_net";
    /// `memory=MIB`: breaks every rule of virtio against each device that it finds; `case N DEVICE WHAT: ok`, `PASS`.
    VIRTIO_HOSTILE = "virtio_hostile";
}

/// Where [`COUNTER`] counts: guest physical address of a 32-bit number.
pub const COUNT: u64 = 2 << 20;

/// The floor of a start: a C program that makes a VM, a vCPU and 128 MiB of memory, and runs one instruction.
pub const FLOOR: &str = concat!(env!("GUESTS_DIR"), "/floor");

/// A program for Linux guests that talks by AF_VSOCK.
pub const VSOCK_ECHO: &str = concat!(env!("GUESTS_DIR"), "/vsock_echo");

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::Path};

    #[test]
    fn every_source_is_a_guest_and_every_guest_an_elf_file() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources/guests");
        let sources = fs::read_dir(sources).unwrap().filter(|entry| {
            entry
                .as_ref()
                .unwrap()
                .path()
                .extension()
                .is_some_and(|e| e == "S" || e == "c")
        });
        assert_eq!(sources.count(), ALL.len());
        for guest in ALL {
            assert_eq!(fs::read(guest).unwrap()[..5], *b"\x7fELF\x02", "{guest}");
        }
    }

    #[test]
    fn all_but_those_for_the_linux_protocol_have_a_pvh_note() {
        for guest in ALL {
            let note = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0";
            let found = fs::read(guest)
                .unwrap()
                .windows(note.len())
                .any(|bytes| bytes == note);
            assert_eq!(
                found,
                ![
                    LINUX64,
                    OWN_DEVICES,
                    VIRTIO_BLOCK,
                    VIRTIO_NET,
                    VIRTIO_HOSTILE
                ]
                .contains(guest),
                "{guest}"
            );
        }
    }
}
