//! The CPUID that guests see, made of a CPU model and of what KVM offers; and what a CPUID promises, by name.
//!
//! A guest's CPUID is fixed when it boots and travels in its configuration; a target refuses a guest that was promised
//! features that it does not have. Only features that nil
//! knows by name are shown.

use super::feature::{self, Feature, Features, Register, Word};
use super::model::CpuModel;
use crate::error::{Error, Result};
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use serde::{Deserialize, Serialize};
use std::arch::x86_64::__cpuid_count;
use std::collections::BTreeMap;

/// The leaf of performance counters, which nil does not carry.
const LEAF_COUNTERS: u32 = 0xA;
/// The leaf of the extended states.
const LEAF_XSAVE: u32 = 0xD;
/// Its subleaves with a state each that is carried: AVX; AVX-512's masks, upper halves, and upper registers.
const AVX: u32 = 2;
const AVX512: std::ops::RangeInclusive<u32> = 5..=7;
/// x87 and SSE state, and the header, in an XSAVE area.
const XSAVE_LEGACY: u32 = 576;
/// Bytes of an XSAVE area that travel (`struct kvm_xsave`).
const XSAVE_MOST: u32 = 4096;

const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_FSGSBASE: u64 = 1 << 16;

/// User-mode instructions that work natively on a KVM that reports no XSAVE although it has it (PVM), in the words where it
/// leaves them out.
const NATIVE: &[&str] = &[
    "sse3",
    "pclmulqdq",
    "ssse3",
    "fma",
    "cx16",
    "sse4.1",
    "sse4.2",
    "movbe",
    "popcnt",
    "aes",
    "xsave",
    "avx",
    "f16c",
    "rdrand",
    "fsgsbase",
    "bmi1",
    "avx2",
    "bmi2",
    "erms",
    "avx512f",
    "avx512dq",
    "rdseed",
    "adx",
    "clflushopt",
    "clwb",
    "avx512cd",
    "sha-ni",
    "avx512bw",
    "avx512vl",
    "xsaveopt",
    "lzcnt",
];

/// A state that XSAVE saves: where it lies in the area, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct XsaveState {
    /// The bit of XCR0 that stands for it.
    pub bit: u32,
    /// Where it begins.
    pub offset: u32,
    /// How long it is.
    pub bytes: u32,
}

/// What a guest can turn on of what nil has turned on for it at its entry point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Controls {
    /// The states that it starts with in XCR0: all that it may have.
    pub(crate) xcr0: u64,
    /// The bits of CR4 that it may set.
    pub(crate) cr4: u64,
}

/// What a CPUID promises.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Promise {
    /// The features that have names.
    pub(crate) features: Features,
    /// Bits beside them, in words: only guests that another version of nil has started have any.
    pub(crate) unnamed: Vec<String>,
    /// The states that XSAVE saves beyond x87 and SSE.
    pub(crate) xsave: Vec<XsaveState>,
    /// The vendor, as leaf 0 spells it.
    pub(crate) vendor: String,
}

/// The CPUID of a guest that is given all that this host has.
pub(crate) fn of_host(supported: &CpuId) -> Result<CpuId> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported.as_slice().to_vec();
    let reports_xsave = read(&entries).features.iter().any(|feature| feature.name() == "xsave");
    if !reports_xsave {
        add_native_features(&mut entries);
    }
    let mut features = read(&entries).features;
    drop_what_cannot_travel(&entries, &mut features);
    table(&show(entries, &features))
}

/// The CPUID of a guest of this model, on a host with the CPUID `host`.
///
/// # Errors
/// [`Error::ModelNotOffered`] names what the host lacks.
pub(crate) fn of_model(model: &CpuModel, host: &CpuId) -> Result<CpuId> {
    let offered = read(host.as_slice()).features;
    let missing = model.missing_from(&offered);
    if !missing.is_empty() {
        return Err(Error::ModelNotOffered { model: model.name().clone(), missing });
    }
    let features = model.features().intersection(&offered).copied().collect();
    table(&show(host.as_slice().to_vec(), &features))
}

