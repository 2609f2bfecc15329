//! `report.html`: one page that needs nothing but itself. No script, no network; its own policy forbids both, whatever a guest has
//! written.
//!
//! The head says what it was and how it came out; then the matrices, then each file's scenarios. What did not pass is open.

mod matrix;
mod scenario;
mod timeline;

use std::path::Path;

use chrono::DateTime;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::Consoles;
use super::text::{count_of, duration, totals, visible_line};
use crate::test::outcome::{ScenarioResult, TestRun, Verdict};

const STYLE: &str = include_str!("html.css");

/// Nothing but the page's own styles.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// The page; links to files are relative to the results folder.
pub(super) fn page(run: &TestRun, consoles: &Consoles, results: &Path) -> Markup {
    let files = by_file(run);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (totals(run)) " – ampoule test" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                (head(run))
                main {
                    (matrix::section(&files))
                    (list(&files, consoles, results))
                }
                footer { "ampoule " (visible_line(&run.ampoule)) }
            }
        }
    }
}

/// A file and its scenarios, each with its number in the run.
type OfFile<'a> = (&'a Path, Vec<(usize, &'a ScenarioResult)>);

/// In the order of the files.
fn by_file(run: &TestRun) -> Vec<OfFile<'_>> {
    let mut files: Vec<OfFile<'_>> = Vec::new();
    for (number, scenario) in run.scenarios.iter().enumerate() {
        match files.iter_mut().find(|(file, _)| *file == scenario.file) {
            Some((_, scenarios)) => scenarios.push((number, scenario)),
            None => files.push((&scenario.file, vec![(number, scenario)])),
        }
    }
    files
}

fn head(run: &TestRun) -> Markup {
    let began = i64::try_from(run.started_ms)
        .ok()
        .and_then(DateTime::from_timestamp_millis);
    html! {
        header {
            h1 { "ampoule test" }
            p.verdict { (outcome(run)) }
            div.share aria-hidden="true" {
                @for verdict in Verdict::ALL {
                    @let count = run.count(verdict);
                    @if count > 0 {
                        span.{ "v-" (verdict.name()) } style={ "flex-grow:" (count) } {}
                    }
                }
            }
            dl.facts {
                @if let Some(began) = began {
                    div { dt { "began" } dd {
                        time datetime=(began.to_rfc3339()) { (began.format("%Y-%m-%d %H:%M:%S UTC").to_string()) }
                    } }
                }
                div { dt { "took" } dd { (duration(run.duration_ms)) } }
                div { dt { "host" } dd { (visible_line(&run.host)) } }
                div { dt { "ampoule" } dd { (visible_line(&run.ampoule)) } }
                @if let Some(seed) = run.seed {
                    div { dt { "order" } dd { "shuffled, seed " (seed) } }
                }
            }
            (filter(run))
        }
    }
}

fn outcome(run: &TestRun) -> String {
    let all = run.scenarios.len();
    match (run.count(Verdict::Failed), run.count(Verdict::Host)) {
        _ if all == 0 => "There were no scenarios".to_owned(),
        (0, 0) if run.count(Verdict::Skipped) > 0 => "Not all were run".to_owned(),
        (0, 0) if run.count(Verdict::Flaky) > 0 => "All passed, not all at once".to_owned(),
        (0, 0) => "All passed".to_owned(),
        (0, host) => format!("The host could not do {host} of {all}"),
        (failed, _) => format!("{failed} of {all} failed"),
    }
}

/// Boxes that choose which verdicts are shown; style sheets do the rest.
fn filter(run: &TestRun) -> Markup {
    html! {
        fieldset.filter {
            legend { "Show" }
            @for verdict in Verdict::ALL {
                @let count = run.count(verdict);
                @if count > 0 {
                    label.{ "v-" (verdict.name()) } {
                        input type="checkbox" id={ "show-" (verdict.name()) } checked;
                        (symbol(verdict)) " " (count_of(count, verdict))
                    }
                }
            }
        }
    }
}

