//! `{{…}}` in texts: what is put in when a scenario is read, and what a guest has to say first.
//!
//! A template is a name between double braces, spaces around it or not. Braces with anything else between them are nothing special,
//! so that texts with braces of their own (JSON, `docker inspect --format '{{.State}}'`) stay as they are. `{{{{` is `{{` in any case.
//! Texts of steps keep both the names of captures and `{{{{` until the step runs: [`fill`] is for then.

use std::collections::{BTreeMap, BTreeSet};

use super::matrix::Choice;
use super::sources::{Complaints, Place, Sources};
use crate::config_file::suggestion;
use crate::test::scenario::Pattern;

/// What a text consists of.
#[derive(Debug, PartialEq, Eq)]
enum Piece<'t> {
    Text(&'t str),
    /// `{{{{`.
    Braces,
    Name {
        name: &'t str,
        default: Option<&'t str>,
    },
}

/// Takes a text apart.
fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let (mut begin, mut at) = (0, 0);
    while let Some(found) = text[at..].find("{{") {
        at += found;
        let (piece, length) = if text[at..].starts_with("{{{{") {
            (Piece::Braces, 4)
        } else if let Some(found) = name(&text[at..]) {
            found
        } else {
            // The second brace may begin a template.
            at += 1;
            continue;
        };
        if begin < at {
            pieces.push(Piece::Text(&text[begin..at]));
        }
        pieces.push(piece);
        at += length;
        begin = at;
    }
    if begin < text.len() {
        pieces.push(Piece::Text(&text[begin..]));
    }
    pieces
}

/// The template that a text begins with, and its length.
fn name(text: &str) -> Option<(Piece<'_>, usize)> {
    let inside = text.strip_prefix("{{")?;
    let end = inside.find("}}")?;
    let inside = &inside[..end];
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name.trim(), Some(default)),
        None => (inside.trim(), None),
    };
    let is_letter = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    (begins && name.chars().all(is_letter)).then(|| (Piece::Name { name, default }, end + 4))
}

/// A text that is the same where templates are looked for.
pub(super) fn escaped(text: &str) -> String {
    text.replace("{{", "{{{{")
}

/// What there is to put in.
#[derive(Clone, Copy)]
pub(super) struct Values<'v> {
    pub(super) sources: &'v Sources,
    /// A variable of the environment.
    pub(super) environment: fn(&str) -> Option<String>,
    pub(super) cell: &'v [Choice],
}

/// What a text is for.
#[derive(Clone, Copy)]
pub(super) enum Use<'u> {
    /// It is final when the scenario is read.
    Value,
    /// It is a step's, which may name what earlier ones have captured.
    Step(&'u BTreeSet<String>),
}

/// Puts values into a text; none if it names what is not there, which has been told then. Values in a regular expression are texts to
/// find, not expressions.
pub(super) fn resolve(
    text: &str,
    place: &Place,
    used: Use<'_>,
    is_regex: bool,
    values: &Values<'_>,
    complaints: &mut Complaints,
) -> Option<String> {
    let mut is_right = true;
    let mut whole = String::new();
    // What is no capture, since the last one: it is escaped as one, as braces may meet.
    let mut literal = String::new();
    let flush = |literal: &mut String, whole: &mut String| {
        match used {
            Use::Value => *whole += literal,
            Use::Step(_) => *whole += &escaped(literal),
        }
        literal.clear();
    };
    for piece in pieces(text) {
        match piece {
            Piece::Text(text) => literal += text,
            Piece::Braces => literal += "{{",
            Piece::Name { name, default } => match values.get(name, default, place) {
                Ok(Some(value)) if is_regex => literal += &regex::escape(&value),
                Ok(Some(value)) => literal += &value,
                Ok(None) => match used {
                    Use::Step(captures) if captures.contains(name) => {
                        flush(&mut literal, &mut whole);
                        whole += &format!("{{{{{name}}}}}");
                    }
                    _ => {
                        unknown(name, place, used, complaints);
                        is_right = false;
                    }
                },
                Err((message, help)) => {
                    complaints.help(place, message, help);
                    is_right = false;
                }
            },
        }
    }
    flush(&mut literal, &mut whole);
    is_right.then_some(whole)
}

fn unknown(name: &str, place: &Place, used: Use<'_>, complaints: &mut Complaints) {
    let escape = "a {{ that is meant itself is written {{{{";
    match used {
        Use::Value => {
            let help = format!("known are env.NAME, file.dir and matrix.AXIS; {escape}");
            complaints.help(place, format!("there is no {{{{{name}}}}} here"), help);
        }
        Use::Step(captures) => {
            let message = format!("no earlier step captures {{{{{name}}}}}");
            let known: Vec<&str> = captures.iter().map(String::as_str).collect();
            let help = match known.is_empty() {
                true => format!(
                    "a capture is a named group: {{ regex = '(?P<{name}>\\w+)' }}; {escape}"
                ),
                false => format!("{}; {escape}", suggestion(name, &known)),
            };
            complaints.help(place, message, help);
        }
    }
}

