//! Striped capacity: one capacity over several pools, for room and for bandwidth.
//!
//! Its *home* pool has a record that lists its legs; each leg is a capacity of its own pool that says whose leg it is.
//!
//! ```text
//! add       for each leg: add it in its pool, with its maker's name  ·  add the record at home  ·  maker words → 0
//! release   home Live→Unmaking · in use? put back  ·  for each leg: release it in its pool  ·  free the record at home
//! ```
//!
//! | died                                  | left                            | settled by                              |
//! |---------------------------------------|---------------------------------|-----------------------------------------|
//! | among the legs, before home is `Live` | legs that name a maker who died | recovery in each pool, then the reaping |
//! | home is `Live`, a maker word is not 0 | a whole capacity                | nothing to do: whoever is whole is none |
//! | among the legs, home is `Unmaking`    | a home that recovery takes away | recovery, then the reaping              |
//!
//! What an orphan is, and how legs are found, is in [`crate::legs`].

use crate::capacities::{CapacityRequest, Holders, Spec, granules};
use crate::control::GuestControl;
use crate::error::{Error, Result};
use crate::format::GRANULE;
use crate::format::slot_word::Reference;
use crate::format::stripe::{Composition, Leg, Stripe, Whole};
use crate::ids::{CapacitySlot, PoolId, Tag};
use crate::legs::Standing;
use crate::listing::CapacityInfo;
use crate::mapping::put;
use crate::membership::Membership;
use crate::sync::{Ordering, fence};
use std::sync::{Mutex, PoisonError};

/// Whoever releases a striped capacity holds the journal of one membership while it takes those of others; one at a time.
pub(crate) static RELEASING: Mutex<()> = Mutex::new(());

/// How a capacity is to be striped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StripeRequest {
    /// Bytes that a leg of weight 1 gets in each round: a multiple of [`GRANULE`].
    pub granularity: u64,
    /// The legs, in the order of a round.
    pub legs: Vec<LegRequest>,
}

/// One leg that is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LegRequest {
    /// The pool that takes it; the home pool may be among them.
    pub pool: PoolId,
    /// Its share: by bandwidth.
    pub weight: u32,
}

/// What is done about pools that are not at hand when a capacity is released.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AbsentPools {
    /// Nothing is released.
    Refuse,
    /// They are taken to be gone for good. If one returns, what lies there is an orphan.
    TakeAsGone,
}

/// A leg of a capacity that is being released, and who can release it.
#[derive(Debug)]
pub(crate) struct LegAtHand<'a> {
    member: &'a Membership,
    leg: Reference,
    tag: Tag,
}

impl LegAtHand<'_> {
    /// Releases the leg. What cannot be released becomes an orphan, because its whole is about to end.
    pub(crate) fn release(&self) {
        if self.member.require_unfenced().is_ok() {
            let _ = self.member.release(self.leg, self.tag, &[], Holders::Overridden);
        }
    }
}

impl Membership {
    /// Adds a capacity whose bytes are spread over several pools. This pool has its record; `members` are memberships in
    /// the pools that take a leg, which become this pool's companions.
    ///
    /// # Errors
    /// [`Error`] with the reason; then nothing is left of it. [`Error::InPool`] says in which pool it failed.
    pub fn add_striped_capacity(
        &self,
        request: &CapacityRequest,
        stripe: &StripeRequest,
        members: &[&Self],
    ) -> Result<CapacityInfo> {
        let spec = request.validate()?;
        let tag = spec.tag;
        let made = self.add_striped(spec, stripe, members)?;
        self.pool().capacity(CapacitySlot(made.slot)).ok_or(Error::NoCapacity { tag })
    }

    /// Makes the capacity of a guest's memory, striped over several pools; else like [`Membership::place_memory`]. When it
    /// is released with [`Membership::unplace_memory`] or with the guest, the legs in other pools become orphans: see
    /// [`crate::reap_orphan_legs`].
    ///
    /// # Errors
    /// As for [`Membership::place_memory`] and [`Membership::add_striped_capacity`]; then nothing is left of it.
    pub fn place_memory_striped(&self, guest: &GuestControl, stripe: &StripeRequest, members: &[&Self]) -> Result<()> {
        let spec = self.memory_spec(guest)?;
        if guest.is_placed() {
            return Ok(());
        }
        let tag = spec.tag;
        self.add_striped(spec, stripe, members)?;
        fence(Ordering::SeqCst);
        self.require_live(guest).inspect_err(|_| {
            // Its user is over, so that nothing keeps it; and should a peer be faster, it is gone all the same.
            let _ = self.release_capacity_with(tag, members, AbsentPools::Refuse);
        })
    }

    /// Adds a striped capacity like `spec`.
    pub(crate) fn add_striped(&self, spec: Spec, request: &StripeRequest, members: &[&Self]) -> Result<Reference> {
        self.require_unfenced()?;
        self.require_coherent("striped capacity")?;
        members.iter().try_for_each(|member| member.require_coherent("striped capacity"))?;
        let bytes = u64::from(spec.granules) * GRANULE;
        let stripe = request.with_tags();
        stripe.validate(bytes)?;
        let takers = request.legs.iter().map(|leg| self.member_of(leg.pool, members).ok_or(leg.pool));
        let takers: Vec<&Self> = takers.collect::<Result<_, _>>().map_err(|pool| Error::PoolNotJoined { pool })?;
        let mut made = Vec::new();
        let added = self.add_legs(&spec, &stripe, &takers, &mut made).and_then(|()| {
            takers.iter().for_each(|member| self.pool().add_companion(member.pool()));
            self.add(&Spec { composition: Composition::Striped(stripe), ..spec })
        });
        for leg in &made {
            match &added {
                Ok(_) => put(leg.member.pool().tables().capacity_maker(leg.leg.slot.into()), 0, Ordering::Release),
                Err(_) => leg.release(),
            }
        }
        added
    }

