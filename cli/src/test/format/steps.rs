//! `[[step]]`: one action each, with what belongs to it.

use std::collections::BTreeSet;

use toml::de::DeValue;

use super::reader::{Context, Field, Fields};
use super::sources::{Place, Value};
use super::template::Use;
use super::{NAME_HELP, address, faults, is_name};
use crate::config_file::suggestion;
use crate::test::scenario::{Action, EndKind, Pattern, RunCommand, Step, Stream};

/// The actions, and what belongs to each besides [`COMMON`].
pub(super) const ACTIONS: [(&str, &[&str]); 15] = [
    ("expect", &["on"]),
    ("send", &["echo"]),
    ("run", &["input", "status", "stdout", "stderr"]),
    ("http", &["status", "body"]),
    ("tcp", &["send", "expect"]),
    ("file", &["write", "content"]),
    ("wait-exit", &["status"]),
    ("pause", &[]),
    ("resume", &[]),
    ("power-button", &[]),
    ("reset", &[]),
    ("disk-fault", &["faults"]),
    ("net-fault", &["faults"]),
    ("timeline", &["at-most", "times", "since"]),
    ("snapshot-console", &[]),
];

/// What belongs to every step.
pub(super) const COMMON: [&str; 2] = ["within", "name"];

/// Where texts are looked for.
pub(super) const STREAMS: [(&str, Stream); 3] = [
    ("console", Stream::Console),
    ("output", Stream::Output),
    ("log", Stream::Log),
];

/// How guests and commands end.
pub(super) const ENDS: [EndKind; 7] = [
    EndKind::PowerOff,
    EndKind::Reset,
    EndKind::Panic,
    EndKind::TripleFault,
    EndKind::VcpuFailed,
    EndKind::Command,
    EndKind::Signal,
];

/// Any of what there can be.
const ANY: &str = "any";

/// The most steps of a scenario.
const MAX_STEPS: usize = 10_000;

/// A step, and where it is.
pub(super) struct Placed {
    pub(super) step: Step,
    /// Its action.
    pub(super) place: Place,
}

/// All steps of a scenario.
pub(super) fn steps(field: Option<Field<'_>>, context: &mut Context<'_>) -> Vec<Placed> {
    let Some(field) = field else {
        return Vec::new();
    };
    let place = field.place();
    let values = context.array(field.value, "step").unwrap_or_default();
    if values.len() > MAX_STEPS {
        let message = format!("a scenario has {MAX_STEPS} steps at most");
        context.complaints.say(&place, message);
        return Vec::new();
    }
    let mut captures = BTreeSet::new();
    let mut steps = Vec::new();
    for value in values {
        let mut reader = Reader {
            context,
            captures: &captures,
            groups: Vec::new(),
        };
        let step = reader.step(value);
        let groups = reader.groups;
        captures.extend(groups);
        steps.extend(step);
    }
    steps
}

/// A step that is being read.
struct Reader<'r, 'c> {
    context: &'r mut Context<'c>,
    /// What earlier steps capture.
    captures: &'r BTreeSet<String>,
    /// What this one does.
    groups: Vec<String>,
}

impl Reader<'_, '_> {
    fn step(&mut self, value: Value<'_>) -> Option<Placed> {
        let mut fields = self.context.table(value, "a step")?;
        let action = self.action_of(&fields)?;
        let field = fields.take(action)?;
        let place = field.key.clone();
        let within = fields.take("within");
        let within = within.and_then(|it| self.context.typed(&it.value, "within"));
        let name = fields.take("name");
        let name = name.and_then(|it| self.context.some_text(&it.value, "name", Use::Value));
        let done = self.action(action, field, &mut fields);
        self.foreign_keys(action, fields);
        Some(Placed {
            step: Step {
                action: done?,
                within,
                name,
                line: self.context.sources().line(&place),
            },
            place,
        })
    }

