//! Runs scenarios: several at once, each attempt in a process of its own, and each to a result, whatever becomes of that process.
//!
//! A thread for each job takes the next scenario, starts its process (`worker`) and listens to it. A process that says nothing for
//! [`SILENCE`] is looked at, and killed: it was stopped, it is stuck, or this host does not let anybody run. The caller's thread hears
//! of all that happens, in one order.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::outcome::{
    Attempt, FailureInfo, FailureKind, Happening, ScenarioResult, StepResult, StepState, TestRun,
    Verdict, millis,
};
use super::scenario::Scenario;
use super::words::quoted;
use super::worker::{BEAT, Event};
use crate::report::{self, Failure};
use crate::signals::{SignalFd, SignalSet};

/// A process that lives says so every half second.
const SILENCE: Duration = Duration::from_secs(15);

/// How much longer than its time limit a scenario may take, to look at its guest and to end it.
const CLOSING: Duration = Duration::from_secs(90);

/// How many of the console's last lines a failure shows.
const SHOWN_LINES: usize = 40;

/// What marks a folder as one of results, which may be replaced.
pub(super) const MARKER: &str = "results.json";

/// How a run goes.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) jobs: usize,
    pub(super) retries: u32,
    pub(super) repeat: u32,
    pub(super) fail_fast: bool,
    /// Where the results go.
    pub(super) results: PathBuf,
    /// What is said on the command line to set keys, for the line that repeats a scenario.
    pub(super) sets: Vec<String>,
    pub(super) seed: Option<u64>,
}

/// Ends of the run that are not in its scenarios.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Done {
    pub(super) run: TestRun,
    /// Somebody pressed ^C, or sent SIGTERM.
    pub(super) is_interrupted: bool,
}

/// What the threads tell.
enum Told {
    Started(usize, u32),
    Step(usize, usize),
    Attempt(usize, Box<Attempt>),
    Ended(usize, Box<ScenarioResult>),
}

/// What the threads share.
struct Shared<'a> {
    scenarios: &'a [Scenario],
    folders: &'a [PathBuf],
    settings: &'a Settings,
    next: AtomicUsize,
    is_over: AtomicBool,
    is_interrupted: AtomicBool,
    /// The processes that run.
    processes: Mutex<BTreeSet<u32>>,
}

impl Shared<'_> {
    fn processes(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends everything.
    fn interrupt(&self) {
        self.is_over.store(true, Ordering::Release);
        self.is_interrupted.store(true, Ordering::Release);
        for process in &*self.processes() {
            kill(*process);
        }
    }
}

/// Runs scenarios.
///
/// # Errors
/// There is no place for the results, or no process can be started.
pub(super) fn run(
    scenarios: &[Scenario],
    settings: &Settings,
    tell: &mut dyn FnMut(Happening<'_>),
) -> Result<Done, Failure> {
    let begun = Instant::now();
    let started = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    prepare(&settings.results)?;
    let folders = folders(scenarios, &settings.results);
    let shared = Shared {
        scenarios,
        folders: &folders,
        settings,
        next: AtomicUsize::new(0),
        is_over: AtomicBool::new(false),
        is_interrupted: AtomicBool::new(false),
        processes: Mutex::default(),
    };
    let jobs = settings.jobs.min(scenarios.len()).max(1);
    tell(Happening::Begun {
        total: scenarios.len(),
        jobs,
    });
    let mut signals = Interrupts::block().map_err(cannot("wait for signals"))?;
    let mut results: Vec<Option<ScenarioResult>> = vec![None; scenarios.len()];
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        let workers: Vec<_> = (0..jobs)
            .map(|_| {
                let (sender, shared) = (sender.clone(), &shared);
                scope.spawn(move || work(shared, &sender))
            })
            .collect();
        drop(sender);
        hear(&receiver, &shared, &mut signals, &mut results, tell);
        drop(workers);
    });
    let mut all = Vec::with_capacity(scenarios.len());
    for (index, result) in results.into_iter().enumerate() {
        let result = result.unwrap_or_else(|| {
            let skipped = result_of(&shared, index, Verdict::Skipped, Vec::new());
            tell(Happening::Ended {
                scenario: index,
                result: &skipped,
            });
            skipped
        });
        all.push(result);
    }
    Ok(Done {
        run: TestRun {
            ampoule: env!("CARGO_PKG_VERSION").into(),
            started_ms: millis(started),
            duration_ms: millis(begun.elapsed()),
            host: host(),
            seed: settings.seed,
            scenarios: all,
        },
        is_interrupted: shared.is_interrupted.load(Ordering::Acquire),
    })
}

