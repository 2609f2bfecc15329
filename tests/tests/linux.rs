//! Linux guests: Debian's kernels by every way in, on every number of CPUs and size of memory that matters, to every end.
//!
//! Needs a KVM that can run Linux; `cargo lab test` runs it here where there is one, else in the lab host.

#[path = "linux/command.rs"]
mod command;
#[path = "linux/console.rs"]
mod console;
#[path = "linux/distribution.rs"]
mod distribution;
#[path = "bare/driver.rs"]
#[allow(dead_code, reason = "terminals are tested with bare guests")]
mod driver;
#[path = "linux/durable.rs"]
mod durable;
#[path = "linux/embedded.rs"]
mod embedded;
#[path = "linux/ends.rs"]
mod ends;
#[path = "linux/examples.rs"]
mod examples;
#[path = "linux/failing.rs"]
mod failing;
#[path = "linux/faults.rs"]
mod faults;
#[path = "linux/files.rs"]
mod files;
#[path = "linux/guest.rs"]
mod guest;
#[path = "linux/host.rs"]
mod host;
#[path = "bare/hostile.rs"]
mod hostile;
#[path = "linux/images.rs"]
mod images;
#[path = "linux/net.rs"]
mod net;
#[path = "linux/net_load.rs"]
mod net_load;
#[path = "linux/resolver.rs"]
mod resolver;
#[path = "linux/scenarios.rs"]
mod scenarios;
#[path = "registry/service.rs"]
#[allow(dead_code, reason = "some of it is for others")]
mod service;
#[path = "linux/storage.rs"]
mod storage;
#[path = "linux/user.rs"]
mod user;
#[path = "linux/virtio.rs"]
mod virtio;
#[path = "linux/volumes.rs"]
mod volumes;
#[path = "linux/vsock.rs"]
mod vsock;

use std::process::ExitCode;

use ampoule_tests::harness::{self, Needs};

/// Makes what all runs of this program have in common.
fn prepare() -> ExitCode {
    guest::initramfs();
    // Whose the files are is seen in a guest.
    if harness::is_root() {
        command::root();
        images::layout();
    }
    ExitCode::SUCCESS
}

