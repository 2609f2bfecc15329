//! A small registry, which serves what it is told to, rule or no rule.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use ampoule_store::Digest;
use tar::{EntryType, Header};

/// What is asked.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

/// What is answered.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Body,
}

#[derive(Debug, Clone)]
pub(crate) enum Body {
    /// With its length.
    Whole(Vec<u8>),
    /// With another length than it has.
    Lie(Vec<u8>, u64),
    /// Without a length, and without an end.
    Endless(u8),
    /// Some bytes, and then nothing for as long as anybody listens.
    Silence(Vec<u8>),
    /// A byte now and then.
    Drip,
    /// Nothing, not even a status.
    Mute,
}

impl Reply {
    pub(crate) fn new(status: u16, body: Body) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body,
        }
    }

    pub(crate) fn whole(bytes: impl Into<Vec<u8>>) -> Self {
        Self::new(200, Body::Whole(bytes.into()))
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

type Answer = dyn Fn(&Request) -> Option<Reply> + Send + Sync;

struct Shared {
    blobs: BTreeMap<String, Vec<u8>>,
    manifests: BTreeMap<String, Vec<u8>>,
    /// Goes before all else.
    answer: Box<Answer>,
    asked: Mutex<Vec<Request>>,
}

/// The registry; it ends with its value.
pub(crate) struct Server {
    address: String,
    shared: Arc<Shared>,
}

impl Server {
    /// One with this image, and with answers that go before what it has.
    pub(crate) fn start(
        image: &Image,
        answer: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            blobs: image.blobs.clone(),
            manifests: image.manifests.clone(),
            answer: Box::new(answer),
            asked: Mutex::default(),
        });
        let ours = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // The last one: this registry is gone.
                if Arc::strong_count(&ours) == 1 {
                    break;
                }
                let shared = ours.clone();
                // Who goes away while it is served is no matter.
                thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { address, shared }
    }

    /// The name of an image in it.
    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// What it was asked so far.
    pub(crate) fn asked(&self) -> Vec<Request> {
        self.lock().clone()
    }

    /// How many times blobs were asked for.
    pub(crate) fn blobs_asked(&self) -> usize {
        let asked = self.asked();
        asked
            .iter()
            .filter(|it| it.path.contains("/blobs/"))
            .count()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Request>> {
        let asked = self.shared.asked.lock();
        asked.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let address = self.address.clone();
        // When our count is gone, the listener sees it by one more connection.
        let shared = std::mem::replace(
            &mut self.shared,
            Arc::new(Shared {
                blobs: BTreeMap::new(),
                manifests: BTreeMap::new(),
                answer: Box::new(|_| None),
                asked: Mutex::default(),
            }),
        );
        drop(shared);
        let _ = TcpStream::connect(address);
    }
}

