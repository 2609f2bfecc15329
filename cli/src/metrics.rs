//! `--metrics`: what was counted, as JSON, at the VM's end and whenever SIGUSR1 asks for it.
//!
//! Who reads the file finds a whole picture at any time: it is written beside, and takes the old one's place by rename(2).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ampoule_vmm::metrics::Metrics;
use serde::Serialize;

use crate::report::{self, Failure};

/// Where the counts go.
pub(crate) enum MetricsSink {
    /// Standard output, which is the guest's until its end.
    Stdout,
    /// A file, replaced each time; its new content is put together in the second one.
    File { path: PathBuf, beside: PathBuf },
    /// Something that is there and no regular file, such as a FIFO or /dev/null: it is written to.
    Special { path: PathBuf, file: File },
}

/// What is written.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Document<'a> {
    /// How the VM ended, in words; null while it runs.
    outcome: Option<&'a str>,
    exit_code: Option<u8>,
    #[serde(flatten)]
    metrics: &'a Metrics,
}

impl MetricsSink {
    /// Sees to it now that the path can be written: that is told before the VM runs, not after.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        if path.as_os_str() == "-" {
            return Ok(Self::Stdout);
        }
        Self::of_file(path).map_err(|err| cannot_write(path, &err))
    }

    fn of_file(path: &Path) -> io::Result<Self> {
        // A link stays, and what it points to is replaced.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        if fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
            // Nobody may read a FIFO: that is no reason to wait.
            let mut options = OpenOptions::new();
            let options = options.write(true).custom_flags(libc::O_NONBLOCK);
            let file = options.open(&path)?;
            return Ok(Self::Special { path, file });
        }
        let mut beside = path.clone().into_os_string();
        beside.push(format!(".{}", std::process::id()));
        let beside = PathBuf::from(beside);
        File::create(&beside)?;
        fs::remove_file(&beside)?;
        Ok(Self::File { path, beside })
    }

    /// Writes the counts of a VM that runs. Not to standard output, which is the guest's.
    pub(crate) fn write_running(&self, metrics: &Metrics) {
        if matches!(self, Self::Stdout) {
            return;
        }
        let document = Document {
            outcome: None,
            exit_code: None,
            metrics,
        };
        if let Err(failure) = self.write(&document) {
            log::warn!("{}", failure.message);
        }
    }

    /// Writes the counts of a VM that has ended.
    pub(crate) fn write_ended(
        &self,
        metrics: &Metrics,
        outcome: &str,
        code: u8,
    ) -> Result<(), Failure> {
        self.write(&Document {
            outcome: Some(outcome),
            exit_code: Some(code),
            metrics,
        })
    }

    fn write(&self, document: &Document<'_>) -> Result<(), Failure> {
        let path = match self {
            Self::Stdout => Path::new("-"),
            Self::File { path, .. } | Self::Special { path, .. } => path,
        };
        serde_json::to_string_pretty(document)
            .map_err(io::Error::from)
            .and_then(|text| self.put(text + "\n"))
            .map_err(|err| cannot_write(path, &err))
    }

    fn put(&self, text: String) -> io::Result<()> {
        match self {
            Self::Stdout => report::print_stdout(&text),
            Self::File { path, beside } => {
                fs::write(beside, text)?;
                fs::rename(beside, path).inspect_err(|_| {
                    // It is of no use to anybody.
                    let _ = fs::remove_file(beside);
                })
            }
            Self::Special { file, .. } => (&*file).write_all(text.as_bytes()),
        }
    }
}

fn cannot_write(path: &Path, err: &io::Error) -> Failure {
    let why = report::io_text(err);
    Failure::new(format!(
        "cannot write the metrics to \"{}\": {why}",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(test: &str) -> PathBuf {
        let name = format!("ampoule-metrics-{}-{test}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let folder = folder("whole");
        let path = folder.join("m.json");
        fs::write(&path, "old").unwrap();
        std::os::unix::fs::symlink(&path, folder.join("link")).unwrap();
        let sink = MetricsSink::open(&folder.join("link")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old", "opening changes nothing");
        sink.write_running(&Metrics::default());
        let read = || {
            let text = fs::read_to_string(&path).unwrap();
            serde_json::from_str::<serde_json::Value>(&text).unwrap()
        };
        assert!(read()["outcome"].is_null());
        sink.write_ended(&Metrics::default(), "the guest powered off", 0)
            .unwrap();
        assert_eq!(read()["outcome"], "the guest powered off");
        assert_eq!(read()["exit-code"], 0);
        assert!(read()["unclaimed"]["port"]["reads"].is_u64());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_path_that_cannot_be_written_is_told_at_once() {
        for path in ["/no/such/directory/m.json", "/"] {
            let Err(failure) = MetricsSink::open(Path::new(path)) else {
                panic!("{path} opened");
            };
            assert!(failure.message.contains(path), "{}", failure.message);
        }
    }

    #[test]
    fn a_device_is_written_to_and_not_replaced() {
        let sink = MetricsSink::open(Path::new("/dev/null")).unwrap();
        assert!(matches!(sink, MetricsSink::Special { .. }));
        sink.write_ended(&Metrics::default(), "x", 0).unwrap();
        let kind = fs::symlink_metadata("/dev/null").unwrap();
        assert!(!kind.is_file());
        let full = MetricsSink::open(Path::new("/dev/full")).unwrap();
        let failure = full.write_ended(&Metrics::default(), "x", 0).unwrap_err();
        assert!(failure.message.contains("/dev/full"), "{}", failure.message);
    }
}