/// The CPUID of a guest that is shown no feature.
pub(crate) fn of_nothing(host: &CpuId) -> Result<CpuId> {
    table(&show(host.as_slice().to_vec(), &Features::new()))
}

/// The guest's CPUID as vCPU `index` sees it: with its own initial APIC id.
pub(crate) fn for_vcpu(guest: &CpuId, index: u32) -> Result<CpuId> {
    let mut entries = guest.as_slice().to_vec();
    for entry in &mut entries {
        match entry.function {
            1 => entry.ebx = (entry.ebx & 0x00FF_FFFF) | (index << 24),
            0xB | 0x1F => entry.edx = index,
            _ => {}
        }
    }
    table(&entries)
}

/// What a guest of this CPUID may rely on.
pub(crate) fn read(entries: &[kvm_cpuid_entry2]) -> Promise {
    let mut promise = Promise { vendor: vendor(entries), xsave: states(entries), ..Promise::default() };
    promise.features = Feature::all().filter(|&it| value(entries, it.word()) & it.mask() != 0).collect();
    for word in feature::words() {
        let (none, by_itself) = feature::no_features(word);
        let unnamed = value(entries, word) & !(named(word) | none | by_itself);
        promise.unnamed.extend((0..32).filter(|bit| unnamed & (1 << bit) != 0).map(|bit| format!("{word} bit {bit}")));
    }
    promise
}

impl Controls {
    /// What a guest of this CPUID may turn on.
    pub(crate) fn of(guest: &CpuId) -> Self {
        let entries = guest.as_slice();
        let features = read(entries).features;
        let without = |name: &str, bit| if features.iter().any(|it| it.name() == name) { 0 } else { bit };
        let states = find(entries, LEAF_XSAVE, 0).map_or(0, |entry| u64::from(entry.eax));
        Self { xcr0: states | 1, cr4: !(without("xsave", CR4_OSXSAVE) | without("fsgsbase", CR4_FSGSBASE)) }
    }
}

fn table(entries: &[kvm_cpuid_entry2]) -> Result<CpuId> {
    CpuId::from_entries(entries).map_err(|_| Error::CpuidTooLong { entries: entries.len() })
}

fn add_native_features(entries: &mut Vec<kvm_cpuid_entry2>) {
    let native: Vec<Feature> = Feature::all().filter(|feature| NATIVE.contains(&feature.name())).collect();
    for feature in native {
        let Word { function, index, register } = feature.word();
        let here = __cpuid_count(function, index);
        let has = [here.eax, here.ebx, here.ecx, here.edx][register as usize] & feature.mask() != 0;
        if let (true, Some(entry)) = (has, find_mut(entries, function, index)) {
            *of_entry_mut(entry, register) |= feature.mask();
        }
    }
    entries.retain(|entry| entry.function != LEAF_XSAVE);
    for index in [0, 1, AVX].into_iter().chain(AVX512) {
        let here = __cpuid_count(LEAF_XSAVE, index);
        entries.push(kvm_cpuid_entry2 {
            function: LEAF_XSAVE,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: here.eax,
            ebx: here.ebx,
            ecx: here.ecx,
            edx: here.edx,
            padding: [0; 3],
        });
    }
}

/// Takes from `features` those whose state KVM does not save, or not within what travels.
fn drop_what_cannot_travel(entries: &[kvm_cpuid_entry2], features: &mut Features) {
    let carried: BTreeMap<u32, XsaveState> = states(entries)
        .into_iter()
        .filter(|it| it.offset.saturating_add(it.bytes) <= XSAVE_MOST)
        .map(|it| (it.bit, it))
        .collect();
    let needs_avx512 = |feature: &Feature| feature.name().starts_with("avx512");
    let needs_avx = |feature: &Feature| {
        matches!(feature.name(), "fma" | "f16c" | "xop" | "fma4" | "vaes" | "vpclmulqdq")
            || feature.name().starts_with("avx")
    };
    if !carried.contains_key(&AVX) {
        features.retain(|feature| !needs_avx(feature));
    }
    if !AVX512.into_iter().all(|state| carried.contains_key(&state)) {
        features.retain(|feature| !needs_avx512(feature));
    }
}

