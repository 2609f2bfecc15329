//! What the program keeps in memory while a VM runs.
//!
//! Reading flags, files and kernels takes most of the program's text and a good part of its heap, and none of that is needed
//! again while the guest runs. So a VM that has run for a moment gives it back, once: what ends before pays nothing. The text is
//! the page cache's, and comes back by itself where it is wanted.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use ampoule_vmm::{ControlSource, VmHandle};
use vmm_sys_util::timerfd::TimerFd;

/// When a start is over.
const MOMENT: Duration = Duration::from_millis(200);

/// Has the control thread trim the process, a moment after the start.
pub(crate) struct Trim {
    timer: TimerFd,
}

impl Trim {
    /// Begins to wait.
    pub(crate) fn new() -> io::Result<Self> {
        let mut timer = TimerFd::new()?;
        timer.reset(MOMENT, None)?;
        Ok(Self { timer })
    }
}

impl ControlSource for Trim {
    fn fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    fn ready(&mut self, _vm: &VmHandle) {
        // What fails here costs memory, and nothing else.
        let _ = self.timer.wait();
        trim();
    }
}

fn trim() {
    trim_heap();
    unmap_text();
}

fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes and returns plain numbers; all memory that is in use stays.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Takes the program's read-only pages out of the address space until they are next touched.
fn unmap_text() {
    unsafe extern "C" {
        /// Where the linker has put the first byte of the program.
        static __executable_start: u8;
        /// And the first one behind its text.
        static etext: u8;
    }
    const PAGE: usize = 4096;
    let start = (&raw const __executable_start).addr();
    let end = (&raw const etext).addr() & !(PAGE - 1);
    let Some(len) = end.checked_sub(start) else {
        return;
    };
    // SAFETY: the range is the program's own constants and text, mapped from its file and never written to, so that every page
    // of it is read from the file again when it is touched next.
    unsafe {
        libc::madvise(start as *mut libc::c_void, len, libc::MADV_DONTNEED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kilobytes of this program's file that are in memory for it.
    fn resident() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssFile:"));
        let size = line.unwrap().trim().trim_end_matches(" kB");
        size.parse().unwrap()
    }

    #[test]
    fn a_trim_gives_memory_back_and_the_program_goes_on() {
        // Touched for certain: all that the command line's definition needs.
        let before = {
            use clap::CommandFactory;
            crate::args::Cli::command().render_long_help();
            resident()
        };
        trim();
        let after = resident();
        assert!(after < before, "{before} kB before, {after} kB after");
    }
}
