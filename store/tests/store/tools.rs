//! Images that other programs make, and what they make of ours. Where they are not installed, that is said.

use std::path::Path;
use std::process::Command;

use crate::support::{Bench, has};

fn run(program: &str, arguments: &[&str], folder: &Path) {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
}

/// A tree of a few megabytes, and links.
fn root(folder: &Path) {
    std::fs::create_dir_all(folder.join("usr/bin")).unwrap();
    std::fs::write(folder.join("usr/bin/a"), vec![3; 3 << 20]).unwrap();
    std::fs::hard_link(folder.join("usr/bin/a"), folder.join("usr/bin/b")).unwrap();
    std::os::unix::fs::symlink("usr/bin", folder.join("bin")).unwrap();
    std::fs::create_dir(folder.join("old")).unwrap();
    std::fs::write(folder.join("old/file"), "x").unwrap();
}

#[test]
fn an_image_by_umoci_and_skopeo_is_read_in_every_form() {
    if !has(&["umoci", "skopeo"]) {
        return;
    }
    let bench = Bench::new();
    let folder = bench.folder.path();
    let umoci = |arguments: &[&str]| run("umoci", arguments, folder);
    umoci(&["init", "--layout", "oci"]);
    umoci(&["new", "--image", "oci:v1"]);
    umoci(&["unpack", "--rootless", "--image", "oci:v1", "bundle"]);
    root(&folder.join("bundle/rootfs"));
    umoci(&["repack", "--refresh-bundle", "--image", "oci:v1", "bundle"]);
    std::fs::remove_dir_all(folder.join("bundle/rootfs/old")).unwrap();
    std::fs::write(folder.join("bundle/rootfs/new"), "y").unwrap();
    umoci(&["repack", "--image", "oci:v1", "bundle"]);
    umoci(&[
        "config",
        "--image",
        "oci:v1",
        "--config.entrypoint",
        "/bin/a",
    ]);
    let skopeo = |target: &str| run("skopeo", &["copy", "oci:oci:v1", target], folder);
    skopeo("docker-archive:docker.tar:a/b:v1");
    skopeo("oci-archive:oci.tar:v1");
    let images =
        ["oci", "docker.tar", "oci.tar"].map(|name| bench.get(&folder.join(name), None).unwrap());
    assert_eq!(images[0].config().entrypoint, ["/bin/a"]);
    // One image in the cache, made once.
    assert!(
        images
            .iter()
            .all(|image| image.digest() == images[0].digest())
    );
    assert_eq!(images.iter().filter(|image| image.was_cached()).count(), 2);
    let files = bench.files(&folder.join("oci"));
    assert_eq!(files["usr/bin/a"].number, files["usr/bin/b"].number);
    assert_eq!(files["usr/bin/a"].size, 3 << 20);
    assert_eq!(files["new"].text(), "y");
    assert!(!files.contains_key("old"));
}

#[test]
fn the_systems_tar_is_read_with_holes_and_long_names() {
    if !has(&["tar"]) {
        return;
    }
    for format in ["gnu", "posix"] {
        let bench = Bench::new();
        let folder = bench.folder.path();
        let root = folder.join("root");
        std::fs::create_dir_all(root.join("d".repeat(180))).unwrap();
        std::fs::write(root.join("d".repeat(180)).join("f".repeat(180)), "long").unwrap();
        let sparse = std::fs::File::create(root.join("sparse")).unwrap();
        for piece in 1..30 {
            std::os::unix::fs::FileExt::write_at(&sparse, b"data", piece << 20).unwrap();
        }
        let format = format!("--format={format}");
        run(
            "tar",
            &["--sparse", &format, "-C", "root", "-cf", "root.tar", "."],
            folder,
        );
        let files = bench.files(&folder.join("root.tar"));
        let expected = std::fs::read(root.join("sparse")).unwrap();
        assert!(files["sparse"].data == expected, "{format}");
        assert!(files["sparse"].holes > 1000, "{format}");
        let name = format!("{}/{}", "d".repeat(180), "f".repeat(180));
        assert_eq!(files[&name].text(), "long");
    }
}

#[test]
fn fsck_extracts_what_was_put_in() {
    if !has(&["fsck.erofs"]) {
        return;
    }
    let bench = Bench::new();
    root(&bench.folder.path().join("root"));
    let image = bench.get(&bench.folder.path().join("root"), None).unwrap();
    let image = image.path().to_str().unwrap();
    run("fsck.erofs", &["--extract=out", image], bench.folder.path());
    run(
        "diff",
        &["-r", "--no-dereference", "root", "out"],
        bench.folder.path(),
    );
}
