//! Linux guests in lab hosts: as many as this machine has processors for share the tests, and fresh ones take those that failed.
//!
//! QEMU 7.2 loses an interrupt of the emulated machine now and then (it clears the pending virtual interrupt without a lock, in its
//! `svm_helper.c`), after which a guest, or the lab host itself, waits for ever. So a lab host in which a test has failed is ended, and
//! what has not been run is run in the next; so is the test that failed, once more, and is told as flaky if it passes then.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::client;
use crate::frame::Stream;
use crate::host::{Cpu, Host, HostConfig};
use crate::kernels::Version;
use crate::packages::Packages;
use crate::say;

use super::outcome::{self, Outcomes};
use super::{DEBIAN, PREPARED, Prepared, SHARED, Suite, TOOLS, create};

/// The most lab hosts at a time. An emulated machine is one thread's work, but for its devices.
const AT_ONCE: usize = 4;

/// Lab hosts that may be started besides the first ones, in the place of those that were ended.
const FRESH: usize = 8;

/// The most tests that a lab host takes at a time, and what they may take together, as far as is known.
const BATCH: usize = 8;
const BATCH_TIME: Duration = Duration::from_secs(60);

/// What a test is taken to take that has not been run before.
const UNKNOWN: Duration = Duration::from_secs(15);

/// A test that has failed so often, each time in another lab host, has failed.
const FAILURES: usize = 2;

/// Why tests that make a guest's processor work without a pause do not run in Bochs.
const TOO_SLOW: &str =
    "takes too long in Bochs; it runs on this machine's own KVM, and in the AMD lab host";

/// A lab host whose tests say nothing for so long has died. Longer than any test waits for its guest.
const SILENCE: Duration = Duration::from_secs(900);

/// The test program of Linux guests, and what it looks for.
pub(super) struct LinuxTests<'a> {
    pub(super) program: &'a Path,
    /// The folder of the guests' programs.
    pub(super) guests: Option<&'a Path>,
    /// What has been made for them.
    pub(super) prepared: &'a Prepared,
}

