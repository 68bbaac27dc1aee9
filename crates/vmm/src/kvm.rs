//! What this host's KVM can do, probed once per process.
//!
//! Everything a worker needs to know before it builds a machine: required capabilities (with a sentence for each that is
//! missing), the CPUID that a guest may see, the MSRs that can be saved *and* restored, and how memory is virtualised.

use crate::cpu::cpuid;
use crate::error::{Error, Result};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use std::io;

/// MSRs that KVM lists as state, but that must not travel in the MSR section.
///
/// `IA32_TSC` (0x10): the time stamp counter travels as an offset, so that it does not jump by the blackout.
const NOT_CARRIED: [u32; 1] = [0x10];

/// How KVM turns guest-virtual into host-physical addresses here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Paging {
    /// The hardware walks the guest's page tables (EPT, NPT): nothing can be stale after a handoff.
    Nested,
    /// KVM shadows the guest's page tables: shadows built before a handoff may be stale if the guest has changed its
    /// page tables since (see `docs/vmm.md`).
    Shadow,
}

/// The KVM of this host.
#[derive(Debug)]
pub struct KvmHost {
    kvm: Kvm,
    cpuid: CpuId,
    paging: Paging,
}

impl KvmHost {
    /// Opens `/dev/kvm` and checks that it can do what nil needs.
    ///
    /// # Errors
    /// [`Error::NoKvm`] when the device is missing or may not be opened, [`Error::MissingCapability`] naming the first
    /// capability that is missing, [`Error::Kvm`] when a query fails.
    pub fn open() -> Result<Self> {
        let kvm = Kvm::new().map_err(|source| Error::NoKvm { source: io::Error::from(source) })?;
        let version = kvm.get_api_version();
        if version != 12 {
            return Err(Error::ApiVersion { found: version });
        }
        for (cap, name) in [
            (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
            (Cap::SyncRegs, "KVM_CAP_SYNC_REGS"),
            (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
            (Cap::Xsave, "KVM_CAP_XSAVE"),
            (Cap::Xcrs, "KVM_CAP_XCRS"),
            (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
            (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
        ] {
            if !kvm.check_extension(cap) {
                return Err(Error::MissingCapability { name });
            }
        }
        let supported =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;
        let cpuid = cpuid::of_host(&supported)?;
        Ok(Self { kvm, cpuid, paging: detect_paging() })
    }

    /// The open `/dev/kvm`.
    #[must_use]
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// The CPUID of a guest that gets all that this host has (before its vCPU's own APIC id is filled in).
    #[must_use]
    pub fn cpuid(&self) -> &CpuId {
        &self.cpuid
    }

    /// The most vCPUs that a guest can have.
    pub(crate) fn most_vcpus(&self) -> u32 {
        u32::try_from(self.kvm.get_max_vcpus()).unwrap_or(u32::MAX).min(nil_guest_abi::MAX_VCPUS)
    }

    /// How memory is virtualised.
    #[must_use]
    pub fn paging(&self) -> Paging {
        self.paging
    }

    /// Indices of the MSRs that travel with a vCPU: those that KVM lists and that `vcpu` lets us write back.
    ///
    /// # Errors
    /// [`Error::Kvm`] when the list cannot be read.
    pub fn carried_msrs(&self, vcpu: &VcpuFd) -> Result<Vec<u32>> {
        let list = self.kvm.get_msr_index_list().map_err(Error::kvm("KVM_GET_MSR_INDEX_LIST"))?;
        Ok(list
            .as_slice()
            .iter()
            .copied()
            .filter(|index| !NOT_CARRIED.contains(index) && restorable(vcpu, *index))
            .collect())
    }
}

/// Whether `vcpu` gives the MSR's value and takes the same value back.
fn restorable(vcpu: &VcpuFd, index: u32) -> bool {
    let Ok(mut msrs) = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }]) else {
        return false;
    };
    matches!(vcpu.get_msrs(&mut msrs), Ok(1)) && matches!(vcpu.set_msrs(&msrs), Ok(1))
}

/// Reads the module parameters that tell nested paging; when none says "yes", assumes shadow paging, which is always
/// safe to assume.
fn detect_paging() -> Paging {
    let yes = |path: &str| std::fs::read_to_string(path).is_ok_and(|text| matches!(text.trim(), "Y" | "1"));
    if yes("/sys/module/kvm_intel/parameters/ept") || yes("/sys/module/kvm_amd/parameters/npt") {
        Paging::Nested
    } else {
        Paging::Shadow
    }
}
