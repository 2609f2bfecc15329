//! Lists of keys in one argument: `path=root.img,readonly`. A comma is part of a value where it is doubled.

use std::fmt::Display;
use std::str::FromStr;

/// Goes through the keys of `text`, none of which may be there twice.
pub(crate) fn each(
    text: &str,
    take: impl FnMut(&str, Option<&str>) -> Result<(), String>,
) -> Result<(), String> {
    each_but(text, &[], take)
}

/// Goes through the keys of `text`, none of which may be there twice but for those in `several`.
pub(crate) fn each_but(
    text: &str,
    several: &[&str],
    mut take: impl FnMut(&str, Option<&str>) -> Result<(), String>,
) -> Result<(), String> {
    let mut seen: Vec<String> = Vec::new();
    for part in split(text) {
        let (key, value) = match part.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (part.as_str(), None),
        };
        if seen.iter().any(|known| known == key) && !several.contains(&key) {
            return Err(format!("{key} is there twice"));
        }
        seen.push(key.to_owned());
        take(key, value)?;
    }
    Ok(())
}

pub(crate) fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match (c, parts.last_mut()) {
            (',', Some(last)) if rest.peek() == Some(&',') => {
                rest.next();
                last.push(',');
            }
            (',', _) => parts.push(String::new()),
            (c, Some(last)) => last.push(c),
            (_, None) => {}
        }
    }
    parts
}

/// The value of a key that does not go without.
pub(crate) fn needed<'a>(key: &str, value: Option<&'a str>) -> Result<&'a str, String> {
    value
        .filter(|value| !value.is_empty())
        .ok_or_else(|| format!("{key} needs a value: {key}=…"))
}

/// A key that is on by itself.
pub(crate) fn switch(key: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("on") => Ok(true),
        Some("off") => Ok(false),
        Some(other) => Err(format!("{key} is on or off, not \"{other}\"")),
    }
}

/// A value that has a type of its own.
pub(crate) fn typed<T: FromStr>(key: &str, value: Option<&str>) -> Result<T, String>
where
    T::Err: Display,
{
    needed(key, value)?
        .parse()
        .map_err(|err| format!("{key}: {err}"))
}

/// The complaint about a key of `what` that is none of the known ones.
pub(crate) fn unknown(key: &str, what: &str, known: &[&str]) -> String {
    if key.is_empty() {
        return "there is an empty key: keys are separated by one comma".into();
    }
    let nearest = known
        .iter()
        .map(|known| (strsim::jaro_winkler(key, known), known))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((_, known)) => format!("\"{key}\" is not a key of {what}; did you mean {known}?"),
        None => format!(
            "\"{key}\" is not a key of {what}; known are {}",
            known.join(", ")
        ),
    }
}
