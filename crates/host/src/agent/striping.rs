//! Memory that is striped over several pools: room for it, and whether a host has joined every pool that takes part.

use super::Host;
use super::pools::not_a_member;
use crate::error::{Error, Result};
use crate::message::{AgentReply, AgentRequest};
use crate::name::GuestName;
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
    pub(super) fn check_target(&self, order: &Migrate, control: &GuestControl) -> Result<()> {
        let Migrate { guest, to, striping, .. } = order;
        if let Some(striping) = striping {
            check_striping(guest, control, striping)?;
        }
        let mut target = self.call_target(to)?;
        target.send(&AgentRequest::Describe)?;
        let joined: Vec<PoolId> = match target.expect()? {
            AgentReply::Host(report) => report.pools.iter().map(|pool| pool.id).collect(),
            AgentReply::Refused(why) => return Err(Error::refused(why)),
            other => return Err(Error::refused(format!("{} answered {other:?} to who it is", target.peer()))),
        };
        let home = control.pool().id();
        if !joined.contains(&home) {
            return Err(not_a_member(to, home));
        }
        let (legs, wanted) = (stripe_of(control)?.map(|stripe| stripe.legs), striping.as_ref());
        let missing = match legs {
            Some(legs) => legs.into_iter().find(|leg| !joined.contains(&leg.pool)).map(|leg| {
                (leg.pool, format!("capacity {}, a stripe of the memory of guest {guest}, lies there", leg.tag))
            }),
            None => wanted
                .and_then(|striping| striping.shares.iter().find(|share| !joined.contains(&share.pool)))
                .map(|share| (share.pool, format!("a stripe of the memory of guest {guest} is to lie there"))),
        };
        match missing {
            None => Ok(()),
            Some((pool, what)) => Err(Error::refused(format!("{}: {what}", not_a_member(to, pool)))),
        }
    }
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
