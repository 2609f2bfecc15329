//! The results as a page to look at: one file that needs nothing else.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::{self, Palette};
use super::{Growth, ahead, everybody, groups};
use crate::results::{Figure, Results, Role, short};
use crate::stats::Summary;

const STYLE: &str = include_str!("page.css");

/// The page.
pub(crate) fn html(results: &Results) -> String {
    let palette = Palette::new(&results.figures);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Ampoule: benchmarks of " (results.began) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "What Ampoule costs, beside others" }
                    p { (results.began) ", " (format!("{:.0}", results.seconds / 60.0)) " minutes: " code { (results.command) } }
                    p {
                        "Medians of runs in turns; lines are the range of eight values of ten. Ratios are Ampoule's to the other's, "
                        "by pairs that were measured one after the other."
                    }
                    (legend(&palette))
                }
                (hosts(results))
                (targets(results))
                @for (part, group, figures) in groups(results) {
                    (section(results, part, group, &figures, &palette))
                }
                (growth(results))
                @if !results.notes.is_empty() {
                    section {
                        h2 { "Not measured, or not without trouble" }
                        ul { @for note in &results.notes { li { (note) } } }
                    }
                }
            }
        }
    };
    page.into_string()
}

fn legend(palette: &Palette) -> Markup {
    html! {
        p class="legend" {
            @for who in palette.names() {
                span class=(palette.class(who)) { i {} (who) }
            }
        }
    }
}

fn hosts(results: &Results) -> Markup {
    html! {
        section {
            h2 { "Where, and who" }
            div class="grid" {
                @for (part, host) in &results.hosts {
                    table {
                        caption { (part) }
                        @for (name, value) in host.lines() {
                            tr { th { (name) } td { (value) } }
                        }
                    }
                }
                table {
                    caption { "versions" }
                    @for program in &results.programs {
                        tr { th { (program.name) } td { (program.version) } }
                    }
                }
            }
        }
    }
}

fn targets(results: &Results) -> Markup {
    let verdicts = results.figures.iter().flat_map(|figure| {
        figure
            .verdicts()
            .into_iter()
            .map(move |verdict| (figure, verdict))
    });
    let (met, missed): (Vec<_>, Vec<_>) = verdicts.partition(|(_, verdict)| verdict.met);
    html! {
        section {
            h2 { "Targets: " (met.len()) " met, " (missed.len()) " missed" }
            @for (word, verdicts, open) in [("missed", missed, true), ("met", met, false)] {
                @if !verdicts.is_empty() {
                    details open[open] {
                        summary { (verdicts.len()) " " (word) }
                        table class="wide" {
                            @for (figure, verdict) in &verdicts {
                                tr {
                                    td { (figure.part) " " (figure.group) ": " (figure.title()) }
                                    td { (verdict.wanted) }
                                    td class=(word) { (verdict.found) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn section(
    results: &Results,
    part: &str,
    group: &str,
    figures: &[&Figure],
    palette: &Palette,
) -> Markup {
    let all = Growth::all(results);
    let growths = all.iter().filter(|growth| {
        (
            growth.figures[0].part.as_str(),
            growth.figures[0].group.as_str(),
        ) == (part, group)
    });
    let in_growth = |figure: &Figure| {
        all.iter()
            .any(|growth| growth.figures.iter().any(|one| std::ptr::eq(*one, figure)))
    };
    html! {
        section {
            h2 { (part) ": " (group) }
            div class="grid" {
                @for figure in figures.iter().filter(|figure| !in_growth(figure)) {
                    figure {
                        figcaption { (figure.title()) " " small { (figure.unit) } }
                        (chart::bars(figure, palette))
                    }
                }
                @for growth in growths {
                    figure {
                        figcaption { (growth.figures[0].name) " " small { (growth.figures[0].unit) } }
                        (chart::lines(growth, palette))
                    }
                }
            }
            details {
                summary { "the numbers" }
                (numbers(figures))
            }
        }
    }
}

fn numbers(figures: &[&Figure]) -> Markup {
    let everybody = everybody(figures.iter().copied());
    html! {
        div class="scroll" {
            table class="wide" {
                tr {
                    th {} th {}
                    @for (who, _) in &everybody { th class="number" { (who) } }
                }
                @for figure in figures {
                    tr {
                        td { (figure.title()) }
                        td { (figure.unit) }
                        @for (who, role) in &everybody { (number(figure, who, *role)) }
                    }
                }
            }
        }
    }
}

fn number(figure: &Figure, who: &str, role: Role) -> Markup {
    let series = figure.of(who);
    let summary = series.and_then(|series| Summary::of(&series.values));
    let (Some(series), Some(summary)) = (series, summary) else {
        return html! { td class="number" { "–" } };
    };
    let ratio = figure.ratio_to(series).filter(|_| role != Role::Ours);
    let ahead = ratio
        .filter(|_| role == Role::Peer)
        .and_then(|ratio| ahead(figure.better, ratio));
    let class = match ahead {
        Some(true) => "number met",
        Some(false) => "number missed",
        None => "number",
    };
    html! {
        td class=(class) title=(format!("{} to {}, {} values", short(summary.p10), short(summary.p90), series.values.len())) {
            (short(summary.median))
            @if let Some(ratio) = ratio {
                br;
                small { (format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.p10, ratio.p90)) }
            }
        }
    }
}

fn growth(results: &Results) -> Markup {
    let all = Growth::all(results);
    let all: Vec<&Growth<'_>> = all
        .iter()
        .filter(|growth| growth.figures[0].group != "block")
        .collect();
    let everybody = everybody(all.iter().flat_map(|growth| growth.figures.iter().copied()));
    html! {
        @if !all.is_empty() {
            section {
                h2 { "Growth with each one more" }
                div class="scroll" {
                    table class="wide" {
                        tr {
                            th {} th {}
                            @for (who, _) in &everybody { th class="number" { (who) } }
                        }
                        @for growth in &all {
                            @let first = growth.figures[0];
                            @let slopes = growth.slopes();
                            tr {
                                td { (first.part) " " (first.group) ": " (first.name) }
                                td { (first.unit) ", by " (growth.what()) }
                                @for (who, _) in &everybody {
                                    td class="number" {
                                        @match slopes.iter().find(|slope| slope.who == *who) {
                                            Some(slope) => (super::table::small(slope.summary.median)),
                                            None => "–",
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Over, tests::figure};

    #[test]
    fn the_page_has_all_of_it_and_nothing_of_a_name_is_markup() {
        let mut results = Results::new("cargo lab bench --only <b>");
        results.figures.push(figure(&[2.5], &[5.0], &[2.0]));
        for at in [0.0, 4.0] {
            let mut figure = figure(&[2.5], &[5.0], &[2.0]);
            figure.name = "memory".into();
            figure.over = Some(Over {
                what: "disks".into(),
                at,
            });
            results.figures.push(figure);
        }
        results.notes.push("a note".into());
        let page = html(&results);
        assert!(page.contains("cargo lab bench --only &lt;b&gt;"));
        assert_eq!(page.matches("<svg").count(), 2);
        assert!(
            page.contains("3 missed"),
            "the median of 2.5 ms is beyond 2 ms in each"
        );
        assert!(page.contains("a note"));
        assert!(!page.contains("http"), "it needs nothing else");
    }
}