fn main() -> ExitCode {
    if std::env::var_os(harness::PREPARE).is_some() {
        return prepare();
    }
    let tests = ampoule_tests::tests! {
        command:
            a_command_prints_and_its_status_is_ours
            streams_stay_apart_and_whole
            a_command_has_the_user_folder_and_environment_that_it_should
            signals_are_the_commands
            a_terminal_has_a_size_and_its_keys_are_the_commands
            a_crash_and_a_deadline_are_told_apart
            several_at_once_and_after_a_kill
            runs_leave_nothing_behind
            an_image_of_a_registry_is_run_again_without_it;
        images:
            many_layers_are_one_tree
            what_an_image_says_is_run_or_refused;
        console:
            linux_6_1_has_a_shell_on_it_that_knows_its_size
            linux_6_12_has_a_shell_on_it_that_knows_its_size
            the_first_size_is_known
            linux_6_1_moves_megabytes_both_ways
            linux_6_12_moves_megabytes_both_ways
            a_client_that_goes_leaves_the_guest_running
            a_panic_is_seen_on_it;
        distribution:
            a_root_partition_is_found_by_its_type
            other_file_systems_are_roots_and_what_has_no_init_is_none;
        embedded:
            twenty_resets_in_a_row
            a_device_of_the_programs_own_is_found_by_acpi
            the_program_talks_to_its_guest_by_vsock;
        faults:
            a_network_that_loses_frames_on_purpose_is_put_up_with;
        ends:
            a_shell_is_typed_to_and_powers_off
            a_panic_gives_134_and_its_line
            a_killed_vmm_leaves_no_trouble_behind
            sigterm_presses_the_power_button
            a_deadline_gives_124
            the_timeline_marks_init;
        examples:
            boot_leads_to_a_shell
            custom_device_throws_dice
            sandbox_runs_scripts
            the_program_of_the_document_runs;
        files:
            a_tree_goes_in_and_comes_out_as_it_was
            a_static_program_needs_no_image
            what_is_written_is_on_a_disk_that_ends_with_the_run
            a_disk_that_is_kept_is_there_again_and_one_runs_with_it;
        hostile:
            disks_entropy_console_and_sockets_survive_a_hostile_driver
            a_network_survives_a_hostile_driver;
        net:
            a_guest_talks_to_its_host
            a_tap_that_goes_leaves_the_guest_running
            an_inherited_tap_serves_one_guest_after_another
            a_tap_that_cannot_be_opened_is_named;
        virtio:
            disks_are_read_and_written
            linux_6_12_reads_and_writes_disks
            every_engine_and_format_keeps_what_is_written
            a_disk_grows_while_it_is_in_use
            the_entropy_device_feeds_hwrng;
        volumes:
            both_sides_read_and_write
            a_server_that_is_killed_leaves_errors_and_the_guest
            nothing_is_left_when_ampoule_is_killed
            the_hosts_own_files_are_a_root
            a_mapped_file_is_the_hosts
            what_cannot_be_shared_is_said_before_anything_starts
            a_shared_directory_goes_on_after_a_pause;
        scenarios:
            linux_6_1_by_every_way_in
            linux_6_12_by_every_way_in
            cpus
            memory
            the_platform_is_found
            restarts
            files_go_in_and_out_by_the_console
            a_disk_that_fails_fails_alone
            ends
            guests_that_are_not_well_fail_for_the_right_reason;
        vsock:
            the_host_talks_to_the_guest
            the_guest_talks_to_the_host
            linux_6_12_sends_pages_from_where_they_lie;
    };
    let with_tools = ampoule_tests::tests! {
        command:
            servers_on_both_sides_are_reached;
        scenarios:
            servers_are_asked_through_published_ports;
        storage:
            the_guest_has_programs_of_this_machine
            fio_finds_what_it_wrote
            linux_6_12_fio_finds_what_it_wrote
            ext4_survives_heavy_writing
            linux_6_12_ext4_survives_heavy_writing
            discards_shrink_the_image
            read_only_disks_refuse_writes
            a_disk_that_grows_is_used_to_its_end;
        failing:
            a_device_that_fails_gives_io_errors
            a_full_tmpfs_gives_io_errors
            a_full_ext4_gives_io_errors
            an_image_cut_short_gives_io_errors;
        embedded:
            fio_goes_on_after_a_pause
            iperf_goes_on_after_a_pause;
        faults:
            a_disk_that_fails_on_purpose_fails_what_it_should;
        durable:
            a_killed_vmm_loses_nothing_that_was_flushed
            a_power_cut_loses_nothing_that_was_flushed;
        net_load:
            iperf_through_a_tap
            linux_6_12_iperf_through_a_tap
            iperf_through_vhost
            several_queues
            several_queues_by_vhost
            large_frames_and_a_flood
            a_limited_network_is_slow_and_whole
            iperf_through_user_networking
            user_networking_resolves_and_forwards
            a_passt_that_ends_leaves_the_guest_running
            no_passt_outlives_its_vm
            user_networking_that_cannot_be_is_explained;
    };
    let debian = ampoule_tests::tests! {
        distribution:
            debian_boots_from_a_disk_to_its_login
            commands_of_a_debian_image_need_no_root;
        scenarios:
            commands_in_images;
    };
    let thorough = ampoule_tests::tests! {
        command:
            eight_at_once_and_after_a_kill
            a_hundred_runs_leave_nothing_behind;
        storage:
            fio_finds_all_of_much_that_it_wrote;
        scenarios:
            fifty_times_in_a_row;
        durable:
            a_vmm_killed_a_hundred_times_loses_nothing;
    };
    let lists = [
        (Needs::LinuxGuests, tests),
        (Needs::Tools, with_tools),
        (Needs::Debian, debian),
        (Needs::Thorough, thorough),
    ];
    harness::main(lists, driver::ampoule())
}
