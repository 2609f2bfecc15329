//! Both halves of a session against each other: the init as an ordinary process, the host's half in the test.

use std::fs::{self, Permissions};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::thread;

use ampoule_image::INIT;
use ampoule_image::copy::Copies;
use ampoule_image::job::Job;
use ampoule_image::protocol::{Failure, WindowSize};
use ampoule_image::session::{self, End, Outcome, Remote, SessionError, Streams};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

#[path = "session/copies.rs"]
mod copies;

/// The init, started, and the folder of its file.
struct Init {
    process: Child,
    folder: TempDir,
    connection: UnixStream,
}

impl Init {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("init");
        fs::write(&path, INIT).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        let (connection, theirs) = UnixStream::pair().unwrap();
        // Under a shell, which gives descriptor 3 to the init and to no other process that a test starts meanwhile; with
        // signals ignored, as under nohup, which commands must not inherit.
        let mut command = Command::new("/bin/sh");
        command.args([
            "-c",
            "trap '' HUP INT QUIT TERM; exec \"$0\" session 3 3<&0 0</dev/null",
        ]);
        command.arg(&path).stdin(OwnedFd::from(theirs));
        let process = command.spawn().unwrap();
        Self {
            process,
            folder,
            connection,
        }
    }

    /// A session, its streams given; the init must have ended well with it.
    fn run(
        self,
        job: &Job,
        streams: Streams<'_>,
        commands: &session::Commands,
    ) -> Result<Outcome, SessionError> {
        self.run_copying(job, &Copies::default(), streams, commands)
    }

    fn run_copying(
        mut self,
        job: &Job,
        copies: &Copies,
        streams: Streams<'_>,
        commands: &session::Commands,
    ) -> Result<Outcome, SessionError> {
        let connection = self.connection;
        let outcome = session::run_copying(connection, job, copies, streams, commands);
        assert!(self.process.wait().unwrap().success());
        drop(self.folder);
        outcome
    }
}

fn job(arguments: &[&str]) -> Job {
    Job {
        arguments: arguments.iter().map(|it| it.as_bytes().to_vec()).collect(),
        environment: vec![b"GREETING=hello".to_vec()],
        ..Job::default()
    }
}

fn shell(script: &str) -> Job {
    job(&["sh", "-c", script])
}

/// What a session gave.
#[derive(Debug)]
struct Done {
    outcome: Outcome,
    output: Vec<u8>,
    error: Vec<u8>,
}

impl Done {
    fn text(&self) -> (&str, &str) {
        let text = |bytes| std::str::from_utf8(bytes).unwrap();
        (text(&self.output), text(&self.error))
    }
}

/// Runs a job while `meanwhile` writes its input and reads its output.
fn run_with<T: Send>(
    job: &Job,
    meanwhile: impl FnOnce(PipeWriter, &mut PipeReader, &Remote) -> T + Send,
) -> (Done, T) {
    let init = Init::start();
    let (input, feed) = io::pipe().unwrap();
    let (mut output, output_end) = io::pipe().unwrap();
    let (mut error, error_end) = io::pipe().unwrap();
    let (remote, commands) = session::remote().unwrap();
    thread::scope(|scope| {
        let session = scope.spawn(move || {
            let streams = Streams {
                input: Some(input.as_fd()),
                output: output_end.as_fd(),
                error: error_end.as_fd(),
            };
            init.run(job, streams, &commands)
        });
        let errors = scope.spawn(move || {
            let mut bytes = Vec::new();
            error.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let value = meanwhile(feed, &mut output, &remote);
        let mut rest = Vec::new();
        output.read_to_end(&mut rest).unwrap();
        let done = Done {
            outcome: session.join().unwrap().unwrap(),
            output: rest,
            error: errors.join().unwrap(),
        };
        (done, value)
    })
}

fn run(job: &Job) -> Done {
    run_with(job, |_, _, _| ()).0
}

/// Reads until the text has come; all that came.
fn expect(reader: &mut PipeReader, text: &str) -> String {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&bytes).contains(text) {
        let count = reader.read(&mut byte).unwrap();
        let so_far = String::from_utf8_lossy(&bytes);
        assert_eq!(count, 1, "ended without {text:?}: {so_far}");
        bytes.push(byte[0]);
    }
    String::from_utf8(bytes).unwrap()
}

#[test]
fn statuses_are_the_commands_own() {
    for status in [0u8, 1, 42, 126, 127, 255] {
        let done = run(&shell(&format!("exit {status}")));
        assert_eq!(done.outcome.end, End::Exited(status));
        assert_eq!(done.outcome.end.status(), status);
        let started = done.outcome.started.unwrap();
        assert!(started.init <= started.command);
    }
}

#[test]
fn signals_that_end_it_are_told() {
    for (name, signal) in [("SEGV", 11), ("KILL", 9), ("TERM", 15)] {
        let done = run(&shell(&format!("kill -{name} $$")));
        assert_eq!(done.outcome.end, End::Killed(signal));
        assert_eq!(done.outcome.end.status(), 128 + signal);
    }
}

#[test]
fn what_cannot_be_run_is_told_apart() {
    let not_run = |job: &Job| match run(job).outcome {
        Outcome {
            end: End::NotRun { failure, reason },
            started: None,
            ..
        } => (failure, reason),
        other => panic!("{other:?}"),
    };
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str, mode| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let absent = "cannot run no-such-program: no such file or directory";
    assert_eq!(
        not_run(&job(&["no-such-program"])),
        (Failure::NotFound, absent.into())
    );
    let (failure, reason) = not_run(&job(&[&file("text", "#!/bin/sh\n", 0o644)]));
    assert_eq!(failure, Failure::NotExecutable);
    assert!(reason.ends_with("permission denied"), "{reason}");
    let (failure, reason) = not_run(&job(&[&file("orphan", "#!/no/interpreter\n", 0o755)]));
    assert_eq!(failure, Failure::NotFound);
    assert!(
        reason.ends_with("what interprets or loads it is not there"),
        "{reason}"
    );
    let (failure, reason) = not_run(&job(&[&file("nothing", "x", 0o755)]));
    assert_eq!(failure, Failure::NotExecutable);
    assert!(
        reason.ends_with("its format is none that can be executed"),
        "{reason}"
    );
    assert_eq!(not_run(&job(&["/"])).0, Failure::NotExecutable);
    assert_eq!(not_run(&job(&[])).0, Failure::Setup);
    let (failure, reason) = not_run(&Job {
        user: b"no-such-user".to_vec(),
        ..job(&["true"])
    });
    assert_eq!(failure, Failure::Setup);
    assert_eq!(
        reason,
        "there is no user no-such-user in the image's /etc/passwd"
    );
}

#[test]
fn a_command_finds_its_environment_and_folder() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("a/b");
    let done = run(&Job {
        directory: directory.to_str().unwrap().into(),
        host_name: b"glass".to_vec(),
        ..shell("echo $GREETING $HOSTNAME; pwd; test -n \"$PATH\" && test -n \"$HOME\" && cat")
    });
    assert_eq!(done.outcome.end, End::Exited(0));
    let expected = format!("hello glass\n{}\n", directory.display());
    assert_eq!(done.text(), (expected.as_str(), ""));
}

