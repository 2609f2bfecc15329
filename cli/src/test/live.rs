//! What `ampoule test` says while it runs, on standard output.
//!
//! For people: a line for each scenario that ends, with all that there is to know where it did not pass. On a terminal, below them, a
//! line for each that is running, and one for the whole. Where colours are refused, or nobody looks, there are no such lines. For
//! programs: TAP as scenarios end, or JSON at the end.
//!
//! The supervisor feeds it from one thread. That standard output cannot be written stops no scenario; it is told in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::args::Format;
use super::outcome::{Attempt, Happening, ScenarioResult, TestRun, Verdict};
use super::report::text::{count_of, duration, plural, totals, visible, visible_line};
use super::report::{self as reports, HTML, Tap};
use crate::paint::{Paint, Style};
use crate::report::{self, Failure};

/// In front of what belongs to the line above.
const INDENT: &str = "      ";

/// Where text goes.
type Print = Box<dyn FnMut(&str) -> io::Result<()> + Send>;

/// Who tells of a run.
pub(crate) struct Reporter {
    format: Format,
    paint: Paint,
    live: Option<Live>,
    tap: Tap,
    results: PathBuf,
    /// Scenarios that have been told of.
    told: BTreeSet<usize>,
    print: Print,
    /// The first that went wrong.
    trouble: Option<io::Error>,
}

impl Reporter {
    /// On standard output, as it is; the reports are in `results`.
    pub(crate) fn new(format: Format, results: &Path) -> Self {
        let paint = Paint::stdout();
        let is_live = format == Format::Human && paint.is_coloured();
        let mut reporter = Self::printing(format, results, paint, Box::new(report::print_stdout));
        reporter.live = is_live.then(|| Live::new(ProgressDrawTarget::stdout()));
        reporter
    }

    fn printing(format: Format, results: &Path, paint: Paint, print: Print) -> Self {
        Self {
            format,
            paint,
            live: None,
            tap: Tap::default(),
            results: results.to_owned(),
            told: BTreeSet::new(),
            print,
            trouble: None,
        }
    }

    /// Tells of what has just happened.
    pub(crate) fn tell(&mut self, happening: &Happening<'_>) {
        if let Some(live) = &mut self.live {
            live.tell(happening);
        }
        match *happening {
            Happening::Begun { total, jobs } => self.begin(total, jobs),
            Happening::Started { .. } | Happening::Step { .. } => {}
            Happening::Retried { name, attempt, .. } => {
                if self.format == Format::Human {
                    self.say(&retried(name, attempt, self.paint));
                }
            }
            Happening::Ended { scenario, result } => self.end(scenario, result),
        }
    }

    /// Tells of all that has not been told of, and of the whole. The reports are written by now.
    ///
    /// # Errors
    ///
    /// Something could not be printed, now or before. A reader that has gone away is no error.
    pub(crate) fn finish(mut self, run: &TestRun) -> Result<(), Failure> {
        for (scenario, result) in run.scenarios.iter().enumerate() {
            if !self.told.contains(&scenario) {
                self.end(scenario, result);
            }
        }
        if let Some(live) = self.live.take() {
            live.clear();
        }
        match self.format {
            Format::Human => self.say(&summary(run, &self.results, self.paint)),
            Format::Tap => {}
            Format::Json => self.say(&reports::json_text(run)?),
        }
        match self.trouble {
            None => Ok(()),
            Some(err) => {
                let why = report::io_text(&err);
                Err(Failure::new(format!("cannot print: {why}")))
            }
        }
    }

    fn begin(&mut self, total: usize, jobs: usize) {
        match self.format {
            Format::Human => {
                let at_once = match jobs.min(total) {
                    0 | 1 => String::new(),
                    jobs => format!(", {jobs} at once"),
                };
                self.say(&format!("{}{at_once}\n", plural(total, "scenario")));
            }
            Format::Tap => self.say(&Tap::head(total)),
            Format::Json => {}
        }
    }

    fn end(&mut self, scenario: usize, result: &ScenarioResult) {
        self.told.insert(scenario);
        match self.format {
            Format::Human => self.say(&ended(result, self.paint)),
            Format::Tap => {
                let point = self.tap.point(result);
                self.say(&point);
            }
            Format::Json => {}
        }
    }

