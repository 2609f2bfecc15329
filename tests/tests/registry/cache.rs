//! `ampoule image` with what is there: names, prefixes, what is in use.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::time::{Duration, SystemTime};

use ampoule_store::Digest;
use serde_json::Value;

use crate::place::{Place, text};
use crate::server::{Image, Server, layer};

fn digests(list: &[Value]) -> Vec<&str> {
    list.iter().map(|image| text(&image["digest"])).collect()
}

pub(crate) fn several_names_and_prefixes_are_told_apart() {
    let place = Place::new();
    let mut image = Image::new(&[layer("hello", b"x")]);
    let manifest = image.manifests["v1"].clone();
    image.manifest("v2", &manifest);
    let server = Server::start(&image, |_| None);
    let (one, two) = (server.name("a/b:v1"), server.name("a/b:v2"));
    place.image(&["pull", &one]);
    place.image(&["pull", "--quiet", &two]);
    let list = place.list();
    assert_eq!(list.len(), 1);
    assert_eq!(list[0]["names"], serde_json::json!([one, two]));
    assert_eq!(list[0]["kind"], "registry");
    assert_eq!(list[0]["file-system"], "erofs");
    let digest = text(&list[0]["digest"]).to_owned();
    let hex = digest.strip_prefix("sha256:").unwrap();
    // In the table each name has a line.
    let table = place.image(&["ls"]);
    let rows = table.lines().filter(|line| line.starts_with(&hex[..12]));
    assert_eq!(rows.count(), 2, "{table}");
    // One of two names is taken away, and the image stays; it has no other.
    let said = place.image(&["rm", &two]);
    assert!(said.contains("is no longer sha256:"), "{said}");
    assert_eq!(place.list()[0]["names"], serde_json::json!([one]));
    let end = place.run(&["image", "rm", &two]).expect_code(125);
    end.expect_error(&format!("0 images in the cache are called \"{two}\""))
        .expect_error("ampoule image ls");
    // Until there are two whose digests begin alike, any beginning will do.
    let mut number = 0;
    let twin = loop {
        number += 1;
        let other = Image::new(&[layer("hello", format!("{number}").as_bytes())]);
        let config = other
            .blobs
            .values()
            .find(|it| it.starts_with(b"{"))
            .unwrap();
        if Digest::of(config).hex()[..2] == hex[..2] {
            break other;
        }
    };
    let server = Server::start(&twin, |_| None);
    place.image(&["pull", &server.name("c:v1")]);
    assert_eq!(place.list().len(), 2);
    // Two digits are not enough to go by.
    place.run(&["image", "inspect", &hex[..2]]).expect_code(125);
    place.image(&["inspect", &hex[..12]]);
    let said = place.image(&["rm", &hex[..12], &server.name("c:v1")]);
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(place.list().is_empty());
    let left: Vec<_> = place
        .files()
        .into_iter()
        .filter(|path| !path.ends_with("lock"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

pub(crate) fn what_is_used_stays() {
    let place = Place::new();
    let servers: Vec<Server> = [b"1", b"2"]
        .iter()
        .map(|content| Server::start(&Image::new(&[layer("hello", *content)]), |_| None))
        .collect();
    let names: Vec<String> = servers.iter().map(|server| server.name("a:v1")).collect();
    for name in &names {
        place.image(&["pull", name]);
    }
    let list = place.list();
    let used = |image: &&Value| image["names"] == serde_json::json!([names[0]]);
    let used = text(&list.iter().find(used).unwrap()["digest"]).to_owned();
    let digest = used.replace(':', "-");
    // As a VM holds it while it runs.
    let lock = File::create(place.images().join(format!("{digest}.lock"))).unwrap();
    // SAFETY: takes no pointer; the descriptor is open.
    let locked = unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_SH) };
    assert_eq!(locked, 0);
    let end = place.run(&["image", "rm", &names[0]]).expect_code(125);
    end.expect_error("is being used")
        .expect_error("end the VMs");
    let said = place.image(&["prune", "--older-than", "1h"]);
    assert!(said.starts_with("0 B free"), "{said}");
    let said = place.image(&["prune"]);
    assert!(said.contains("1 image is being used, and stays"), "{said}");
    assert_eq!(digests(&place.list()), [used]);
    assert_eq!(place.list()[0]["names"], serde_json::json!([names[0]]));
    drop(lock);
    assert!(place.image(&["prune"]).starts_with("removed sha256:"));
    assert!(place.list().is_empty());
    // A time that is none.
    let end = place
        .run(&["image", "prune", "--older-than", "1y"])
        .expect_code(125);
    end.expect_error("30d");
}

/// What was made for VMs goes when it was not used for an hour; what a VM may just be starting with stays.
pub(crate) fn what_was_made_for_vms_goes_when_it_is_old() {
    let place = Place::new();
    let cache = place.folder().join("cache/ampoule");
    let long_ago = SystemTime::now() - Duration::from_secs(7200);
    for folder in ["initramfs", "kernels"] {
        let folder = cache.join(folder);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("new"), "x").unwrap();
        fs::write(folder.join("old"), vec![0; 3000]).unwrap();
        let old = File::open(folder.join("old")).unwrap();
        old.set_modified(long_ago).unwrap();
    }
    let said = place.image(&["prune"]);
    assert!(said.starts_with("6.0 kB free"), "{said}");
    for folder in ["initramfs", "kernels"] {
        assert!(cache.join(folder).join("new").exists());
        assert!(!cache.join(folder).join("old").exists());
    }
}
