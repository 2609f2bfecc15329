//! The terminal in raw mode, and its way back out of it.
//!
//! In raw mode every key goes to the guest and every byte of its output goes to the screen unchanged. Whatever ends the
//! process, the terminal gets its settings back: the guard's drop, the panic hook, or the handler of a fatal signal. Only
//! SIGKILL leaves no way. Reference: termios(3).
//!
//! The settings that were found are kept in a static, because a signal handler can reach nothing else.

pub(crate) mod escape;
pub(crate) mod input;

use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use ampoule_vmm::console;
use libc::{STDIN_FILENO, c_int, c_void, siginfo_t};

/// Signals that end a process by default and are not handled otherwise while a VM runs.
const FATAL_SIGNALS: [c_int; 7] = [
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGQUIT,
    libc::SIGSEGV,
    libc::SIGSYS,
];

static RAW: AtomicBool = AtomicBool::new(false);
static FOUND: OnceLock<libc::termios> = OnceLock::new();
static OLD_ACTIONS: OnceLock<[libc::sigaction; FATAL_SIGNALS.len()]> = OnceLock::new();

/// Whether the terminal is in raw mode now.
pub(crate) fn is_raw() -> bool {
    RAW.load(Ordering::Relaxed)
}

/// Gives the terminal back the settings it had. Does nothing where it has them. Safe to call in a signal handler.
pub(crate) fn restore() {
    if !RAW.swap(false, Ordering::SeqCst) {
        return;
    }
    if let Some(found) = FOUND.get() {
        set(found);
    }
}

/// Puts the terminal into raw mode again, after somebody else had it.
pub(crate) fn enter_again() {
    if let Some(found) = FOUND.get() {
        RAW.store(true, Ordering::SeqCst);
        set(&raw_of(found));
    }
}

/// The size of the terminal on standard output, or else of that on standard input: columns and rows.
pub(crate) fn size() -> Option<(u16, u16)> {
    console::terminal_size(io::stdout().as_fd()).or(console::terminal_size(io::stdin().as_fd()))
}

/// The terminal is in raw mode for as long as this lives.
pub(crate) struct RawMode(());

impl RawMode {
    /// Puts the terminal into raw mode; `None` where standard input is none, or is not this process's to change, because
    /// another process group is in the foreground.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() || !in_foreground() {
            return Ok(None);
        }
        let mut found = MaybeUninit::uninit();
        // SAFETY: the pointer is valid for a termios, which the call fills when it succeeds.
        if unsafe { libc::tcgetattr(STDIN_FILENO, found.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded.
        let found = unsafe { found.assume_init() };
        FOUND.get_or_init(|| found);
        install_handlers();
        enter_again();
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn raw_of(found: &libc::termios) -> libc::termios {
    let mut raw = *found;
    // SAFETY: `raw` is a valid termios; the call only changes its fields.
    unsafe { libc::cfmakeraw(&mut raw) };
    raw
}

fn set(settings: &libc::termios) {
    // SAFETY: `settings` is a valid termios; tcsetattr(3) may be called in a signal handler. Failing changes nothing, and
    // there is nobody to tell.
    unsafe { libc::tcsetattr(STDIN_FILENO, libc::TCSANOW, settings) };
}

fn in_foreground() -> bool {
    // SAFETY: neither call takes a pointer.
    unsafe { libc::tcgetpgrp(STDIN_FILENO) == libc::getpgrp() }
}

/// Restores the terminal on a panic and on fatal signals. Once in the life of the process.
fn install_handlers() {
    let install = || {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            previous(info);
        }));
        FATAL_SIGNALS.map(install_handler)
    };
    OLD_ACTIONS.get_or_init(install);
}

/// Installs the handler of one fatal signal, and returns the action that it replaces.
fn install_handler(signal: c_int) -> libc::sigaction {
    // SAFETY: an all-zero sigaction is valid: the default action, no flags, an empty mask.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    let mut new = old;
    new.sa_sigaction = on_fatal_signal as *const () as usize;
    // On the alternate stack, where there is one: a stack that overflowed has no room for a handler.
    new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: both pointers are to valid sigactions. The handler calls only what a signal handler may.
    unsafe { libc::sigaction(signal, &new, &mut old) };
    old
}

