//! `ampoule image`: what is in the cache of images, what is brought there, and what is removed.

mod table;

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ampoule_image::initramfs;
use ampoule_store::{CachedImage, Digest, Reference, Removal, SourceKind, Store};
use ampoule_vmm::config::MemorySize;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::EXIT_FAILURE;
use crate::command::registry::{self, Pulling, RegistryArgs};
use crate::report::{self, Failure};

/// How many digits of a digest are enough for a person.
const SHORT: usize = 12;

const EXAMPLES: &str = "\
Examples:
  ampoule image pull debian:12
  ampoule image ls
  ampoule image inspect debian:12 --json
  ampoule image rm 3f4a debian:12
  ampoule image prune --older-than 30d";

/// `ampoule image`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

/// What can be done with images.
#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// List the images, the last used first
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Tell what is known of images
    Inspect {
        /// Each by its name, its source's path, or the first digits of its digest, four or more
        #[arg(value_name = "IMAGE", required = true)]
        images: Vec<String>,
        /// Print JSON, in the form that docker image inspect has
        #[arg(long)]
        json: bool,
    },
    /// Bring an image from its registry, if the registry has another one than the cache
    Pull(PullArgs),
    /// Remove images
    ///
    /// One with several names loses only the one that is given; by its digest it is removed with all. What a VM uses stays.
    Rm {
        /// Each by its name, its source's path, or the first digits of its digest, four or more
        #[arg(value_name = "IMAGE", required = true)]
        images: Vec<String>,
    },
    /// Remove all images that no VM uses, and what is left over
    ///
    /// Nothing is asked: what is removed is made or pulled again when it is wanted. With the images go downloads that were cut
    /// off, and initial RAM disks that were not used for an hour.
    Prune {
        /// Only what was not used for this time, such as 12h or 30d
        #[arg(long, value_name = "TIME", value_parser = age)]
        older_than: Option<Duration>,
    },
}

/// `ampoule image pull`.
#[derive(Debug, Args)]
struct PullArgs {
    /// Its name, as for docker pull: debian:12, quay.io/a/b:v1, localhost:5000/c@sha256:…
    #[arg(value_name = "NAME")]
    name: Reference,
    #[command(flatten)]
    registry: RegistryArgs,
    /// The most that the image may unpack to [default: 16G]
    #[arg(long, value_name = "SIZE")]
    max_image_size: Option<MemorySize>,
    /// Show no progress, and print the digest only
    #[arg(short, long)]
    quiet: bool,
}

/// A time in seconds, minutes, hours, days or weeks.
fn age(text: &str) -> Result<Duration, String> {
    let malformed = || format!("\"{text}\" is no time: write 90s, 30m, 12h, 30d or 4w");
    let split = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(split.ok_or_else(malformed)?);
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return Err(malformed()),
    };
    let seconds = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    seconds.map(Duration::from_secs).ok_or_else(malformed)
}

fn failed(error: ampoule_store::Error) -> Failure {
    Failure::from_error(&error, error.remedy())
}

/// Does what was asked for; the exit status.
pub(crate) fn run(args: ImageArgs) -> Result<u8, Failure> {
    let store = Store::open_default().map_err(failed)?;
    match args.command {
        ImageCommand::Ls { json } => {
            let images = store.list().map_err(failed)?;
            print(&match json {
                true => pretty(&json!(images))?,
                false => table::of(&images, now()),
            })
        }
        ImageCommand::Inspect { images, json } => inspect(&store, &images, json),
        ImageCommand::Pull(args) => pull(&store, &args),
        ImageCommand::Rm { images } => remove(&store, &images),
        ImageCommand::Prune { older_than } => prune(&store, older_than.unwrap_or_default()),
    }
}

fn print(text: &str) -> Result<u8, Failure> {
    report::print_stdout(text)
        .map_err(|err| Failure::new(format!("cannot print: {}", report::io_text(&err))))?;
    Ok(0)
}

