//! Users and groups, as an image's `/etc/passwd` and `/etc/group` have them. No I/O.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Whose a command is.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Account {
    pub(crate) user: u32,
    pub(crate) group: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: Vec<u8>,
}

/// Resolves `USER` or `USER:GROUP`. A user's groups in `/etc/group` are its own, unless a group is given.
///
/// # Errors
/// A name that is in none of the files, in words.
pub(crate) fn resolve(
    text: &[u8],
    further: &[Vec<u8>],
    users: &[u8],
    groups: &[u8],
) -> Result<Account, String> {
    let mut parts = text.splitn(2, |byte| *byte == b':');
    let user = parts.next().filter(|it| !it.is_empty()).unwrap_or(b"0");
    let group = parts.next().filter(|it| !it.is_empty());
    let entry = find(users, user, 2);
    let mut account = Account {
        home: b"/".into(),
        ..Account::default()
    };
    match (&entry, number(user)) {
        (Some(entry), _) => {
            account.user = field_number(entry, 2).unwrap_or_default();
            account.group = field_number(entry, 3).unwrap_or_default();
            if let Some(home) = entry.get(5).filter(|it| !it.is_empty()) {
                account.home = home.to_vec();
            }
        }
        (None, Some(number)) => account.user = number,
        (None, None) => return Err(unknown("user", user, "/etc/passwd")),
    }
    match group {
        Some(group) => account.group = group_number(groups, group)?,
        None => account.groups = member_of(groups, entry.map_or(user, |entry| entry[0])),
    }
    for group in further {
        account.groups.push(group_number(groups, group)?);
    }
    if !account.groups.contains(&account.group) {
        account.groups.insert(0, account.group);
    }
    Ok(account)
}

fn group_number(groups: &[u8], group: &[u8]) -> Result<u32, String> {
    let entry = find(groups, group, 2);
    let named = entry.and_then(|entry| field_number(&entry, 2));
    let number = named.or_else(|| number(group));
    number.ok_or_else(|| unknown("group", group, "/etc/group"))
}

fn unknown(what: &str, name: &[u8], file: &str) -> String {
    format!(
        "there is no {what} {} in the image's {file}",
        name.escape_ascii()
    )
}

/// The fields of the line for a name, else for a number.
fn find<'a>(file: &'a [u8], wanted: &[u8], number_at: usize) -> Option<Vec<&'a [u8]>> {
    let mut lines = lines(file);
    let by_name = lines.clone().find(|entry| entry[0] == wanted);
    let wanted = number(wanted);
    by_name.or_else(|| {
        lines.find(|entry| wanted.is_some() && field_number(entry, number_at) == wanted)
    })
}

fn lines(file: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> + Clone {
    let lines = file.split(|byte| *byte == b'\n');
    lines
        .filter(|line| !line.is_empty())
        .map(|line| line.split(|byte| *byte == b':').collect())
}

fn member_of(groups: &[u8], name: &[u8]) -> Vec<u32> {
    let mine = lines(groups).filter(|entry| {
        let members = entry.get(3).copied().unwrap_or_default();
        members.split(|byte| *byte == b',').any(|it| it == name)
    });
    mine.filter_map(|entry| field_number(&entry, 2)).collect()
}

fn field_number(entry: &[&[u8]], at: usize) -> Option<u32> {
    number(entry.get(at)?)
}

fn number(text: &[u8]) -> Option<u32> {
    let digits = text.iter().all(u8::is_ascii_digit);
    core::str::from_utf8(text)
        .ok()
        .filter(|_| digits)?
        .parse()
        .ok()
}