    fn say(&mut self, text: &str) {
        let said = match &self.live {
            Some(live) => live.bars.suspend(|| (self.print)(text)),
            None => (self.print)(text),
        };
        if let Err(err) = said {
            self.trouble.get_or_insert(err);
        }
    }
}

/// The line of a scenario that has ended, and what belongs to it.
fn ended(result: &ScenarioResult, paint: Paint) -> String {
    let (word, style) = match result.verdict {
        Verdict::Passed => ("ok   ", Style::Good),
        Verdict::Flaky => ("flaky", Style::Warning),
        Verdict::Skipped => ("skip ", Style::Warning),
        Verdict::Failed => ("FAIL ", Style::Bad),
        Verdict::Host => ("HOST ", Style::Bad),
    };
    let word = paint.apply(style, word);
    let name = visible_line(&result.name);
    if result.verdict == Verdict::Skipped {
        return format!("{word} {name}\n");
    }
    let time = duration(result.duration_ms());
    let mut text = format!("{word} {name}  {time}");
    if result.attempts.len() > 1 {
        let failed = result.attempts.iter().filter(|it| !it.has_passed());
        text += &format!(
            "  ({} of {} attempts failed)",
            failed.count(),
            result.attempts.len()
        );
    }
    text.push('\n');
    if let (Verdict::Failed | Verdict::Host, Some((_, attempt))) =
        (result.verdict, result.telling())
    {
        text += &why(attempt, paint);
        text += &format!("{INDENT}repeat: {}\n", visible_line(&result.repeat));
    }
    text
}

/// An attempt failed, and another follows.
fn retried(name: &str, attempt: &Attempt, paint: Paint) -> String {
    let word = paint.apply(Style::Warning, "again");
    let why = match &attempt.failure {
        Some(failure) => format!(": {}", visible_line(&failure.message)),
        None => String::new(),
    };
    let time = duration(attempt.duration_ms);
    format!("{word} {}  {time}{why}\n", visible_line(name))
}

/// All that there is to know about an attempt that did not pass.
fn why(attempt: &Attempt, paint: Paint) -> String {
    let mut text = String::new();
    let mut line = |line: &str| {
        text += INDENT;
        text += line.trim_end();
        text.push('\n');
    };
    if let Some(failure) = &attempt.failure {
        let kind = paint.apply(Style::Bad, failure.kind.name());
        line(&format!("{kind}: {}", visible_line(&failure.message)));
        if let Some((step, title)) = attempt.step_of(failure) {
            let number = attempt.steps[step].line;
            let title = visible_line(title);
            line(&format!(
                "in step {} of {}, line {number}: {title}",
                step + 1,
                attempt.steps.len()
            ));
        }
        for detail in &failure.details {
            line(&visible(detail));
        }
        if let Some(end) = &attempt.end {
            line(&format!("the VM: {}", visible_line(end)));
        }
        if !failure.console.is_empty() {
            line("the end of the console:");
        }
        for shown in &failure.console {
            line(&format!("| {}", visible(shown)));
        }
    }
    if let Some(folder) = &attempt.folder {
        line(&format!(
            "files:  {}",
            visible_line(&folder.to_string_lossy())
        ));
    }
    text
}

/// The last line.
fn summary(run: &TestRun, results: &Path, paint: Paint) -> String {
    let style = match run.exit_status() {
        0 => Style::Good,
        _ => Style::Bad,
    };
    let totals = paint.apply(style, &totals(run));
    let report = results.join(HTML);
    let report = visible_line(&report.to_string_lossy());
    format!("{totals} in {}; {report}\n", duration(run.duration_ms))
}

/// The lines that change.
struct Live {
    bars: MultiProgress,
    running: BTreeMap<usize, ProgressBar>,
    whole: ProgressBar,
    total: usize,
    counts: BTreeMap<Verdict, usize>,
}

/// How often elapsed times are drawn.
const TICK: Duration = Duration::from_millis(250);

impl Live {
    fn new(target: ProgressDrawTarget) -> Self {
        let bars = MultiProgress::with_draw_target(target);
        let whole =
            bars.add(ProgressBar::new_spinner().with_style(style("{wide_msg} {elapsed:>6}")));
        Self {
            bars,
            running: BTreeMap::new(),
            whole,
            total: 0,
            counts: BTreeMap::new(),
        }
    }

