//! Linux guests: Debian's kernels by every way in, on every number of CPUs and size of memory that matters, to every end.
//!
//! Needs a KVM that can run Linux; `cargo lab test` runs it here where there is one, else in the lab host.

#[path = "linux/boot.rs"]
mod boot;
#[path = "bare/driver.rs"]
#[allow(dead_code, reason = "terminals are tested with bare guests")]
mod driver;
#[path = "linux/ends.rs"]
mod ends;
#[path = "linux/guest.rs"]
mod guest;
#[path = "bare/hostile.rs"]
mod hostile;
#[path = "linux/net.rs"]
mod net;
#[path = "linux/storage.rs"]
mod storage;
#[path = "linux/virtio.rs"]
mod virtio;
#[path = "linux/vsock.rs"]
mod vsock;

use std::process::ExitCode;

use ampoule_tests::harness::{self, Needs};

fn main() -> ExitCode {
    let tests = ampoule_tests::tests! {
        boot:
            linux_6_1_bzimage_decompressed_on_the_host
            linux_6_1_bzimage_by_the_64_bit_protocol
            linux_6_1_bzimage_by_its_own_decompressor
            linux_6_1_elf_by_pvh
            linux_6_1_elf_by_the_64_bit_protocol
            linux_6_12_bzimage_decompressed_on_the_host
            linux_6_12_bzimage_by_the_64_bit_protocol
            linux_6_12_bzimage_by_its_own_decompressor
            linux_6_12_elf_by_pvh
            linux_6_12_elf_by_the_64_bit_protocol
            two_cpus
            four_cpus
            the_least_memory_that_the_kernel_bears
            three_gib
            five_gib
            shared_memory
            the_platform_is_found;
        ends:
            a_shell_is_typed_to_and_powers_off
            a_reboot_ends_the_run
            a_reboot_starts_again_if_asked_for
            a_panic_gives_134_and_its_line
            a_panic_told_to_pvpanic_gives_134
            a_triple_fault_gives_134
            a_killed_vmm_leaves_no_trouble_behind
            sigterm_presses_the_power_button
            a_deadline_gives_124
            the_timeline_marks_init;
        hostile:
            disks_entropy_and_sockets_survive_a_hostile_driver
            a_network_survives_a_hostile_driver;
        net:
            a_guest_talks_to_its_host
            a_tap_that_goes_leaves_the_guest_running
            an_inherited_tap_serves_one_guest_after_another
            a_tap_that_cannot_be_opened_is_named;
        virtio:
            disks_are_read_and_written
            linux_6_12_reads_and_writes_disks
            the_entropy_device_feeds_hwrng;
        vsock:
            the_host_talks_to_the_guest
            the_guest_talks_to_the_host;
    };
    let with_tools = ampoule_tests::tests! {
        storage:
            the_guest_has_programs_of_this_machine;
    };
    let lists = [(Needs::LinuxGuests, tests), (Needs::Tools, with_tools)];
    harness::main(lists, driver::ampoule())
}
