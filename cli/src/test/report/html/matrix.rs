//! Scenarios of a matrix as a table: the first axis down, the second across, a table for each choice of the others.

use maud::{Markup, html};

use super::super::text::{duration, visible_line};
use super::{OfFile, symbol, word};
use crate::test::outcome::{ScenarioResult, Verdict};

type Numbered<'a> = (usize, &'a ScenarioResult);

/// All matrices; nothing where no scenario has a place in one.
pub(super) fn section(files: &[OfFile<'_>]) -> Markup {
    let with_cells: Vec<&OfFile<'_>> = files
        .iter()
        .filter(|(_, scenarios)| scenarios.iter().any(|(_, it)| !it.cell.is_empty()))
        .collect();
    if with_cells.is_empty() {
        return html! {};
    }
    html! {
        section aria-labelledby="matrix" {
            h2 #matrix { "Matrix" }
            @for (file, scenarios) in with_cells {
                h3 { code { (visible_line(&file.to_string_lossy())) } }
                div.matrices {
                    @for (rest, cells) in tables(scenarios) { (table(&rest, &cells)) }
                }
            }
        }
    }
}

/// The scenarios by their axes behind the second, in words.
fn tables<'a>(scenarios: &[Numbered<'a>]) -> Vec<(String, Vec<Numbered<'a>>)> {
    let mut tables: Vec<(String, Vec<Numbered<'a>>)> = Vec::new();
    for (number, scenario) in scenarios.iter().filter(|(_, it)| !it.cell.is_empty()) {
        let rest: Vec<String> = scenario
            .cell
            .iter()
            .skip(2)
            .map(|(axis, value)| format!("{axis} = {value}"))
            .collect();
        let rest = rest.join(", ");
        match tables.iter_mut().find(|(it, _)| *it == rest) {
            Some((_, cells)) => cells.push((*number, scenario)),
            None => tables.push((rest, vec![(*number, scenario)])),
        }
    }
    tables
}

/// The values of an axis, in the order in which they come; nothing stands for an axis that is not there.
fn values<'a>(cells: &[Numbered<'a>], axis: usize) -> Vec<&'a str> {
    let mut values = Vec::new();
    for (_, scenario) in cells {
        let value = value(scenario, axis);
        if !values.contains(&value) {
            values.push(value);
        }
    }
    values
}

fn value(scenario: &ScenarioResult, axis: usize) -> &str {
    scenario.cell.get(axis).map_or("", |(_, value)| value)
}

fn table(rest: &str, cells: &[Numbered<'_>]) -> Markup {
    let axis = |number: usize| {
        let name = cells[0].1.cell.get(number).map_or("", |(axis, _)| axis);
        visible_line(name)
    };
    let (rows, columns) = (values(cells, 0), values(cells, 1));
    html! {
        div.scroll {
            table.matrix {
                @if !rest.is_empty() { caption { (visible_line(rest)) } }
                thead { tr {
                    th scope="col" { (axis(0)) @if !axis(1).is_empty() { span.dim { " ╲ " } (axis(1)) } }
                    @for column in &columns { th scope="col" { (visible_line(column)) } }
                } }
                tbody {
                    @for row in &rows {
                        tr {
                            th scope="row" { (visible_line(row)) }
                            @for column in &columns {
                                (cell(cells.iter().filter(|(_, it)| value(it, 0) == *row && value(it, 1) == *column)))
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A place of the table: mostly one scenario; none where it is left out, several where axes do not tell them apart.
fn cell<'a>(scenarios: impl Iterator<Item = &'a Numbered<'a>>) -> Markup {
    let scenarios: Vec<_> = scenarios.collect();
    html! {
        td {
            @if scenarios.is_empty() { span.dim title="not in the matrix" { "·" } }
            @for (number, scenario) in scenarios {
                a.cell.{ "v-" (scenario.verdict.name()) } href={ "#s" (number) } title=(visible_line(&scenario.name)) {
                    (symbol(scenario.verdict))
                    " "
                    span { (word(scenario.verdict)) }
                    @if scenario.verdict != Verdict::Skipped {
                        " " span.time { (duration(scenario.duration_ms())) }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::by_file;
    use super::*;
    use crate::test::report::sample;

    #[test]
    fn rows_and_columns_are_the_first_two_axes() {
        let run = sample::run();
        let files = by_file(&run);
        assert_eq!(values(&files[0].1, 0), ["6.1", "6.12"]);
        assert_eq!(values(&files[0].1, 1), ["128M", "512M", "2G"]);
        let page = section(&files).into_string();
        assert_eq!(page.matches("<table").count(), 1);
        assert_eq!(page.matches("class=\"cell v-passed\"").count(), 5);
        assert_eq!(page.matches("class=\"cell v-failed\"").count(), 1);
    }

    #[test]
    fn a_third_axis_makes_tables_and_a_hole_stays_one() {
        let mut run = sample::run();
        for (number, scenario) in run.scenarios.iter_mut().take(6).enumerate() {
            scenario
                .cell
                .push(("cpus".into(), (number % 2 + 1).to_string()));
        }
        let page = section(&by_file(&run)).into_string();
        assert!(page.contains("<caption>cpus = 1</caption>"));
        assert!(page.contains("<caption>cpus = 2</caption>"));
        assert!(page.contains("not in the matrix"));
        // One axis is a row for each value.
        for scenario in &mut run.scenarios {
            scenario.cell.truncate(1);
        }
        let page = section(&by_file(&run)).into_string();
        assert_eq!(page.matches("<tr>").count(), 3);
        for scenario in &mut run.scenarios {
            scenario.cell.clear();
        }
        assert!(section(&by_file(&run)).into_string().is_empty());
    }
}
