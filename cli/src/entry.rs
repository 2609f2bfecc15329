//! The program's entry: `main`, as the C library calls it.

use std::panic::catch_unwind;

use ampoule_vmm::Timeline;

use crate::{EXIT_FAILURE, dispatch};

/// Called by the C library, not through the standard library: the standard library's own set-up before `main` (it reads /proc/self/maps and
/// makes signal stacks, for each thread too) is a tenth of what a VM's start costs. What of it this program needs is here;
/// `std::env::args` works without.
#[unsafe(no_mangle)]
extern "C" fn main(_argc: libc::c_int, _argv: *const *const libc::c_char) -> libc::c_int {
    // First of all: the timeline starts with the process.
    let timeline = Timeline::since_process_start();
    prepare_process();
    // A panic must not unwind into C. Its message has been printed by the hook.
    let code = catch_unwind(|| {
        dispatch(timeline).unwrap_or_else(|failure| {
            failure.print();
            EXIT_FAILURE
        })
    });
    libc::c_int::from(code.unwrap_or(EXIT_FAILURE))
}

/// Makes the process what the rest expects: descriptors 0 to 2 are open, writing to a pipe that nobody reads is an error and not
/// the end, and threads share one malloc arena.
fn prepare_process() {
    for fd in 0..=2 {
        // SAFETY: both are system calls; the path is a constant string that ends with a zero byte. No other thread exists
        // yet, so that the lowest descriptor free is the one found closed.
        unsafe {
            if libc::fcntl(fd, libc::F_GETFD) < 0
                && libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) != fd
            {
                libc::abort();
            }
        }
    }
    // SAFETY: no handler of ours is installed, but the one that does nothing.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
    use_one_malloc_arena();
}

/// Keeps the C library from making each thread an arena of its own: four system calls and two pages for every vCPU thread,
/// which hardly allocates.
fn use_one_malloc_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no other thread exists yet, and the call takes no pointer. What it returns says only whether glibc knows the
    // parameter.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
