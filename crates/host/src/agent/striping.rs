//! Memory that is striped over several pools: room for it, and whether a host has joined every pool that takes part.

use super::Host;
use super::jobs::{Job, Stage};
use super::offers::check_listed;
use super::pools::not_a_member;
use super::table::Occupation;
use crate::error::{Error, Result};
use crate::name::{GuestName, HostName};
use crate::order::{Migrate, Striping};
use nil_pool::{Composition, GuestControl, Membership, PoolId, Stripe};

impl Host {
    /// Makes the capacity that is to take the guest's memory, striped.
    pub(super) fn place_striped(&self, home: &Membership, control: &GuestControl, striping: &Striping) -> Result<()> {
        for share in &striping.shares {
            self.pools.get(share.pool)?;
        }
        let all = self.pools.all();
        let members: Vec<&Membership> = all.iter().map(AsRef::as_ref).collect();
        Ok(home.place_memory_striped(control, &striping.request(), &members)?)
    }

    /// Refuses a target that has not joined every pool in which the guest's memory lies or is to lie, and stripes that
    /// cannot be.
    pub(super) fn check_target(&self, order: &Migrate, occupation: &Occupation<'_>) -> Result<()> {
        let control = &occupation.control;
        let Migrate { guest, to, striping, .. } = order;
        check_listed(to, guest, control)?;
        if let Some(striping) = striping {
            check_striping(guest, control, striping)?;
        }
        let joined = self.pools_of(to, &occupation.job)?;
        let needed = pools_needed(guest, control, striping.as_ref())?;
        match needed.into_iter().find(|(pool, _)| !joined.contains(pool)) {
            None => Ok(()),
            Some((pool, what)) => Err(Error::refused(format!("{}: {what}", not_a_member(to, pool)))),
        }
    }

    /// The pools that another host has joined. The question can be called off.
    fn pools_of(&self, host: &HostName, job: &Job) -> Result<Vec<PoolId>> {
        let mut target = self.call_target(host)?;
        job.enter(Stage::Arming(target.hang_up_handle()))?;
        let report = target.describe().map_err(|error| job.or_called_off(error))?;
        Ok(report.pools.iter().map(|pool| pool.id).collect())
    }
}

/// The pools without which a host cannot run the guest once it is there, and why.
fn pools_needed(
    guest: &GuestName,
    control: &GuestControl,
    striping: Option<&Striping>,
) -> Result<Vec<(PoolId, String)>> {
    let mut needed = vec![(control.pool().id(), format!("guest {guest} has its state there"))];
    if let Some(stripe) = stripe_of(control)? {
        let why = |tag| format!("capacity {tag}, a stripe of the memory of guest {guest}, lies there");
        needed.extend(stripe.legs.iter().map(|leg| (leg.pool, why(leg.tag))));
    } else if let Some(striping) = striping {
        let why = || format!("a stripe of the memory of guest {guest} is to lie there");
        needed.extend(striping.shares.iter().map(|share| (share.pool, why())));
    }
    Ok(needed)
}

/// Refuses stripes for memory that has room in the pool already, unless it is striped just so.
pub(super) fn check_striping(guest: &GuestName, control: &GuestControl, wanted: &Striping) -> Result<()> {
    if !control.is_placed() || stripe_of(control)?.is_some_and(|stripe| is_like(&stripe, wanted)) {
        return Ok(());
    }
    Err(Error::refused(format!(
        "guest {guest} has room in the pool for its memory already, which is not striped like that; `nil recouple {guest}` \
         gives it back, or go on without --stripe"
    )))
}

/// How the capacity of the guest's memory is striped, if there is one and it is.
fn stripe_of(control: &GuestControl) -> Result<Option<Stripe>> {
    let tag = control.config()?.memory;
    if !control.is_placed() {
        return Ok(None);
    }
    let memory = control.pool().capacities().into_iter().find(|capacity| capacity.tag == tag);
    Ok(memory.and_then(|memory| match memory.composition {
        Composition::Striped(stripe) => Some(stripe),
        Composition::Plain | Composition::LegOf(_) => None,
    }))
}

fn is_like(stripe: &Stripe, wanted: &Striping) -> bool {
    let legs = stripe.legs.iter().map(|leg| (leg.pool, leg.weight));
    stripe.granularity == wanted.granularity && legs.eq(wanted.shares.iter().map(|share| (share.pool, share.weight)))
}
