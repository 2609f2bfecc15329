//! Debian's docker-registry on loopback, filled by skopeo with what umoci makes.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::daemon::service::{Registry, host, pack};
use crate::place::{Place, text};

#[path = "service.rs"]
pub(crate) mod service;

/// A registry, a cache, and a folder to pack.
fn start() -> (Registry, Place) {
    (Registry::start(""), Place::new())
}

/// Makes an image with a file of this content, in an OCI layout.
fn image(place: &Place, tag: &str, content: &str) {
    let folder = place.folder().join(format!("root-{tag}"));
    fs::create_dir_all(folder.join("etc")).unwrap();
    fs::write(folder.join("etc/os-release"), content).unwrap();
    fs::write(folder.join("noise"), crate::server::noise(300_000)).unwrap();
    pack(
        &layout(place),
        tag,
        &folder,
        &[
            "--config.cmd",
            "/bin/true",
            "--config.env",
            "A=b c",
            "--config.user",
            "7:8",
        ],
    );
}

fn layout(place: &Place) -> std::path::PathBuf {
    place.folder().join("layout")
}

fn push(registry: &Registry, place: &Place, tag: &str, name: &str, options: &[&str]) {
    registry.push(
        &format!("oci:{}:{tag}", layout(place).display()),
        name,
        options,
    );
}

pub(crate) fn an_image_is_pulled_listed_inspected_and_removed() {
    let (registry, place) = start();
    image(&place, "one", "ID=one\n");
    push(&registry, &place, "one", "a/b:v1", &[]);
    let name = registry.name("a/b:v1");
    let said = place.image(&["pull", &name]);
    assert!(
        said.starts_with(&format!("{name} is here: sha256:")),
        "{said}"
    );
    let said = place.image(&["pull", &name]);
    assert!(
        said.starts_with(&format!("{name} is up to date: sha256:")),
        "{said}"
    );
    let list = place.list();
    assert_eq!(list.len(), 1);
    let digest = text(&list[0]["digest"]);
    // docker inspect's own names for what it says, which skopeo knows as well.
    let inspected = place.image(&["inspect", "--json", &name]);
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    let inspected = &inspected[0];
    let original = host(&[
        "skopeo",
        "inspect",
        "--tls-verify=false",
        "--config",
        &format!("docker://{name}"),
    ]);
    let original: Value = serde_json::from_str(&original).unwrap();
    assert_eq!(inspected["Id"], digest);
    assert_eq!(inspected["RepoTags"], serde_json::json!([name]));
    assert_eq!(inspected["Config"]["Cmd"], original["config"]["Cmd"]);
    assert_eq!(inspected["Config"]["User"], "7:8");
    assert_eq!(inspected["Config"]["Env"], original["config"]["Env"]);
    assert_eq!(
        inspected["RootFS"]["Layers"],
        original["rootfs"]["diff_ids"]
    );
    let manifest = host(&[
        "skopeo",
        "inspect",
        "--tls-verify=false",
        "--format",
        "{{.Digest}}",
        &format!("docker://{name}"),
    ]);
    let by_digest = registry.name(&format!("a/b@{}", manifest.trim()));
    assert_eq!(inspected["RepoDigests"], serde_json::json!([by_digest]));
    let path = text(&inspected["Ampoule"]["Path"]);
    assert!(Path::new(path).is_file());
    let shown = place.image(&["inspect", &digest[7..19]]);
    assert!(shown.contains("user         7:8\n"), "{shown}");
    assert!(shown.contains("file system  erofs\n"), "{shown}");
    let table = place.image(&["ls"]);
    let is_row = |line: &&str| line.starts_with(&digest[7..19]) && line.contains(&name);
    assert!(table.lines().any(|line| is_row(&line)), "{table}");
    // By its digest it is the same one, which costs no layer.
    place.image(&["pull", &by_digest]);
    assert_eq!(place.list().len(), 1);
    let said = place.image(&["rm", &digest[7..19]]);
    assert!(
        said.starts_with(&format!("removed {digest}")) && said.ends_with(" free\n"),
        "{said}"
    );
    assert!(place.list().is_empty() && !Path::new(path).exists());
    // What is not there is said so by the registry.
    let error = place.refused_with_locks(&[&registry.name("a/b:v9")]);
    assert!(error.contains("the registry has none"), "{error}");
    let error = place.refused_with_locks(&[&registry.name("no/such")]);
    assert!(error.contains("the registry has none"), "{error}");
}

