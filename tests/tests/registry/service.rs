//! Debian's docker-registry as a child, and what fills it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use tempfile::TempDir;

/// The registry; it ends with its value.
pub(crate) struct Registry {
    child: Child,
    address: String,
    _folder: TempDir,
}

impl Registry {
    /// An empty one, with these lines of configuration besides.
    pub(crate) fn start(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:0'}}\n{more}",
            folder.path().join("storage").display()
        );
        std::fs::File::create(&config)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        let address = loop {
            let Some(Ok(line)) = lines.next() else {
                panic!("docker-registry does not start: {said}");
            };
            said += &line;
            if let Some((_, rest)) = line.split_once("listening on ") {
                let is_end = |c: char| !(c.is_ascii_digit() || c == '.' || c == ':');
                break rest.split(is_end).next().unwrap_or(rest).to_owned();
            }
        };
        // It goes on talking.
        thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            address,
            _folder: folder,
        }
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The name of an image in it.
    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// Copies an image to it, by skopeo.
    pub(crate) fn push(&self, from: &str, name: &str, options: &[&str]) {
        let to = format!("docker://{}", self.name(name));
        let copy = [
            "skopeo",
            "--insecure-policy",
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
        ];
        host(&[&copy, options, &[from, &to]].concat());
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a program of this machine; what it prints.
#[track_caller]
pub(crate) fn host(words: &[&str]) -> String {
    let output = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|err| panic!("cannot run {}: {err}", words[0]));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Makes an image of a folder in an OCI layout, by umoci, with these options of `umoci config`.
pub(crate) fn pack(layout: &Path, tag: &str, folder: &Path, options: &[&str]) {
    let layout = layout.to_str().unwrap();
    if !Path::new(layout).exists() {
        host(&["umoci", "init", "--layout", layout]);
    }
    let image = format!("{layout}:{tag}");
    host(&["umoci", "new", "--image", &image]);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap();
        let place = format!("/{name}");
        host(&[
            "umoci",
            "insert",
            "--image",
            &image,
            path.to_str().unwrap(),
            &place,
        ]);
    }
    host(&[&["umoci", "config", "--image", &image], options].concat());
}
