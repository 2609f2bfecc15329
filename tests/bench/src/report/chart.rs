//! Charts, as SVG inside the page: their colours are the page's, light or dark, and each mark tells its value to the pointer.

use maud::{Markup, html};

use super::{Growth, at, everybody};
use crate::results::{Figure, short};
use crate::stats::Summary;

const WIDTH: f64 = 460.0;
/// Of a row of bars.
const ROW: f64 = 24.0;
/// Room for names on the left, and for values on the right.
const LEFT: f64 = 150.0;
const RIGHT: f64 = 78.0;

/// Who has which colour: the place in the page's palette.
pub(crate) struct Palette(Vec<String>);

impl Palette {
    pub(crate) fn new<'a>(figures: impl IntoIterator<Item = &'a Figure>) -> Self {
        Self(everybody(figures).into_iter().map(|(who, _)| who).collect())
    }

    /// The class of all that belongs to this one.
    pub(crate) fn class(&self, who: &str) -> String {
        let place = self.0.iter().position(|one| one == who).unwrap_or(0);
        format!("c{}", place % COLOURS)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// As many as the page has.
pub(crate) const COLOURS: usize = 10;

/// A bar for each, with a line for the range of eight values of ten.
pub(crate) fn bars(figure: &Figure, palette: &Palette) -> Markup {
    let everybody = everybody([figure]);
    let rows: Vec<(&str, Summary)> = everybody
        .iter()
        .filter_map(|(who, _)| Some((who.as_str(), Summary::of(&figure.of(who)?.values)?)))
        .collect();
    let most = rows
        .iter()
        .map(|(_, summary)| summary.p90)
        .fold(0.0, f64::max);
    let scale = (WIDTH - LEFT - RIGHT) / if most > 0.0 { most } else { 1.0 };
    let height = rows.len() as f64 * ROW + 4.0;
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {height}")) role="img" aria-label=(figure.title()) {
            @for (row, (who, summary)) in rows.iter().enumerate() {
                @let top = row as f64 * ROW + 4.0;
                @let middle = top + ROW / 2.0 - 2.0;
                @let [low, end, high] = [summary.p10, summary.median, summary.p90].map(|value| LEFT + value.max(0.0) * scale);
                g class=(palette.class(who)) {
                    title { (told(who, summary, &figure.unit)) }
                    text class="name" x=(LEFT - 8.0) y=(middle + 4.0) { (cut(who)) }
                    rect x=(LEFT) y=(top) width=(num(end - LEFT)) height=(ROW - 6.0) rx="2" {}
                    line class="range" x1=(num(low)) x2=(num(high)) y1=(middle) y2=(middle) {}
                    text class="value" x=(num(high.max(end) + 6.0)) y=(middle + 4.0) { (short(summary.median)) }
                }
            }
        }
    }
}

/// A line for each, over the number that the figures depend on.
pub(crate) fn lines(growth: &Growth<'_>, palette: &Palette) -> Markup {
    const HEIGHT: f64 = 210.0;
    const BOTTOM: f64 = 34.0;
    const TOP: f64 = 10.0;
    const SIDE: f64 = 64.0;
    let figures = &growth.figures;
    // Evenly spread: each is a multiple of the one before.
    let x = |place: usize| {
        let steps = (figures.len() - 1).max(1) as f64;
        SIDE + (WIDTH - SIDE - 20.0) * place as f64 / steps
    };
    let summaries = |who: &str| -> Vec<(usize, Summary)> {
        let of = |figure: &Figure| Summary::of(&figure.of(who)?.values);
        figures
            .iter()
            .enumerate()
            .filter_map(|(place, figure)| Some((place, of(figure)?)))
            .collect()
    };
    let everybody = everybody(figures.iter().copied());
    let most = everybody.iter().flat_map(|(who, _)| summaries(who));
    let most = most.map(|(_, summary)| summary.p90).fold(0.0, f64::max);
    let most = round_up(most);
    let y = |value: f64| HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value.max(0.0) / most;
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(figures[0].name) {
            @for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
                @let value = most * share;
                line class="grid" x1=(SIDE) x2=(WIDTH - 12.0) y1=(num(y(value))) y2=(num(y(value))) {}
                text class="name" x=(SIDE - 8.0) y=(num(y(value) + 4.0)) { (short(value)) }
            }
            @for (place, figure) in figures.iter().enumerate() {
                text class="tick" x=(num(x(place))) y=(HEIGHT - BOTTOM + 16.0) { (at(figure)) }
            }
            text class="tick" x=(num((SIDE + WIDTH) / 2.0)) y=(HEIGHT - 4.0) { (growth.what()) }
            @for (who, _) in everybody.iter().rev() {
                @let points = summaries(who);
                @let line = points.iter().map(|(place, summary)| format!("{},{}", num(x(*place)), num(y(summary.median))));
                g class=(palette.class(who)) {
                    polyline points=(line.collect::<Vec<_>>().join(" ")) {}
                    @for (place, summary) in &points {
                        line class="spread" x1=(num(x(*place))) x2=(num(x(*place))) y1=(num(y(summary.p10))) y2=(num(y(summary.p90))) {}
                        circle cx=(num(x(*place))) cy=(num(y(summary.median))) r="3.5" {
                            title { (at(figures[*place])) " " (growth.what()) ": " (told(who, summary, &figures[0].unit)) }
                        }
                    }
                }
            }
        }
    }
}

/// A number not much above this one that is easily divided by four.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let decade = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 1.2, 1.6, 2.0, 2.4, 3.2, 4.0, 5.0, 6.0, 8.0, 10.0];
    let step = steps.iter().find(|step| **step * decade >= value);
    step.unwrap_or(&10.0) * decade
}

fn told(who: &str, summary: &Summary, unit: &str) -> String {
    let Summary { median, p10, p90 } = *summary;
    format!(
        "{who}: {} {unit} ({} to {})",
        short(median),
        short(p10),
        short(p90)
    )
}

/// Names are cut where there is no room.
fn cut(who: &str) -> String {
    const ROOM: usize = 22;
    match who.char_indices().nth(ROOM) {
        Some((at, _)) => format!("{}…", &who[..at]),
        None => who.into(),
    }
}

/// A coordinate: a tenth of a pixel is enough.
fn num(value: f64) -> String {
    format!("{value:.1}")
}
