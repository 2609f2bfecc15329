//! The library, as a program that embeds it uses it: VMs of bare guests in this process, on this machine's own `/dev/kvm`.

#[path = "library/lifecycle.rs"]
mod lifecycle;

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
    };
    harness::main([(Needs::Kvm, tests)], Path::new(""))
}
