//! Taking a capacity away from the guest that uses it.
//!
//! ```text
//! taker                                    worker of the guest
//!   demand: none → Standing
//!                                            heed: Standing → Heeded        (else: nothing happens to the guest)
//!                                            every vCPU and every move is stopped, for good
//!                                            ownership: Owned → Lost
//!   sees Lost: nobody runs it, ever
//!   Live → Unmaking · every granule local · user word → 0 · as in every release
//! ```
//!
//! So no granule is given to anybody before the last store of its guest. Where nobody heeds the demand in time, it is
//! withdrawn and refused: of heed and withdraw exactly one wins. A guest that is Lost already is not asked. What was in
//! the pool counts as local to the host that had it: it died with it, like everything that was in that host's DRAM.
//!
//! | died                            | left                                  | then                                        |
//! |---------------------------------|---------------------------------------|---------------------------------------------|
//! | taker, demand Standing          | the guest is stopped when it is heeded | whoever releases the capacity finds it Lost |
//! | taker, demand Heeded            | a guest that is Lost                  | the same                                    |
//! | taker, Unmaking, user the guest | put back                              | the same                                    |
//! | taker, Unmaking, user 0         | finished by recovery                  | done                                        |
//! | worker, before Lost             | its host's agent finds it dead: Lost  | done by the taker, or by the next           |

use crate::capacities::Holders;
use crate::control::GuestControl;
use crate::create::now;
use crate::error::{Error, Result};
use crate::format::demand::Demand;
use crate::format::guest::GuestRecord;
use crate::format::placement::{Place, Placed};
use crate::format::slot_word::Reference;
use crate::format::stripe::{Composition, Whole};
use crate::ids::Tag;
use crate::mapping::{exchange, put};
use crate::membership::Membership;
use crate::ownership::{HostSlot, Ownership};
use crate::pool::Pool;
use crate::stripe::{AbsentPools, LegAtHand, RELEASING};
use crate::sync::Ordering;
use crate::tables::Seen;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// How often to look whether a demand has been heeded.
const LOOK: Duration = Duration::from_millis(5);

/// A capacity that was taken away.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Taken {
    /// The guest that had its memory there, and is lost.
    pub guest: Option<String>,
}

/// That somebody takes a guest's memory away.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Demanded {
    /// The capacity.
    pub tag: Tag,
    /// The host that takes it.
    pub by: HostSlot,
    /// When it said so, in nanoseconds since 1970, by its clock.
    pub at: u64,
    /// Whether the guest's worker has begun to stop it.
    pub heeded: bool,
}

impl Pool {
    /// What is demanded of a capacity.
    pub(crate) fn demand_of(&self, capacity: Reference, tag: Tag) -> Option<Demanded> {
        let slot = usize::from(capacity.slot);
        let word = self.tables().capacity_demand(slot).load(Ordering::Acquire);
        let demand = Demand::decode(word, capacity.generation)?;
        let at = self.tables().capacity_demanded_at(slot).load(Ordering::Relaxed);
        Some(Demanded { tag, by: demand.by(), at, heeded: matches!(demand, Demand::Heeded { .. }) })
    }

    /// The guest that a capacity is used by, if it is still there.
    fn user_record(&self, guest: Reference) -> Option<GuestRecord> {
        match self.tables().guest(guest.slot.into()) {
            Seen::Used(state, Ok(record)) if state.current() == Some(guest.generation) => Some(record),
            Seen::Used(..) | Seen::Free | Seen::BadWord(_) => None,
        }
    }

    fn has_lost(&self, guest: Reference) -> bool {
        matches!(self.ownership_in(guest.slot.into()).load(), Ok(Ownership::Lost { .. }))
            && self.tables().guest_slots().is_current(guest)
    }
}

impl GuestControl {
    /// Whether somebody takes the guest's memory away. For its worker, again and again.
    #[must_use]
    pub fn demanded(&self) -> Option<Demanded> {
        let tag = self.record().ok()?.memory();
        self.pool().demand_of(self.pool().capacity_by_tag(tag)?, tag)
    }

    /// Says that the guest is about to be stopped because of a demand. False when the demand has been withdrawn: then it
    /// must go on.
    #[must_use]
    pub fn heed(&self, demanded: &Demanded) -> bool {
        let Some(capacity) = self.pool().capacity_by_tag(demanded.tag) else { return false };
        let word = self.pool().tables().capacity_demand(capacity.slot.into());
        let [standing, heeded] = [Demand::Standing { by: demanded.by }, Demand::Heeded { by: demanded.by }]
            .map(|demand| demand.encode(capacity.generation));
        exchange(word, standing, heeded).map_or_else(|found| found == heeded, |()| true)
    }
}

