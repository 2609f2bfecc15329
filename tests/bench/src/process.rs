//! A VMM as a process: started, listened to, waited for with what it has used.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::peer::{Launch, Terminal};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use tempfile::TempDir;

/// After which one is killed: it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// The same of one that boots Linux, maybe on an emulated host, and works there.
pub(crate) const LINUX_PATIENCE: Duration = Duration::from_secs(120);

/// So many lines are told of what failed.
const LINES_KEPT: usize = 4;

/// A running VMM; killed where nobody waits for it.
pub(crate) struct Running {
    child: Child,
    began: Instant,
    output: Option<BufReader<ChildStdout>>,
    errors: File,
    name: String,
    reaped: bool,
    /// The guest's last lines.
    said: VecDeque<String>,
    /// The status of one that ends well.
    well: i32,
    _held: Option<OwnedFd>,
    /// The folder of its files and sockets.
    place: Option<TempDir>,
}

/// What a process was, from before its start to its end.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) wall: Duration,
    /// Its own, and that of children it has waited for.
    pub(crate) cpu: Duration,
}

impl Running {
    /// Starts a VMM.
    pub(crate) fn launch(launch: Launch) -> Result<Self> {
        let Launch {
            mut command,
            terminal,
            ..
        } = launch;
        let held = match terminal {
            Some(Terminal { ours, its }) => {
                command.stdin(its);
                Some(ours)
            }
            None => {
                command.stdin(Stdio::null());
                None
            }
        };
        let mut running = Self::spawn(command)?;
        running.well = launch.status;
        running._held = held;
        Ok(running)
    }

    /// Starts any program, without input.
    pub(crate) fn start(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null());
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Result<Self> {
        let errors = tempfile::tempfile().context("no temporary file")?;
        command.stdout(Stdio::piped()).stderr(errors.try_clone()?);
        let name = command.get_program().display().to_string();
        let began = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot run {name}"))?;
        let output = child.stdout.take().map(BufReader::new);
        watch(child.id(), PATIENCE);
        Ok(Self {
            child,
            began,
            output,
            errors,
            name,
            reaped: false,
            said: VecDeque::new(),
            well: 0,
            _held: None,
            place: None,
        })
    }

    /// Its files are in this folder, which is deleted when it has ended.
    pub(crate) fn keep(&mut self, place: TempDir) {
        self.place = Some(place);
    }

    /// It may go on for so long.
    pub(crate) fn patience(&self, patience: Duration) {
        watch(self.child.id(), patience);
    }

    /// How long ago it began.
    pub(crate) fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// Reads the next line of the guest's; none at the end.
    pub(crate) fn line(&mut self) -> Result<Option<String>> {
        let mut line = Vec::new();
        let output = self.output.as_mut().context("no output")?;
        if output.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        let line = String::from_utf8_lossy(&line).trim().to_owned();
        if self.said.len() == LINES_KEPT {
            self.said.pop_front();
        }
        self.said.push_back(line.clone());
        Ok(Some(line))
    }

    /// Reads lines until one that ends so: a kernel's messages may stand before it.
    pub(crate) fn until(&mut self, text: &str) -> Result<()> {
        loop {
            match self.line()? {
                Some(line) if line.ends_with(text) => return Ok(()),
                Some(line) if line.starts_with("FAIL") => bail!("the guest says {line:?}"),
                Some(_) => {}
                None => {
                    return Err(self.complaint(&format!("it ended before its guest said {text:?}")));
                }
            }
        }
    }

    /// Sees a guest of the bench's to its end; how long it took from its `begin` to its `end`, and how much CPU time of the process.
    pub(crate) fn work(mut self) -> Result<(Duration, Duration)> {
        self.until("begin")?;
        let (begin, used) = (Instant::now(), self.cpu()?);
        self.until("end")?;
        let work = (begin.elapsed(), self.cpu()? - used);
        self.until("PASS")?;
        self.end()?;
        Ok(work)
    }