impl Suite<'_> {
    /// Runs the tests of Linux guests in a lab host.
    pub(super) fn in_the_lab(
        &mut self,
        packages: &Packages,
        cpu: Cpu,
        tests: &LinuxTests<'_>,
    ) -> Result<()> {
        let start = Instant::now();
        let all = names(tests.program)?;
        let chosen = |name: &&String| {
            let filter = self.plan.filter.as_ref();
            filter.is_none_or(|filter| name.contains(filter.as_str()))
        };
        let (slow, chosen): (Vec<_>, Vec<_>) = all
            .iter()
            .filter(chosen)
            .partition(|name| cpu == Cpu::Intel && name.starts_with("hostile::"));
        let at_once = thread::available_parallelism().map_or(1, |count| count.get().min(AT_ONCE));
        let at_once = at_once.min(chosen.len());
        let known = outcome::durations(&self.durations());
        let mut pool = Pool::new(chosen, at_once + FRESH, |name| {
            known.get(&format!("linux: {name}")).copied()
        });
        let skipped = slow.into_iter().cloned();
        let skipped = skipped.map(|name| (name, TOO_SLOW.to_owned()));
        pool.outcomes.skipped.extend(skipped);
        let pool = Mutex::new(pool);
        thread::scope(|scope| {
            let (suite, pool, all) = (&*self, &pool, &all);
            let lanes: Vec<_> = (0..at_once)
                .map(|lane| {
                    let number = (lane, at_once);
                    scope.spawn(move || suite.lane(packages, cpu, tests, all, pool, number))
                })
                .collect();
            let ended = lanes.into_iter().map(|lane| {
                lane.join()
                    .unwrap_or_else(|_| Err(anyhow!("a lab host's thread panicked")))
            });
            ended.collect::<Result<()>>()
        })?;
        let pool = pool.into_inner().unwrap_or_else(PoisonError::into_inner);
        let log = self.logs.join("linux.log");
        let mut joined = create(&log)?;
        for part in &pool.logs {
            io::copy(&mut File::open(part)?, &mut joined)?;
        }
        let name = format!("linux ({} lab host)", cpu.name());
        self.totals
            .step(&name, start.elapsed(), pool.outcomes, &log);
        Ok(())
    }

    /// Takes tests from the pool and runs them in a lab host, and in fresh ones after failures, until there are no more.
    fn lane(
        &self,
        packages: &Packages,
        cpu: Cpu,
        tests: &LinuxTests<'_>,
        all: &[String],
        pool: &Mutex<Pool<'_>>,
        (lane, at_once): (usize, usize),
    ) -> Result<()> {
        let mut host = None;
        for number in 0.. {
            let (batch, may_start) = {
                let mut pool = lock(pool);
                let batch = pool.take(at_once);
                let may_start = host.is_some() || pool.take_host();
                (batch, may_start)
            };
            if batch.is_empty() {
                break;
            }
            if !may_start {
                lock(pool).give_up(batch);
                continue;
            }
            let here = match host.take() {
                Some(host) => host,
                None => self.lab_host(packages, cpu, tests)?,
            };
            let log = self.logs.join(format!("linux-{lane}-{number}.log"));
            let succeeded = self.run_in(&here, cpu, tests, all, &batch, &log)?;
            if succeeded {
                host = Some(here);
            }
            lock(pool).settle(batch, succeeded, Outcomes::of_log(&log), log);
        }
        Ok(())
    }

    fn lab_host(&self, packages: &Packages, cpu: Cpu, tests: &LinuxTests<'_>) -> Result<Host> {
        let start = Instant::now();
        let kernels = self.project.lab.join("kernels");
        let paths = [tests.program, &kernels].into_iter().chain(tests.guests);
        let host = Host::start(
            self.project,
            packages,
            &HostConfig {
                cpu,
                kernel: Version::V6_1,
                // With two, guests that run side by side were seen to triple-fault at random places, with one not. The
                // cause is not known yet.
                cpus: 1,
                memory_mib: 4096,
                read_write: Vec::new(),
                frozen: true,
                paths: paths.map(Path::to_owned).collect(),
            },
        )?;
        say::say(format!(
            "lab host ({}): up after {:.1} s",
            cpu.name(),
            start.elapsed().as_secs_f32()
        ));
        Ok(host)
    }

    /// Runs some of the tests in a lab host, which is ended when one has failed; whether the program succeeds.
    fn run_in(
        &self,
        host: &Host,
        cpu: Cpu,
        tests: &LinuxTests<'_>,
        all: &[String],
        batch: &[&String],
        log: &Path,
    ) -> Result<bool> {
        let mut lines = Lines::default();
        let mut command = vec![tests.program.as_os_str().to_owned(), "--exact".into()];
        let others = all.iter().filter(|name| !batch.contains(name));
        command.extend(others.flat_map(|name| ["--skip".into(), name.into()]));
        let mut spec = client::spec(command, &self.project.programs(), None)?;
        for (name, value) in self.environment(tests.prepared) {
            // The Intel lab host sees a selection of files, and has no room for the tools and the Debian system.
            if !(cpu == Cpu::Intel && [TOOLS, DEBIAN, PREPARED].contains(&name)) {
                spec.environment.push((name.into(), value.into()));
            }
        }
        // One after another of these programs runs there, and what one has made serves the next.
        let shared = OsString::from("/tmp/ampoule-tests");
        spec.environment.push((SHARED.into(), shared));
        let mut file = create(log)?;
        let heard = Mutex::new(Instant::now());
        let done = AtomicBool::new(false);
        let broker = host.broker().connect()?;
        let exit = thread::scope(|scope| {
            let watch = scope.spawn(|| watch(host, &heard, &done));
            let exit = client::run_captured(broker, &spec, &mut |stream, bytes| {
                if let Ok(mut heard) = heard.lock() {
                    *heard = Instant::now();
                }
                file.write_all(bytes)?;
                if stream == Stream::Output {
                    lines.hear(bytes);
                }
                if lines.failures > 0 {
                    host.end();
                }
                Ok(())
            });
            done.store(true, Ordering::Release);
            watch.thread().unpark();
            exit
        });
        match exit {
            // It was ended here, or has died: the log has what there was.
            Err(err) => {
                say::say(format!("the lab host has ended: {err:#}"));
                Ok(false)
            }
            Ok(exit) => Ok(exit.status() == 0),
        }
    }
}