impl Membership {
    /// Releases a capacity whoever uses it. A guest that has its memory there is stopped first, by its own worker, and is
    /// lost; nothing is given to anybody before that. Hosts that have accepted the capacity are not asked.
    ///
    /// `patience` is how long the worker may take to say that it stops the guest, and then again to have stopped it.
    ///
    /// # Errors
    /// [`Error::NotHeeded`], with nothing changed; [`Error::StillStopping`], when it is to be tried again;
    /// [`Error::StateOfGuest`]; as for [`Membership::release_capacity_with`].
    pub fn force_release(&self, tag: Tag, members: &[&Self], absent: AbsentPools, patience: Duration) -> Result<Taken> {
        self.require_unfenced()?;
        self.require_coherent("releasing capacity by force")?;
        let tables = self.pool().tables();
        let capacity = self.pool().capacity_by_tag(tag).ok_or(Error::NoCapacity { tag })?;
        let composition = tables.capacity_of(capacity).map_or(Composition::Plain, |record| record.composition);
        let user = match composition {
            Composition::LegOf(_) => None,
            Composition::Plain | Composition::Striped(_) => tables.user_of(capacity.slot.into()),
        };
        let Some(guest) = user else {
            self.release_regarding(tag, members, absent, Holders::Overridden)?;
            return Ok(Taken { guest: None });
        };
        let name = self.pool().guest_name(guest);
        if self.pool().user_record(guest).is_some_and(|record| record.memory() != tag) {
            return Err(Error::StateOfGuest { tag, guest: name });
        }
        let legs = match &composition {
            Composition::Striped(stripe) => {
                self.legs_elsewhere(Whole { pool: self.pool().id(), tag }, stripe, members, absent)?
            }
            Composition::Plain | Composition::LegOf(_) => Vec::new(),
        };
        if !self.pool().has_lost(guest) {
            self.demand(capacity, guest, tag, patience)?;
        }
        match self.take(capacity, guest, tag, &legs) {
            // Whoever has destroyed the lost guest meanwhile has released it.
            Err(Error::NoCapacity { .. }) => {}
            taken => taken?,
        }
        Ok(Taken { guest: Some(name) })
    }

    /// Has the guest stopped. It is lost when this returns, or gone.
    fn demand(&self, capacity: Reference, guest: Reference, tag: Tag, patience: Duration) -> Result<()> {
        let (tables, slot) = (self.pool().tables(), usize::from(capacity.slot));
        let word = tables.capacity_demand(slot);
        let before = word.load(Ordering::Acquire);
        let standing = Demand::Standing { by: self.slot() }.encode(capacity.generation);
        if Demand::decode(before, capacity.generation).is_none() {
            put(tables.capacity_demanded_at(slot), now(), Ordering::Relaxed);
            // Whoever was quicker demands the same.
            let _ = exchange(word, before, standing);
        }
        if self.await_loss(guest, patience) {
            return Ok(());
        }
        let (host, guest_name) = (self.runner_of(guest), self.pool().guest_name(guest));
        let found = word.load(Ordering::Acquire);
        let withdrawn = match Demand::decode(found, capacity.generation) {
            Some(Demand::Standing { .. }) => exchange(word, found, 0).is_ok(),
            Some(Demand::Heeded { .. }) => false,
            None => true,
        };
        if withdrawn {
            return Err(Error::NotHeeded { tag, guest: guest_name, host, seconds: patience.as_secs() });
        }
        if self.await_loss(guest, patience) {
            Ok(())
        } else {
            Err(Error::StillStopping { tag, guest: guest_name, host })
        }
    }

    /// Waits until nobody runs the guest any more.
    fn await_loss(&self, guest: Reference, patience: Duration) -> bool {
        let start = Instant::now();
        loop {
            if self.pool().has_lost(guest) || !self.pool().tables().guest_slots().is_current(guest) {
                return true;
            }
            if start.elapsed() >= patience {
                return false;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The host that has to stop a guest, for a message.
    fn runner_of(&self, guest: Reference) -> String {
        let slot = self.pool().ownership_in(guest.slot.into()).load().ok().and_then(Ownership::responsible);
        let name = |slot| self.pool().host(slot).map(|host| host.name);
        slot.and_then(name).unwrap_or_else(|| "(none)".to_owned())
    }

    /// Releases the memory capacity of a guest that is lost.
    pub(crate) fn take(&self, capacity: Reference, guest: Reference, tag: Tag, legs: &[LegAtHand<'_>]) -> Result<()> {
        let _releasing = RELEASING.lock().unwrap_or_else(PoisonError::into_inner);
        self.release_if(capacity, tag, legs, || {
            if !self.pool().tables().guest_slots().is_current(guest) {
                return Ok(());
            }
            if !self.pool().has_lost(guest) {
                return Err(Error::CapacityInUse { tag, guest: self.pool().guest_name(guest) });
            }
            self.forget_pooled(guest)?;
            let _ = exchange(self.pool().tables().capacity_user(capacity.slot.into()), guest.encode(), 0);
            Ok(())
        })
    }

    /// Has every granule of a lost guest count as local to the host that had it: there is nothing of it any more.
    fn forget_pooled(&self, guest: Reference) -> Result<()> {
        let Ok(Ownership::Lost { host, epoch }) = self.pool().ownership_in(guest.slot.into()).load() else {
            return Ok(());
        };
        let Some(record) = self.pool().user_record(guest) else { return Ok(()) };
        // A state area that cannot be read says nothing of the memory, either.
        let Ok(state) = self.pool().state_of(&record) else { return Ok(()) };
        let map = state.placement();
        for granule in 0..map.granules() {
            if !matches!(map.get(granule), Ok(Placed { place: Place::Local { .. }, .. })) {
                map.put(granule, Placed::cold(Place::Local { host, epoch }));
            }
        }
        Ok(())
    }
}
