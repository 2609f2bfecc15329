//! One scenario of the page: what it is, each attempt's failure, steps, timeline and console, and how to repeat it.

use std::path::Path;

use maud::{Markup, html};

use super::super::console::{Consoles, Excerpt};
use super::super::text::{duration, plural, visible, visible_line};
use super::{link_to, symbol, timeline, word};
use crate::test::outcome::{
    Attempt, ConsoleMatch, FailureInfo, ScenarioResult, StepResult, StepState, Verdict,
};

/// More attempts of one scenario than a person looks at; those that did not pass come first.
const ATTEMPTS: usize = 20;

/// More marks of one console than a person follows.
const MARKS: usize = 1_000;

/// The files of a folder that are worth a link, where they are.
const FILES: [(&str, &str); 9] = [
    ("console.log", "console"),
    ("vmm.log", "log"),
    ("timeline.json", "timeline"),
    ("metrics.json", "metrics"),
    ("registers.txt", "registers"),
    ("scenario.json", "scenario"),
    ("scenario.toml", "scenario"),
    ("worker.log", "what its process said"),
    ("command.sh", "command"),
];

/// The scenario that is `number` in the run.
pub(super) fn entry(
    number: usize,
    scenario: &ScenarioResult,
    consoles: &Consoles,
    results: &Path,
) -> Markup {
    let verdict = scenario.verdict;
    let is_open = matches!(verdict, Verdict::Failed | Verdict::Host);
    let failure = scenario.telling().and_then(|(_, it)| it.failure.as_ref());
    html! {
        details.scenario.{ "v-" (verdict.name()) } open[is_open] {
            summary {
                (symbol(verdict))
                h4 { (visible_line(&scenario.name)) }
                span.badge { (word(verdict)) }
                @for tag in &scenario.tags { span.tag { (visible_line(tag)) } }
                @if verdict != Verdict::Skipped {
                    span.time { (duration(scenario.duration_ms())) }
                }
                @if let Some(failure) = failure {
                    span.why { (visible_line(&failure.message)) }
                }
            }
            // The target of links is inside, so that following one opens it.
            div.body id={ "s" (number) } {
                @if let Some(description) = &scenario.description {
                    p.description { (visible(description)) }
                }
                @if verdict == Verdict::Skipped {
                    p.dim { "Not begun: another scenario failed before, or the run was interrupted." }
                }
                (attempts(number, scenario, consoles, results))
                h5 { "Repeat it" }
                pre.command { code { (visible_line(&scenario.repeat)) } }
            }
        }
    }
}

fn attempts(
    number: usize,
    scenario: &ScenarioResult,
    consoles: &Consoles,
    results: &Path,
) -> Markup {
    let all = &scenario.attempts;
    let telling = scenario.telling().map(|(index, _)| index);
    let mut shown: Vec<usize> = (0..all.len()).collect();
    shown.sort_by_key(|it| all[*it].has_passed());
    shown.truncate(ATTEMPTS);
    shown.sort_unstable();
    let view = |index: usize| {
        let id = format!("s{number}a{index}");
        View::new(id, &all[index], consoles.of(number, index), results)
    };
    html! {
        @for index in &shown {
            @let attempt = &all[*index];
            @if all.len() == 1 {
                (view(*index).markup())
            } @else {
                details.attempt.{ "v-" (attempt.verdict.name()) } open[telling == Some(*index)] {
                    summary {
                        (symbol(attempt.verdict))
                        " Attempt " (index + 1) " of " (all.len()) ": " (word(attempt.verdict))
                        span.time { (duration(attempt.duration_ms)) }
                    }
                    (view(*index).markup())
                }
            }
        }
        @if all.len() > shown.len() {
            p.dim { "and " (plural(all.len() - shown.len(), "attempt")) " more, in results.json" }
        }
    }
}

/// An attempt, and what is needed to show it.
struct View<'a> {
    /// In front of all ids in it.
    id: String,
    attempt: &'a Attempt,
    console: Option<&'a Excerpt>,
    /// The console, cut where matches are.
    pieces: Vec<Piece<'a>>,
    results: &'a Path,
}

