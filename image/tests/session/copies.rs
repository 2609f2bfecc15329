//! Files before a command and after it. The init of these tests has the file system of the host, as it is no machine's.

use std::path::Path;

use ampoule_image::copy::{CopyInto, CopyOutOf};
use ampoule_image::protocol::{Frame, MAX_PAYLOAD, Started, Stream, VERSION, WINDOW};

use super::*;

fn into(host: &Path, guest: &Path) -> CopyInto {
    CopyInto {
        host: host.to_owned(),
        guest: guest.to_str().unwrap().into(),
    }
}

fn out_of(guest: &Path, host: &Path) -> CopyOutOf {
    CopyOutOf {
        guest: guest.to_str().unwrap().into(),
        host: host.to_owned(),
    }
}

/// Runs a job with files; its output is not looked at.
fn run_copying(job: &Job, copies: &Copies) -> Result<Outcome, SessionError> {
    let init = Init::start();
    let null = fs::File::open("/dev/null").unwrap();
    let (_remote, commands) = session::remote().unwrap();
    let streams = Streams {
        input: None,
        output: null.as_fd(),
        error: null.as_fd(),
    };
    init.run_copying(job, copies, streams, &commands)
}

/// More than all windows and buffers, there and back, with all that a command may do to end.
#[test]
fn files_come_before_the_command_and_go_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut state = 1u32;
    let bytes = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    let bytes: Vec<u8> = Iterator::take(bytes, 20 << 20).collect();
    fs::create_dir(path("from")).unwrap();
    fs::write(path("from/large"), &bytes).unwrap();
    fs::write(
        path("program"),
        "#!/bin/sh\nmv new/dir/from/large made\n$1\n",
    )
    .unwrap();
    fs::set_permissions(path("program"), Permissions::from_mode(0o755)).unwrap();
    for (end, expected) in [
        ("exit 0", End::Exited(0)),
        ("exit 42", End::Exited(42)),
        ("kill -9 $$", End::Killed(9)),
    ] {
        let copies = Copies {
            into: vec![
                into(&path("from"), &path("new/dir/")),
                into(&path("program"), &path("new/run")),
            ],
            out: vec![out_of(&path("made"), &path("back"))],
            ..Copies::default()
        };
        copies.check().unwrap();
        let job = Job {
            directory: folder.path().to_str().unwrap().into(),
            ..shell(&format!(
                "mv new/dir/from/large made; test -x new/run || exit 9; chmod 6751 made; {end}"
            ))
        };
        let outcome = run_copying(&job, &copies).unwrap();
        assert_eq!(outcome.end, expected);
        assert_eq!(outcome.not_copied, [""; 0]);
        assert!(fs::read(path("back")).unwrap() == bytes);
        let mode = fs::metadata(path("back")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o751);
        fs::remove_file(path("back")).unwrap();
        fs::remove_file(path("made")).unwrap();
        fs::remove_dir_all(path("new")).unwrap();
    }
}

/// An input that is there already waits until the files have been sent.
#[test]
fn an_input_waits_for_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let large = folder.path().join("large");
    fs::write(&large, vec![1; 3 << 20]).unwrap();
    let to = folder.path().join("to");
    let job = Job {
        input: true,
        ..job(&["sh", "-c", "cat - \"$0\" | sha256sum", to.to_str().unwrap()])
    };
    let copies = Copies {
        into: vec![into(&large, &to)],
        ..Copies::default()
    };
    let init = Init::start();
    let (input, mut feed) = io::pipe().unwrap();
    let (mut output, output_end) = io::pipe().unwrap();
    let (remote, commands) = session::remote().unwrap();
    // Nothing that is said before the command starts is lost.
    remote.resize(WindowSize::default());
    feed.write_all(b"input").unwrap();
    drop(feed);
    let streams = Streams {
        input: Some(input.as_fd()),
        output: output_end.as_fd(),
        error: output_end.as_fd(),
    };
    let outcome = init.run_copying(&job, &copies, streams, &commands).unwrap();
    drop(output_end);
    assert_eq!(outcome.end, End::Exited(0));
    let mut said = String::new();
    output.read_to_string(&mut said).unwrap();
    let mut sum = Sha256::new();
    sum.update(b"input");
    sum.update(vec![1; 3 << 20]);
    let sum: String = sum
        .finalize()
        .iter()
        .map(|it| format!("{it:02x}"))
        .collect();
    assert!(said.starts_with(&sum), "{said}");
}

