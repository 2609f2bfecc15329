//! A user without rights of any kind, but to open /dev/kvm: whose the commands under test are where the tests are root's.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use ampoule_tests::harness::is_root;

/// Its number, which nobody else has.
const NUMBER: u32 = 23_000;

/// A user.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User {
    pub(crate) number: u32,
    group: u32,
}

/// The user of most tests; nobody but oneself where the tests are not root's.
pub(crate) fn user() -> Option<User> {
    another(0)
}

/// Another user, who is told from the first by all that is theirs.
pub(crate) fn another(number: u32) -> Option<User> {
    is_root().then(|| User {
        number: NUMBER + number,
        group: kvm_group(),
    })
}

impl User {
    /// Has the command run as this user, without further groups.
    pub(crate) fn runs(self, command: &mut Command) {
        command.uid(self.number).gid(self.group);
    }

    /// The same, by setpriv(1).
    pub(crate) fn setpriv(self) -> String {
        let Self { number, group } = self;
        format!("setpriv --reuid {number} --regid {group} --clear-groups")
    }

    /// Makes a folder this user's, and all that is in it.
    pub(crate) fn owns(self, folder: &Path) {
        lchown(folder, Some(self.number), Some(self.group)).unwrap();
        if fs::symlink_metadata(folder).unwrap().is_dir() {
            for entry in fs::read_dir(folder).unwrap() {
                self.owns(&entry.unwrap().path());
            }
        }
    }
}

/// The group that may open /dev/kvm: the distribution's, or one that is given it where there is none, as in a lab host.
pub(crate) fn kvm_group() -> u32 {
    static GROUP: OnceLock<u32> = OnceLock::new();
    *GROUP.get_or_init(|| {
        let metadata = fs::metadata("/dev/kvm").unwrap();
        if metadata.gid() != 0 && metadata.mode() & 0o060 == 0o060 {
            return metadata.gid();
        }
        chown("/dev/kvm", None, Some(NUMBER)).unwrap();
        fs::set_permissions("/dev/kvm", Permissions::from_mode(0o660)).unwrap();
        NUMBER
    })
}
