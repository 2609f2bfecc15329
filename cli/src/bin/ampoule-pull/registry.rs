//! A registry, by the OCI distribution specification ("Pulling manifests", "Pulling blobs"): oci-client logs in and brings blobs.
//! Manifests are asked for in here, because it reads them whole, however long they are.
//!
//! Nothing is waited for without an end: a connection that is silent for `patience`, or that brings next to nothing in that time, has
//! failed. What another try may get past is tried three times, a blob from where it was cut off.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use ampoule_store::{Blob, Contents, Digest, Pull, Reference};
use futures_util::StreamExt;
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, RegistryOperation};
use reqwest::header::{ACCEPT, HeaderMap};
use reqwest::{Method, RequestBuilder, Response};
use sha2::{Digest as _, Sha256};
use tokio::time::{sleep, timeout};

use crate::credentials;
use crate::fault::{Fault, short};

/// How often something is tried in all.
const TRIES: u32 = 3;

/// How long after the first failure the second try comes; the next ones wait twice as long each.
const PAUSE: Duration = Duration::from_millis(300);

/// How many times its patience a whole document, a manifest or a token, may take.
const DOCUMENT: u32 = 2;

/// What a blob's connection must bring in the time of its patience.
const LEAST: u64 = 16 << 10;

/// The kinds of manifests and indexes that images have.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// Where a registry says what a manifest's digest is.
const DIGEST: &str = "docker-content-digest";

/// The most of an error's explanation that is read.
const MAX_EXPLANATION: u64 = 16 << 10;

pub(crate) struct Registry {
    client: Client,
    http: reqwest::Client,
    /// The image's name, as oci-client has it.
    name: oci_client::Reference,
    /// Where its manifests are.
    manifests: String,
    auth: RegistryAuth,
    token: Option<String>,
    patience: Duration,
    /// What may be the matter where it does not let us in.
    note: Option<String>,
    reference: Reference,
}