pub(crate) fn a_name_that_moves_leaves_the_old_image() {
    let (registry, place) = start();
    let name = registry.name("a/b");
    image(&place, "one", "ID=one\n");
    image(&place, "two", "ID=two\n");
    push(&registry, &place, "one", "a/b:latest", &[]);
    place.image(&["pull", &name]);
    let old = text(&place.list()[0]["digest"]).to_owned();
    push(&registry, &place, "two", "a/b:latest", &[]);
    let said = place.image(&["pull", &name]);
    assert!(said.contains("is here"), "{said}");
    let list = place.list();
    assert_eq!(list.len(), 2);
    let new = list
        .iter()
        .find(|image| image["names"] != serde_json::json!([]));
    let new = text(&new.unwrap()["digest"]);
    assert_ne!(new, old);
    let found = place.image(&["inspect", "--json", &name]);
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found[0]["Id"], new);
    // The old one is there by its digest, without a name.
    let table = place.image(&["ls"]);
    let row = table
        .lines()
        .find(|line| line.starts_with(&old[7..19]))
        .unwrap();
    assert!(row.contains("  -  "), "{table}");
    place.image(&["rm", &old]);
    assert_eq!(place.list().len(), 1);
    // The registry is gone: what is asked of it fails, what is here stays.
    drop(registry);
    let end = place.run(&["image", "pull", &name]).expect_code(125);
    end.expect_error("the registry cannot be reached");
    assert_eq!(place.list().len(), 1);
}

pub(crate) fn every_packing_of_layers_is_read() {
    let (registry, place) = start();
    image(&place, "one", "ID=one\n");
    let options = [
        &["--format", "v2s2"][..],
        &["--format", "oci", "--dest-compress-format", "zstd"],
        &["--format", "oci", "--dest-compress-format", "gzip"],
        &["--format", "oci", "--dest-decompress"],
    ];
    let mut images = Vec::new();
    for (number, options) in options.iter().enumerate() {
        let name = format!("a/b:v{number}");
        push(&registry, &place, "one", &name, options);
        place.image(&["pull", &registry.name(&name)]);
        let path = text(&place.list()[0]["path"]).to_owned();
        images.push(fs::read(&path).unwrap().len());
        place.image(&["prune"]);
    }
    assert!(images.iter().all(|size| *size == images[0]), "{images:?}");
}

pub(crate) fn credentials_are_those_of_docker_and_podman() {
    // The password is "secret".
    let users = tempfile::NamedTempFile::new().unwrap();
    fs::write(
        &users,
        "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n",
    )
    .unwrap();
    let auth = format!(
        "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
        users.path().display()
    );
    let registry = Registry::start(&auth);
    let place = Place::new();
    image(&place, "one", "ID=one\n");
    push(
        &registry,
        &place,
        "one",
        "a/b:v1",
        &["--dest-creds", "user:secret"],
    );
    let name = registry.name("a/b:v1");
    let error = place.refused(&[&name]);
    assert!(
        error.contains("the registry refuses it") && error.contains("docker login"),
        "{error}"
    );
    // What `skopeo login` writes, where Docker has it and where podman has it.
    let config = place.folder().join("auth/config.json");
    fs::create_dir(place.folder().join("auth")).unwrap();
    host(&[
        "skopeo",
        "login",
        "--tls-verify=false",
        "--authfile",
        config.to_str().unwrap(),
        "-u",
        "user",
        "-p",
        "secret",
        registry.address(),
    ]);
    for (variable, value) in [
        ("DOCKER_CONFIG", place.folder().join("auth")),
        ("REGISTRY_AUTH_FILE", config.clone()),
    ] {
        let mut command = place.command(&["image", "pull", &name]);
        command.env(variable, value);
        crate::driver::finish(command)
            .expect_code(0)
            .expect_silence();
        place.image(&["rm", &name]);
    }
    // A wrong password, and a file that is damaged.
    let wrong = fs::read_to_string(&config)
        .unwrap()
        .replace("dXNlcjpzZWNyZXQ=", "dXNlcjp3cm9uZw==");
    for (text, expected) in [(&wrong[..], "refuses it"), ("{", "are damaged")] {
        fs::write(&config, text).unwrap();
        let mut command = place.command(&["image", "pull", &name]);
        command.env("REGISTRY_AUTH_FILE", &config);
        crate::driver::finish(command)
            .expect_code(125)
            .expect_error(expected);
    }
}
