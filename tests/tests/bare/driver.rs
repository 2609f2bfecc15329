//! A VM under test: the built `ampoule` as a child, its terminal or its pipes in hand.
//!
//! Everything here panics when it fails, with what was seen until then: a test wants to fail there. Waits have a deadline so
//! that a hang fails the test, long enough that no slow machine meets it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{env, ptr};

use serde_json::Value;

/// After which a wait without any output counts as a hang.
const PATIENCE: Duration = Duration::from_secs(120);

/// After which a wait counts as one that never ends, however much comes meanwhile.
const LIMIT: Duration = Duration::from_secs(600);

/// The binary under test: `AMPOULE_BIN`, or a build of this tree.
pub(crate) fn ampoule() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match env::var_os("AMPOULE_BIN") {
        Some(path) => path.into(),
        None => build(),
    })
}

fn build() -> PathBuf {
    let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--package", "ampoule"])
        .args(["--message-format", "json-render-diagnostics"])
        .arg("--manifest-path")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml"))
        .stderr(Stdio::inherit())
        .output()
        .expect("cannot run cargo");
    assert!(output.status.success(), "cargo build failed");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .find(|path| path.file_name() == Some(OsStr::new("ampoule")))
        .expect("cargo built no `ampoule`")
}

/// How a VM ended, and what came of it.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) status: ExitStatus,
    /// Output that no `expect` has taken.
    pub(crate) output: Vec<u8>,
    pub(crate) errors: String,
}

impl End {
    /// The output as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }

    /// Fails unless the exit code is `code`.
    #[track_caller]
    pub(crate) fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{}", self.describe());
        self
    }

    /// Fails unless a signal ended the process.
    #[track_caller]
    pub(crate) fn expect_signal(self, signal: i32) -> Self {
        assert_eq!(self.status.signal(), Some(signal), "{}", self.describe());
        self
    }

    /// Fails unless the output holds `text`.
    #[track_caller]
    pub(crate) fn expect_output(self, text: &str) -> Self {
        assert!(
            self.text().contains(text),
            "no {text:?}; {}",
            self.describe()
        );
        self
    }

    /// Fails unless standard error holds `text`.
    #[track_caller]
    pub(crate) fn expect_error(self, text: &str) -> Self {
        assert!(
            self.errors.contains(text),
            "no {text:?}; {}",
            self.describe()
        );
        self
    }

    /// Fails unless ampoule itself had nothing to say.
    #[track_caller]
    pub(crate) fn expect_silence(self) -> Self {
        assert_eq!(self.errors, "", "{}", self.describe());
        self
    }

    /// The whole of it, for a failure's message.
    pub(crate) fn describe(&self) -> String {
        let start = self.output.len().saturating_sub(2000);
        format!(
            "{}\n--- last output\n{}\n--- errors\n{}",
            self.status,
            String::from_utf8_lossy(&self.output[start..]),
            self.errors
        )
    }
}

/// A child under test; killed where the test does not see its end.
pub(crate) struct Vm {
    child: Child,
    /// Its standard output, or its terminal.
    output: Option<File>,
    /// Its standard input, or its terminal.
    input: Option<File>,
    errors: File,
    seen: Vec<u8>,
    /// The child's end of the terminal, kept open so that its settings can be read after the child's end.
    terminal: Option<OwnedFd>,
}

/// Connects as soon as somebody listens.
pub(crate) fn connect(path: &Path) -> UnixStream {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream
                    .set_read_timeout(Some(Duration::from_secs(60)))
                    .unwrap();
                return stream;
            }
            Err(err)
                if matches!(
                    err.kind(),
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused
                ) =>
            {
                assert!(Instant::now() < deadline, "nobody listens: {err}");
                std::thread::yield_now();
            }
            Err(err) => panic!("cannot connect: {err}"),
        }
    }
}

/// `ampoule run` of a guest with 64 MiB.
pub(crate) fn run_guest(guest: &str) -> Command {
    let mut command = run(["--memory", "64M"]);
    command.arg("--kernel").arg(guest);
    command
}

