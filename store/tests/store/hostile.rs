//! Archives made to do harm: refused, with the entry named, and nothing is left.

use ampoule_store::{Error, FileSystem, Limits, Source, SourceKind};
use tar::EntryType;

use crate::support::{Bench, Layer, Tar, chain, docker, gzip, refusal, zstd};

#[test]
fn names_that_lead_out_are_refused() {
    let of = |name: &str, why: &str| format!("entry \"{name}\" of \"root.tar\" is refused: {why}");
    let parent = "its name has a component \"..\"";
    for name in ["../x", "/../x", "a/../../x", "..", "a/.."] {
        assert_eq!(refusal(Tar::new().file(name, "x").done()), of(name, parent));
    }
    let base = || {
        Tar::new()
            .file("f", "")
            .symlink("loop", "loop")
            .symlink("no", "/nothing")
    };
    assert_eq!(refusal(base().link("l", "../f").done()), of("l", parent));
    let missing = |target: &str| format!("it is a hard link to \"{target}\", which is not a file");
    assert_eq!(
        refusal(base().link("l", "g").done()),
        of("l", &missing("g"))
    );
    assert_eq!(
        refusal(base().directory("d").link("l", "d").done()),
        of("l", &missing("d"))
    );
    assert_eq!(
        refusal(base().file("f/x", "").done()),
        of("f/x", "a part of its name is not a directory")
    );
    let links = "its name leads through too many symbolic links";
    assert_eq!(
        refusal(base().file("loop/x", "").done()),
        of("loop/x", links)
    );
    let dangling = "its name leads through a symbolic link to nothing";
    assert_eq!(
        refusal(base().file("no/x", "").done()),
        of("no/x", dangling)
    );
    assert_eq!(
        refusal(base().symlink("s", "").done()),
        of("s", "its name is empty or contains a zero byte")
    );
    let name = "n".repeat(256);
    let long = Tar::new().pax(&[("path", name.as_bytes())]).file("x", "");
    assert_eq!(
        refusal(long.done()),
        of(&name, "its name or target is too long")
    );
}

#[test]
fn entries_that_come_twice_are_refused_except_directories() {
    let why = "there is one of this name before it";
    for twice in [
        Tar::new().file("a", "x").file("./a", "y"),
        Tar::new().file("a", "x").directory("a"),
        Tar::new().directory("a").symlink("a", "/"),
        Tar::new().file("b", "x").link("a", "b").link("a", "b"),
        Tar::new().file("a", "x").link("a", "a"),
    ] {
        assert!(refusal(twice.done()).ends_with(why));
    }
    let files = crate::support::files(Tar::new().directory("a").file("a/b", "x").directory("a"));
    assert_eq!(files["a/b"].text(), "x");
}

/// Damages a header.
type Change = fn(&mut tar::Header);

#[test]
fn damaged_entries_are_refused() {
    let header = |change: Change| {
        let mut header = Tar::header(EntryType::Regular);
        change(&mut header);
        Tar::new().file("good", "").raw(header, "bad", b"").done()
    };
    let bad = "entry \"bad\" of \"root.tar\" is refused";
    let cases: [(Change, &str); 4] = [
        (
            |h| h.set_entry_type(EntryType::new(b'D')),
            "its type 0x44 is not known",
        ),
        (|h| h.set_uid(1 << 33), "its header is damaged: user"),
        (
            |h| h.as_old_mut().mode.fill(b'x'),
            "its header is damaged: mode",
        ),
        (
            |h| h.as_old_mut().mtime.fill(b'9'),
            "its header is damaged: time",
        ),
    ];
    for (change, why) in cases {
        assert_eq!(refusal(header(change)), format!("{bad}: {why}"));
    }
    let device = Tar::new().device(EntryType::Char, "bad", 1 << 12, 0).done();
    assert_eq!(
        refusal(device),
        format!("{bad}: its device number is out of range")
    );
    let sparse = Tar::new().pax(&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"8,4")]);
    assert_eq!(
        refusal(sparse.file("bad", "abcd").done()),
        format!("{bad}: its map of holes is damaged")
    );
    let mut damaged = Tar::new().file("bad", "").done();
    damaged[0] = b'B';
    let first = Tar::new().file("good", "").done();
    let damaged = [&first[..512], &damaged].concat();
    assert_eq!(
        refusal(damaged),
        "entry \"Bad\" of \"root.tar\" is refused: its header is damaged: checksum"
    );
    let value = vec![0; 65536];
    let large = Tar::new()
        .pax(&[("SCHILY.xattr.user.x", &value)])
        .file("bad", "")
        .done();
    assert_eq!(
        refusal(large),
        format!("{bad}: its extended attributes are too large")
    );
}

