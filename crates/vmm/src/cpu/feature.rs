//! CPU features by name, and where CPUID shows each.
//!
//! What has no name here is hidden from guests: either nil does not carry the state that belongs to it (AMX, PKU, MPX,
//! performance counters), or it tells of the machine and not of what a program may do. Names are those of `/proc/cpuinfo`
//! and QEMU where these agree; places are those of the Intel SDM (volume 2, CPUID), the AMD APM (volume 3, appendix E) and
//! Linux' `Documentation/virt/kvm/x86/cpuid.rst`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// One of CPUID's four result registers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A word of CPUID that holds features.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Word {
    pub(crate) function: u32,
    pub(crate) index: u32,
    pub(crate) register: Register,
}

/// Where a feature belongs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Rank {
    /// Instructions of x86-64-v1, -v2, -v3 or -v4 (System V psABI for x86-64, section 3.1.1).
    Level(u8),
    /// Instructions of no level: a guest that is to have them names them, or takes its host's.
    Beyond,
    /// What the machine has rather than the instruction set, most of it made by KVM. Guests of every model have it where
    /// their host has it.
    Platform,
}

struct Entry {
    name: &'static str,
    word: Word,
    bit: u32,
    rank: Rank,
}

use Rank::{Beyond as B, Level, Platform as P};
use Register::{Eax, Ebx, Ecx, Edx};

const V1: Rank = Level(1);
const V2: Rank = Level(2);
const V3: Rank = Level(3);
const V4: Rank = Level(4);

