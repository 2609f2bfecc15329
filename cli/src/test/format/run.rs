//! `[run]`: what `ampoule run IMAGE` knows, by the long names of its flags. clap's own definition of them is the judge.

use std::path::Path;

use ampoule_store::Reference;
use clap::error::ErrorKind;
use clap::{ArgAction, Args, FromArgMatches};
use toml::de::DeValue;

use super::machine;
use super::reader::{Context, Field, integer};
use super::sources::{Place, Value};
use super::template::Use;
use crate::args::RunArgs;
use crate::command::args::CommandArgs;
use crate::command::registry;
use crate::config_file::suggestion;
use crate::test::scenario::RunSpec;
use crate::{key_list, usage};

/// Flags that make no sense without a person at the terminal, and why.
const OTHERS: [(&str, &str); 4] = [
    ("interactive", "nobody types: a step's `run` has `input`"),
    (
        "tty",
        "the outputs are looked at apart: `run = \"script -c …\"` gives a program a terminal",
    ),
    ("rm", "nothing is left behind in any case"),
    (
        "quiet",
        "what takes time or is missing goes to the scenario's log",
    ),
];

/// What stands in for a command where clap wants one.
pub(crate) const SOME_COMMAND: &str = "true";

/// The flags about a command, without those that are refused.
pub(super) fn definition() -> clap::Command {
    CommandArgs::augment_args(clap::Command::new("run"))
}

/// Whether a flag is for a person.
pub(super) fn is_refused(key: &str) -> bool {
    OTHERS.iter().any(|it| it.0 == key)
}

/// The name of an argument as a key.
pub(super) fn key_of(arg: &clap::Arg) -> &str {
    arg.get_long().unwrap_or(arg.get_id().as_str())
}

/// The keys there are.
pub(super) fn keys() -> Vec<String> {
    let definition = definition();
    let keys = definition.get_arguments().map(key_of);
    keys.filter(|it| !is_refused(it))
        .map(ToOwned::to_owned)
        .collect()
}

/// What is to be run, and the same as `ampoule run` has it.
pub(super) struct Run {
    pub(super) spec: RunSpec,
    pub(super) arguments: CommandArgs,
    pub(super) place: Place,
}

/// Reads the table; nothing where there is none or something is wrong with it.
pub(super) fn run(field: Option<Field<'_>>, context: &mut Context<'_>) -> Option<Run> {
    let field = field?;
    let place = field.key.clone();
    let mut fields = context.table(field.value, "run")?;
    let before = context.complaints.len();
    let image = fields.take("image").and_then(|it| image(&it, context));
    let command = fields.take("command").map(|it| command(it, context));
    let command = command.unwrap_or_default();
    let definition = definition();
    let mut arguments = Vec::new();
    let mut flags = fields.left();
    // The same keys are the same arguments, however they are written.
    flags.sort_by(|a, b| a.0.cmp(&b.0));
    for (key, field) in flags {
        let arg = definition
            .get_arguments()
            .find(|it| it.get_long() == Some(&key));
        match arg {
            Some(arg) if !is_refused(&key) => {
                let found = flag(&key, arg.get_action(), field, context);
                arguments.extend(found);
            }
            _ => unknown(&key, &field, context),
        }
    }
    arguments.extend(image);
    if context.complaints.len() > before {
        return None;
    }
    let spec = RunSpec { arguments, command };
    match parse(&spec) {
        Ok(arguments) if !arguments.is_asked() => {
            let message = "nothing in [run] says what to run a command from";
            let help = "image = \"debian:12\", root = \"/\", or file = \"PROGRAM\"";
            context.complaints.help(&place, message, help);
            None
        }
        Ok(arguments) => Some(Run {
            spec,
            arguments,
            place,
        }),
        Err(err) => {
            let message = usage::failure(&err, Some("run")).message;
            context.complaints.say(&place, message);
            None
        }
    }
}

/// Has clap read the arguments of a scenario. What runs a directory of the host's wants a command: there is always one.
pub(crate) fn parse(spec: &RunSpec) -> Result<CommandArgs, clap::Error> {
    let mut line = vec!["run"];
    line.extend(spec.arguments.iter().map(String::as_str));
    line.push("--");
    match spec.command.is_empty() {
        true => line.push(SOME_COMMAND),
        false => line.extend(spec.command.iter().map(String::as_str)),
    }
    let mut arguments = CommandArgs::from_arg_matches(&definition().try_get_matches_from(line)?)?;
    if spec.command.is_empty() {
        arguments.command.clear();
    }
    Ok(arguments)
}

