//! A bar for what takes longer than a second, on a terminal.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use ampoule_store::{Phase, Progress};
use indicatif::{ProgressBar, ProgressStyle};

/// What is done sooner is not worth a word.
const PATIENCE: Duration = Duration::from_secs(1);

/// The bar of an image in the making.
pub(crate) struct Bar {
    bar: Option<ProgressBar>,
    start: Instant,
    is_wanted: bool,
}

impl Bar {
    /// A bar that is not there yet; one that never is, where nobody wants or sees it.
    pub(crate) fn new(quiet: bool) -> Self {
        Self {
            bar: None,
            start: Instant::now(),
            is_wanted: !quiet && io::stderr().is_terminal(),
        }
    }

    /// So far it is.
    pub(crate) fn show(&mut self, progress: Progress) {
        if !self.is_wanted || self.start.elapsed() < PATIENCE {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let template = "{msg:9} {wide_bar} {bytes}/{total_bytes}";
            let style = ProgressStyle::with_template(template);
            ProgressBar::no_length()
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        bar.set_message(match progress.phase {
            Phase::Waiting => "waiting",
            Phase::Fetching => "fetching",
            Phase::Unpacking => "unpacking",
            Phase::Reading => "reading",
            _ => "writing",
        });
        if let Some(total) = progress.total {
            bar.set_length(total);
        }
        bar.set_position(progress.done);
    }

    /// It is done, or has failed.
    pub(crate) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