#[test]
fn truncated_archives_are_refused_at_every_length() {
    let archive = Tar::new()
        .file("a", vec![1; 600])
        .pax(&[("path", b"b")])
        .file("x", "y")
        .done();
    // The second block of zeros is for tapes.
    for length in (512..archive.len() - 1024).step_by(64) {
        let error = refusal(&archive[..length]);
        assert!(
            error.starts_with("cannot read \"root.tar\""),
            "{length}: {error}"
        );
    }
    for packed in [gzip(&archive), zstd(&archive)] {
        for length in 4..packed.len() {
            let error = refusal(&packed[..length]);
            assert!(
                error.starts_with("cannot read \"root.tar\""),
                "{length}: {error}"
            );
        }
    }
}

#[test]
fn bombs_end_at_the_limit() {
    let zeros = gzip(&Tar::new().file("zeros", vec![0; 8 << 20]).done());
    let many = (0..2000)
        .fold(Tar::new(), |tar, n| tar.file(&n.to_string(), ""))
        .done();
    let value = vec![b'x'; 60_000];
    let fat = (0..20).fold(Tar::new(), |tar, n| {
        tar.pax(&[("SCHILY.xattr.user.x", &value)])
            .file(&n.to_string(), "")
    });
    let mut limits = Limits::default();
    limits.max_image_size = 4 << 20;
    limits.max_entries = 1000;
    limits.max_metadata = 1 << 20;
    for (archive, unit) in [
        (zeros, "bytes"),
        (many, "entries"),
        (fat.done(), "bytes of names and attributes"),
    ] {
        let bench = Bench::new();
        let source = Source::open(bench.put("root.tar", archive), None).unwrap();
        let error = bench.store.get(&source, limits, &mut |_| {}).unwrap_err();
        assert!(
            matches!(error, Error::TooLarge { unit: found, .. } if found == unit),
            "{error}"
        );
        assert!(!bench.cached().iter().any(|name| name.ends_with(".part")));
    }
    let header = vec![b' '; (1 << 20) + 1];
    let extended = Tar::new()
        .raw(Tar::header(EntryType::XHeader), "pax", &header)
        .file("a", "");
    assert!(refusal(extended.done()).contains("is too long"));
}

#[test]
fn directories_nested_too_deep_are_refused() {
    let name = vec!["d"; 1900].join("/");
    let link = format!("{name}/l");
    let archive = Tar::new()
        .pax(&[("path", name.as_bytes())])
        .directory("x")
        .pax(&[("linkpath", name.as_bytes())])
        .symlink("s", "x");
    let deep = archive.pax(&[("path", format!("s/{}", vec!["e"; 300].join("/")).as_bytes())]);
    assert!(refusal(deep.file("x", "").done()).ends_with("it is nested too deep"));
    assert!(link.len() < 4096);
}

#[test]
fn a_layer_may_not_whiteout_its_way_out() {
    for name in [".wh..", ".wh...", ".wh.", "a/.wh.."] {
        let bench = Bench::new();
        let layer = Layer::plain(Tar::new().file("a/x", "").file(name, ""));
        let error = bench
            .get(&bench.put("i.tar", docker(&[layer]).done()), None)
            .unwrap_err();
        assert_eq!(
            chain(&error),
            format!(
                "entry \"{name}\" of layer 1 of 1 is refused: its name is empty or contains a zero byte"
            )
        );
    }
}

#[test]
fn files_are_told_by_content_and_others_refused() {
    let bench = Bench::new();
    let mut start = vec![0; 4096];
    let kind = |path| Source::open(path, None).map(|source| source.kind());
    start[1024..1028].copy_from_slice(&0xe0f5_e1e2u32.to_le_bytes());
    let erofs = kind(bench.put("a", &start)).unwrap();
    assert_eq!(erofs, SourceKind::FileSystem(FileSystem::Erofs));
    start[1024..1028].fill(0);
    start[1080..1082].copy_from_slice(&[0x53, 0xef]);
    let path = bench.put("b", &start);
    let image = bench.get(&path, None).unwrap();
    assert_eq!((image.path(), image.file_system().name()), (&*path, "ext4"));
    assert_eq!(
        kind(bench.put("c", b"hsqs")).unwrap(),
        SourceKind::FileSystem(FileSystem::Squashfs)
    );
    for other in [&b""[..], b"x", b"#!/bin/sh\n", &[0x7f; 3000], &[0; 600]] {
        let error = kind(bench.put("d", other)).unwrap_err();
        assert!(matches!(error, Error::Unrecognised { .. }), "{error}");
    }
    // An archive without entries is an empty root.
    assert_eq!(bench.files(&bench.put("e", [0; 1024])).len(), 1);
    let pipe = bench.folder.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    assert!(matches!(kind(pipe), Err(Error::Io { .. })));
}
