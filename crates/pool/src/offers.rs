//! Capacity is offered to the hosts on its access list, and each answers for itself.
//!
//! A host that is on the list attaches the capacity after it has accepted it; one that is not, never. A capacity that
//! has no list is everybody's, and nobody is asked. When the release of an accepted capacity is asked for, its hosts let
//! go of it one by one; it is released when nobody holds it any more. A host that is dead for sure, or has left the pool,
//! holds nothing.
//!
//! Each host changes its own three bits of one word, by compare-and-swap.

use crate::error::{Error, Result};
use crate::format::answers::{Answer, Answers};
use crate::format::capacity::CapacityRecord;
use crate::format::slot_word::Reference;
use crate::ids::{HostId, Tag};
use crate::listing::{CapacityInfo, HostInfo};
use crate::liveness::Liveness;
use crate::mapping::exchange;
use crate::membership::Membership;
use crate::pool::Pool;
use crate::sync::Ordering;

impl Membership {
    /// Answers the offer of a capacity, or changes the answer.
    ///
    /// # Errors
    /// [`Error::NotOnAccessList`], [`Error::NoCapacity`], [`Error::Fenced`].
    pub fn answer_offer(&self, tag: Tag, answer: Answer) -> Result<()> {
        self.require_unfenced()?;
        let _turn = self.exclusive()?;
        let (pool, tables) = (self.pool(), self.pool().tables());
        let capacity = pool.capacity_by_tag(tag).ok_or(Error::NoCapacity { tag })?;
        let record = tables.capacity_of(capacity).ok_or(Error::NoCapacity { tag })?;
        let id = self.identity().id;
        let place = record.access.iter().position(|host| *host == id);
        let place = place.ok_or_else(|| Error::NotOnAccessList { tag, host: self.identity().name.clone() })?;
        let word = tables.capacity_answers(capacity.slot.into());
        let mut before = word.load(Ordering::Acquire);
        // A later use of the slot has another generation, about which this says nothing.
        while let Err(found) =
            exchange(word, before, Answers::decode(before, capacity.generation).with(place, answer).encode())
        {
            before = found;
        }
        Ok(())
    }
}

impl CapacityInfo {
    /// What a host has answered; `None` when it is not on the access list.
    #[must_use]
    pub fn answer_of(&self, host: HostId) -> Option<Answer> {
        self.access.iter().zip(&self.answers).find(|(listed, _)| **listed == host).map(|(_, answer)| *answer)
    }
}

impl Pool {
    /// The hosts that have accepted a capacity, have not let go of it, and may be alive.
    pub(crate) fn holders(&self, capacity: Reference, record: &CapacityRecord) -> Vec<HostInfo> {
        let answers = self.answers(capacity, record);
        let accepted = |id| record.access.iter().zip(&answers).any(|held| held == (&id, &Answer::Accepted));
        if !answers.contains(&Answer::Accepted) {
            return Vec::new();
        }
        self.hosts().into_iter().filter(|host| host.liveness != Liveness::Dead && accepted(host.id)).collect()
    }

    /// The answers of the hosts on the access list, in its order.
    pub(crate) fn answers(&self, capacity: Reference, record: &CapacityRecord) -> Vec<Answer> {
        let word = self.tables().capacity_answers(capacity.slot.into()).load(Ordering::Acquire);
        let answers = Answers::decode(word, capacity.generation);
        (0..record.access.len()).map(|place| answers.get(place)).collect()
    }

    /// Refuses who is not on the access list of a capacity.
    pub(crate) fn require_listed(&self, record: &CapacityRecord) -> Result<()> {
        let listed = |id: &HostId| record.access.contains(id);
        if record.access.is_empty() || self.acting().as_ref().is_some_and(listed) {
            return Ok(());
        }
        let named =
            |id| self.hosts().into_iter().find(|host| host.id == id).map_or_else(|| id.to_string(), |host| host.name);
        let host = self.acting().map_or_else(|| "(nobody has said which)".to_owned(), named);
        Err(Error::NotOnAccessList { tag: record.tag, host })
    }

    /// Refuses who has not accepted a capacity that was offered.
    pub(crate) fn require_accepted(&self, capacity: Reference, record: &CapacityRecord) -> Result<()> {
        self.require_listed(record)?;
        let place = record.access.iter().position(|host| Some(*host) == self.acting());
        match place.map(|place| self.answers(capacity, record)[place]) {
            None | Some(Answer::Accepted) => Ok(()),
            Some(answer) => Err(Error::NotAccepted { tag: record.tag, answer }),
        }
    }
}
