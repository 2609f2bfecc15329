//! The agent by itself, at the other end of a socket pair; what it runs are this machine's own programs.

use super::*;
use crate::client::run_captured;

fn spec(arguments: &[&str]) -> Spec {
    Spec {
        arguments: arguments.iter().map(Into::into).collect(),
        environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
        folder: "/".into(),
        terminal: None,
        refresh: false,
    }
}

/// Runs a shell script; how it ended, its output and its errors.
fn shell(broker: &Broker, script: &str) -> (Exit, Vec<u8>, Vec<u8>) {
    let (mut output, mut error) = (Vec::new(), Vec::new());
    let mut take = |stream: Stream, bytes: &[u8]| {
        match stream {
            Stream::Error => error.extend_from_slice(bytes),
            _ => output.extend_from_slice(bytes),
        }
        Ok(())
    };
    let spec = spec(&["sh", "-c", script]);
    let exit = run_captured(broker.connect().unwrap(), &spec, &mut take).unwrap();
    (exit, output, error)
}

/// A channel without a client's comfort.
struct Raw(UnixStream);

impl Raw {
    fn open(broker: &Broker, spec: Spec) -> Self {
        let mut raw = Self(broker.connect().unwrap());
        raw.send(&Frame::Open(Box::new(spec)));
        raw
    }

    fn send(&mut self, frame: &Frame) {
        frame.write(7, &mut self.0).unwrap();
    }

    fn receive(&mut self) -> Frame {
        let (channel, frame) = Frame::read(&mut self.0).unwrap().expect("an open socket");
        assert_eq!(channel, 7);
        frame
    }

    /// Everything until the command's end, with credit for it; and that end.
    fn rest(&mut self) -> (Vec<u8>, Frame) {
        let mut output = Vec::new();
        loop {
            match self.receive() {
                Frame::Data(stream, bytes) => {
                    self.send(&Frame::Credit(stream, bytes.len() as u32));
                    output.extend(bytes);
                }
                last @ (Frame::Exit(_) | Frame::Refused(_)) => return (output, last),
                _ => (),
            }
        }
    }
}

#[test]
fn streams_and_status_come_back() {
    let (exit, output, error) = shell(&local().unwrap(), "echo out; echo err >&2; exit 7");
    assert_eq!(exit, Exit::Code(7));
    assert_eq!(output, b"out\n");
    assert_eq!(error, b"err\n");
}

#[test]
fn a_signals_end_is_told_from_a_status() {
    let (exit, ..) = shell(&local().unwrap(), "kill -TERM $$");
    assert_eq!(exit, Exit::Signal(15));
    assert_eq!(exit.status(), 143);
}

#[test]
fn more_output_than_the_window_comes_whole() {
    let (exit, output, _) = shell(&local().unwrap(), "seq 1 200000");
    assert_eq!(exit, Exit::Code(0));
    let expected: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    assert!(output == expected.as_bytes(), "{} bytes", output.len());
}

#[test]
fn input_is_passed_on_as_it_is_and_ends() {
    let mut raw = Raw::open(&local().unwrap(), spec(&["cat"]));
    let bytes: Vec<u8> = (0..=255).collect();
    raw.send(&Frame::Data(Stream::Input, bytes.clone()));
    raw.send(&Frame::End(Stream::Input));
    assert_eq!(raw.rest(), (bytes, Frame::Exit(Exit::Code(0))));
}

#[test]
fn an_unread_command_holds_up_no_other() {
    let broker = local().unwrap();
    let mut stalled = Raw::open(&broker, spec(&["yes"]));
    assert!(matches!(stalled.receive(), Frame::Data(Stream::Output, _)));
    let (exit, output, _) = shell(&broker, "echo other");
    assert_eq!((exit, output.as_slice()), (Exit::Code(0), &b"other\n"[..]));
    stalled.send(&Frame::Signal(9));
    assert_eq!(stalled.rest().1, Frame::Exit(Exit::Signal(9)));
}

#[test]
fn output_nobody_wants_ends_the_command_as_a_closed_pipe_does() {
    let mut raw = Raw::open(&local().unwrap(), spec(&["yes"]));
    assert!(matches!(raw.receive(), Frame::Data(Stream::Output, _)));
    raw.send(&Frame::End(Stream::Output));
    assert_eq!(raw.rest().1, Frame::Exit(Exit::Signal(13)));
}

#[test]
fn what_is_left_running_does_not_hold_the_command() {
    let (exit, output, _) = shell(&local().unwrap(), "sleep 1000 & echo $!");
    assert_eq!(exit, Exit::Code(0));
    let pid = String::from_utf8(output).unwrap();
    assert!(
        Command::new("kill")
            .arg(pid.trim())
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn a_client_that_leaves_takes_its_command_along() {
    let broker = local().unwrap();
    let script = "trap '' HUP; echo $$; exec sleep 1000";
    let mut raw = Raw::open(&broker, spec(&["sh", "-c", script]));
    let Frame::Data(Stream::Output, pid) = raw.receive() else {
        panic!("no output");
    };
    drop(raw);
    let pid: i32 = String::from_utf8(pid).unwrap().trim().parse().unwrap();
    // The agent kills it some time after it ignored the hang-up.
    let pid = Pid::from_raw(pid).unwrap();
    while rustix::process::test_kill_process(pid).is_ok() {
        thread::yield_now();
    }
}

#[test]
fn what_cannot_run_is_named() {
    let broker = local().unwrap();
    let refused = |spec: Spec| match Raw::open(&broker, spec).rest().1 {
        Frame::Refused(reason) => reason,
        other => panic!("{other:?}"),
    };
    let reason = refused(spec(&["/no/such/program"]));
    assert!(reason.starts_with("cannot run /no/such/program: "));
    let mut elsewhere = spec(&["true"]);
    elsewhere.folder = "/no/such/folder".into();
    let reason = refused(elsewhere);
    assert_eq!(reason, "no folder /no/such/folder in the lab host");
    assert_eq!(refused(spec(&[])), "no command given");
}

#[test]
fn a_terminal_has_a_size_makes_signals_and_tells_all() {
    let mut spec = spec(&["sh", "-c", "stty size; trap 'echo caught; exit 3' INT; cat"]);
    spec.terminal = Some(WindowSize {
        columns: 123,
        rows: 45,
    });
    let mut raw = Raw::open(&local().unwrap(), spec);
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n") {
        if let Frame::Data(Stream::Output, bytes) = raw.receive() {
            seen.extend(bytes);
        }
    }
    assert_eq!(seen, b"45 123\r\n");
    // cat answers, so it is there, and the trap is set.
    raw.send(&Frame::Data(Stream::Input, b"x\n".to_vec()));
    while !seen.ends_with(b"x\r\nx\r\n") {
        if let Frame::Data(Stream::Output, bytes) = raw.receive() {
            seen.extend(bytes);
        }
    }
    raw.send(&Frame::Data(Stream::Input, b"\x03".to_vec()));
    let (output, last) = raw.rest();
    assert_eq!(last, Frame::Exit(Exit::Code(3)));
    assert!(output.ends_with(b"caught\r\n"), "{output:?}");
}