#[test]
fn outputs_stay_apart_and_an_input_is_carried() {
    let job = Job {
        input: true,
        ..shell("echo out; echo err >&2; cat")
    };
    let (done, ()) = run_with(&job, |mut feed, _, _| {
        feed.write_all(b"in\0\xff\n").unwrap()
    });
    assert_eq!(done.output, b"out\nin\0\xff\n");
    assert_eq!(done.error, b"err\n");
    assert_eq!(done.outcome.end, End::Exited(0));
}

/// More than all buffers together, both ways at once.
#[test]
fn a_hundred_mebibytes_come_back_as_they_went() {
    const PIECES: u32 = 1600;
    let job = Job {
        input: true,
        ..job(&["cat"])
    };
    let (done, (sent, came)) = run_with(&job, |mut feed, output, _| {
        thread::scope(|scope| {
            let sender = scope.spawn(move || {
                let mut sum = Sha256::new();
                let mut piece = vec![0; 64 << 10];
                let mut state = 1u32;
                for _ in 0..PIECES {
                    for byte in &mut piece {
                        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        *byte = (state >> 24) as u8;
                    }
                    sum.update(&piece);
                    feed.write_all(&piece).unwrap();
                }
                sum.finalize()
            });
            let mut sum = Sha256::new();
            let mut piece = vec![0; 64 << 10];
            let mut length = 0;
            loop {
                let count = output.read(&mut piece).unwrap();
                if count == 0 {
                    break;
                }
                sum.update(&piece[..count]);
                length += count;
            }
            assert_eq!(length, PIECES as usize * (64 << 10));
            (sender.join().unwrap(), sum.finalize())
        })
    });
    assert_eq!(sent, came);
    assert_eq!(done.outcome.end, End::Exited(0));
}

/// A reader that has gone is seen by the command, as in a pipeline: it does not write for ever.
#[test]
fn an_output_that_nobody_reads_ends_its_writer() {
    let job = job(&["yes"]);
    let init = Init::start();
    let (mut output, end) = io::pipe().unwrap();
    let (_remote, commands) = session::remote().unwrap();
    let outcome = thread::scope(|scope| {
        let session = scope.spawn(|| {
            let streams = Streams {
                input: None,
                output: end.as_fd(),
                error: end.as_fd(),
            };
            init.run(&job, streams, &commands)
        });
        output.read_exact(&mut [0; 1000]).unwrap();
        drop(output);
        session.join().unwrap().unwrap()
    });
    assert_eq!(outcome.end, End::Killed(13));
}

