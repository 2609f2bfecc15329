//! The JSON schema of scenario files, which editors read: made here, by a test, out of what reads the files.

use ampoule_vmm::config::VmConfig;
use clap::ArgAction;
use schemars::SchemaGenerator;
use serde_json::{Map, Value, json};

use super::SCENARIO_KEYS;
use super::faults::{DIRECTIONS, DISK_KEYS, ERRORS, MAX_ERRNO, NET_EFFECTS, NET_KEYS, OPS};
use super::run;
use super::steps::{ACTIONS, COMMON, ENDS, STREAMS};

/// Where it is kept.
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/scenario.schema.json");

const NAME: &str = "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$";

fn text(description: &str) -> Value {
    json!({ "type": "string", "description": description })
}

fn truth(description: &str) -> Value {
    json!({ "type": "boolean", "description": description })
}

fn reference(name: &str, description: &str) -> Value {
    json!({ "$ref": format!("#/$defs/{name}"), "description": description })
}

fn names<T>(values: &[(&str, T)]) -> Vec<String> {
    values.iter().map(|it| it.0.to_owned()).collect()
}

fn schema() -> Value {
    let mut generator = SchemaGenerator::default();
    let vm = generator.subschema_for::<VmConfig>().to_value();
    let mut defs = generator.take_definitions(true);
    // It is the scenario's.
    let machine = defs
        .get_mut("VmConfig")
        .and_then(|it| it["properties"].as_object_mut());
    machine.expect("the machine is a table").remove("serial");
    defs.insert("pattern".into(), json!({
        "description": "A text to find, or a regular expression. In it, ^ and $ are of a line, and named groups are captures.",
        "oneOf": [
            { "type": "string", "minLength": 1 },
            {
                "type": "object",
                "properties": { "regex": { "type": "string", "format": "regex" } },
                "required": ["regex"],
                "additionalProperties": false
            }
        ]
    }));
    defs.insert("patterns".into(), json!({
        "anyOf": [{ "$ref": "#/$defs/pattern" }, { "type": "array", "items": { "$ref": "#/$defs/pattern" } }]
    }));
    defs.insert(
        "span".into(),
        json!({
            "type": "string",
            "description": "A span of time: 500ms, 5s, 2m or 1h. Templates are allowed.",
            "pattern": "^[0-9]+(us|ms|s|m|min|h)$|\\{\\{"
        }),
    );
    defs.insert("disk-fault".into(), disk_fault());
    defs.insert("net-fault".into(), net_fault());
    defs.insert("run".into(), run_table());
    defs.insert("step".into(), step());
    let mut root = Map::new();
    for key in SCENARIO_KEYS {
        root.insert(key.into(), property(key, &vm));
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A scenario of ampoule test",
        "type": "object",
        "properties": root,
        "additionalProperties": false,
        "$defs": defs,
    })
}

/// A key of a file.
fn property(key: &str, vm: &Value) -> Value {
    match key {
        "extends" => json!({
            "description": "Files whose keys are the defaults: tables merge, all else replaces. Paths begin at this file.",
            "anyOf": [
                { "type": "string", "minLength": 1 },
                { "type": "array", "items": { "type": "string", "minLength": 1 }, "maxItems": 32 }
            ]
        }),
        "template" => truth("The file is only there to be extended."),
        "name" => {
            json!({ "type": "string", "pattern": NAME, "description": "The scenario's name; the file's where it is not given." })
        }
        "description" => text("What it is about."),
        "tags" => json!({
            "description": "Words by which it is chosen: --tag.",
            "type": "array",
            "items": { "type": "string" }
        }),
        "timeout" => reference(
            "span",
            "How long all of it may take: 5m where it is not given.",
        ),
        "step-timeout" => reference(
            "span",
            "How long a step may take that does not say so: 60s where it is not given.",
        ),
        "forbid" | "allow" => json!({
            "description": match key {
                "forbid" => "What the console may never show, besides what a kernel says that has come to grief.",
                _ => "What is not forbidden although a pattern of forbid finds it.",
            },
            "type": "array",
            "items": { "$ref": "#/$defs/pattern" }
        }),
        "forbid-defaults" => truth(
            "Whether what a kernel says that has come to grief is forbidden: true where it is not given.",
        ),
        "vm" => {
            let mut vm = vm.clone();
            vm["description"] =
                "The machine: what --config knows. Paths begin at this file.".into();
            vm
        }
        "run" => reference(
            "run",
            "A command in the machine: what ampoule run IMAGE knows, by the long names of its flags.",
        ),
        "matrix" => matrix(),
        "step" => json!({
            "description": "What is done and seen, one after the other.",
            "type": "array",
            "items": { "$ref": "#/$defs/step" }
        }),
        other => panic!("{other} has no schema"),
    }
}