    fn add_legs<'a>(
        &self,
        spec: &Spec,
        stripe: &Stripe,
        takers: &[&'a Self],
        made: &mut Vec<LegAtHand<'a>>,
    ) -> Result<()> {
        let whole = Whole { pool: self.pool().id(), tag: spec.tag };
        let sizes = stripe.leg_bytes(u64::from(spec.granules) * GRANULE);
        for ((leg, bytes), member) in stripe.legs.iter().zip(sizes).zip(takers) {
            let leg_spec = Spec {
                tag: leg.tag,
                class: spec.class,
                coherence: spec.coherence,
                granules: granules(bytes).ok_or(Error::CapacitySize { bytes })?,
                access: spec.access.clone(),
                label: spec.label.clone(),
                user: None,
                composition: Composition::LegOf(whole),
            };
            let path = || member.pool().path().to_owned();
            let added = member.add(&leg_spec);
            let added = added.map_err(|source| Error::InPool { path: path(), source: Box::new(source) })?;
            made.push(LegAtHand { member, leg: added, tag: leg.tag });
        }
        Ok(())
    }

    /// Releases a capacity, striped or not. `members` are memberships in the pools of its legs.
    ///
    /// # Errors
    /// [`Error::CapacityInUse`] with the guest, [`Error::CapacityAccepted`] with the hosts that have not let go of it,
    /// [`Error::NoCapacity`], [`Error::CapacityBusy`]; [`Error::LegInUse`] for a
    /// leg that is needed; [`Error::LegNotAtHand`] and [`Error::WholeNotAtHand`] for pools that are not.
    pub fn release_capacity_with(&self, tag: Tag, members: &[&Self], absent: AbsentPools) -> Result<()> {
        self.release_regarding(tag, members, absent, Holders::Respected)
    }

    /// Releases a capacity; what its hosts have answered counts or not.
    pub(crate) fn release_regarding(
        &self,
        tag: Tag,
        members: &[&Self],
        absent: AbsentPools,
        holders: Holders,
    ) -> Result<()> {
        self.require_unfenced()?;
        let tables = self.pool().tables();
        let capacity = tables.with_tag(tag).next().ok_or(Error::NoCapacity { tag })?;
        let composition = tables.capacity_of(capacity).map_or(Composition::Plain, |record| record.composition);
        match composition {
            Composition::Plain => self.release(capacity, tag, &[], holders),
            Composition::LegOf(whole) => {
                members.iter().for_each(|member| self.pool().add_companion(member.pool()));
                self.refuse_needed(capacity, tag, whole, absent)?;
                self.release(capacity, tag, &[], holders)
            }
            Composition::Striped(stripe) => {
                let whole = Whole { pool: self.pool().id(), tag };
                let legs = self.legs_elsewhere(whole, &stripe, members, absent)?;
                let _releasing = RELEASING.lock().unwrap_or_else(PoisonError::into_inner);
                self.release(capacity, tag, &legs, holders)
            }
        }
    }

    fn refuse_needed(&self, leg: Reference, tag: Tag, whole: Whole, absent: AbsentPools) -> Result<()> {
        match (self.pool().standing(leg, whole), absent) {
            (Standing::Orphan, _) | (Standing::Unknown, AbsentPools::TakeAsGone) => Ok(()),
            (Standing::Unknown, AbsentPools::Refuse) => Err(Error::WholeNotAtHand { leg: tag, whole }),
            (Standing::Needed, _) => Err(Error::LegInUse { leg: tag, whole }),
            (Standing::BeingMade(host), _) => Err(Error::CapacityBusy { tag, host }),
        }
    }

    /// The legs that lie in other pools, as far as they are there.
    pub(crate) fn legs_elsewhere<'a>(
        &self,
        whole: Whole,
        stripe: &Stripe,
        members: &[&'a Self],
        absent: AbsentPools,
    ) -> Result<Vec<LegAtHand<'a>>> {
        let mut legs = Vec::new();
        for &Leg { pool, tag, weight } in stripe.legs.iter().filter(|leg| leg.pool != self.pool().id()) {
            let member = members.iter().copied().find(|member| member.pool().id() == pool);
            match (member, absent) {
                (Some(member), _) => {
                    let leg = member.pool().capacity_by_tag(tag).filter(|leg| member.pool().is_leg_of(*leg, whole));
                    legs.extend(leg.map(|leg| LegAtHand { member, leg, tag }));
                }
                (None, AbsentPools::Refuse) => return Err(Error::LegNotAtHand { leg: tag, pool, weight }),
                (None, AbsentPools::TakeAsGone) => {}
            }
        }
        Ok(legs)
    }

    /// This membership or the one among `members` that is in a pool.
    fn member_of<'a>(&'a self, pool: PoolId, members: &[&'a Self]) -> Option<&'a Self> {
        std::iter::once(self).chain(members.iter().copied()).find(|member| member.pool().id() == pool)
    }

    /// This host in this incarnation, as the maker of a leg.
    pub(crate) fn as_maker(&self) -> Reference {
        // Slots of hosts have twelve bits.
        let slot = u16::try_from(self.slot().index()).unwrap_or(u16::MAX);
        Reference { slot, generation: self.epoch().0.into() }
    }
}

impl StripeRequest {
    /// The same with a new tag for each leg.
    fn with_tags(&self) -> Stripe {
        let leg = |&LegRequest { pool, weight }: &LegRequest| Leg { pool, tag: Tag::random(), weight };
        Stripe { granularity: self.granularity, legs: self.legs.iter().map(leg).collect() }
    }
}
