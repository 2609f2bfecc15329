//! Images from registries, and `ampoule image`: against Debian's docker-registry on loopback, and against a registry that breaks every
//! rule. No VM is started.

#[path = "registry/cache.rs"]
mod cache;
#[path = "registry/daemon.rs"]
mod daemon;
#[path = "bare/driver.rs"]
#[allow(dead_code, reason = "most of it is for VMs")]
mod driver;
#[path = "registry/hostile.rs"]
mod hostile;
#[path = "registry/place.rs"]
mod place;
#[path = "registry/pull.rs"]
mod pull;
#[path = "registry/server.rs"]
mod server;

use std::process::ExitCode;

use ampoule_tests::harness::{self, Needs};

fn main() -> ExitCode {
    let alone = ampoule_tests::tests! {
        pull:
            what_image_means_is_said_where_it_is_nothing
            a_pull_that_is_killed_goes_on_where_it_was
            two_at_once_fetch_once
            a_token_is_asked_for_where_the_registry_wants_one
            a_program_that_pulls_ends_with_the_one_that_runs_it;
        hostile:
            what_is_not_what_its_digest_says_is_refused
            lies_about_sizes_are_refused
            what_has_no_end_is_cut_off
            what_is_no_manifest_is_refused
            silence_and_dripping_end
            redirects_in_a_circle_end
            a_failing_registry_is_asked_again_but_not_for_ever
            words_for_a_terminal_are_taken_away;
        cache:
            several_names_and_prefixes_are_told_apart
            what_is_used_stays
            what_was_made_for_vms_goes_when_it_is_old;
    };
    let with_registry = ampoule_tests::tests! {
        daemon:
            an_image_is_pulled_listed_inspected_and_removed
            a_name_that_moves_leaves_the_old_image
            every_packing_of_layers_is_read
            credentials_are_those_of_docker_and_podman;
    };
    harness::main(
        [(Needs::Nothing, alone), (Needs::Registry, with_registry)],
        driver::ampoule(),
    )
}