/// Passes on what the threads tell, until all of them have ended.
fn hear(
    receiver: &Receiver<Told>,
    shared: &Shared<'_>,
    signals: &mut Interrupts,
    results: &mut [Option<ScenarioResult>],
    tell: &mut dyn FnMut(Happening<'_>),
) {
    loop {
        if signals.came() {
            shared.interrupt();
        }
        let told = match receiver.recv_timeout(Duration::from_millis(100)) {
            Ok(told) => told,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        match told {
            Told::Started(scenario, attempt) => tell(Happening::Started {
                scenario,
                name: &shared.scenarios[scenario].name,
                attempt,
            }),
            Told::Step(scenario, step) => {
                let steps = &shared.scenarios[scenario].steps;
                if let Some(it) = steps.get(step) {
                    tell(Happening::Step {
                        scenario,
                        step,
                        of: steps.len(),
                        title: &it.title(),
                    });
                }
            }
            Told::Attempt(scenario, attempt) => tell(Happening::Retried {
                scenario,
                name: &shared.scenarios[scenario].name,
                attempt: &attempt,
            }),
            Told::Ended(scenario, result) => {
                tell(Happening::Ended {
                    scenario,
                    result: &result,
                });
                results[scenario] = Some(*result);
            }
        }
    }
}

/// A thread's work: scenarios, until there are no more.
fn work(shared: &Shared<'_>, sender: &Sender<Told>) {
    while !shared.is_over.load(Ordering::Acquire) {
        let index = shared.next.fetch_add(1, Ordering::AcqRel);
        if index >= shared.scenarios.len() {
            return;
        }
        let Some(result) = one(shared, index, sender) else {
            return;
        };
        let failed = matches!(result.verdict, Verdict::Failed | Verdict::Host);
        if failed && shared.settings.fail_fast {
            shared.is_over.store(true, Ordering::Release);
        }
        let _ = sender.send(Told::Ended(index, Box::new(result)));
    }
}

/// One scenario, with its repetitions and retries. Nothing, if the run was interrupted.
fn one(shared: &Shared<'_>, index: usize, sender: &Sender<Told>) -> Option<ScenarioResult> {
    let settings = shared.settings;
    let mut attempts: Vec<Attempt> = Vec::new();
    let mut verdict = Verdict::Passed;
    'runs: for _ in 0..settings.repeat {
        let mut tries = 0;
        loop {
            let number = u32::try_from(attempts.len()).unwrap_or(u32::MAX) + 1;
            let _ = sender.send(Told::Started(index, number));
            let attempt = attempt(shared, index, number, sender);
            if shared.is_interrupted.load(Ordering::Acquire) {
                return None;
            }
            attempts.push(attempt);
            let attempt = attempts.last()?;
            match attempt.verdict {
                Verdict::Passed => break,
                _ if attempt.is_worth_a_retry() && tries < settings.retries => {
                    verdict = Verdict::Flaky;
                    tries += 1;
                    let _ = sender.send(Told::Attempt(index, Box::new(attempt.clone())));
                }
                failed => {
                    verdict = failed;
                    break 'runs;
                }
            }
        }
    }
    Some(result_of(shared, index, verdict, attempts))
}

fn result_of(
    shared: &Shared<'_>,
    index: usize,
    verdict: Verdict,
    attempts: Vec<Attempt>,
) -> ScenarioResult {
    let scenario = &shared.scenarios[index];
    ScenarioResult {
        name: scenario.name.clone(),
        file: scenario.file.clone(),
        description: scenario.description.clone(),
        tags: scenario.tags.clone(),
        cell: scenario.cell.clone(),
        verdict,
        attempts,
        repeat: repeat(scenario, &shared.settings.sets),
    }
}

/// The command line that repeats a scenario alone.
fn repeat(scenario: &Scenario, sets: &[String]) -> String {
    let mut line = format!("ampoule test {}", quoted(&scenario.file.to_string_lossy()));
    if !scenario.cell.is_empty() {
        line += &format!(" --filter {}", quoted(&scenario.name));
    }
    for set in sets {
        line += &format!(" --set {}", quoted(set));
    }
    line + " --keep"
}

/// What is known of an attempt while its process runs.
struct Watch<'a> {
    scenario: &'a Scenario,
    folder: &'a Path,
    begun: Instant,
    steps: Vec<StepResult>,
    /// The step at hand.
    step: Option<usize>,
    /// How late this thread was woken at most, since the process was last heard of.
    late: Duration,
}

