//! The course of an attempt: the steps in their order, each with its deadline, until one fails or all have passed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ampoule_image::session::End;
use ampoule_vmm::fault::{
    BlockEffect, BlockFault, BlockOp, Direction, NetEffect as OnNet, NetFault as NetPlan,
    When as Strikes,
};
use ampoule_vmm::test::{Found, Missed, Place, TestError};
use ampoule_vmm::timeline::MarkSource;
use ampoule_vmm::{ExitReason, StateError, Timeline, VmHandle};

use super::super::format::{fill, fill_pattern};
use super::super::outcome::{
    Attempt, ConsoleMatch, FailureInfo, FailureKind, StepResult, StepState, TimelineMark, Verdict,
    millis,
};
use super::super::scenario::{
    Action, DiskEffect, DiskFault, DiskOp, EndKind, NetEffect, NetFault, Pattern, RunCommand,
    Scenario, Stream, When,
};
use super::super::words::quoted;
use super::checks::{self, Captured};
use super::guest::{Guest, left, one};
use super::trouble::Trouble;
use super::{Event, Teller, keep};

/// How long the VMM may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes an attempt at a scenario. Never fails: what goes wrong is its result.
pub(super) fn attempt(
    scenario: &Scenario,
    folder: &Path,
    timeline: Timeline,
    teller: &Teller,
) -> Attempt {
    let begun = Instant::now();
    let end = begun + scenario.timeout.as_duration();
    let mut steps: Vec<StepResult> = scenario.steps.iter().map(StepResult::not_reached).collect();
    let mut course = None;
    let trouble = match Guest::boot(scenario, folder, timeline, end) {
        Err(trouble) => Some((None, trouble)),
        Ok(guest) => {
            let running = course.insert(Course {
                guest,
                scenario,
                folder,
                captures: BTreeMap::new(),
                output_at: 0,
                log_at: 0,
                matches: Vec::new(),
                is_over: false,
                end,
            });
            running.go(&mut steps, teller, begun).err()
        }
    };
    let mut attempt = Attempt {
        verdict: Verdict::Passed,
        duration_ms: 0,
        failure: None,
        steps,
        end: None,
        timeline: Vec::new(),
        folder: Some(folder.to_owned()),
        matches: Vec::new(),
    };
    let mut trouble = trouble;
    if let Some(course) = course {
        let late = course.close(&mut attempt, trouble.as_ref().map(|(_, it)| it.kind));
        trouble = trouble.or(late.map(|trouble| (None, trouble)));
    }
    if let Some((step, trouble)) = trouble {
        attempt.verdict = match trouble.kind {
            FailureKind::Host => Verdict::Host,
            _ => Verdict::Failed,
        };
        if !trouble.registers.is_empty() {
            keep(folder, "registers.txt", trouble.registers.as_bytes());
        }
        attempt.failure = Some(FailureInfo {
            kind: trouble.kind,
            step,
            message: trouble.message,
            details: trouble.details,
            console: trouble.console,
        });
    }
    attempt.duration_ms = millis(begun.elapsed());
    attempt
}

/// An attempt whose VM is up.
struct Course<'s> {
    guest: Guest,
    scenario: &'s Scenario,
    folder: &'s Path,
    captures: BTreeMap<String, String>,
    /// Where searches of the command's output go on.
    output_at: Place,
    log_at: Place,
    matches: Vec<ConsoleMatch>,
    /// Its end was waited for, and came as it should.
    is_over: bool,
    /// The scenario's deadline.
    end: Instant,
}

