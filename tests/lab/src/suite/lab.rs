//! Linux guests in lab hosts: as many as this machine has processors for share the tests, and fresh ones take those that failed.
//!
//! QEMU 7.2 loses an interrupt of the emulated machine now and then (it clears the pending virtual interrupt without a lock, in its
//! `svm_helper.c`), after which a guest, or the lab host itself, waits for ever. So a lab host in which two tests have failed is ended, and
//! what has not passed is run in the next; what passes there after it failed is told as flaky. In the last ones all is run to its end.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::client;
use crate::frame::Stream;
use crate::host::{Cpu, Host, HostConfig};
use crate::kernels::Version;
use crate::packages::Packages;
use crate::say;

use super::outcome::Outcomes;
use super::{Suite, TOOLS, create};

/// Lab hosts, one after the other.
const ROUNDS: usize = 3;

/// The most lab hosts at a time. An emulated machine is one thread's work, but for its devices.
const AT_ONCE: usize = 4;

/// Failures that end a lab host, where there is another.
const SICK: usize = 2;

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
    /// The image of the guests' tools.
    pub(super) tools: &'a Path,
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
        let mut last = Vec::new();
        let all = names(tests.program)?;
        let chosen = |name: &&String| {
            let filter = self.plan.filter.as_ref();
            filter.is_none_or(|filter| name.contains(filter.as_str()))
        };
        let mut left: BTreeSet<&String> = all.iter().filter(chosen).collect();
        let mut failed_before = BTreeSet::new();
        let mut outcomes = Outcomes::default();
        if cpu == Cpu::Intel {
            let (slow, rest) = left
                .into_iter()
                .partition(|name: &&String| name.starts_with("hostile::"));
            left = rest;
            let slow: BTreeSet<&String> = slow;
            let skipped = |name: &String| (name.clone(), TOO_SLOW.to_owned());
            outcomes.skipped.extend(slow.into_iter().map(skipped));
        }
        let at_once = thread::available_parallelism().map_or(1, |count| count.get().min(AT_ONCE));
        for round in 1..=ROUNDS {
            let shares: Vec<Share<'_>> = shares(&left, at_once)
                .enumerate()
                .map(|(number, tests)| Share {
                    others: all.iter().filter(|name| !tests.contains(name)).collect(),
                    tests,
                    log: self.share_log(round, number),
                    patience: if round < ROUNDS { SICK } else { usize::MAX },
                })
                .collect();
            let ran: Vec<Result<bool>> = thread::scope(|scope| {
                let suite = &*self;
                let running = shares.iter().map(|share| {
                    scope.spawn(move || {
                        let host = suite.lab_host(packages, cpu, tests)?;
                        suite.run_in(&host, cpu, tests, share)
                    })
                });
                let running: Vec<_> = running.collect();
                let ended = running.into_iter().map(|it| {
                    it.join()
                        .unwrap_or_else(|_| Err(anyhow!("a lab host's thread panicked")))
                });
                ended.collect()
            });
            for (share, succeeded) in shares.iter().zip(ran) {
                let succeeded = succeeded?;
                let now = Outcomes::of_log(&share.log);
                let passed = |name: &str| succeeded || now.ok.contains(name);
                for name in share.tests.iter().filter(|name| passed(name)) {
                    left.remove(name);
                    if now.skipped.iter().any(|(skipped, _)| skipped == *name) {
                        continue;
                    }
                    match failed_before.contains(*name) {
                        true => outcomes.flaky.push((*name).clone()),
                        false => outcomes.passed += 1,
                    }
                }
                for (name, _) in &now.skipped {
                    left.retain(|it| *it != name);
                }
                outcomes.skipped.extend(now.skipped);
                failed_before.extend(now.failed);
            }
            last = shares.iter().map(|share| share.log.clone()).collect();
            if left.is_empty() {
                break;
            }
            if round < ROUNDS {
                say::say(format!("{} tests go to fresh lab hosts", left.len()));
            }
        }
        outcomes.failed.extend(left.into_iter().cloned());
        let log = self.logs.join("linux.log");
        let mut joined = create(&log)?;
        for part in last {
            io::copy(&mut File::open(part)?, &mut joined)?;
        }
        let name = format!("linux ({} lab host)", cpu.name());
        self.totals.step(&name, start.elapsed(), outcomes, &log);
        Ok(())
    }

    fn share_log(&self, round: usize, number: usize) -> PathBuf {
        let again = match round {
            1 => String::new(),
            _ => format!("-again-{round}"),
        };
        self.logs.join(format!("linux-{number}{again}.log"))
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

    /// Runs a share of the tests in a lab host, which is ended when too many have failed; whether the program succeeds.
    fn run_in(
        &self,
        host: &Host,
        cpu: Cpu,
        tests: &LinuxTests<'_>,
        share: &Share<'_>,
    ) -> Result<bool> {
        let mut lines = Lines::default();
        let mut command = vec![tests.program.as_os_str().to_owned(), "--exact".into()];
        command.extend(
            share
                .others
                .iter()
                .flat_map(|name| ["--skip".into(), name.into()]),
        );
        let mut spec = client::spec(command, &self.project.programs(), None)?;
        for (name, value) in self.environment(tests.tools) {
            // The Intel lab host sees a selection of files, and has no room for the tools.
            if !(cpu == Cpu::Intel && name == TOOLS) {
                spec.environment.push((name.into(), value.into()));
            }
        }
        let mut file = create(&share.log)?;
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
                if lines.failures >= share.patience {
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

/// A part of the tests, in a lab host of its own.
struct Share<'a> {
    tests: BTreeSet<&'a String>,
    /// All other tests of the program.
    others: Vec<&'a String>,
    /// Where its output goes.
    log: PathBuf,
    /// Failures that end the lab host.
    patience: usize,
}

/// Parts of these tests, at most so many and none empty: neighbours, which are about as long as each other, go to different parts.
fn shares<'a>(
    tests: &BTreeSet<&'a String>,
    most: usize,
) -> impl Iterator<Item = BTreeSet<&'a String>> {
    let count = most.min(tests.len());
    (0..count).map(move |first| tests.iter().copied().skip(first).step_by(count).collect())
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
    fn shares_are_about_equal_and_have_all() {
        let names: Vec<String> = ["a", "b", "c", "d", "e"].map(String::from).into();
        let all: BTreeSet<&String> = names.iter().collect();
        let two: Vec<_> = shares(&all, 2).collect();
        assert_eq!(two.iter().map(BTreeSet::len).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(two.into_iter().flatten().collect::<BTreeSet<_>>(), all);
        assert_eq!(shares(&all, 9).count(), 5);
        assert_eq!(shares(&BTreeSet::new(), 2).count(), 0);
    }
}
