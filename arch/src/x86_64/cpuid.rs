//! CPUID as the guest sees it: what KVM supports, with a topology of one socket and one thread to a
//! core.
//!
//! Intel SDM volume 2, "CPUID"; AMD APM volume 3, appendix E. The APIC id of a vCPU is its index,
//! so the ids of a package are dense, and both vendors' ways of counting cores come to the same
//! result.
//!
//! All vCPUs share one list but for a handful of registers: [`CpuidTemplate`] makes the list once
//! and notes where they are.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};

/// The most vCPUs that the topology can name: APIC ids are bytes here, and 255 is the broadcast
/// address.
pub const MAX_VCPUS: u32 = 254;

const VENDOR: u32 = 0x0;
const FEATURES: u32 = 0x1;
const CACHES: u32 = 0x4;
const POWER: u32 = 0x6;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const EXT_RANGE: u32 = 0x8000_0000;
const EXT_FEATURES: u32 = 0x8000_0001;
const EXT_SIZES: u32 = 0x8000_0008;
const EXT_CACHES: u32 = 0x8000_001d;
const EXT_TOPOLOGY: u32 = 0x8000_001e;
const EXT_TOPOLOGY_V2: u32 = 0x8000_0026;

const FEATURES_ECX_X2APIC: u32 = 1 << 21;
const FEATURES_ECX_TSC_DEADLINE: u32 = 1 << 24;
const FEATURES_ECX_OSXSAVE: u32 = 1 << 27;
const FEATURES_ECX_HYPERVISOR: u32 = 1 << 31;
const FEATURES_EDX_CLFLUSH: u32 = 1 << 19;
const FEATURES_EDX_HTT: u32 = 1 << 28;
const POWER_EAX_ARAT: u32 = 1 << 2;
const EXT_FEATURES_ECX_CMP_LEGACY: u32 = 1 << 1;
const EXT_FEATURES_ECX_TOPOLOGY: u32 = 1 << 22;

const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// Why CPUID could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuidError {
    /// The number of vCPUs is 0 or beyond what APIC ids can name.
    #[error("{count} vCPUs are not between 1 and {max}", max = MAX_VCPUS)]
    VcpuCount {
        /// How many vCPUs were asked for.
        count: u32,
    },
    /// The list is longer than `KVM_SET_CPUID2` takes.
    #[error("CPUID has {count} entries, and KVM takes {max}", max = KVM_MAX_CPUID_ENTRIES)]
    TooManyEntries {
        /// How many entries there are.
        count: usize,
    },
}

/// What KVM has that `KVM_GET_SUPPORTED_CPUID` does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidFeatures {
    /// The local APIC's timer has the TSC deadline mode, `KVM_CAP_TSC_DEADLINE_TIMER`.
    pub tsc_deadline: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vendor {
    Intel,
    /// AMD, and Hygon, whose processors are AMD's.
    Amd,
    Other,
}

/// How an entry tells a vCPU which one it is.
#[derive(Clone, Copy, Debug)]
enum Identity {
    /// The APIC id in the highest byte of EBX.
    Legacy,
    /// The x2APIC id in EDX.
    X2Apic,
    /// The APIC id in EAX, the core id in the lowest byte of EBX.
    Amd,
}

/// CPUID of all vCPUs of a VM.
#[derive(Clone, Debug)]
pub struct CpuidTemplate {
    entries: Vec<kvm_cpuid_entry2>,
    identities: Vec<(usize, Identity)>,
}

impl CpuidTemplate {
    /// Makes CPUID for `count` vCPUs from what KVM supports (`KVM_GET_SUPPORTED_CPUID`).
    ///
    /// The vendor and the features stay the host's. Leaves that KVM left out are added where the
    /// topology needs them. Refuses a count that APIC ids cannot name, and a list beyond what KVM
    /// takes.
    pub fn new(
        supported: &[kvm_cpuid_entry2],
        count: u32,
        features: CpuidFeatures,
    ) -> Result<Self, CpuidError> {
        if !(1..=MAX_VCPUS).contains(&count) {
            return Err(CpuidError::VcpuCount { count });
        }
        let builder = Builder::new(supported, count, features);
        let entries = builder.build(supported);
        if entries.len() > KVM_MAX_CPUID_ENTRIES {
            return Err(CpuidError::TooManyEntries {
                count: entries.len(),
            });
        }
        let identities = entries
            .iter()
            .enumerate()
            .filter_map(|(position, entry)| {
                let identity = match entry.function {
                    FEATURES => Identity::Legacy,
                    TOPOLOGY | TOPOLOGY_V2 => Identity::X2Apic,
                    EXT_TOPOLOGY => Identity::Amd,
                    _ => return None,
                };
                Some((position, identity))
            })
            .collect();
        Ok(Self {
            entries,
            identities,
        })
    }