/// The tests that are to be run, and what became of the others.
struct Pool<'a> {
    /// Those that take longest come first, so that none of them is left for one lab host alone at the end.
    queue: VecDeque<&'a String>,
    /// How long each is expected to take.
    expected: BTreeMap<&'a String, Duration>,
    /// How often each has failed.
    failures: BTreeMap<&'a String, usize>,
    /// Lab hosts that may still be started.
    hosts: usize,
    outcomes: Outcomes,
    logs: Vec<PathBuf>,
}

impl<'a> Pool<'a> {
    fn new(
        mut tests: Vec<&'a String>,
        hosts: usize,
        known: impl Fn(&str) -> Option<Duration>,
    ) -> Self {
        // What needs more stands further below in the program's list, and takes longer.
        tests.reverse();
        let expected: BTreeMap<_, _> = tests
            .iter()
            .map(|name| (*name, known(name).unwrap_or(UNKNOWN)))
            .collect();
        tests.sort_by_key(|name| Reverse(expected[name]));
        Self {
            queue: tests.into(),
            expected,
            failures: BTreeMap::new(),
            hosts,
            outcomes: Outcomes::default(),
            logs: Vec::new(),
        }
    }

    /// Some tests that are run together: fewer towards the end, so that all of so many lab hosts have some.
    fn take(&mut self, hosts: usize) -> Vec<&'a String> {
        let times = self.queue.iter().map(|name| self.expected[name]);
        let left: Duration = times.clone().sum();
        let share = (left / (2 * hosts.max(1) as u32)).min(BATCH_TIME);
        let mut together = Duration::ZERO;
        let fits = |time| {
            let is_enough = together >= share;
            together += time;
            !is_enough
        };
        let count = times.take(BATCH).map(fits).take_while(|fits| *fits).count();
        self.queue.drain(..count).collect()
    }

    fn take_host(&mut self) -> bool {
        let left = self.hosts.checked_sub(1);
        self.hosts = left.unwrap_or(0);
        left.is_some()
    }

    /// There is no lab host for these.
    fn give_up(&mut self, batch: Vec<&'a String>) {
        self.outcomes.failed.extend(batch.into_iter().cloned());
    }

    /// Takes note of how tests ended. What was not run, because its lab host was ended, is run next; what failed is run once more,
    /// when all else has been.
    fn settle(&mut self, batch: Vec<&'a String>, succeeded: bool, now: Outcomes, log: PathBuf) {
        self.logs.push(log);
        let mut unknown: VecDeque<_> = batch.into();
        let skipped: BTreeSet<&String> = now.skipped.iter().map(|(name, _)| name).collect();
        unknown.retain(|name| {
            let passed = succeeded || now.ok.contains(*name);
            if passed && !skipped.contains(name) {
                match self.failures.contains_key(name) {
                    true => self.outcomes.flaky.push((*name).clone()),
                    false => self.outcomes.passed += 1,
                }
            }
            !passed && !skipped.contains(name)
        });
        self.outcomes.skipped.extend(now.skipped.iter().cloned());
        self.outcomes.took.extend(now.took.clone());
        // A lab host that dies is the failure of the test that was run in it.
        let failed = unknown.iter().position(|name| now.failed.contains(*name));
        if let Some(name) = unknown.remove(failed.unwrap_or(0)) {
            let failures = self.failures.entry(name).or_default();
            *failures += 1;
            match *failures < FAILURES {
                true => self.queue.push_back(name),
                false => self.outcomes.failed.push(name.clone()),
            }
        }
        for name in unknown.into_iter().rev() {
            self.queue.push_front(name);
        }
    }
}

fn lock<'a, 'b>(pool: &'a Mutex<Pool<'b>>) -> MutexGuard<'a, Pool<'b>> {
    pool.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The names of a test program's tests.
fn names(program: &Path) -> Result<Vec<String>> {
    let output = Command::new(program)
        .arg("--list")
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let listing = String::from_utf8_lossy(&output.stdout);
    let names = listing
        .lines()
        .filter_map(|line| line.strip_suffix(": test"));
    Ok(names.map(str::to_owned).collect())
}

/// A test program's output as it comes: shown line by line, where somebody looks, and its failed tests counted.
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
    failures: usize,
}