    fn tell(&mut self, happening: &Happening<'_>) {
        match *happening {
            Happening::Begun { total, .. } => {
                self.total = total;
                self.whole.enable_steady_tick(TICK);
            }
            Happening::Started {
                scenario,
                name,
                attempt,
            } => {
                let mut name = visible_line(name);
                if attempt > 1 {
                    name += &format!(" (attempt {attempt})");
                }
                let bar = self.running.entry(scenario).or_insert_with(|| {
                    let line = style("{spinner} {prefix}{wide_msg} {elapsed:>6}");
                    let bar = ProgressBar::new_spinner().with_style(line);
                    self.bars.insert_before(&self.whole, bar)
                });
                bar.set_prefix(name);
                bar.set_message("  boots");
                bar.reset_elapsed();
                bar.enable_steady_tick(TICK);
            }
            Happening::Step {
                scenario,
                step,
                of,
                title,
            } => {
                if let Some(bar) = self.running.get(&scenario) {
                    bar.set_message(format!("  {}/{of} {}", step + 1, visible_line(title)));
                }
            }
            Happening::Retried { .. } => {}
            Happening::Ended { scenario, result } => {
                *self.counts.entry(result.verdict).or_default() += 1;
                if let Some(bar) = self.running.remove(&scenario) {
                    bar.finish_and_clear();
                    self.bars.remove(&bar);
                }
            }
        }
        self.whole.set_message(self.totals());
    }

    /// `5 of 12 done: 1 failed, 4 passed`.
    fn totals(&self) -> String {
        let done: usize = self.counts.values().sum();
        let parts: Vec<String> = Verdict::ALL
            .into_iter()
            .filter_map(|it| Some(count_of(*self.counts.get(&it)?, it)))
            .collect();
        match parts.is_empty() {
            true => format!("{done} of {} done", self.total),
            false => format!("{done} of {} done: {}", self.total, parts.join(", ")),
        }
    }

