//! Trees there and back, and what hostile senders send.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::tree::{MAX_DEPTH, Record, Time};

const TIME: Time = Time {
    seconds: 1_000_000_000,
    nanoseconds: 123_456_789,
};

/// A folder `out` that things are copied to, and what nobody may touch beside it.
struct Target {
    folder: TempDir,
    limits: Limits,
}

impl Target {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("out")).unwrap();
        fs::create_dir(folder.path().join("beside")).unwrap();
        fs::write(folder.path().join("beside/secret"), "secret").unwrap();
        Self {
            folder,
            limits: Limits {
                bytes: 1 << 20,
                entries: 1000,
                mode: 0o777,
            },
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// As the item `x`, which goes into `out`.
    fn unpack(&self, bytes: &[u8]) -> Result<Unpack<Host>, String> {
        let place = Place {
            path: self.path("out").into_os_string().into_vec(),
            name: b"x".to_vec(),
            is_contents: false,
        };
        let mut unpack = Unpack::new(Host, vec![place], self.limits, 0);
        unpack.push(bytes)?;
        match unpack.is_complete() {
            true => Ok(unpack),
            false => Err("not complete".into()),
        }
    }

    /// What is refused, without a trace outside of `out`, and without an incomplete file in it.
    fn refusal(&self, records: &[Record<'_>]) -> String {
        let Err(reason) = self.unpack(&stream(records)) else {
            panic!("{records:?} was taken");
        };
        let beside = fs::read_dir(self.path("beside")).unwrap().count();
        assert_eq!(beside, 1, "{records:?}");
        assert_eq!(fs::read(self.path("beside/secret")).unwrap(), b"secret");
        assert_eq!(fs::read_dir(self.folder.path()).unwrap().count(), 2);
        let left: Vec<_> = tree_of(&self.path("out"))
            .into_iter()
            .map(|it| it.name)
            .collect();
        assert!(!left.iter().any(|it| it.contains("partial")), "{left:?}");
        reason
    }
}

fn stream(records: &[Record<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    records.iter().for_each(|it| it.encode(&mut bytes));
    bytes
}

fn folder(name: &str) -> Record<'_> {
    Record::Folder {
        mode: 0o755,
        time: TIME,
        name: name.as_bytes(),
    }
}

fn file(name: &str) -> Record<'_> {
    Record::File {
        mode: 0o644,
        time: TIME,
        has_number: true,
        name: name.as_bytes(),
    }
}

fn link<'a>(name: &'a str, target: &'a str) -> Record<'a> {
    Record::Link {
        time: TIME,
        name: name.as_bytes(),
        target: target.as_bytes(),
    }
}

fn same(name: &str, number: u32) -> Record<'_> {
    Record::Same {
        number,
        name: name.as_bytes(),
    }
}

/// What a test compares.
#[derive(Debug, Eq, PartialEq)]
struct Seen {
    name: String,
    mode: u32,
    time: (i64, i64),
    content: Vec<u8>,
    names: u64,
}

