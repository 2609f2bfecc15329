//! Processes that do part of a VM's work: started when it is built, ended with it, and listened to in between.
//!
//! A helper has a connection with the VM, as its standard input, and ends with that, so that it does not outlive the VM however
//! that ends; dropping [`Helper`] ends it in any case. What it has to say goes to the log, by the control thread. It is not tied
//! to a thread's end (PR_SET_PDEATHSIG): the thread that builds a VM need not be the one that runs it.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, Stdio};

use log::Level;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// The longest message that is kept in one piece.
const MAX_MESSAGE: usize = 4096;

/// How long one may take to end by itself, in milliseconds, where that is waited for.
const PATIENCE: libc::c_int = 2000;

/// A process of its own group, that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Helper {
    child: Child,
    program: &'static str,
    /// The device that it is for.
    name: String,
    stderr: ChildStderr,
    /// A message of which the end has not come yet.
    message: Vec<u8>,
    is_noise: fn(&str) -> bool,
    /// It has processes of its own, which end with its connection.
    has_children: bool,
}

impl Helper {
    /// Starts `command`, which has its standard input already. `is_noise` tells what it says and nobody needs to hear.
    ///
    /// # Errors
    /// The program cannot be started.
    pub(crate) fn start(
        program: &'static str,
        name: &str,
        mut command: Command,
        is_noise: fn(&str) -> bool,
    ) -> io::Result<Self> {
        command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .current_dir("/")
            // Not in the terminal's group: ^C is for the guest, which may want its helpers until it has ended.
            .process_group(0);
        let mut child = command.spawn()?;
        // The command holds the other end of the connection, by which its end would go unnoticed.
        drop(command);
        let stderr = child.stderr.take();
        let stderr = stderr.ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(Self {
            child,
            program,
            name: name.to_owned(),
            stderr,
            message: Vec::new(),
            is_noise,
            has_children: false,
        })
    }

    /// It does its work, possibly in processes of its own; what it has said so far was about its start.
    ///
    /// # Errors
    /// The host's.
    pub(crate) fn answers(&mut self) -> io::Result<()> {
        set_nonblocking(&self.stderr)?;
        self.log(Level::Info);
        Ok(())
    }

    /// It has processes of its own, which end with its connection.
    pub(crate) fn has_children(mut self) -> Self {
        self.has_children = true;
        self
    }

    /// The number of its process.
    #[cfg(test)]
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The last that it has said. It is ended.
    ///
    /// # Errors
    /// The host's.
    pub(crate) fn last_words(mut self) -> io::Result<String> {
        let mut said = Vec::new();
        // Its end of the connection has gone, and what it had to say is in the pipe. It is not waited for without end.
        self.kill()?;
        (&mut self.stderr).take(1 << 16).read_to_end(&mut said)?;
        let said = String::from_utf8_lossy(&said);
        let message = said
            .lines()
            .filter_map(|line| worth_saying(line, self.is_noise))
            .next_back();
        Ok(message.unwrap_or("nothing").to_owned())
    }

    /// Logs what it has said; `false` when it has ended. What it says of its start is of less weight than what comes later.
    fn log(&mut self, level: Level) -> bool {
        let mut bytes = [0; MAX_MESSAGE];
        // What there is more of wakes the control thread again.
        match self.stderr.read(&mut bytes) {
            Ok(0) => {
                self.say(level);
                let status = match self.child.try_wait() {
                    Ok(Some(status)) => format!(": {status}"),
                    _ => String::new(),
                };
                log::error!("{}: {} has ended{status}", self.name, self.program);
                false
            }
            Ok(count) => {
                for byte in &bytes[..count] {
                    match byte {
                        b'\n' => self.say(level),
                        _ if self.message.len() < MAX_MESSAGE => self.message.push(*byte),
                        _ => {}
                    }
                }
                true
            }
            Err(err) => matches!(
                err.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ),
        }
    }

    fn say(&mut self, level: Level) {
        let message = String::from_utf8_lossy(&self.message);
        if let Some(message) = worth_saying(&message, self.is_noise) {
            log::log!(level, "{}: {}: {message}", self.name, self.program);
        }
        self.message.clear();
    }