impl Values<'_> {
    /// A value; none where the name is not of their kinds.
    fn get(
        &self,
        name: &str,
        default: Option<&str>,
        place: &Place,
    ) -> Result<Option<String>, (String, String)> {
        if let Some(variable) = name.strip_prefix("env.") {
            let found =
                (self.environment)(variable).filter(|it| default.is_none() || !it.is_empty());
            return match found.or(default.map(ToOwned::to_owned)) {
                Some(value) => Ok(Some(value)),
                None => Err((
                    format!("the environment has no variable {variable}"),
                    format!("set it, or give a default: {{{{env.{variable}:-DEFAULT}}}}"),
                )),
            };
        }
        if default.is_some() {
            let message = format!("{name} has a default, which only env.NAME can have");
            return Err((message, "leave out what is behind the name".into()));
        }
        if name == "file.dir" {
            let directory = &self.sources.at(place).directory;
            return match directory.to_str() {
                Some(directory) => Ok(Some(directory.to_owned())),
                None => Err((
                    format!("the path \"{}\" is not text in UTF-8", directory.display()),
                    "move the file elsewhere".into(),
                )),
            };
        }
        let Some(axis) = name.strip_prefix("matrix.") else {
            return Ok(None);
        };
        let choice = self
            .cell
            .iter()
            .find(|it| it.axis == axis || it.short == axis);
        match choice {
            Some(choice) => Ok(Some(choice.text.clone())),
            None => {
                let known: Vec<&str> = self.cell.iter().map(|it| it.short.as_str()).collect();
                let help = match known.is_empty() {
                    true => "an axis is a key of [matrix]".into(),
                    false => suggestion(axis, &known),
                };
                Err((format!("the matrix has no axis \"{axis}\""), help))
            }
        }
    }
}

/// The text of a step, with what has been captured in place of its names.
pub(crate) fn fill(text: &str, captures: &BTreeMap<String, String>) -> String {
    filled(text, captures, str::to_owned)
}

/// The same of a pattern. What is put into a regular expression is a text to find.
pub(crate) fn fill_pattern(pattern: &Pattern, captures: &BTreeMap<String, String>) -> Pattern {
    match pattern {
        Pattern::Literal(text) => Pattern::Literal(fill(text, captures)),
        Pattern::Regex(text) => Pattern::Regex(filled(text, captures, regex::escape)),
    }
}

fn filled(text: &str, captures: &BTreeMap<String, String>, put: impl Fn(&str) -> String) -> String {
    let mut filled = String::new();
    for piece in pieces(text) {
        match piece {
            Piece::Text(text) => filled += text,
            Piece::Braces => filled += "{{",
            Piece::Name { name, .. } => {
                filled += &captures.get(name).map(|it| put(it)).unwrap_or_default();
            }
        }
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn named(name: &str) -> Piece<'_> {
        Piece::Name {
            name,
            default: None,
        }
    }

    #[test]
    fn only_names_are_templates() {
        use Piece::{Braces, Text};
        assert_eq!(pieces("a{{b}}c"), [Text("a"), named("b"), Text("c")]);
        assert_eq!(pieces("{{ env.A }}"), [named("env.A")]);
        assert_eq!(pieces("{{{{b}}"), [Braces, Text("b}}")]);
        assert_eq!(pieces("${{{b}}}"), [Text("${"), named("b"), Text("}")]);
        let default = Piece::Name {
            name: "env.A",
            default: Some(" x y"),
        };
        assert_eq!(pieces("{{env.A:- x y}}"), [default]);
        for text in [
            "{{.State}}",
            "{{}}",
            "{{ }}",
            "{{a b}}",
            "{{a",
            "{\"a\":{\"b\":1}}",
            r"\{{2}",
            "{{1}}",
        ] {
            assert_eq!(pieces(text), [Text(text)], "{text}");
        }
        assert_eq!(pieces(""), []);
    }

    #[test]
    fn what_is_captured_is_put_in() {
        let captures = BTreeMap::from([("v".to_owned(), "6.1".to_owned())]);
        assert_eq!(
            fill("a {{v}} {{{{v}} {{.x}}", &captures),
            "a 6.1 {{v}} {{.x}}"
        );
        let regex = fill_pattern(&Pattern::Regex("^{{v}}$".into()), &captures);
        assert_eq!(regex, Pattern::Regex(r"^6\.1$".into()));
        let text = fill_pattern(&Pattern::Literal("{{v}}".into()), &captures);
        assert_eq!(text, Pattern::Literal("6.1".into()));
    }

    proptest! {
        #[test]
        fn an_escaped_text_is_itself(text in "[{}ab.:-]{0,12}") {
            prop_assert_eq!(fill(&escaped(&text), &BTreeMap::new()), text);
        }

        /// However texts and captures meet, each stays what it is.
        #[test]
        fn pieces_stay_apart(parts in prop::collection::vec(("[{}a]{0,5}", any::<bool>()), 0..6)) {
            let captures = BTreeSet::from(["a".to_owned()]);
            let mut complaints = Complaints::default();
            let sources = {
                let mut sources = Sources::default();
                sources.add_set("", String::new());
                sources
            };
            let values = Values { sources: &sources, environment: |name| Some(name[1..].to_owned()), cell: &[] };
            let (mut written, mut expected) = (String::new(), String::new());
            for (text, is_capture) in &parts {
                written += &escaped(text);
                expected += text;
                if *is_capture {
                    written += "{{a}}";
                    expected += "7";
                } else {
                    written += "{{env.x{x}}";
                    expected += "{{env.x{x}}";
                }
            }
            let kept = resolve(&written, &(0..0), Use::Step(&captures), false, &values, &mut complaints);
            let filled = fill(&kept.unwrap(), &BTreeMap::from([("a".to_owned(), "7".to_owned())]));
            prop_assert_eq!(filled, expected);
        }
    }
}