/// A key that is none of them: it may be one of the machine's, or of what a scenario has itself.
fn unknown(key: &str, field: &Field<'_>, context: &mut Context<'_>) {
    let place = &field.key;
    if let Some((_, why)) = OTHERS.iter().find(|it| it.0 == key) {
        let message = format!("{key} is for a person at a terminal");
        context.complaints.help(place, message, *why);
    } else if machine::keys().iter().any(|it| it == key) {
        let message = format!("{key} is about the machine, not about what runs in it");
        let help = format!("write it in [vm]: {key} = …");
        context.complaints.help(place, message, help);
    } else if RunArgs::augment_args(clap::Command::new("run"))
        .get_arguments()
        .any(|it| it.get_long() == Some(key))
    {
        let message = format!("{key} is for a run from the command line");
        let help = "the results of a scenario have its timeline, its metrics, its log and its configuration";
        context.complaints.help(place, message, help);
    } else {
        let known = keys();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        context.complaints.help(
            place,
            format!("unknown key \"{key}\""),
            suggestion(key, &known),
        );
    }
}

/// The image: a path where it looks like one or there is such a file, else a name.
fn image(field: &Field<'_>, context: &mut Context<'_>) -> Option<String> {
    let text = context.some_text(&field.value, "image", Use::Value)?;
    let place = field.place();
    let path = context.sources().at(&place).directory.join(&text);
    if registry::is_path(text.as_ref()) || std::fs::symlink_metadata(&path).is_ok() {
        return path_text(&path, &place, context);
    }
    match text.parse::<Reference>() {
        // Where a command is run from, it might be a file's name.
        Ok(reference) if Path::new(&text).exists() => Some(reference.to_string()),
        Ok(_) => Some(text),
        Err(err) => {
            let message = format!(
                "\"{text}\" is neither a file or directory nor an image's name in a registry: {}",
                err.fault()
            );
            context.complaints.say(&place, message);
            None
        }
    }
}

fn command(field: Field<'_>, context: &mut Context<'_>) -> Vec<String> {
    let place = field.place();
    if field.value.get_ref().is_str() {
        let message = "command is an array of words, not a line";
        let help = "command = [\"sh\", \"-c\", \"…\"]";
        context.complaints.help(&place, message, help);
        return Vec::new();
    }
    let values = context.array(field.value, "command").unwrap_or_default();
    if values.is_empty() {
        context.complaints.say(&place, "command is empty");
    }
    let words = values
        .iter()
        .filter_map(|it| context.string(it, "a word of command"));
    words.collect()
}

/// The arguments that a key becomes.
fn flag(key: &str, action: &ArgAction, field: Field<'_>, context: &mut Context<'_>) -> Vec<String> {
    if !action.takes_values() {
        return match context.boolean(&field.value, key) {
            Some(true) => vec![format!("--{key}")],
            _ => Vec::new(),
        };
    }
    let values = match action {
        ArgAction::Append => context.one_or_more(field.value),
        _ => vec![field.value],
    };
    let mut arguments = Vec::new();
    for value in values {
        let place = value.span();
        let Some(text) = value_text(key, &value, context) else {
            continue;
        };
        let Some(text) = with_paths(key, text, &place, context) else {
            continue;
        };
        let argument = format!("--{key}={text}");
        // Each by itself, so that what is wrong is told at its own place; what it needs besides is seen when all are there.
        match definition().try_get_matches_from(["run", &argument]) {
            Err(err) if err.kind() != ErrorKind::MissingRequiredArgument => {
                let message = usage::failure(&err, Some("run")).message;
                context.complaints.say(&place, message);
            }
            _ => arguments.push(argument),
        }
    }
    arguments
}

fn value_text(key: &str, value: &Value<'_>, context: &mut Context<'_>) -> Option<String> {
    match value.get_ref() {
        DeValue::Integer(number) => integer(number).map(|it| it.to_string()),
        _ => context.string(value, key),
    }
}

/// A value with the host's path in it absolute, if it has one.
fn with_paths(key: &str, text: String, place: &Place, context: &mut Context<'_>) -> Option<String> {
    let directory = &context.sources().at(place).directory;
    match key {
        // HOST:GUEST, and a directory: the path is what the text begins by.
        "volume" | "copy" | "file" | "root" if !text.is_empty() && !text.starts_with(':') => {
            path_text(&directory.join(text), place, context)
        }
        "copy-out" => match text.split_once(':') {
            Some((guest, host)) if !host.is_empty() => {
                let host = path_text(&directory.join(host), place, context)?;
                Some(format!("{guest}:{host}"))
            }
            _ => Some(text),
        },
        "overlay" => {
            let mut parts = Vec::new();
            for part in key_list::split(&text) {
                let part = match part.strip_prefix("path=").filter(|it| !it.is_empty()) {
                    Some(path) => {
                        format!("path={}", path_text(&directory.join(path), place, context)?)
                    }
                    None => part,
                };
                parts.push(part.replace(',', ",,"));
            }
            Some(parts.join(","))
        }
        _ => Some(text),
    }
}

fn path_text(path: &Path, place: &Place, context: &mut Context<'_>) -> Option<String> {
    let text = path.to_str().map(ToOwned::to_owned);
    if text.is_none() {
        let message = format!("the path \"{}\" is not text in UTF-8", path.display());
        context.complaints.say(place, message);
    }
    text
}