/// `ampoule run` with these arguments.
pub(crate) fn run<I: IntoIterator<Item: AsRef<OsStr>>>(arguments: I) -> Command {
    let mut command = Command::new(ampoule());
    command.arg("run").args(arguments);
    command
}

/// Runs to the end, with no input.
pub(crate) fn finish(mut command: Command) -> End {
    command.stdin(Stdio::null());
    Vm::spawn(command, None).end()
}

impl Vm {
    /// Starts the command with pipes.
    pub(crate) fn piped(mut command: Command) -> Self {
        command.stdin(Stdio::piped());
        Self::spawn(command, None)
    }

    /// Starts the command on a terminal of its own, of which it is the session's leader.
    pub(crate) fn on_terminal(mut command: Command) -> Self {
        let (controller, terminal) = open_terminal().expect("no pseudo-terminal");
        command
            .stdin(terminal.try_clone().expect("no descriptors left"))
            .stdout(terminal.try_clone().expect("no descriptors left"));
        // SAFETY: both are system calls, which may be made between fork and exec; neither takes a pointer.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        Self::spawn(command, Some((controller, terminal)))
    }

    fn spawn(mut command: Command, terminal: Option<(File, OwnedFd)>) -> Self {
        let errors = tempfile::tempfile().expect("no temporary file");
        command.stderr(errors.try_clone().expect("no descriptors left"));
        if terminal.is_none() {
            command.stdout(Stdio::piped());
        }
        let mut child = command
            .spawn()
            .unwrap_or_else(|err| panic!("cannot start {command:?}: {err}"));
        let (output, input, terminal) = match terminal {
            Some((controller, terminal)) => {
                let input = controller.try_clone().expect("no descriptors left");
                (Some(controller), Some(input), Some(terminal))
            }
            None => {
                let output = child
                    .stdout
                    .take()
                    .map(|pipe| File::from(OwnedFd::from(pipe)));
                let input = child
                    .stdin
                    .take()
                    .map(|pipe| File::from(OwnedFd::from(pipe)));
                (output, input, None)
            }
        };
        Self {
            child,
            output,
            input,
            errors,
            seen: Vec::new(),
            terminal,
        }
    }

    /// Reads output until it holds `text`, and forgets it up to there.
    #[track_caller]
    pub(crate) fn expect(&mut self, text: &str) {
        self.read_until(text);
    }

    /// Reads output until it holds `text`, and takes it up to there.
    #[track_caller]
    pub(crate) fn read_until(&mut self, text: &str) -> String {
        let limit = Instant::now() + LIMIT;
        loop {
            let found = self
                .seen
                .windows(text.len())
                .position(|bytes| bytes == text.as_bytes());
            if let Some(at) = found {
                let taken: Vec<u8> = self.seen.drain(..at + text.len()).collect();
                return String::from_utf8_lossy(&taken).into_owned();
            }
            if !self.read_some(limit) {
                let errors = self.read_errors();
                let seen = self.last_seen();
                panic!("the output ended without {text:?}; {seen}\n--- errors\n{errors}");
            }
        }
    }

    /// Reads exactly as many bytes of output.
    pub(crate) fn take(&mut self, count: usize) -> Vec<u8> {
        let limit = Instant::now() + LIMIT;
        while self.seen.len() < count && self.read_some(limit) {}
        let count = count.min(self.seen.len());
        self.seen.drain(..count).collect()
    }

    /// Types something.
    pub(crate) fn send(&mut self, text: &str) {
        let input = self.input.as_mut().expect("it has no input");
        input
            .write_all(text.as_bytes())
            .expect("nobody reads the input");
    }

    /// Types all of it from a thread of its own, which ends when it has been taken.
    pub(crate) fn send_beside(&mut self, bytes: Vec<u8>) -> JoinHandle<io::Result<()>> {
        let mut input = self
            .input
            .as_ref()
            .expect("it has no input")
            .try_clone()
            .unwrap();
        thread::spawn(move || input.write_all(&bytes))
    }

