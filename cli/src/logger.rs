//! Log messages of the library, one line each: on standard error, or with their times in `--log-file`.
//!
//! What a guest can make the library say again and again is logged at a limited rate already. A file has a limit besides,
//! [`FILE_LIMIT`]: its last line says so, so that no guest fills the disk that the file is on.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::{LevelFilter, Log, Metadata, Record};

use crate::paint::{Paint, Style};
use crate::report::{self, Failure};

/// The most bytes in a log file, but for its last line.
const FILE_LIMIT: usize = 16 << 20;

/// Where messages go.
enum Target {
    Stderr(Paint),
    File(Mutex<LimitedFile>),
}

/// A file that takes lines until it has its share.
struct LimitedFile {
    file: File,
    /// Bytes that it may still get; none once it has been told.
    left: Option<usize>,
}

/// Prints messages of this level and of the graver ones. Once in the life of the process.
///
/// # Errors
/// `file` cannot be created, or emptied.
pub(crate) fn install(level: LevelFilter, file: Option<&Path>) -> Result<(), Failure> {
    let target = match file {
        None => Target::Stderr(Paint::stderr()),
        Some(path) => Target::File(Mutex::new(LimitedFile {
            file: File::create(path).map_err(|err| {
                let why = report::io_text(&err);
                Failure::new(format!(
                    "cannot write the log \"{}\": {why}",
                    path.display()
                ))
            })?,
            left: Some(FILE_LIMIT),
        })),
    };
    if level != LevelFilter::Off && log::set_boxed_logger(Box::new(target)).is_ok() {
        log::set_max_level(level);
    }
    Ok(())
}

impl Log for Target {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        match self {
            Self::Stderr(paint) => report::print_stderr(&line(record, *paint)),
            Self::File(file) => {
                let time = timestamp(SystemTime::now());
                let line = format!("{time} {}", line(record, Paint::plain()));
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                // There is nowhere to tell of a failure.
                let _ = file.write(&line);
            }
        }
    }

    fn flush(&self) {}
}

impl LimitedFile {
    fn write(&mut self, line: &str) -> io::Result<()> {
        let Some(left) = self.left else {
            return Ok(());
        };
        self.left = left.checked_sub(line.len());
        match self.left {
            Some(_) => self.file.write_all(line.as_bytes()),
            None => writeln!(
                self.file,
                "the log ends here: it has {} MiB, which is the limit",
                FILE_LIMIT >> 20
            ),
        }
    }
}

fn line(record: &Record<'_>, paint: Paint) -> String {
    let (word, style) = match record.level() {
        log::Level::Error => ("error:", Style::Bad),
        log::Level::Warn => ("warning:", Style::Warning),
        log::Level::Info => ("info:", Style::Good),
        log::Level::Debug => ("debug:", Style::Help),
        log::Level::Trace => ("trace:", Style::Help),
    };
    let word = paint.apply(style, word);
    match record.level() {
        // Those who read these want to know where they come from.
        log::Level::Debug | log::Level::Trace => {
            format!("{word} {}: {}\n", record.target(), record.args())
        }
        _ => format!("{word} {}\n", record.args()),
    }
}

/// A time by RFC 3339, in UTC, with milliseconds.
fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = libc::time_t::try_from(since.as_secs()).unwrap_or_default();
    let mut fields = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are valid for the call; a `tm` of zeroes is one.
    let fields = unsafe {
        libc::gmtime_r(&seconds, fields.as_mut_ptr());
        fields.assume_init()
    };
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        fields.tm_year + 1900,
        fields.tm_mon + 1,
        fields.tm_mday,
        fields.tm_hour,
        fields.tm_min,
        fields.tm_sec,
        since.subsec_millis()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    #[test]
    fn a_message_is_a_line_with_its_level() {
        let text = |level| {
            let args = format_args!("queue {} is full", 3);
            let mut record = Record::builder();
            line(
                &record.level(level).target("net").args(args).build(),
                Paint::plain(),
            )
        };
        assert_eq!(text(log::Level::Warn), "warning: queue 3 is full\n");
        assert_eq!(text(log::Level::Debug), "debug: net: queue 3 is full\n");
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        let at = |ms| timestamp(UNIX_EPOCH + Duration::from_millis(ms));
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_400_007), "2000-02-29T00:00:00.007Z");
        assert_eq!(at(4_102_444_799_999), "2099-12-31T23:59:59.999Z");
    }

    #[test]
    fn a_file_that_is_full_says_so_once() {
        let path = std::env::temp_dir().join(format!("ampoule-log-{}", std::process::id()));
        let file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(path).unwrap();
        let mut log = LimitedFile {
            file,
            left: Some(10),
        };
        for line in ["12345\n", "6789\n", "0\n", "1\n"] {
            log.write(line).unwrap();
        }
        let mut text = String::new();
        log.file.rewind().unwrap();
        log.file.read_to_string(&mut text).unwrap();
        assert_eq!(
            text,
            "12345\nthe log ends here: it has 16 MiB, which is the limit\n"
        );
    }
}