/// One attempt: a process, from its start to its end.
fn attempt(shared: &Shared<'_>, index: usize, number: u32, sender: &Sender<Told>) -> Attempt {
    let scenario = &shared.scenarios[index];
    let mut folder = shared.folders[index].clone();
    if number > 1 {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        folder.set_file_name(format!("{name}.{number}"));
    }
    let mut watch = Watch {
        scenario,
        folder: &folder,
        begun: Instant::now(),
        steps: scenario.steps.iter().map(StepResult::not_reached).collect(),
        step: None,
        late: Duration::ZERO,
    };
    let mut child = match start(scenario, &folder, &shared.settings.sets) {
        Ok(child) => child,
        Err(err) => {
            let message = format!("cannot start a process: {}", report::io_text(&err));
            return watch.failed(FailureKind::Host, message, Vec::new());
        }
    };
    let process = child.id();
    shared.processes().insert(process);
    if shared.is_interrupted.load(Ordering::Acquire) {
        kill(process);
    }
    let ended = watch.listen(&mut child, index, sender);
    let attempt = match ended {
        Listened::Told(attempt) => {
            let _ = child.wait();
            *attempt
        }
        Listened::Closed => {
            let status = child.wait();
            watch.died(status.ok())
        }
        Listened::Silent(kind, why) => {
            kill(process);
            let _ = child.wait();
            watch.failed(kind, why, Vec::new())
        }
    };
    shared.processes().remove(&process);
    attempt
}

/// How listening to a process ended.
enum Listened {
    Told(Box<Attempt>),
    /// Its output ended without a result.
    Closed,
    /// It does not do what it should.
    Silent(FailureKind, String),
}

