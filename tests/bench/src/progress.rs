//! What one sees of it while it runs, on standard error.

#![allow(
    clippy::print_stderr,
    reason = "it takes minutes, and says how far it is"
)]

use crate::results::{Figure, short};
use crate::stats::Summary;

/// A measurement begins.
pub(crate) fn group(title: &str) {
    eprintln!("== {title}");
}

/// A figure is there.
pub(crate) fn figure(figure: &Figure) {
    let values = figure.series.iter().filter_map(|series| {
        let summary = Summary::of(&series.values)?;
        Some(format!("{} {}", series.who, short(summary.median)))
    });
    let values: Vec<String> = values.collect();
    eprintln!(
        "   {} ({}): {}",
        figure.title(),
        figure.unit,
        values.join(", ")
    );
}

/// Anything else.
pub(crate) fn note(text: &str) {
    eprintln!("   {text}");
}