fn matrix() -> Value {
    let value = json!({
        "anyOf": [
            { "type": ["string", "number", "boolean"] },
            { "type": "object", "properties": { "name": { "type": "string", "minLength": 1 } }, "required": ["name"] }
        ]
    });
    json!({
        "description": "Axes with their values, all combinations of which are run: \"vm.memory\" = [\"512M\", \"1G\"].",
        "type": "object",
        "properties": {
            "exclude": {
                "description": "Combinations that are left out.",
                "type": "array",
                "items": { "type": "object", "minProperties": 1 }
            }
        },
        "additionalProperties": {
            "anyOf": [
                { "type": "array", "minItems": 1, "items": value },
                { "type": "object" }
            ]
        }
    })
}

/// Out of clap's definition of the flags.
fn run_table() -> Value {
    let mut properties = Map::new();
    for arg in run::definition().get_arguments() {
        let key = run::key_of(arg);
        if run::is_refused(key) {
            continue;
        }
        let one = match arg.get_action() {
            action if !action.takes_values() => json!({ "type": "boolean" }),
            _ if key == "command" => {
                json!({ "type": "array", "items": { "type": "string" }, "minItems": 1 })
            }
            action => {
                let values = arg.get_possible_values();
                let value = match values.is_empty() {
                    true => json!({ "type": ["string", "integer"] }),
                    false => {
                        let names: Vec<&str> = values.iter().map(|it| it.get_name()).collect();
                        json!({ "enum": names })
                    }
                };
                match action {
                    ArgAction::Append => {
                        json!({ "anyOf": [value, { "type": "array", "items": value }] })
                    }
                    _ => value,
                }
            }
        };
        let mut one = one;
        one["description"] = arg.get_help().map(ToString::to_string).into();
        properties.insert(key.into(), one);
    }
    json!({
        "type": "object",
        "properties": properties,
        "additionalProperties": false
    })
}

/// One of the actions, each with what belongs to it.
fn step() -> Value {
    let actions = ACTIONS.iter().map(|(action, parameters)| {
        let mut properties = Map::new();
        properties.insert((*action).into(), action_value(action));
        for key in *parameters {
            properties.insert((*key).into(), parameter(action, key));
        }
        for key in COMMON {
            properties.insert(key.into(), match key {
                "within" => reference("span", "How long the step may take."),
                _ => text("What the step is called in reports."),
            });
        }
        let mut required = vec![*action];
        match *action {
            "timeline" => required.extend(["at-most", "times"]),
            "disk-fault" | "net-fault" => required.push("faults"),
            _ => {}
        }
        json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
    });
    json!({ "oneOf": actions.collect::<Vec<_>>() })
}