    /// Ends it and what it has started.
    fn kill(&mut self) -> io::Result<()> {
        let group = libc::pid_t::try_from(self.child.id()).map_err(io::Error::other)?;
        // SAFETY: takes no pointer. The child has not been waited for, so that its number, and with it its group's, is nobody
        // else's.
        match unsafe { libc::kill(-group, libc::SIGKILL) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits until nobody has its standard error any more: it and its processes have ended.
    fn wait_for_end(&self) {
        let mut poll = libc::pollfd {
            fd: self.stderr.as_raw_fd(),
            // Whether it has something to say does not matter any more.
            events: 0,
            revents: 0,
        };
        // SAFETY: the pointer is to one live structure, as the count says.
        unsafe { libc::poll(&raw mut poll, 1, PATIENCE) };
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        if self.has_children {
            self.wait_for_end();
        }
        // It is a child until it has been waited for: its number is nobody else's.
        if let Err(err) = self.kill().and_then(|()| self.child.wait()) {
            log::warn!("{}: cannot end {}: {err}", self.name, self.program);
        }
    }
}

fn worth_saying(message: &str, is_noise: fn(&str) -> bool) -> Option<&str> {
    let message = message.trim();
    let printable = !message.is_empty() && !message.chars().any(char::is_control);
    (printable && !is_noise(message)).then_some(message)
}

fn set_nonblocking(file: &impl AsRawFd) -> io::Result<()> {
    let fd = file.as_raw_fd();
    // SAFETY: takes no pointer.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    // SAFETY: takes no pointer.
    let set = unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) };
    match (flags, set) {
        (-1, _) | (_, -1) => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// What the control thread waits on for the helpers of a VM's machines.
pub(crate) struct HelperWatch(Epoll);

impl HelperWatch {
    /// One that waits for nobody.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub(crate) fn new() -> io::Result<Self> {
        Epoll::new().map(Self)
    }

    /// Waits for a helper, until it goes.
    ///
    /// # Errors
    /// The host's.
    pub(crate) fn add(&self, helper: &Helper) -> io::Result<()> {
        let fd = helper.stderr.as_raw_fd();
        let event = EpollEvent::new(EventSet::IN, fd as u64);
        self.0.ctl(ControlOperation::Add, fd, event)
    }

    /// Lets those helpers speak that have something to say.
    pub(crate) fn dispatch(&self, helpers: &mut [Helper]) {
        let mut events = [EpollEvent::default(); 8];
        let ready = self.0.wait(0, &mut events).unwrap_or_default();
        for event in &events[..ready] {
            let fd = event.data() as RawFd;
            let helper = helpers.iter_mut().find(|it| it.stderr.as_raw_fd() == fd);
            if helper.is_none_or(|helper| !helper.log(Level::Warn)) {
                let removed = self
                    .0
                    .ctl(ControlOperation::Delete, fd, EpollEvent::default());
                if let Err(err) = removed {
                    log::debug!("a helper was not waited for: {err}");
                }
            }
        }
    }
}

impl AsRawFd for HelperWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn shell(script: &str) -> (Helper, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(OwnedFd::from(theirs));
        let helper = Helper::start("sh", "net0", command, |_| false).unwrap();
        (helper, ours)
    }

    #[test]
    fn what_a_helper_says_is_read_as_it_comes() {
        let watch = HelperWatch::new().unwrap();
        let (mut helper, socket) =
            shell("cat >&0; head -c 100000 /dev/zero >&2; echo >&2; echo gone >&2");
        helper.answers().unwrap();
        watch.add(&helper).unwrap();
        let mut helpers = [helper];
        watch.dispatch(&mut helpers);
        drop(socket);
        // Until it has been read to its end, and is waited for no longer.
        let mut event = [EpollEvent::default()];
        let mut reads = 0;
        loop {
            watch.0.wait(-1, &mut event).unwrap();
            let helper = &mut helpers[0];
            assert!(helper.message.len() <= MAX_MESSAGE);
            reads += 1;
            if !helper.log(Level::Warn) {
                break;
            }
        }
        assert!(reads > 100_000 / MAX_MESSAGE, "{reads}");
        watch.dispatch(&mut helpers);
        assert_eq!(watch.0.wait(0, &mut event).unwrap(), 0);
    }

    #[test]
    fn what_a_helper_has_started_ends_with_it() {
        let (helper, mut socket) = shell("trap '' TERM; exec 3<&0; sleep 1000 & echo >&0; wait");
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap();
        drop(helper);
        // Ends when nobody has the other end any more.
        assert_eq!(socket.read(&mut byte).unwrap(), 0);
    }
}
