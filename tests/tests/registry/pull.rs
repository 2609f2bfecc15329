//! How pulls go on, wait and end.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use ampoule_store::Digest;

use crate::driver::{Vm, ampoule};
use crate::place::Place;
use crate::server::{Body, Image, Reply, Server, layer, noise};

pub(crate) fn what_image_means_is_said_where_it_is_nothing() {
    let place = Place::new();
    let end = place
        .run(&["run", "No Such", "--", "true"])
        .expect_code(125);
    let both = "\"No Such\" is neither a file or directory nor an image's name in a registry";
    end.expect_error(both);
    // What looks like a path is one.
    for path in ["./debian", "/no/such", "missing.tar"] {
        let end = place.run(&["run", path, "--", "true"]).expect_code(125);
        end.expect_error("cannot open").expect_error(path);
    }
    let end = place.run(&["run", "--pull", "never", "debian:12", "--", "true"]);
    let end = end.expect_code(125);
    let end = end.expect_error("docker.io/library/debian:12 is not in the cache");
    end.expect_error("ampoule image pull debian:12")
        .expect_error("no file or directory is called \"debian:12\"");
    // Nobody listens there.
    let end = place
        .run(&["run", "127.0.0.1:1/a", "--", "true"])
        .expect_code(125);
    let end = end.expect_error("cannot pull 127.0.0.1:1/a:latest: ");
    end.expect_error("connection refused")
        .expect_error("no file or directory is called");
}

/// An image whose second layer comes halfway and no further until `go` says so.
fn halting(go: &Arc<AtomicBool>) -> (Server, Digest, usize) {
    let layers = [layer("hello", b"x"), layer("noise", &noise(400_000))];
    let large = Digest::of(&layers[1]);
    let half = layers[1].len() / 2;
    let start = layers[1][..half].to_vec();
    let go = go.clone();
    let path = format!("/blobs/{large}");
    let server = Server::start(&Image::new(&layers), move |request| {
        let halts = request.path.ends_with(&path) && !go.load(Ordering::Relaxed);
        halts.then(|| Reply::new(200, Body::Silence(start.clone())))
    });
    (server, large, half)
}

/// Waits until that many bytes of a blob are there.
fn wait_for_part(place: &Place, digest: &Digest, size: u64) {
    let name = format!("{}.part", digest.hex());
    loop {
        let files = place.files();
        let part = files.iter().find(|path| path.ends_with(&name));
        if part.is_some_and(|path| path.metadata().is_ok_and(|it| it.len() >= size)) {
            return;
        }
        thread::yield_now();
    }
}

pub(crate) fn a_pull_that_is_killed_goes_on_where_it_was() {
    let place = Place::new();
    let go = Arc::<AtomicBool>::default();
    let (server, large, half) = halting(&go);
    let name = server.name("a/b:v1");
    for signal in [libc::SIGKILL, libc::SIGINT] {
        let vm = Vm::piped(place.command(&["image", "pull", &name]));
        wait_for_part(&place, &large, half as u64);
        vm.signal(signal);
        vm.end().expect_signal(signal);
        assert!(place.list().is_empty());
    }
    go.store(true, Ordering::Relaxed);
    let said = place.image(&["pull", &name]);
    assert!(
        said.starts_with(&format!("{name} is here: sha256:")),
        "{said}"
    );
    let asked = server.asked();
    let range = format!("bytes={half}-");
    let resumed = |path: &str| path.ends_with(&large.to_string());
    let last = asked
        .iter()
        .rfind(|request| resumed(&request.path))
        .unwrap();
    assert_eq!(last.headers.get("range"), Some(&range));
    let files = place.files();
    let is_left_over = |text: &str| text.contains(".part") || text.contains("/pulls/");
    assert!(
        !files
            .iter()
            .any(|path| is_left_over(&path.display().to_string())),
        "{files:?}"
    );
    // A part that is not what it should be is no reason to fail, and what nobody goes on with is pruned.
    let other = Place::new();
    go.store(false, Ordering::Relaxed);
    let vm = Vm::piped(other.command(&["image", "pull", &name]));
    wait_for_part(&other, &large, half as u64);
    vm.signal(libc::SIGKILL);
    vm.end().expect_signal(libc::SIGKILL);
    let files = other.files();
    let part = files
        .iter()
        .find(|path| path.extension().is_some_and(|it| it == "part"));
    std::fs::write(part.unwrap(), vec![0; half]).unwrap();
    go.store(true, Ordering::Relaxed);
    other.image(&["pull", &name]);
    assert_eq!(other.list().len(), 1);
    go.store(false, Ordering::Relaxed);
    let third = Place::new();
    let vm = Vm::piped(third.command(&["image", "pull", &name]));
    wait_for_part(&third, &large, half as u64);
    vm.signal(libc::SIGKILL);
    vm.end().expect_signal(libc::SIGKILL);
    let pruned = loop {
        // The program that pulls ends with the one that was killed, but not at the same moment.
        let said = third.image(&["prune"]);
        if third.files().is_empty() {
            break said;
        }
    };
    assert!(pruned.ends_with(" free\n"), "{pruned}");
}

