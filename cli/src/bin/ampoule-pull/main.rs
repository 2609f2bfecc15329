//! `ampoule-pull`: brings an image from a registry into the cache. `ampoule` runs it; a person has `ampoule image pull`.
//!
//! A program of its own, so that an HTTP client, TLS and an async runtime cost a VM nothing: they are not in `ampoule`, and are gone
//! before a guest starts. And a registry is not trusted: what goes wrong in here, memory included, ends in here.
//!
//! The result is one line of JSON on standard output, an image or an error; progress goes to standard error, where that is a terminal.

mod answer;
mod credentials;
mod fault;
mod memory;
#[path = "../../command/progress.rs"]
mod progress;
mod registry;

use std::cell::RefCell;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use ampoule_store::{
    Blob, Contents, Digest, Image, Limits, Phase, Progress, Pull, Reference, Store,
};
use clap::Parser;
use futures_util::stream::{self, TryStreamExt};
use rustix::process::Signal;

use answer::Answer;
use fault::Fault;
use progress::Bar;
use registry::Registry;

/// `ampoule` itself or the host failed, as of `ampoule`.
const EXIT_FAILURE: u8 = 125;

/// Layers that are fetched at a time, as Docker does it.
const AT_ONCE: usize = 3;

/// An index may lead to an index, once for the platforms; more is no image.
const MAX_INDEXES: usize = 4;

/// Brings an image from a registry into Ampoule's cache. It is for `ampoule`, which runs it: see `ampoule image pull`.
#[derive(Debug, Parser)]
#[command(name = "ampoule-pull", version)]
struct Args {
    /// The folder of the cache's images
    #[arg(long)]
    store: PathBuf,
    /// The most that the image may unpack to, and that its layers may have, in bytes
    #[arg(long)]
    max_image_size: Option<u64>,
    /// How long a registry may say nothing, in milliseconds
    #[arg(long, default_value_t = 30_000)]
    patience: u64,
    /// Speak plain HTTP
    #[arg(long)]
    plain_http: bool,
    /// Show no progress
    #[arg(long)]
    quiet: bool,
    /// The process that runs this one, and that it ends with
    #[arg(long)]
    parent: Option<i32>,
    /// The image's name
    reference: Reference,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(fault) = end_with(args.parent) {
        return tell(&Err(fault));
    }
    tell(&pull(&args))
}

/// Has this process end when the one does that has started it.
fn end_with(parent: Option<i32>) -> Result<(), Fault> {
    let Some(parent) = parent else {
        return Ok(());
    };
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(|err| Fault::new(format!("cannot watch ampoule: {err}")))?;
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    match now == Some(parent) {
        true => Ok(()),
        false => Err(Fault::new("ampoule has ended")),
    }
}

fn tell(result: &Result<Answer, Fault>) -> ExitCode {
    let (text, code) = match result {
        Ok(answer) => (answer.to_json(), ExitCode::SUCCESS),
        Err(fault) => (fault.to_json(), ExitCode::from(EXIT_FAILURE)),
    };
    // Nobody reads it where `ampoule` has ended.
    let _ = writeln!(io::stdout(), "{text}");
    code
}

fn pull(args: &Args) -> Result<Answer, Fault> {
    let store = Store::open(&args.store)?;
    let mut limits = Limits::default();
    if let Some(size) = args.max_image_size {
        limits.max_image_size = size;
    }
    let bar = RefCell::new(Bar::new(args.quiet));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|err| Fault::new(format!("cannot start: {err}")))?;
    let limit = memory::Limit::new();
    let job = Job {
        store: &store,
        args,
        limits,
        bar: &bar,
    };
    let found = runtime.block_on(job.fetch());
    drop(runtime);
    drop(limit);
    let found = found.and_then(|found| match found {
        Found::Here(image, manifest) => Ok(Answer::new(&image, manifest, true)),
        Found::Fetched {
            pull,
            manifest,
            named,
        } => {
            let progress = &mut |progress| bar.borrow_mut().show(progress);
            let image = pull.finish(&args.reference, named, &manifest, limits, progress)?;
            Ok(Answer::new(&image, named, false))
        }
    });
    bar.into_inner().finish();
    found.map_err(|fault| fault.of(&format!("cannot pull {}", args.reference)))
}

