//! A registry that breaks every rule: each time a clear error, and nothing left in the cache.

use std::collections::BTreeMap;
use std::sync::Mutex;

use ampoule_store::Digest;

use crate::place::Place;
use crate::server::{Body, Image, Reply, Request, Server, descriptor, layer, noise};

fn image() -> Image {
    Image::new(&[layer("hello", b"x"), layer("noise", &noise(100_000))])
}

/// The digest of the second layer.
fn second() -> Digest {
    Digest::of(&layer("noise", &noise(100_000)))
}

/// What comes of pulling from a registry that answers so.
#[track_caller]
fn refused(
    image: &Image,
    answer: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
) -> String {
    let server = Server::start(image, answer);
    let name = server.name("a/b:v1");
    let error = Place::new().refused(&[&name]);
    assert!(error.contains(&format!("cannot pull {name}: ")), "{error}");
    error
}

/// The same where the answer is for the second layer.
#[track_caller]
fn refused_layer(reply: Reply) -> String {
    let error = refused(&image(), move |request| {
        let is_meant = request.path.ends_with(&second().to_string());
        is_meant.then(|| reply.clone())
    });
    assert!(error.contains("layer 2 of 2: "), "{error}");
    error
}

/// The same where the answer is for the manifest.
#[track_caller]
fn refused_manifest(reply: Reply) -> String {
    refused(&image(), move |request| {
        request.path.contains("/manifests/").then(|| reply.clone())
    })
}

/// The same of an image with this manifest.
#[track_caller]
fn refused_text(text: &str) -> String {
    let mut image = image();
    image.manifest("v1", text.as_bytes());
    refused(&image, |_| None)
}

pub(crate) fn what_is_not_what_its_digest_says_is_refused() {
    let mut wrong = layer("noise", &noise(100_000));
    wrong[700] ^= 1;
    let found = Digest::of(&wrong);
    let error = refused_layer(Reply::whole(wrong.clone()));
    let expected = format!("it has the digest {found}, not {}", second());
    assert!(error.contains(&expected), "{error}");
    // The registry may say that it is the right one, or that it is the wrong one that was asked for.
    for claimed in [second(), found] {
        let reply = Reply::whole(wrong.clone());
        let reply = reply.header("docker-content-digest", &claimed.to_string());
        assert!(refused_layer(reply).contains(&expected));
    }
    // A layer as its manifest has it, that is not the one of the configuration.
    let mut other = image();
    let text = other.text().replace(
        &descriptor(&layer("noise", &noise(100_000))),
        &descriptor(&wrong),
    );
    other.blob(&wrong);
    other.manifest("v1", text.as_bytes());
    let error = refused(&other, |_| None);
    assert!(
        error.contains("layer 2 of 2, unpacked, has the digest"),
        "{error}"
    );
    // A manifest that is not what the registry, or the name, says.
    let claimed = Digest::of(b"").to_string();
    let reply = Reply::whole(image().text()).header("docker-content-digest", &claimed);
    assert!(refused_manifest(reply).contains(&format!("not {claimed}")));
    let server = Server::start(&image(), |request| {
        let is_meant = request.path.contains("/manifests/");
        is_meant.then(|| Reply::whole(image().text()))
    });
    let error = Place::new().refused(&[&server.name(&format!("a/b@{claimed}"))]);
    assert!(error.contains(&format!("not {claimed}")), "{error}");
}

