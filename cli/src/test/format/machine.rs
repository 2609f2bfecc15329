//! `[vm]`: all that the library's configuration knows, with its paths where the file has them.

use std::path::Path;

use ampoule_vmm::config::{VmConfig, VsockConfig};
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::reader::{Context, Field};
use super::sources::{Sources, Table, Value};
use crate::config_file::{OWN_KEYS, Problem, names};

/// The keys there are: the library's own list of them, as it is told to who writes another.
pub(super) fn keys() -> Vec<String> {
    let mut table = DeTable::new();
    let key = Spanned::new(0..0, "no key".into());
    table.insert(key, Spanned::new(0..0, DeValue::Boolean(true)));
    let deserializer = toml::Deserializer::from(Spanned::new(0..0, table));
    let complaint = VmConfig::deserialize(deserializer).err();
    let message = complaint
        .as_ref()
        .map(|err| err.message())
        .unwrap_or_default();
    let known = names(message, "unknown field ").map(|it| it.1);
    let known = known.unwrap_or_default().into_iter();
    known.map(ToOwned::to_owned).collect()
}

/// The machine; none if something is wrong with it.
pub(super) fn machine(field: Option<Field<'_>>, context: &mut Context<'_>) -> Option<VmConfig> {
    let Some(mut field) = field else {
        return Some(VmConfig::default());
    };
    context.resolve_all(&mut field.value);
    let place = field.place();
    let DeValue::Table(mut table) = field.value.into_inner() else {
        context.complaints.say(&place, "vm is a table: [vm]");
        return None;
    };
    let mut is_right = true;
    for key in OWN_KEYS {
        if let Some((key, _)) = table.remove_entry(key) {
            let message = format!("{} is no key of [vm]", key.get_ref());
            let help = "the results of a scenario have its timeline, its metrics and its log";
            context.complaints.help(&key.span(), message, help);
            is_right = false;
        }
    }
    if let Some((key, _)) = table.remove_entry("serial") {
        let message = "the serial port is the scenario's";
        let help = "its steps type on it and read it; a console besides is [vm] console";
        context.complaints.help(&key.span(), message, help);
        is_right = false;
    }
    each_path(&mut table, &mut |value, is_console| {
        start_at_file(value, is_console, context.values.sources);
    });
    // The deserializer stops at the first mistake: without the key that has it there may be more.
    let config = loop {
        let deserializer = toml::Deserializer::from(Spanned::new(place.clone(), table.clone()));
        match VmConfig::deserialize(deserializer) {
            Ok(config) => break config,
            Err(err) => {
                let mut problem = Problem::of_toml(&err, "", &[]);
                let span = problem.span.get_or_insert(place.clone()).clone();
                context.complaints.add(problem);
                is_right = false;
                let is_in = |place: std::ops::Range<usize>| {
                    place.start <= span.start && span.start < place.end.max(place.start + 1)
                };
                let wrong = table
                    .iter()
                    .find(|(key, value)| is_in(key.span()) || is_in(value.span()));
                let wrong = wrong.map(|(key, _)| key.get_ref().to_string())?;
                table.remove(&*wrong);
            }
        }
    };
    // A program that embeds the library has another way to it.
    if let Some(VsockConfig { socket: None, cid }) = config.vsock {
        let help = format!("write it below cid = {cid}: socket = \"vm.sock\"");
        let message = "vsock has no socket, by which alone it is reached";
        let place = table.get("vsock").map_or(place, Spanned::span);
        context.complaints.help(&place, message, help);
        return None;
    }
    is_right.then_some(config)
}

/// Goes through the values that are paths, or say where a console leads.
fn each_path<'a>(table: &mut Table<'a>, act: &mut dyn FnMut(&mut Value<'a>, bool)) {
    for (key, is_console) in [
        ("kernel", false),
        ("initrd", false),
        ("serial", true),
        ("console", true),
    ] {
        if let Some(value) = table.get_mut(key) {
            act(value, is_console);
        }
    }
    for (key, paths) in [("disk", &["path"][..]), ("fs", &["path", "socket"])] {
        let Some(DeValue::Array(devices)) = table.get_mut(key).map(Spanned::get_mut) else {
            continue;
        };
        for device in devices.iter_mut() {
            let DeValue::Table(device) = device.get_mut() else {
                continue;
            };
            for key in paths {
                if let Some(value) = device.get_mut(*key) {
                    act(value, false);
                }
            }
        }
    }
    if let Some(DeValue::Table(vsock)) = table.get_mut("vsock").map(Spanned::get_mut)
        && let Some(value) = vsock.get_mut("socket")
    {
        act(value, false);
    }
}

/// A relative path begins at the directory of the file that it is written in. A console's is behind what says that it is one.
fn start_at_file(value: &mut Value<'_>, is_console: bool, sources: &Sources) {
    let directory = &sources.at(&value.span()).directory;
    let DeValue::String(text) = value.get_mut() else {
        return;
    };
    let (kind, path) = match text.split_once(':') {
        Some((kind @ ("file" | "socket"), path)) if is_console => (format!("{kind}:"), path),
        _ if is_console => return,
        _ => (String::new(), &**text),
    };
    if path.is_empty() {
        return;
    }
    // One that is no text stays relative, and is not found.
    if let Some(path) = directory.join(Path::new(path)).to_str() {
        *text = format!("{kind}{path}").into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_file;

    #[test]
    fn the_librarys_keys_are_known() {
        let keys = keys();
        for key in ["kernel", "memory", "on-reboot", "disk", "limits"] {
            assert!(keys.iter().any(|it| it == key), "{key}: {keys:?}");
        }
    }

    /// What `--config` takes for a path is one here.
    #[test]
    fn paths_are_those_of_configurations() {
        let text = "kernel = \"k\"\ninitrd = \"/i\"\nserial = \"file:l\"\nconsole = \"socket:c\"\n\
                    [[disk]]\npath = \"d\"\n[[fs]]\ntag = \"p\"\npath = \"p\"\n[[fs]]\ntag = \"s\"\nsocket = \"s\"\n\
                    [vsock]\ncid = 3\nsocket = \"v\"\n";
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.toml");
        std::fs::write(&path, text).unwrap();
        let expected = config_file::load(&path).unwrap().vm;
        let mut sources = Sources::default();
        sources.add_file(&path, text.into());
        let mut table = sources.parse(0).unwrap();
        each_path(&mut table, &mut |value, is_console| {
            start_at_file(value, is_console, &sources)
        });
        let deserializer = toml::Deserializer::from(Spanned::new(0..0, table));
        assert_eq!(VmConfig::deserialize(deserializer).unwrap(), expected);
        assert!(expected.kernel.unwrap().starts_with(folder.path()));
    }
}