fn pretty(value: &Value) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value);
    text.map(|text| text + "\n")
        .map_err(|err| Failure::new(format!("cannot print: {err}")))
}

/// In seconds since 1970.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// A complete name as a person would write it.
fn familiar(name: &str) -> String {
    let reference = name.parse::<Reference>();
    reference.map_or_else(|_| name.into(), |reference| reference.familiar())
}

/// What an image is called, or what it was made from.
fn titles(image: &CachedImage) -> Vec<String> {
    let mut titles: Vec<String> = image.names.iter().map(|name| familiar(name)).collect();
    titles.extend(image.name.clone());
    if titles.is_empty() && image.kind != SourceKind::Registry {
        titles.push(image.source.display().to_string());
    }
    titles
}

fn inspect(store: &Store, names: &[String], as_json: bool) -> Result<u8, Failure> {
    let mut images = Vec::new();
    for name in names {
        images.push(store.inspect(name).map_err(failed)?);
    }
    if as_json {
        let values: Vec<Value> = images.iter().map(docker).collect();
        return print(&pretty(&json!(values))?);
    }
    let texts: Vec<String> = images.iter().map(description).collect();
    print(&texts.join("\n"))
}

/// What `docker image inspect` would say, as far as it is known, and what only the cache knows.
fn docker(image: &CachedImage) -> Value {
    let config = &image.config;
    let familiar = |names: &[String]| names.iter().map(|it| familiar(it)).collect::<Vec<_>>();
    let mut tags = familiar(&image.names);
    tags.extend(image.name.clone());
    let ports = config.exposed_ports.iter();
    let ports: serde_json::Map<String, Value> =
        ports.map(|port| (port.clone(), json!({}))).collect();
    json!({
        "Id": image.digest,
        "RepoTags": tags,
        "RepoDigests": familiar(&image.manifests),
        "Os": "linux",
        "Size": image.size,
        "Config": {
            "Entrypoint": config.entrypoint,
            "Cmd": config.cmd,
            "Env": config.env,
            "User": config.user,
            "WorkingDir": config.working_dir,
            "Labels": config.labels,
            "ExposedPorts": ports,
            "StopSignal": config.stop_signal,
        },
        "RootFS": { "Type": "layers", "Layers": image.layers },
        "Ampoule": {
            "Path": image.path,
            "FileSystem": image.file_system,
            "Source": image.source,
            "Kind": image.kind,
            "Created": image.created,
            "LastUsed": image.last_used,
        },
    })
}

fn description(image: &CachedImage) -> String {
    let config = &image.config;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            // A string takes all that is written to it.
            let _ = writeln!(text, "{name:<12} {}", plain(value));
        }
    };
    let words = |words: &[String]| match words {
        [] => String::new(),
        words => format!("{words:?}"),
    };
    line("digest", &image.digest.to_string());
    for title in titles(image) {
        line("name", &title);
    }
    for name in &image.manifests {
        line("manifest", &familiar(name));
    }
    line("source", &image.source.display().to_string());
    line("from", kind(image));
    line("file", &image.path.display().to_string());
    line("file system", image.file_system.name());
    line("size", &table::size(image.size));
    line("created", &table::ago(image.created, now()));
    line("last used", &table::ago(image.last_used, now()));
    line("entrypoint", &words(&config.entrypoint));
    line("cmd", &words(&config.cmd));
    for variable in &config.env {
        line("env", variable);
    }
    line("user", &config.user);
    line("workdir", &config.working_dir);
    line("stop signal", &config.stop_signal);
    for port in &config.exposed_ports {
        line("port", port);
    }
    for (name, value) in &config.labels {
        line("label", &format!("{name}={value}"));
    }
    for layer in &image.layers {
        line("layer", &layer.to_string());
    }
    text
}

/// What an image says of itself, without what a terminal would heed.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// What an image was made from, in a word or two.
fn kind(image: &CachedImage) -> &'static str {
    match image.kind {
        SourceKind::Directory => "a directory",
        SourceKind::DockerArchive => "a Docker archive",
        SourceKind::OciArchive => "an OCI archive",
        SourceKind::OciLayout => "an OCI layout",
        SourceKind::RootArchive => "a root archive",
        SourceKind::Registry => "a registry",
        _ => "a file",
    }
}

