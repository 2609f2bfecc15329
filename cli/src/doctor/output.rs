//! The report as text and as JSON.

use std::fmt::Write;
use std::io;

use super::{Check, Report, Status};
use crate::paint::{Paint, Style};

/// Columns of the widest line.
const WIDTH: usize = 100;
/// Column in which the name starts, and in which help goes on.
const NAME_COLUMN: usize = 11;

pub(super) fn json(report: &Report) -> io::Result<String> {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    Ok(text)
}

pub(super) fn text(report: &Report, paint: Paint) -> String {
    let checks = report.sections.iter().flat_map(|section| &section.checks);
    let name_width = checks.map(|check| check.name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for section in &report.sections {
        out.push_str(&paint.apply(Style::Heading, section.title));
        out.push('\n');
        // Only KVM decides; what else is missing is worth a look.
        let missing = if section.decides {
            Style::Bad
        } else {
            Style::Warning
        };
        for check in &section.checks {
            line(&mut out, check, name_width, missing, paint);
        }
        out.push('\n');
    }
    let style = if report.linux_guests {
        Style::Good
    } else {
        Style::Bad
    };
    for part in wrap(&report.summary, WIDTH) {
        out.push_str(&paint.apply(style, part));
        out.push('\n');
    }
    out
}

fn line(out: &mut String, check: &Check, name_width: usize, missing: Style, paint: Paint) {
    let (word, style) = match check.status {
        Status::Ok => ("ok", Style::Good),
        Status::Warn => ("warn", Style::Warning),
        Status::Missing => ("missing", missing),
    };
    // Padded before it is painted: escape sequences have no width.
    let word = paint.apply(style, &format!("{word:<7}"));
    let _ = write!(out, "  {word}  {:<name_width$}  ", check.name);
    let detail_column = NAME_COLUMN + name_width + 2;
    hanging(out, &check.detail, detail_column);
    if let Some(help) = &check.help {
        let _ = write!(
            out,
            "{:detail_column$}{}",
            "",
            paint.apply(Style::Help, "help: ")
        );
        match help.contains("sudo ") {
            // A command that is to be copied stays in one piece.
            true => out.extend([help, "\n"]),
            false => hanging(out, help, detail_column + "help: ".len()),
        }
    }
}

/// Writes text whose first line starts at `column` already, and ends it.
fn hanging(out: &mut String, text: &str, column: usize) {
    for (index, part) in wrap(text, WIDTH.saturating_sub(column))
        .into_iter()
        .enumerate()
    {
        if index > 0 {
            let _ = write!(out, "{:column$}", "");
        }
        out.push_str(part);
        out.push('\n');
    }
}

/// Breaks text at spaces into lines of at most `width` bytes; a longer word has a line to itself.
fn wrap(text: &str, width: usize) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text.trim();
    while rest.len() > width {
        let within = rest.char_indices().take_while(|(index, _)| *index <= width);
        let Some((at, _)) = within
            .filter(|(_, c)| *c == ' ')
            .last()
            .or_else(|| rest.char_indices().find(|(_, c)| *c == ' '))
        else {
            break;
        };
        let (line, tail) = rest.split_at(at);
        lines.push(line.trim_end());
        rest = tail.trim_start();
    }
    lines.push(rest);
    lines
}

#[cfg(test)]
mod tests {
    use super::super::Section;
    use super::*;

    fn report() -> Report {
        Report {
            linux_guests: false,
            summary: "Linux guests will not run on this host: there is no /dev/kvm.".into(),
            sections: vec![Section {
                title: "KVM",
                decides: true,
                checks: vec![
                    Check::missing("/dev/kvm", "not there").help("sudo modprobe kvm_amd"),
                    Check::ok("API", "version 12"),
                ],
            }],
            probe: None,
        }
    }

    #[test]
    fn text_is_aligned() {
        let expected = "\
KVM
  missing  /dev/kvm  not there
                     help: sudo modprobe kvm_amd
  ok       API       version 12

Linux guests will not run on this host: there is no /dev/kvm.
";
        assert_eq!(text(&report(), Paint::plain()), expected);
    }

    #[test]
    fn colour_changes_no_column() {
        let coloured = text(&report(), Paint::coloured());
        assert!(coloured.contains("\x1b["));
        let mut plain = String::new();
        let mut rest = coloured.as_str();
        while let Some((before, after)) = rest.split_once("\x1b[") {
            plain.push_str(before);
            rest = after.split_once('m').unwrap().1;
        }
        plain.push_str(rest);
        assert_eq!(plain, text(&report(), Paint::plain()));
    }

    #[test]
    fn json_says_the_same() {
        let value: serde_json::Value = serde_json::from_str(&json(&report()).unwrap()).unwrap();
        assert_eq!(value["linux-guests"], false);
        let check = &value["sections"][0]["checks"][0];
        assert_eq!(check["status"], "missing");
        assert_eq!(check["help"], "sudo modprobe kvm_amd");
    }

    #[test]
    fn text_wraps_at_spaces() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("a-very-long-word b", 5), ["a-very-long-word", "b"]);
        assert_eq!(wrap("", 5), [""]);
        assert_eq!(wrap("ééé ééé", 6), ["ééé", "ééé"]);
    }
}
