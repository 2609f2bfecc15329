//! The results as a table for a terminal.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};

use super::{Growth, everybody, groups};
use crate::results::{Figure, Results, Role, short};
use crate::stats::Summary;

/// The whole of it.
pub(crate) fn text(results: &Results, width: u16) -> String {
    let mut text = String::new();
    for (part, host) in &results.hosts {
        let lines = host.lines().map(|(name, value)| format!("{name} {value}"));
        text.push_str(&format!("{part}: {}\n", lines.join("; ")));
    }
    let programs = results
        .programs
        .iter()
        .map(|program| format!("{} {}", program.name, program.version));
    text.push_str(&format!("{}\n", programs.collect::<Vec<_>>().join("; ")));
    text.push_str(
        "\nMedians; in brackets Ampoule's ratio to that one by pairs, median and the range of eight of ten.\n",
    );
    for (part, group, figures) in groups(results) {
        text.push_str(&format!("\n{part}: {group}\n{}\n", table(&figures, width)));
    }
    let slopes = slopes(results, width);
    if !slopes.is_empty() {
        text.push_str(&format!("\nGrowth with each one more\n{slopes}\n"));
    }
    text.push_str(&targets(results, width));
    if !results.notes.is_empty() {
        text.push_str("\nNot measured, or not without trouble\n");
        for note in &results.notes {
            text.push_str(&format!("  {note}\n"));
        }
    }
    text
}

fn plain(width: u16) -> Table {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(width);
    table
}

fn table(figures: &[&Figure], width: u16) -> Table {
    let everybody = everybody(figures.iter().copied());
    let mut table = plain(width);
    let names = everybody.iter().map(|(who, _)| who.clone());
    table.set_header(["".into(), "".into()].into_iter().chain(names));
    for figure in figures {
        let cells = everybody.iter().map(|(who, role)| cell(figure, who, *role));
        table.add_row(
            [figure.title(), figure.unit.clone()]
                .into_iter()
                .chain(cells),
        );
    }
    align(&mut table, 2);
    table
}

fn align(table: &mut Table, from: usize) {
    for column in table.column_iter_mut().skip(from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

/// `3.10 (0.82, 0.80 to 0.91)`
fn cell(figure: &Figure, who: &str, role: Role) -> String {
    let Some(series) = figure.of(who) else {
        return "-".into();
    };
    let Some(summary) = Summary::of(&series.values) else {
        return "-".into();
    };
    let value = short(summary.median);
    match figure.ratio_to(series) {
        Some(ratio) if role != Role::Ours => {
            format!(
                "{value} ({:.2}, {:.2}-{:.2})",
                ratio.median, ratio.p10, ratio.p90
            )
        }
        // Its own spread, as shares of the median.
        _ if role == Role::Ours && summary.median > 0.0 && series.values.len() > 1 => {
            let [low, high] =
                [summary.p10, summary.p90].map(|end| (end / summary.median - 1.0) * 100.0);
            format!("{value} ({low:+.0} to {high:+.0} %)")
        }
        _ => value,
    }
}

fn slopes(results: &Results, width: u16) -> String {
    let all = Growth::all(results);
    // Of rates one does not ask by how much they grow.
    let all: Vec<&Growth<'_>> = all
        .iter()
        .filter(|growth| growth.figures[0].group != "block")
        .collect();
    if all.is_empty() {
        return String::new();
    }
    let everybody = everybody(all.iter().flat_map(|growth| growth.figures.iter().copied()));
    let mut table = plain(width);
    let names = everybody.iter().map(|(who, _)| who.clone());
    table.set_header(["".into(), "".into()].into_iter().chain(names));
    for growth in all {
        let slopes = growth.slopes();
        let first = growth.figures[0];
        let cells = everybody.iter().map(|(who, _)| {
            let slope = slopes.iter().find(|slope| slope.who == *who);
            slope.map_or("-".into(), |slope| {
                let Summary { median, p10, p90 } = slope.summary;
                format!("{} ({} to {})", small(median), small(p10), small(p90))
            })
        });
        let names = [
            format!("{}: {}, by {}", first.group, first.name, growth.what()),
            format!("{} each", first.unit),
        ];
        table.add_row(names.into_iter().chain(cells));
    }
    align(&mut table, 2);
    table.to_string()
}

/// A slope is often small: three figures of it.
pub(crate) fn small(value: f64) -> String {
    if value.abs() < 0.1 && value != 0.0 {
        format!("{value:.1e}")
    } else {
        short(value)
    }
}

/// Each target, and whether it is met.
fn targets(results: &Results, width: u16) -> String {
    let mut table = plain(width);
    let (mut met, mut all) = (0, 0);
    for figure in &results.figures {
        for verdict in figure.verdicts() {
            all += 1;
            if verdict.met {
                met += 1;
                continue;
            }
            let title = format!("{}: {}", figure.group, figure.title());
            table.add_row([title, verdict.wanted, verdict.found]);
        }
    }
    if all == 0 {
        return String::new();
    }
    let missed = if met < all {
        format!("; missed:\n{table}\n")
    } else {
        "\n".into()
    };
    format!("\nTargets: {met} of {all} met{missed}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::figure;

    #[test]
    fn the_table_tells_ratios_and_what_is_missed() {
        let mut results = Results::new("cargo lab bench");
        results
            .figures
            .push(figure(&[2.5, 2.5, 2.5], &[5.0, 5.0, 4.0], &[2.0, 2.0, 2.0]));
        results
            .notes
            .push("crosvm was not measured: not on PATH".into());
        let text = text(&results, 120);
        assert!(text.contains("5.00 (0.50, 0.50-0.60)"), "{text}");
        assert!(text.contains("Targets: 2 of 3 met; missed:"), "{text}");
        assert!(text.contains("at most 2.00 ms"), "{text}");
        assert!(text.contains("crosvm was not measured"), "{text}");
    }
}
