//! `--timeline`: when things happened, as JSON in a file or as a table on standard output.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use ampoule_vmm::Timeline;
use ampoule_vmm::timeline::{Mark, MarkSource};
use serde::Serialize;

use crate::report::{self, Failure};

/// Where the timeline goes in the end.
pub(crate) enum TimelineSink {
    /// A table on standard output.
    Table,
    /// JSON in this file.
    Json { path: PathBuf, file: File },
}

/// What the JSON file holds.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Document<'a> {
    /// All times are microseconds since this.
    origin: &'static str,
    marks: &'a [Mark],
    /// How many marks found no room.
    dropped: u64,
    /// How the VM ended, in words.
    outcome: &'a str,
    exit_code: u8,
}

impl TimelineSink {
    /// Opens the file now: a path that cannot be written is told before the VM runs, not after.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        if path.as_os_str() == "-" {
            return Ok(Self::Table);
        }
        match File::create(path) {
            Ok(file) => Ok(Self::Json {
                path: path.into(),
                file,
            }),
            Err(err) => Err(cannot_write(path, &err)),
        }
    }

    /// Writes the timeline of a VM that has ended.
    pub(crate) fn write(
        self,
        timeline: &Timeline,
        outcome: &str,
        exit_code: u8,
    ) -> Result<(), Failure> {
        let (marks, dropped) = (timeline.marks(), timeline.dropped());
        match self {
            Self::Table => report::print_stdout(&table(&marks, dropped))
                .map_err(|err| cannot_write(Path::new("-"), &err)),
            Self::Json { path, mut file } => {
                let document = Document {
                    origin: "process-start",
                    marks: &marks,
                    dropped,
                    outcome,
                    exit_code,
                };
                serde_json::to_vec_pretty(&document)
                    .map_err(std::io::Error::from)
                    .and_then(|mut text| {
                        text.push(b'\n');
                        file.write_all(&text)
                    })
                    .map_err(|err| cannot_write(&path, &err))
            }
        }
    }
}

fn cannot_write(path: &Path, err: &std::io::Error) -> Failure {
    let why = report::io_text(err);
    Failure::new(format!(
        "cannot write the timeline to \"{}\": {why}",
        path.display()
    ))
}

/// A line for each mark: when, how long after the one before, which share of all that is, who, what.
fn table(marks: &[Mark], dropped: u64) -> String {
    let mut text = String::from("  time (ms)    step (ms)   share  who    what\n");
    let whole = marks.last().map_or(0, |mark| mark.at_us).max(1);
    let mut before = 0;
    for mark in marks {
        let who = match mark.source {
            MarkSource::Host => "host",
            MarkSource::Guest => "guest",
        };
        let step = mark.at_us.saturating_sub(before);
        let _ = writeln!(
            text,
            "{}  {}  {:>4.1} %  {who:<5}  {}",
            ms(mark.at_us),
            ms(step),
            100.0 * step as f64 / whole as f64,
            mark.name
        );
        before = mark.at_us;
    }
    if dropped > 0 {
        let _ = writeln!(text, "{dropped} more found no room");
    }
    text
}

/// Microseconds as milliseconds, right-aligned in 11 columns.
fn ms(us: u64) -> String {
    format!("{:>7}.{:03}", us / 1000, us % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(at_us: u64, source: MarkSource, name: &'static str) -> Mark {
        Mark {
            at_us,
            source,
            name: name.into(),
        }
    }

    #[test]
    fn the_table_lines_up() {
        let marks = [
            mark(412, MarkSource::Host, "kvm-open"),
            mark(1_500_007, MarkSource::Guest, "first-serial-byte"),
        ];
        let expected = "  time (ms)    step (ms)   share  who    what
      0.412        0.412   0.0 %  host   kvm-open
   1500.007     1499.595  100.0 %  guest  first-serial-byte
";
        assert_eq!(table(&marks, 0), expected);
        assert!(table(&marks, 3).ends_with("3 more found no room\n"));
    }

    #[test]
    fn a_path_that_cannot_be_written_is_told_at_once() {
        let Err(failure) = TimelineSink::open(Path::new("/no/such/directory/t.json")) else {
            panic!("it opened");
        };
        assert!(
            failure.message.contains("/no/such/directory/t.json"),
            "{}",
            failure.message
        );
        assert!(matches!(
            TimelineSink::open(Path::new("-")),
            Ok(TimelineSink::Table)
        ));
    }
}