    /// CPUID of the vCPU `index`, for `KVM_SET_CPUID2`. `index` is below the count that the
    /// template was made for.
    pub fn for_vcpu(&self, index: u32) -> Vec<kvm_cpuid_entry2> {
        let mut entries = self.entries.clone();
        for (position, identity) in &self.identities {
            let entry = &mut entries[*position];
            match identity {
                Identity::Legacy => entry.ebx = with_bits(entry.ebx, 24, 8, index),
                Identity::X2Apic => entry.edx = index,
                Identity::Amd => {
                    entry.eax = index;
                    entry.ebx = with_bits(entry.ebx, 0, 8, index);
                }
            }
        }
        entries
    }
}

/// What decides how a leaf is changed.
struct Builder {
    vendor: Vendor,
    count: u32,
    /// The bits of an APIC id that name a core in the package.
    id_bits: u32,
    features: CpuidFeatures,
    has_topology_v2: bool,
    has_ext_topology: bool,
}

impl Builder {
    fn new(supported: &[kvm_cpuid_entry2], count: u32, features: CpuidFeatures) -> Self {
        let find = |function| supported.iter().find(|entry| entry.function == function);
        let vendor = find(VENDOR).map_or(Vendor::Other, vendor);
        Self {
            vendor,
            count,
            id_bits: count.next_power_of_two().trailing_zeros(),
            features,
            has_topology_v2: vendor == Vendor::Intel
                && find(VENDOR).is_some_and(|entry| entry.eax >= TOPOLOGY_V2),
            has_ext_topology: vendor == Vendor::Amd
                && find(EXT_FEATURES)
                    .is_some_and(|entry| entry.ecx & EXT_FEATURES_ECX_TOPOLOGY != 0),
        }
    }

    /// One pass over what KVM supports, then the leaves that are ours alone.
    fn build(&self, supported: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
        let mut entries = Vec::with_capacity(supported.len() + 10);
        let (mut has_features, mut has_power) = (false, false);
        for entry in supported {
            let mut entry = *entry;
            match entry.function {
                VENDOR => entry.eax = entry.eax.max(TOPOLOGY),
                FEATURES => {
                    self.features(&mut entry);
                    has_features = true;
                }
                CACHES => self.caches(&mut entry),
                POWER => {
                    entry.eax |= POWER_EAX_ARAT;
                    has_power = true;
                }
                EXT_RANGE if self.has_ext_topology => entry.eax = entry.eax.max(EXT_TOPOLOGY),
                EXT_FEATURES => self.ext_features(&mut entry),
                EXT_SIZES => self.ext_sizes(&mut entry),
                EXT_CACHES => self.ext_caches(&mut entry),
                // Made anew below, or about the host's topology and not the guest's.
                TOPOLOGY | TOPOLOGY_V2 | EXT_TOPOLOGY | EXT_TOPOLOGY_V2 => continue,
                _ => {}
            }
            entries.push(entry);
        }
        if !has_features {
            let mut entry = kvm_cpuid_entry2 {
                function: FEATURES,
                ..Default::default()
            };
            self.features(&mut entry);
            entries.push(entry);
        }
        if !has_power {
            // Without ARAT Linux takes the local APIC's timer for one that stops, and there is no
            // other to replace it.
            entries.push(kvm_cpuid_entry2 {
                function: POWER,
                eax: POWER_EAX_ARAT,
                ..Default::default()
            });
        }
        self.topology(&mut entries, TOPOLOGY);
        if self.has_topology_v2 {
            self.topology(&mut entries, TOPOLOGY_V2);
        }
        if self.has_ext_topology {
            // One thread to a core, one node to the processor: both fields hold the number less
            // one.
            entries.push(kvm_cpuid_entry2 {
                function: EXT_TOPOLOGY,
                ..Default::default()
            });
        }
        entries
    }

