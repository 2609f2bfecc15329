//! `ampoule run` at a terminal: raw mode while the guest has it, and the old settings on every way out.
//!
//! Each test runs a bare guest on this machine's KVM behind a pseudo-terminal of its own. Where there is no KVM to open,
//! all of them are skipped, and counted as such.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};

use ampoule_tests::guests;
use libtest_mimic::{Arguments, Failed, Trial};

type Result<T = ()> = std::result::Result<T, Failed>;

fn main() {
    let arguments = Arguments::from_args();
    let no_kvm = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err();
    let tests: [(&str, fn() -> Result); 9] = [
        (
            "keys_go_to_the_guest_and_output_is_unchanged",
            keys_go_to_the_guest,
        ),
        ("quit_key_stops_the_vm", quit_key),
        ("help_key_shows_the_keys", help_key),
        ("power_off_restores_the_terminal", power_off),
        ("sigterm_presses_the_power_button", sigterm),
        ("a_guest_without_ears_is_stopped_after_the_grace", grace),
        ("the_second_signal_stops_at_once", second_signal),
        ("fatal_signals_restore_the_terminal", fatal_signals),
        ("a_terminal_that_hangs_up_ends_the_vm", hang_up),
    ];
    let trials = tests
        .into_iter()
        .map(|(name, test)| Trial::test(name, test).with_ignored_flag(no_kvm))
        .collect();
    if no_kvm {
        println!("skipped: /dev/kvm cannot be opened");
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn keys_go_to_the_guest() -> Result {
    let mut session = Session::start(guests::SERIAL_ECHO, &[])?;
    session.expect("ready")?;
    // ^C, ^Z and ^D are the guest's: with them in its way, the terminal is not raw.
    session.keys(b"a\x03\x1a\x04b\x01\x01c")?;
    session.expect("A\x03\x1a\x04B\x01C")?;
    session.keys(b"q")?;
    session.ends_with(0)
}

fn quit_key() -> Result {
    let mut session = Session::start(guests::HLT_FOREVER, &[])?;
    session.until_raw()?;
    session.keys(b"\x01x")?;
    session.ends_with(0)
}

fn help_key() -> Result {
    let mut session = Session::start(guests::SERIAL_ECHO, &[])?;
    session.expect("ready")?;
    session.keys(b"\x01c")?;
    session.expect("^A x   leave: stops the VM at once\r\n")?;
    session.keys(b"q")?;
    session.ends_with(0)
}

fn power_off() -> Result {
    let session = Session::start(guests::POWEROFF, &[])?;
    session.ends_with(0)
}

fn sigterm() -> Result {
    let mut session = Session::start(guests::POWER_BUTTON, &[])?;
    session.expect("ready")?;
    session.signal(libc::SIGTERM);
    session.expect("power button")?;
    session.ends_with(0)
}

fn grace() -> Result {
    let mut session = Session::start(guests::HLT_FOREVER, &["--grace", "50ms"])?;
    session.until_raw()?;
    session.signal(libc::SIGTERM);
    session.ends_with(128 + libc::SIGTERM)
}

fn second_signal() -> Result {
    let mut session = Session::start(guests::SPIN, &["--grace", "1h"])?;
    session.until_raw()?;
    session.signal(libc::SIGINT);
    session.signal(libc::SIGTERM);
    session.ends_with_any(&[128 + libc::SIGINT, 128 + libc::SIGTERM])
}

fn fatal_signals() -> Result {
    for signal in [
        libc::SIGSEGV,
        libc::SIGABRT,
        libc::SIGQUIT,
        libc::SIGBUS,
        libc::SIGSYS,
    ] {
        let mut session = Session::start(guests::HLT_FOREVER, &[])?;
        session.until_raw()?;
        session.signal(signal);
        let status = session.end()?;
        if status.signal() != Some(signal) {
            return Err(format!("signal {signal}: {status}").into());
        }
    }
    Ok(())
}

fn hang_up() -> Result {
    let mut session = Session::start(guests::HLT_FOREVER, &["--grace", "50ms"])?;
    session.until_raw()?;
    let Session {
        mut child,
        master,
        slave,
        ..
    } = session;
    drop((master, slave));
    let status = child.wait().map_err(|err| err.to_string())?;
    match status.code() {
        Some(code) if code == 128 + libc::SIGHUP => Ok(()),
        _ => Err(format!("it ended with {status}").into()),
    }
}

/// A run of `ampoule` as the only program of a pseudo-terminal.
struct Session {
    child: Child,
    /// The side of the person.
    master: File,
    /// The side of the program, kept open so that its settings outlive it.
    slave: File,
    /// The terminal's settings from before.
    found: Settings,
    /// Output so far, of which `seen` bytes were expected already.
    output: Vec<u8>,
    seen: usize,
}

impl Session {
    fn start(guest: &str, options: &[&str]) -> Result<Self> {
        let (master, slave) = pseudo_terminal()?;
        let end = || slave.try_clone().map_err(|err| err.to_string());
        let mut command = Command::new(env!("CARGO_BIN_EXE_ampoule"));
        command
            .args(["run", "--memory", "32M", "--kernel", guest])
            .args(options);
        command.stdin(end()?).stdout(end()?).stderr(end()?);
        let become_foreground = || {
            // SAFETY: both calls are safe between fork and exec, and take no pointer: a new session, whose controlling
            // terminal is the one on standard input.
            let failed = unsafe { libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 };
            if failed {
                Err(std::io::Error::last_os_error())
            } else {
                Ok(())
            }
        };
        // SAFETY: the closure only makes the two system calls above.
        unsafe { command.pre_exec(become_foreground) };
        let found = Settings::of(&slave);
        let child = command.spawn().map_err(|err| err.to_string())?;
        Ok(Self {
            child,
            master,
            slave,
            found,
            output: Vec::new(),
            seen: 0,
        })
    }

    fn keys(&mut self, keys: &[u8]) -> Result {
        self.master
            .write_all(keys)
            .map_err(|err| err.to_string().into())
    }

    /// Reads output until the text has come.
    fn expect(&mut self, text: &str) -> Result {
        let wanted = text.as_bytes();
        loop {
            let fresh = &self.output[self.seen..];
            if let Some(at) = fresh.windows(wanted.len()).position(|part| part == wanted) {
                self.seen += at + wanted.len();
                return Ok(());
            }
            let mut buffer = [0; 4096];
            let count = self.master.read(&mut buffer).unwrap_or(0);
            if count == 0 || self.is_over() {
                let got = String::from_utf8_lossy(&self.output).into_owned();
                return Err(format!("{text:?} did not come; got {got:?}").into());
            }
            self.output.extend_from_slice(&buffer[..count]);
        }
    }

    /// Waits until the terminal is in raw mode: signals and keys are handled from then on.
    fn until_raw(&mut self) -> Result {
        while Settings::of(&self.slave) == self.found {
            if self.is_over() {
                return Err("it ended before the terminal was raw".into());
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    fn is_over(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: the call takes no pointer; the child has not been waited for, so that its number is still its own.
        unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
    }

    /// Waits for the end, and compares the terminal's settings with those from before.
    fn end(mut self) -> Result<ExitStatus> {
        let status = self.child.wait().map_err(|err| err.to_string())?;
        if Settings::of(&self.slave) != self.found {
            return Err(format!("{status}, and the terminal was left in disorder").into());
        }
        Ok(status)
    }

    fn ends_with(self, code: i32) -> Result {
        self.ends_with_any(&[code])
    }

    fn ends_with_any(self, codes: &[i32]) -> Result {
        let status = self.end()?;
        match status.code() {
            Some(code) if codes.contains(&code) => Ok(()),
            _ => Err(format!("{status} instead of exit status {codes:?}").into()),
        }
    }
}

/// What tcgetattr tells, as far as raw mode changes it.
#[derive(Debug, PartialEq, Eq)]
struct Settings([libc::tcflag_t; 4]);

impl Settings {
    fn of(terminal: &File) -> Self {
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the pointer is valid, and the call fills it when it succeeds, which the assertion makes sure of.
        let settings = unsafe {
            assert_eq!(
                libc::tcgetattr(terminal.as_raw_fd(), settings.as_mut_ptr()),
                0
            );
            settings.assume_init()
        };
        Self([
            settings.c_iflag,
            settings.c_oflag,
            settings.c_cflag,
            settings.c_lflag,
        ])
    }
}

/// Both sides of a new pseudo-terminal.
fn pseudo_terminal() -> Result<(File, File)> {
    let (mut master, mut slave) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: the first two pointers are valid, the others may be null.
    let result = unsafe {
        libc::openpty(
            &mut master,
            &mut slave,
            none,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
    if result != 0 {
        return Err("no pseudo-terminal is to be had".into());
    }
    for fd in [master, slave] {
        // SAFETY: the call takes no pointer.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    // SAFETY: the descriptors were just created and are owned by nobody else.
    Ok(unsafe { (File::from_raw_fd(master), File::from_raw_fd(slave)) })
}