fn serve(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_write_timeout(Some(Duration::from_secs(60)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let path = words.next().unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let request = Request {
        method,
        path,
        headers,
    };
    if !request.path.is_empty() {
        let asked = shared.asked.lock();
        asked
            .unwrap_or_else(PoisonError::into_inner)
            .push(request.clone());
    }
    let reply = (shared.answer)(&request).unwrap_or_else(|| usual(&request, shared));
    write(stream, &request, reply)
}

/// As a registry that keeps to the rules.
fn usual(request: &Request, shared: &Shared) -> Reply {
    let last = request.path.rsplit('/').next().unwrap_or_default();
    if request.path == "/v2/" {
        return Reply::whole("{}");
    }
    if request.path.contains("/manifests/") {
        return match shared.manifests.get(last) {
            Some(bytes) => {
                let digest = Digest::of(bytes).to_string();
                Reply::whole(bytes.clone()).header("docker-content-digest", &digest)
            }
            None => missing("MANIFEST_UNKNOWN"),
        };
    }
    let Some(bytes) = shared.blobs.get(last) else {
        return missing("BLOB_UNKNOWN");
    };
    let range = request.headers.get("range");
    let from = range.and_then(|it| it.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match from {
        Some(from) if from > 0 && from < bytes.len() => {
            Reply::new(206, Body::Whole(bytes[from..].to_vec()))
        }
        _ => Reply::whole(bytes.clone()),
    }
}

fn missing(code: &str) -> Reply {
    let text = format!(r#"{{"errors":[{{"code":"{code}","message":"not known here"}}]}}"#);
    Reply::new(404, Body::Whole(text.into()))
}

fn write(mut stream: TcpStream, request: &Request, reply: Reply) -> io::Result<()> {
    if matches!(reply.body, Body::Mute) {
        return wait_for_end(&stream);
    }
    let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let length = match &reply.body {
        Body::Whole(bytes) => Some(bytes.len() as u64),
        Body::Lie(_, length) => Some(*length),
        _ => None,
    };
    if let Some(length) = length {
        head += &format!("content-length: {length}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    if request.method == "HEAD" {
        return stream.shutdown(Shutdown::Both);
    }
    match reply.body {
        Body::Whole(bytes) | Body::Lie(bytes, _) => stream.write_all(&bytes)?,
        Body::Endless(byte) => {
            let bytes = vec![byte; 64 << 10];
            loop {
                stream.write_all(&bytes)?;
            }
        }
        Body::Silence(bytes) => {
            stream.write_all(&bytes)?;
            return wait_for_end(&stream);
        }
        Body::Drip => loop {
            stream.write_all(b" ")?;
            thread::sleep(Duration::from_millis(50));
        },
        Body::Mute => {}
    }
    stream.shutdown(Shutdown::Write)
}

/// Until the other side has gone.
fn wait_for_end(mut stream: &TcpStream) -> io::Result<()> {
    io::copy(&mut stream, &mut io::sink()).map(drop)
}

/// An image: its blobs by their digests, its manifests by digest and tag.
#[derive(Debug, Clone, Default)]
pub(crate) struct Image {
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    pub(crate) manifests: BTreeMap<String, Vec<u8>>,
}

/// What a manifest says of a blob.
pub(crate) fn descriptor(bytes: &[u8]) -> String {
    let digest = Digest::of(bytes);
    format!(r#""digest":"{digest}","size":{}"#, bytes.len())
}

impl Image {
    /// One with these layers, tagged `v1`.
    pub(crate) fn new(layers: &[Vec<u8>]) -> Self {
        let ids: Vec<_> = layers
            .iter()
            .map(|it| format!("\"{}\"", Digest::of(it)))
            .collect();
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Cmd":["/hello"],"Env":["A=b"],"User":"7"}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            ids.join(",")
        );
        let mut image = Self::default();
        let descriptors: Vec<_> = layers
            .iter()
            .map(|layer| format!("{{{}}}", image.blob(layer)))
            .collect();
        let config = image.blob(config.as_bytes());
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{{config}}},"layers":[{}]}}"#,
            descriptors.join(",")
        );
        image.manifest("v1", manifest.as_bytes());
        image
    }

    /// Adds a blob; what describes it.
    pub(crate) fn blob(&mut self, bytes: &[u8]) -> String {
        self.blobs
            .insert(Digest::of(bytes).to_string(), bytes.to_vec());
        descriptor(bytes)
    }

    /// Adds a manifest under a tag and its digest.
    pub(crate) fn manifest(&mut self, tag: &str, bytes: &[u8]) {
        for name in [tag, &Digest::of(bytes).to_string()] {
            self.manifests.insert(name.into(), bytes.to_vec());
        }
    }

    /// The manifest of `v1`, as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.manifests["v1"].clone()).unwrap()
    }
}

/// A layer with one file.
pub(crate) fn layer(name: &str, content: &[u8]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, name, content).unwrap();
    archive.into_inner().unwrap()
}

/// Bytes that do not repeat.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}