impl Watch<'_> {
    fn listen(&mut self, child: &mut Child, index: usize, sender: &Sender<Told>) -> Listened {
        let Some(output) = child.stdout.take() else {
            return Listened::Closed;
        };
        let (lines, events) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let Ok(event) = serde_json::from_str::<Event>(&line) else {
                    return;
                };
                if lines.send(event).is_err() {
                    return;
                }
            }
        });
        let limit = self.scenario.timeout.as_duration() + CLOSING;
        let mut heard = Instant::now();
        loop {
            let waited = Instant::now();
            match events.recv_timeout(BEAT) {
                Ok(event) => {
                    heard = Instant::now();
                    self.late = Duration::ZERO;
                    match event {
                        Event::Beat { .. } => {}
                        Event::Step { index: step, at_ms } => {
                            self.step = Some(step);
                            if let Some(result) = self.steps.get_mut(step) {
                                result.at_ms = at_ms;
                            }
                            let _ = sender.send(Told::Step(index, step));
                        }
                        Event::Passed {
                            index: step,
                            result,
                        } => {
                            if let Some(slot) = self.steps.get_mut(step) {
                                *slot = result;
                            }
                            self.step = None;
                        }
                        Event::Ended(attempt) => return Listened::Told(attempt),
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Listened::Closed,
                Err(RecvTimeoutError::Timeout) => {
                    self.late = self.late.max(waited.elapsed().saturating_sub(BEAT));
                    if heard.elapsed() >= SILENCE {
                        let (kind, why) = self.why_silent(child.id());
                        return Listened::Silent(kind, why);
                    }
                }
            }
            if self.begun.elapsed() >= limit {
                let why = format!(
                    "the VMM is stuck: its process did not end {} s after the scenario's time of {} was over",
                    CLOSING.as_secs(),
                    self.scenario.timeout
                );
                return Listened::Silent(FailureKind::VmmStuck, why);
            }
        }
    }

    fn why_silent(&self, process: u32) -> (FailureKind, String) {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        // PID (NAME) STATE …
        let state = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next());
        let silence = SILENCE.as_secs();
        match state {
            Some('T' | 't') => (
                FailureKind::VmmStuck,
                format!(
                    "the VMM is stuck: its process was stopped, by SIGSTOP or a debugger, for {silence} s"
                ),
            ),
            _ if self.late > BEAT * 4 => (
                FailureKind::HostStarved,
                format!(
                    "the host is overloaded: nothing was heard of the VM for {silence} s, and ampoule test itself was woken {:.1} s late",
                    self.late.as_secs_f64()
                ),
            ),
            Some('D') => (
                FailureKind::HostStarved,
                format!(
                    "the host does not answer: the VM's process waited for {silence} s, uninterruptibly"
                ),
            ),
            _ => (
                FailureKind::VmmStuck,
                format!("the VMM is stuck: its process said nothing for {silence} s"),
            ),
        }
    }

    /// The process is gone, and told no result.
    fn died(&mut self, status: Option<ExitStatus>) -> Attempt {
        let how = match status {
            Some(status) => match (status.signal(), status.code()) {
                (Some(signal), _) => format!("was killed by {}", signal_name(signal)),
                (None, Some(code)) => format!("ended with status {code}"),
                (None, None) => "ended".into(),
            },
            None => "ended".into(),
        };
        let said = last_lines(&self.folder.join("worker.log"));
        self.failed(
            FailureKind::VmmDied,
            format!("the VMM's process {how} before the scenario's end"),
            said,
        )
    }

    fn failed(&mut self, kind: FailureKind, message: String, details: Vec<String>) -> Attempt {
        if let Some(result) = self.step.and_then(|step| self.steps.get_mut(step)) {
            result.state = StepState::Failed;
            result.duration_ms = millis(self.begun.elapsed()).saturating_sub(result.at_ms);
        }
        Attempt {
            verdict: match kind {
                FailureKind::Host => Verdict::Host,
                _ => Verdict::Failed,
            },
            duration_ms: millis(self.begun.elapsed()),
            failure: Some(FailureInfo {
                kind,
                step: self.step,
                message,
                details,
                console: last_lines(&self.folder.join("console.txt")),
            }),
            steps: self.steps.clone(),
            end: None,
            timeline: Vec::new(),
            folder: self.folder.is_dir().then(|| self.folder.to_owned()),
            matches: Vec::new(),
        }
    }
}