pub(crate) fn lies_about_sizes_are_refused() {
    let bytes = layer("noise", &noise(100_000));
    let longer = [&bytes[..], b"more"].concat();
    let error = refused_layer(Reply::whole(longer.clone()));
    assert!(
        error.contains(&format!("the registry has {} bytes of it", longer.len())),
        "{error}"
    );
    let error = refused_layer(Reply::whole(&bytes[..5000]));
    assert!(
        error.contains("the registry has 5000 bytes of it"),
        "{error}"
    );
    // One that says the right length, and has not so much, however often it is asked.
    let error = refused_layer(Reply::new(
        200,
        Body::Lie(bytes[..5000].to_vec(), bytes.len() as u64),
    ));
    assert!(
        error.contains("the connection to the registry has failed"),
        "{error}"
    );
    // A manifest that says another size.
    let right = descriptor(&bytes);
    let digest = second();
    for size in [bytes.len() - 1, bytes.len() + 1] {
        let text = image()
            .text()
            .replace(&right, &format!(r#""digest":"{digest}","size":{size}"#));
        let error = refused_text(&text);
        assert!(
            error.contains(&format!("bytes of it, not {size}")),
            "{error}"
        );
    }
    // More than there may be, before any of it is fetched.
    let text = image().text().replace(
        &right,
        &format!(r#""digest":"{digest}","size":{}"#, 1u64 << 60),
    );
    assert!(refused_text(&text).contains("--max-image-size"));
    let server = Server::start(&image(), |_| None);
    let small = ["--max-image-size", "64K", &server.name("a/b:v1")];
    let error = Place::new().refused(&small);
    assert!(error.contains("more than 65536 bytes"), "{error}");
    assert_eq!(server.blobs_asked(), 0);
}

pub(crate) fn what_has_no_end_is_cut_off() {
    let error = refused_layer(Reply::new(200, Body::Endless(7)));
    let size = layer("noise", &noise(100_000)).len();
    assert!(
        error.contains(&format!("it has more than {size} bytes")),
        "{error}"
    );
    for body in [Body::Endless(b' '), Body::Lie(Vec::new(), 5 << 20)] {
        let error = refused_manifest(Reply::new(200, body));
        assert!(
            error.contains("the registry's answer has more than 4194304 bytes"),
            "{error}"
        );
    }
    // What explains an error, of a manifest and of a layer.
    let error = refused_manifest(Reply::new(404, Body::Endless(b' ')));
    assert!(error.contains("the registry has none"), "{error}");
    let endless = Reply::new(404, Body::Endless(b' '));
    let server = Server::start(&image(), move |request| {
        request.path.contains("/blobs/").then(|| endless.clone())
    });
    Place::new().refused_soon(&server.name("a/b:v1"));
    // A token: it takes no more time or memory than there is for it.
    let server = Server::start(&image(), |request| {
        if request.path.starts_with("/token") {
            return Some(Reply::new(200, Body::Endless(b' ')));
        }
        let host = &request.headers["host"];
        let challenge = format!(r#"Bearer realm="http://{host}/token",service="test""#);
        Some(Reply::new(401, Body::Whole(Vec::new())).header("www-authenticate", &challenge))
    });
    let error = Place::new().refused_soon(&server.name("a/b:v1"));
    let is_told = ["takes too long", "more than the 1 GiB of memory"];
    assert!(is_told.iter().any(|it| error.contains(it)), "{error}");
}

pub(crate) fn what_is_no_manifest_is_refused() {
    for text in ["", "{", "[]", "<html>", &"[".repeat(100_000)] {
        let error = refused_text(text);
        assert!(
            error.contains("cannot read the manifest of the image"),
            "{error}"
        );
    }
    let index = format!(
        r#"{{"manifests":[{{{},"platform":{{"os":"linux","architecture":"s390x"}}}}]}}"#,
        descriptor(b"x")
    );
    let error = refused_text(&index);
    let expected = r#"the image is for "linux/s390x", not for linux/amd64"#;
    assert!(error.contains(expected), "{error}");
    // An index that leads to itself cannot be made; one that leads to others without end can.
    let server = Server::start(&Image::default(), endless_indexes());
    let error = Place::new().refused(&[&server.name("a/b:v1")]);
    assert!(error.contains("leads to indexes only"), "{error}");
    let layers = vec![format!("{{{}}}", descriptor(b"x")); 513].join(",");
    let text = format!(
        r#"{{"config":{{{}}},"layers":[{layers}]}}"#,
        descriptor(b"x")
    );
    assert!(refused_text(&text).contains("too many layers"));
    let old = r#"{"schemaVersion":1,"name":"a/b","fsLayers":[]}"#;
    assert!(refused_text(old).contains("no longer in use"));
    let helm = r#"{"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json"},"layers":[]}"#;
    assert!(refused_text(helm).contains("no container image"));
    let path = image().text().replace("sha256:", "sha256:../");
    assert!(refused_text(&path).contains("cannot read the manifest"));
    let error = refused_manifest(Reply::new(404, Body::Whole(Vec::new())));
    assert!(error.contains("the registry has none"), "{error}");
    let error = refused_manifest(Reply::new(403, Body::Whole(Vec::new())));
    assert!(
        error.contains("the registry refuses it") && error.contains("docker login"),
        "{error}"
    );
}

/// Each index names the next one.
fn endless_indexes() -> impl Fn(&Request) -> Option<Reply> {
    let index = |inner: &str| {
        format!(
            r#"{{"manifests":[{{{inner},"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#
        )
    };
    let mut indexes = vec![index(&descriptor(b"x"))];
    for at in 0..20 {
        indexes.push(index(&descriptor(indexes[at].as_bytes())));
    }
    move |request| {
        let wanted = request.path.split_once("/manifests/")?.1;
        let is_wanted = |text: &&String| Digest::of(text.as_bytes()).to_string() == wanted;
        let found = indexes.iter().find(is_wanted).or(indexes.last())?;
        Some(Reply::whole(found.clone()))
    }
}

pub(crate) fn silence_and_dripping_end() {
    for place in ["/v2/", "/manifests/", "/blobs/"] {
        for body in [Body::Mute, Body::Silence(b"{".to_vec()), Body::Drip] {
            let reply = Reply::new(200, body.clone());
            let server = Server::start(&image(), move |request| {
                let is_meant = match place {
                    "/v2/" => request.path == place,
                    place => request.path.contains(place),
                };
                is_meant.then(|| reply.clone())
            });
            let error = Place::new().refused_soon(&server.name("a/b:v1"));
            // The body of the first answer is not looked at, and the connection made anew.
            let slow = ["says nothing", "too long", "too slow", "silence"];
            assert!(
                slow.iter().any(|it| error.contains(it)),
                "{place} {body:?}: {error}"
            );
            if place == "/v2/" {
                break;
            }
        }
    }
}

pub(crate) fn redirects_in_a_circle_end() {
    for place in ["/v2/", "/manifests/", "/blobs/"] {
        let error = refused(&image(), move |request| {
            let is_meant = match place {
                "/v2/" => request.path == place,
                place => request.path.contains(place),
            };
            let reply = Reply::new(307, Body::Whole(Vec::new()));
            is_meant.then(|| reply.header("location", &request.path))
        });
        assert!(
            error.contains("the registry leads in a circle"),
            "{place}: {error}"
        );
    }
}

pub(crate) fn a_failing_registry_is_asked_again_but_not_for_ever() {
    let error = refused_manifest(Reply::new(503, Body::Whole(Vec::new())));
    assert!(error.contains("the registry fails with 503"), "{error}");
    let error = refused_layer(Reply::new(429, Body::Whole(Vec::new())));
    assert!(error.contains("asked too often"), "{error}");
    // One that recovers is put up with.
    let asked = Mutex::<BTreeMap<String, u32>>::default();
    let server = Server::start(&image(), move |request| {
        let mut asked = asked.lock().unwrap();
        let count = asked.entry(request.path.clone()).or_default();
        *count += 1;
        (*count < 3).then(|| Reply::new(500, Body::Whole(Vec::new())))
    });
    let place = Place::new();
    let end = place.run(&["image", "pull", &server.name("a/b:v1")]);
    end.expect_code(0).expect_silence();
    assert_eq!(place.list().len(), 1);
}

pub(crate) fn words_for_a_terminal_are_taken_away() {
    let words = format!(
        r#"{{"errors":[{{"code":"DENIED","message":"\u001b]0;owned\u0007{}\nerror: other"}}]}}"#,
        "x".repeat(1000)
    );
    for error in [
        refused_manifest(Reply::new(404, Body::Whole(words.clone().into()))),
        refused_layer(Reply::new(404, Body::Whole(words.into()))),
    ] {
        assert!(error.contains("]0;owned x"), "{error}");
        assert!(
            !error.contains('\u{1b}') && !error.contains('\u{7}'),
            "{error:?}"
        );
        assert!(error.len() < 800, "{}", error.len());
    }
}