impl<'a> View<'a> {
    fn new(
        id: String,
        attempt: &'a Attempt,
        console: Option<&'a Excerpt>,
        results: &'a Path,
    ) -> Self {
        Self {
            id,
            attempt,
            console,
            pieces: console.map_or_else(Vec::new, |it| all_pieces(it, &attempt.matches)),
            results,
        }
    }

    fn markup(&self) -> Markup {
        let attempt = self.attempt;
        html! {
            @if let Some(failure) = &attempt.failure { (self.failure(failure)) }
            @if !attempt.steps.is_empty() { (self.steps()) }
            @if let Some(end) = &attempt.end {
                p.end { span.dim { "The VM: " } (visible_line(end)) }
            }
            @if !attempt.timeline.is_empty() {
                h5 { "Timeline" }
                (timeline::bars(&attempt.timeline))
            }
            (self.console())
            (self.files())
        }
    }

    fn failure(&self, failure: &FailureInfo) -> Markup {
        html! {
            div.failure {
                p { span.kind { (failure.kind.name()) } " " strong { (visible_line(&failure.message)) } }
                @if let Some((step, title)) = self.attempt.step_of(failure) {
                    p.dim { "in " a href={ "#" (self.id) "t" (step) } { "step " (step + 1) } ", " code { (visible_line(title)) } }
                }
                @if !failure.details.is_empty() {
                    pre { (visible(&failure.details.join("\n"))) }
                }
                // Where all of the console is shown, its end is, too.
                @if self.console.is_none() && !failure.console.is_empty() {
                    p.dim { "The end of the console:" }
                    pre { (visible(&failure.console.join("\n"))) }
                }
            }
        }
    }

    fn steps(&self) -> Markup {
        let attempt = self.attempt;
        let end_of = |it: &StepResult| it.at_ms.saturating_add(it.duration_ms);
        let whole = attempt.steps.iter().map(end_of).max().unwrap_or(0);
        let whole = whole.max(attempt.duration_ms).max(1);
        html! {
            div.scroll {
                table.steps {
                    caption { h5 { "Steps" } }
                    thead { tr {
                        th scope="col" { "#" }
                        th scope="col" { "step" }
                        th scope="col" { "line" }
                        th.number scope="col" { "began" }
                        th.number scope="col" { "took" }
                        th.when scope="col" aria-hidden="true" {}
                    } }
                    tbody {
                        @for (index, step) in attempt.steps.iter().enumerate() {
                            (self.step(index, step, whole))
                        }
                    }
                }
            }
        }
    }

    fn step(&self, index: usize, step: &StepResult, whole: u64) -> Markup {
        let (class, sign, word) = match step.state {
            StepState::Passed => ("v-passed", "✓", "passed"),
            StepState::Failed => ("v-failed", "✗", "failed"),
            StepState::NotReached => ("v-skipped", "–", "not reached"),
        };
        let share = |ms: u64| format!("{:.2}%", (100.0 * ms as f64 / whole as f64).min(100.0));
        let is_marked = self.is_marked(index);
        html! {
            tr.(class) id={ (self.id) "t" (index) } {
                td.nowrap {
                    span.sign title=(word) aria-hidden="true" { (sign) }
                    span.unseen { (word) }
                    " " (index + 1)
                }
                td.title {
                    code { (visible_line(&step.title)) }
                    @if is_marked {
                        " " a.there href={ "#" (self.id) "m" (index) } { "in the console" }
                    }
                }
                td { (step.line) }
                @if step.state == StepState::NotReached {
                    td.number {} td.number {} td.when {}
                } @else {
                    td.number { (duration(step.at_ms)) }
                    td.number { (duration(step.duration_ms)) }
                    td.when aria-hidden="true" {
                        span.bar { span style={ "--from:" (share(step.at_ms)) ";--long:" (share(step.duration_ms)) } {} }
                    }
                }
            }
        }
    }

    /// Whether the console has a mark of this step.
    fn is_marked(&self, step: usize) -> bool {
        let mut marks = self.pieces.iter().filter_map(|it| it.mark.as_ref());
        marks.any(|it| it.is_first && it.step == Some(step))
    }

