//! Images of layers: documents, digests, whiteouts.

use ampoule_store::{Error, Source, SourceKind};

use crate::support::{Bench, CONFIG, Layer, Layout, Tar, chain, docker, gzip, oci, zstd};

/// The files of an image of these layers, in every form that it may have.
fn stacked(layers: impl Fn() -> Vec<Tar>) -> crate::reader::Files {
    let plain = || layers().into_iter().map(Layer::plain).collect::<Vec<_>>();
    let bench = Bench::new();
    let docker = bench.put("docker.tar", docker(&plain()).done());
    let files = bench.files(&docker);
    for pack in [gzip, zstd] {
        let bench = Bench::new();
        let layers = layers().into_iter().map(|layer| Layer::packed(layer, pack));
        let layout = oci(&layers.collect::<Vec<_>>());
        let archive = bench.files(&bench.put("oci.tar", layout.archive()));
        assert_eq!(archive, files);
        let bench = Bench::new();
        assert_eq!(bench.files(&layout.write(&bench, "layout")), files);
    }
    files
}

fn names(files: &crate::reader::Files) -> Vec<&str> {
    files
        .keys()
        .map(|name| &name[..])
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn the_configuration_is_read() {
    let bench = Bench::new();
    let image = docker(&[Layer::plain(Tar::new().file("a", "x"))]);
    let path = bench.put("image.tar", image.done());
    let source = Source::open(&path, None).unwrap();
    assert_eq!(source.kind(), SourceKind::DockerArchive);
    assert_eq!(source.name(), Some("a/b:c"));
    let config = source.config();
    assert_eq!(config.entrypoint, ["/init"]);
    assert!(config.cmd.is_empty());
    assert_eq!(config.env, ["A=1", "B=x y"]);
    assert_eq!(config.working_dir, "/srv");
    assert_eq!(config.user, "1000:0");
    assert_eq!(config.labels["l"], "v");
    assert_eq!(config.exposed_ports, ["80/tcp"]);
    assert_eq!(bench.get(&path, None).unwrap().config(), &config);
}

#[test]
fn whiteouts_hide_what_is_below_whatever_their_order() {
    let base = || {
        Tar::new()
            .file("a", "1")
            .file("d/x", "1")
            .file("d/y", "1")
            .file("e/f/g", "1")
    };
    let files = stacked(|| vec![base(), Tar::new().file(".wh.a", "").file("d/.wh.x", "")]);
    assert_eq!(names(&files), ["d", "d/y", "e", "e/f", "e/f/g"]);

    // What the same layer has stays, before and after the whiteout.
    let opaque = ".wh..wh..opq";
    for layer in [
        (|| Tar::new().file("d/new", "2").file("d/.wh..wh..opq", "")) as fn() -> Tar,
        || Tar::new().file("d/.wh..wh..opq", "").file("d/new", "2"),
        || Tar::new().file(".wh.d", "").file("d/new", "2"),
        || {
            Tar::new()
                .directory("d")
                .file("d/new", "2")
                .file(".wh.d", "")
        },
    ] {
        let files = stacked(|| vec![base(), layer()]);
        assert_eq!(names(&files), ["a", "d", "d/new", "e", "e/f", "e/f/g"]);
    }
    let files = stacked(|| {
        vec![
            base(),
            Tar::new()
                .file("e/f/h", "2")
                .file(&format!("e/{opaque}"), ""),
        ]
    });
    assert_eq!(names(&files), ["a", "d", "d/x", "d/y", "e", "e/f", "e/f/h"]);

    // Of what is not there, and of AUFS.
    let files = stacked(|| {
        vec![
            base(),
            Tar::new().file("no/.wh.x", "").file(".wh..wh.plnk", ""),
        ]
    });
    assert_eq!(names(&files).len(), 7);
}

#[test]
fn upper_layers_replace_and_link_to_lower_ones() {
    let files = stacked(|| {
        vec![
            Tar::new()
                .file("a", "old")
                .file("keep", "k")
                .directory("d")
                .file("d/x", "x")
                .symlink("s", "d"),
            Tar::new()
                .file("a", "new")
                .link("b", "keep")
                .file("d", "now a file")
                .directory("s")
                .file("s/y", "y"),
            Tar::new().link("c", "a").raw(
                {
                    let mut header = Tar::header(tar::EntryType::Directory);
                    header.set_mode(0o1777);
                    header
                },
                "s",
                b"",
            ),
        ]
    });
    assert_eq!(names(&files), ["a", "b", "c", "d", "keep", "s", "s/y"]);
    assert_eq!(files["a"].text(), "new");
    assert_eq!(files["c"].number, files["a"].number);
    assert_eq!(files["b"].number, files["keep"].number);
    assert_eq!(files["d"].text(), "now a file");
    assert_eq!(files["s"].mode, 0o41777);
}

#[test]
fn names_through_links_stay_inside_the_root() {
    let files = stacked(|| {
        vec![
            Tar::new()
                .directory("usr/bin")
                .symlink("bin", "usr/bin")
                .symlink("up", "../../../usr")
                .symlink("abs", "/usr/bin"),
            Tar::new()
                .file("bin/a", "1")
                .file("up/b", "2")
                .file("abs/c", "3")
                .link("bin/d", "abs/a"),
        ]
    });
    assert_eq!(files["bin"].text(), "usr/bin");
    assert_eq!(files["usr/bin/a"].text(), "1");
    assert_eq!(files["usr/b"].text(), "2");
    assert_eq!(files["usr/bin/c"].text(), "3");
    assert_eq!(files["usr/bin/d"].number, files["usr/bin/a"].number);
}

/// Builders write them (umoci, kaniko, ko), and everybody unpacks them below the root.
#[test]
fn absolute_names_start_at_the_images_root() {
    let files = stacked(|| {
        vec![
            Tar::new()
                .directory("/")
                .file("/etc/passwd", "1")
                .file("gone", "1")
                .link("/same", "/etc/passwd"),
            Tar::new().file("//etc/hosts", "2").file("/.wh.gone", ""),
        ]
    });
    assert_eq!(names(&files), ["etc", "etc/hosts", "etc/passwd", "same"]);
    assert_eq!(files["same"].number, files["etc/passwd"].number);
}

#[test]
fn replaced_files_take_no_room() {
    let noise: Vec<u8> = (0..1_000_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let bench = Bench::new();
    let layers = [
        Layer::plain(Tar::new().file("a", &noise)),
        Layer::plain(Tar::new().file("a", "b")),
    ];
    let path = bench.put("image.tar", docker(&layers).done());
    let image = bench.get(&path, None).unwrap();
    let bytes = std::fs::read(image.path()).unwrap();
    assert!(!bytes.windows(64).any(|window| window == &noise[..64]));
}

#[test]
fn one_of_several_images_is_chosen_by_name() {
    let mut layout = Layout::new();
    let name =
        |name: &str| format!(r#","annotations":{{"org.opencontainers.image.ref.name":"{name}"}}"#);
    let one = layout.manifest(CONFIG, &[Layer::plain(Tar::new().file("one", ""))]) + &name("v1");
    let two =
        layout.manifest(CONFIG, &[Layer::plain(Tar::new().file("two", ""))]) + &name("x/y:v2");
    let layout = layout.index(&[one, two]);
    let bench = Bench::new();
    let path = bench.put("oci.tar", layout.archive());
    let error = Source::open(&path, None).unwrap_err();
    assert_eq!(error.to_string(), r#"which image of "v1" or "x/y:v2"?"#);
    assert!(matches!(
        Source::open(&path, Some("v3")),
        Err(Error::Ambiguous { .. })
    ));
    for (wanted, file) in [("v1", "one"), ("v2", "two"), ("x/y:v2", "two")] {
        let image = bench.get(&path, Some(wanted)).unwrap();
        assert!(
            crate::reader::read(image.path()).contains_key(file),
            "{wanted}"
        );
    }
}

#[test]
fn the_platform_is_this_machines() {
    let other = CONFIG.replace("amd64", "s390x");
    let mut layout = Layout::new();
    let ours = layout.manifest(CONFIG, &[Layer::plain(Tar::new().file("ours", ""))]);
    let ours = ours + r#","platform":{"os":"linux","architecture":"amd64"}"#;
    let theirs = layout.manifest(&other, &[Layer::plain(Tar::new().file("theirs", ""))]);
    let theirs = theirs + r#","platform":{"os":"linux","architecture":"s390x"}"#;
    let inner = format!(r#"{{"manifests":[{{{theirs}}},{{{ours}}}]}}"#);
    let inner = layout.blob("index.v1+json", inner.as_bytes());
    let bench = Bench::new();
    let path = layout.index(&[inner]).write(&bench, "layout");
    assert_eq!(names(&bench.files(&path)), ["ours"]);

    let mut layout = Layout::new();
    let theirs = layout.manifest(&other, &[]);
    let path = layout.index(&[theirs]).write(&bench, "other");
    let error = Source::open(&path, None).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"the image is for "linux/s390x", not for linux/amd64"#
    );
}

#[test]
fn wrong_digests_and_sizes_are_refused() {
    let layer = || Layer::packed(Tar::new().file("a", "x"), gzip);
    // Every blob, damaged in its last byte, or longer.
    let count = oci(&[layer()]).0.len();
    for at in (0..count).filter(|at| oci(&[layer()]).0[*at].0.starts_with("blobs")) {
        for longer in [false, true] {
            let mut layout = oci(&[layer()]);
            let bytes = &mut layout.0[at].1;
            match longer {
                true => bytes.push(b' '),
                false => *bytes.last_mut().unwrap() ^= 1,
            }
            let bench = Bench::new();
            let error = bench
                .get(&layout.write(&bench, "layout"), None)
                .unwrap_err();
            let matches = match longer {
                true => matches!(error, Error::WrongSize { .. }),
                false => matches!(error, Error::WrongDigest { .. }),
            };
            assert!(matches, "{}", chain(&error));
            assert!(!bench.cached().iter().any(|name| name.contains("erofs")));
        }
    }
    // A layer that is not what the configuration says, in an archive that names no other digest.
    let good = Layer::plain(Tar::new().file("a", "x"));
    let bad = Layer {
        packed: Tar::new().file("a", "y").done(),
        plain: good.plain,
    };
    let bench = Bench::new();
    let error = bench
        .get(&bench.put("image.tar", docker(&[bad]).done()), None)
        .unwrap_err();
    assert!(chain(&error).starts_with("layer 1 of 1, unpacked, has the digest sha256:"));
    assert_eq!(
        error.remedy().as_deref(),
        Some("fetch or save the image again")
    );
}

#[test]
fn documents_that_contradict_each_other_are_refused() {
    let bench = Bench::new();
    let open =
        |archive: Tar| chain(&Source::open(bench.put("x.tar", archive.done()), None).unwrap_err());
    let saved = |text: &str| Tar::new().file("manifest.json", text);
    assert!(open(saved(r#"[{"Config":"../etc/passwd"}]"#)).contains(r#"no ../etc/passwd"#));
    assert!(open(saved("[]")).starts_with("which image"));
    let config = r#"{"rootfs":{"diff_ids":[]}}"#;
    let text = r#"[{"Config":"c","Layers":["l"]}]"#;
    assert!(open(saved(text).file("c", config)).contains("not as many layers"));
    assert!(open(saved(text).file("c", "{")).starts_with("cannot read c of the image"));
    let text = r#"{"manifests":[{"digest":"sha256:../../x","size":1}]}"#;
    let layout = Tar::new().file("oci-layout", "{}").file("index.json", text);
    assert!(open(layout).contains("is not a SHA-256 digest"));
    let digest = ampoule_store::Digest::of(b"");
    let text = format!(r#"{{"manifests":[{{"digest":"{digest}","size":0}}]}}"#);
    let layout = Tar::new().file("oci-layout", "{}").file("index.json", text);
    assert!(open(layout).starts_with("the image has no blobs/sha256/e3b0c442"));
}

#[test]
fn an_archive_of_images_that_is_packed_as_a_whole_is_read_as_it_would_be_unpacked() {
    let layers = || {
        [
            Layer::plain(Tar::new().file("a", "x").file("b", "y")),
            Layer::plain(Tar::new().file(".wh.a", "").file("c", "z")),
        ]
    };
    let bench = Bench::new();
    let expected = bench.files(&bench.put("plain.tar", docker(&layers()).done()));
    assert_eq!(names(&expected), ["b", "c"]);
    for pack in [gzip, zstd] {
        for archive in [docker(&layers()).done(), oci(&layers()).archive()] {
            let bench = Bench::new();
            let path = bench.put("image", pack(&archive));
            let source = Source::open(&path, None).unwrap();
            assert_eq!(source.kind(), SourceKind::PackedArchive);
            assert_eq!(bench.files(&path), expected);
            let image = bench.get(&path, None).unwrap();
            assert!(image.was_cached());
            assert_eq!(image.config().entrypoint, ["/init"]);
            assert_eq!(bench.cached().len(), 3, "{:?}", bench.cached());
        }
    }
    // One that is too large, one that is cut off, and one that only looks like an archive of images.
    let packed = gzip(&docker(&layers()).done());
    let bench = Bench::new();
    let path = bench.put("image", &packed);
    let source = Source::open(&path, None).unwrap();
    let mut limits = ampoule_store::Limits::default();
    limits.max_image_size = 4096;
    let error = bench.store.get(&source, limits, &mut |_| {}).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    let path = bench.put("cut", &packed[..packed.len() - 9]);
    assert!(bench.get(&path, None).is_err());
    assert_eq!(bench.cached(), [""; 0]);
    let path = bench.put(
        "root",
        gzip(&Tar::new().file("manifest.json", "{}").file("a", "x").done()),
    );
    assert_eq!(names(&bench.files(&path)), ["a", "manifest.json"]);
}
