//! The faults of `disk-fault` and `net-fault` steps.

use ampoule_vmm::config::Span;
use ampoule_vmm::fault::MAX_DELAY;
use toml::de::DeValue;

use super::reader::{Context, Field, Fields};
use super::sources::{Place, Value};
use crate::config_file::suggestion;
use crate::test::scenario::{DiskEffect, DiskFault, DiskOp, NetEffect, NetFault, When};

/// The keys of a disk's fault.
pub(super) const DISK_KEYS: [&str; 5] = ["op", "nth", "every", "fail", "delay"];

/// The keys of a network's fault.
pub(super) const NET_KEYS: [&str; 5] = ["direction", "nth", "every", "effect", "delay"];

/// What a disk's fault strikes.
pub(super) const OPS: [(&str, DiskOp); 4] = [
    ("read", DiskOp::Read),
    ("write", DiskOp::Write),
    ("flush", DiskOp::Flush),
    ("discard", DiskOp::Discard),
];

/// Whether it strikes frames from the guest.
pub(super) const DIRECTIONS: [(&str, bool); 2] = [("from-guest", true), ("to-guest", false)];

/// What a network's fault does.
pub(super) const NET_EFFECTS: [(&str, NetEffect); 2] = [
    ("drop", NetEffect::Drop),
    ("duplicate", NetEffect::Duplicate),
];

/// The most faults that a device has.
const MAX_FAULTS: usize = 64;

/// The highest number of an error that Linux has (EHWPOISON).
pub(super) const MAX_ERRNO: i64 = 133;

/// Errors by their names: those that disks and their files give.
pub(super) const ERRORS: [(&str, i32); 22] = [
    ("EPERM", libc::EPERM),
    ("EINTR", libc::EINTR),
    ("EIO", libc::EIO),
    ("ENXIO", libc::ENXIO),
    ("EBADF", libc::EBADF),
    ("EAGAIN", libc::EAGAIN),
    ("ENOMEM", libc::ENOMEM),
    ("EACCES", libc::EACCES),
    ("EBUSY", libc::EBUSY),
    ("ENODEV", libc::ENODEV),
    ("EINVAL", libc::EINVAL),
    ("EFBIG", libc::EFBIG),
    ("ENOSPC", libc::ENOSPC),
    ("EROFS", libc::EROFS),
    ("ENODATA", libc::ENODATA),
    ("ETIME", libc::ETIME),
    ("ENOLINK", libc::ENOLINK),
    ("EILSEQ", libc::EILSEQ),
    ("EOPNOTSUPP", libc::EOPNOTSUPP),
    ("ETIMEDOUT", libc::ETIMEDOUT),
    ("EREMOTEIO", libc::EREMOTEIO),
    ("EDQUOT", libc::EDQUOT),
];

/// The faults of a disk.
pub(super) fn of_disk(
    field: Option<Field<'_>>,
    step: &Place,
    context: &mut Context<'_>,
) -> Vec<DiskFault> {
    let help =
        "faults = [ { op = \"write\", every = 1, fail = \"EIO\" } ], or faults = [] for none";
    let mut faults = Vec::new();
    for (mut fields, place) in each(field, step, help, &DISK_KEYS, context) {
        let op = fields.take("op");
        let op = match op {
            Some(field) => context.one_of(&field.value, "op", &OPS),
            None => {
                context
                    .complaints
                    .help(&place, "the fault has no op", "op = \"write\"");
                None
            }
        };
        let when = when(&mut fields, &place, context);
        let effect = match (fields.take("fail"), fields.take("delay")) {
            (Some(field), None) => error(&field.value, context).map(DiskEffect::Fail),
            (None, Some(field)) => delay(&field.value, context).map(DiskEffect::Delay),
            _ => {
                let message = "a fault of a disk has either fail or delay";
                context.complaints.say(&place, message);
                None
            }
        };
        if let (Some(op), Some(when), Some(effect)) = (op, when, effect) {
            faults.push(DiskFault { op, when, effect });
        }
    }
    faults
}