impl Lines {
    fn hear(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.line.push(*byte);
            if *byte == b'\n' {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let line = self.line.trim_ascii_end();
        // Behind its name, or behind what it printed.
        if line == b"FAILED" || line.ends_with(b" ... FAILED") {
            self.failures += 1;
        }
        if io::IsTerminal::is_terminal(&io::stderr()) {
            // Nobody looks any more: the log has it all the same.
            let _ = io::stderr().write_all(&self.line);
        }
        self.line.clear();
    }
}

/// Ends a lab host that has fallen silent; whoever waits for it learns of its end.
fn watch(host: &Host, heard: &Mutex<Instant>, done: &AtomicBool) {
    while !done.load(Ordering::Acquire) {
        let silent = heard.lock().map_or(Duration::ZERO, |heard| heard.elapsed());
        let Some(left) = SILENCE.checked_sub(silent) else {
            say::say("the lab host says nothing any more: it is ended");
            return host.end();
        };
        thread::park_timeout(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_however_they_come() {
        let mut lines = Lines::default();
        for piece in [
            "test a ... ok\ntest b ... FA",
            "ILED\ntest c ... \npanicked\nFAILED\ntest result: FAILED. 1\n",
        ] {
            lines.hear(piece.as_bytes());
        }
        assert_eq!(lines.failures, 2);
    }

    #[test]
    fn what_failed_is_run_once_more_and_what_was_not_run_before_it() {
        let names = ["a", "b", "c"].map(String::from);
        let known = |name: &str| Some(Duration::from_secs(u64::from(b'd' - name.as_bytes()[0])));
        let mut pool = Pool::new(names.iter().collect(), 2, known);
        let ended = |pool: &mut Pool<'_>, ok: &[&str], failed: &[&str]| {
            let texts = |list: &[&str]| list.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
            let now = Outcomes {
                ok: texts(ok).into_iter().collect(),
                failed: texts(failed),
                ..Outcomes::default()
            };
            let batch: Vec<_> = pool.queue.drain(..).collect();
            let order = batch.iter().map(|name| name.as_str()).collect::<String>();
            pool.settle(
                batch,
                failed.is_empty() && !ok.is_empty(),
                now,
                PathBuf::new(),
            );
            order
        };
        assert_eq!(ended(&mut pool, &["a"], &["b"]), "abc");
        // The lab host has died in the next test.
        assert_eq!(ended(&mut pool, &[], &[]), "cb");
        assert_eq!(ended(&mut pool, &[], &["b"]), "bc");
        assert_eq!(ended(&mut pool, &["c"], &[]), "c");
        assert!(pool.take(2).is_empty());
        assert_eq!(pool.outcomes.passed, 1);
        assert_eq!(pool.outcomes.flaky, ["c"]);
        assert_eq!(pool.outcomes.failed, ["b"]);
        assert!(pool.take_host() && pool.take_host() && !pool.take_host());
    }
    #[test]
    fn what_takes_long_is_run_first_and_what_is_left_is_shared() {
        let names: Vec<String> = (0..20).map(|number| format!("{number:02}")).collect();
        let known = |name: &str| match name {
            "03" => Some(Duration::from_secs(90)),
            "07" => Some(Duration::from_secs(70)),
            "19" => Some(Duration::from_secs(1)),
            _ => None,
        };
        let mut pool = Pool::new(names.iter().collect(), 2, known);
        assert_eq!(pool.take(2), ["03"]);
        assert_eq!(pool.take(2), ["07"]);
        // Four of 15 s; of those that nothing is known of, the last come first.
        assert_eq!(pool.take(2), ["18", "17", "16", "15"]);
        let mut last = Vec::new();
        loop {
            let batch: Vec<String> = pool.take(2).into_iter().cloned().collect();
            if batch.is_empty() {
                break;
            }
            last = batch;
        }
        assert_eq!(last, ["19"]);
    }
}
