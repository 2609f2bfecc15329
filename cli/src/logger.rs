//! Log messages of the library, one line each on standard error.

use log::{LevelFilter, Log, Metadata, Record};

use crate::paint::{Paint, Style};

struct StderrLog {
    paint: Paint,
}

/// Prints messages of this level and of the graver ones. Once in the life of the process.
pub(crate) fn install(level: LevelFilter) {
    if level == LevelFilter::Off {
        return;
    }
    let logger = Box::new(StderrLog {
        paint: Paint::stderr(),
    });
    if log::set_boxed_logger(logger).is_ok() {
        log::set_max_level(level);
    }
}

impl Log for StderrLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            crate::report::print_stderr(&line(record, self.paint));
        }
    }

    fn flush(&self) {}
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
