//! Names of images in registries, as docker(1) reads them: `debian`, `debian:12`, `quay.io/a/b:v1`, `localhost:5000/x@sha256:…`.
//!
//! The grammar is that of the distribution project's references, which the OCI distribution specification repeats in part ("Pulling
//! manifests"): what has no registry is Docker Hub's, what has neither tag nor digest is `latest`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::digest::Digest;

/// The registry of names that say none.
const DOCKER_HUB: &str = "docker.io";
/// What Docker Hub was called once.
const OLD_DOCKER_HUB: &str = "index.docker.io";
/// Whose images have no owner there.
const LIBRARY: &str = "library/";
/// The tag of names that say none.
const LATEST: &str = "latest";

/// As many bytes as a name may have, without its tag and digest.
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// An image's name in a registry, complete: one of the same image is written the same way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    version: Version,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Version {
    Tag(String),
    Digest(Digest),
}

/// A text is no name of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is no image's name: {fault}")]
pub struct ReferenceError {
    text: String,
    fault: &'static str,
}

impl ReferenceError {
    /// What is wrong with it, in a few words.
    #[must_use]
    pub fn fault(&self) -> &'static str {
        self.fault
    }
}

impl Reference {
    /// The registry: a host, and a port where one is named.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The image's name there, without tag and digest.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, where no digest is named.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        match &self.version {
            Version::Tag(tag) => Some(tag),
            Version::Digest(_) => None,
        }
    }

    /// The digest of its manifest, where it is named. A tag beside it says nothing, and is not kept.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        match &self.version {
            Version::Tag(_) => None,
            Version::Digest(digest) => Some(*digest),
        }
    }

    /// The same image by the digest of its manifest.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            version: Version::Digest(digest),
            ..self.clone()
        }
    }

    /// As short as a person would write it.
    #[must_use]
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let short = full.strip_prefix("docker.io/").unwrap_or(&full);
        let shorter = short.strip_prefix(LIBRARY).unwrap_or(short);
        // Without its beginning, a name may be one of another registry or owner.
        let means_the_same = |name: &&str| name.parse().as_ref() == Ok(self);
        let mut names = [shorter, short].into_iter();
        names.find(means_the_same).unwrap_or(&full).into()
    }

    /// Whether the registry is on this machine's loopback: nobody is in between, so that plain HTTP will do, as it does for Docker.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let (host, _) = split_port(&self.registry);
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || bare
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match &self.version {
            Version::Tag(tag) => write!(f, ":{tag}"),
            Version::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|fault| ReferenceError {
            text: text.chars().take(NAME_MAX).collect(),
            fault,
        })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let has_kind = digest.starts_with("sha256:");
            let digest = digest.parse::<Digest>().ok().filter(|_| has_kind);
            (rest, Some(digest.ok_or("its digest is not a SHA-256 one")?))
        }
        None => (text, None),
    };
    // A colon before a slash is a port's.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if is_registry(first) => (first, path),
        _ => (DOCKER_HUB, name),
    };
    check_registry(registry)?;
    if name.len() > NAME_MAX {
        return Err("it is too long");
    }
    if path.is_empty() {
        return Err("it is empty");
    }
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("it has capital letters");
    }
    if !path.split('/').all(is_component) {
        return Err(
            "its parts are lower-case letters and digits, with single \".\", \"_\" or \"-\" between them",
        );
    }
    // An image's digest that has lost its beginning.
    if registry == DOCKER_HUB && path.parse::<Digest>().is_ok() {
        return Err("it is a digest, of what is not said");
    }
    let is_hub = registry == DOCKER_HUB || registry == OLD_DOCKER_HUB;
    let registry = if is_hub { DOCKER_HUB } else { registry };
    let owner = if is_hub && !path.contains('/') {
        LIBRARY
    } else {
        ""
    };
    Ok(Reference {
        registry: registry.into(),
        repository: format!("{owner}{path}"),
        version: match digest {
            Some(digest) => Version::Digest(digest),
            None => Version::Tag(tag.unwrap_or(LATEST).into()),
        },
    })
}

/// Whether a name's first part is a registry, and not an owner on Docker Hub.
fn is_registry(first: &str) -> bool {
    let is_upper = |byte: u8| byte.is_ascii_uppercase();
    first == "localhost" || first.contains(['.', ':', '[']) || first.bytes().any(is_upper)
}