impl Course<'_> {
    fn go(
        &mut self,
        steps: &mut [StepResult],
        teller: &Teller,
        begun: Instant,
    ) -> Result<(), (Option<usize>, Trouble)> {
        for (index, step) in self.scenario.steps.iter().enumerate() {
            let at = Instant::now();
            let result = &mut steps[index];
            result.at_ms = millis(at - begun);
            let at_ms = result.at_ms;
            teller.tell(&Event::Step { index, at_ms });
            let limit = step.within.unwrap_or(self.scenario.step_timeout);
            let deadline = (at + limit.as_duration()).min(self.end);
            self.guest.vm.set_timeout(left(deadline));
            let done = self.step(&step.action, index, deadline);
            result.duration_ms = millis(at.elapsed());
            match done {
                Ok(captured) => self.captures.extend(captured),
                Err(mut trouble) => {
                    result.state = StepState::Failed;
                    if Instant::now() >= self.end {
                        let limit = self.scenario.timeout;
                        trouble.message += &format!(" (the scenario's time of {limit} is over)");
                    }
                    return Err((Some(index), trouble));
                }
            }
            result.state = StepState::Passed;
            let result = result.clone();
            teller.tell(&Event::Passed { index, result });
        }
        Ok(())
    }

    fn step(
        &mut self,
        action: &Action,
        index: usize,
        deadline: Instant,
    ) -> Result<Captured, Trouble> {
        match action {
            Action::Expect { pattern, on } => {
                let pattern = self.filled(pattern)?;
                let found = match on {
                    Stream::Console => self.guest.vm.expect(&pattern)?,
                    Stream::Output => self.on_output(&pattern, deadline)?,
                    Stream::Log => self.on_log(&pattern, deadline)?,
                };
                if *on == Stream::Console {
                    self.matched(&found, Some(index));
                }
                return Ok(found.captures);
            }
            Action::Send { text, echo } => {
                let text = self.fill(text);
                match echo {
                    true => self.guest.vm.send_and_see(&text)?,
                    false => self.guest.vm.send(&text)?,
                }
            }
            Action::Run {
                command,
                input,
                status,
                stdout,
                stderr,
            } => return self.run(command, input.as_deref(), *status, stdout, stderr, deadline),
            Action::Http { url, status, body } => {
                let body = self.filled_all(body)?;
                let url = self.fill(url);
                let asked = checks::http(&url, *status, &body, deadline);
                return asked.map_err(|why| self.no_answer(format!("{url}: {}", why.0)));
            }
            Action::Tcp {
                address,
                send,
                expect,
            } => {
                let expect = self.filled_all(expect)?;
                let (address, send) = (
                    self.fill(address),
                    send.as_ref().map(|text| self.fill(text)),
                );
                let asked = checks::tcp(&address, send.as_deref(), &expect, deadline);
                return asked.map_err(|why| self.no_answer(format!("{address}: {}", why.0)));
            }
            Action::File {
                path,
                write,
                expect,
            } => return self.file(path, write.as_deref(), expect, deadline),
            Action::WaitExit { reason, status } => self.wait_exit(*reason, *status, deadline)?,
            Action::Pause => self.bounded("paused", VmHandle::pause)?,
            Action::Resume => self.bounded("resumed", VmHandle::resume)?,
            Action::PowerButton => {
                let pressed = self.guest.vm.vm().press_power_button();
                pressed.map_err(|err| Trouble::mismatch(format!("the power button: {err}")))?;
            }
            Action::Reset => self.bounded("reset", VmHandle::reset)?,
            Action::DiskFault { disk, faults } => match self.guest.vm.disk_faults(disk) {
                Some(handle) => handle.set(faults.iter().map(disk_fault)),
                None => {
                    return Err(Trouble::new(
                        FailureKind::Scenario,
                        format!("there is no disk {disk}"),
                    ));
                }
            },
            Action::NetFault { net, faults } => match self.guest.vm.net_faults(net) {
                Some(handle) => handle.set(faults.iter().map(net_fault)),
                None => {
                    return Err(Trouble::new(
                        FailureKind::Scenario,
                        format!("there is no network {net}"),
                    ));
                }
            },
            Action::Timeline {
                mark,
                at_most,
                than,
                since,
            } => self.times(mark, *at_most, than, since.as_deref())?,
            Action::SnapshotConsole { name } => {
                keep(
                    self.folder,
                    &format!("{name}.txt"),
                    &self.guest.vm.console().text(),
                );
            }
        }
        Ok(Vec::new())
    }

    /// Remembers where a text was.
    fn matched(&mut self, found: &Found, step: Option<usize>) {
        let place = |place: Place| usize::try_from(place).unwrap_or(usize::MAX);
        self.matches.push(ConsoleMatch {
            step,
            start: place(found.start),
            end: place(found.end),
        });
    }

    fn on_output(
        &mut self,
        pattern: &ampoule_vmm::test::Pattern,
        deadline: Instant,
    ) -> Result<Found, Trouble> {
        let Some(agent) = &mut self.guest.agent else {
            return Err(Trouble::new(FailureKind::Scenario, "there is no command"));
        };
        let found = agent.output.find(pattern, self.output_at, deadline);
        let vm = &self.guest.vm;
        let what = format!("{pattern} was not in the command's output");
        match found {
            Ok(found) => {
                self.output_at = found.end;
                Ok(found)
            }
            Err(Missed::Ended) => {
                let lines = agent.output.last_lines(40);
                let ended = agent
                    .command
                    .as_mut()
                    .and_then(|command| command.wait(Instant::now() + PATIENCE));
                let mut trouble = match ended {
                    Some(Ok(outcome)) => Trouble::new(
                        FailureKind::UnexpectedEnd,
                        format!("{what}: {}", in_words(&outcome.end)),
                    ),
                    _ => Trouble::of_test(vm.explain(Missed::Ended, what)),
                };
                trouble
                    .details
                    .push("the end of the command's output:".into());
                trouble.details.extend(lines);
                Err(trouble)
            }
            Err(missed) => {
                let mut trouble = Trouble::of_test(vm.explain(missed, what));
                trouble
                    .details
                    .push("the end of the command's output:".into());
                trouble.details.extend(agent.output.last_lines(40));
                Err(trouble)
            }
        }
    }

    /// What the VMM logs is read from its file, now and then.
    fn on_log(
        &mut self,
        pattern: &ampoule_vmm::test::Pattern,
        deadline: Instant,
    ) -> Result<Found, Trouble> {
        let path = self.folder.join("vmm.log");
        loop {
            let text = std::fs::read(&path).unwrap_or_default();
            let from = usize::try_from(self.guest.log.end_place()).unwrap_or(usize::MAX);
            self.guest.log.write(&text[from.min(text.len())..]);
            if let Ok(found) = self.guest.log.find(pattern, self.log_at, Instant::now()) {
                self.log_at = found.end;
                return Ok(found);
            }
            if Instant::now() >= deadline {
                let what = format!("{pattern} was not in ampoule's log");
                return Err(Trouble::of_test(
                    self.guest.vm.explain(Missed::Deadline, what),
                ));
            }
            self.guest.vm.check_forbidden()?;
            thread::sleep(Duration::from_millis(20).min(left(deadline)));
        }
    }

    fn run(
        &mut self,
        command: &RunCommand,
        input: Option<&str>,
        status: Option<u8>,
        stdout: &[Pattern],
        stderr: &[Pattern],
        deadline: Instant,
    ) -> Result<Captured, Trouble> {
        let (stdout, stderr) = (self.filled_all(stdout)?, self.filled_all(stderr)?);
        let words: Vec<String> = match command {
            RunCommand::Shell(line) => ["/bin/sh", "-c", &self.fill(line)].map(String::from).into(),
            RunCommand::Words(words) => words.iter().map(|word| self.fill(word)).collect(),
        };
        let input = input.map(|text| self.fill(text));
        let (ended, out, err) = match &self.guest.agent {
            Some(agent) => {
                let ran = agent.run(words, input.as_deref(), deadline);
                let ran = ran.map_err(|failed| failed.explain(&self.guest.vm))?;
                if let End::NotRun { reason, .. } = &ran.end
                    && status.is_some_and(|status| status != ran.end.status())
                {
                    return Err(Trouble::mismatch(reason.clone()));
                }
                (ran.end.status(), ran.stdout, ran.stderr)
            }
            None => {
                let line = match command {
                    RunCommand::Shell(line) => self.fill(line),
                    RunCommand::Words(_) => words
                        .iter()
                        .map(|word| quoted(word))
                        .collect::<Vec<_>>()
                        .join(" "),
                };
                let output = self.guest.vm.run(&line)?;
                (output.status, output.stdout, output.stderr)
            }
        };
        let say = |name: &str, bytes: &[u8]| -> Vec<String> {
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]);
            let lines = text.lines().take(40).map(|line| format!("  {line}"));
            match bytes.is_empty() {
                true => Vec::new(),
                false => [format!("its standard {name}:")]
                    .into_iter()
                    .chain(lines)
                    .collect(),
            }
        };
        let failed = |message: String| {
            let mut trouble = Trouble::mismatch(message);
            trouble.details = [say("output", &out), say("error", &err)].concat();
            trouble
        };
        if let Some(status) = status
            && ended != status
        {
            return Err(failed(format!(
                "`{command}` ended with status {ended}, not {status}"
            )));
        }
        let mut captured = checks::all(&stdout, &out, "its standard output").map_err(failed)?;
        captured.extend(checks::all(&stderr, &err, "its standard error").map_err(failed)?);
        self.guest.vm.check_forbidden()?;
        Ok(captured)
    }

    fn file(
        &mut self,
        path: &str,
        write: Option<&str>,
        expect: &[Pattern],
        deadline: Instant,
    ) -> Result<Captured, Trouble> {
        let path = self.fill(path);
        let expect = self.filled_all(expect)?;
        if let Some(text) = write {
            let text = self.fill(text);
            match &self.guest.agent {
                Some(agent) => {
                    let line = format!("cat >{}", quoted(&path));
                    let words = ["/bin/sh", "-c", &line].map(String::from).into();
                    let ran = agent.run(words, Some(&text), deadline);
                    let ran = ran.map_err(|failed| failed.explain(&self.guest.vm))?;
                    if ran.end != End::Exited(0) {
                        let why = String::from_utf8_lossy(&ran.stderr).trim().to_owned();
                        return Err(Trouble::mismatch(format!("cannot write {path}: {why}")));
                    }
                }
                None => self.guest.vm.write_file(&path, text.as_bytes())?,
            }
        }
        if expect.is_empty() {
            return Ok(Vec::new());
        }
        let content = match &self.guest.agent {
            Some(agent) => {
                let ran = agent.run(
                    vec!["cat".into(), "--".into(), path.clone()],
                    None,
                    deadline,
                );
                let ran = ran.map_err(|failed| failed.explain(&self.guest.vm))?;
                match &ran.end {
                    End::Exited(0) => ran.stdout,
                    _ => {
                        let why = String::from_utf8_lossy(&ran.stderr).trim().to_owned();
                        return Err(Trouble::mismatch(format!("cannot read {path}: {why}")));
                    }
                }
            }
            None => self.guest.vm.read_file(&path)?,
        };
        checks::all_or_excerpt(&expect, &content, &path).map_err(Trouble::mismatch)
    }

    fn wait_exit(
        &mut self,
        wanted: Option<EndKind>,
        status: Option<u8>,
        deadline: Instant,
    ) -> Result<(), Trouble> {
        let command = self
            .guest
            .agent
            .as_mut()
            .and_then(|agent| agent.command.as_mut());
        let (kind, said) = match command {
            Some(command) => match command.wait(deadline) {
                None => {
                    let what = "the command did not end".into();
                    return Err(Trouble::of_test(
                        self.guest.vm.explain(Missed::Deadline, what),
                    ));
                }
                Some(Ok(outcome)) => {
                    let end = outcome.end.clone();
                    if let Some(status) = status
                        && end.status() != status
                    {
                        return Err(self
                            .with_output(format!("{}, not with status {status}", in_words(&end))));
                    }
                    let kind = match &end {
                        End::Exited(_) => EndKind::Command,
                        End::Killed(_) => EndKind::Signal,
                        End::NotRun { reason, .. } if status.is_none() => {
                            return Err(Trouble::mismatch(reason.clone()));
                        }
                        End::NotRun { .. } => EndKind::Command,
                    };
                    (kind, in_words(&end))
                }
                Some(Err(_)) => self.vm_end()?,
            },
            None => self.vm_end()?,
        };
        match wanted {
            Some(wanted) if wanted != kind => {
                let found = match kind {
                    EndKind::Panic => FailureKind::Panic,
                    EndKind::TripleFault | EndKind::VcpuFailed => FailureKind::Crash,
                    _ => FailureKind::UnexpectedEnd,
                };
                let message = format!("the end is {} ({said}), not {}", kind.name(), wanted.name());
                Err(Trouble::new(found, message).with_console(&self.guest.vm))
            }
            _ => {
                self.is_over = true;
                Ok(())
            }
        }
    }

    fn with_output(&self, message: String) -> Trouble {
        let mut trouble = Trouble::mismatch(message).with_console(&self.guest.vm);
        if let Some(agent) = &self.guest.agent {
            trouble
                .details
                .push("the end of the command's output:".into());
            trouble.details.extend(agent.output.last_lines(40));
        }
        trouble
    }

    /// The VM's end, once it comes.
    fn vm_end(&mut self) -> Result<(EndKind, String), Trouble> {
        let reason = self.guest.vm.wait_exit()?;
        let kind = match &reason {
            ExitReason::PowerOff => EndKind::PowerOff,
            ExitReason::Reset => EndKind::Reset,
            ExitReason::Panic(_) => EndKind::Panic,
            ExitReason::TripleFault { .. } => EndKind::TripleFault,
            ExitReason::VcpuFailed(_) => EndKind::VcpuFailed,
            ExitReason::HostFailed { .. } => {
                return Err(Trouble::new(FailureKind::Host, reason.to_string())
                    .with_console(&self.guest.vm));
            }
            reason => {
                let what = reason.to_string();
                return Err(
                    Trouble::new(FailureKind::UnexpectedEnd, what).with_console(&self.guest.vm)
                );
            }
        };
        Ok((kind, reason.to_string()))
    }

    /// Asks the VMM for something that it does at once, if it is well.
    fn bounded(
        &self,
        done: &str,
        ask: fn(&VmHandle) -> Result<(), StateError>,
    ) -> Result<(), Trouble> {
        let vm = self.guest.vm.vm().clone();
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let _ = sender.send(ask(&vm));
        });
        match receiver.recv_timeout(PATIENCE) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(err)) => {
                let what = format!("the VM cannot be {done}");
                Err(match self.guest.vm.vm().exit_reason() {
                    Some(_) => Trouble::of_test(self.guest.vm.explain(Missed::Ended, what)),
                    None => Trouble::new(FailureKind::Scenario, format!("{what}: {err}")),
                })
            }
            Err(_) => {
                let message = format!(
                    "the VMM is stuck: the VM was not {done} within {} s",
                    PATIENCE.as_secs()
                );
                Err(Trouble::new(FailureKind::VmmStuck, message).with_console(&self.guest.vm))
            }
        }
    }

    /// A server that does not answer: because its guest does not, or because it answers otherwise.
    fn no_answer(&self, what: String) -> Trouble {
        if self.guest.vm.vm().exit_reason().is_some() {
            return Trouble::of_test(self.guest.vm.explain(Missed::Ended, what));
        }
        if let Err(err) = self.guest.vm.check_forbidden() {
            return Trouble::of_test(err);
        }
        let mut trouble = Trouble::mismatch(what).with_console(&self.guest.vm);
        trouble.details.push(self.guest.vm.look().to_string());
        trouble
    }

    fn times(
        &self,
        mark: &str,
        at_most: f64,
        than: &str,
        since: Option<&str>,
    ) -> Result<(), Trouble> {
        let marks = self.guest.vm.vm().timeline().marks();
        let at = |name: &str| {
            let found = marks.iter().find(|mark| mark.name == name);
            found.map(|mark| mark.at_us).ok_or_else(|| {
                let known: Vec<&str> = marks.iter().map(|mark| &*mark.name).collect();
                let mut trouble = Trouble::mismatch(format!("the timeline has no mark {name:?}"));
                trouble
                    .details
                    .push(format!("its marks are: {}", known.join(", ")));
                trouble
            })
        };
        let from = since.map(at).transpose()?.unwrap_or(0);
        let after = |name: &str| Ok::<f64, Trouble>(at(name)?.saturating_sub(from) as f64 / 1e3);
        let (this, other) = (after(mark)?, after(than)?);
        if this <= at_most * other {
            return Ok(());
        }
        let ratio = match other > 0.0 {
            true => format!("{:.2} times", this / other),
            false => "later than".into(),
        };
        Err(Trouble::mismatch(format!(
            "{mark} came after {this:.3} ms, {ratio} {than} ({other:.3} ms), more than {at_most} times"
        )))
    }

    /// Puts captures into a text.
    fn fill(&self, text: &str) -> String {
        fill(text, &self.captures)
    }

    fn filled(&self, pattern: &Pattern) -> Result<ampoule_vmm::test::Pattern, Trouble> {
        one(&fill_pattern(pattern, &self.captures))
    }

    fn filled_all(&self, patterns: &[Pattern]) -> Result<Vec<ampoule_vmm::test::Pattern>, Trouble> {
        patterns
            .iter()
            .map(|pattern| self.filled(pattern))
            .collect()
    }

    /// Ends the VM, writes what is kept of it, and looks at what came after the last step.
    fn close(mut self, attempt: &mut Attempt, so_far: Option<FailureKind>) -> Option<Trouble> {
        let passed = so_far.is_none();
        if so_far == Some(FailureKind::VmmStuck) {
            self.record(attempt);
            // It would be waited for in vain. It ends with this process, which has nothing more to do.
            std::mem::forget(self.guest);
            return None;
        }
        let mut late = self.leave_agent(passed);
        // The command's end is the machine's: what its kernel says of being stopped is nobody's fault.
        let finished = self.guest.vm.finish();
        if passed && late.is_none() {
            late = match finished {
                Err(TestError::Ended { .. }) if self.is_over => None,
                Err(err) => Some(Trouble::of_test(err)),
                Ok(_) => None,
            };
        }
        if let Some(found) = self.guest.vm.console().forbidden() {
            self.matched(&found, None);
        }
        self.record(attempt);
        late
    }

    /// Ends the guest's agent, where there is one; what could not be copied out of the guest is trouble, if all else is well.
    fn leave_agent(&mut self, passed: bool) -> Option<Trouble> {
        let vm = self.guest.vm.vm().clone();
        let agent = self.guest.agent.as_mut()?;
        keep(self.folder, "output.txt", &agent.output.text());
        if vm.exit_reason().is_some() {
            return None;
        }
        let copies = |word: &String| word.starts_with("--copy-out");
        let run = self.scenario.run.as_ref();
        let wants = passed && run.is_some_and(|run| run.arguments.iter().any(copies));
        let not_copied = agent.finish(vm.timeline(), wants);
        let first = not_copied.first().filter(|_| passed)?;
        let message = format!("cannot copy out of the guest: {first}");
        Some(Trouble::mismatch(message))
    }

    /// Writes down what is kept of the VM.
    fn record(&mut self, attempt: &mut Attempt) {
        let vm = self.guest.vm.vm();
        attempt.end = vm.exit_reason().map(|reason| match reason {
            ExitReason::Stopped => "stopped when the test was over".into(),
            reason => reason.to_string(),
        });
        let marks = vm.timeline().marks().into_iter().map(|mark| TimelineMark {
            at_us: mark.at_us,
            guest: mark.source == MarkSource::Guest,
            name: mark.name.into_owned(),
        });
        attempt.timeline = marks.collect();
        attempt.matches = std::mem::take(&mut self.matches);
        let json =
            |value: Result<String, serde_json::Error>| value.unwrap_or_default().into_bytes();
        let timeline = json(serde_json::to_string_pretty(&attempt.timeline));
        keep(self.folder, "timeline.json", &timeline);
        let metrics = json(serde_json::to_string_pretty(&vm.metrics()));
        keep(self.folder, "metrics.json", &metrics);
    }
}

