//! Memory that is striped over several pools, and room for it.

use super::Host;
use crate::error::{Error, Result};
use crate::name::GuestName;
use crate::order::Striping;
use nil_pool::{Composition, GuestControl, Membership, Stripe};

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
pub(super) fn stripe_of(control: &GuestControl) -> Result<Option<Stripe>> {
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
