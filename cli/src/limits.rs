//! What the process may have of the host's.

use std::mem::MaybeUninit;

/// Asks for as many descriptors as whoever started the process lets it have. Each stream between guest and host takes one, and the
/// usual limit, which is there for programs that use select(2), is 1024.
pub(crate) fn raise_descriptors() {
    let mut limit = MaybeUninit::<libc::rlimit>::uninit();
    // SAFETY: the first call fills the limit when it succeeds; only then is it changed and read.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, limit.as_mut_ptr()) == 0 && {
            let limit = limit.assume_init_mut();
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, limit) == 0
        }
    };
    if !raised {
        let err = std::io::Error::last_os_error();
        log::warn!("the limit of open files stays as it is: {err}");
    }
}