/// The same CPUID with these features alone, and with the states that belong to them.
fn show(mut entries: Vec<kvm_cpuid_entry2>, features: &Features) -> Vec<kvm_cpuid_entry2> {
    for word in feature::words() {
        let (none, _) = feature::no_features(word);
        let shown = features.iter().filter(|it| it.word() == word).fold(none, |mask, it| mask | it.mask());
        if let Some(entry) = find_mut(&mut entries, word.function, word.index) {
            *of_entry_mut(entry, word.register) &= shown;
        }
    }
    let has = |name: &str| features.iter().any(|feature| feature.name() == name);
    let (xsave, avx, avx512) = (has("xsave"), has("avx"), has("avx512f"));
    let is_shown = |state: u32| xsave && (state == AVX && avx || AVX512.contains(&state) && avx512);
    let states: Vec<XsaveState> = states(&entries).into_iter().filter(|state| is_shown(state.bit)).collect();
    let bytes = states.iter().map(|state| state.offset + state.bytes).max().unwrap_or(0).max(XSAVE_LEGACY);
    for entry in &mut entries {
        match (entry.function, entry.index) {
            (LEAF_COUNTERS, _) => clear(entry),
            (LEAF_XSAVE, 0) if xsave => {
                let xcr0 = states.iter().fold(0b11, |bits, state| bits | 1 << state.bit);
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (xcr0, bytes, bytes, 0);
            }
            // XSAVEOPT only: no compaction, no supervisor states.
            (LEAF_XSAVE, 1) => (entry.ebx, entry.ecx, entry.edx) = (0, 0, 0),
            (LEAF_XSAVE, state) if state != 0 && is_shown(state) => (entry.ecx, entry.edx) = (0, 0),
            (LEAF_XSAVE, _) => clear(entry),
            _ => {}
        }
    }
    entries
}

fn clear(entry: &mut kvm_cpuid_entry2) {
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
}

/// The states of leaf 0xD that XCR0 can turn on, beyond x87 and SSE.
fn states(entries: &[kvm_cpuid_entry2]) -> Vec<XsaveState> {
    let supported = find(entries, LEAF_XSAVE, 0).map_or(0, |entry| entry.eax);
    let state = |bit: u32| {
        let entry = find(entries, LEAF_XSAVE, bit)?;
        Some(XsaveState { bit, offset: entry.ebx, bytes: entry.eax })
    };
    (2..32).filter(|bit| supported & (1 << bit) != 0).filter_map(state).collect()
}

/// Twelve characters in EBX, EDX and ECX of leaf 0.
fn vendor(entries: &[kvm_cpuid_entry2]) -> String {
    let Some(entry) = find(entries, 0, 0) else { return String::new() };
    let bytes = [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes);
    bytes.as_flattened().iter().map(|&byte| char::from(byte)).filter(char::is_ascii_graphic).collect()
}

fn named(word: Word) -> u32 {
    Feature::all().filter(|feature| feature.word() == word).fold(0, |mask, feature| mask | feature.mask())
}

fn value(entries: &[kvm_cpuid_entry2], Word { function, index, register }: Word) -> u32 {
    find(entries, function, index).map_or(0, |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx][register as usize])
}

fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
    entries.iter().find(|entry| entry.function == function && entry.index == index)
}

fn find_mut(entries: &mut [kvm_cpuid_entry2], function: u32, index: u32) -> Option<&mut kvm_cpuid_entry2> {
    entries.iter_mut().find(|entry| entry.function == function && entry.index == index)
}

fn of_entry_mut(entry: &mut kvm_cpuid_entry2, register: Register) -> &mut u32 {
    match register {
        Register::Eax => &mut entry.eax,
        Register::Ebx => &mut entry.ebx,
        Register::Ecx => &mut entry.ecx,
        Register::Edx => &mut entry.edx,
    }
}