    /// Which action it is; there is one.
    fn action_of(&mut self, fields: &Fields<'_>) -> Option<&'static str> {
        let names = ACTIONS.iter().map(|it| it.0);
        let mut there: Vec<&str> = names.filter(|it| fields.has(it)).collect();
        // What is sent and expected belongs to the connection.
        if there.contains(&"tcp") {
            there.retain(|it| !["send", "expect"].contains(it));
        }
        match there[..] {
            [action] => Some(action),
            [] => {
                self.no_action(fields);
                None
            }
            _ => {
                let names = there.join(" and ");
                let message = format!("a step has one action, and this one has {names}");
                self.context
                    .complaints
                    .help(&fields.place, message, "write a [[step]] for each");
                None
            }
        }
    }

    /// Tells of a step without an action: of the key that was meant to be one, if there is one that may be.
    fn no_action(&mut self, fields: &Fields<'_>) {
        let actions: Vec<&str> = ACTIONS.iter().map(|it| it.0).collect();
        let is_parameter =
            |key: &str| COMMON.contains(&key) || ACTIONS.iter().any(|it| it.1.contains(&key));
        let unknown = fields.keys().find(|(key, _)| !is_parameter(key));
        match unknown {
            Some((key, place)) => {
                let message = format!("unknown key \"{key}\"");
                let help = suggestion(&key, &actions);
                self.context.complaints.help(&place, message, help);
            }
            None => {
                let help = format!("it has one of {}", actions.join(", "));
                self.context
                    .complaints
                    .help(&fields.place, "the step has no action", help);
            }
        }
    }

    /// Tells of keys that do not belong to the action.
    fn foreign_keys(&mut self, action: &str, fields: Fields<'_>) {
        let own = ACTIONS.iter().find(|it| it.0 == action);
        let own = own.map(|it| it.1).unwrap_or_default();
        let known: Vec<&str> = own.iter().chain(&COMMON).copied().collect();
        for (key, field) in fields.left() {
            let owners = ACTIONS.iter().filter(|it| it.1.contains(&&*key));
            let owners: Vec<&str> = owners.map(|it| it.0).collect();
            if owners.is_empty() {
                self.context
                    .complaints
                    .unknown_key(&field.key, &key, &known);
            } else {
                let message = format!("{key} does not belong to {action}");
                let help = format!(
                    "it belongs to {}; with {action} go {}",
                    owners.join(" and "),
                    known.join(", ")
                );
                self.context.complaints.help(&field.key, message, help);
            }
        }
    }

    fn action(
        &mut self,
        action: &str,
        field: Field<'_>,
        fields: &mut Fields<'_>,
    ) -> Option<Action> {
        match action {
            "expect" => self.expect(field, fields),
            "send" => self.send(&field, fields),
            "run" => self.run(field, fields),
            "http" => self.http(&field, fields),
            "tcp" => self.tcp(&field, fields),
            "file" => self.file(&field, fields),
            "wait-exit" => self.wait_exit(&field, fields),
            "pause" => self.switch(action, &field, Action::Pause),
            "resume" => self.switch(action, &field, Action::Resume),
            "power-button" => self.switch(action, &field, Action::PowerButton),
            "reset" => self.switch(action, &field, Action::Reset),
            "disk-fault" => {
                let faults = faults::of_disk(fields.take("faults"), &field.key, self.context);
                let disk = self.context.some_text(&field.value, action, Use::Value)?;
                Some(Action::DiskFault { disk, faults })
            }
            "net-fault" => {
                let faults = faults::of_net(fields.take("faults"), &field.key, self.context);
                let net = self.context.some_text(&field.value, action, Use::Value)?;
                Some(Action::NetFault { net, faults })
            }
            "timeline" => self.timeline(&field, fields),
            _ => self.snapshot(&field),
        }
    }

    fn text(&mut self, field: &Field<'_>, what: &str) -> Option<String> {
        let used = Use::Step(self.captures);
        self.context.text(&field.value, what, used)
    }

    fn some_text(&mut self, field: &Field<'_>, what: &str) -> Option<String> {
        let used = Use::Step(self.captures);
        self.context.some_text(&field.value, what, used)
    }

    fn patterns(&mut self, field: Option<Field<'_>>, what: &str) -> Vec<Pattern> {
        let Some(field) = field else {
            return Vec::new();
        };
        let used = Use::Step(self.captures);
        self.context
            .patterns(field.value, what, used, &mut self.groups)
    }

    fn expect(&mut self, field: Field<'_>, fields: &mut Fields<'_>) -> Option<Action> {
        let on = match fields.take("on") {
            Some(on) => self.context.one_of(&on.value, "on", &STREAMS),
            None => Some(Stream::Console),
        };
        let used = Use::Step(self.captures);
        let pattern = self
            .context
            .pattern(field.value, "expect", used, &mut self.groups);
        Some(Action::Expect {
            pattern: pattern?,
            on: on?,
        })
    }

    fn send(&mut self, field: &Field<'_>, fields: &mut Fields<'_>) -> Option<Action> {
        let echo = match fields.take("echo") {
            Some(echo) => self.context.boolean(&echo.value, "echo"),
            None => Some(false),
        };
        Some(Action::Send {
            text: self.some_text(field, "send")?,
            echo: echo?,
        })
    }

    fn run(&mut self, field: Field<'_>, fields: &mut Fields<'_>) -> Option<Action> {
        let input = fields.take("input").and_then(|it| self.text(&it, "input"));
        let status = match fields.take("status") {
            Some(status) => self.status(&status),
            None => Some(Some(0)),
        };
        let stdout = self.patterns(fields.take("stdout"), "stdout");
        let stderr = self.patterns(fields.take("stderr"), "stderr");
        let command = match field.value.get_ref() {
            DeValue::Array(_) => RunCommand::Words(self.words(field)?),
            _ => RunCommand::Shell(self.some_text(&field, "run")?),
        };
        Some(Action::Run {
            command,
            input,
            status: status?,
            stdout,
            stderr,
        })
    }

    fn words(&mut self, field: Field<'_>) -> Option<Vec<String>> {
        let place = field.place();
        let values = self.context.array(field.value, "run")?;
        let used = Use::Step(self.captures);
        let words: Option<Vec<String>> = values
            .iter()
            .map(|it| self.context.text(it, "a word of run", used))
            .collect();
        let words = words?;
        if words.first().is_none_or(String::is_empty) {
            self.context.complaints.say(&place, "run is empty");
            return None;
        }
        Some(words)
    }

    /// A command's status, or any.
    fn status(&mut self, field: &Field<'_>) -> Option<Option<u8>> {
        if field.value.get_ref().as_str() == Some(ANY) {
            return Some(None);
        }
        if field.value.get_ref().is_str() {
            let message = "status is a number, or \"any\"";
            self.context.complaints.say(&field.place(), message);
            return None;
        }
        self.context
            .integer(&field.value, "status", 0..=255)
            .map(Some)
    }

    fn http(&mut self, field: &Field<'_>, fields: &mut Fields<'_>) -> Option<Action> {
        let status = match fields.take("status") {
            Some(status) => self.context.integer(&status.value, "status", 100..=599),
            None => Some(200),
        };
        let body = self.patterns(fields.take("body"), "body");
        let url = self.some_text(field, "http")?;
        if let Err((message, help)) = address::check_url(&url) {
            self.context.complaints.help(&field.place(), message, help);
            return None;
        }
        Some(Action::Http {
            url,
            status: status?,
            body,
        })
    }

    fn tcp(&mut self, field: &Field<'_>, fields: &mut Fields<'_>) -> Option<Action> {
        let send = fields.take("send").and_then(|it| self.text(&it, "send"));
        let expect = self.patterns(fields.take("expect"), "expect");
        let address = self.some_text(field, "tcp")?;
        if let Err((message, help)) = address::check_address(&address) {
            self.context.complaints.help(&field.place(), message, help);
            return None;
        }
        Some(Action::Tcp {
            address,
            send,
            expect,
        })
    }

    fn file(&mut self, field: &Field<'_>, fields: &mut Fields<'_>) -> Option<Action> {
        let write = fields.take("write");
        let content = fields.take("content");
        if let (Some(_), Some(content)) = (&write, &content) {
            let message = "a file is either written or read, and there are write and content";
            self.context
                .complaints
                .help(&content.key, message, "write a [[step]] for each");
            return None;
        }
        let write = write.and_then(|it| self.text(&it, "write"));
        let expect = self.patterns(content, "content");
        let path = self.some_text(field, "file")?;
        if !path.starts_with('/') && !path.starts_with("{{") {
            let message = "a path in the guest begins by a /";
            self.context.complaints.say(&field.place(), message);
            return None;
        }
        Some(Action::File {
            path,
            write,
            expect,
        })
    }

    fn wait_exit(&mut self, field: &Field<'_>, fields: &mut Fields<'_>) -> Option<Action> {
        let status = fields.take("status");
        let status_place = status.as_ref().map(|it| it.key.clone());
        let status = match status {
            Some(status) => Some(self.context.integer(&status.value, "status", 0..=255)?),
            None => None,
        };
        let mut known: Vec<(&str, Option<EndKind>)> =
            ENDS.iter().map(|it| (it.name(), Some(*it))).collect();
        known.push((ANY, None));
        let reason = self.context.one_of(&field.value, "wait-exit", &known)?;
        let reason = match (reason, status_place) {
            // Nothing else has a status.
            (None | Some(EndKind::Command), Some(_)) => Some(EndKind::Command),
            (Some(other), Some(place)) => {
                let message = format!("only a command has a status, {} has none", other.name());
                let help = "wait-exit = \"command\", or leave out status";
                self.context.complaints.help(&place, message, help);
                return None;
            }
            (reason, None) => reason,
        };
        Some(Action::WaitExit { reason, status })
    }

    /// An action that has nothing to say.
    fn switch(&mut self, name: &str, field: &Field<'_>, action: Action) -> Option<Action> {
        if self.context.boolean(&field.value, name)? {
            return Some(action);
        }
        let message = format!("{name} = false is no action");
        self.context
            .complaints
            .help(&field.place(), message, format!("{name} = true"));
        None
    }

    fn timeline(&mut self, field: &Field<'_>, fields: &mut Fields<'_>) -> Option<Action> {
        let since = fields.take("since");
        let since = since.and_then(|it| self.context.some_text(&it.value, "since", Use::Value));
        let at_most = self.needed(field, fields, "at-most", "at-most = 3.0");
        let times = self.needed(field, fields, "times", "times = \"first-serial-byte\"");
        let at_most = at_most.and_then(|it| self.factor(&it));
        let times = times.and_then(|it| self.context.some_text(&it.value, "times", Use::Value));
        let mark = self.context.some_text(&field.value, "timeline", Use::Value);
        Some(Action::Timeline {
            mark: mark?,
            at_most: at_most?,
            than: times?,
            since,
        })
    }

    fn needed<'a>(
        &mut self,
        action: &Field<'_>,
        fields: &mut Fields<'a>,
        key: &str,
        help: &str,
    ) -> Option<Field<'a>> {
        let found = fields.take(key);
        if found.is_none() {
            let message = format!("the step has no {key}");
            self.context.complaints.help(&action.key, message, help);
        }
        found
    }

    fn factor(&mut self, field: &Field<'_>) -> Option<f64> {
        let number = match field.value.get_ref() {
            DeValue::Integer(number) => number.as_str().parse::<f64>().ok(),
            DeValue::Float(number) => number.as_str().parse().ok(),
            other => {
                self.context
                    .wrong_type(&field.place(), "at-most", "a number", other);
                return None;
            }
        };
        let factor = number.filter(|it: &f64| it.is_finite() && *it > 0.0);
        if factor.is_none() {
            let message = "at-most is a number above 0";
            self.context.complaints.say(&field.place(), message);
        }
        factor
    }

    fn snapshot(&mut self, field: &Field<'_>) -> Option<Action> {
        let name = self
            .context
            .some_text(&field.value, "snapshot-console", Use::Value)?;
        if !is_name(&name) {
            let message = format!("\"{name}\" is no name of a snapshot");
            self.context
                .complaints
                .help(&field.place(), message, NAME_HELP);
            return None;
        }
        Some(Action::SnapshotConsole { name })
    }
}
