//! Random trees, written and read back.

use proptest::prelude::*;

use crate::support::{Tar, files};

#[derive(Debug, Clone)]
enum Kind {
    File(Vec<u8>),
    Directory,
    Symlink(String),
    Sparse { offset: u64, size: u64 },
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        (0usize..20_000, any::<u8>()).prop_map(|(size, seed)| {
            Kind::File(
                (0..size)
                    .map(|n| (n as u8).wrapping_mul(31) ^ seed)
                    .collect(),
            )
        }),
        Just(Kind::Directory),
        "[a-z/]{1,90}".prop_map(Kind::Symlink),
        (0u64..100_000, 3u64..100_000).prop_map(|(offset, more)| Kind::Sparse {
            offset,
            size: offset + more,
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_is_what_was_put_in(
        entries in prop::collection::btree_map("[-.!a-cA-C]{1,40}", (kind(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..5000)), 0..120),
    ) {
        let entries: Vec<_> = entries.into_iter().filter(|(name, _)| name != "." && name != "..").collect();
        let mut tar = Tar::new();
        for (name, (kind, uid, value)) in &entries {
            let uid = uid.to_string();
            let mut records: Vec<(&str, &[u8])> = vec![("uid", uid.as_bytes())];
            if value.len() % 3 != 0 {
                records.push(("SCHILY.xattr.user.v", value));
            }
            let (at, size);
            if let Kind::Sparse { offset, size: whole } = kind {
                (at, size) = (format!("{offset},3"), whole.to_string());
                records.push(("GNU.sparse.map", at.as_bytes()));
                records.push(("GNU.sparse.size", size.as_bytes()));
            }
            let path = format!("d/{name}");
            tar = tar.pax(&records);
            tar = match kind {
                Kind::File(data) => tar.file(&path, data),
                Kind::Directory => tar.directory(&path),
                Kind::Symlink(target) => tar.symlink(&path, target),
                Kind::Sparse { .. } => tar.file(&path, "end"),
            };
        }
        let files = files(tar);
        let count = entries.len();
        prop_assert_eq!(files.len(), if count == 0 { 1 } else { count + 2 });
        for (name, (kind, uid, value)) in &entries {
            let file = &files[&format!("d/{name}")];
            prop_assert_eq!(file.uid, *uid);
            let expected = (value.len() % 3 != 0).then_some(value);
            prop_assert_eq!(file.xattrs.get("user.v"), expected);
            match kind {
                Kind::File(data) => prop_assert!(&file.data == data),
                Kind::Directory => prop_assert_eq!(file.mode >> 12, 4),
                Kind::Symlink(target) => prop_assert_eq!(file.text(), target),
                Kind::Sparse { offset, size } => {
                    let mut data = vec![0; *size as usize];
                    data[*offset as usize..][..3].copy_from_slice(b"end");
                    prop_assert!(file.data == data);
                }
            }
        }
    }
}