    /// Reads a byte of the guest's; how long it took since the start.
    pub(crate) fn first_byte(&mut self) -> Result<Duration> {
        let output = self.output.as_mut().context("no output")?;
        match output.read_exact(&mut [0]) {
            Ok(()) => Ok(self.began.elapsed()),
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.complaint("it ended before its guest said anything"))
            }
            Err(err) => Err(err.into()),
        }
    }

    /// What went wrong, with what it said itself, and its guest.
    pub(crate) fn complaint(&mut self, what: &str) -> anyhow::Error {
        let mut said = String::new();
        let read = self
            .errors
            .rewind()
            .and_then(|()| self.errors.read_to_string(&mut said));
        let mut text = format!("{}: {what}", self.name);
        for (who, said) in [("it said", said), ("its guest", self.said())] {
            let lines: Vec<&str> = said
                .lines()
                .filter(|line| !line.trim().is_empty())
                .collect();
            let last = &lines[lines.len().saturating_sub(LINES_KEPT)..];
            if !last.is_empty() {
                text.push_str(&format!("; {who}: {}", last.join(" / ")));
            }
        }
        if let Err(err) = read {
            text.push_str(&format!("; what it said is lost: {err}"));
        }
        anyhow::anyhow!(text)
    }

    fn said(&self) -> String {
        self.said
            .iter()
            .fold(String::new(), |all, line| all + line + "\n")
    }

    /// Waits for its end; an error where it does not end well.
    pub(crate) fn end(mut self) -> Result<Ended> {
        // Whatever else the guest says must not stop it.
        if let Some(mut output) = self.output.take() {
            io::copy(&mut output, &mut io::sink())?;
        }
        let ended = self.reap()?;
        if ended.status.code() != Some(self.well) {
            return Err(self.complaint(&format!("it ended with {}", ended.status)));
        }
        Ok(ended)
    }

    /// Kills it, and does not wait for its end: for many at once.
    pub(crate) fn begin_to_kill(&mut self) -> Result<()> {
        Ok(self.child.kill()?)
    }

    /// Kills it; what it has used until then.
    pub(crate) fn kill(mut self) -> Result<Ended> {
        self.child.kill()?;
        self.reap()
    }

    fn reap(&mut self) -> Result<Ended> {
        // It is left as it is until nobody may kill it any more.
        let id = Pid::from_child(&self.child);
        waitid(
            WaitId::Pid(id),
            WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
        )?;
        let wall = self.began.elapsed();
        let killed = unwatch(self.child.id());
        let pid = self.child.id().cast_signed();
        let mut status = 0;
        let mut usage = MaybeUninit::<libc::rusage>::uninit();
        // SAFETY: `status` and `usage` are valid for the writes that the call makes; the child is ours and nobody else waits for it.
        let waited = unsafe { libc::wait4(pid, &mut status, 0, usage.as_mut_ptr()) };
        ensure!(
            waited == pid,
            "cannot wait for {}: {}",
            self.name,
            io::Error::last_os_error()
        );
        self.reaped = true;
        // SAFETY: wait4 succeeded, so that it filled `usage`.
        let usage = unsafe { usage.assume_init() };
        if killed {
            let seconds = wall.as_secs();
            return Err(self.complaint(&format!(
                "it had not ended after {seconds} s, and was killed"
            )));
        }
        let cpu = duration(usage.ru_utime) + duration(usage.ru_stime);
        Ok(Ended {
            status: ExitStatus::from_raw(status),
            wall,
            cpu,
        })
    }

    /// CPU time of the whole process until now.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let mut clock = 0;
        // SAFETY: the clock's number is written, which is a local variable.
        let found = unsafe { libc::clock_getcpuclockid(self.child.id().cast_signed(), &mut clock) };
        ensure!(found == 0, "{} has no clock", self.name);
        let mut time = MaybeUninit::<libc::timespec>::uninit();
        // SAFETY: the time is written, which is a local variable.
        let read = unsafe { libc::clock_gettime(clock, time.as_mut_ptr()) };
        ensure!(read == 0, "cannot read the clock of {}", self.name);
        // SAFETY: the call succeeded, and filled it.
        let time = unsafe { time.assume_init() };
        Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }

    /// The file of this name in its folder of /proc.
    pub(crate) fn proc(&self, name: &str) -> Result<String> {
        let path = PathBuf::from(format!("/proc/{}", self.child.id())).join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// How often its threads have left a processor, of their own will or not.
    pub(crate) fn switches(&self) -> Result<u64> {
        let mut sum = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let status = fs::read_to_string(thread?.path().join("status"))?;
            let counts = status.lines().filter(|line| line.contains("ctxt_switches"));
            let counts =
                counts.filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok());
            sum += counts.sum::<u64>();
        }
        Ok(sum)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            unwatch(self.child.id());
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn duration(time: libc::timeval) -> Duration {
    Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
}

/// Those that run, and until when they may: one that hangs must not hang the bench. Nobody in here is reaped.
static WATCHED: Mutex<BTreeMap<u32, Instant>> = Mutex::new(BTreeMap::new());

fn watched() -> MutexGuard<'static, BTreeMap<u32, Instant>> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has it killed if it goes on for longer.
fn watch(id: u32, patience: Duration) {
    static WATCHER: Once = Once::new();
    watched().insert(id, Instant::now() + patience);
    WATCHER.call_once(|| {
        thread::spawn(|| {
            loop {
                thread::sleep(Duration::from_secs(1));
                let now = Instant::now();
                watched().retain(|id, until| {
                    let late = *until < now;
                    if late {
                        // SAFETY: kill takes no pointer; who is in the map is not reaped, and its ID nobody else's.
                        unsafe { libc::kill(id.cast_signed(), libc::SIGKILL) };
                    }
                    !late
                });
            }
        });
    });
}

/// Before it is reaped: whether it was killed.
fn unwatch(id: u32) -> bool {
    watched().remove(&id).is_none()
}
