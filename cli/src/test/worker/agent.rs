//! Commands in a guest whose first process is ampoule's init: that runs itself once more as an agent, which serves a session to each
//! connection (`resources/init/agent.rs`).

use std::io::{PipeReader, Read, Seek};
use std::os::fd::AsFd;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use ampoule_image::job::Job;
use ampoule_image::session::{self, End, Outcome, Remote, SessionError, Streams};
use ampoule_vmm::VsockEndpoint;
use ampoule_vmm::test::{Missed, TestVm, TextLog};

use super::super::outcome::FailureKind;
use super::guest::left;
use super::trouble::Trouble;
use crate::command::{Held, PORT, Plan, phases};
use crate::report;

/// The guest's port that the agent listens on.
const AGENT: u32 = 1025;

/// The most that is kept of a command's output.
const MAX_OUTPUT: u64 = 16 << 20;

/// How long the agent may take to end when it is told to.
const END: Duration = Duration::from_secs(5);

/// What reaches into a guest.
pub(super) struct Agent {
    sockets: VsockEndpoint,
    /// What every command has: environment, user, folder.
    template: Job,
    /// The agent itself.
    main: Session,
    /// The scenario's command.
    pub(super) command: Option<Session>,
    /// What it prints.
    pub(super) output: TextLog,
    /// When the init had connected.
    connected: Instant,
    /// As long as the VM runs.
    _held: Held,
}

/// A session that runs on a thread of its own.
pub(super) struct Session {
    remote: Remote,
    ended: Receiver<Result<Outcome, SessionError>>,
    /// Once it has ended.
    result: Option<Result<Outcome, SessionError>>,
}

/// What came of a command.
pub(super) struct Ran {
    pub(super) end: End,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

/// Why a command could not be run.
pub(super) enum Failed {
    /// It did not come to its end in time.
    Deadline(String),
    /// The guest went away, or does not behave.
    Lost(String),
    /// The guest says why not, or the host does.
    Refused(String),
}

impl Failed {
    /// With what the VM says to it.
    pub(super) fn explain(self, vm: &TestVm) -> Trouble {
        match self {
            Self::Deadline(what) => Trouble::of_test(vm.explain(Missed::Deadline, what)),
            Self::Lost(what) => match vm.vm().wait_timeout(END) {
                Some(_) => Trouble::of_test(vm.explain(Missed::Ended, what)),
                None => Trouble::new(FailureKind::UnexpectedEnd, what).with_console(vm),
            },
            Self::Refused(what) => Trouble::new(FailureKind::Mismatch, what).with_console(vm),
        }
    }
}

impl Session {
    fn start(
        work: impl FnOnce(&session::Commands) -> Result<Outcome, SessionError> + Send + 'static,
    ) -> Result<Self, Failed> {
        let (remote, commands) = session::remote().map_err(host)?;
        let (sender, ended) = mpsc::channel();
        let spawned = thread::Builder::new()
            .name("session".into())
            .spawn(move || {
                let _ = sender.send(work(&commands));
            });
        spawned.map_err(host)?;
        Ok(Self {
            remote,
            ended,
            result: None,
        })
    }

    /// Waits for its end. None when that does not come in time.
    pub(super) fn wait(&mut self, deadline: Instant) -> Option<&Result<Outcome, SessionError>> {
        if self.result.is_none() {
            match self.ended.recv_timeout(left(deadline)) {
                Ok(result) => self.result = Some(result),
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => {
                    self.result = Some(Err(SessionError::Lost));
                }
            }
        }
        self.result.as_ref()
    }
}

impl Agent {
    /// Waits for the guest's init, has it become an agent, and starts the scenario's command, if there is one.
    pub(super) fn start(
        vm: &TestVm,
        plan: Plan,
        has_command: bool,
        deadline: Instant,
    ) -> Result<Self, Failed> {
        let missing = || Failed::Lost("the VM has no sockets".into());
        let sockets = vm.vm().vsock().ok_or_else(missing)?;
        let listener = sockets.listen(PORT).map_err(host)?;
        let connection = match listener.accept_timeout(left(deadline)) {
            Ok(connection) => connection,
            Err(err) if err.kind() == std::io::ErrorKind::TimedOut => {
                return Err(Failed::Deadline("the guest's init did not answer".into()));
            }
            Err(_) => return Err(Failed::Lost("the guest's init did not answer".into())),
        };
        let connected = Instant::now();
        let words = ["/proc/1/exe", "agent"].map(|word| word.as_bytes().to_vec());
        let job = Job {
            arguments: words
                .into_iter()
                .chain([AGENT.to_string().into_bytes()])
                .collect(),
            user: Vec::new(),
            directory: Vec::new(),
            input: false,
            terminal: None,
            ..plan.job.clone()
        };
        let (said, output) = std::io::pipe().map_err(host)?;
        let copies = plan.copies;
        let mut main = Session::start(move |commands| {
            let streams = Streams {
                input: None,
                output: output.as_fd(),
                error: output.as_fd(),
            };
            session::run_copying(connection, &job, &copies, streams, commands)
        })?;
        match ready(said).recv_timeout(left(deadline)) {
            Ok(true) => {}
            Ok(false) => {
                let end = main.wait(Instant::now() + END);
                return Err(why(end.map(Result::as_ref)));
            }
            Err(_) => {
                return Err(Failed::Deadline(
                    "the guest's init did not get ready".into(),
                ));
            }
        }
        vm.vm().timeline().guest("ready");
        let mut agent = Self {
            sockets,
            template: Job {
                mounts: Vec::new(),
                terminal: None,
                ..plan.job
            },
            main,
            command: None,
            output: TextLog::default(),
            connected,
            _held: plan.held,
        };
        if has_command {
            agent.command = Some(agent.start_command()?);
        } else {
            agent.output.end();
        }
        Ok(agent)
    }