    fn console(&self) -> Markup {
        let Some(console) = self.console else {
            return html! {};
        };
        if console.length == 0 {
            return html! { h5 { "Console" } p.dim { "Nothing came." } };
        }
        let length = usize::try_from(console.length).unwrap_or(usize::MAX);
        let marks = self.pieces.iter().filter(|it| it.mark.is_some()).count();
        let is_open = !self.attempt.has_passed();
        html! {
            details.console open[is_open] {
                summary { h5 { "Console" } " " span.dim {
                    (plural(length, "byte"))
                    @if marks > 0 { ", " (marks) @if marks == 1 { " match" } @else { " matches" } }
                } }
                pre class=[is_open.then_some("from-end")] tabindex="0" aria-label="console" {
                    code { @for piece in &self.pieces { (self.piece(piece)) } }
                }
            }
        }
    }

    fn piece(&self, piece: &Piece<'_>) -> Markup {
        let text = String::from_utf8_lossy(piece.text);
        let text = visible(&text);
        if piece.left_out > 0 {
            return html! { span.gap { (piece.left_out) " bytes are left out here; all of it is in console.txt where it is kept" } };
        }
        match &piece.mark {
            None => html! { (text) },
            Some(mark) => {
                let id = match (mark.is_first, mark.step) {
                    (true, Some(step)) => Some(format!("{}m{step}", self.id)),
                    _ => None,
                };
                html! {
                    mark class=[mark.step.is_none().then_some("forbidden")] id=[id] {
                        // In front: a match may end with its line.
                        @match mark.step {
                            Some(step) => a.label href={ "#" (self.id) "t" (step) } title="to the step" { "step " (step + 1) },
                            None => span.label { "forbidden" },
                        }
                        (text)
                    }
                }
            }
        }
    }

    fn files(&self) -> Markup {
        let Some(folder) = &self.attempt.folder else {
            return html! {};
        };
        let shown = visible_line(&folder.to_string_lossy());
        let Ok(within) = folder.strip_prefix(self.results) else {
            return html! { p.files { span.dim { "Files: " } code { (shown) } } };
        };
        html! {
            p.files {
                span.dim { "Files: " }
                a href=(link_to(within)) { code { (shown) } }
                @for (name, what) in FILES {
                    @if folder.join(name).is_file() {
                        " " a href=(link_to(&within.join(name))) { (what) }
                    }
                }
            }
        }
    }
}

/// A part of a console.
#[derive(Debug, PartialEq, Eq)]
struct Piece<'a> {
    text: &'a [u8],
    mark: Option<Mark>,
    /// So many bytes are not shown here; then there is no text.
    left_out: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Mark {
    step: Option<usize>,
    /// Whether it is the step's first, to which links lead.
    is_first: bool,
}

/// What there is of a console, in pieces.
fn all_pieces<'a>(console: &'a Excerpt, matches: &[ConsoleMatch]) -> Vec<Piece<'a>> {
    let mut seen = Vec::new();
    let mut all = pieces(&console.head, 0, matches, &mut seen);
    if !console.tail.is_empty() {
        let start = usize::try_from(console.tail_start()).unwrap_or(usize::MAX);
        all.push(Piece {
            text: &[],
            mark: None,
            left_out: console.length - (console.head.len() + console.tail.len()) as u64,
        });
        all.extend(pieces(&console.tail, start, matches, &mut seen));
    }
    all
}

