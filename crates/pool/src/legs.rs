//! Legs of striped capacities: finding them, and telling whether they are needed.
//!
//! An *orphan* is a leg whose home pool is at hand and has no capacity that lists it, and whose maker is not about to
//! make one: the maker word is 0, or names a host that is dead or has joined anew. The maker word is read first: once it
//! is 0, the whole has been there. Orphans are what is left when a host dies among the legs, and when a guest with
//! striped memory ends; whoever is a member of both pools releases them.

use crate::capacities::Holders;
use crate::error::{Error, Result};
use crate::format::capacity::CapacityRecord;
use crate::format::slot_word::{Reference, SlotState};
use crate::format::stripe::{Composition, Leg, Whole};
use crate::ids::{CapacitySlot, PoolId, Tag};
use crate::liveness::Liveness;
use crate::membership::Membership;
use crate::ownership::HostSlot;
use crate::pool::Pool;
use crate::sync::Ordering;
use crate::tables::Seen;

/// Whether a leg is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// The striped capacity is there.
    Needed,
    /// This host is making the striped capacity.
    BeingMade(HostSlot),
    /// Nobody needs it.
    Orphan,
    /// Its home pool is not at hand.
    Unknown,
}

/// Releases the legs in these pools whose striped capacity is gone: what a host that died while it added or released
/// one, or while it released a guest's memory, has left behind. For the start of an agent, and after it has destroyed a
/// guest or recovered a peer. Gives the tags of what was released.
///
/// # Errors
/// [`Error::Fenced`]; a leg that somebody else is releasing at this moment is left to them.
pub fn reap_orphan_legs(members: &[&Membership]) -> Result<Vec<Tag>> {
    let mut reaped = Vec::new();
    for member in members {
        member.require_unfenced()?;
        let pool = member.pool();
        members.iter().for_each(|other| pool.add_companion(other.pool()));
        for (leg, record) in pool.live_capacities() {
            let Composition::LegOf(whole) = record.composition else { continue };
            if pool.standing(leg, whole) == Standing::Orphan
                && member.release(leg, record.tag, &[], Holders::Overridden).is_ok()
            {
                reaped.push(record.tag);
            }
        }
    }
    Ok(reaped)
}

impl Pool {
    fn live_capacities(&self) -> impl Iterator<Item = (Reference, CapacityRecord)> + '_ {
        let slots = self.tables().capacity_slots();
        (0..slots.count()).filter_map(move |slot| {
            let Ok(SlotState::Live { generation }) = slots.load(slot) else { return None };
            let reference = Reference { slot: u16::try_from(slot).ok()?, generation };
            Some((reference, self.tables().capacity_of(reference)?))
        })
    }

    /// The pool and the record of a leg that is to have `bytes` bytes.
    pub(crate) fn leg(&self, striped: &CapacityRecord, leg: &Leg, bytes: u64) -> Result<(Self, CapacityRecord)> {
        let &Leg { pool: id, tag, weight } = leg;
        let pool = self.at_hand(id).ok_or(Error::LegNotAtHand { leg: tag, pool: id, weight })?;
        let record = pool.capacity_by_tag(tag).and_then(|found| pool.tables().capacity_of(found));
        match self.flaw_of_leg(striped, record.as_ref(), bytes) {
            Some(what) => Err(Error::BadLeg { leg: tag, pool: id, path: pool.path().to_owned(), weight, what }),
            None => record.map(|record| (pool, record)).ok_or(Error::NoCapacity { tag }),
        }
    }

    /// What keeps a capacity from being the leg of this pool's striped one that has `bytes` bytes.
    pub(crate) fn flaw_of_leg(
        &self,
        striped: &CapacityRecord,
        leg: Option<&CapacityRecord>,
        bytes: u64,
    ) -> Option<&'static str> {
        let whole = Whole { pool: self.id(), tag: striped.tag };
        let Some(leg) = leg else { return Some("is missing, and what lay there is lost") };
        match leg.composition {
            Composition::Plain => Some("is a capacity of its own, and no stripe"),
            Composition::Striped(_) => Some("is itself striped"),
            Composition::LegOf(other) if other != whole => Some("is a stripe of another capacity"),
            Composition::LegOf(_) if leg.bytes != bytes => Some("has not the size that falls to it"),
            Composition::LegOf(_) => None,
        }
    }

    pub(crate) fn is_leg_of(&self, leg: Reference, whole: Whole) -> bool {
        self.tables().capacity_of(leg).is_some_and(|record| record.composition == Composition::LegOf(whole))
    }

    /// Whether a leg in this pool is needed.
    pub(crate) fn standing(&self, leg: Reference, whole: Whole) -> Standing {
        // First the maker, then the whole: see above.
        let maker = Reference::decode(self.tables().capacity_maker(leg.slot.into()).load(Ordering::Acquire));
        if let Some(host) = maker.and_then(|maker| self.living_host(maker)) {
            return Standing::BeingMade(host);
        }
        let (Some(home), Some(record)) = (self.at_hand(whole.pool), self.tables().capacity_of(leg)) else {
            return Standing::Unknown;
        };
        if home.may_list(self.id(), record.tag) { Standing::Needed } else { Standing::Orphan }
    }

    /// Whether some capacity here has this leg. The index is not asked, because it may be damaged; and what cannot be
    /// read might have it.
    fn may_list(&self, pool: PoolId, tag: Tag) -> bool {
        let tables = self.tables();
        (0..tables.capacity_slots().count()).any(|slot| match tables.capacity(slot) {
            Seen::Free => false,
            // Not written yet: it is not what this leg is of, whose maker has died or has come to its end.
            Seen::Used(SlotState::Making { generation, .. }, record)
                if record.as_ref().map_or(0, |record| record.generation) != generation =>
            {
                false
            }
            Seen::BadWord(_) | Seen::Used(_, Err(_)) => true,
            Seen::Used(state, Ok(record)) if state.current() != Some(record.generation) => true,
            Seen::Used(_, Ok(record)) => match record.composition {
                Composition::Plain | Composition::LegOf(_) => false,
                Composition::Striped(stripe) => stripe.legs.iter().any(|leg| (leg.pool, leg.tag) == (pool, tag)),
            },
        })
    }

    /// The host that this is, if it has not ended and is not dead for sure.
    fn living_host(&self, host: Reference) -> Option<HostSlot> {
        let slot = HostSlot::new(host.slot)?;
        let current = self.tables().hosts().load(host.slot.into()).ok()?.current();
        (current == Some(host.generation) && self.liveness(slot) != Liveness::Dead).then_some(slot)
    }

    /// Whether somebody asks for the release of this capacity or of one of its legs.
    pub(crate) fn is_release_asked(&self, slot: CapacitySlot, record: &CapacityRecord) -> bool {
        let asked = |pool: &Self, slot: usize, generation: u64| {
            pool.tables().capacity_asked(slot).load(Ordering::Acquire) == generation
        };
        let of_leg = |leg: &Leg| {
            let pool = self.at_hand(leg.pool)?;
            let found = pool.capacity_by_tag(leg.tag)?;
            Some(asked(&pool, found.slot.into(), found.generation))
        };
        let of_a_leg = || match &record.composition {
            Composition::Striped(stripe) => stripe.legs.iter().any(|leg| of_leg(leg) == Some(true)),
            Composition::Plain | Composition::LegOf(_) => false,
        };
        asked(self, slot.index(), record.generation) || of_a_leg()
    }
}
