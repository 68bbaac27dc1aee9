//! Whether a guest can go to a host, decided before anything moves.
//!
//! ```text
//! source's agent                                             target's agent
//!   Requirements: what the guest was promised and consists of,      HostReport: pools, Capabilities
//!                 where its memory lies and is to lie                     │
//!        └──────────────────────────▶  check  ◀───────────────────────────┘
//!                                        │
//!                     every reason against it, at once ([`Incompatibility`])
//! ```
//!
//! The check is pure, so that planning and draining use the very same. It is an early answer and not the last word: a
//! target looks again, at its real KVM and pools, when it arms.

mod reason;
#[cfg(test)]
mod tests;

pub use reason::{Incompatibility, Reason, Verdict};

use crate::capabilities::{Capabilities, Placement, Virtualisation};
use crate::name::GuestName;
use crate::report::HostReport;
use crate::versions::Versions;
use nil_pool::{HostId, PoolId};
use nil_vmm::{GuestNeeds, KvmOffer};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How far apart two TSCs may be that count as equally fast, in parts per million: what KVM itself tolerates
/// (`tsc_tolerance_ppm`).
const TSC_TOLERANCE_PPM: u64 = 250;

/// What a guest needs of the host that is to have it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Requirements {
    /// The guest.
    pub guest: GuestName,
    /// The hosts that may run it; all, if none is named.
    pub access: Vec<HostId>,
    /// What the worker speaks that runs it.
    pub versions: Versions,
    /// Its machine.
    pub machine: GuestNeeds,
    /// The pools that it cannot do without, in the order of their importance.
    pub pools: Vec<PoolNeed>,
    /// Bytes of its memory that are to come into the target's DRAM.
    pub dram_bytes: u64,
    /// Bytes of a page where it runs.
    pub page_bytes: u64,
}

/// A pool that a guest's host must have joined.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PoolNeed {
    /// The pool.
    pub pool: PoolId,
    /// What the guest has, or is to have, there: a sentence.
    pub why: String,
    /// Bytes that are to be allocated there before the guest goes.
    pub bytes: u64,
}

/// Every reason why `target` cannot have the guest; none if it can.
#[must_use]
pub fn check(needs: &Requirements, target: &HostReport) -> Vec<Incompatibility> {
    let mut reasons = Vec::new();
    if !needs.access.is_empty() && !target.id.is_some_and(|id| needs.access.contains(&id)) {
        let (host, guest) = (target.name.clone(), needs.guest.clone());
        reasons.push(Incompatibility::NotListed { host, guest });
    }
    check_pools(needs, target, &mut reasons);
    let Some(capabilities) = &target.capabilities else {
        reasons.push(Incompatibility::Untold);
        return reasons;
    };
    check_host(needs, capabilities, &mut reasons);
    match &capabilities.kvm {
        Virtualisation::Offered(offer) => check_machine(&needs.machine, offer, &mut reasons),
        Virtualisation::Missing(why) => reasons.push(Incompatibility::NoKvm { why: why.clone() }),
    }
    reasons
}

fn check_pools(needs: &Requirements, target: &HostReport, reasons: &mut Vec<Incompatibility>) {
    let mut wanted: BTreeMap<PoolId, u64> = BTreeMap::new();
    for need in &needs.pools {
        let bytes = wanted.entry(need.pool).or_default();
        *bytes = bytes.saturating_add(need.bytes);
        if !target.pools.iter().any(|pool| pool.id == need.pool) {
            let (host, pool, why) = (target.name.clone(), need.pool, need.why.clone());
            reasons.push(Incompatibility::NotAMember { host, pool, why });
        }
    }
    for pool in &target.pools {
        match wanted.get(&pool.id) {
            Some(&needed) if needed > pool.free_bytes => {
                reasons.push(Incompatibility::PoolRoom { pool: pool.id, needed, free: pool.free_bytes });
            }
            _ => {}
        }
    }
}

fn check_host(needs: &Requirements, host: &Capabilities, reasons: &mut Vec<Incompatibility>) {
    if host.placement == Placement::Cordoned {
        reasons.push(Incompatibility::Cordoned);
    }
    for (interface, guest, host) in needs.versions.mismatches(&host.versions) {
        reasons.push(Incompatibility::Version { interface, guest, host });
    }
    if needs.dram_bytes > host.free_dram_bytes {
        reasons.push(Incompatibility::Dram { needed: needs.dram_bytes, free: host.free_dram_bytes });
    }
    if needs.page_bytes != host.page_bytes {
        reasons.push(Incompatibility::PageSize { guest: needs.page_bytes, host: host.page_bytes });
    }
}

fn check_machine(needs: &GuestNeeds, offer: &KvmOffer, reasons: &mut Vec<Incompatibility>) {
    if needs.vendor != offer.vendor {
        reasons.push(Incompatibility::Vendor { guest: needs.vendor.clone(), host: offer.vendor.clone() });
    }
    let lacking = needs.features.difference(offer.cpu.features()).map(ToString::to_string);
    let features: Vec<String> = lacking.chain(needs.unnamed.iter().cloned()).collect();
    if !features.is_empty() {
        reasons.push(Incompatibility::Features { model: needs.model.clone(), missing: features });
    }
    for guest in &needs.xsave {
        if !offer.xsave.contains(guest) {
            reasons.push(Incompatibility::Xsave { state: *guest });
        }
    }
    if let Some(carried) = offer.cpu.msrs() {
        let missing: Vec<u32> = needs.msrs.difference(carried).copied().collect();
        if !missing.is_empty() {
            reasons.push(Incompatibility::Msrs { missing });
        }
    }
    if needs.vcpus > offer.most_vcpus {
        reasons.push(Incompatibility::Vcpus { guest: needs.vcpus, most: offer.most_vcpus });
    }
    for device in &needs.devices {
        let offered = offer.devices.iter().find(|offered| offered.kind == device.kind).map(|offered| offered.version);
        let fits = |version: u16| crate::versions::reads(version.into(), device.version.into());
        if !offered.is_some_and(fits) {
            reasons.push(Incompatibility::Device { device: *device, offered });
        }
    }
    match (needs.tsc_khz, offer.tsc_khz) {
        (Some(guest), Some(host)) if !equally_fast(guest, host) => {
            reasons.push(Incompatibility::TscFrequency { guest_khz: guest, host_khz: host });
        }
        _ => {}
    }
}

fn equally_fast(one_khz: u32, other_khz: u32) -> bool {
    u64::from(one_khz.abs_diff(other_khz)) * 1_000_000 <= u64::from(one_khz) * TSC_TOLERANCE_PPM
}