/// Cuts a text that begins at `start` of the console where matches begin and end. One within another is part of it; one that is not
/// in the text, or ends before it begins, is none.
fn pieces<'a>(
    text: &'a [u8],
    start: usize,
    matches: &[ConsoleMatch],
    seen: &mut Vec<usize>,
) -> Vec<Piece<'a>> {
    let plain = |text| Piece {
        text,
        mark: None,
        left_out: 0,
    };
    let mut inside: Vec<&ConsoleMatch> = matches
        .iter()
        .filter(|it| it.start >= start && it.start < it.end && it.start - start < text.len())
        .collect();
    inside.sort_by_key(|it| (it.start, it.end));
    inside.truncate(MARKS);
    let mut pieces = Vec::new();
    let mut done = 0;
    for found in inside {
        let from = found.start - start;
        let to = (found.end - start).min(text.len());
        if from < done {
            continue;
        }
        if from > done {
            pieces.push(plain(&text[done..from]));
        }
        let is_first = found.step.is_some_and(|step| !seen.contains(&step));
        seen.extend(found.step);
        pieces.push(Piece {
            text: &text[from..to],
            mark: Some(Mark {
                step: found.step,
                is_first,
            }),
            left_out: 0,
        });
        done = to;
    }
    if done < text.len() {
        pieces.push(plain(&text[done..]));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::report::sample;

    fn found(step: usize, start: usize, end: usize) -> ConsoleMatch {
        ConsoleMatch {
            step: Some(step),
            start,
            end,
        }
    }

    fn texts<'a>(pieces: &[Piece<'a>]) -> Vec<(&'a [u8], Option<usize>)> {
        let step = |it: &Piece<'_>| it.mark.as_ref().and_then(|mark| mark.step);
        pieces.iter().map(|it| (it.text, step(it))).collect()
    }

    #[test]
    fn matches_are_marked_where_they_are_in_bytes() {
        // What is no UTF-8 shows as another number of characters, and moves no mark.
        let text = b"\xff\xfe\xc3\xa4 login: \x00 rest";
        let start = text.windows(6).position(|it| it == b"login:").unwrap();
        let matches = [found(3, start, start + 6)];
        let pieces = pieces(text, 0, &matches, &mut Vec::new());
        assert_eq!(
            texts(&pieces),
            [
                (&b"\xff\xfe\xc3\xa4 "[..], None),
                (b"login:", Some(3)),
                (b" \x00 rest", None)
            ]
        );
    }

    #[test]
    fn matches_that_overlap_or_are_elsewhere_cut_nothing_twice() {
        let text = b"0123456789";
        let matches = [
            found(1, 104, 106),
            found(0, 102, 105),
            found(2, 108, 400),
            found(3, 1, 2),
            found(4, 107, 107),
            found(5, usize::MAX - 1, usize::MAX),
            found(6, 50, 103),
        ];
        let pieces = pieces(text, 100, &matches, &mut Vec::new());
        assert_eq!(
            texts(&pieces),
            [
                (&b"01"[..], None),
                (b"234", Some(0)),
                (b"567", None),
                (b"89", Some(2))
            ]
        );
    }

    #[test]
    fn a_console_that_is_cut_says_so_and_keeps_its_marks() {
        let mut attempt = sample::run().scenarios[0].attempts[0].clone();
        attempt.matches = vec![found(0, 2, 4), found(1, 998, 1000)];
        let console = Excerpt {
            length: 1_000,
            head: b"abcdef".to_vec(),
            tail: b"uvwxyz".to_vec(),
        };
        let view = View::new("x".into(), &attempt, Some(&console), Path::new("r"));
        let text = view.console().into_string();
        assert!(
            text.contains("ab<mark id=\"xm0\"><a class=\"label\" href=\"#xt0\""),
            "{text}"
        );
        assert!(text.contains("988 bytes are left out here"), "{text}");
        assert!(text.contains("uvwx<mark id=\"xm1\">"), "{text}");
        assert!(text.contains("step 2</a>yz</mark>"), "{text}");
        assert!(text.contains("1000 bytes, 2 matches"), "{text}");
    }

    #[test]
    fn of_many_attempts_those_that_failed_are_shown() {
        let mut scenario = sample::run().scenarios.remove(0);
        let passed = scenario.attempts[0].clone();
        let mut failed = passed.clone();
        failed.verdict = Verdict::Failed;
        scenario.attempts = vec![passed; 1_000];
        scenario.attempts.push(failed);
        let text = entry(0, &scenario, &Consoles::default(), Path::new("")).into_string();
        assert!(text.contains("Attempt 1001 of 1001: failed"));
        assert_eq!(text.matches("<details class=\"attempt").count(), ATTEMPTS);
        assert!(text.contains("and 981 attempts more"));
    }
}