type Row = (u32, &'static str, Rank);

/// Every word of CPUID with features, and the features in it. In the order of CPUID.
#[rustfmt::skip]
const WORDS: &[(u32, u32, Register, &[Row])] = &[
    (0x1, 0, Ecx, &[
        (0, "sse3", V2), (1, "pclmulqdq", B), (9, "ssse3", V2), (12, "fma", V3), (13, "cx16", V2), (17, "pcid", B),
        (19, "sse4.1", V2), (20, "sse4.2", V2), (21, "x2apic", P), (22, "movbe", V3), (23, "popcnt", V2),
        (24, "tsc-deadline", P), (25, "aes", B), (26, "xsave", V3), (28, "avx", V3), (29, "f16c", V3), (30, "rdrand", B),
        (31, "hypervisor", P),
    ]),
    (0x1, 0, Edx, &[
        (0, "fpu", V1), (1, "vme", P), (2, "de", P), (3, "pse", P), (4, "tsc", P), (5, "msr", P), (6, "pae", P),
        (7, "mce", P), (8, "cx8", V1), (9, "apic", P), (11, "sep", P), (12, "mtrr", P), (13, "pge", P), (14, "mca", P),
        (15, "cmov", V1), (16, "pat", P), (17, "pse36", P), (19, "clflush", P), (23, "mmx", V1), (24, "fxsr", V1),
        (25, "sse", V1), (26, "sse2", V1), (27, "ss", P),
    ]),
    (0x6, 0, Eax, &[(2, "arat", P)]),
    (0x7, 0, Ebx, &[
        (0, "fsgsbase", B), (1, "tsc-adjust", P), (3, "bmi1", V3), (4, "hle", B), (5, "avx2", V3),
        (6, "fdp-excptn-only", P), (7, "smep", P), (8, "bmi2", V3), (9, "erms", B), (10, "invpcid", B), (11, "rtm", B),
        (13, "zero-fcs-fds", P), (16, "avx512f", V4), (17, "avx512dq", V4), (18, "rdseed", B), (19, "adx", B),
        (20, "smap", P), (21, "avx512ifma", B), (23, "clflushopt", B), (24, "clwb", B), (28, "avx512cd", V4),
        (29, "sha-ni", B), (30, "avx512bw", V4), (31, "avx512vl", V4),
    ]),
    (0x7, 0, Ecx, &[
        (1, "avx512vbmi", B), (2, "umip", P), (6, "avx512-vbmi2", B), (8, "gfni", B), (9, "vaes", B),
        (10, "vpclmulqdq", B), (11, "avx512-vnni", B), (12, "avx512-bitalg", B), (14, "avx512-vpopcntdq", B),
        (16, "la57", P), (22, "rdpid", B), (25, "cldemote", B), (27, "movdiri", B), (28, "movdir64b", B),
    ]),
    (0x7, 0, Edx, &[
        (4, "fsrm", B), (8, "avx512-vp2intersect", B), (10, "md-clear", P), (14, "serialize", B), (16, "tsxldtrk", B),
        (23, "avx512-fp16", B), (26, "spec-ctrl", P), (27, "stibp", P), (28, "flush-l1d", P),
        (29, "arch-capabilities", P), (31, "ssbd", P),
    ]),
    (0x7, 1, Eax, &[
        (4, "avx-vnni", B), (5, "avx512-bf16", B), (7, "cmpccxadd", B), (10, "fzrm", B), (11, "fsrs", B), (12, "fsrc", B),
        (23, "avx-ifma", B),
    ]),
    (0x7, 1, Edx, &[(4, "avx-vnni-int8", B), (5, "avx-ne-convert", B), (14, "prefetchiti", B)]),
    (0x7, 2, Edx, &[
        (0, "psfd", P), (1, "ipred-ctrl", P), (2, "rrsba-ctrl", P), (3, "ddpd-u", P), (4, "bhi-ctrl", P), (5, "mcdt-no", P),
    ]),
    (0xD, 1, Eax, &[(0, "xsaveopt", B)]),
    (0x4000_0001, 0, Eax, &[
        (0, "kvmclock", P), (1, "kvm-nopiodelay", P), (3, "kvmclock2", P), (4, "kvm-asyncpf", P), (5, "kvm-steal-time", P),
        (6, "kvm-pv-eoi", P), (7, "kvm-pv-unhalt", P), (9, "kvm-pv-tlb-flush", P), (10, "kvm-asyncpf-vmexit", P),
        (11, "kvm-pv-ipi", P), (12, "kvm-poll-control", P), (13, "kvm-pv-sched-yield", P), (14, "kvm-asyncpf-int", P),
        (15, "kvm-msi-ext-dest-id", P), (16, "kvm-hc-map-gpa-range", P), (17, "kvm-migration-control", P),
        (24, "kvmclock-stable", P),
    ]),
    (0x8000_0001, 0, Ecx, &[
        (0, "lahf-lm", V2), (4, "cr8-legacy", P), (5, "lzcnt", V3), (6, "sse4a", B), (7, "misalignsse", B),
        (8, "3dnowprefetch", B), (11, "xop", B), (16, "fma4", B), (21, "tbm", B),
    ]),
    (0x8000_0001, 0, Edx, &[
        (11, "syscall", V1), (20, "nx", P), (22, "mmxext", B), (25, "fxsr-opt", B), (26, "pdpe1gb", P), (27, "rdtscp", P),
        (29, "lm", V1),
    ]),
    (0x8000_0007, 0, Edx, &[(8, "invtsc", P)]),
    (0x8000_0008, 0, Ebx, &[
        (0, "clzero", B), (2, "xsaveerptr", P), (9, "wbnoinvd", B), (12, "amd-ibpb", P), (14, "amd-ibrs", P),
        (15, "amd-stibp", P), (24, "amd-ssbd", P), (25, "virt-ssbd", P), (28, "amd-psfd", P), (29, "btc-no", P),
        (30, "ibpb-ret", P),
    ]),
    (0x8000_0021, 0, Eax, &[
        (0, "no-nested-data-bp", P), (2, "lfence-always-serializing", P), (6, "null-sel-clr-base", P), (8, "auto-ibrs", P),
    ]),
];

const COUNT: usize = {
    let (mut count, mut word) = (0, 0);
    while word < WORDS.len() {
        count += WORDS[word].3.len();
        word += 1;
    }
    count
};

/// All features, in the order of [`WORDS`].
static FEATURES: [Entry; COUNT] = {
    const NONE: Entry = Entry { name: "", word: Word { function: 0, index: 0, register: Eax }, bit: 0, rank: P };
    let mut all = [NONE; COUNT];
    let (mut next, mut word) = (0, 0);
    while word < WORDS.len() {
        let (function, index, register, rows) = WORDS[word];
        let mut row = 0;
        while row < rows.len() {
            let (bit, name, rank) = rows[row];
            all[next] = Entry { name, word: Word { function, index, register }, bit, rank };
            next += 1;
            row += 1;
        }
        word += 1;
    }
    all
};

/// Words of which a part is no feature; these bits are left as KVM gives them: in leaf 0x8000_0001 EDX, AMD's copy of leaf
/// 1 EDX.
const NO_FEATURES: &[(Word, u32)] = &[(Word { function: 0x8000_0001, index: 0, register: Edx }, 0x0183_F3FF)];

/// Set and cleared by the CPU itself, as the guest turns XSAVE on and off: OSXSAVE, OSPKE.
const BY_ITSELF: &[(Word, u32)] = &[
    (Word { function: 0x1, index: 0, register: Ecx }, 1 << 27),
    (Word { function: 0x7, index: 0, register: Ecx }, 1 << 4),
];

/// A CPU feature that nil knows by name. Ordered as CPUID tells of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Feature(u16);

/// A set of features.
pub type Features = BTreeSet<Feature>;

/// Nobody has told nil of such a feature.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no CPU feature named {0:?} that nil knows; `nil cpu show` lists those of this host")]
pub struct UnknownFeature(String);

impl Feature {
    /// Every feature, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..).map(Self).take(COUNT)
    }

    fn entry(self) -> &'static Entry {
        &FEATURES[usize::from(self.0)]
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    pub(crate) fn word(self) -> Word {
        self.entry().word
    }

    pub(crate) fn mask(self) -> u32 {
        1 << self.entry().bit
    }

    pub(crate) fn rank(self) -> Rank {
        self.entry().rank
    }
}

