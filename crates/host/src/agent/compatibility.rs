//! Asking, before anything moves, whether a host can have a guest of ours.

use super::Host;
use super::former::Former;
use super::jobs::{Job, Stage};
use super::offers::access_of;
use super::striping::{check_striping, stripe_of};
use crate::capabilities::Capabilities;
use crate::compatibility::{PoolNeed, Requirements, Verdict, check};
use crate::error::Result;
use crate::name::GuestName;
use crate::order::{Migrate, Settling, Striping};
use crate::versions::Versions;
use nil_pool::{GuestControl, PoolId};
use nil_vmm::GuestNeeds;

impl Host {
    /// What this host can do.
    pub(super) fn capabilities(&self) -> Capabilities {
        Capabilities {
            versions: Versions::OURS,
            kvm: self.processors.offer(),
            free_dram_bytes: self.machine.resources().free_dram_bytes,
            page_bytes: rustix::param::page_size() as u64,
            placement: self.pools.placement(),
        }
    }

    /// Whether a guest of ours can go where it is to go. Nothing is moved, and nothing reserved.
    pub(crate) fn check_migration(&self, order: &Migrate) -> Result<Verdict> {
        self.check_order(order)?;
        self.movable(&order.guest)?;
        let entry = self.table.find(&order.guest).ok_or_else(|| self.unknown_guest(&order.guest))?;
        let needs = requirements(order, &entry.control, entry.versions)?;
        let target = self.call_target(&order.to)?.describe()?;
        Ok(Verdict::new(order.guest.clone(), order.to.clone(), check(&needs, &target)))
    }

    /// Refuses a target that cannot have the guest, with every reason at once. The question can be called off.
    pub(super) fn check_target(&self, order: &Migrate, control: &GuestControl, job: &Job) -> Result<()> {
        let entry = self.table.find(&order.guest).ok_or_else(|| self.unknown_guest(&order.guest))?;
        let needs = requirements(order, control, entry.versions)?;
        let mut target = self.call_target(&order.to)?;
        job.enter(Stage::Arming(target.hang_up_handle()))?;
        let report = target.describe().map_err(|error| job.or_called_off(error))?;
        Verdict::new(order.guest.clone(), order.to.clone(), check(&needs, &report)).into_result()
    }
}

/// What a guest needs of the host that an order sends it to.
fn requirements(order: &Migrate, control: &GuestControl, versions: Versions) -> Result<Requirements> {
    let Migrate { guest, settling, striping, .. } = order;
    if let Some(striping) = striping {
        check_striping(guest, control, striping)?;
    }
    let away = Former::of(control)?.outside_pool().iter().map(|range| range.bytes).sum();
    Ok(Requirements {
        guest: guest.clone(),
        versions,
        access: access_of(guest, control),
        machine: GuestNeeds::read(control)?,
        pools: pools_needed(guest, control, striping.as_ref(), away)?,
        dram_bytes: match settling {
            Settling::Recouple => away,
            Settling::StayInPool => 0,
        },
        page_bytes: rustix::param::page_size() as u64,
    })
}

/// What a guest needs of the host that is to take it from one that is dead: its memory is in the pool, and stays there.
pub(super) fn takeover_needs(guest: &GuestName, control: &GuestControl) -> Result<Requirements> {
    Ok(Requirements {
        guest: guest.clone(),
        versions: Versions::OURS,
        access: access_of(guest, control),
        machine: GuestNeeds::read(control)?,
        pools: pools_needed(guest, control, None, 0)?,
        dram_bytes: 0,
        page_bytes: rustix::param::page_size() as u64,
    })
}

/// The pools without which a host cannot run the guest once it is there, and why; and what they must have room for before
/// it goes, if `away` bytes of its memory are not in the pool.
fn pools_needed(
    guest: &GuestName,
    control: &GuestControl,
    striping: Option<&Striping>,
    away: u64,
) -> Result<Vec<PoolNeed>> {
    let home = control.pool().id();
    let config = control.config()?;
    let unplaced = if away > 0 && !control.is_placed() { config.memory_bytes } else { 0 };
    let need = |pool: PoolId, why: String, bytes: u64| PoolNeed { pool, why, bytes };
    let of_state = |bytes| need(home, format!("guest {guest} has its state there"), bytes);
    if let Some(stripe) = stripe_of(control)? {
        let why = |tag| format!("capacity {tag}, a stripe of the memory of guest {guest}, lies there");
        let legs = stripe.legs.iter().map(|leg| need(leg.pool, why(leg.tag), 0));
        return Ok(std::iter::once(of_state(0)).chain(legs).collect());
    }
    let Some(striping) = striping else { return Ok(vec![of_state(unplaced)]) };
    let why = || format!("a stripe of the memory of guest {guest} is to lie there");
    let weights: u64 = striping.shares.iter().map(|share| u64::from(share.weight)).sum();
    // What falls to a leg of the last round, which may be cut short, is left out: it is never more than is needed.
    let round = striping.granularity.saturating_mul(weights);
    let rounds = unplaced.checked_div(round).unwrap_or(0);
    let part = |weight: u32| rounds.saturating_mul(striping.granularity).saturating_mul(weight.into());
    let shares = striping.shares.iter().map(|share| need(share.pool, why(), part(share.weight)));
    Ok(std::iter::once(of_state(0)).chain(shares).collect())
}
