//! Images of registries: what IMAGE means, and the program that brings them.
//!
//! What is in the cache is used without asking anybody, unless somebody wants it otherwise; nothing of HTTP or TLS is in this program.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use ampoule_store::{Digest, Image, Reference, Store};
use ampoule_vmm::config::{MemorySize, Span};
use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::report::Failure;

/// The heading of what is said about registries.
pub(super) const REGISTRY: &str = "Registry";

/// The program that speaks to registries.
const HELPER: &str = "ampoule-pull";

/// The most that it has to say.
const MAX_ANSWER: u64 = 64 << 10;

/// How often an image is pulled that somebody removes before it can be used.
const TRIES: usize = 3;

/// Ends of names of files that can be images.
const SUFFIXES: [&str; 11] = [
    ".tar",
    ".tar.gz",
    ".tgz",
    ".tar.zst",
    ".tzst",
    ".erofs",
    ".ext4",
    ".squashfs",
    ".sqfs",
    ".img",
    ".raw",
];

/// Whether a registry is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum PullPolicy {
    /// Where the image is not in the cache
    #[default]
    Missing,
    /// Always, if only for what the name means now
    Always,
    /// Not at all
    Never,
}

/// How a registry is spoken to.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct RegistryArgs {
    /// Speak plain HTTP with the registry, as is done on this host's loopback anyway
    #[arg(long, help_heading = REGISTRY)]
    pub(crate) insecure_registry: bool,
    /// How long a registry may say nothing [default: 30s]
    #[arg(long, value_name = "TIME", help_heading = REGISTRY)]
    pub(crate) registry_timeout: Option<Span>,
}

/// How an image is pulled.
pub(crate) struct Pulling<'a> {
    pub(crate) registry: &'a RegistryArgs,
    pub(crate) max_image_size: Option<MemorySize>,
    pub(crate) quiet: bool,
}

/// What IMAGE means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    Path(PathBuf),
    Registry(Reference),
}

/// What is there is a path; what cannot be anything else is one, too. Then it is a name.
pub(crate) fn meaning(image: &OsStr) -> Result<Meaning, Failure> {
    let path = Path::new(image);
    if is_path(image) || fs::symlink_metadata(path).is_ok() {
        return Ok(Meaning::Path(path.into()));
    }
    let shown = path.display();
    let fault = match image.to_str().map(str::parse::<Reference>) {
        Some(Ok(reference)) => return Ok(Meaning::Registry(reference)),
        Some(Err(error)) => error.fault(),
        None => "it is no text",
    };
    Err(Failure::new(format!(
        "\"{shown}\" is neither a file or directory nor an image's name in a registry: {fault}"
    )))
}

/// Whether a text is a path, whatever there is.
pub(crate) fn is_path(image: &OsStr) -> bool {
    let bytes = image.as_bytes();
    let first = bytes.split(|byte| *byte == b'/').next().unwrap_or(bytes);
    let ends = |suffix: &&str| bytes.ends_with(suffix.as_bytes());
    matches!(first, b"" | b"." | b"..") || SUFFIXES.iter().any(ends)
}

/// The image of a name: as the cache has it, or as the registry has it now.
pub(crate) fn image(
    reference: &Reference,
    policy: PullPolicy,
    pulling: &Pulling<'_>,
) -> Result<Image, Failure> {
    let failed = |err: ampoule_store::Error| Failure::from_error(&err, err.remedy());
    let store = Store::open_default().map_err(failed)?;
    if policy != PullPolicy::Always
        && let Some(image) = store.open_named(reference).map_err(failed)?
    {
        return Ok(image);
    }
    if policy == PullPolicy::Never {
        return Err(
            Failure::new(format!("{reference} is not in the cache")).with_help(format!(
                "leave out --pull never, or: ampoule image pull {}",
                reference.familiar()
            )),
        );
    }
    for _ in 0..TRIES {
        let pulled = pull(&store, reference, pulling)?;
        if let Some(image) = store.open_image(pulled.digest).map_err(failed)? {
            return Ok(image);
        }
    }
    Err(Failure::new(format!(
        "{reference} was removed from the cache as soon as it was there"
    )))
}

/// An image that has come.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Pulled {
    /// What the cache calls it.
    pub(crate) digest: Digest,
    /// It was there already.
    pub(crate) was_cached: bool,
}

/// What the program that pulls says.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Answer {
    Good(Pulled),
    Bad { error: String, help: Option<String> },
}

