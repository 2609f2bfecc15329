//! A boot as bars: a row for each mark, whose bar reaches from the mark before it to it.
//!
//! A row of its own for each name is what keeps names apart. Host and guest differ in colour, in pattern, and in a word.

use maud::{Markup, html};

use super::super::text::{fine_duration, plural, visible_line};
use crate::test::outcome::TimelineMark;

/// More marks than a person reads.
const MOST: usize = 100;

/// The timeline; nothing where there is no mark.
pub(super) fn bars(marks: &[TimelineMark]) -> Markup {
    let shown = &marks[..marks.len().min(MOST)];
    let Some(whole) = shown.iter().map(|it| it.at_us).max() else {
        return html! {};
    };
    let whole = whole.max(1);
    let befores = std::iter::once(0).chain(shown.iter().map(|it| it.at_us));
    let ticks = ticks(whole);
    html! {
        div.timeline {
            p.legend {
                span.key.host {} " host "
                span.key.guest {} " guest"
                span.dim { " – a bar is the time since the mark before" }
            }
            div.axis aria-hidden="true" {
                div.scale {
                    @for tick in &ticks {
                        span.tick style={ "left:" (percent(*tick, whole)) } { span { (tick_text(*tick)) } }
                    }
                }
            }
            ol {
                @for (mark, before) in shown.iter().zip(befores) {
                    @let step = mark.at_us.saturating_sub(before);
                    @let side = if mark.guest { "guest" } else { "host" };
                    li {
                        span.name { (visible_line(&mark.name)) span.unseen { ", " (side) ", at " } }
                        span.bar aria-hidden="true" {
                            span.(side) style={ "--from:" (percent(mark.at_us - step, whole)) ";--long:" (percent(step, whole)) } {}
                        }
                        span.at { (fine_duration(mark.at_us)) }
                        span.step { "+" (fine_duration(step)) }
                    }
                }
            }
            @if marks.len() > MOST {
                p.dim { "and " (plural(marks.len() - MOST, "mark")) " more, in results.json" }
            }
        }
    }
}

fn percent(part: u64, whole: u64) -> String {
    let share = 100.0 * part as f64 / whole as f64;
    format!("{:.2}%", share.clamp(0.0, 100.0))
}

/// Three to six round times; the last is well before the end, so that its text has room.
fn ticks(whole: u64) -> Vec<u64> {
    let mut step = 1_u64;
    while whole / step > 5 {
        step = match step.to_string().as_bytes()[0] {
            b'2' => step / 2 * 5,
            _ => step * 2,
        };
    }
    let last = whole - whole / 12;
    (0..)
        .map(|it| it * step)
        .take_while(|it| *it <= last)
        .collect()
}

fn tick_text(us: u64) -> String {
    match us {
        0 => "0".to_owned(),
        1..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{} ms", us / 1_000),
        _ => format!("{} s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(
            ticks(2_200_000),
            [0, 500_000, 1_000_000, 1_500_000, 2_000_000]
        );
        assert_eq!(
            ticks(5_999_999),
            [0, 1, 2, 3, 4, 5].map(|it| it * 1_000_000)
        );
        assert_eq!(ticks(930), [0, 200, 400, 600, 800]);
        assert_eq!(ticks(1), [0, 1]);
        for exponent in 0..18 {
            for digit in [1, 3, 7, 9] {
                let ticks = ticks(digit * 10_u64.pow(exponent));
                assert!(ticks.len() <= 6, "{ticks:?}");
            }
        }
        assert_eq!(tick_text(500_000), "500 ms");
        assert_eq!(tick_text(2_500_000), "2.5 s");
    }

    #[test]
    fn a_bar_reaches_from_the_mark_before_to_its_own() {
        let mark = |at_us, guest, name: &str| TimelineMark {
            at_us,
            guest,
            name: name.into(),
        };
        // The third came before the second: its bar has no length, and nothing is less than nothing.
        let marks = [
            mark(250, false, "a"),
            mark(1_000, true, "b"),
            mark(900, true, "<c>"),
        ];
        let text = bars(&marks).into_string();
        assert!(text.contains("class=\"host\" style=\"--from:0.00%;--long:25.00%\""));
        assert!(text.contains("class=\"guest\" style=\"--from:25.00%;--long:75.00%\""));
        assert!(text.contains("class=\"guest\" style=\"--from:90.00%;--long:0.00%\""));
        assert!(text.contains("&lt;c&gt;"));
        assert!(bars(&[]).into_string().is_empty());
        let many = vec![mark(1, true, "x"); MOST + 7];
        assert!(bars(&many).into_string().contains("and 7 marks more"));
    }
}