    /// Waits until all that was typed on its terminal has been read.
    pub(crate) fn wait_until_read(&self) {
        let terminal = self.terminal.as_ref().expect("it has no terminal");
        let limit = Instant::now() + LIMIT;
        loop {
            let mut unread: libc::c_int = 0;
            // SAFETY: the call writes one `int`.
            let result =
                unsafe { libc::ioctl(terminal.as_raw_fd(), libc::FIONREAD, &raw mut unread) };
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
            if unread == 0 {
                return;
            }
            assert!(Instant::now() < limit, "{unread} bytes are not read");
            thread::yield_now();
        }
    }

    /// The process; its number is its own until the end has been seen.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives the terminal another size.
    pub(crate) fn resize(&self, cols: u16, rows: u16) {
        let terminal = self.terminal.as_ref().expect("it has no terminal");
        set_size(terminal.as_raw_fd(), cols, rows).expect("the terminal has no size");
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: takes no pointer; the child has not been waited for, so that its number is still its own.
        let result = unsafe { libc::kill(self.pid().cast_signed(), signal) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }

    /// Nobody reads the output any more.
    pub(crate) fn close_output(&mut self) {
        self.output = None;
    }

    /// The terminal's settings at this moment, all of them, to compare.
    pub(crate) fn terminal_settings(&self) -> Settings {
        let terminal = self.terminal.as_ref().expect("it has no terminal");
        Settings::of(terminal.as_raw_fd()).expect("no terminal")
    }

    /// Waits for the end without reading any output until then.
    pub(crate) fn end_unread(mut self) -> End {
        self.wait();
        self.end()
    }

    /// Reads all output and waits for the end.
    pub(crate) fn end(mut self) -> End {
        let limit = Instant::now() + LIMIT;
        if self.terminal.is_some() {
            // Our own descriptor keeps the terminal from reporting its end.
            self.wait();
            self.drain_terminal();
        } else {
            while self.read_some(limit) {}
        }
        let status = self.wait();
        End {
            status,
            output: std::mem::take(&mut self.seen),
            errors: self.read_errors(),
        }
    }

    /// Waits for the end, reads the terminal's last output, and tells its settings then.
    pub(crate) fn end_with_settings(mut self) -> (End, Settings) {
        self.wait();
        let settings = self.terminal_settings();
        (self.end(), settings)
    }

    /// Waits for the child, reading the terminal meanwhile so that a full one holds nobody up.
    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LIMIT;
        if let Some(status) = self.child.try_wait().expect("cannot wait") {
            return status;
        }
        let pidfd = pidfd(self.child.id());
        loop {
            let mut fds = vec![pidfd.as_raw_fd()];
            if let (Some(_), Some(output)) = (&self.terminal, &self.output) {
                fds.push(output.as_raw_fd());
            }
            assert!(
                poll(&fds, deadline.min(Instant::now() + PATIENCE)),
                "it does not end; {}",
                self.last_seen()
            );
            if self.terminal.is_some() {
                self.drain_terminal();
            }
            if let Some(status) = self.child.try_wait().expect("cannot wait") {
                return status;
            }
        }
    }

    /// Reads what there is on the terminal.
    fn drain_terminal(&mut self) {
        while self
            .output
            .as_ref()
            .is_some_and(|output| poll(&[output.as_raw_fd()], Instant::now()))
        {
            if !self.read_some(Instant::now()) {
                return;
            }
        }
    }

