//! What archives of root file systems may have in them arrives in the image.

use tar::EntryType;

use crate::reader::read;
use crate::support::{Bench, Tar, files, gzip, has, zstd};

#[test]
fn all_types_of_files_arrive() {
    let files = files(
        Tar::new()
            .directory("./")
            .directory("etc/")
            .file("etc/hosts", "127.0.0.1")
            .file("empty", "")
            .symlink("link", "../etc/hosts")
            .link("etc/hosts2", "./etc/hosts")
            .device(EntryType::Char, "null", 1, 3)
            .device(EntryType::Block, "disk", 259, 70_000)
            .device(EntryType::Fifo, "pipe", 0, 0),
    );
    assert_eq!(files["etc/hosts"].text(), "127.0.0.1");
    assert_eq!(files["etc/hosts"].mode, 0o100_644);
    assert_eq!(files["etc/hosts"].mtime, (1_700_000_000, 0));
    assert_eq!(files["etc/hosts"].links, 2);
    assert_eq!(files["etc/hosts"].number, files["etc/hosts2"].number);
    assert_eq!(files["empty"].size, 0);
    assert_eq!(files["link"].mode >> 12, 0o12);
    assert_eq!(files["link"].text(), "../etc/hosts");
    assert_eq!((files["null"].mode >> 12, files["null"].device), (2, 0x103));
    let minor = 70_000;
    let number = minor & 0xff | 259 << 8 | (minor & !0xff) << 12;
    assert_eq!(
        (files["disk"].mode >> 12, files["disk"].device),
        (6, number)
    );
    assert_eq!(files["pipe"].mode >> 12, 1);
    assert_eq!(files[""].links, 3);
    assert_eq!(files["etc"].links, 2);
}

#[test]
fn directories_that_an_archive_leaves_out_are_there() {
    let files = files(Tar::new().file("a/b/c", "x"));
    assert_eq!(files["a/b"].mode, 0o40_755);
    assert_eq!(files["a/b/c"].text(), "x");
}

#[test]
fn long_names_of_both_kinds_arrive() {
    let long = ["d".repeat(200), "e".repeat(255), "f".repeat(100)].join("/");
    let target = "t".repeat(4000);
    let name = [long.as_bytes(), b"\0"].concat();
    let files = files(
        Tar::new()
            .raw(Tar::header(EntryType::GNULongName), "././@LongLink", &name)
            .file("short", "gnu")
            .pax(&[("path", format!("p/{long}").as_bytes())])
            .file("short", "pax")
            .pax(&[("linkpath", target.as_bytes())])
            .symlink("long", "t")
            .raw(Tar::header(EntryType::GNULongLink), "././@LongLink", &name)
            .link("hard", "x"),
    );
    assert_eq!(files[&long].text(), "gnu");
    assert_eq!(files[&format!("p/{long}")].text(), "pax");
    assert_eq!(files["long"].text(), target);
    assert_eq!(files["hard"].number, files[&long].number);
}

#[test]
fn large_numbers_and_fractions_arrive() {
    let mut header = Tar::header(EntryType::Regular);
    header.set_uid(4_000_000_000);
    let files = files(
        Tar::new()
            .raw(header, "gnu", b"")
            .pax(&[
                ("uid", b"70000"),
                ("gid", b"3000000000"),
                ("mtime", b"-1.25"),
            ])
            .file("pax", ""),
    );
    assert_eq!(files["gnu"].uid, 4_000_000_000);
    assert_eq!((files["pax"].uid, files["pax"].gid), (70000, 3_000_000_000));
    assert_eq!(files["pax"].mtime, (-2, 750_000_000));
}

#[test]
fn attributes_arrive() {
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, b'\n', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let large = vec![b'\n'; 9000];
    let files = files(
        Tar::new()
            .pax(&[
                ("SCHILY.xattr.security.capability", &capability),
                ("SCHILY.xattr.user.large", &large),
                ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ])
            .file("ping", "x")
            .pax(&[("SCHILY.xattr.system.posix_acl_default", b"acl")])
            .directory("d")
            .pax(&[("SCHILY.xattr.user.large", &large)])
            .symlink("s", "target"),
    );
    assert_eq!(files["ping"].xattrs["security.capability"], capability);
    assert_eq!(files["ping"].xattrs["user.large"], large);
    assert_eq!(files["ping"].xattrs.len(), 2);
    assert_eq!(files["ping"].text(), "x");
    assert_eq!(files["d"].xattrs["system.posix_acl_default"], b"acl");
    assert_eq!(files["s"].text(), "target");
}

/// 20 000 bytes: a hole, "begin" at 5000, a hole, "end" at the end.
fn sparse() -> Vec<u8> {
    let mut data = vec![0; 20_000];
    data[5000..5005].copy_from_slice(b"begin");
    data[19_997..].copy_from_slice(b"end");
    data
}