fn action_value(action: &str) -> Value {
    match action {
        "expect" => reference("pattern", "Waits for a text."),
        "send" => text("Types on the console."),
        "run" => json!({
            "description": "Runs a command in the guest: a line for a shell, or words.",
            "anyOf": [
                { "type": "string", "minLength": 1 },
                { "type": "array", "items": { "type": "string" }, "minItems": 1 }
            ]
        }),
        "http" => text("Asks this URL until it answers as is expected."),
        "tcp" => text("Connects to this address until it answers as is expected."),
        "file" => text("A file in the guest, which is read or written."),
        "wait-exit" => {
            let ends = ENDS.iter().map(|it| it.name()).chain(["any"]);
            json!({ "enum": ends.collect::<Vec<_>>(), "description": "Waits for the end of the guest or of the command." })
        }
        "pause" | "resume" | "power-button" | "reset" => json!({ "const": true }),
        "disk-fault" => text("Gives this disk faults."),
        "net-fault" => text("Gives this network faults."),
        "timeline" => text("Compares when this mark came with when another one did."),
        "snapshot-console" => json!({
            "type": "string",
            "pattern": NAME,
            "description": "Keeps what the console has shown so far under this name."
        }),
        other => panic!("{other} has no schema"),
    }
}

fn parameter(action: &str, key: &str) -> Value {
    match (action, key) {
        ("expect", "on") => json!({ "enum": names(&STREAMS) }),
        ("send", "echo") => truth("Waits until the guest has shown it."),
        ("run", "input") => text("The command's standard input."),
        ("run", "status") => {
            json!({ "anyOf": [{ "type": "integer", "minimum": 0, "maximum": 255 }, { "const": "any" }] })
        }
        ("http", "status") => json!({ "type": "integer", "minimum": 100, "maximum": 599 }),
        ("wait-exit", "status") => json!({ "type": "integer", "minimum": 0, "maximum": 255 }),
        ("run", "stdout" | "stderr")
        | ("http", "body")
        | ("tcp", "expect")
        | ("file", "content") => {
            json!({ "$ref": "#/$defs/patterns" })
        }
        ("tcp", "send") => text("What is sent first."),
        ("file", "write") => text("What is written."),
        ("disk-fault" | "net-fault", "faults") => json!({
            "type": "array",
            "maxItems": 64,
            "items": { "$ref": format!("#/$defs/{action}") }
        }),
        ("timeline", "at-most") => json!({ "type": "number", "exclusiveMinimum": 0 }),
        ("timeline", "times") => text("The mark that is compared with."),
        ("timeline", "since") => {
            text("The mark that both are counted from; the process's start where it is not given.")
        }
        other => panic!("{other:?} has no schema"),
    }
}

fn count() -> Value {
    json!({ "type": "integer", "minimum": 1 })
}

fn either(keys: [&str; 2]) -> Value {
    json!({ "oneOf": keys.map(|it| json!({ "required": [it] })) })
}

fn disk_fault() -> Value {
    let properties = DISK_KEYS.map(|key| {
        let value = match key {
            "op" => json!({ "enum": names(&OPS) }),
            "nth" | "every" => count(),
            "fail" => json!({
                "anyOf": [{ "enum": names(&ERRORS) }, { "type": "integer", "minimum": 1, "maximum": MAX_ERRNO }]
            }),
            _ => json!({ "$ref": "#/$defs/span" }),
        };
        (key.to_owned(), value)
    });
    json!({
        "type": "object",
        "properties": Map::from_iter(properties),
        "additionalProperties": false,
        "required": ["op"],
        "allOf": [either(["nth", "every"]), either(["fail", "delay"])]
    })
}

fn net_fault() -> Value {
    let properties = NET_KEYS.map(|key| {
        let value = match key {
            "direction" => json!({ "enum": names(&DIRECTIONS) }),
            "nth" | "every" => count(),
            "effect" => json!({ "enum": names(&NET_EFFECTS) }),
            _ => json!({ "$ref": "#/$defs/span" }),
        };
        (key.to_owned(), value)
    });
    json!({
        "type": "object",
        "properties": Map::from_iter(properties),
        "additionalProperties": false,
        "required": ["direction"],
        "allOf": [either(["nth", "every"]), either(["effect", "delay"])]
    })
}

#[test]
fn the_schema_that_is_shipped_is_the_formats() {
    let made = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(FILE, &made).unwrap();
        return;
    }
    let kept = std::fs::read_to_string(FILE).unwrap();
    assert!(
        kept == made,
        "docs/scenario.schema.json is another one; renew it: BLESS=1 cargo test -p ampoule --bin ampoule schema"
    );
}