fn split_port(registry: &str) -> (&str, Option<&str>) {
    match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (registry, None),
    }
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    let (host, port) = split_port(registry);
    if port.is_some_and(|port| port.parse::<u16>().is_err() || port.starts_with('+')) {
        return Err("its registry's port is no number up to 65535");
    }
    let address = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    if address.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok()) {
        return Ok(());
    }
    let is_label = |label: &str| {
        let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty()
            && label.bytes().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match host.split('.').all(is_label) {
        true => Ok(()),
        false => Err("its registry is no host's name"),
    }
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let is_inner = |byte: u8| is_word(byte) || byte == b'.' || byte == b'-';
    let starts_well = tag.bytes().next().is_some_and(is_word);
    if !starts_well || !tag.bytes().all(is_inner) {
        return Err("its tag is empty or has characters that tags have not");
    }
    if tag.len() > TAG_MAX {
        return Err("its tag is too long");
    }
    Ok(())
}

/// Runs of letters and digits, between which there is `.`, `_`, `__` or any number of `-`.
fn is_component(part: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends_well = |byte: Option<&u8>| byte.copied().is_some_and(is_word);
    if !ends_well(bytes.first()) || !ends_well(bytes.last()) {
        return false;
    }
    let runs = bytes.split(|byte| is_word(*byte));
    runs.into_iter()
        .all(|run| matches!(run, b"" | b"." | b"_" | b"__") || run.iter().all(|byte| *byte == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn full(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn names_are_completed_as_docker_completes_them() {
        for (short, complete) in [
            ("debian", "docker.io/library/debian:latest"),
            ("debian:12", "docker.io/library/debian:12"),
            ("a/b", "docker.io/a/b:latest"),
            ("a/b/c:x", "docker.io/a/b/c:x"),
            ("docker.io/debian", "docker.io/library/debian:latest"),
            ("index.docker.io/a/b", "docker.io/a/b:latest"),
            ("quay.io/a:v1", "quay.io/a:v1"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("Upper/a", "Upper/a:latest"),
            ("a__b.c-d--e_f", "docker.io/library/a__b.c-d--e_f:latest"),
        ] {
            assert_eq!(full(short), complete, "{short}");
            assert_eq!(full(complete), complete);
        }
        assert_eq!(
            full(&format!("debian:12@{DIGEST}")),
            format!("docker.io/library/debian@{DIGEST}")
        );
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for wrong in [
            "",
            "/a",
            "a/",
            "a//b",
            "./a",
            "../a",
            "a:",
            "a:b c",
            "a:-b",
            "Debian",
            "a/B",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "a b",
            "a\nb",
            "é",
            "a@sha512:00",
            &format!("a@{}", &DIGEST[7..]),
            &DIGEST[7..],
            "host:99999/a",
            "host:/a",
            "-x.y/a",
            "a..b.c/d",
            "[::1/a",
            "[x]/a",
            "a.b/",
            &"a".repeat(256),
            &format!("a:{}", "t".repeat(129)),
        ] {
            assert!(wrong.parse::<Reference>().is_err(), "{wrong:?}");
        }
        let fault = "Debian".parse::<Reference>().unwrap_err();
        assert_eq!(
            fault.to_string(),
            r#""Debian" is no image's name: it has capital letters"#
        );
    }

    #[test]
    fn a_familiar_name_is_short_and_means_the_same() {
        for name in [
            "debian:12",
            "a/b:latest",
            "localhost:5000/a:b",
            "library/a/b:c",
            "docker.io/localhost/a:b",
            "docker.io/a.b/c:d",
        ] {
            let reference: Reference = name.parse().unwrap();
            assert_eq!(reference.familiar(), name);
        }
        let by_digest: Reference = format!("debian@{DIGEST}").parse().unwrap();
        assert_eq!(by_digest.familiar(), format!("debian@{DIGEST}"));
        assert_eq!(by_digest.tag(), None);
    }

    #[test]
    fn loopback_is_told_from_what_only_looks_like_it() {
        for (name, expected) in [
            ("localhost/a", true),
            ("localhost:5000/a", true),
            ("127.0.0.1/a", true),
            ("127.9.9.9:1/a", true),
            ("[::1]:5000/a", true),
            ("localhost.example.com/a", false),
            ("127.0.0.1.nip.io/a", false),
            ("10.0.0.1:5000/a", false),
            ("debian", false),
        ] {
            let reference: Reference = name.parse().unwrap();
            assert_eq!(reference.is_loopback(), expected, "{name}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_read_in_two_ways(text in "[a-zA-Z0-9.:/@_-]{0,40}|\\PC{0,20}") {
            if let Ok(reference) = text.parse::<Reference>() {
                proptest::prop_assert_eq!(reference.to_string().parse(), Ok(reference.clone()));
                proptest::prop_assert_eq!(reference.familiar().parse(), Ok(reference));
            }
        }
    }
}
