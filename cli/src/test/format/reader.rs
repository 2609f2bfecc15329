//! Tables that are read key by key: what has another type, or is no key, is told, and reading goes on.

use std::fmt::Display;
use std::str::FromStr;

use regex::RegexBuilder;
use toml::Spanned;
use toml::de::{DeInteger, DeValue};

use super::sources::{Complaints, Place, Sources, Table, Value};
use super::template::{self, Use, Values};
use crate::config_file::suggestion;
use crate::test::scenario::Pattern;

/// What reading needs besides the table.
pub(super) struct Context<'c> {
    pub(super) values: Values<'c>,
    pub(super) complaints: &'c mut Complaints,
}

/// A table that is being read.
pub(super) struct Fields<'a> {
    table: Table<'a>,
    /// Where the table is.
    pub(super) place: Place,
}

/// A key with its value.
pub(super) struct Field<'a> {
    pub(super) key: Place,
    pub(super) value: Value<'a>,
}

impl Field<'_> {
    pub(super) fn place(&self) -> Place {
        self.value.span()
    }
}

impl<'a> Fields<'a> {
    pub(super) fn new(table: Table<'a>, place: Place) -> Self {
        Self { table, place }
    }

    pub(super) fn into_table(self) -> Table<'a> {
        self.table
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Takes a key out.
    pub(super) fn take(&mut self, key: &str) -> Option<Field<'a>> {
        let (key, value) = self.table.remove_entry(key)?;
        Some(Field {
            key: key.span(),
            value,
        })
    }

    /// The keys that nobody has taken yet, with their places.
    pub(super) fn keys(&self) -> impl Iterator<Item = (String, Place)> {
        let keys = self.table.keys();
        keys.map(|key| (key.get_ref().to_string(), key.span()))
    }

    /// The keys that nobody has taken, with their values, in the order in which they are written.
    pub(super) fn left(self) -> Vec<(String, Field<'a>)> {
        let mut left: Vec<_> = self
            .table
            .into_iter()
            .map(|(key, value)| {
                let place = key.span();
                (key.into_inner().into_owned(), Field { key: place, value })
            })
            .collect();
        left.sort_by_key(|(_, field)| field.key.start);
        left
    }
}