/// What a registry has led to.
enum Found {
    /// The cache has the image already; the digest of what the registry has under its name.
    Here(Image, Digest),
    /// All blobs are there.
    Fetched {
        pull: Pull,
        manifest: Digest,
        named: Digest,
    },
}

struct Job<'a> {
    store: &'a Store,
    args: &'a Args,
    limits: Limits,
    bar: &'a RefCell<Bar>,
}

impl Job<'_> {
    async fn fetch(&self) -> Result<Found, Fault> {
        let Args {
            reference,
            plain_http,
            patience,
            ..
        } = self.args;
        let patience = Duration::from_millis((*patience).max(1));
        let registry = Registry::connect(reference, *plain_http, patience).await?;
        if let Some(known) = self.store.named(reference)
            && let Some(image) = self.store.open_image(known.digest)?
            && registry.digest().await? == Some(known.manifest)
        {
            self.store.set_name(reference, &image, known.manifest)?;
            return Ok(Found::Here(image, known.manifest));
        }
        let (mut bytes, named) = registry.manifest(None).await?;
        let mut manifest = named;
        let mut indexes = 0;
        let (config, layers) = loop {
            match Contents::read(&bytes, self.limits)? {
                Contents::Image { config, layers } => break (config, layers),
                Contents::Manifest(next) if indexes < MAX_INDEXES => {
                    indexes += 1;
                    (bytes, manifest) = registry.manifest(Some(next)).await?;
                }
                _ => return Err(Fault::new("the image's index leads to indexes only")),
            }
        };
        if let Some(found) = self.found(&config.digest, named)? {
            return Ok(found);
        }
        let show = &mut |progress| self.bar.borrow_mut().show(progress);
        let pull = self.store.pull(&manifest, show)?;
        // Who was waited for may have made it.
        if let Some(found) = self.found(&config.digest, named)? {
            return Ok(found);
        }
        let path = pull.blob(&manifest);
        std::fs::write(&path, &bytes).map_err(|err| Fault::of_file("write", &path, &err))?;
        self.blobs(&registry, &pull, config, &layers).await?;
        Ok(Found::Fetched {
            pull,
            manifest,
            named,
        })
    }

    /// The image of this digest, if the cache has it, with the name that it is wanted by.
    fn found(&self, digest: &Digest, named: Digest) -> Result<Option<Found>, Fault> {
        let Some(image) = self.store.open_image(*digest)? else {
            return Ok(None);
        };
        self.store.set_name(&self.args.reference, &image, named)?;
        Ok(Some(Found::Here(image, named)))
    }

    async fn blobs(
        &self,
        registry: &Registry,
        pull: &Pull,
        config: Blob,
        layers: &[Blob],
    ) -> Result<(), Fault> {
        let layer = |(number, blob): (usize, &Blob)| {
            let what = format!("layer {} of {}", number + 1, layers.len());
            (what, *blob)
        };
        let mut wanted = vec![("the configuration".to_owned(), config)];
        // One may be there twice, an empty one for instance.
        let mut known = vec![config.digest];
        for (what, blob) in layers.iter().enumerate().map(layer) {
            if !known.contains(&blob.digest) {
                known.push(blob.digest);
                wanted.push((what, blob));
            }
        }
        let total = wanted.iter().map(|(_, blob)| blob.size).sum();
        let done = RefCell::new(0);
        let came = |bytes: i64| {
            let mut done = done.borrow_mut();
            *done = i64::saturating_add(*done, bytes);
            self.bar.borrow_mut().show(Progress {
                phase: Phase::Fetching,
                done: u64::try_from(*done).unwrap_or(0),
                total: Some(total),
            });
        };
        stream::iter(wanted.into_iter().map(Ok))
            .try_for_each_concurrent(AT_ONCE, |(what, blob)| {
                let came = &came;
                async move { registry.blob(&what, blob, pull, came).await }
            })
            .await
    }
}
