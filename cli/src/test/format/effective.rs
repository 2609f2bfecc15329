//! A scenario as a file again: in full, one cell, with nothing left to look up. It can be run as it is.

use std::borrow::Cow;

use serde::ser::{Serialize, SerializeMap, Serializer};
use toml::{Table, Value};

use super::faults::ERRORS;
use super::run::{definition, key_of};
use super::template::escaped;
use crate::test::scenario::{
    Action, DiskEffect, DiskFault, DiskOp, EndKind, NetEffect, NetFault, Pattern, RunCommand,
    RunSpec, Scenario, Step, Stream, When,
};

/// A table whose keys stay in their order.
#[derive(Default)]
struct Ordered(Vec<(Cow<'static, str>, Value)>);

impl Ordered {
    fn put(&mut self, key: &'static str, value: impl Into<Value>) {
        self.0.push((key.into(), value.into()));
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn put_some<T: Into<Value>>(&mut self, key: &'static str, value: Option<T>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }

    fn put_patterns(&mut self, key: &'static str, patterns: &[Pattern], put: fn(&str) -> String) {
        if !patterns.is_empty() {
            self.put(key, self::patterns(patterns, put));
        }
    }
}

impl Serialize for Ordered {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

#[derive(serde::Serialize)]
struct File {
    #[serde(flatten)]
    own: Ordered,
    vm: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<Table>,
    #[serde(skip_serializing_if = "Ordered::is_empty")]
    matrix: Ordered,
    step: Vec<Ordered>,
}

/// The file.
pub(crate) fn to_toml(scenario: &Scenario) -> Result<String, toml::ser::Error> {
    let mut own = Ordered::default();
    let name = scenario.name.split('[').next().unwrap_or_default();
    own.put("name", name);
    own.put_some("description", scenario.description.as_deref().map(escaped));
    if !scenario.tags.is_empty() {
        own.put("tags", strings(&scenario.tags));
    }
    own.put("timeout", scenario.timeout.to_string());
    own.put("step-timeout", scenario.step_timeout.to_string());
    own.put("forbid-defaults", false);
    own.put_patterns("forbid", &scenario.forbid, escaped);
    own.put_patterns("allow", &scenario.allow, escaped);
    let mut vm = Value::try_from(&scenario.vm)?;
    escape_all(&mut vm);
    let file = File {
        own,
        vm,
        run: scenario.run.as_ref().map(run),
        matrix: Ordered(scenario.cell.iter().map(axis).collect()),
        step: scenario.steps.iter().map(step).collect(),
    };
    toml::to_string(&file)
}

/// An axis with one value, which has a name and sets nothing: what it has set is there.
fn axis((axis, label): &(String, String)) -> (Cow<'static, str>, Value) {
    let value = Table::from_iter([("name".to_owned(), escaped(label).into())]);
    (axis.clone().into(), vec![Value::Table(value)].into())
}

fn strings(texts: &[String]) -> Value {
    let texts = texts.iter().map(|it| Value::from(escaped(it)));
    Value::Array(texts.collect())
}

fn patterns(patterns: &[Pattern], put: fn(&str) -> String) -> Value {
    Value::Array(patterns.iter().map(|it| pattern(it, put)).collect())
}

fn pattern(pattern: &Pattern, put: fn(&str) -> String) -> Value {
    match pattern {
        Pattern::Literal(text) => put(text).into(),
        Pattern::Regex(text) => Table::from_iter([("regex".to_owned(), put(text).into())]).into(),
    }
}

/// Texts of steps have their templates still.
fn kept(text: &str) -> String {
    text.to_owned()
}

fn escape_all(value: &mut Value) {
    match value {
        Value::String(text) => *text = escaped(text),
        Value::Array(values) => values.iter_mut().for_each(escape_all),
        Value::Table(table) => table.iter_mut().for_each(|(_, value)| escape_all(value)),
        _ => {}
    }
}

/// The arguments as keys.
fn run(spec: &RunSpec) -> Table {
    let definition = definition();
    let mut table = Table::new();
    for argument in &spec.arguments {
        let Some(flag) = argument.strip_prefix("--") else {
            table.insert("image".into(), escaped(argument).into());
            continue;
        };
        let Some((key, value)) = flag.split_once('=') else {
            table.insert(flag.into(), true.into());
            continue;
        };
        let arg = definition.get_arguments().find(|it| key_of(it) == key);
        let value = Value::from(escaped(value));
        let is_list = arg.is_some_and(|it| matches!(it.get_action(), clap::ArgAction::Append));
        match table.get_mut(key) {
            Some(Value::Array(values)) => values.push(value),
            _ if is_list => {
                table.insert(key.into(), Value::Array(vec![value]));
            }
            _ => {
                table.insert(key.into(), value);
            }
        }
    }
    if !spec.command.is_empty() {
        table.insert("command".into(), strings(&spec.command));
    }
    table
}

fn step(step: &Step) -> Ordered {
    let mut table = Ordered::default();
    action(&step.action, &mut table);
    table.put_some("within", step.within.map(|it| it.to_string()));
    table.put_some("name", step.name.as_deref().map(escaped));
    table
}

fn action(action: &Action, table: &mut Ordered) {
    match action {
        Action::Expect { pattern, on } => {
            table.put("expect", self::pattern(pattern, kept));
            if *on != Stream::Console {
                table.put("on", on.name());
            }
        }
        Action::Send { text, echo } => {
            table.put("send", text.as_str());
            table.put_some("echo", echo.then_some(true));
        }
        Action::Run {
            command,
            input,
            status,
            stdout,
            stderr,
        } => {
            match command {
                RunCommand::Shell(line) => table.put("run", line.as_str()),
                RunCommand::Words(words) => table.put("run", words.clone()),
            }
            table.put_some("input", input.as_deref());
            match status {
                Some(status) => table.put("status", i64::from(*status)),
                None => table.put("status", "any"),
            }
            table.put_patterns("stdout", stdout, kept);
            table.put_patterns("stderr", stderr, kept);
        }
        Action::Http { url, status, body } => {
            table.put("http", url.as_str());
            table.put("status", i64::from(*status));
            table.put_patterns("body", body, kept);
        }
        Action::Tcp {
            address,
            send,
            expect,
        } => {
            table.put("tcp", address.as_str());
            table.put_some("send", send.as_deref());
            table.put_patterns("expect", expect, kept);
        }
        Action::File {
            path,
            write,
            expect,
        } => {
            table.put("file", path.as_str());
            table.put_some("write", write.as_deref());
            table.put_patterns("content", expect, kept);
        }
        Action::WaitExit { reason, status } => {
            table.put("wait-exit", reason.map_or("any", EndKind::name));
            table.put_some("status", status.map(i64::from));
        }
        Action::Pause => table.put("pause", true),
        Action::Resume => table.put("resume", true),
        Action::PowerButton => table.put("power-button", true),
        Action::Reset => table.put("reset", true),
        Action::DiskFault { disk, faults } => {
            table.put("disk-fault", escaped(disk));
            let faults = faults.iter().map(disk_fault);
            table.put("faults", Value::Array(faults.collect()));
        }
        Action::NetFault { net, faults } => {
            table.put("net-fault", escaped(net));
            let faults = faults.iter().map(net_fault);
            table.put("faults", Value::Array(faults.collect()));
        }
        Action::Timeline {
            mark,
            at_most,
            than,
            since,
        } => {
            table.put("timeline", escaped(mark));
            table.put("at-most", *at_most);
            table.put("times", escaped(than));
            table.put_some("since", since.as_deref().map(escaped));
        }
        Action::SnapshotConsole { name } => table.put("snapshot-console", name.as_str()),
    }
}

fn when(when: When) -> (String, Value) {
    // They were read as TOML's integers.
    let number = |count: u64| Value::from(i64::try_from(count).unwrap_or(i64::MAX));
    match when {
        When::Nth(count) => ("nth".into(), number(count)),
        When::Every(count) => ("every".into(), number(count)),
    }
}

fn disk_fault(fault: &DiskFault) -> Value {
    let op = match fault.op {
        DiskOp::Read => "read",
        DiskOp::Write => "write",
        DiskOp::Flush => "flush",
        DiskOp::Discard => "discard",
    };
    let effect = match fault.effect {
        DiskEffect::Fail(errno) => {
            let name = ERRORS.iter().find(|it| it.1 == errno);
            let value = name.map_or(Value::from(errno), |it| it.0.into());
            ("fail".into(), value)
        }
        DiskEffect::Delay(delay) => ("delay".into(), delay.to_string().into()),
    };
    Table::from_iter([("op".into(), op.into()), when(fault.when), effect]).into()
}

fn net_fault(fault: &NetFault) -> Value {
    let direction = match fault.from_guest {
        true => "from-guest",
        false => "to-guest",
    };
    let effect = match fault.effect {
        NetEffect::Drop => ("effect".into(), "drop".into()),
        NetEffect::Duplicate => ("effect".into(), "duplicate".into()),
        NetEffect::Delay(delay) => ("delay".into(), delay.to_string().into()),
    };
    Table::from_iter([
        ("direction".into(), direction.into()),
        when(fault.when),
        effect,
    ])
    .into()
}
