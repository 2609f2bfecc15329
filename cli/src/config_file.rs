//! Configuration files: TOML in, typed configuration or a precise complaint out; and the way back for `--print-config`.
//!
//! What a key means and which keys there are is the library's matter ([`VmConfig`], by serde). This module adds the keys
//! that only the command line has, says where in the file a mistake is, and which name was probably meant.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ampoule_vmm::config::{ConsoleConfig, VmConfig, VsockConfig};
use log::LevelFilter;
use serde::{Deserialize, Serialize};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::args::{LOG_LEVELS, RunConfig};
use crate::report::{self, Failure};

/// Longer files are no configurations.
const MAX_SIZE: u64 = 1 << 20;

/// Keys that are the command line's, not the library's.
pub(crate) const OWN_KEYS: [&str; 4] = ["timeline", "metrics", "log-file", "log-level"];

/// How alike a wrong name and the right one are at least, from 0 to 1 (Jaro-Winkler).
const LIKENESS: f64 = 0.8;

/// Reads a file.
pub(crate) fn load(path: &Path) -> Result<RunConfig, Failure> {
    let text = read(path, "configuration")?;
    let mut config = parse(&text).map_err(|problem| problem.at(path, &text))?;
    if let Some(directory) = path.parent() {
        start_paths_at(directory, &mut config);
    }
    Ok(config)
}

/// The effective configuration as a file.
pub(crate) fn to_toml(config: &RunConfig) -> Result<String, Failure> {
    #[derive(Serialize)]
    #[serde(rename_all = "kebab-case")]
    struct Own<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        timeline: Option<&'a Path>,
        #[serde(skip_serializing_if = "Option::is_none")]
        metrics: Option<&'a Path>,
        #[serde(skip_serializing_if = "Option::is_none")]
        log_file: Option<&'a Path>,
        log_level: String,
    }
    let own = Own {
        timeline: config.timeline.as_deref(),
        metrics: config.metrics.as_deref(),
        log_file: config.log_file.as_deref(),
        log_level: config.log_level.as_str().to_lowercase(),
    };
    let cannot = |err: toml::ser::Error| {
        Failure::new(format!(
            "the configuration cannot be written as TOML: {err}"
        ))
    };
    // The command line's own keys come first: a table of the library's would swallow them.
    let own = toml::to_string(&own).map_err(cannot)?;
    Ok(own + &toml::to_string(&config.vm).map_err(cannot)?)
}

/// The text of a file, which is called `what` where it cannot be read.
pub(crate) fn read(path: &Path, what: &str) -> Result<String, Failure> {
    let name = path.display();
    let cannot = |why: &str| Failure::new(format!("cannot read {what} \"{name}\": {why}"));
    let io = |err: std::io::Error| cannot(&report::io_text(&err));
    let mut text = Vec::new();
    File::open(path)
        .map_err(io)?
        .take(MAX_SIZE + 1)
        .read_to_end(&mut text)
        .map_err(io)?;
    if text.len() as u64 > MAX_SIZE {
        return Err(cannot("it is larger than 1 MiB"));
    }
    String::from_utf8(text).map_err(|_| cannot("it is not text in UTF-8"))
}

fn parse(text: &str) -> Result<RunConfig, Problem> {
    let mut table = DeTable::parse(text).map_err(|err| Problem::of_toml(&err, text, &OWN_KEYS))?;
    let mut config = RunConfig {
        timeline: take_path(&mut table, "timeline")?,
        metrics: take_path(&mut table, "metrics")?,
        log_file: take_path(&mut table, "log-file")?,
        ..RunConfig::default()
    };
    if let Some((value, span)) = take_string(&mut table, "log-level")? {
        let known = LOG_LEVELS.contains(&value.as_str());
        config.log_level = LevelFilter::from_str(&value)
            .ok()
            .filter(|_| known)
            .ok_or_else(|| {
                Problem::new(format!("\"{value}\" is not a log level"), Some(span))
                    .with_help(suggestion(&value, &LOG_LEVELS))
            })?;
    }
    let deserializer = toml::Deserializer::from(table);
    config.vm = VmConfig::deserialize(deserializer)
        .map_err(|err| Problem::of_toml(&err, text, &OWN_KEYS))?;
    // A program that embeds the library has another way to it.
    if let Some(VsockConfig { socket: None, cid }) = config.vm.vsock {
        let problem = Problem::new("vsock has no socket, by which alone it is reached", None);
        let help = format!("write it below [vsock] cid = {cid}: socket = \"vm.sock\"");
        return Err(problem.with_help(help));
    }
    Ok(config)
}

