//! Words and characters that all reports share.

use std::borrow::Cow;

use crate::test::outcome::{TestRun, Verdict};

/// A time as a person reads it: `412 ms`, `3.2 s`, `2 min 05 s`.
pub(crate) fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        // Rounded, so that no 60.0 s comes of it.
        1_000..59_950 => format!("{:.1} s", ms as f64 / 1000.0),
        _ => {
            let seconds = ms.saturating_add(500) / 1000;
            match seconds / 3600 {
                0 => format!("{} min {:02} s", seconds / 60, seconds % 60),
                hours => format!("{hours} h {:02} min", seconds / 60 % 60),
            }
        }
    }
}

/// A time of a timeline: `0.412 ms`, `15.3 ms`, then as [`duration`].
pub(crate) fn fine_duration(us: u64) -> String {
    match us {
        0..10_000 => format!("{:.3} ms", us as f64 / 1000.0),
        10_000..1_000_000 => format!("{:.1} ms", us as f64 / 1000.0),
        _ => duration(us / 1000),
    }
}

/// How many came out how, the bad ones first: `1 failed, 3 passed`.
pub(crate) fn totals(run: &TestRun) -> String {
    let parts: Vec<String> = Verdict::ALL
        .into_iter()
        .map(|verdict| (run.count(verdict), verdict))
        .filter(|(count, _)| *count > 0)
        .map(|(count, verdict)| count_of(count, verdict))
        .collect();
    match parts.is_empty() {
        true => "no scenarios".to_owned(),
        false => parts.join(", "),
    }
}

/// `3 passed`, `1 host trouble`.
pub(crate) fn count_of(count: usize, verdict: Verdict) -> String {
    match verdict {
        Verdict::Host => format!("{count} host trouble"),
        _ => format!("{count} {}", verdict.name()),
    }
}

/// `1 step`, `2 steps`.
pub(crate) fn plural(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

/// A guest's text with nothing in it that moves a cursor, hides, or turns the direction of reading: such characters are
/// shown by their numbers. Lines and tabs stay.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|it| is_hidden(it) && it != '\r') && !text.contains('\r') {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    let mut chars = text.chars().peekable();
    while let Some(it) = chars.next() {
        match it {
            // How a serial line ends a line.
            '\r' if chars.peek() == Some(&'\n') => {}
            '\r' => shown += "\\r",
            _ if it.is_control() && is_hidden(it) => {
                shown += &format!("\\x{:02x}", u32::from(it));
            }
            _ if is_hidden(it) => shown += &format!("<U+{:04X}>", u32::from(it)),
            _ => shown.push(it),
        }
    }
    Cow::Owned(shown)
}

/// The same in one line.
pub(crate) fn visible_line(text: &str) -> String {
    let parts: Vec<&str> = text.lines().map(str::trim_end).collect();
    visible(&parts.join(" ")).replace('\t', " ")
}

/// Characters that no report holds as they are: controls, non-characters (XML refuses some), what turns or hides text.
fn is_hidden(it: char) -> bool {
    (it.is_control() && it != '\n' && it != '\t')
        || matches!(it,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
        || u32::from(it) & 0xfffe == 0xfffe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        let texts = [0, 999, 1_000, 3_249, 59_949, 59_950, 125_000, 3_725_000].map(duration);
        let expected = [
            "0 ms",
            "999 ms",
            "1.0 s",
            "3.2 s",
            "59.9 s",
            "1 min 00 s",
            "2 min 05 s",
            "1 h 02 min",
        ];
        assert_eq!(texts, expected);
        assert!(duration(u64::MAX).ends_with(" min"));
        let fine = [412, 15_300, 1_500_000].map(fine_duration);
        assert_eq!(fine, ["0.412 ms", "15.3 ms", "1.5 s"]);
    }

    #[test]
    fn what_moves_or_hides_is_shown() {
        assert_eq!(
            visible("plain text\twith ünicode\n"),
            "plain text\twith ünicode\n"
        );
        assert_eq!(visible("a\r\nb\rc"), "a\nb\\rc");
        assert_eq!(
            visible("\0\x1b[2J\x7f\u{9b}31m"),
            "\\x00\\x1b[2J\\x7f\\x9b31m"
        );
        assert_eq!(
            visible("\u{202e}txt\u{200b}\u{ffff}\u{1fffe}"),
            "<U+202E>txt<U+200B><U+FFFF><U+1FFFE>"
        );
        assert_eq!(visible_line("one\r\ntwo\x07\tthree"), "one two\\x07 three");
    }
}