    fn clear(self) {
        for bar in self.running.values().chain([&self.whole]) {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template);
    style.unwrap_or_else(|_| ProgressStyle::default_spinner())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::test::report::sample;

    /// What a reporter of this format says of the sample, whose scenarios end in this order.
    fn said(format: Format, order: &[usize]) -> String {
        let text = Arc::new(Mutex::new(String::new()));
        let sink = text.clone();
        let print = move |part: &str| {
            sink.lock().unwrap().push_str(part);
            Ok(())
        };
        let run = sample::run();
        let results = Path::new("ampoule-results");
        let mut reporter = Reporter::printing(format, results, Paint::plain(), Box::new(print));
        reporter.tell(&Happening::Begun { total: 12, jobs: 2 });
        for scenario in order {
            let result = &run.scenarios[*scenario];
            let (scenario, name) = (*scenario, result.name.as_str());
            for (number, attempt) in result.attempts.iter().enumerate() {
                let number = number as u32 + 1;
                reporter.tell(&Happening::Started {
                    scenario,
                    name,
                    attempt: number,
                });
                reporter.tell(&Happening::Step {
                    scenario,
                    step: 0,
                    of: 4,
                    title: "a step",
                });
                if (number as usize) < result.attempts.len() {
                    reporter.tell(&Happening::Retried {
                        scenario,
                        name,
                        attempt,
                    });
                }
            }
            reporter.tell(&Happening::Ended { scenario, result });
        }
        reporter.finish(&run).unwrap();
        Arc::into_inner(text).unwrap().into_inner().unwrap()
    }

    #[test]
    fn a_person_sees_a_line_for_each_and_all_about_what_failed() {
        let text = said(Format::Human, &[8, 0, 6, 9, 7, 3, 11]);
        assert!(
            text.starts_with("12 scenarios, 2 at once\nagain net  12.4 s: http"),
            "{text}"
        );
        assert!(
            text.contains("\nflaky net  15.4 s  (1 of 2 attempts failed)\n"),
            "{text}"
        );
        assert!(
            text.contains("\nok    boot[kernel=6.1,memory=128M]  3.0 s\n"),
            "{text}"
        );
        assert!(text.contains("\nskip  later\n"), "{text}");
        let failed = "FAIL  late-panic  24.8 s  (2 of 2 attempts failed)
      panic: the guest panicked: Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009
      in step 3 of 5, line 20: expect \"login:\"
      rip=0xffffffff810a11c8
      rsp=0xffffc90000013e48 rflags=0x00000046 cr3=0x0000000002c0a000
      the VM: stopped by ampoule
      the end of the console:
      | [    0.000000] Linux version";
        assert!(text.contains(failed), "{text}");
        let end = "
      files:  ampoule-results/a folder
      repeat: ampoule test tests/scenarios/panic.toml --filter 'late-panic'
";
        assert!(text.contains(end), "{text}");
        assert!(
            text.contains("\nHOST  big  12.4 s\n      host: cannot take 64G"),
            "{text}"
        );
        // Those of which nothing was told come at the end.
        assert!(text.contains("\nFAIL  idle  12.4 s\n"), "{text}");
        let last = "4 failed, 1 host trouble, 1 flaky, 1 skipped, 5 passed in 1 min 14 s; ampoule-results/report.html\n";
        assert!(text.ends_with(last), "{text}");
        // A guest moves no cursor.
        let is_harmless = |it: char| it == '\n' || it == '\t' || !it.is_control();
        assert!(text.chars().all(is_harmless), "{text}");
    }

    #[test]
    fn tap_comes_as_scenarios_end_and_json_as_one() {
        let text = said(Format::Tap, &[6, 0]);
        assert!(
            text.starts_with("TAP version 13\n1..12\nnot ok 1 - late-panic\n"),
            "{text}"
        );
        assert!(
            text.contains("\nok 2 - boot[kernel=6.1,memory=128M]\n"),
            "{text}"
        );
        assert!(text.contains("\nnot ok 12 - hostile<script>"), "{text}");
        assert!(!text.contains("again"));
        let text = said(Format::Json, &[6, 0]);
        assert_eq!(
            serde_json::from_str::<TestRun>(&text).unwrap(),
            sample::run()
        );
    }

    #[test]
    fn what_cannot_be_printed_is_told_in_the_end() {
        let full = |_: &str| Err(io::Error::from_raw_os_error(libc::ENOSPC));
        let results = Path::new("r");
        let mut reporter =
            Reporter::printing(Format::Human, results, Paint::plain(), Box::new(full));
        reporter.tell(&Happening::Begun { total: 0, jobs: 1 });
        let failure = reporter.finish(&sample::run()).unwrap_err();
        assert_eq!(failure.message, "cannot print: no space left on device");
    }

    #[test]
    fn the_live_lines_are_those_of_what_runs() {
        let run = sample::run();
        let mut live = Live::new(ProgressDrawTarget::hidden());
        live.tell(&Happening::Begun { total: 12, jobs: 2 });
        for scenario in [6, 8] {
            let name = &run.scenarios[scenario].name;
            live.tell(&Happening::Started {
                scenario,
                name,
                attempt: 1,
            });
        }
        live.tell(&Happening::Step {
            scenario: 6,
            step: 2,
            of: 5,
            title: "expect\x1b[2J \"login:\"",
        });
        assert_eq!(live.running[&6].prefix(), "late-panic");
        assert_eq!(
            live.running[&6].message(),
            "  3/5 expect\\x1b[2J \"login:\""
        );
        assert_eq!(live.running[&8].message(), "  boots");
        live.tell(&Happening::Started {
            scenario: 6,
            name: "late-panic",
            attempt: 2,
        });
        assert_eq!(live.running[&6].prefix(), "late-panic (attempt 2)");
        live.tell(&Happening::Ended {
            scenario: 6,
            result: &run.scenarios[6],
        });
        assert_eq!(live.running.keys().collect::<Vec<_>>(), [&8]);
        assert_eq!(live.whole.message(), "1 of 12 done: 1 failed");
        live.clear();
    }

    #[test]
    fn colours_are_for_verdicts() {
        let run = sample::run();
        let text = ended(&run.scenarios[0], Paint::coloured());
        assert!(text.starts_with("\x1b[32mok   \x1b[0m boot"), "{text}");
        assert!(summary(&run, Path::new("r"), Paint::coloured()).starts_with("\x1b[1;31m4 failed"));
    }
}