/// All that is in a folder, and the folder.
fn tree_of(path: &Path) -> Vec<Seen> {
    let mut all = Vec::new();
    let mut waiting = vec![path.to_owned()];
    while let Some(it) = waiting.pop() {
        let metadata = fs::symlink_metadata(&it).unwrap();
        let mut content = Vec::new();
        if metadata.is_dir() {
            waiting.extend(fs::read_dir(&it).unwrap().map(|it| it.unwrap().path()));
        } else if metadata.is_symlink() {
            content = fs::read_link(&it).unwrap().into_os_string().into_vec();
        } else {
            content = fs::read(&it).unwrap();
        }
        all.push(Seen {
            name: format!(
                "{}",
                it.strip_prefix(path)
                    .unwrap()
                    .as_os_str()
                    .as_bytes()
                    .escape_ascii()
            ),
            mode: metadata.mode(),
            time: (metadata.mtime(), metadata.mtime_nsec()),
            content,
            names: if metadata.is_dir() {
                1
            } else {
                metadata.nlink()
            },
        });
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// Copies by both halves, in pieces of this size.
fn copy(into: &CopyInto, piece: usize) -> Result<(), String> {
    let copies = Copies {
        into: vec![into.clone()],
        ..Copies::default()
    };
    let mut pack = copies.pack().unwrap();
    let mut bytes = Vec::new();
    while pack.fill(&mut bytes)? {}
    let (places, _) = copies.jobs();
    let places = places.into_iter().map(|it| Place {
        path: it.target,
        name: it.name,
        is_contents: it.is_contents,
    });
    let limits = Limits {
        bytes: u64::MAX,
        entries: u32::MAX,
        mode: 0o7777,
    };
    let mut unpack = Unpack::new(Host, places.collect(), limits, 0);
    for piece in bytes.chunks(piece) {
        unpack.push(piece)?;
    }
    assert!(unpack.is_complete() && unpack.failures.is_empty());
    Ok(())
}

fn to(host: &Path, guest: &Path) -> CopyInto {
    CopyInto {
        host: host.to_owned(),
        guest: guest.as_os_str().as_bytes().to_vec(),
    }
}

#[test]
fn a_tree_comes_as_it_was() {
    let target = Target::new();
    let from = target.path("beside").join("a folder\n\u{e9}");
    fs::create_dir_all(from.join("empty")).unwrap();
    fs::create_dir(from.join("closed")).unwrap();
    let odd = from.join(OsStr::from_bytes(b"\xff\x01\\ -*"));
    fs::write(&odd, vec![7; 100_000]).unwrap();
    fs::set_permissions(&odd, Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(&odd, from.join("zz")).unwrap();
    fs::hard_link(&odd, from.join("closed/again")).unwrap();
    fs::write(from.join("closed/none"), "").unwrap();
    symlink("/no/such", from.join("link")).unwrap();
    symlink("empty", from.join("to-folder")).unwrap();
    let long = from.join("n".repeat(255));
    fs::write(&long, "long").unwrap();
    fs::set_permissions(&long, Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(from.join("closed"), Permissions::from_mode(0o555)).unwrap();
    let _listener = UnixListener::bind(from.join("socket")).unwrap();
    // Root reads what nobody may.
    let is_root = fs::read(&long).is_ok();
    if !is_root {
        fs::set_permissions(&long, Permissions::from_mode(0o400)).unwrap();
    }
    copy(&to(&from, &target.path("out")), 1000).unwrap();
    fs::remove_file(from.join("socket")).unwrap();
    let (before, mut after) = (
        tree_of(&from),
        tree_of(&target.path("out").join(from.file_name().unwrap())),
    );
    // The socket's end has changed the folder that it was in.
    after[0].time = before[0].time;
    assert_eq!(before, after);
    assert_eq!(before.iter().filter(|it| it.names == 3).count(), 3);
    for folder in [&from, &target.path("out").join(from.file_name().unwrap())] {
        fs::set_permissions(folder.join("closed"), Permissions::from_mode(0o755)).unwrap();
    }
}

/// As docker-cp(1) has it.
#[test]
fn where_something_goes_depends_on_what_is_there() {
    let target = Target::new();
    let from = target.path("out").join("from");
    fs::create_dir(&from).unwrap();
    fs::write(from.join("f"), "new").unwrap();
    let f = from.join("f");
    let place = target.path("out").join("place");
    // A file: as what is not there, over what is there, into a folder.
    copy(&to(&f, &place), 7).unwrap();
    assert_eq!(fs::read(&place).unwrap(), b"new");
    fs::write(&place, "old").unwrap();
    copy(&to(&f, &place), 7).unwrap();
    assert_eq!(fs::read(&place).unwrap(), b"new");
    // A folder over a file; a file's content; a folder that is not there.
    let wrong = copy(&to(&from, &place), 7).unwrap_err();
    assert!(wrong.ends_with("place: it is no folder"), "{wrong}");
    assert!(copy(&to(&f, &place.join("x")), 7).is_err());
    assert!(copy(&to(&f.join("."), &place), 7).is_err());
    assert!(copy(&to(&f, &target.path("out").join("no/x")), 7).is_err());
    fs::remove_file(&place).unwrap();
    // A folder: as what is not there, then into it, then its content.
    copy(&to(&from, &place), 7).unwrap();
    assert_eq!(fs::read(place.join("f")).unwrap(), b"new");
    fs::write(place.join("kept"), "kept").unwrap();
    copy(&to(&from, &place), 7).unwrap();
    assert_eq!(fs::read(place.join("from/f")).unwrap(), b"new");
    fs::write(from.join("g"), "g").unwrap();
    copy(&to(&from.join("."), &place), 7).unwrap();
    assert_eq!(fs::read(place.join("g")).unwrap(), b"g");
    assert_eq!(fs::read(place.join("kept")).unwrap(), b"kept");
    // No file takes the place of a folder.
    fs::create_dir(place.join("h")).unwrap();
    fs::write(from.join("h"), "").unwrap();
    let wrong = copy(&to(&from.join("."), &place), 7).unwrap_err();
    assert!(
        wrong.ends_with("place/h: a folder is in its place"),
        "{wrong}"
    );
}

#[test]
fn what_is_not_there_is_seen_before_a_machine_starts() {
    let target = Target::new();
    let check = |host: &str, is_out: bool| {
        let mut copies = Copies::default();
        let (host, guest) = (target.path(host), b"/x".to_vec());
        match is_out {
            true => copies.out.push(CopyOutOf { guest, host }),
            false => copies.into.push(CopyInto { host, guest }),
        }
        copies.check()
    };
    symlink("/no/such/thing", target.path("dangling")).unwrap();
    symlink("/dev/null", target.path("device")).unwrap();
    assert!(check("beside/secret", false).is_ok());
    assert!(
        check("dangling", false).is_ok(),
        "a link is a thing to copy"
    );
    assert!(check("beside/nothing", false).is_err());
    for there in ["out", "out/new", "beside/secret"] {
        assert!(check(there, true).is_ok(), "{there}");
    }
    for wrong in ["no/new", "out/new/", "dangling", "device"] {
        assert!(check(wrong, true).is_err(), "{wrong}");
    }
}

#[test]
fn a_well_behaved_guests_files_lose_what_is_dangerous() {
    let target = Target::new();
    let set_user_id = Record::File {
        mode: 0o6755,
        time: TIME,
        has_number: false,
        name: b"program",
    };
    let records = [
        Record::Item,
        folder(""),
        set_user_id,
        Record::Data(b"bytes"),
        Record::Leave,
        Record::End,
    ];
    target.unpack(&stream(&records)).unwrap();
    let seen = tree_of(&target.path("out"));
    let modes: Vec<_> = seen.iter().map(|it| (&it.name[..], it.mode)).collect();
    assert_eq!(modes[1..], [("x", 0o040_755), ("x/program", 0o100_755)]);
    assert_eq!(seen[2].time, (TIME.seconds, TIME.nanoseconds.into()));
    assert_eq!(seen[2].content, b"bytes");
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let long = "n".repeat(256);
    for name in [
        "..",
        ".",
        "",
        "/etc",
        "../beside/secret",
        "a/b",
        "a\0b",
        &long,
    ] {
        for entry in [folder(name), file(name), link(name, "x"), same(name, 0)] {
            let records = [
                Record::Item,
                folder(""),
                file("a"),
                entry,
                Record::Leave,
                Record::End,
            ];
            let reason = Target::new().refusal(&records);
            // A link's name ends at the first zero.
            let is_target = name.contains('\0') && reason.ends_with("no link leads there");
            let is_name = reason.ends_with("that is no name for a file");
            assert!(is_name || is_target, "{reason}");
        }
    }
    // The first entry's name is ours to give.
    let reason = Target::new().refusal(&[Record::Item, file("passwd"), Record::End]);
    assert!(reason.ends_with("that is no name for a file"), "{reason}");
}

#[test]
fn nothing_is_written_through_a_link() {
    // One that the guest has sent, in its place by a link or by what was there.
    let beside = Target::new();
    let path = beside.path("beside");
    let elsewhere = path.to_str().unwrap();
    for entry in [folder("l"), file("l/secret")] {
        let records = [
            Record::Item,
            folder(""),
            link("l", elsewhere),
            entry,
            file("secret"),
            Record::Data(b"x"),
            Record::Leave,
            Record::Leave,
            Record::End,
        ];
        let reason = beside.refusal(&records);
        assert!(reason.contains("out/x/l"), "{reason}");
    }
    // One of the host's own, below the folder that was named.
    symlink(elsewhere, beside.path("out/x/own")).unwrap();
    let records = [
        Record::Item,
        folder(""),
        folder("own"),
        file("secret"),
        Record::Data(b"x"),
        Record::Leave,
        Record::Leave,
        Record::End,
    ];
    let reason = beside.refusal(&records);
    assert!(reason.ends_with("out/x/own: it is no folder"), "{reason}");
    // A file takes a link's place, and not its target's.
    symlink(path.join("secret"), beside.path("out/x/to-file")).unwrap();
    let records = [
        Record::Item,
        folder(""),
        file("to-file"),
        Record::Data(b"x"),
        Record::Leave,
        Record::End,
    ];
    beside.unpack(&stream(&records)).unwrap();
    assert_eq!(fs::read(beside.path("out/x/to-file")).unwrap(), b"x");
    assert_eq!(fs::read(path.join("secret")).unwrap(), b"secret");
}

#[test]
fn further_names_are_of_what_was_sent() {
    let target = Target::new();
    let reason = target.refusal(&[
        Record::Item,
        folder(""),
        file("a"),
        same("b", 1),
        Record::Leave,
        Record::End,
    ]);
    assert!(
        reason.ends_with("it is another name of a file that was not sent"),
        "{reason}"
    );
    // The first name leads through what is a link by now.
    fs::remove_dir_all(target.path("out")).unwrap();
    fs::create_dir(target.path("out")).unwrap();
    let elsewhere = target.path("beside");
    let records = [
        Record::Item,
        folder(""),
        folder("d"),
        file("secret"),
        Record::Leave,
        link("d", elsewhere.to_str().unwrap()),
        same("b", 0),
        Record::Leave,
        Record::End,
    ];
    let reason = target.refusal(&records);
    assert!(
        reason.ends_with("out/x/d: a folder is in its place"),
        "{reason}"
    );
    assert_eq!(fs::metadata(elsewhere.join("secret")).unwrap().nlink(), 1);
}

#[test]
fn streams_that_lie_are_refused() {
    let begin = [Record::Item, folder("")];
    let end = [Record::Leave, Record::End];
    let with =
        |records: &[Record<'_>]| Target::new().refusal(&[&begin[..], records, &end].concat());
    assert!(with(&[Record::Data(b"x")]).ends_with("bytes of no file were sent"));
    assert!(with(&[Record::Leave]).ends_with("a folder that it is not in"));
    assert!(
        with(&[Record::Leave, file("y")]).ends_with("it belongs to nothing that was asked for")
    );
    assert!(with(&[Record::Item]).ends_with("not all of it was sent"));
    assert!(
        with(&[Record::Leave, Record::Item, file("")])
            .ends_with("more was sent than was asked for")
    );
    assert!(with(&[Record::Leave, Record::End, Record::Item]).ends_with("after the end"));
    assert!(with(&[link("l", "")]).ends_with("no link leads there"));
    for records in [
        &[][..],
        &[Record::End],
        &[Record::Item, Record::End],
        &[Record::Item, file("")],
        &[Record::Item, folder(""), Record::End],
        &[file(""), Record::End],
    ] {
        Target::new().refusal(records);
    }
    // A file that is cut short is none.
    let target = Target::new();
    let bytes = stream(&[
        Record::Item,
        file(""),
        Record::Data(b"all of it"),
        Record::End,
    ]);
    for end in 0..bytes.len() {
        assert!(target.unpack(&bytes[..end]).is_err());
        assert_eq!(
            fs::read_dir(target.path("out")).unwrap().count(),
            0,
            "{end}"
        );
    }
    target.unpack(&bytes).unwrap();
    // Lengths, kinds and times that are none.
    let mut head = stream(&[Record::Item]);
    for wrong in [
        &[4u8, 0xff, 0xff, 0xff, 0xff][..],
        &[10, 0, 0, 0, 0],
        &[0; 5],
        &[1, 1, 0, 0, 0, 0],
        &[3, 2, 0, 0, 0, 1, 1],
    ] {
        let bytes = [&head[..], wrong].concat();
        let reason = Target::new().unpack(&bytes).err().unwrap();
        assert!(reason.ends_with("what was sent is no record"), "{reason}");
    }
    let time = Time {
        seconds: 0,
        nanoseconds: 1_000_000_000,
    };
    Record::File {
        mode: 0,
        time,
        has_number: false,
        name: b"",
    }
    .encode(&mut head);
    assert!(Target::new().unpack(&head).is_err());
}

#[test]
fn depth_number_and_size_have_limits() {
    let mut records = vec![Record::Item, folder("")];
    records.resize(MAX_DEPTH + 1, folder("d"));
    let target = Target::new();
    let deep = [
        &records[..],
        &vec![Record::Leave; MAX_DEPTH],
        &[Record::End],
    ]
    .concat();
    target.unpack(&stream(&deep)).unwrap();
    records.push(folder("d"));
    let reason = Target::new().refusal(&records);
    assert!(
        reason.ends_with("too many folders in each other"),
        "{reason}"
    );
    let mut records = vec![Record::Item, folder("")];
    // The same name again and again is a new file each time.
    records.resize(1500, file("f"));
    let reason = Target::new().refusal(&records);
    assert!(
        reason.ends_with("more than 1000 files and folders"),
        "{reason}"
    );
    let piece = [0; 30 << 10];
    let mut records = vec![Record::Item, file("")];
    records.resize(40, Record::Data(&piece));
    let target = Target::new();
    let reason = target.refusal(&records);
    assert!(
        reason.ends_with("out/x: more than 1048576 bytes in all"),
        "{reason}"
    );
    assert_eq!(fs::read_dir(target.path("out")).unwrap().count(), 0);
}

#[test]
fn what_the_other_side_cannot_read_is_told_and_the_rest_comes() {
    let target = Target::new();
    let place = |name: &str| Place {
        path: target.path("out").into_os_string().into_vec(),
        name: name.into(),
        is_contents: false,
    };
    let mut unpack = Unpack::new(Host, vec![place("a"), place("b")], target.limits, 0);
    let records = [
        Record::Item,
        folder(""),
        file("half"),
        Record::Data(b"x"),
        Record::Failed(b"why"),
        Record::Item,
        file(""),
        Record::End,
    ];
    unpack.push(&stream(&records)).unwrap();
    assert!(unpack.is_complete());
    assert_eq!(unpack.failures, [b"why"]);
    let names: Vec<_> = tree_of(&target.path("out"))
        .into_iter()
        .map(|it| it.name)
        .collect();
    assert_eq!(names, ["", "a", "b"]);
}

/// Trees as an arbitrary program may leave them.
#[derive(Clone, Debug)]
enum Node {
    File(Vec<u8>, u32),
    Link(Vec<u8>),
    Folder(Vec<(Vec<u8>, Node)>, u32),
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 1..12).prop_filter("a name", |it| tree::is_name(it))
}

fn node() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![
        (prop::collection::vec(any::<u8>(), 0..100), 0..0o1000u32)
            .prop_map(|(it, mode)| Node::File(it, mode | 0o400)),
        name().prop_map(Node::Link),
    ];
    leaf.prop_recursive(4, 24, 6, |inner| {
        (prop::collection::vec((name(), inner), 0..6), 0..0o1000u32)
            .prop_map(|(it, mode)| Node::Folder(it, mode | 0o700))
    })
}

fn plant(path: &Path, node: &Node) {
    match node {
        Node::File(content, mode) => {
            // Another entry may have had the name.
            if fs::write(path, content).is_ok() {
                let _ = fs::set_permissions(path, Permissions::from_mode(*mode));
            }
        }
        Node::Link(target) => {
            let _ = symlink(OsString::from_vec(target.clone()), path);
        }
        Node::Folder(entries, mode) => {
            if fs::create_dir(path).is_ok() {
                for (name, node) in entries {
                    plant(&path.join(OsStr::from_bytes(name)), node);
                }
                fs::set_permissions(path, Permissions::from_mode(*mode)).unwrap();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_tree_comes_as_it_was(node in node(), piece in 1..300usize) {
        let folder = tempfile::tempdir().unwrap();
        let (from, to_) = (folder.path().join("from"), folder.path().join("to"));
        plant(&from, &node);
        copy(&to(&from, &to_), piece).unwrap();
        prop_assert_eq!(tree_of(&from), tree_of(&to_));
    }

    /// Whatever comes, nothing is written elsewhere, and no work is without a bound.
    #[test]
    fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..400), cut in 0..40usize) {
        let target = Target::new();
        let mut all = stream(&[Record::Item, folder(""), file("a"), Record::Data(b"x"), link("l", "../../beside"), folder("d"), Record::Leave]);
        let at = all.len().saturating_sub(cut);
        all.splice(at.., bytes);
        let _ = target.unpack(&all);
        prop_assert_eq!(fs::read_dir(target.path("beside")).unwrap().count(), 1);
        prop_assert_eq!(fs::read_dir(target.folder.path()).unwrap().count(), 2);
    }
}
