//! Archives and images, made in memory.

#![allow(clippy::print_stdout, reason = "tests say what they skip")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use ampoule_store::{Digest, Error, Image, Limits, Source, Store};
use tar::{EntryType, Header};
use tempfile::TempDir;

use crate::reader::{self, Files};

/// An archive that is being made.
pub(crate) struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub(crate) fn header(kind: EntryType) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory {
            0o755
        } else {
            0o644
        });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(0);
        header
    }

    /// With the name as it is, whatever it is.
    pub(crate) fn raw(mut self, mut header: Header, name: &str, data: &[u8]) -> Self {
        let field = &mut header.as_old_mut().name;
        field.fill(0);
        field[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub(crate) fn file(self, name: &str, data: impl AsRef<[u8]>) -> Self {
        self.raw(Self::header(EntryType::Regular), name, data.as_ref())
    }

    pub(crate) fn directory(self, name: &str) -> Self {
        self.raw(Self::header(EntryType::Directory), name, b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.linked(EntryType::Symlink, name, target)
    }

    pub(crate) fn link(self, name: &str, target: &str) -> Self {
        self.linked(EntryType::Link, name, target)
    }

    fn linked(self, kind: EntryType, name: &str, target: &str) -> Self {
        let mut header = Self::header(kind);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        self.raw(header, name, b"")
    }

    pub(crate) fn device(self, kind: EntryType, name: &str, major: u32, minor: u32) -> Self {
        let mut header = Self::header(kind);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.raw(header, name, b"")
    }

    /// An extended header, for the entry that follows.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            data.extend(format!("{length} {key}=").bytes());
            data.extend(*value);
            data.push(b'\n');
        }
        self.raw(Self::header(EntryType::XHeader), "pax", &data)
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(data: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
}

/// A cache of its own, with room for sources beside it.
pub(crate) struct Bench {
    pub(crate) folder: TempDir,
    pub(crate) store: Store,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let store = Store::open(folder.path().join("cache")).unwrap();
        Self { folder, store }
    }

    pub(crate) fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn get(&self, path: &Path, name: Option<&str>) -> Result<Image, Error> {
        self.store
            .get(&Source::open(path, name)?, Limits::default(), &mut |_| {})
    }

    /// What is in the image, which the system's own checker has looked at, where there is one.
    pub(crate) fn files(&self, path: &Path) -> Files {
        let image = self.get(path, None).unwrap();
        check(image.path());
        reader::read(image.path())
    }

    /// Files in the cache.
    pub(crate) fn cached(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.store.folder()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }
}

/// The files of a root file system archive.
pub(crate) fn files(archive: Tar) -> Files {
    let bench = Bench::new();
    let path = bench.put("root.tar", archive.done());
    bench.files(&path)
}

/// The error that a root file system archive ends in, with its causes, and nothing is left over.
pub(crate) fn refusal(archive: impl AsRef<[u8]>) -> String {
    let bench = Bench::new();
    let path = bench.put("root.tar", archive);
    let error = bench.get(&path, None).unwrap_err();
    assert!(!bench.cached().iter().any(|name| name.ends_with(".part")));
    assert!(!bench.cached().iter().any(|name| name.ends_with(".erofs")));
    chain(&error).replace(&*path.to_string_lossy(), "root.tar")
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

fn is_installed(program: &str) -> bool {
    Command::new(program).arg("--help").output().is_ok()
}

/// Whether programs are there; where one is not, the test says that it is skipped.
pub(crate) fn has(programs: &[&str]) -> bool {
    let Some(missing) = programs.iter().find(|program| !is_installed(program)) else {
        return true;
    };
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    println!("skipped {test}: {missing} is not installed");
    false
}

/// Has `fsck.erofs` read all of an image.
pub(crate) fn check(image: &Path) {
    if is_installed("fsck.erofs") {
        let output = Command::new("fsck.erofs")
            .arg("--extract")
            .arg(image)
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

/// A layer: what is in its file, and what that unpacks to.
pub(crate) struct Layer {
    pub(crate) packed: Vec<u8>,
    pub(crate) plain: Vec<u8>,
}

impl Layer {
    pub(crate) fn plain(archive: Tar) -> Self {
        let plain = archive.done();
        let packed = plain.clone();
        Self { packed, plain }
    }

    pub(crate) fn packed(archive: Tar, pack: impl Fn(&[u8]) -> Vec<u8>) -> Self {
        let plain = archive.done();
        let packed = pack(&plain);
        Self { packed, plain }
    }
}

pub(crate) const CONFIG: &str = r#""architecture":"amd64","os":"linux","config":{"Entrypoint":["/init"],"Cmd":null,
    "Env":["A=1","B=x y"],"WorkingDir":"/srv","User":"1000:0","Labels":{"l":"v"},"ExposedPorts":{"80/tcp":{}}}"#;

/// A configuration document.
pub(crate) fn config(start: &str, layers: &[Layer]) -> Vec<u8> {
    let ids = layers
        .iter()
        .map(|layer| format!("\"{}\"", Digest::of(&layer.plain)));
    let ids = ids.collect::<Vec<_>>().join(",");
    format!(r#"{{{start},"rootfs":{{"type":"layers","diff_ids":[{ids}]}}}}"#).into_bytes()
}

/// What `docker save` writes.
pub(crate) fn docker(layers: &[Layer]) -> Tar {
    let config = config(CONFIG, layers);
    let name = format!("{}.json", Digest::of(&config).hex());
    let files: Vec<_> = (0..layers.len())
        .map(|n| format!("{n}/layer.tar"))
        .collect();
    let manifest = format!(r#"[{{"Config":"{name}","RepoTags":["a/b:c"],"Layers":{files:?}}}]"#);
    let mut archive = Tar::new().file(&name, config);
    for (file, layer) in files.iter().zip(layers) {
        archive = archive.file(file, &layer.packed);
    }
    archive.file("manifest.json", manifest)
}

/// The files of an OCI layout.
pub(crate) struct Layout(pub(crate) Vec<(String, Vec<u8>)>);

impl Layout {
    pub(crate) fn new() -> Self {
        Self(vec![(
            "oci-layout".into(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.into(),
        )])
    }

    /// Adds a blob, and says how another one names it.
    pub(crate) fn blob(&mut self, media_type: &str, bytes: &[u8]) -> String {
        let (digest, size) = (Digest::of(bytes), bytes.len());
        self.0
            .push((format!("blobs/sha256/{}", digest.hex()), bytes.to_vec()));
        format!(
            r#""mediaType":"application/vnd.oci.image.{media_type}","digest":"{digest}","size":{size}"#
        )
    }

    pub(crate) fn manifest(&mut self, start: &str, layers: &[Layer]) -> String {
        let config = self.blob("config.v1+json", &config(start, layers));
        let layers = layers
            .iter()
            .map(|layer| self.blob("layer.v1.tar", &layer.packed));
        let layers: Vec<_> = layers.map(|layer| format!("{{{layer}}}")).collect();
        let layers = layers.join(",");
        let manifest =
            format!(r#"{{"schemaVersion":2,"config":{{{config}}},"layers":[{layers}]}}"#);
        self.blob("manifest.v1+json", manifest.as_bytes())
    }

    pub(crate) fn index(mut self, manifests: &[String]) -> Self {
        let manifests = manifests.iter().map(|manifest| format!("{{{manifest}}}"));
        let manifests = manifests.collect::<Vec<_>>().join(",");
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{manifests}]}}"#);
        self.0.push(("index.json".into(), index.into_bytes()));
        self
    }

    pub(crate) fn archive(&self) -> Vec<u8> {
        let add = |tar: Tar, (name, bytes): &(String, Vec<u8>)| tar.file(name, bytes);
        self.0.iter().fold(Tar::new(), add).done()
    }

    pub(crate) fn write(&self, bench: &Bench, name: &str) -> PathBuf {
        for (file, bytes) in &self.0 {
            bench.put(&format!("{name}/{file}"), bytes);
        }
        bench.folder.path().join(name)
    }
}

pub(crate) fn oci(layers: &[Layer]) -> Layout {
    let mut layout = Layout::new();
    let manifest = layout.manifest(CONFIG, layers);
    layout.index(&[manifest])
}
