//! Bare guests on this machine's own `/dev/kvm`, run by the built binary: how a VM ends, its serial port and terminal, what
//! the guest finds, and what is refused.

#[path = "bare/access.rs"]
mod access;
#[path = "bare/config.rs"]
mod config;
#[path = "bare/driver.rs"]
mod driver;
#[path = "bare/ends.rs"]
mod ends;
#[path = "bare/hostile.rs"]
mod hostile;
#[path = "bare/idle.rs"]
mod idle;
#[path = "bare/insight.rs"]
mod insight;
#[path = "bare/platform.rs"]
mod platform;
#[path = "bare/scenarios.rs"]
mod scenarios;
#[path = "bare/serial.rs"]
mod serial;
#[path = "bare/terminal.rs"]
mod terminal;
#[path = "bare/virtio.rs"]
mod virtio;

use std::process::ExitCode;

use ampoule_tests::harness::{self, Needs};

fn main() -> ExitCode {
    let tests = ampoule_tests::tests! {
        ends:
            a_guest_that_powers_off_gives_0_and_silence
            a_reset_by_acpi_gives_0
            a_reset_by_the_keyboard_controller_gives_0
            a_reset_starts_the_guest_again_if_asked_for
            a_restart_takes_all_cpus
            a_triple_fault_gives_134
            a_triple_fault_is_not_restarted
            what_kvm_cannot_execute_gives_134_and_the_bytes
            a_triple_fault_of_another_vcpu_gives_134_and_its_number
            what_kvm_cannot_execute_on_another_vcpu_gives_134_and_its_number
            a_power_off_does_not_wait_for_vcpus_that_never_started
            a_panic_told_to_pvpanic_gives_134
            a_panic_seen_on_the_console_gives_134_and_an_excerpt
            a_guest_that_never_ends_meets_its_timeout
            a_timeout_ends_vcpus_that_never_started
            sigterm_presses_the_power_button
            sigint_presses_the_power_button
            a_guest_that_ignores_the_power_button_is_stopped_after_its_grace
            a_second_signal_does_not_wait_for_the_grace
            no_grace_is_no_wait
            a_killed_vmm_leaves_no_trouble_behind
            a_killed_vmm_leaves_disks_and_sockets_free;
        serial:
            a_long_paste_through_a_pipe_comes_back
            a_long_paste_into_a_terminal_comes_back
            a_guest_says_hello
            input_from_a_file_is_read_to_its_end
            a_flood_arrives_whole
            a_stalled_reader_holds_nobody_up
            a_closed_reader_holds_nobody_up
            missing_standard_streams_hold_nobody_up
            a_full_disk_holds_nobody_up
            output_goes_to_a_file
            a_file_takes_no_more_than_its_limit
            output_goes_nowhere
            a_socket_serves_one_client_after_the_other
            a_file_in_the_place_of_the_socket_is_kept
            a_pseudo_terminal_is_told_and_leads_to_the_guest
            a_console_takes_the_standard_streams_from_the_serial_port;
        terminal:
            it_is_restored_after_a_power_off
            it_is_restored_after_a_crash
            it_is_restored_after_a_timeout
            it_is_restored_after_signals
            it_is_restored_after_a_hangup
            it_is_restored_after_fatal_signals
            it_is_as_it_was_after_a_failed_start
            control_a_x_leaves
            control_a_x_leaves_a_guest_that_is_deaf
            control_a_c_helps
            control_characters_reach_the_guest
            typed_ahead_is_not_lost
            a_pipe_has_no_escape
            a_terminal_that_is_not_the_console_stays_as_it_is
            another_size_leaves_the_guest_alone
            the_timeline_table_follows_the_console;
        platform:
            the_pvh_entry_is_as_specified
            the_64_bit_entry_is_as_specified
            command_line_and_initrd_arrive
            memory_is_where_the_map_says
            memory_may_be_shared_or_of_small_pages
            acpi_tables_hang_together
            other_cpus_start_and_know_their_numbers
            unclaimed_addresses_read_all_ones
            the_clock_tells_the_hosts_time
            the_timeline_file_has_host_phases_and_guest_marks_in_order
            the_timeline_marks_the_first_byte_and_init;
        access:
            without_access_to_kvm_the_group_is_named
            without_kvm_the_module_is_named
            exhausted_threads_are_a_clean_error;
        idle:
            an_idle_vm_waits_for_nothing_but_events
            one_with_devices_and_consoles_does_not_either
            input_that_no_guest_takes_wakes_nobody;
        config:
            what_is_no_kernel_is_named
            a_truncated_kernel_is_refused
            a_kernel_that_lies_is_refused
            a_kernel_beyond_memory_says_how_much_it_needs
            an_entry_that_the_kernel_does_not_have_is_refused
            an_initrd_that_does_not_fit_is_refused
            values_out_of_range_are_refused
            the_nearest_name_of_an_option_is_offered
            what_is_wrong_in_a_file_is_said_with_its_place
            a_file_says_what_flags_say
            the_printed_configuration_means_the_same
            huge_pages_that_the_host_has_not_are_a_clear_error
            exhausted_limits_are_clean_errors
            exhausted_limits_are_clean_errors_with_devices;
        insight:
            what_a_disk_did_is_counted
            counts_are_written_when_asked_for_and_go_on_over_a_restart
            counts_follow_the_console_on_standard_output
            messages_go_to_their_file_with_their_times
            files_that_cannot_be_written_are_told_before_the_start;
        hostile:
            disks_entropy_console_and_sockets_survive_a_hostile_driver
            a_network_survives_a_hostile_driver;
        virtio:
            a_disk_is_read_and_written
            a_disk_that_is_read_only_or_too_small_fails_requests_only
            a_disk_is_one_vms_and_made_where_asked_for
            a_vmm_killed_a_hundred_times_loses_nothing;
        scenarios:
            all_that_must_fail_do_for_the_right_reason_and_the_others_pass
            a_vmm_that_is_killed_from_outside_is_told
            a_vmm_that_is_stopped_is_stuck
            an_interrupted_run_ends_with_what_there_is
            a_host_without_kvm_is_host_trouble
            scenarios_that_are_wrong_boot_nothing
            a_pass_on_a_retry_is_flaky
            the_first_failure_may_be_the_last
            scenarios_are_listed_chosen_and_told_as_tap
            junit_and_tap_are_read_by_others
            bisect_finds_the_first_kernel_that_fails;
    };
    harness::main([(Needs::Kvm, tests)], driver::ampoule())
}