fn pull(store: &Store, args: &PullArgs) -> Result<u8, Failure> {
    let pulling = Pulling {
        registry: &args.registry,
        max_image_size: args.max_image_size,
        quiet: args.quiet,
    };
    let pulled = registry::pull(store, &args.name, &pulling)?;
    if args.quiet {
        return print(&format!("{}\n", pulled.digest));
    }
    let what = match pulled.was_cached {
        true => "is up to date",
        false => "is here",
    };
    print(&format!("{} {what}: {}\n", args.name, pulled.digest))
}

/// Removes what it can of these, and tells of the others.
fn remove(store: &Store, names: &[String]) -> Result<u8, Failure> {
    let mut code = 0;
    for name in names {
        match remove_one(store, name) {
            Ok(said) => {
                print(&said)?;
            }
            Err(failure) => {
                failure.print();
                code = EXIT_FAILURE;
            }
        }
    }
    Ok(code)
}

fn remove_one(store: &Store, name: &str) -> Result<String, Failure> {
    let image = store.inspect(name).map_err(failed)?;
    if let Ok(reference) = name.parse::<Reference>()
        && image.names.len() > 1
        && image.names.contains(&reference.to_string())
    {
        store.forget(&reference).map_err(failed)?;
        return Ok(format!("{reference} is no longer {}\n", image.digest));
    }
    match store.remove(&image.digest).map_err(failed)? {
        Removal::Removed { size } => Ok(removed(&image.digest, &titles(&image), Some(size))),
        Removal::InUse => Err(Failure::new(format!(
            "{} is being used or made",
            titles(&image).first().unwrap_or(&image.digest.to_string())
        ))
        .with_help("end the VMs that run from it first")),
        _ => Err(Failure::new(format!("{name} is gone already"))),
    }
}

fn removed(digest: &Digest, titles: &[String], size: Option<u64>) -> String {
    let titles = match titles {
        [] => String::new(),
        titles => format!(" ({})", plain(&titles.join(", "))),
    };
    let size = size.map_or(String::new(), |size| {
        format!(": {} free", table::size(size))
    });
    format!("removed {digest}{titles}{size}\n")
}

fn prune(store: &Store, older_than: Duration) -> Result<u8, Failure> {
    let known = store.list().map_err(failed)?;
    let pruned = store.prune(older_than).map_err(failed)?;
    let cache = ampoule_store::cache_folder().map_err(failed)?;
    let mut others = 0;
    for (folder, what) in [
        ("initramfs", "an initial RAM disk"),
        ("kernels", "an unpacked kernel"),
    ] {
        others += initramfs::prune(&cache.join(folder), older_than).map_err(|err| {
            let why = report::io_text(&err);
            Failure::new(format!("cannot remove {what}: {why}"))
        })?;
    }
    let mut text = String::new();
    for digest in &pruned.removed {
        let image = known.iter().find(|image| image.digest == *digest);
        text += &removed(digest, &image.map(titles).unwrap_or_default(), None);
    }
    let free = table::size(pruned.bytes + others);
    let _ = writeln!(text, "{free} free");
    match pruned.in_use.len() {
        0 => {}
        1 => text += "1 image is being used, and stays\n",
        count => {
            let _ = writeln!(text, "{count} images are being used, and stay");
        }
    }
    print(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(age("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(age("30d"), Ok(Duration::from_secs(30 * 86_400)));
        assert_eq!(age("2w"), Ok(Duration::from_secs(14 * 86_400)));
        for wrong in [
            "",
            "30",
            "d",
            "1y",
            "-1d",
            "1.5h",
            "99999999999999999999d",
            "9999999999999999999w",
        ] {
            assert!(age(wrong).is_err(), "{wrong}");
        }
    }
}