/// The faults of a network.
pub(super) fn of_net(
    field: Option<Field<'_>>,
    step: &Place,
    context: &mut Context<'_>,
) -> Vec<NetFault> {
    let help = "faults = [ { direction = \"from-guest\", every = 5, effect = \"drop\" } ], or faults = [] for none";
    let mut faults = Vec::new();
    for (mut fields, place) in each(field, step, help, &NET_KEYS, context) {
        let direction = match fields.take("direction") {
            Some(field) => context.one_of(&field.value, "direction", &DIRECTIONS),
            None => {
                let help = "direction = \"from-guest\", or \"to-guest\"";
                context
                    .complaints
                    .help(&place, "the fault has no direction", help);
                None
            }
        };
        let when = when(&mut fields, &place, context);
        let effect = match (fields.take("effect"), fields.take("delay")) {
            (Some(field), None) => context.one_of(&field.value, "effect", &NET_EFFECTS),
            (None, Some(field)) => delay(&field.value, context).map(NetEffect::Delay),
            _ => {
                let message = "a fault of a network has either effect or delay";
                context.complaints.say(&place, message);
                None
            }
        };
        if let (Some(from_guest), Some(when), Some(effect)) = (direction, when, effect) {
            faults.push(NetFault {
                from_guest,
                when,
                effect,
            });
        }
    }
    faults
}

/// The tables of faults.
fn each<'a>(
    field: Option<Field<'a>>,
    step: &Place,
    help: &str,
    known: &[&str],
    context: &mut Context<'_>,
) -> Vec<(Fields<'a>, Place)> {
    let Some(field) = field else {
        context
            .complaints
            .help(step, "the step has no faults", help);
        return Vec::new();
    };
    let place = field.place();
    let values = context.array(field.value, "faults").unwrap_or_default();
    if values.len() > MAX_FAULTS {
        let message = format!("a device has {MAX_FAULTS} faults at most");
        context.complaints.say(&place, message);
        return Vec::new();
    }
    let mut faults = Vec::new();
    for value in values {
        let place = value.span();
        // Keys that are none are told first, and the others are read.
        if let DeValue::Table(table) = value.get_ref() {
            for key in table.keys().filter(|it| !known.contains(&&**it.get_ref())) {
                context
                    .complaints
                    .unknown_key(&key.span(), key.get_ref(), known);
            }
        }
        if let Some(fields) = context.table(value, "a fault") {
            faults.push((fields, place));
        }
    }
    faults
}

fn when(fields: &mut Fields<'_>, place: &Place, context: &mut Context<'_>) -> Option<When> {
    let count = 1..=i64::MAX;
    match (fields.take("nth"), fields.take("every")) {
        (Some(field), None) => context.integer(&field.value, "nth", count).map(When::Nth),
        (None, Some(field)) => context
            .integer(&field.value, "every", count)
            .map(When::Every),
        _ => {
            let help = "nth = 3 is the third alone, every = 3 each third";
            let message = "a fault has either nth or every";
            context.complaints.help(place, message, help);
            None
        }
    }
}

fn error(value: &Value<'_>, context: &mut Context<'_>) -> Option<i32> {
    if !value.get_ref().is_str() {
        return context.integer(value, "fail", 1..=MAX_ERRNO);
    }
    let name = context.string(value, "fail")?;
    let found = ERRORS.iter().find(|it| it.0 == name);
    if found.is_none() {
        let known: Vec<&str> = ERRORS.iter().map(|it| it.0).collect();
        let help = format!("{}, or the error's number", suggestion(&name, &known));
        let message = format!("\"{name}\" is no error that is known by its name");
        context.complaints.help(&value.span(), message, help);
    }
    found.map(|it| it.1)
}

fn delay(value: &Value<'_>, context: &mut Context<'_>) -> Option<Span> {
    let delay: Span = context.typed(value, "delay")?;
    if delay.as_duration() > MAX_DELAY {
        let most = Span::from(MAX_DELAY);
        let message = format!("a delay is {most} at most, not {delay}");
        context.complaints.say(&value.span(), message);
        return None;
    }
    Some(delay)
}