impl<'c> Context<'c> {
    pub(super) fn sources(&self) -> &'c Sources {
        self.values.sources
    }

    /// A table, else a complaint.
    pub(super) fn table<'a>(&mut self, value: Value<'a>, what: &str) -> Option<Fields<'a>> {
        let place = value.span();
        match value.into_inner() {
            DeValue::Table(table) => Some(Fields::new(table, place)),
            other => {
                self.wrong_type(&place, what, "a table", &other);
                None
            }
        }
    }

    /// An array, else a complaint.
    pub(super) fn array<'a>(&mut self, value: Value<'a>, what: &str) -> Option<Vec<Value<'a>>> {
        let place = value.span();
        match value.into_inner() {
            DeValue::Array(values) => Some(values.into_iter().collect()),
            other => {
                self.wrong_type(&place, what, "an array", &other);
                None
            }
        }
    }

    /// One value, or several.
    pub(super) fn one_or_more<'a>(&mut self, value: Value<'a>) -> Vec<Value<'a>> {
        let place = value.span();
        match value.into_inner() {
            DeValue::Array(values) => values.into_iter().collect(),
            other => vec![Spanned::new(place, other)],
        }
    }

    pub(super) fn boolean(&mut self, value: &Value<'_>, what: &str) -> Option<bool> {
        let found = value.get_ref().as_bool();
        if found.is_none() {
            self.wrong_type(&value.span(), what, "true or false", value.get_ref());
        }
        found
    }

    /// An integer in a range.
    pub(super) fn integer<T: TryFrom<i64>>(
        &mut self,
        value: &Value<'_>,
        what: &str,
        range: std::ops::RangeInclusive<i64>,
    ) -> Option<T> {
        let DeValue::Integer(number) = value.get_ref() else {
            self.wrong_type(&value.span(), what, "an integer", value.get_ref());
            return None;
        };
        let found = integer(number).filter(|it| range.contains(it));
        let found = found.and_then(|it| T::try_from(it).ok());
        if found.is_none() {
            let (from, to) = (range.start(), range.end());
            let message = match *to {
                i64::MAX => format!("{what} is {from} or more, not {number}"),
                _ => format!("{what} is {from} to {to}, not {number}"),
            };
            self.complaints.say(&value.span(), message);
        }
        found
    }

    /// A text that is final when it is read.
    pub(super) fn string(&mut self, value: &Value<'_>, what: &str) -> Option<String> {
        self.text(value, what, Use::Value)
    }

    /// A text; one of a step may keep names of captures.
    pub(super) fn text(&mut self, value: &Value<'_>, what: &str, used: Use<'_>) -> Option<String> {
        match value.get_ref().as_str() {
            Some(text) => self.resolve(text, &value.span(), used, false),
            None => {
                self.wrong_type(&value.span(), what, "a string", value.get_ref());
                None
            }
        }
    }

    /// The same, and one that says something.
    pub(super) fn some_text(
        &mut self,
        value: &Value<'_>,
        what: &str,
        used: Use<'_>,
    ) -> Option<String> {
        let text = self.text(value, what, used)?;
        if text.is_empty() {
            self.complaints
                .say(&value.span(), format!("{what} is empty"));
            return None;
        }
        Some(text)
    }

    /// A text that has a type of its own: a span of time, a size.
    pub(super) fn typed<T: FromStr>(&mut self, value: &Value<'_>, what: &str) -> Option<T>
    where
        T::Err: Display,
    {
        let text = self.string(value, what)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(err) => {
                self.complaints.say(&value.span(), format!("{what}: {err}"));
                None
            }
        }
    }

    /// A text that is one of these.
    pub(super) fn one_of<T: Copy>(
        &mut self,
        value: &Value<'_>,
        what: &str,
        known: &[(&str, T)],
    ) -> Option<T> {
        let text = self.string(value, what)?;
        let found = known.iter().find(|it| it.0 == text);
        if found.is_none() {
            let names: Vec<&str> = known.iter().map(|it| it.0).collect();
            let message = format!("\"{text}\" is no value of {what}");
            self.complaints
                .help(&value.span(), message, suggestion(&text, &names));
        }
        found.map(|it| it.1)
    }

    /// A pattern, or several. The names of groups are added to `groups`.
    pub(super) fn patterns(
        &mut self,
        value: Value<'_>,
        what: &str,
        used: Use<'_>,
        groups: &mut Vec<String>,
    ) -> Vec<Pattern> {
        let values = self.one_or_more(value);
        let patterns = values.into_iter();
        patterns
            .filter_map(|value| self.pattern(value, what, used, groups))
            .collect()
    }

    /// A pattern: a text to find, or a regular expression.
    pub(super) fn pattern(
        &mut self,
        value: Value<'_>,
        what: &str,
        used: Use<'_>,
        groups: &mut Vec<String>,
    ) -> Option<Pattern> {
        if value.get_ref().is_str() {
            let what = format!("a pattern of {what}");
            return self.some_text(&value, &what, used).map(Pattern::Literal);
        }
        let place = value.span();
        let DeValue::Table(table) = value.into_inner() else {
            let message = format!("{what} is a pattern: a text, or {{ regex = '…' }}");
            self.complaints.say(&place, message);
            return None;
        };
        let mut fields = Fields::new(table, place.clone());
        let regex = fields.take("regex");
        for (key, field) in fields.left() {
            self.complaints.unknown_key(&field.key, &key, &["regex"]);
        }
        let Some(regex) = regex else {
            let message = format!("a pattern of {what} that is a table has a regex");
            self.complaints.say(&place, message);
            return None;
        };
        let place = regex.place();
        let Some(text) = regex.value.get_ref().as_str() else {
            self.wrong_type(&place, "regex", "a string", regex.value.get_ref());
            return None;
        };
        let kept = self.resolve(text, &place, used, true)?;
        // What a capture is has no say in whether the expression is one.
        let tried = match used {
            Use::Value => kept.clone(),
            Use::Step(_) => template::fill(&kept, &Default::default()),
        };
        match compile(&tried) {
            Ok(regex) => {
                groups.extend(regex.capture_names().flatten().map(ToOwned::to_owned));
                Some(Pattern::Regex(kept))
            }
            Err(message) => {
                let message = format!("the regular expression cannot be used: {message}");
                self.complaints.say(&place, message);
                None
            }
        }
    }

    fn resolve(
        &mut self,
        text: &str,
        place: &Place,
        used: Use<'_>,
        is_regex: bool,
    ) -> Option<String> {
        template::resolve(text, place, used, is_regex, &self.values, self.complaints)
    }

    pub(super) fn wrong_type(
        &mut self,
        place: &Place,
        what: &str,
        wanted: &str,
        found: &DeValue<'_>,
    ) {
        let kind = found.type_str();
        let message = format!("{what} is {wanted}, not a value of type {kind}");
        self.complaints.say(place, message);
    }

    /// Puts values into all texts of a value, for good.
    pub(super) fn resolve_all(&mut self, value: &mut Value<'_>) {
        let place = value.span();
        match value.get_mut() {
            DeValue::String(text) => {
                if text.contains("{{")
                    && let Some(resolved) = self.resolve(text, &place, Use::Value, false)
                {
                    *text = resolved.into();
                }
            }
            DeValue::Array(values) => values.iter_mut().for_each(|it| self.resolve_all(it)),
            DeValue::Table(table) => table.iter_mut().for_each(|(_, it)| self.resolve_all(it)),
            _ => {}
        }
    }
}

/// An integer of TOML, which fits 64 bits or is none.
pub(super) fn integer(number: &DeInteger<'_>) -> Option<i64> {
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// Compiles an expression as it is used: `^` and `$` are of a line.
fn compile(text: &str) -> Result<regex::Regex, String> {
    let regex = RegexBuilder::new(text).multi_line(true).build();
    regex.map_err(|err| match err {
        // The expression again, with a mark below it, and in the last line what is wrong.
        regex::Error::Syntax(text) => {
            let last = text.lines().last().unwrap_or_default();
            last.strip_prefix("error: ").unwrap_or(last).to_owned()
        }
        other => other.to_string(),
    })
}