fn list(files: &[OfFile<'_>], consoles: &Consoles, results: &Path) -> Markup {
    html! {
        section aria-labelledby="scenarios" {
            h2 #scenarios { "Scenarios" }
            @for (file, scenarios) in files {
                section.file {
                    h3 { code { (visible_line(&file.to_string_lossy())) } }
                    @for (number, scenario) in scenarios {
                        (scenario::entry(*number, scenario, consoles, results))
                    }
                }
            }
        }
    }
}

/// A verdict in words.
fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Host => "host trouble",
        _ => verdict.name(),
    }
}

/// A verdict for the eye, which does not count on colours. A word stands beside it.
fn symbol(verdict: Verdict) -> Markup {
    let sign = match verdict {
        Verdict::Passed => "✓",
        Verdict::Flaky => "≈",
        Verdict::Skipped => "–",
        Verdict::Failed => "✗",
        Verdict::Host => "!",
    };
    html! { span.sign aria-hidden="true" { (sign) } }
}

/// A path as a link has it: each byte that means something there as a number.
fn link_to(path: &Path) -> String {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt;

    let mut link = String::from("./");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b',' | b'=' => {
                link.push(char::from(*byte));
            }
            _ => {
                let _ = write!(link, "%{byte:02X}");
            }
        }
    }
    link
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::report::sample;

    fn sample_page() -> String {
        page(
            &sample::run(),
            &sample::consoles(),
            Path::new("ampoule-results"),
        )
        .into_string()
    }

    #[test]
    fn nothing_of_a_guest_or_a_file_is_markup() {
        let page = sample_page();
        for bad in ["<script", "<img", "</details><script", "<b>"] {
            assert!(!page.to_lowercase().contains(bad), "{bad}");
        }
        assert!(page.contains("&lt;script&gt;document.title='owned'&lt;/script&gt;"));
        assert!(page.contains("hostile&lt;script&gt;alert(1)&lt;/script&gt;"));
        let is_harmless = |it: char| it == '\n' || it == '\t' || !it.is_control();
        assert!(page.chars().all(is_harmless));
        assert!(!page.contains('\u{202e}'));
        assert!(page.contains(POLICY));
    }

    #[test]
    fn nothing_is_fetched_from_anywhere() {
        let page = sample_page();
        for attribute in [" src=\"", "url(", "@import", "<link", "href=\"http"] {
            assert!(!page.contains(attribute), "{attribute}");
        }
    }

    #[test]
    fn all_links_within_the_page_lead_somewhere() {
        let page = sample_page();
        let targets: Vec<&str> = page.split("href=\"#").skip(1).collect();
        assert!(targets.len() > 20);
        let mut ids: Vec<&str> = page
            .split(" id=\"")
            .skip(1)
            .map(|it| it.split('"').next().unwrap())
            .collect();
        for target in targets {
            let target = target.split('"').next().unwrap();
            assert!(ids.contains(&target), "{target}");
        }
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all, "an id is there twice");
    }

    #[test]
    fn the_head_says_how_it_came_out() {
        let mut run = sample::run();
        assert_eq!(outcome(&run), "4 of 12 failed");
        run.scenarios.retain(|it| it.verdict != Verdict::Failed);
        assert_eq!(outcome(&run), "The host could not do 1 of 8");
        run.scenarios.retain(|it| it.verdict != Verdict::Host);
        assert_eq!(outcome(&run), "Not all were run");
        run.scenarios.retain(|it| it.verdict != Verdict::Skipped);
        assert_eq!(outcome(&run), "All passed, not all at once");
        run.scenarios.retain(|it| it.verdict != Verdict::Flaky);
        assert_eq!(outcome(&run), "All passed");
        run.scenarios.clear();
        assert_eq!(outcome(&run), "There were no scenarios");
        let page = page(&run, &Consoles::default(), Path::new("")).into_string();
        assert!(page.contains("There were no scenarios"));
    }

    #[test]
    fn a_link_is_no_other_one() {
        assert_eq!(link_to(Path::new("a b/c?d#e%")), "./a%20b/c%3Fd%23e%25");
        assert_eq!(link_to(Path::new("javascript:x")), "./javascript%3Ax");
    }
}
