//! Limits of the host's that anything may meet, and what to do about them.

use std::error::Error;
use std::io;

/// For errors whose cause is that there are no descriptors left; which of them it was that met the limit is chance.
pub(crate) fn remedy(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut next = Some(error);
    while let Some(error) = next {
        match error.downcast_ref().and_then(io::Error::raw_os_error) {
            Some(libc::EMFILE) => {
                return Some("the limit of open files is reached: raise it with ulimit -n");
            }
            Some(libc::ENFILE) => {
                return Some("the host has no open files left: sysctl fs.file-max is the limit");
            }
            _ => next = error.source(),
        }
    }
    None
}

/// For a thread that the host does not make.
pub(crate) const THREADS: &str = "the limit of threads or processes is reached: see ulimit -u, and pids.max of the control group";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{FileRole, KernelError};

    #[test]
    fn a_limit_is_found_beneath_whatever_met_it() {
        let failed = |code| {
            crate::Error::from(KernelError::Open {
                role: FileRole::Kernel,
                path: "vmlinux".into(),
                source: io::Error::from_raw_os_error(code),
            })
        };
        assert!(remedy(&failed(libc::EMFILE)).unwrap().contains("ulimit -n"));
        assert!(remedy(&failed(libc::ENFILE)).unwrap().contains("file-max"));
        assert_eq!(remedy(&failed(libc::ENOENT)), None);
    }
}