#[test]
fn what_cannot_be_copied_is_told_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("file"), "content").unwrap();
    // Out: the others come.
    let copies = Copies {
        out: vec![
            out_of(&path("missing"), &path("x")),
            out_of(&path("file"), &path("y")),
            out_of(Path::new("/dev/null"), &path("z")),
        ],
        ..Copies::default()
    };
    let outcome = run_copying(&shell("exit 3"), &copies).unwrap();
    assert_eq!(outcome.end, End::Exited(3));
    let told = [
        format!("{}: no such file or directory", path("missing").display()),
        "/dev/null: it is neither a file nor a folder".to_owned(),
    ];
    assert_eq!(outcome.not_copied, told);
    assert_eq!(fs::read(path("y")).unwrap(), b"content");
    // Out: too much.
    let copies = Copies {
        out: vec![out_of(&path("file"), &path("small"))],
        max_size: 6,
        ..Copies::default()
    };
    let outcome = run_copying(&shell("exit 0"), &copies).unwrap();
    assert_eq!(outcome.end, End::Exited(0));
    let told = format!("{}: more than 6 bytes in all", path("small").display());
    assert_eq!(outcome.not_copied, [told]);
    assert!(!path("small").exists());
    // Into: what the guest cannot write.
    let copies = Copies {
        into: vec![into(&path("file"), &path("file/x"))],
        ..Copies::default()
    };
    let outcome = run_copying(&shell("exit 0"), &copies).unwrap();
    let End::NotRun { failure, reason } = outcome.end else {
        panic!("{outcome:?}");
    };
    assert_eq!(failure, Failure::Setup);
    assert!(reason.contains("cannot copy into the guest: "), "{reason}");
    assert!(reason.contains("file/x: "), "{reason}");
    // Into: what the host cannot read.
    let copies = Copies {
        into: vec![into(&path("missing"), &path("x"))],
        ..Copies::default()
    };
    let error = run_copying(&shell("exit 0"), &copies).unwrap_err();
    let told = format!(
        "cannot copy into the guest: {}: no such file or directory",
        path("missing").display()
    );
    assert_eq!(error.to_string(), told);
}

/// What becomes of a session whose guest says this, and no more.
fn told(copies: &Copies, frames: &[Frame<'_>]) -> Result<Outcome, SessionError> {
    let mut bytes = Vec::new();
    let hello = Frame::Hello { version: VERSION };
    let started = Frame::Started(Started::default());
    for frame in [&[hello, started], frames].concat() {
        frame.encode(&mut bytes);
    }
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let null = fs::File::open("/dev/null").unwrap();
    let (_remote, commands) = session::remote().unwrap();
    let streams = Streams {
        input: None,
        output: null.as_fd(),
        error: null.as_fd(),
    };
    thread::scope(|scope| {
        scope.spawn(move || {
            let _ = theirs.write_all(&bytes);
            let _ = theirs.shutdown(std::net::Shutdown::Write);
            let _ = io::copy(&mut theirs, &mut io::sink());
        });
        session::run_copying(ours, &Job::default(), copies, streams, &commands)
    })
}

#[test]
fn a_hostile_guest_sends_no_files_but_those_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let asked = Copies {
        out: vec![out_of(Path::new("/x"), &folder.path().join("x"))],
        ..Copies::default()
    };
    let data = Frame::Data(Stream::CopyOut, b"no record");
    // Nobody asked for files, or sends any that there could be room for.
    for frames in [
        &[data][..],
        &[Frame::Data(Stream::CopyIn, b"x")],
        &[Frame::Credit(Stream::CopyIn, 1)],
    ] {
        let error = told(&Copies::default(), frames).unwrap_err();
        assert!(matches!(error, SessionError::Protocol(_)), "{error}");
    }
    // What is no stream of files is not believed, but does not change how the command ended.
    let exited = Frame::Exited(7);
    for frames in [
        &[data, exited][..],
        &[data, data, Frame::Close(Stream::CopyOut), exited],
        &[Frame::Close(Stream::CopyOut), exited],
        &[exited],
    ] {
        let outcome = told(&asked, frames).unwrap();
        assert_eq!(outcome.end, End::Exited(7));
        assert_eq!(outcome.not_copied.len(), 1, "{:?}", outcome.not_copied);
    }
    // No more of it is kept, or heard, than a window.
    let piece = [0xff; MAX_PAYLOAD];
    let flood = vec![Frame::Data(Stream::CopyOut, &piece); WINDOW as usize / MAX_PAYLOAD + 1];
    let error = told(&asked, &flood).unwrap_err();
    assert!(matches!(
        error,
        SessionError::Protocol("more than a window")
    ));
    // A text of the guest's drives no terminal.
    let mut failed = vec![8, 5, 0, 0, 0];
    failed.extend(b"\x1b[2Ja");
    failed.extend([9, 0, 0, 0, 0]);
    let failed = [&[1, 0, 0, 0, 0], &failed[..]].concat();
    let outcome = told(&asked, &[Frame::Data(Stream::CopyOut, &failed), exited]).unwrap();
    assert_eq!(outcome.not_copied, ["\u{fffd}[2Ja"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