#[test]
fn sparse_files_of_all_kinds_arrive_with_their_holes() {
    let mut gnu = Tar::header(EntryType::GNUSparse);
    gnu.as_gnu_mut().unwrap().set_real_size(20_000);
    for (at, (offset, length)) in [(5000, 5), (19_997, 3)].into_iter().enumerate() {
        let piece = &mut gnu.as_gnu_mut().unwrap().sparse[at];
        piece.set_offset(offset);
        piece.set_length(length);
    }
    let mut map = b"2\n5000\n5\n19997\n3\n".to_vec();
    map.resize(512, 0);
    map.extend(b"beginend");
    let size: (&str, &[u8]) = ("GNU.sparse.size", b"20000");
    let files = files(
        Tar::new()
            .raw(gnu, "gnu", b"beginend")
            .pax(&[
                size,
                ("GNU.sparse.offset", b"5000"),
                ("GNU.sparse.numbytes", b"5"),
                ("GNU.sparse.offset", b"19997"),
                ("GNU.sparse.numbytes", b"3"),
            ])
            .file("pax00", "beginend")
            .pax(&[
                size,
                ("GNU.sparse.map", b"5000,5,19997,3"),
                ("GNU.sparse.name", b"pax01"),
            ])
            .file("GNUSparseFile.1/x", "beginend")
            .pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"pax10"),
                ("GNU.sparse.realsize", b"20000"),
            ])
            .file("GNUSparseFile.2/x", &map)
            .file("after", "y"),
    );
    for name in ["gnu", "pax00", "pax01", "pax10"] {
        assert!(files[name].data == sparse(), "{name}");
        assert_eq!(files[name].holes, 3, "{name}");
    }
    assert_eq!(files["after"].text(), "y");
    assert_eq!(files.len(), 6);
}

#[test]
fn a_huge_sparse_file_costs_next_to_nothing() {
    let bench = Bench::new();
    let archive = Tar::new()
        .pax(&[
            ("GNU.sparse.size", b"1099511627776"),
            ("GNU.sparse.map", b"1099511627773,3"),
        ])
        .file("lastlog", "end");
    let image = bench
        .get(&bench.put("root.tar", archive.done()), None)
        .unwrap();
    let metadata = std::fs::metadata(image.path()).unwrap();
    assert!(metadata.len() < 100 << 20, "{}", metadata.len());
}

#[test]
fn a_directory_of_thousands_is_in_order() {
    let names: Vec<_> = (0..3000)
        .map(|n| format!("d/{:0width$}-!", n, width = n % 60))
        .collect();
    let archive = names
        .iter()
        .fold(Tar::new(), |tar, name| tar.file(name, name));
    let files = files(archive);
    for name in &names {
        assert_eq!(files[name].text(), name);
    }
}

#[test]
fn packed_archives_are_told_by_their_content() {
    let archive = Tar::new().file("a", vec![7; 300_000]).done();
    for packed in [gzip(&archive), zstd(&archive), archive.clone()] {
        let bench = Bench::new();
        let files = bench.files(&bench.put("root", packed));
        assert_eq!(files["a"].data, vec![7; 300_000]);
    }
}

#[test]
fn two_gzip_members_and_skippable_frames_are_one_stream() {
    let archive = Tar::new().file("a", "x").done();
    let (first, second) = archive.split_at(700);
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"toc"].concat();
    for packed in [
        [gzip(first), gzip(second)].concat(),
        [zstd(first), skippable.clone(), zstd(second), skippable].concat(),
    ] {
        let bench = Bench::new();
        assert_eq!(bench.files(&bench.put("root", packed))["a"].text(), "x");
    }
}

#[test]
fn the_same_archive_makes_the_same_bytes() {
    let archive = Tar::new()
        .file("b", "x")
        .file("a", "y")
        .symlink("c", "a")
        .done();
    let image = |limit: u64| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let file = std::fs::File::create_new(&path).unwrap();
        let mut limits = ampoule_store::Limits::default();
        limits.max_image_size = limit;
        let size = ampoule_store::convert_archive(&archive[..], &file, limits).unwrap();
        assert_eq!(file.metadata().unwrap().len(), size);
        assert_eq!(read(&path)["c"].text(), "a");
        std::fs::read(path).unwrap()
    };
    assert!(image(1 << 20) == image(1 << 30));
}

#[test]
fn an_image_may_end_wherever_its_last_inode_does() {
    if !has(&["fsck.erofs"]) {
        return;
    }
    // A file more is 64 bytes of inode and 18 of directory: some of these end with their block.
    for count in 0..130 {
        let archive = (0..count).fold(Tar::new(), |tar, n| tar.file(&format!("f{n:05}"), ""));
        assert_eq!(files(archive).len(), count + 1);
    }
}
