//! What the host's KVM answers alike until the host starts again, kept in a file from one start of a VM to the next.
//!
//! It is the CPUID that KVM supports (KVM_GET_SUPPORTED_CPUID): KVM executes the instruction some eighty times for it. On a
//! processor of one's own that is nothing; where the host is a virtual machine itself, as most that build and test software
//! are, each is a trap, and all of them a fifth of what a start costs (docs/performance.md).
//!
//! The file counts only for the boot of the host that it was made in and for the same loaded modules of KVM. It is read on the
//! thread that builds the VM. A file that is missing, of another boot, of somebody else, or damaged is as good as none: KVM is
//! asked, and the file made anew.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};

use crate::own_file;

/// Its name in the folder.
const NAME: &str = "host-cpuid";

/// How it begins: changes with the format.
const MAGIC: [u8; 8] = *b"AMPCPU\0\x01";

/// Words of 32 bits in an entry: function, index, flags, four registers.
const WORDS: usize = 7;

/// Where the kernel tells which modules are loaded. A folder there has a number of its own each time its module is loaded.
const MODULES: [&str; 3] = [
    "/sys/module/kvm",
    "/sys/module/kvm_amd",
    "/sys/module/kvm_intel",
];

/// What tells this start of the host from all others. Nothing where the host does not tell.
pub(crate) fn boot_id() -> Option<String> {
    let mut id = String::new();
    let file = File::open("/proc/sys/kernel/random/boot_id").ok()?;
    file.take(64).read_to_string(&mut id).ok()?;
    let id = id.trim();
    let is_id = !id.is_empty()
        && id
            .bytes()
            .all(|byte| matches!(byte, b'-' | b'0'..=b'9' | b'a'..=b'f'));
    is_id.then(|| id.to_owned())
}

/// A boot of the host, and the modules of KVM that are loaded in it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct HostKey(Vec<u8>);

impl HostKey {
    /// This host's, as of now; `device` is /dev/kvm, open. Nothing where the host does not tell.
    pub(crate) fn now(device: &fs::Metadata) -> Option<Self> {
        let mut bytes = [&MAGIC[..], boot_id()?.as_bytes()].concat();
        // The device is made when a module is loaded, unless somebody else has made it.
        let made = (device.ctime() as u64, device.ctime_nsec() as u64);
        let mut numbers = vec![device.dev(), device.ino(), made.0, made.1];
        // Absent modules are as telling as present ones; some are built in.
        let number = |path: &str| fs::metadata(path).map_or(0, |it| it.ino());
        numbers.extend(MODULES.map(number));
        for number in numbers {
            bytes.extend(number.to_le_bytes());
        }
        Some(Self(bytes))
    }
}

/// What the file in this folder says, if it is for this host.
pub(crate) fn read(folder: &Path, key: &HostKey) -> Option<Vec<kvm_cpuid_entry2>> {
    let file = own_file::open(&folder.join(NAME))?;
    let limit = key.0.len() + KVM_MAX_CPUID_ENTRIES * WORDS * 4;
    let mut bytes = Vec::with_capacity(limit + 1);
    file.take(limit as u64 + 1).read_to_end(&mut bytes).ok()?;
    decode(&bytes, key)
}

/// Makes the file; one that cannot be made is no matter.
pub(crate) fn write(folder: &Path, key: &HostKey, entries: &[kvm_cpuid_entry2]) {
    if let Err(err) = try_write(folder, &encode(key, entries)) {
        log::debug!(
            "cannot keep what KVM supports in {}: {err}",
            folder.display()
        );
    }
}

fn try_write(folder: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = own_file::begin(folder)?;
    file.write_all(bytes)?;
    file.persist(folder.join(NAME))?;
    Ok(())
}

fn encode(key: &HostKey, entries: &[kvm_cpuid_entry2]) -> Vec<u8> {
    let mut bytes = key.0.clone();
    for entry in entries {
        let words = [
            entry.function,
            entry.index,
            entry.flags,
            entry.eax,
            entry.ebx,
            entry.ecx,
            entry.edx,
        ];
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }
    bytes
}

fn decode(bytes: &[u8], key: &HostKey) -> Option<Vec<kvm_cpuid_entry2>> {
    let (entries, rest) = bytes.strip_prefix(&key.0[..])?.as_chunks::<{ WORDS * 4 }>();
    if !rest.is_empty() || entries.is_empty() || entries.len() > KVM_MAX_CPUID_ENTRIES {
        return None;
    }
    let entry = |bytes: &[u8; WORDS * 4]| {
        let (words, _) = bytes.as_chunks::<4>();
        let word = |at: usize| u32::from_le_bytes(words[at]);
        kvm_cpuid_entry2 {
            function: word(0),
            index: word(1),
            flags: word(2),
            eax: word(3),
            ebx: word(4),
            ecx: word(5),
            edx: word(6),
            ..kvm_cpuid_entry2::default()
        }
    };
    Some(entries.iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn entries() -> Vec<kvm_cpuid_entry2> {
        let entry = |function| kvm_cpuid_entry2 {
            function,
            index: 1,
            flags: 2,
            eax: 3,
            ebx: 4,
            ecx: 5,
            edx: 6,
            ..kvm_cpuid_entry2::default()
        };
        [0, 1, 0x4000_0000].map(entry).to_vec()
    }

    fn key() -> HostKey {
        let folder = tempfile::tempdir().unwrap();
        HostKey::now(&fs::metadata(folder.path()).unwrap()).unwrap()
    }

    #[test]
    fn what_is_kept_is_found_again_on_the_same_host_only() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("made/where/missing");
        let (here, other) = (key(), key());
        assert_ne!(here, other, "a device that was made at another time");
        assert_eq!(read(&place, &here), None);
        write(&place, &here, &entries());
        assert_eq!(read(&place, &here).unwrap(), entries());
        assert_eq!(read(&place, &other), None);
        write(&place, &other, &entries()[..1]);
        assert_eq!(read(&place, &other).unwrap(), entries()[..1]);
        assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_is_damaged_or_not_ones_own_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let (place, key) = (folder.path(), key());
        let whole = encode(&key, &entries());
        let path = place.join(NAME);
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let entries = (length - key.0.len().min(length)) / (WORDS * 4);
            let is_whole = length == key.0.len() + entries * WORDS * 4 && entries > 0;
            assert_eq!(read(place, &key).is_some(), is_whole, "{length} bytes");
        }
        let long = encode(&key, &vec![entries()[0]; KVM_MAX_CPUID_ENTRIES + 1]);
        fs::write(&path, long).unwrap();
        assert_eq!(read(place, &key), None);
        fs::write(&path, &whole).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(read(place, &key), None, "anybody may have written it");
        fs::rename(&path, place.join("elsewhere")).unwrap();
        symlink("elsewhere", &path).unwrap();
        assert_eq!(read(place, &key), None, "a symbolic link");
        // Where it cannot be kept nothing happens.
        write(&place.join("elsewhere/below-a-file"), &key, &entries());
    }
}