/// Takes a key of the command line's own that is a path.
fn take_path(
    table: &mut Spanned<DeTable<'_>>,
    key: &'static str,
) -> Result<Option<PathBuf>, Problem> {
    match take_string(table, key)? {
        Some((value, span)) if value.is_empty() => {
            Err(Problem::new(format!("{key} is an empty path"), Some(span)))
        }
        found => Ok(found.map(|(value, _)| PathBuf::from(value))),
    }
}

/// Takes one of the command line's own keys out of the table.
fn take_string(
    table: &mut Spanned<DeTable<'_>>,
    key: &'static str,
) -> Result<Option<(String, Range<usize>)>, Problem> {
    let Some(value) = table.get_mut().remove(&Spanned::new(0..0, key.into())) else {
        return Ok(None);
    };
    let span = value.span();
    match value.into_inner() {
        DeValue::String(text) => Ok(Some((text.into_owned(), span))),
        other => {
            let message = format!(
                "{key} is a string, not a value of type {}",
                other.type_str()
            );
            Err(Problem::new(message, Some(span)))
        }
    }
}

/// Relative paths start at the file's own directory, so that a file means the same wherever it is used from.
fn start_paths_at(directory: &Path, config: &mut RunConfig) {
    let place = |path: &mut PathBuf| *path = directory.join(&*path);
    let RunConfig {
        vm,
        timeline,
        metrics,
        log_file,
        log_level: _,
    } = config;
    vm.kernel.iter_mut().for_each(place);
    vm.initrd.iter_mut().for_each(place);
    vm.disk
        .iter_mut()
        .map(|disk| &mut disk.path)
        .for_each(place);
    vm.fs
        .iter_mut()
        .flat_map(|fs| fs.path.iter_mut().chain(&mut fs.socket))
        .for_each(place);
    vm.vsock
        .iter_mut()
        .filter_map(|vsock| vsock.socket.as_mut())
        .for_each(place);
    log_file.iter_mut().for_each(place);
    timeline
        .iter_mut()
        .chain(metrics)
        .filter(|path| path.as_os_str() != "-")
        .for_each(place);
    for console in vm.serial.iter_mut().chain(&mut vm.console) {
        if let ConsoleConfig::File(path) | ConsoleConfig::Socket(path) = console {
            place(path);
        }
    }
}

/// What is wrong with a file, and at which bytes of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Problem {
    pub(crate) message: String,
    pub(crate) span: Option<Range<usize>>,
    pub(crate) help: Option<String>,
}

impl Problem {
    pub(crate) fn new(message: impl Into<String>, span: Option<Range<usize>>) -> Self {
        Self {
            message: message.into(),
            span,
            help: None,
        }
    }

    pub(crate) fn with_help(self, help: String) -> Self {
        Self {
            help: Some(help),
            ..self
        }
    }

    /// Puts the parser's complaint into our words where it is about names. Where the library's keys are meant, `own` are known besides.
    pub(crate) fn of_toml(error: &toml::de::Error, text: &str, own: &[&str]) -> Self {
        let (message, span) = (error.message(), error.span());
        if let Some((wrong, known)) = names(message, "unknown field ") {
            let mut known = known;
            if known.contains(&"kernel") {
                known.extend(own);
            }
            return Self::new(format!("unknown key \"{wrong}\""), span)
                .with_help(suggestion(wrong, &known));
        }
        if let Some((wrong, known)) = names(message, "unknown variant ") {
            return Self::new(format!("unknown value \"{wrong}\""), span)
                .with_help(suggestion(wrong, &known));
        }
        if message == "duplicate key" {
            let key = span
                .clone()
                .and_then(|span| text.get(span))
                .unwrap_or_default();
            return Self::new(format!("the key \"{key}\" is there twice"), span);
        }
        Self::new(message.trim_end().replace('\n', ", "), span)
    }

    fn at(self, path: &Path, text: &str) -> Failure {
        let place = match self.span {
            Some(span) => {
                let (line, column) = line_and_column(text, span.start);
                format!("{}:{line}:{column}", path.display())
            }
            None => path.display().to_string(),
        };
        let failure = Failure::new(format!("{place}: {}", self.message));
        match self.help {
            Some(help) => failure.with_help(help),
            None => failure,
        }
    }
}