/// A stalled output holds up neither the other one nor signals; an input that nobody reads does not either.
#[test]
fn streams_do_not_hold_each_other_up() {
    let job = Job {
        input: true,
        ..shell(
            "trap 'echo caught >&2; exit 7' TERM; (while :; do echo much; done) & echo ready >&2; while :; do wait; done",
        )
    };
    let init = Init::start();
    let (input, mut feed) = io::pipe().unwrap();
    let (mut output, output_end) = io::pipe().unwrap();
    let (mut error, error_end) = io::pipe().unwrap();
    let (remote, commands) = session::remote().unwrap();
    let outcome = thread::scope(|scope| {
        let session = scope.spawn(move || {
            let streams = Streams {
                input: Some(input.as_fd()),
                output: output_end.as_fd(),
                error: error_end.as_fd(),
            };
            init.run(&job, streams, &commands)
        });
        scope.spawn(move || while feed.write_all(&[0; 65536]).is_ok() {});
        expect(&mut error, "ready\n");
        remote.signal(15);
        expect(&mut error, "caught\n");
        // Only now: the status comes after all that was written.
        io::copy(&mut output, &mut io::sink()).unwrap();
        session.join().unwrap().unwrap()
    });
    assert_eq!(outcome.end, End::Exited(7));
}

#[test]
fn a_terminal_has_a_size_and_interrupts() {
    let job = Job {
        input: true,
        terminal: Some(WindowSize {
            rows: 24,
            columns: 80,
        }),
        ..shell(
            "stty size; trap 'stty size; seen=1' WINCH; echo ready; while [ -z $seen ]; do sleep 0.01; done
            read line; echo \"<$line>\"; exec sleep 1000",
        )
    };
    let (done, ()) = run_with(&job, |mut feed, output, remote| {
        assert!(expect(output, "ready").contains("24 80\r\n"));
        remote.resize(WindowSize {
            rows: 50,
            columns: 132,
        });
        expect(output, "50 132\r\n");
        feed.write_all(b"typed\n").unwrap();
        expect(output, "<typed>\r\n");
        feed.write_all(b"\x03").unwrap();
        expect(output, "^C");
    });
    assert_eq!(done.outcome.end, End::Killed(2));
    assert_eq!(done.error, b"");
}

#[test]
fn a_terminals_input_ends_as_if_typed() {
    let job = Job {
        input: true,
        terminal: Some(WindowSize::default()),
        ..job(&["cat"])
    };
    let (done, ()) = run_with(&job, |mut feed, output, _| {
        feed.write_all(b"line").unwrap();
        drop(feed);
        expect(output, "lineline");
    });
    assert_eq!(done.outcome.end, End::Exited(0));
}

#[test]
fn signals_reach_the_command() {
    let script = "trap 'echo caught; exit 3' USR1; echo ready; while :; do sleep 0.01; done";
    let (done, ()) = run_with(&shell(script), |_, output, remote| {
        expect(output, "ready\n");
        remote.signal(10);
        expect(output, "caught\n");
    });
    assert_eq!(done.outcome.end, End::Exited(3));
}

/// Orphans are the init's, which waits for them; those that are left at the end do not keep the session.
#[test]
fn orphans_are_reaped_and_do_not_outlive_the_command() {
    let script = "(sh -c 'echo $PPID $$' & ) ; setsid sleep 1000 & echo left $!; read line";
    let job = Job {
        input: true,
        ..shell(script)
    };
    let (done, (orphan, left)) = run_with(&job, |mut feed, output, _| {
        let text = expect(output, "left ");
        let mut rest = expect(output, "\n");
        if !text.contains('\n') {
            rest.push_str(&expect(output, "\n"));
        }
        let all = format!("{text}{rest}");
        let words: Vec<&str> = all.split_whitespace().collect();
        let at = words.iter().position(|it| *it == "left").unwrap();
        let left = words[at + 1].to_owned();
        let others: Vec<_> = (0..words.len())
            .filter(|it| *it != at && *it != at + 1)
            .collect();
        let orphan = words[others[1]].to_owned();
        // A zombie still has its folder.
        while fs::exists(format!("/proc/{orphan}")).unwrap() {
            thread::yield_now();
        }
        assert!(fs::exists(format!("/proc/{left}")).unwrap());
        feed.write_all(b"\n").unwrap();
        (orphan, left)
    });
    assert_eq!(done.outcome.end, End::Exited(0));
    assert_ne!(orphan, left);
    assert!(!fs::exists(format!("/proc/{left}")).unwrap());
}

/// A host that goes away takes the command with it.
#[test]
fn a_host_that_is_gone_ends_all() {
    let mut init = Init::start();
    let mut greeting = [0; 16];
    init.connection.read_exact(&mut greeting).unwrap();
    let mut bytes = Vec::new();
    let job = shell("setsid sleep 1000").encode();
    ampoule_image::protocol::Frame::Job(&job).encode(&mut bytes);
    init.connection.write_all(&bytes).unwrap();
    // It has started.
    init.connection.read_exact(&mut [0; 24]).unwrap();
    drop(init.connection);
    assert!(init.process.wait().unwrap().success());
}
