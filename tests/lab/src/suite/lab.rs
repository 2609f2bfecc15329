//! Linux guests in a lab host: one that serves all tests, and one more for those that failed in it.
//!
//! QEMU 7.2 loses an interrupt of the emulated machine now and then (it clears the pending virtual interrupt without a lock, in its
//! `svm_helper.c`), after which a guest waits for ever. So a few tests that fail are run once more, by themselves, in a fresh lab host; what
//! passes then is told as flaky. Many that fail have a reason of their own, and are not.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::client;
use crate::frame::Stream;
use crate::host::{Cpu, Host, HostConfig};
use crate::kernels::Version;
use crate::packages::Packages;
use crate::say;

use super::outcome::Outcomes;
use super::{Suite, TOOLS, create};

/// More failures than these are not the emulator's.
const FLAKY_MOST: usize = 6;

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
        let log = self.logs.join("linux.log");
        let filter: Vec<&str> = self.plan.filter.iter().map(String::as_str).collect();
        let host = self.lab_host(packages, cpu, tests)?;
        let succeeded = self.run_in(&host, cpu, tests, &filter, &log)?;
        drop(host);
        let mut outcomes = Outcomes::of_log(&log);
        if !succeeded && outcomes.failed.is_empty() {
            outcomes.count("linux", false);
        }
        if (1..=FLAKY_MOST).contains(&outcomes.failed.len()) {
            let again = self.logs.join("linux-again.log");
            let host = self.lab_host(packages, cpu, tests)?;
            for test in std::mem::take(&mut outcomes.failed) {
                say::say(format!("once more: {test}"));
                if self.run_in(&host, cpu, tests, &["--exact", &test], &again)? {
                    outcomes.flaky.push(test);
                } else {
                    outcomes.failed.push(test);
                }
            }
        }
        let name = format!("linux ({} lab host)", cpu.name());
        self.totals.step(&name, start.elapsed(), outcomes, &log);
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

    /// Runs the test program with these arguments in a lab host; whether it succeeds. Its output goes to the log.
    fn run_in(
        &self,
        host: &Host,
        cpu: Cpu,
        tests: &LinuxTests<'_>,
        arguments: &[&str],
        log: &Path,
    ) -> Result<bool> {
        let mut command = vec![tests.program.as_os_str().to_owned()];
        command.extend(arguments.iter().map(Into::into));
        let mut spec = client::spec(command, &self.project.programs(), None)?;
        for (name, value) in self.environment(tests.tools) {
            // The Intel lab host sees a selection of files, and has no room for the tools.
            if !(cpu == Cpu::Intel && name == TOOLS) {
                spec.environment.push((name.into(), value.into()));
            }
        }
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
                if stream == Stream::Output && io::IsTerminal::is_terminal(&io::stderr()) {
                    io::stderr().write_all(bytes)?;
                }
                file.write_all(bytes)
            });
            done.store(true, Ordering::Release);
            watch.thread().unpark();
            exit
        })?;
        Ok(exit.status() == 0)
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