/// Reads serde's "unknown field `a`, expected one of `b`, `c`": the wrong name and the right ones.
pub(crate) fn names<'a>(message: &'a str, start: &str) -> Option<(&'a str, Vec<&'a str>)> {
    let rest = message.strip_prefix(start)?;
    // The parts between back-quotes are the odd ones.
    let mut quoted = rest.split('`').skip(1).step_by(2);
    Some((quoted.next()?, quoted.collect()))
}

/// The nearest of the known names, or all of them.
pub(crate) fn suggestion(wrong: &str, known: &[&str]) -> String {
    let likeness = |name: &str| strsim::jaro_winkler(&wrong.to_lowercase(), &name.to_lowercase());
    let nearest = known
        .iter()
        .map(|name| (likeness(name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness >= LIKENESS);
    match nearest {
        Some((_, name)) => format!("did you mean \"{name}\"?"),
        None => format!("known are {}", known.join(", ")),
    }
}

/// Line and column of a byte, both from 1; the column counts characters.
pub(crate) fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use ampoule_vmm::config::{MemorySize, OnReboot};

    fn complaint(text: &str) -> String {
        let failure = parse(text).unwrap_err().at(Path::new("vm.toml"), text);
        match failure.help {
            Some(help) => format!("{}\n{help}", failure.message),
            None => failure.message,
        }
    }

    #[test]
    fn a_file_says_what_flags_say() {
        let config = parse(
            "kernel = \"vmlinuz\"\nmemory = \"1G\"\ncpus = 2\non-reboot = \"restart\"\n\
             timeline = \"t.json\"\nmetrics = \"m.json\"\nlog-file = \"l\"\nlog-level = \"info\"\n",
        )
        .unwrap();
        assert_eq!(config.vm.memory, MemorySize::mib(1024));
        assert_eq!(config.vm.on_reboot, OnReboot::Restart);
        assert_eq!(config.timeline.as_deref(), Some(Path::new("t.json")));
        assert_eq!(config.metrics.as_deref(), Some(Path::new("m.json")));
        assert_eq!(config.log_file.as_deref(), Some(Path::new("l")));
        assert_eq!(config.log_level, LevelFilter::Info);
    }

    #[test]
    fn what_is_printed_is_read_again() {
        let text = "kernel = \"/k\"\ninitrd = \"/i\"\nappend = \"a\\\"b\"\nhugepages = \"2M\"\n\
                    serial = \"socket:/s\"\nconsole = \"pty\"\ntimeout = \"90s\"\ntimeline = \"-\"\nmetrics = \"/m\"\nlog-file = \"/l\"\nlog-level = \"trace\"\nrng = false\n\
                    [[disk]]\npath = \"/d\"\nformat = \"qcow2\"\nbacking = \"allow\"\nqueues = 2\nengine = \"io_uring\"\ndirect = true\niops = 100\nbandwidth = \"1M\"\nbandwidth-burst = \"8M\"\nlock = false\nsize = \"1G\"\ncache = \"unsafe\"\n\
                    [[net]]\ntap = \"tap0\"\nmac = \"02:00:00:00:00:01\"\nmtu = 1400\nqueues = 2\npps = 1000\nbandwidth = \"10M\"\nbandwidth-burst = \"1M\"\n[[net]]\nuser = true\nforward = [\"8080:80\", \"udp:53:53\"]\n[[net]]\nfd = 3\nvhost = true\nid = \"lan\"\n[[fs]]\ntag = \"a\"\npath = \"/b\"\nreadonly = true\n[[fs]]\ntag = \"c\"\nsocket = \"/d\"\n\
                    [vsock]\ncid = 3\nsocket = \"/v\"\n";
        let config = parse(text).unwrap();
        assert_eq!(parse(&to_toml(&config).unwrap()).unwrap(), config);
        let default = RunConfig::default();
        assert_eq!(parse(&to_toml(&default).unwrap()).unwrap(), default);
        assert_eq!(parse("").unwrap(), default);
    }

    #[test]
    fn a_socket_device_that_nobody_reaches_is_refused() {
        let text = complaint("[vsock]\ncid = 3\n");
        assert!(text.contains("vsock has no socket"), "{text}");
        assert!(text.contains("cid = 3: socket = "), "{text}");
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        assert_eq!(
            complaint("cpus = 1\nkernal = \"x\"\n"),
            "vm.toml:2:1: unknown key \"kernal\"\ndid you mean \"kernel\"?"
        );
        assert_eq!(
            complaint("time-line = \"x\"\n"),
            "vm.toml:1:1: unknown key \"time-line\"\ndid you mean \"timeline\"?"
        );
        assert_eq!(
            complaint("on_reboot = \"exit\"\n"),
            "vm.toml:1:1: unknown key \"on_reboot\"\ndid you mean \"on-reboot\"?"
        );
        let all = complaint("zzz = 1\n");
        assert!(
            all.contains("known are kernel, initrd") && all.ends_with("log-level"),
            "{all}"
        );
    }

    #[test]
    fn an_unknown_value_names_the_nearest() {
        assert_eq!(
            complaint("on-reboot = \"restrat\"\n"),
            "vm.toml:1:13: unknown value \"restrat\"\ndid you mean \"restart\"?"
        );
        assert_eq!(
            complaint("log-level = \"debugg\"\n"),
            "vm.toml:1:13: \"debugg\" is not a log level\ndid you mean \"debug\"?"
        );
    }

    #[test]
    fn a_key_twice_is_refused() {
        let text = "memory = \"1G\"\ncpus = 1\nmemory = \"2G\"\n";
        assert_eq!(
            complaint(text),
            "vm.toml:3:1: the key \"memory\" is there twice"
        );
    }

    #[test]
    fn a_wrong_value_says_where_and_why() {
        let text = complaint("# \u{e9}\nmemory = \"12X\"\n");
        assert!(text.starts_with("vm.toml:2:10: "), "{text}");
        assert!(text.contains("12X"), "{text}");
        let text = complaint("cpus = \"two\"\n");
        assert!(text.starts_with("vm.toml:1:8: "), "{text}");
        let text = complaint("timeline = 7\n");
        assert_eq!(
            text,
            "vm.toml:1:12: timeline is a string, not a value of type integer"
        );
        let text = complaint("cpus = \n");
        assert!(text.starts_with("vm.toml:1:"), "{text}");
    }

    #[test]
    fn paths_start_at_the_file() {
        let mut config =
            parse("kernel = \"k\"\ninitrd = \"/i\"\nserial = \"file:log\"\nconsole = \"socket:c\"\ntimeline = \"-\"\nmetrics = \"m\"\nlog-file = \"l\"\n[[disk]]\npath = \"d\"\n[[fs]]\ntag = \"p\"\npath = \"p\"\n[[fs]]\ntag = \"s\"\nsocket = \"s\"\n[vsock]\ncid = 3\nsocket = \"v\"\n")
                .unwrap();
        start_paths_at(Path::new("/etc/vm"), &mut config);
        assert_eq!(config.vm.kernel.as_deref(), Some(Path::new("/etc/vm/k")));
        assert_eq!(config.vm.initrd.as_deref(), Some(Path::new("/i")));
        let serial = ConsoleConfig::File("/etc/vm/log".into());
        assert_eq!(config.vm.serial, Some(serial));
        let console = ConsoleConfig::Socket("/etc/vm/c".into());
        assert_eq!(config.vm.console, Some(console));
        assert_eq!(config.timeline.as_deref(), Some(Path::new("-")));
        assert_eq!(config.metrics.as_deref(), Some(Path::new("/etc/vm/m")));
        assert_eq!(config.log_file.as_deref(), Some(Path::new("/etc/vm/l")));
        assert_eq!(config.vm.disk[0].path, Path::new("/etc/vm/d"));
        let path = config.vm.fs[0].path.as_deref();
        assert_eq!(path, Some(Path::new("/etc/vm/p")));
        let socket = config.vm.fs[1].socket.as_deref();
        assert_eq!(socket, Some(Path::new("/etc/vm/s")));
        let socket = config.vm.vsock.and_then(|vsock| vsock.socket);
        assert_eq!(socket.as_deref(), Some(Path::new("/etc/vm/v")));
    }

    #[test]
    fn columns_count_characters() {
        assert_eq!(line_and_column("a\n\u{e9}\u{e9}b", 6), (2, 3));
        assert_eq!(line_and_column("abc", 99), (1, 4));
    }

    #[test]
    fn what_is_no_file_is_told() {
        let directory = load(Path::new("/")).unwrap_err();
        assert_eq!(
            directory.message,
            "cannot read configuration \"/\": is a directory"
        );
        let endless = load(Path::new("/dev/zero")).unwrap_err();
        assert!(
            endless.message.ends_with("larger than 1 MiB"),
            "{}",
            endless.message
        );
    }
}