/// Starts the process of an attempt.
fn start(scenario: &Scenario, folder: &Path, sets: &[String]) -> io::Result<Child> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    let text = serde_json::to_vec(scenario)?;
    let pretty = serde_json::to_vec_pretty(scenario)?;
    fs::write(folder.join("scenario.json"), pretty)?;
    let script = format!(
        "#!/bin/sh\n# Repeats this scenario alone.\nexec {} \"$@\"\n",
        repeat(scenario, sets)
    );
    fs::write(folder.join("command.sh"), script)?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("test-worker")
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(File::create(folder.join("worker.log"))?)
        // ^C is this process's: it decides what becomes of the others.
        .process_group(0);
    // SAFETY: between fork and exec these are system calls alone, on values of this frame.
    unsafe {
        command.pre_exec(|| {
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            // Without its supervisor it has nothing to do.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    let mut child = command.spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // A process that is gone already is found out by its output.
        let _ = input.write_all(&text);
    }
    Ok(child)
}

/// Makes the results' folder, which holds nothing else than results.
fn prepare(results: &Path) -> Result<(), Failure> {
    let name = results.display();
    let cannot = |err: io::Error| {
        Failure::new(format!(
            "cannot make the folder \"{name}\" for results: {}",
            report::io_text(&err)
        ))
    };
    fs::create_dir_all(results).map_err(cannot)?;
    let mut entries = fs::read_dir(results).map_err(cannot)?;
    if entries.next().is_some() && !results.join(MARKER).exists() {
        return Err(Failure::new(format!(
            "\"{name}\" is not empty, and holds no results of ampoule test"
        ))
        .with_help("name another folder with --results, or empty this one"));
    }
    fs::write(results.join(MARKER), "{}\n").map_err(cannot)
}

/// A folder for each scenario, named alike.
fn folders(scenarios: &[Scenario], results: &Path) -> Vec<PathBuf> {
    let mut taken = BTreeSet::new();
    let mut folder = |scenario: &Scenario| {
        let plain = |c: char| {
            if c.is_ascii_alphanumeric() || "._-=,".contains(c) {
                c
            } else {
                '_'
            }
        };
        let name: String = scenario.name.chars().map(plain).take(200).collect();
        let name = name.trim_matches(['_', '.']).to_owned();
        let mut unique = name.clone();
        let mut number = 1;
        while unique.is_empty() || !taken.insert(unique.clone()) {
            number += 1;
            unique = format!("{name}-{number}");
        }
        results.join(unique)
    };
    scenarios.iter().map(&mut folder).collect()
}

/// The end of a text in a file.
fn last_lines(path: &Path) -> Vec<String> {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(32 << 10)..]);
    let lines: Vec<&str> = text.trim_end().lines().map(str::trim_end).collect();
    let from = lines.len().saturating_sub(SHOWN_LINES);
    lines[from..].iter().map(|&line| line.to_owned()).collect()
}

fn kill(process: u32) {
    if let Ok(process) = libc::pid_t::try_from(process) {
        // SAFETY: the call takes no pointer. The process is a child that nobody has waited for yet.
        unsafe {
            libc::kill(process, libc::SIGKILL);
        }
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGKILL => "SIGKILL",
        libc::SIGTERM => "SIGTERM",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGINT => "SIGINT",
        _ => return format!("signal {signal}"),
    };
    format!("{name} (signal {signal})")
}

/// The host, in a line.
fn host() -> String {
    let read = |path: &str| {
        fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let kvm = ["kvm_intel", "kvm_amd", "kvm_pvm"].into_iter();
    let kvm = kvm
        .filter(|name| Path::new("/sys/module").join(name).exists())
        .collect::<Vec<_>>();
    let kvm = match kvm.is_empty() {
        true => "no module of KVM".into(),
        false => kvm.join(", "),
    };
    format!("Linux {}, {kvm}", read("/proc/sys/kernel/osrelease"))
}

fn cannot(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |err| Failure::new(format!("cannot {what}: {}", report::io_text(&err)))
}

/// SIGINT and SIGTERM, asked for instead of ending the process, as long as this is there.
struct Interrupts {
    set: SignalSet,
    fd: SignalFd,
}

impl Interrupts {
    /// For this thread and those that it starts.
    fn block() -> io::Result<Self> {
        let set = SignalSet::of([libc::SIGINT, libc::SIGTERM]);
        let fd = SignalFd::new(&set)?;
        set.block()?;
        Ok(Self { set, fd })
    }

    /// Whether one of them came.
    fn came(&mut self) -> bool {
        self.fd.next().is_some()
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        // Whoever comes again means the process.
        let _ = self.set.unblock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_somebody_elses_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        assert!(prepare(&folder.path().join("new/results")).is_ok());
        fs::write(folder.path().join("thesis.tex"), "").unwrap();
        let failure = prepare(folder.path()).unwrap_err();
        assert!(
            failure.message.contains("is not empty"),
            "{}",
            failure.message
        );
    }
}
