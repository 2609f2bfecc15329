//! The library, as a program that embeds it uses it: VMs of bare guests in this process, on this machine's own `/dev/kvm`.

#[path = "library/backends.rs"]
mod backends;
#[path = "library/devices.rs"]
mod devices;
#[path = "library/examples.rs"]
mod examples;
#[path = "library/guest.rs"]
mod guest;
#[path = "library/handle.rs"]
mod handle;
#[path = "library/lifecycle.rs"]
mod lifecycle;
#[path = "library/test_vm.rs"]
mod test_vm;

use std::path::Path;
use std::process::ExitCode;

use ampoule_tests::harness::{self, Needs};

fn main() -> ExitCode {
    let tests = ampoule_tests::tests! {
        lifecycle:
            a_paused_guest_stands_still_and_goes_on
            sixteen_vcpus_pause_wherever_they_are
            a_paused_vm_can_be_stopped_and_reset
            what_a_state_does_not_allow_is_an_error
            twenty_resets_in_a_row
            calls_from_several_threads_in_any_order;
        handle:
            events_tell_the_life_of_a_vm
            a_panic_is_told_when_it_is_noticed
            the_console_is_there_before_and_after_the_guest
            every_thread_calls_its_hook_before_the_guest_runs
            a_hook_that_fails_ends_the_vm_before_its_guest_runs
            vms_of_one_process_do_not_notice_each_other
            vsock_waits_for_a_driver_and_ends_with_its_vm;
        test_vm:
            a_guest_is_read_typed_to_and_seen_to_end
            an_end_that_nobody_waited_for_is_told
            a_guest_that_waits_and_one_that_computes_are_told_apart
            a_paused_guest_is_no_hang
            a_vmm_that_does_not_stop_when_it_is_told_to_is_stuck
            what_is_forbidden_fails_the_step_and_the_end
            colours_are_no_part_of_the_text
            no_vm_is_an_error_with_its_remedy;
        examples:
            many_start_side_by_side;
        devices:
            devices_on_buses_interrupt_are_notified_and_may_panic
            a_virtio_device_outlives_machines_and_its_own_panics
            what_cannot_be_placed_is_an_error_with_the_devices_name;
        backends:
            a_disk_of_the_programs_own_outlives_its_guest
            a_disk_that_fails_is_its_own_vms_alone
            a_network_of_the_programs_own_loses_frames_as_it_is_told
            what_cannot_be_added_or_wrapped_is_named;
    };
    harness::main([(Needs::Kvm, tests)], Path::new(""))
}