    /// Starts the scenario's command, whose outputs go into the text.
    fn start_command(&self) -> Result<Session, Failed> {
        let connection = self.connect()?;
        // Its words are those of the plan: the image's entrypoint, and the scenario's.
        let job = Job {
            input: false,
            ..self.template.clone()
        };
        let (reader, writer) = std::io::pipe().map_err(host)?;
        let log = self.output.clone();
        let carried = thread::spawn(move || log.carry(reader));
        Session::start(move |commands| {
            let streams = Streams {
                input: None,
                output: writer.as_fd(),
                error: writer.as_fd(),
            };
            let outcome = session::run(connection, &job, streams, commands);
            drop(writer);
            let _ = carried.join();
            outcome
        })
    }

    fn connect(&self) -> Result<ampoule_vmm::VsockStream, Failed> {
        let connection = self.sockets.connect_timeout(AGENT, Duration::from_secs(10));
        connection.map_err(|err| {
            Failed::Lost(format!(
                "the guest's agent does not answer: {}",
                report::io_text(&err)
            ))
        })
    }

    /// Runs a command to its end.
    pub(super) fn run(
        &self,
        words: Vec<String>,
        input: Option<&str>,
        deadline: Instant,
    ) -> Result<Ran, Failed> {
        let connection = self.connect()?;
        let name = words.join(" ");
        let job = Job {
            arguments: words.into_iter().map(String::into_bytes).collect(),
            input: input.is_some(),
            ..self.template.clone()
        };
        let file = || tempfile::tempfile().map_err(host);
        let (mut stdout, mut stderr, mut stdin) = (file()?, file()?, file()?);
        if let Some(text) = input {
            std::io::Write::write_all(&mut stdin, text.as_bytes()).map_err(host)?;
            stdin.rewind().map_err(host)?;
        }
        let clone = |file: &std::fs::File| file.try_clone().map_err(host);
        let (out, err) = (clone(&stdout)?, clone(&stderr)?);
        let has_input = input.is_some();
        let mut session = Session::start(move |commands| {
            let streams = Streams {
                input: has_input.then(|| stdin.as_fd()),
                output: out.as_fd(),
                error: err.as_fd(),
            };
            session::run(connection, &job, streams, commands)
        })?;
        let end = match session.wait(deadline) {
            None => {
                session.remote.signal(9);
                return Err(Failed::Deadline(format!("`{name}` did not end")));
            }
            Some(Ok(outcome)) => outcome.end.clone(),
            Some(Err(err)) => {
                return Err(Failed::Lost(format!("`{name}`: {}", report::chain(err))));
            }
        };
        let content = |file: &mut std::fs::File| {
            let mut bytes = Vec::new();
            file.rewind()?;
            file.take(MAX_OUTPUT).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        Ok(Ran {
            end,
            stdout: content(&mut stdout).map_err(host)?,
            stderr: content(&mut stderr).map_err(host)?,
        })
    }

    /// Ends the agent, so that what is to be copied out of the guest is. What went wrong with that.
    pub(super) fn finish(&mut self, timeline: &ampoule_vmm::Timeline, wants: bool) -> Vec<String> {
        if self.main.result.is_none() {
            self.main.remote.signal(15);
        }
        let patience = if wants { Duration::from_secs(60) } else { END };
        let begun = Instant::now();
        match self.main.wait(begun + patience) {
            Some(Ok(outcome)) => {
                if let Some(times) = &outcome.started {
                    phases::mark(timeline, times, self.connected);
                }
                outcome.not_copied.clone()
            }
            _ if wants => vec!["the guest did not copy out in time".into()],
            _ => Vec::new(),
        }
    }
}

/// Tells whether the agent says that it is ready, before its output ends.
fn ready(mut said: PipeReader) -> Receiver<bool> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut text = Vec::new();
        let mut buffer = [0; 256];
        while let Ok(count @ 1..) = said.read(&mut buffer) {
            if text.len() < 4096 {
                text.extend_from_slice(&buffer[..count]);
            }
            if text.ends_with(b"ready\n") {
                let _ = sender.send(true);
            }
        }
        let _ = sender.send(false);
    });
    receiver
}

/// Why the agent is not there.
fn why(end: Option<Result<&Outcome, &SessionError>>) -> Failed {
    match end {
        Some(Ok(outcome)) => match &outcome.end {
            End::NotRun { reason, .. } => Failed::Refused(reason.clone()),
            end => Failed::Lost(format!(
                "the guest's agent ended with status {}",
                end.status()
            )),
        },
        Some(Err(SessionError::Copy(err))) => Failed::Refused(report::chain(err)),
        Some(Err(err)) => Failed::Lost(report::chain(err)),
        None => Failed::Lost("the guest's agent ended".into()),
    }
}

fn host(err: std::io::Error) -> Failed {
    Failed::Lost(format!("the host: {}", report::io_text(&err)))
}