/// Brings an image into the cache.
pub(crate) fn pull(
    store: &Store,
    reference: &Reference,
    pulling: &Pulling<'_>,
) -> Result<Pulled, Failure> {
    let helper = helper().ok_or_else(|| {
        Failure::new(format!(
            "images of registries need {HELPER}, which is neither beside this program nor in PATH"
        ))
        .with_help("cargo install --path cli puts both in one place")
    })?;
    let mut command = Command::new(&helper);
    command.arg("--store").arg(store.folder());
    command.args(["--parent", &std::process::id().to_string()]);
    if let Some(size) = pulling.max_image_size {
        command.args(["--max-image-size", &size.as_bytes().to_string()]);
    }
    if let Some(time) = pulling.registry.registry_timeout {
        command.args(["--patience", &time.as_duration().as_millis().to_string()]);
    }
    if reference.is_loopback() {
        // No proxy leads to it.
        for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(name);
        }
    }
    if reference.is_loopback() || pulling.registry.insecure_registry {
        command.arg("--plain-http");
    }
    if pulling.quiet {
        command.arg("--quiet");
    }
    command.arg("--").arg(reference.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let cannot = |err: std::io::Error| {
        let why = crate::report::io_text(&err);
        Failure::new(format!("cannot run \"{}\": {why}", helper.display()))
    };
    let mut child = command.spawn().map_err(cannot)?;
    let mut text = String::new();
    let heard = match child.stdout.take() {
        Some(stdout) => stdout.take(MAX_ANSWER).read_to_string(&mut text),
        None => Ok(0),
    };
    let status = child.wait().map_err(cannot)?;
    heard.map_err(cannot)?;
    match serde_json::from_str(&text) {
        Ok(Answer::Good(pulled)) => Ok(pulled),
        Ok(Answer::Bad { error, help }) => Err(Failure {
            message: error,
            help,
        }),
        Err(_) => Err(Failure::new(format!(
            "{HELPER} has died, {status}, on {reference}"
        ))),
    }
}

/// Where the program is: beside this one, or in PATH.
fn helper() -> Option<PathBuf> {
    let own = env::current_exe().ok();
    let beside = own.and_then(|own| Some(own.parent()?.to_owned()));
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = beside.into_iter().chain(env::split_paths(&path));
    let mut programs = folders.map(|folder| folder.join(HELPER));
    programs.find(|program| program.is_file())
}

/// A failure to pull what might have been meant as a path.
pub(crate) fn with_both_readings(failure: Failure, image: &OsStr) -> Failure {
    let shown = Path::new(image).display();
    let note = format!("no file or directory is called \"{shown}\", so that a registry was asked");
    match failure.help {
        Some(help) => Failure {
            help: Some(format!("{help}; {note}")),
            ..failure
        },
        None => failure.with_help(note),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_names_are_told_apart() {
        let folder = std::env::temp_dir();
        let folder = folder.as_os_str();
        assert!(matches!(meaning(folder), Ok(Meaning::Path(_))));
        for path in [
            "",
            ".",
            "..",
            "/",
            "./debian",
            "../a",
            "/no/such",
            "no.tar",
            "no.tar.gz",
            "a/b.erofs",
            "x.img",
        ] {
            let meant = meaning(OsStr::new(path));
            assert!(matches!(meant, Ok(Meaning::Path(_))), "{path}");
        }
        for name in [
            "debian:12",
            "no-such-folder",
            "a/b",
            "localhost:5000/a",
            ".a/b",
        ] {
            let meant = meaning(OsStr::new(name));
            match name.parse::<Reference>() {
                Ok(reference) => assert_eq!(meant.unwrap(), Meaning::Registry(reference)),
                Err(_) => {
                    let message = meant.unwrap_err().message;
                    assert!(message.contains("neither a file or directory"), "{message}");
                }
            }
        }
        let fault = meaning(OsStr::new("NoSuch")).unwrap_err().message;
        assert!(fault.ends_with("it has capital letters"), "{fault}");
        assert!(meaning(OsStr::from_bytes(b"\xff\xfe")).is_err());
    }

    #[test]
    fn answers_are_read() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let text = format!(r#"{{"digest":"{digest}","manifest":"{digest}","was-cached":true}}"#);
        let good = serde_json::from_str(&text).unwrap();
        assert!(matches!(
            good,
            Answer::Good(Pulled {
                was_cached: true,
                ..
            })
        ));
        let bad = serde_json::from_str(r#"{"error":"x","help":null}"#).unwrap();
        assert!(matches!(bad, Answer::Bad { error, help: None } if error == "x"));
        assert!(serde_json::from_str::<Answer>("").is_err());
    }
}