fn in_words(end: &End) -> String {
    match end {
        End::Exited(status) => format!("the command ended with status {status}"),
        End::Killed(signal) => format!("the command was killed by signal {signal}"),
        End::NotRun { reason, .. } => format!("the command was not run: {reason}"),
    }
}

fn strikes(when: When) -> Strikes {
    match when {
        When::Nth(number) => Strikes::Nth(number),
        When::Every(step) => Strikes::Every(step),
    }
}

fn disk_fault(fault: &DiskFault) -> BlockFault {
    let op = match fault.op {
        DiskOp::Read => BlockOp::Read,
        DiskOp::Write => BlockOp::Write,
        DiskOp::Flush => BlockOp::Flush,
        DiskOp::Discard => BlockOp::Discard,
    };
    let effect = match fault.effect {
        DiskEffect::Fail(errno) => BlockEffect::Fail(errno),
        DiskEffect::Delay(time) => BlockEffect::Delay(time.as_duration()),
    };
    BlockFault::new(op, strikes(fault.when), effect)
}

fn net_fault(fault: &NetFault) -> NetPlan {
    let direction = match fault.from_guest {
        true => Direction::FromGuest,
        false => Direction::ToGuest,
    };
    let effect = match fault.effect {
        NetEffect::Drop => OnNet::Drop,
        NetEffect::Duplicate => OnNet::Duplicate,
        NetEffect::Delay(time) => OnNet::Delay(time.as_duration()),
    };
    NetPlan::new(direction, strikes(fault.when), effect)
}