    /// Reads some output; false at its end.
    fn read_some(&mut self, limit: Instant) -> bool {
        let Some(output) = &mut self.output else {
            return false;
        };
        let deadline = limit.min(Instant::now() + PATIENCE);
        if !poll(&[output.as_raw_fd()], deadline) {
            panic!("no output for a long time; {}", self.last_seen());
        }
        let mut buffer = [0; 65536];
        match output.read(&mut buffer) {
            // A terminal whose other end is closed reports EIO.
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.seen.extend_from_slice(&buffer[..count]);
                true
            }
        }
    }

    /// The end of what was read, for a failure's message.
    fn last_seen(&self) -> String {
        let count = self.seen.len();
        let last = String::from_utf8_lossy(&self.seen[count.saturating_sub(200)..]);
        format!("{count} bytes not expected yet, at last {last:?}")
    }

    /// The first line on standard error, as soon as it is there.
    pub(crate) fn wait_for_error_line(&mut self) -> String {
        let limit = Instant::now() + LIMIT;
        loop {
            if let Some((line, _)) = self.read_errors().split_once('\n') {
                return line.to_owned();
            }
            assert!(Instant::now() < limit, "nothing on standard error");
            thread::yield_now();
        }
    }

    fn read_errors(&mut self) -> String {
        let mut text = Vec::new();
        self.errors
            .seek(SeekFrom::Start(0))
            .expect("a file that cannot seek");
        self.errors
            .read_to_end(&mut text)
            .expect("cannot read errors");
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Fails only where it has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The settings of a terminal, termios(3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    flags: [libc::tcflag_t; 4],
    characters: [libc::cc_t; libc::NCCS],
}

impl Settings {
    fn of(fd: i32) -> io::Result<Self> {
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the pointer is valid for a termios, which the call fills when it succeeds.
        if unsafe { libc::tcgetattr(fd, settings.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded.
        let settings = unsafe { settings.assume_init() };
        Ok(Self {
            flags: [
                settings.c_iflag,
                settings.c_oflag,
                settings.c_cflag,
                settings.c_lflag,
            ],
            characters: settings.c_cc,
        })
    }

    /// Those of a terminal that nobody has touched.
    pub(crate) fn of_new_terminal() -> Self {
        let (_controller, terminal) = open_terminal().expect("no pseudo-terminal");
        Self::of(terminal.as_raw_fd()).expect("no terminal")
    }

    /// Whether each key is passed on as it is, unseen.
    pub(crate) fn is_raw(&self) -> bool {
        self.flags[3] & (libc::ICANON | libc::ECHO | libc::ISIG) == 0
            && self.flags[1] & libc::OPOST == 0
    }
}

fn set_size(terminal: RawFd, cols: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the call reads one `winsize`.
    match unsafe { libc::ioctl(terminal, libc::TIOCSWINSZ, &size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// 80 columns, 24 rows.
fn open_terminal() -> io::Result<(File, OwnedFd)> {
    let (mut controller, mut terminal) = (-1, -1);
    // SAFETY: the first two pointers are valid for the descriptors that the call writes; the others may be null.
    let result = unsafe {
        libc::openpty(
            &mut controller,
            &mut terminal,
            ptr::null_mut(),
            ptr::null_mut(),
            ptr::null_mut(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    for fd in [controller, terminal] {
        // SAFETY: takes no pointer. A child of another test must not hold this terminal open.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    set_size(terminal, 80, 24)?;
    // SAFETY: the call returned both descriptors, which nobody else owns.
    Ok(unsafe {
        (
            File::from_raw_fd(controller),
            OwnedFd::from_raw_fd(terminal),
        )
    })
}

/// A descriptor that becomes readable when the process ends.
pub(crate) fn pidfd(pid: u32) -> OwnedFd {
    // SAFETY: takes no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    assert!(fd >= 0, "pidfd_open: {}", io::Error::last_os_error());
    // SAFETY: the call returned a new descriptor, which nobody else owns.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// Waits until one of them is readable or closed; false at the deadline.
pub(crate) fn poll(fds: &[i32], deadline: Instant) -> bool {
    let mut fds: Vec<_> = fds
        .iter()
        .map(|&fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the pointer and the length are those of a live vector.
        let result = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, left) };
        match result {
            0 => return false,
            1.. => return true,
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => panic!("poll: {}", io::Error::last_os_error()),
        }
    }
}

/// A value as an argument.
pub(crate) fn argument(prefix: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(prefix);
    argument.push(path);
    argument
}