extern "C" fn on_fatal_signal(signal: c_int, info: *mut siginfo_t, _: *mut c_void) {
    restore();
    // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO.
    let is_fault = unsafe { !info.is_null() && (*info).si_code > 0 } && signal != libc::SIGSYS;
    // A fault happens again, and finds the old action, when its instruction is executed again: Rust's own handler tells of
    // a stack that overflowed. A signal that was sent must be sent again, and ends the process by default.
    let old = OLD_ACTIONS.get().filter(|_| is_fault).and_then(|old| {
        FATAL_SIGNALS
            .iter()
            .position(|s| *s == signal)
            .map(|index| old[index])
    });
    // SAFETY: an all-zero sigaction is valid: the default action, no flags, an empty mask.
    let next = old.unwrap_or_else(|| unsafe { std::mem::zeroed() });
    // SAFETY: the pointer is to a valid sigaction; sigaction(2) and raise(3) may be called here.
    unsafe {
        libc::sigaction(signal, &next, ptr::null_mut());
        if !is_fault {
            libc::raise(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::{AsRawFd, FromRawFd};
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    const CHILD: &str = "AMPOULE_TEST_PANICS_IN_RAW_MODE";

    fn local_flags(terminal: &File) -> libc::tcflag_t {
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the pointer is valid, and the call fills it when it succeeds, which the assertion makes sure of.
        unsafe {
            assert_eq!(
                libc::tcgetattr(terminal.as_raw_fd(), settings.as_mut_ptr()),
                0
            );
            settings.assume_init().c_lflag
        }
    }

    /// The part of the tests below that runs in a process of its own: dies in a way, and keeps the guard from helping.
    fn die_in_raw_mode(how: &str) {
        let guard = RawMode::enter().unwrap().expect("a terminal");
        std::mem::forget(guard);
        let stdin = File::open("/proc/self/fd/0").unwrap();
        assert_eq!(local_flags(&stdin) & libc::ICANON, 0);
        assert!(is_raw());
        writeln!(io::stdout(), "in raw mode").unwrap();
        match how {
            "panic" => panic!("as told"),
            // Seen by nobody, and the process goes on to its end.
            "thread" => drop(std::thread::spawn(|| panic!("as told")).join()),
            "twice" => {
                let _bomb = Bomb;
                panic!("as told");
            }
            _ => std::process::abort(),
        }
    }

    /// Panics while another panic is under way, which aborts the process.
    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("again");
        }
    }

    #[test]
    fn a_panic_restores_the_terminal() {
        assert_restored("a_panic_restores_the_terminal", "panic");
    }

    #[test]
    fn a_panic_of_another_thread_restores_the_terminal() {
        assert_restored("a_panic_of_another_thread_restores_the_terminal", "thread");
    }

    #[test]
    fn a_panic_that_aborts_restores_the_terminal() {
        assert_restored("a_panic_that_aborts_restores_the_terminal", "twice");
    }

    #[test]
    fn an_abort_restores_the_terminal() {
        assert_restored("an_abort_restores_the_terminal", "abort");
    }

    /// Runs the test of this name again, on a terminal of its own, where it dies.
    #[track_caller]
    fn assert_restored(test: &str, how: &str) {
        if std::env::var_os(CHILD).is_some() {
            return die_in_raw_mode(how);
        }
        let (mut master, mut slave) = (-1, -1);
        let (name, settings, size) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
        // SAFETY: the first two pointers are valid, the others may be null.
        let made = unsafe { libc::openpty(&mut master, &mut slave, name, settings, size) };
        assert_eq!(made, 0);
        // SAFETY: the descriptors were just created and are owned by nobody else.
        let (_master, slave) = unsafe { (File::from_raw_fd(master), File::from_raw_fd(slave)) };
        let found = local_flags(&slave);
        assert_ne!(found & libc::ICANON, 0);

        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args([
                "--exact",
                &format!("terminal::tests::{test}"),
                "--nocapture",
            ])
            .env(CHILD, "1")
            .stdin(slave.try_clone().unwrap())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let become_foreground = || {
            // SAFETY: both calls are safe between fork and exec, and take no pointer.
            let failed = unsafe { libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 };
            if failed {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            }
        };
        // SAFETY: the closure only makes the two system calls above.
        unsafe { child.pre_exec(become_foreground) };
        let output = child.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("in raw mode"), "{output:?}");
        assert_eq!(output.status.success(), how == "thread", "{output:?}");
        assert_eq!(local_flags(&slave), found);
    }
}
