//! Directories of the host.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use ampoule_store::{Error, Limits, Source, SourceKind};

use crate::support::Bench;

#[test]
fn a_directory_arrives_as_it_is() {
    let bench = Bench::new();
    let root = bench.put("root/etc/hosts", "127.0.0.1");
    let root = root.parent().unwrap().parent().unwrap();
    fs::hard_link(root.join("etc/hosts"), root.join("hosts")).unwrap();
    symlink("/etc/hosts", root.join("link")).unwrap();
    symlink("..", root.join("etc/up")).unwrap();
    fs::write(root.join("large"), vec![5; 1_000_000]).unwrap();
    fs::set_permissions(root.join("large"), fs::Permissions::from_mode(0o4751)).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_at(&sparse, b"end", 3 << 20).unwrap();
    drop(sparse);
    let files = bench.files(root);
    assert_eq!(
        Source::open(root, None).unwrap().kind(),
        SourceKind::Directory
    );
    assert_eq!(files.len(), 8);
    assert_eq!(files["hosts"].number, files["etc/hosts"].number);
    assert_eq!(files["link"].text(), "/etc/hosts");
    assert_eq!(files["etc/up"].text(), "..");
    assert_eq!(files["large"].data, vec![5; 1_000_000]);
    assert_eq!(files["large"].mode, 0o104_751);
    assert_eq!(files["sparse"].data, fs::read(root.join("sparse")).unwrap());
    let stat = fs::metadata(root.join("large")).unwrap();
    assert_eq!(files["large"].uid, stat.uid());
    assert_eq!(
        files["large"].mtime,
        (stat.mtime(), stat.mtime_nsec() as u32)
    );
}

#[test]
fn a_change_makes_another_image() {
    let bench = Bench::new();
    let path = bench.put("root/a", "1");
    let root = path.parent().unwrap();
    let first = bench.get(root, None).unwrap();
    let again = bench.get(root, None).unwrap();
    assert!(!first.was_cached() && again.was_cached());
    assert_eq!(first.digest(), again.digest());
    // As long, and with the same time of modification.
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "2").unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(modified).unwrap();
    let changed = bench.get(root, None).unwrap();
    assert_ne!(changed.digest(), first.digest());
    assert_eq!(crate::reader::read(changed.path())["a"].text(), "2");
}

#[test]
fn a_change_while_it_is_read_is_told() {
    let bench = Bench::new();
    let path = bench.put("root/a", "1");
    bench.put("root/b", "1");
    let source = Source::open(path.parent().unwrap(), None).unwrap();
    let change = &mut |progress: ampoule_store::Progress| {
        if progress.done == 1 {
            fs::write(path.with_file_name("c"), "new").unwrap();
        }
    };
    let error = bench
        .store
        .get(&source, Limits::default(), change)
        .unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
    assert!(!bench.cached().iter().any(|name| name.ends_with(".erofs")));
}
