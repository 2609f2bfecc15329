//! The cache: shared by processes, and none the worse for one that dies.

use std::fs;
use std::process::Command;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use ampoule_store::{Error, Limits, Phase, Removal, Source, Store};

use crate::support::{Bench, Layer, Tar, docker};

/// What makes a process of this program a helper.
const HELPER: &str = "AMPOULE_STORE_TEST_HELPER";

fn image(bench: &Bench) -> std::path::PathBuf {
    bench.put(
        "image.tar",
        docker(&[Layer::plain(Tar::new().file("a", vec![1; 100_000]))]).done(),
    )
}

#[test]
fn an_image_is_made_once_listed_and_removed() {
    let bench = Bench::new();
    let path = image(&bench);
    let made = bench.get(&path, None).unwrap();
    let found = bench.get(&path, None).unwrap();
    assert!(!made.was_cached() && found.was_cached());
    assert_eq!(made.path(), found.path());
    let listed = bench.store.list().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].name.as_deref(), Some("a/b:c"));
    assert_eq!(listed[0].size, fs::metadata(made.path()).unwrap().len());
    let digest = made.digest().unwrap();
    for name in [&digest.to_string()[..], &digest.hex()[..12], "a/b:c"] {
        assert_eq!(bench.store.inspect(name).unwrap().digest, digest);
    }
    for name in ["", "abc", "a/b"] {
        assert!(matches!(
            bench.store.inspect(name),
            Err(Error::NotOne { found: 0, .. })
        ));
    }
    // Not while it is being used.
    assert_eq!(bench.store.remove(&digest).unwrap(), Removal::InUse);
    assert_eq!(bench.store.prune(Duration::ZERO).unwrap().in_use, [digest]);
    drop(made);
    assert_eq!(bench.store.remove(&digest).unwrap(), Removal::InUse);
    drop(found);
    assert!(
        bench
            .store
            .prune(Duration::from_secs(3600))
            .unwrap()
            .removed
            .is_empty()
    );
    // A program that another test is just starting has the lock, too, until it is executed.
    let deadline = Instant::now() + Duration::from_secs(60);
    let removal = loop {
        match bench.store.remove(&digest).unwrap() {
            Removal::InUse if Instant::now() < deadline => std::thread::yield_now(),
            removal => break removal,
        }
    };
    assert!(matches!(removal, Removal::Removed { size } if size > 100_000));
    assert_eq!(bench.store.remove(&digest).unwrap(), Removal::Absent);
    assert_eq!(bench.cached(), [""; 0]);
}

#[test]
fn prune_takes_what_was_not_used_for_long() {
    let bench = Bench::new();
    let path = image(&bench);
    let digest = bench.get(&path, None).unwrap().digest().unwrap();
    let description = bench
        .store
        .folder()
        .join(format!("sha256-{}.json", digest.hex()));
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(7200);
    fs::File::open(&description)
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    let pruned = bench.store.prune(Duration::from_secs(3600)).unwrap();
    assert_eq!(pruned.removed, [digest]);
    assert!(pruned.bytes > 100_000);
    // A use counts.
    drop(bench.get(&path, None).unwrap());
    fs::File::open(&description)
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    assert!(bench.get(&path, None).unwrap().was_cached());
    assert!(
        bench
            .store
            .prune(Duration::from_secs(3600))
            .unwrap()
            .removed
            .is_empty()
    );
}

#[test]
fn a_damaged_entry_is_made_anew() {
    let bench = Bench::new();
    let path = image(&bench);
    let made = bench.get(&path, None).unwrap();
    let bytes = fs::read(made.path()).unwrap();
    drop(made);
    let file = |extension: &str| {
        let found = bench
            .cached()
            .into_iter()
            .find(|name| name.ends_with(extension));
        bench.store.folder().join(found.unwrap())
    };
    for damage in [
        &|| fs::write(file("json"), "{").unwrap(),
        &|| fs::remove_file(file("json")).unwrap(),
        &|| fs::write(file("erofs"), "short").unwrap(),
    ] as [&dyn Fn(); 3]
    {
        damage();
        let image = bench.get(&path, None).unwrap();
        assert!(!image.was_cached());
        assert!(fs::read(image.path()).unwrap() == bytes);
    }
}

#[test]
fn eight_at_once_make_it_once() {
    let bench = Bench::new();
    let path = image(&bench);
    let barrier = Barrier::new(8);
    let made: usize = thread::scope(|scope| {
        let get = || {
            let source = Source::open(&path, None).unwrap();
            barrier.wait();
            let image = bench
                .store
                .get(&source, Limits::default(), &mut |_| {})
                .unwrap();
            usize::from(!image.was_cached())
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(get)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert_eq!(made, 1);
}

/// In a process of its own, which kills itself in the middle.
#[test]
fn helper_that_dies() {
    let Some(arguments) = std::env::var_os(HELPER) else {
        return;
    };
    let arguments = arguments.into_string().unwrap();
    let (folder, source) = arguments.split_once('|').unwrap();
    let store = Store::open(folder).unwrap();
    let source = Source::open(source, None).unwrap();
    let die = &mut |progress: ampoule_store::Progress| {
        if progress.phase == Phase::Reading && progress.done > 50_000 {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
                .unwrap();
        }
    };
    let _ = store.get(&source, Limits::default(), die);
    unreachable!("killed before");
}

#[test]
fn what_a_killed_process_leaves_is_removed_or_replaced() {
    use std::os::unix::process::ExitStatusExt;
    let bench = Bench::new();
    let path = image(&bench);
    let kill = || {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "cache::helper_that_dies"])
            .env(
                HELPER,
                format!("{}|{}", bench.store.folder().display(), path.display()),
            )
            .output()
            .unwrap()
            .status;
        assert_eq!(status.signal(), Some(9));
        assert!(bench.cached().iter().any(|name| name.ends_with(".part")));
    };
    kill();
    assert!(bench.store.list().unwrap().is_empty());
    assert_eq!(bench.cached(), [""; 0]);
    kill();
    let image = bench.get(&path, None).unwrap();
    assert!(!image.was_cached());
    assert!(!bench.cached().iter().any(|name| name.ends_with(".part")));
}