pub(crate) fn two_at_once_fetch_once() {
    let place = Place::new();
    let image = Image::new(&[layer("hello", b"x"), layer("noise", &noise(200_000))]);
    let server = Server::start(&image, |_| None);
    let name = server.name("a/b:v1");
    let barrier = Barrier::new(4);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                barrier.wait();
                place.image(&["pull", &name]);
            });
        }
    });
    assert_eq!(server.blobs_asked(), 3);
    assert_eq!(place.list().len(), 1);
    // Of the same image by another name only the manifest is fetched, of the same name only its digest.
    let before = server.asked().len();
    let digest = Digest::of(image.text().as_bytes());
    place.image(&["pull", &server.name(&format!("a/b@{digest}"))]);
    place.image(&["pull", &name]);
    assert_eq!(server.blobs_asked(), 3);
    let methods: Vec<String> = server.asked()[before..]
        .iter()
        .filter(|request| request.path.contains("/manifests/"))
        .map(|request| request.method.clone())
        .collect();
    assert_eq!(methods, ["GET", "HEAD"]);
}

pub(crate) fn a_token_is_asked_for_where_the_registry_wants_one() {
    let place = Place::new();
    let image = Image::new(&[layer("hello", b"x")]);
    let server = Server::start(&image, |request| {
        let bearer = request.headers.get("authorization");
        if request.path.starts_with("/token?") {
            let is_ours =
                bearer.is_none() && request.path.contains("scope=repository%3Aa%2Fb%3Apull");
            return Some(match is_ours {
                true => Reply::whole(r#"{"token":"opaque"}"#),
                false => Reply::new(400, Body::Whole(Vec::new())),
            });
        }
        if bearer.is_some_and(|it| it == "Bearer opaque") {
            return None;
        }
        let host = &request.headers["host"];
        let challenge = format!(r#"Bearer realm="http://{host}/token",service="test""#);
        let refused = Reply::new(401, Body::Whole(Vec::new()));
        Some(refused.header("www-authenticate", &challenge))
    });
    place.image(&["pull", &server.name("a/b:v1")]);
    assert_eq!(place.list().len(), 1);
}

pub(crate) fn a_program_that_pulls_ends_with_the_one_that_runs_it() {
    let place = Place::new();
    let go = Arc::<AtomicBool>::default();
    let (server, large, half) = halting(&go);
    let name = server.name("a/b:v1");
    // In a session of its own, whose processes can be counted.
    let mut command = place.command(&["image", "pull", &name]);
    command.stdin(Stdio::null()).process_group(0);
    let mut child = command.spawn().unwrap();
    wait_for_part(&place, &large, half as u64);
    child.kill().unwrap();
    child.wait().unwrap();
    let group = child.id().cast_signed();
    // SAFETY: takes no pointer; signal 0 only asks whether anybody is there.
    while unsafe { libc::kill(-group, 0) } == 0 {
        thread::yield_now();
    }
    // Started by a person, or too late, it says so.
    let helper = ampoule().with_file_name("ampoule-pull");
    let mut command = Command::new(helper);
    command.args(["--store", "/nowhere", "--parent", "1", "debian"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("ampoule has ended"), "{said}");
}