/// Every word with features in it.
pub(crate) fn words() -> impl Iterator<Item = Word> {
    WORDS.iter().map(|&(function, index, register, _)| Word { function, index, register })
}

/// The bits of a word that are no features, and those that come and go by themselves.
pub(crate) fn no_features(word: Word) -> (u32, u32) {
    let bits = |table: &[(Word, u32)]| table.iter().find(|(of, _)| *of == word).map_or(0, |(_, bits)| *bits);
    (bits(NO_FEATURES), bits(BY_ITSELF))
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Debug for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Feature {
    type Err = UnknownFeature;

    fn from_str(name: &str) -> Result<Self, UnknownFeature> {
        Self::all()
            .find(|feature| feature.name() == name)
            .ok_or_else(|| UnknownFeature(name.chars().take(64).collect()))
    }
}

impl From<Feature> for String {
    fn from(feature: Feature) -> Self {
        feature.name().to_owned()
    }
}

impl TryFrom<String> for Feature {
    type Error = UnknownFeature;

    fn try_from(name: String) -> Result<Self, UnknownFeature> {
        name.parse()
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let register = match self.register {
            Eax => "EAX",
            Ebx => "EBX",
            Ecx => "ECX",
            Edx => "EDX",
        };
        write!(f, "CPUID {:#x}.{} {register}", self.function, self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_and_every_bit_stands_for_one_feature() {
        let names: BTreeSet<&str> = Feature::all().map(Feature::name).collect();
        let places: BTreeSet<(Word, u32)> = Feature::all().map(|feature| (feature.word(), feature.mask())).collect();
        assert_eq!((names.len(), places.len()), (COUNT, COUNT));
    }

    #[test]
    fn features_are_ordered_as_cpuid_tells_of_them() {
        let places: Vec<(Word, u32)> = Feature::all().map(|feature| (feature.word(), feature.mask())).collect();
        assert!(places.is_sorted());
    }

    #[test]
    fn no_feature_is_a_bit_that_is_none() {
        for feature in Feature::all() {
            let (none, by_itself) = no_features(feature.word());
            assert_eq!(feature.mask() & (none | by_itself), 0, "{feature}");
        }
    }

    #[test]
    fn a_feature_is_found_by_its_name_and_an_unknown_name_is_told() {
        assert!(Feature::all().all(|feature| feature.name().parse() == Ok(feature)));
        let error = "avx3".parse::<Feature>().expect_err("there is none");
        assert!(error.to_string().contains("\"avx3\""), "{error}");
    }
}