    fn features(&self, entry: &mut kvm_cpuid_entry2) {
        entry.ebx = with_bits(entry.ebx, 16, 8, self.count);
        if entry.ebx >> 8 & 0xff == 0 && entry.edx & FEATURES_EDX_CLFLUSH != 0 {
            // In units of 8 bytes: lines of 64 bytes.
            entry.ebx = with_bits(entry.ebx, 8, 8, 8);
        }
        entry.ecx |= FEATURES_ECX_HYPERVISOR | FEATURES_ECX_X2APIC;
        // KVM sets it by the guest's CR4.
        entry.ecx &= !FEATURES_ECX_OSXSAVE;
        entry.ecx = with_flag(
            entry.ecx,
            FEATURES_ECX_TSC_DEADLINE,
            self.features.tsc_deadline,
        );
        entry.edx = with_flag(entry.edx, FEATURES_EDX_HTT, self.count > 1);
    }

    /// Intel: who shares a cache, as the number of APIC ids less one.
    fn caches(&self, entry: &mut kvm_cpuid_entry2) {
        let (kind, level) = (entry.eax & 0x1f, entry.eax >> 5 & 0x7);
        if kind == 0 {
            return;
        }
        let all = (1 << self.id_bits) - 1;
        entry.eax = with_bits(entry.eax, 14, 12, if level >= 3 { all } else { 0 });
        // The manual's field ends at 63; more cores than that are told by the topology leaves.
        entry.eax = with_bits(entry.eax, 26, 6, all.min(63));
    }

    fn topology(&self, entries: &mut Vec<kvm_cpuid_entry2>, function: u32) {
        let mut level = |index, kind: u32, shift, vcpus| {
            entries.push(kvm_cpuid_entry2 {
                function,
                index,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax: shift,
                ebx: vcpus,
                ecx: kind << 8 | index,
                ..Default::default()
            });
        };
        level(0, LEVEL_THREAD, 0, 1);
        level(1, LEVEL_CORE, self.id_bits, self.count);
        level(2, 0, 0, 0);
    }

    fn ext_features(&self, entry: &mut kvm_cpuid_entry2) {
        if self.vendor == Vendor::Amd {
            entry.ecx = with_flag(entry.ecx, EXT_FEATURES_ECX_CMP_LEGACY, self.count > 1);
        }
    }

    /// AMD: how many vCPUs there are, less one, and how many bits of the APIC id name them.
    fn ext_sizes(&self, entry: &mut kvm_cpuid_entry2) {
        if self.vendor == Vendor::Amd {
            entry.ecx = with_bits(entry.ecx, 0, 8, self.count - 1);
            entry.ecx = with_bits(entry.ecx, 12, 4, self.id_bits);
        }
    }

    /// AMD: who shares a cache, as the number of vCPUs less one.
    fn ext_caches(&self, entry: &mut kvm_cpuid_entry2) {
        let (kind, level) = (entry.eax & 0x1f, entry.eax >> 5 & 0x7);
        if kind != 0 {
            let sharing = if level >= 3 { self.count - 1 } else { 0 };
            entry.eax = with_bits(entry.eax, 14, 12, sharing);
        }
    }
}

fn vendor(entry: &kvm_cpuid_entry2) -> Vendor {
    let mut name = [0; 12];
    for (bytes, register) in name.chunks_mut(4).zip([entry.ebx, entry.edx, entry.ecx]) {
        bytes.copy_from_slice(&register.to_le_bytes());
    }
    match &name {
        b"GenuineIntel" => Vendor::Intel,
        b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
        _ => Vendor::Other,
    }
}

/// `register` with the `width` bits from `shift` on set to the low bits of `value`.
fn with_bits(register: u32, shift: u32, width: u32, value: u32) -> u32 {
    let mask = ((1 << width) - 1) << shift;
    register & !mask | value << shift & mask
}

fn with_flag(register: u32, flag: u32, set: bool) -> u32 {
    if set {
        register | flag
    } else {
        register & !flag
    }
}

#[cfg(test)]
mod tests;
