//! The CPUID that guests see, and whether this host can run a guest that was promised another host's CPUID.
//!
//! A guest's CPUID is fixed when it boots and travels in its configuration; a target refuses a guest that was promised
//! features that it does not have. (Named CPU models across a cluster come with the fabric.)

use crate::error::{Error, Result};
use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use std::arch::x86_64::{__cpuid, __cpuid_count};

/// CPUID.1:ECX bits of user-mode instructions: SSE3, PCLMULQDQ, SSSE3, FMA, CX16, SSE4.1, SSE4.2, MOVBE, POPCNT, AES,
/// XSAVE, OSXSAVE excluded, AVX, F16C, RDRAND.
const LEAF1_ECX_USER: u32 = 1
    | 1 << 1
    | 1 << 9
    | 1 << 12
    | 1 << 13
    | 1 << 19
    | 1 << 20
    | 1 << 22
    | 1 << 23
    | 1 << 25
    | 1 << 26
    | 1 << 28
    | 1 << 29
    | 1 << 30;
/// CPUID.7.0:EBX bits of user-mode instructions: FSGSBASE, BMI1, AVX2, BMI2, ERMS, RDSEED, ADX, CLFLUSHOPT, CLWB, SHA.
const LEAF7_EBX_USER: u32 = 1 | 1 << 3 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 18 | 1 << 19 | 1 << 23 | 1 << 24 | 1 << 29;
const ECX1_XSAVE: u32 = 1 << 26;

/// XCR0 that a guest starts with: x87, SSE and AVX state.
pub(crate) const XCR0: u64 = 0b111;
/// Bytes of an XSAVE area with x87, SSE and AVX state in the standard format.
const XSAVE_BYTES: u32 = 576 + 256;

/// The CPUID that a guest booted on this host sees.
///
/// Normally what KVM supports, limited to the extended states of [`XCR0`]. A KVM that runs user-mode guest code natively
/// but reports no XSAVE (PVM) gets the user-mode features of the CPU beneath added.
pub(crate) fn for_guests(supported: &CpuId) -> Result<CpuId> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported.as_slice().to_vec();
    let reports_xsave = entries.iter().any(|entry| entry.function == 1 && entry.ecx & ECX1_XSAVE != 0);
    let host_has_xsave = __cpuid(1).ecx & ECX1_XSAVE != 0;
    if !reports_xsave && host_has_xsave {
        add_user_mode_features(&mut entries);
    }
    for entry in entries.iter_mut().filter(|entry| entry.function == 0xD) {
        limit_extended_states(entry);
    }
    CpuId::from_entries(&entries).map_err(|_| Error::CpuidTooLong { entries: entries.len() })
}

fn add_user_mode_features(entries: &mut Vec<kvm_cpuid_entry2>) {
    for entry in entries.iter_mut() {
        match (entry.function, entry.index) {
            (1, _) => entry.ecx |= __cpuid(1).ecx & LEAF1_ECX_USER,
            (7, 0) => entry.ebx |= __cpuid_count(7, 0).ebx & LEAF7_EBX_USER,
            _ => {}
        }
    }
    entries.retain(|entry| entry.function != 0xD);
    for index in 0..3 {
        let host = __cpuid_count(0xD, index);
        entries.push(kvm_cpuid_entry2 {
            function: 0xD,
            index,
            flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: host.eax,
            ebx: host.ebx,
            ecx: host.ecx,
            edx: host.edx,
            padding: [0; 3],
        });
    }
}

/// Hides every extended state beyond [`XCR0`] from leaf 0xD.
fn limit_extended_states(entry: &mut kvm_cpuid_entry2) {
    match entry.index {
        0 => {
            entry.eax &= 0b111;
            entry.edx = 0;
            entry.ebx = entry.ebx.min(XSAVE_BYTES);
            entry.ecx = entry.ecx.min(XSAVE_BYTES);
        }
        // XSAVEOPT only: no compaction, no supervisor states.
        1 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (entry.eax & 1, 0, 0, 0),
        2 => {}
        _ => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
    }
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
    CpuId::from_entries(&entries).map_err(|_| Error::CpuidTooLong { entries: entries.len() })
}

/// Picks one of an entry's four registers.
type Register = fn(&kvm_cpuid_entry2) -> u32;

/// Every feature bit that `guest` was promised and that `host` lacks, as "leaf 0x7.0 EBX bit 5". Empty: it can run here.
#[must_use]
pub fn missing_features(guest: &CpuId, host: &CpuId) -> Vec<String> {
    let find = |function, index| host.as_slice().iter().find(|e| e.function == function && e.index == index);
    let mut missing = Vec::new();
    for entry in guest.as_slice() {
        let words: &[(&str, u32, Register)] = match (entry.function, entry.index) {
            (1, _) => &[("ECX", entry.ecx, |e| e.ecx), ("EDX", entry.edx, |e| e.edx)],
            (7, 0) => &[("EBX", entry.ebx, |e| e.ebx), ("ECX", entry.ecx, |e| e.ecx), ("EDX", entry.edx, |e| e.edx)],
            (0xD, 0) => &[("EAX", entry.eax, |e| e.eax)],
            (0x8000_0001, _) => &[("ECX", entry.ecx, |e| e.ecx), ("EDX", entry.edx, |e| e.edx)],
            _ => continue,
        };
        for (register, promised, word) in words {
            let available = find(entry.function, entry.index).map_or(0, word);
            for bit in (0..32).filter(|bit| promised & !available & (1 << bit) != 0) {
                missing.push(format!("leaf {:#x}.{} {register} bit {bit}", entry.function, entry.index));
            }
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(ecx: u32) -> CpuId {
        CpuId::from_entries(&[kvm_cpuid_entry2 { function: 1, ecx, ..Default::default() }]).expect("one entry")
    }

    #[test]
    fn a_host_with_more_features_can_run_the_guest() {
        assert!(missing_features(&table(0b0101), &table(0b1101)).is_empty());
    }

    #[test]
    fn each_missing_feature_is_named() {
        assert_eq!(missing_features(&table(0b0111), &table(0b0010)), ["leaf 0x1.0 ECX bit 0", "leaf 0x1.0 ECX bit 2"]);
    }

    #[test]
    fn each_vcpu_sees_its_own_apic_id() {
        let vcpu = for_vcpu(&table(0), 3).expect("one entry");
        assert_eq!(vcpu.as_slice()[0].ebx >> 24, 3);
    }
}