impl Registry {
    /// Logs in, where the registry wants it.
    pub(crate) async fn connect(
        reference: &Reference,
        plain_http: bool,
        patience: Duration,
    ) -> Result<Self, Fault> {
        // Fails where there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (registry, repository) = (reference.registry(), reference.repository());
        let name = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => oci_client::Reference::with_digest(
                registry.into(),
                repository.into(),
                digest.to_string(),
            ),
            (None, tag) => oci_client::Reference::with_tag(
                registry.into(),
                repository.into(),
                tag.unwrap_or("latest").into(),
            ),
        };
        let host = name.resolve_registry().to_owned();
        let (scheme, protocol) = match plain_http {
            true => ("http", ClientProtocol::HttpsExcept(vec![host.clone()])),
            false => ("https", ClientProtocol::Https),
        };
        let agent = concat!("ampoule/", env!("CARGO_PKG_VERSION"));
        let client = Client::try_from(ClientConfig {
            protocol,
            read_timeout: Some(patience),
            connect_timeout: Some(patience),
            user_agent: agent,
            ..ClientConfig::default()
        })?;
        let http = reqwest::Client::builder()
            .read_timeout(patience)
            .connect_timeout(patience)
            .user_agent(agent)
            .build()?;
        let (auth, note) = credentials::of(registry)?;
        let mut registry = Self {
            client,
            http,
            manifests: format!("{scheme}://{host}/v2/{repository}/manifests"),
            name,
            auth,
            token: None,
            patience,
            note,
            reference: reference.clone(),
        };
        registry.token = registry.log_in().await.map_err(|it| registry.explain(it))?;
        Ok(registry)
    }

    async fn log_in(&self) -> Result<Option<String>, Fault> {
        let token = self
            .tries(async || {
                let operation = RegistryOperation::Pull;
                let token = self.client.auth(&self.name, &self.auth, operation);
                Ok(self.in_time(token).await??)
            })
            .await?;
        let is_plain = |token: &String| token.bytes().all(|byte| byte.is_ascii_graphic());
        match token.as_ref().is_none_or(is_plain) {
            true => Ok(token),
            false => Err(Fault::new("the registry's token is none")),
        }
    }

    /// An error with what else a person may want to know.
    fn explain(&self, fault: Fault) -> Fault {
        match &self.note {
            Some(note) => fault.with_help(note.clone()),
            None => fault,
        }
    }

    /// The time that a document may take.
    async fn in_time<T>(&self, future: impl Future<Output = T>) -> Result<T, Fault> {
        timeout(self.patience * DOCUMENT, future)
            .await
            .map_err(|_| Fault::passing("the registry takes too long"))
    }

    /// Tries again what failed for a reason that may pass.
    async fn tries<T>(&self, mut act: impl AsyncFnMut() -> Result<T, Fault>) -> Result<T, Fault> {
        for number in 1..TRIES {
            match act().await {
                Err(fault) if fault.is_passing() => sleep(PAUSE * number).await,
                done => return done,
            }
        }
        act().await
    }

    fn request(&self, method: Method, wanted: Option<&Digest>) -> RequestBuilder {
        let wanted = match (wanted, self.reference.digest()) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(digest)) => digest.to_string(),
            (None, None) => self.reference.tag().unwrap_or("latest").into(),
        };
        let url = format!("{}/{wanted}", self.manifests);
        let request = self.http.request(method, url).header(ACCEPT, MANIFESTS);
        match (&self.token, &self.auth) {
            (Some(token), _) => request.bearer_auth(token),
            (None, RegistryAuth::Basic(user, password)) => request.basic_auth(user, Some(password)),
            (None, _) => request,
        }
    }

    /// What the registry says that the digest of the image's manifest is, without the manifest.
    pub(crate) async fn digest(&self) -> Result<Option<Digest>, Fault> {
        let answer = self
            .tries(async || {
                let answer = self.request(Method::HEAD, None).send();
                good(self.in_time(answer).await??).await
            })
            .await
            .map_err(|it| self.explain(it))?;
        Ok(digest_in(answer.headers()))
    }

    /// A manifest and its digest: the one that the image's name leads to, or another one.
    pub(crate) async fn manifest(&self, wanted: Option<Blob>) -> Result<(Vec<u8>, Digest), Fault> {
        self.tries(async || {
            let request = self.request(Method::GET, wanted.map(|blob| blob.digest).as_ref());
            self.in_time(async {
                let answer = good(request.send().await?).await?;
                let claimed = digest_in(answer.headers());
                let max = wanted.map_or(Contents::MAX_DOCUMENT, |blob| blob.size);
                let bytes = bounded(answer, max.min(Contents::MAX_DOCUMENT)).await?;
                let found = Digest::of(&bytes);
                let named = wanted.map(|blob| blob.digest).or(self.reference.digest());
                match named.or(claimed) {
                    Some(expected) if expected != found => Err(Fault::new(format!(
                        "the manifest has the digest {found}, not {expected}"
                    ))),
                    _ => Ok((bytes, found)),
                }
            })
            .await?
        })
        .await
        .map_err(|it| self.explain(it))
    }

    /// Brings a blob to its place; `came` is told how many bytes it is nearer, or further where it starts again.
    pub(crate) async fn blob(
        &self,
        what: &str,
        blob: Blob,
        pull: &Pull,
        came: &impl Fn(i64),
    ) -> Result<(), Fault> {
        let arrival = self.arrive(blob, pull, came).await;
        arrival.map_err(|it| self.explain(it.of(what)))
    }

    async fn arrive(&self, blob: Blob, pull: &Pull, came: &impl Fn(i64)) -> Result<(), Fault> {
        let (part, whole) = (pull.partial(&blob.digest), pull.blob(&blob.digest));
        if whole.exists() {
            // It is looked at once more: whoever has brought it may have died with a power cut.
            rename(&whole, &part)?;
        }
        let mut arrival = Arrival::open(&part, blob, came)?;
        let had_some = arrival.have > 0;
        self.fill(&mut arrival).await?;
        let mut found = arrival.digest()?;
        if found != blob.digest && had_some {
            arrival.start_again()?;
            self.fill(&mut arrival).await?;
            found = arrival.digest()?;
        }
        if found != blob.digest {
            return Err(Fault::new(format!(
                "it has the digest {found}, not {}",
                blob.digest
            )));
        }
        rename(&part, &whole)
    }

    /// Gets what is missing of a blob. It is tried as often again as it gets further.
    async fn fill(&self, arrival: &mut Arrival<'_>) -> Result<(), Fault> {
        let mut failures = 0;
        while arrival.have < arrival.blob.size {
            let before = arrival.have;
            match self.stream(arrival).await {
                Ok(()) => {}
                Err(fault) if fault.is_passing() => {
                    if arrival.have > before + LEAST {
                        failures = 0;
                    }
                    failures += 1;
                    if failures >= TRIES {
                        return Err(fault);
                    }
                    sleep(PAUSE * failures).await;
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(())
    }

    /// One try.
    async fn stream(&self, arrival: &mut Arrival<'_>) -> Result<(), Fault> {
        let digest = arrival.blob.digest.to_string();
        let response =
            self.client
                .pull_blob_stream_partial(&self.name, &digest[..], arrival.have, None);
        let mut stream = match self.in_time(response).await?? {
            BlobResponse::Partial(stream) => stream,
            BlobResponse::Full(stream) => {
                arrival.start_again()?;
                stream
            }
        };
        let expected = arrival.blob.size - arrival.have;
        if let Some(length) = stream.content_length.filter(|length| *length != expected) {
            return Err(Fault::new(format!(
                "the registry has {length} bytes of it, not {expected}"
            )));
        }
        let mut window = (Instant::now(), arrival.have);
        while arrival.have < arrival.blob.size {
            let chunk = timeout(self.patience, stream.next())
                .await
                .map_err(|_| Fault::passing("the registry says nothing any more"))?;
            match chunk {
                Some(Ok(chunk)) => arrival.take(&chunk)?,
                Some(Err(error)) => {
                    let why = match error
                        .get_ref()
                        .and_then(|it| it.downcast_ref::<reqwest::Error>())
                    {
                        Some(error) if error.is_timeout() => "silence".to_owned(),
                        _ => short(&error.to_string()),
                    };
                    return Err(Fault::passing(format!(
                        "the connection to the registry has failed: {why}"
                    )));
                }
                None => break,
            }
            if window.0.elapsed() > self.patience {
                if arrival.have - window.1 < LEAST {
                    return Err(Fault::passing("the registry is too slow"));
                }
                window = (Instant::now(), arrival.have);
            }
        }
        match arrival.have == arrival.blob.size {
            true => Ok(()),
            false => Err(Fault::passing(format!(
                "it ends after {} of {} bytes",
                arrival.have, arrival.blob.size
            ))),
        }
    }
}

/// A blob that comes in pieces.
struct Arrival<'a> {
    file: File,
    path: &'a Path,
    blob: Blob,
    have: u64,
    hash: Sha256,
    came: &'a dyn Fn(i64),
}

impl<'a> Arrival<'a> {
    /// Takes up what an earlier try has left.
    fn open(path: &'a Path, blob: Blob, came: &'a dyn Fn(i64)) -> Result<Self, Fault> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options
            .open(path)
            .map_err(|err| Fault::of_file("create", path, &err))?;
        let mut arrival = Self {
            file,
            path,
            blob,
            have: 0,
            hash: Sha256::new(),
            came,
        };
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = arrival.file.read(&mut buffer);
            let count = read.map_err(|err| Fault::of_file("read", path, &err))?;
            if count == 0 {
                break;
            }
            arrival.have += count as u64;
            arrival.hash.update(&buffer[..count]);
            if arrival.have > blob.size {
                (arrival.came)(0);
                arrival.restart()?;
                return Ok(arrival);
            }
        }
        (arrival.came)(i64::try_from(arrival.have).unwrap_or(0));
        Ok(arrival)
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let count = bytes.len() as u64;
        if count > self.blob.size - self.have {
            return Err(Fault::new(format!(
                "it has more than {} bytes",
                self.blob.size
            )));
        }
        self.file
            .write_all(bytes)
            .map_err(|err| Fault::of_file("write", self.path, &err))?;
        self.hash.update(bytes);
        self.have += count;
        (self.came)(i64::try_from(count).unwrap_or(0));
        Ok(())
    }

    fn start_again(&mut self) -> Result<(), Fault> {
        (self.came)(-i64::try_from(self.have).unwrap_or(0));
        self.restart()
    }

    fn restart(&mut self) -> Result<(), Fault> {
        self.have = 0;
        self.hash = Sha256::new();
        let emptied = self.file.set_len(0);
        emptied
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .map(drop)
            .map_err(|err| Fault::of_file("write", self.path, &err))
    }

    /// Of what has come.
    fn digest(&self) -> Result<Digest, Fault> {
        let sum = self.hash.clone().finalize();
        let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
        hex.parse()
            .map_err(|err| Fault::new(format!("no digest: {err}")))
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), Fault> {
    fs::rename(from, to).map_err(|err| Fault::of_file("create", to, &err))
}

/// The digest that a registry says it is; others than SHA-256 say nothing here.
fn digest_in(headers: &HeaderMap) -> Option<Digest> {
    headers.get(DIGEST)?.to_str().ok()?.parse().ok()
}

/// An answer that is what was asked for.
async fn good(answer: Response) -> Result<Response, Fault> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let text = bounded(answer, MAX_EXPLANATION).await.unwrap_or_default();
    let envelope = serde_json::from_slice::<serde_json::Value>(&text).unwrap_or_default();
    let words = envelope["errors"][0]["message"].as_str();
    Err(Fault::of_status(status, words.unwrap_or_default()))
}

/// An answer's body, if it is no longer than that.
async fn bounded(mut answer: Response, max: u64) -> Result<Vec<u8>, Fault> {
    let too_long = || Fault::new(format!("the registry's answer has more than {max} bytes"));
    if answer.content_length().is_some_and(|length| length > max) {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if (bytes.len() + chunk.len()) as u64 > max {
            return Err(too_long());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}
