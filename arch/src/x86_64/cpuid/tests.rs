//! Samples of what KVM supports on either vendor, and the ways in which Linux counts cores.

use super::*;

const COUNTS: [u32; 6] = [1, 2, 3, 4, 64, 254];

fn entry(function: u32, index: u32, regs: [u32; 4]) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = regs;
    kvm_cpuid_entry2 {
        function,
        index,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

/// What KVM says on an Intel host of 16 threads, cut down to what this module looks at.
fn intel() -> Vec<kvm_cpuid_entry2> {
    vec![
        entry(0x0, 0, [0x1f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
        entry(0x1, 0, [0x906ed, 0x0710_0800, 0xfffa_b203, 0x1f8b_fbff]),
        entry(0x4, 0, [0x1c00_4121, 0x01c0_003f, 0x3f, 0]),
        entry(0x4, 1, [0x1c00_4122, 0x01c0_003f, 0x3f, 0]),
        entry(0x4, 2, [0x1c00_4143, 0x00c0_003f, 0x3ff, 0]),
        entry(0x4, 3, [0x1c03_c163, 0x03c0_003f, 0x3fff, 6]),
        entry(0x4, 4, [0, 0, 0, 0]),
        entry(0x6, 0, [0x4, 0, 0, 0]),
        entry(0xb, 0, [0, 0, 0, 0xff]),
        entry(0x1f, 0, [0, 0, 0, 0xff]),
        entry(
            0x4000_0000,
            0,
            [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d],
        ),
        entry(0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
        entry(0x8000_0000, 0, [0x8000_0008, 0, 0, 0]),
        entry(0x8000_0001, 0, [0, 0, 0x121, 0x2c10_0800]),
        entry(0x8000_0008, 0, [0x3027, 0, 0, 0]),
    ]
}

/// What KVM says on an AMD Zen 3 host, cut down in the same way.
fn amd() -> Vec<kvm_cpuid_entry2> {
    vec![
        entry(0x0, 0, [0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        entry(0x1, 0, [0x00a0_0f11, 0x0110_0800, 0xfffa_3203, 0x178b_fbff]),
        entry(0xb, 0, [0, 0, 0, 1]),
        entry(
            0x8000_0000,
            0,
            [0x8000_0022, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        ),
        entry(
            0x8000_0001,
            0,
            [0x00a0_0f11, 0x4000_0000, 0x0040_03f3, 0x2fd3_fbff],
        ),
        entry(0x8000_0008, 0, [0x30_3030, 0x130a_d205, 0x0001_7001, 0]),
        entry(0x8000_001d, 0, [0x4121, 0x01c0_003f, 0x3f, 0]),
        entry(0x8000_001d, 2, [0x4143, 0x01c0_003f, 0x3ff, 2]),
        entry(0x8000_001d, 3, [0x3c163, 0x03c0_003f, 0x7fff, 1]),
        entry(0x8000_001d, 4, [0, 0, 0, 0]),
        entry(0x8000_001e, 0, [5, 0x102, 0x300, 0]),
        entry(0x8000_0026, 0, [1, 2, 0x100, 7]),
    ]
}

const DEADLINE: CpuidFeatures = CpuidFeatures { tsc_deadline: true };

fn guest(supported: &[kvm_cpuid_entry2], count: u32, index: u32) -> Vec<kvm_cpuid_entry2> {
    CpuidTemplate::new(supported, count, DEADLINE)
        .unwrap()
        .for_vcpu(index)
}

fn get(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> Option<[u32; 4]> {
    let mut found = entries
        .iter()
        .filter(|entry| entry.function == function && entry.index == index);
    let entry = found.next()?;
    assert!(
        found.next().is_none(),
        "leaf {function:#x} index {index} is there twice"
    );
    Some([entry.eax, entry.ebx, entry.ecx, entry.edx])
}

/// Bits that a processor's APIC id needs for `count` cores, counted in another way than the code
/// under test does.
fn width(count: u32) -> u32 {
    (0..).find(|bits| 1u64 << bits >= u64::from(count)).unwrap()
}

#[test]
fn extended_topology_names_every_vcpu_on_both_vendors() {
    for (supported, leaves) in [(intel(), &[0xb, 0x1f][..]), (amd(), &[0xb][..])] {
        for count in COUNTS {
            for index in [0, count / 2, count - 1] {
                let cpuid = guest(&supported, count, index);
                for leaf in leaves {
                    assert_eq!(get(&cpuid, *leaf, 0), Some([0, 1, 0x100, index]));
                    assert_eq!(
                        get(&cpuid, *leaf, 1),
                        Some([width(count), count, 0x201, index])
                    );
                    assert_eq!(get(&cpuid, *leaf, 2), Some([0, 0, 2, index]));
                }
            }
        }
    }
    let cpuid = guest(&amd(), 4, 0);
    assert!(
        cpuid
            .iter()
            .all(|entry| ![0x1f, 0x8000_0026].contains(&entry.function))
    );
}

#[test]
fn indexed_leaves_say_so() {
    let cpuid = guest(&intel(), 2, 0);
    for entry in cpuid
        .iter()
        .filter(|entry| [0xb, 0x1f].contains(&entry.function))
    {
        assert_eq!(entry.flags, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
    }
}

#[test]
fn feature_leaf_has_identity_count_and_what_kvm_emulates() {
    for supported in [intel(), amd()] {
        for count in COUNTS {
            let [_, ebx, ecx, edx] = get(&guest(&supported, count, count - 1), 1, 0).unwrap();
            assert_eq!((ebx >> 24, ebx >> 16 & 0xff), (count - 1, count));
            assert_eq!(
                ebx & 0xffff,
                0x0800,
                "CLFLUSH and brand index are the host's"
            );
            assert_eq!((ecx >> 31, ecx >> 21 & 1, ecx >> 24 & 1), (1, 1, 1));
            assert_eq!(ecx >> 27 & 1, 0, "OSXSAVE follows the guest's CR4");
            assert_eq!(edx >> 28 & 1, u32::from(count > 1));
        }
    }
}

#[test]
fn tsc_deadline_is_offered_only_where_kvm_has_it() {
    let template = CpuidTemplate::new(
        &intel(),
        1,
        CpuidFeatures {
            tsc_deadline: false,
        },
    )
    .unwrap();
    let [_, _, ecx, _] = get(&template.for_vcpu(0), 1, 0).unwrap();
    assert_eq!(ecx >> 24 & 1, 0);
}

#[test]
fn intel_caches_are_private_up_to_level_2_and_shared_from_level_3() {
    for count in COUNTS {
        let cpuid = guest(&intel(), count, 0);
        let ids = (1 << width(count)) - 1;
        for (index, sharing) in [(0, 0), (1, 0), (2, 0), (3, ids)] {
            let [eax, ..] = get(&cpuid, 4, index).unwrap();
            assert_eq!(eax >> 14 & 0xfff, sharing, "cache {index}, {count} vCPUs");
            assert_eq!(eax >> 26, ids.min(63));
        }
        let [eax, ..] = get(&cpuid, 4, 3).unwrap();
        assert_eq!(eax & 0x3fff, 0x163, "type, level and flags are the host's");
        assert_eq!(
            get(&cpuid, 4, 4),
            Some([0; 4]),
            "the end of the list stays the end"
        );
    }
}

#[test]
fn amd_counts_cores_in_all_its_leaves() {
    for count in COUNTS {
        let last = count - 1;
        let cpuid = guest(&amd(), count, last);
        let [_, _, ext_ecx, _] = get(&cpuid, 0x8000_0001, 0).unwrap();
        assert_eq!(ext_ecx >> 1 & 1, u32::from(count > 1), "CmpLegacy");
        assert_eq!(ext_ecx >> 22 & 1, 1, "TopologyExtensions");
        let [eax, ebx, ecx, _] = get(&cpuid, 0x8000_0008, 0).unwrap();
        assert_eq!((eax, ebx), (0x30_3030, 0x130a_d205));
        assert_eq!((ecx & 0xff, ecx >> 12 & 0xf), (last, width(count)));
        assert_eq!(ecx & !0xf0ff, 0x1_0000, "the TSC's size is the host's");
        assert_eq!(get(&cpuid, 0x8000_001e, 0), Some([last, last, 0, 0]));
        for (index, sharing) in [(0, 0), (2, 0), (3, last)] {
            let [eax, ..] = get(&cpuid, 0x8000_001d, index).unwrap();
            assert_eq!(eax >> 14 & 0xfff, sharing);
        }
    }
}

#[test]
fn intel_gets_no_amd_leaves_and_fields() {
    let cpuid = guest(&intel(), 4, 1);
    assert_eq!(
        get(&cpuid, 0x8000_0001, 0),
        Some([0, 0, 0x121, 0x2c10_0800])
    );
    assert_eq!(get(&cpuid, 0x8000_0008, 0), Some([0x3027, 0, 0, 0]));
    assert_eq!(get(&cpuid, 0x8000_001e, 0), None);
    assert_eq!(get(&cpuid, 0x8000_0000, 0).unwrap()[0], 0x8000_0008);
}

#[test]
fn kvms_own_leaves_are_kept() {
    let cpuid = guest(&intel(), 4, 1);
    assert_eq!(get(&cpuid, 0x4000_0000, 0), get(&intel(), 0x4000_0000, 0));
    assert_eq!(get(&cpuid, 0x4000_0001, 0), get(&intel(), 0x4000_0001, 0));
}

#[test]
fn an_amd_host_without_topology_extensions_gets_none() {
    let mut supported = amd();
    supported.retain(|entry| entry.function < 0x8000_001d);
    for entry in supported
        .iter_mut()
        .filter(|entry| entry.function == 0x8000_0001)
    {
        entry.ecx &= !(1 << 22);
    }
    let cpuid = guest(&supported, 4, 3);
    assert_eq!(get(&cpuid, 0x8000_001e, 0), None);
    assert_eq!(get(&cpuid, 0x8000_0008, 0).unwrap()[2] & 0xf0ff, 0x2003);
}

#[test]
fn missing_leaves_are_added_where_the_guest_needs_them() {
    let cpuid = guest(&[], 4, 3);
    let [_, ebx, ecx, edx] = get(&cpuid, 1, 0).unwrap();
    assert_eq!((ebx, ecx >> 31, edx >> 28 & 1), (0x0304_0000, 1, 1));
    assert_eq!(get(&cpuid, 6, 0), Some([4, 0, 0, 0]));
    assert_eq!(get(&cpuid, 0xb, 1), Some([2, 4, 0x201, 3]));

    // An old processor's basic leaves end before the topology leaf.
    let cpuid = guest(
        &[entry(0, 0, [0x5, 0x756e_6547, 0x6c65_746e, 0x4965_6e69])],
        2,
        0,
    );
    assert_eq!(get(&cpuid, 0, 0).unwrap()[0], 0xb);
    assert_eq!(get(&cpuid, 0x1f, 0), None);
}

#[test]
fn counts_that_apic_ids_cannot_name_are_refused() {
    for count in [0, 255, u32::MAX] {
        let error = CpuidTemplate::new(&intel(), count, DEADLINE).unwrap_err();
        assert_eq!(error, CpuidError::VcpuCount { count });
    }
}

#[test]
fn a_list_beyond_what_kvm_takes_is_refused() {
    let many: Vec<_> = (0..300).map(|index| entry(0xd, index, [0; 4])).collect();
    let error = CpuidTemplate::new(&many, 1, DEADLINE).unwrap_err();
    assert!(matches!(error, CpuidError::TooManyEntries { count } if count > 256));
}
